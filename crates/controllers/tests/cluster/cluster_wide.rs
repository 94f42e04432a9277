//! Namespaces, garbage, nodes.

use std::time::Duration;

use controllers::{Config, Grace};
use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{ConfigMap, Namespace, Node, Pod, Service};
use k8s_openapi::api::networking::v1::ServiceCIDR;
use kube::api::{Api, DeleteParams, ListParams, PostParams};
use serde_json::{Value, json};

use crate::support::{Cluster, eventually, object};

#[tokio::test]
async fn a_namespace_is_furnished_and_emptied() {
    let cluster = Cluster::start(Config { root_ca: "PEM".into(), ..Config::default() }).await;
    let maps = cluster.api::<ConfigMap>();
    let map = eventually("the root certificate", || async { maps.get_opt("kube-root-ca.crt").await.ok()? }).await;
    assert_eq!(map.data.expect("data")["ca.crt"], "PEM");
    maps.delete("kube-root-ca.crt", &DeleteParams::default()).await.expect("deleted");
    eventually("its return", || async { maps.get_opt("kube-root-ca.crt").await.ok()? }).await;

    cluster.create::<ReplicaSet>(set("rs")).await;
    eventually("pods", || async { (cluster.pods("rs").await.len() == 2).then_some(()) }).await;
    let kept: ConfigMap = object(json!({ "metadata": { "name": "kept", "finalizers": ["example.com/keep"] } }));
    maps.create(&PostParams::default(), &kept).await.expect("created");
    let namespaces: Api<Namespace> = Api::all(cluster.client.clone());
    namespaces.delete("test", &DeleteParams::default()).await.expect("deleted");
    let message = eventually("what remains", || async {
        let conditions = namespaces.get("test").await.ok()?.status?.conditions?;
        let found = conditions.into_iter().find(|c| c.type_ == "NamespaceFinalizersRemaining" && c.status == "True")?;
        found.message
    })
    .await;
    assert_eq!(
        message,
        "Some content in the namespace has finalizers remaining: example.com/keep in 1 resource instances"
    );
    cluster.merge::<ConfigMap>("kept", json!({ "metadata": { "finalizers": null } })).await;
    eventually("the end of the namespace", || async { namespaces.get_opt("test").await.ok()?.is_none().then_some(()) })
        .await;
}

fn set(name: &str) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "replicas": 2, "selector": { "matchLabels": { "app": name } },
            "template": { "metadata": { "labels": { "app": name } }, "spec": { "containers": [{ "name": "c", "image": "i:1" }] } } }
    })
}

async fn two_pods(cluster: &Cluster) {
    cluster.create::<Deployment>(set("web")).await;
    eventually("pods", || async { (cluster.pods("web").await.len() == 2).then_some(()) }).await;
}

async fn sets(cluster: &Cluster) -> Vec<ReplicaSet> {
    cluster.api::<ReplicaSet>().list(&ListParams::default()).await.expect("listed").items
}

#[tokio::test]
async fn background_deletion_collects_dependents() {
    let cluster = Cluster::start(Config::default()).await;
    two_pods(&cluster).await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::background()).await.expect("deleted");
    assert!(cluster.api::<Deployment>().get_opt("web").await.expect("asked").is_none(), "the owner is gone at once");
    eventually("no pods", || async { cluster.pods("web").await.is_empty().then_some(()) }).await;
    eventually("no sets", || async { sets(&cluster).await.is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn foreground_deletion_removes_dependents_first() {
    let cluster = Cluster::start(Config::default()).await;
    two_pods(&cluster).await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::foreground()).await.expect("deleted");
    eventually("the owner's end", || async {
        cluster.api::<Deployment>().get_opt("web").await.ok()?.is_none().then_some(())
    })
    .await;
    assert!(sets(&cluster).await.is_empty() && cluster.pods("web").await.is_empty());
}

#[tokio::test]
async fn orphaning_deletion_sets_dependents_free() {
    let cluster = Cluster::start(Config::default()).await;
    two_pods(&cluster).await;
    cluster.api::<Deployment>().delete("web", &DeleteParams::orphan()).await.expect("deleted");
    eventually("the owner's end", || async {
        cluster.api::<Deployment>().get_opt("web").await.ok()?.is_none().then_some(())
    })
    .await;
    let left = sets(&cluster).await;
    assert_eq!((left.len(), cluster.pods("web").await.len()), (1, 2));
    assert!(left[0].metadata.owner_references.is_none());
    cluster.create::<Deployment>(set("web")).await;
    eventually("adoption", || async { sets(&cluster).await.pop()?.metadata.owner_references }).await;
    assert_eq!(sets(&cluster).await.len(), 1);
}

#[tokio::test]
async fn owners_that_never_were_and_custom_resources_are_collected_too() {
    let cluster = Cluster::start(Config::default()).await;
    let reference = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "ghost", "uid": "no-such-uid" }]);
    let dependent: ConfigMap = object(json!({ "metadata": { "name": "dependent", "ownerReferences": reference } }));
    cluster.api::<ConfigMap>().create(&PostParams::default(), &dependent).await.expect("created");
    eventually("the dependent's end", || async {
        cluster.api::<ConfigMap>().get_opt("dependent").await.ok()?.is_none().then_some(())
    })
    .await;
}

#[tokio::test]
async fn a_silent_node_is_tainted_and_its_pods_leave() {
    let grace = Grace { running: Duration::from_millis(600), starting: Duration::from_secs(60) };
    let cluster = Cluster::start(Config { node_grace: grace, ..Config::default() }).await;
    cluster.add_node("n2").await;
    let nodes: Api<Node> = Api::all(cluster.client.clone());
    let mut pod: Pod = object(set("lost")["spec"]["template"].clone());
    pod.metadata.name = Some("lost".into());
    pod.spec.get_or_insert_default().node_name = Some("n2".into());
    pod.spec.get_or_insert_default().tolerations = Some(object(json!([
        { "key": "node.kubernetes.io/unreachable", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 },
        { "key": "node.kubernetes.io/not-ready", "operator": "Exists", "effect": "NoExecute", "tolerationSeconds": 1 },
    ])));
    cluster.api::<Pod>().create(&PostParams::default(), &pod).await.expect("created");
    let beats = async {
        loop {
            renew(&cluster, "n1").await;
            tokio::time::sleep(Duration::from_millis(200)).await;
        }
    };
    let watched = async {
        let taints = eventually("the taints", || async {
            let taints = nodes.get("n2").await.ok()?.spec?.taints?;
            (taints.len() == 2).then_some(taints)
        })
        .await;
        let shown: Vec<String> = taints.iter().map(|t| format!("{}:{}", t.key, t.effect)).collect();
        assert_eq!(shown, ["node.kubernetes.io/unreachable:NoSchedule", "node.kubernetes.io/unreachable:NoExecute"]);
        eventually("the eviction", || async {
            cluster
                .api::<Pod>()
                .get_opt("lost")
                .await
                .ok()?
                .is_none_or(|pod| pod.metadata.deletion_timestamp.is_some())
                .then_some(())
        })
        .await;
        cluster.node_ready("n2").await;
        eventually("no taints", || async {
            nodes.get("n2").await.ok()?.spec?.taints.is_none_or(|t| t.is_empty()).then_some(())
        })
        .await;
        assert!(nodes.get("n1").await.expect("there").spec.and_then(|spec| spec.taints).unwrap_or_default().is_empty());
    };
    tokio::select! { () = beats => {}, () = watched => {} }
}

/// What a kubelet's lease renewal does.
async fn renew(cluster: &Cluster, node: &str) {
    use k8s_openapi::api::coordination::v1::Lease;
    let leases: Api<Lease> = Api::namespaced(cluster.client.clone(), "kube-node-lease");
    let now = k8s_openapi::apimachinery::pkg::apis::meta::v1::MicroTime(k8s_openapi::jiff::Timestamp::now());
    let lease = json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": { "name": node },
        "spec": { "holderIdentity": node, "renewTime": now }
    });
    let params = kube::api::PatchParams::apply("kubelet").force();
    leases.patch(node, &params, &kube::api::Patch::Apply(lease)).await.expect("renewed");
}

#[tokio::test]
async fn pods_that_never_ran_are_let_go() {
    let cluster = Cluster::start(Config::default()).await;
    let mut pod: Pod = object(set("gone")["spec"]["template"].clone());
    pod.metadata.name = Some("gone".into());
    pod.spec.get_or_insert_default().scheduling_gates = Some(object(json!([{ "name": "example.com/wait" }])));
    cluster.api::<Pod>().create(&PostParams::default(), &pod).await.expect("created");
    cluster.api::<Pod>().delete("gone", &DeleteParams::default()).await.expect("deleted");
    eventually("its end", || async { cluster.api::<Pod>().get_opt("gone").await.ok()?.is_none().then_some(()) }).await;
}

#[tokio::test]
async fn one_candidate_leads_and_the_next_takes_over() {
    use client::Election;
    use tokio_util::sync::CancellationToken;
    let cluster =
        Cluster::start(Config { controllers: vec!["serviceaccount-controller".into()], ..Config::default() }).await;
    let (sender, mut receiver) = tokio::sync::mpsc::unbounded_channel();
    let campaign = |name: &'static str| {
        let stop = CancellationToken::new();
        let election = Election { retry_period: Duration::from_millis(20), ..Election::new("test", name) };
        let (token, sender) = (stop.clone(), sender.clone());
        let work = client::leader::lead(cluster.client.clone(), election, token, move |lost| async move {
            let _ = sender.send(name);
            lost.cancelled().await;
        });
        (stop, tokio::spawn(work))
    };
    let (stop_first, first) = campaign("first");
    assert_eq!(receiver.recv().await, Some("first"));
    let (_stop_second, _second) = campaign("second");
    tokio::time::sleep(Duration::from_millis(200)).await;
    assert!(receiver.try_recv().is_err(), "the lease is held");
    stop_first.cancel();
    assert!(!first.await.expect("no panic"), "shut down, so it does not campaign again");
    assert_eq!(receiver.recv().await, Some("second"), "released, so it need not expire");
}

/// A network that is added gives out addresses once it is ready, and stays until its last one is free.
#[tokio::test]
async fn networks_of_services_come_and_go() {
    let cluster = Cluster::start(Config::default()).await;
    let cidrs: Api<ServiceCIDR> = Api::all(cluster.client.clone());
    let condition = |name: &'static str, status: &'static str| {
        let cidrs = cidrs.clone();
        eventually("the condition", move || {
            let cidrs = cidrs.clone();
            async move {
                let conditions = cidrs.get(name).await.ok()?.status?.conditions?;
                conditions.into_iter().find(|condition| condition.type_ == "Ready" && condition.status == status)
            }
        })
    };
    condition("kubernetes", "True").await;
    let service = |name: &str| {
        let spec = json!({ "clusterIP": "10.96.7.7", "ports": [{ "port": 80 }] });
        object::<Service>(json!({ "metadata": { "name": name }, "spec": spec }))
    };
    let services: Api<Service> = cluster.api();
    let refused = services.create(&PostParams::default(), &service("early")).await.expect_err("no network has it");
    assert!(refused.to_string().contains("the range of valid IPs is 10.43.0.0/16"), "{refused}");

    let added: ServiceCIDR = object(json!({ "metadata": { "name": "more" }, "spec": { "cidrs": ["10.96.7.0/24"] } }));
    cidrs.create(&PostParams::default(), &added).await.expect("created");
    condition("more", "True").await;
    services.create(&PostParams::default(), &service("user")).await.expect("created");
    cidrs.delete("more", &DeleteParams::default()).await.expect("deleted");
    let waiting = condition("more", "False").await;
    assert_eq!(waiting.reason, "Terminating");
    services.create(&PostParams::default(), &service("late")).await.expect_err("the network is to go");
    services.delete("user", &DeleteParams::default()).await.expect("deleted");
    eventually("the end of the network", || async { cidrs.get_opt("more").await.ok()?.is_none().then_some(()) }).await;
}
