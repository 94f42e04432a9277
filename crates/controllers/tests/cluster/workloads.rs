//! Deployments, replica sets and services.

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, Deployment, ReplicaSet};
use k8s_openapi::api::core::v1::{Endpoints, Pod, ReplicationController, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::support::{Cluster, eventually};

fn template(app: &str, image: &str) -> Value {
    json!({
        "metadata": { "labels": { "app": app } },
        "spec": { "containers": [{ "name": "c", "image": image, "ports": [{ "name": "http", "containerPort": 8080 }] }] }
    })
}

fn deployment(replicas: i32, strategy: Value) -> Value {
    json!({
        "metadata": { "name": "web" },
        "spec": { "replicas": replicas, "strategy": strategy, "selector": { "matchLabels": { "app": "web" } }, "template": template("web", "i:1") }
    })
}

fn set(name: &str, replicas: i32) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": name } }, "template": template(name, "i:1") }
    })
}

/// Waits until all pods are of `image` and available, and the status says so.
async fn rolled_out(cluster: &Cluster, replicas: i32, image: &str) -> Deployment {
    let api = cluster.api::<Deployment>();
    let done = eventually("the rollout", || async {
        let deployment = api.get("web").await.ok()?;
        let status = deployment.status.clone()?;
        let settled = status.observed_generation == deployment.metadata.generation
            && status.updated_replicas == Some(replicas)
            && status.replicas == Some(replicas)
            && status.available_replicas == Some(replicas);
        settled.then_some(deployment)
    })
    .await;
    eventually("the old pods' end", || async { (cluster.pods("web").await.len() == replicas as usize).then_some(()) })
        .await;
    for pod in cluster.pods("web").await {
        assert_eq!(pod.spec.expect("a spec").containers[0].image.as_deref(), Some(image));
    }
    done
}

fn reason(deployment: &Deployment, type_: &str) -> Option<String> {
    let conditions = deployment.status.as_ref()?.conditions.as_ref()?;
    conditions.iter().find(|condition| condition.type_.as_deref() == Some(type_))?.reason.clone()
}

#[tokio::test]
async fn a_deployment_rolls_out_and_back() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cluster.create::<Deployment>(deployment(3, json!({}))).await;
    let first = rolled_out(&cluster, 3, "i:1").await;
    assert_eq!(reason(&first, "Progressing").as_deref(), Some("NewReplicaSetAvailable"));
    assert_eq!(reason(&first, "Available").as_deref(), Some("MinimumReplicasAvailable"));

    cluster.merge::<Deployment>("web", json!({ "spec": { "template": template("web", "i:2") } })).await;
    let second = rolled_out(&cluster, 3, "i:2").await;
    let revision = |d: &Deployment| {
        d.metadata.annotations.clone().unwrap_or_default()["deployment.kubernetes.io/revision"].clone()
    };
    assert_eq!((revision(&first), revision(&second)), ("1".to_owned(), "2".to_owned()));

    cluster.merge::<Deployment>("web", json!({ "spec": { "template": template("web", "i:1") } })).await;
    let third = rolled_out(&cluster, 3, "i:1").await;
    assert_eq!(revision(&third), "3");
    assert_eq!(cluster.api::<ReplicaSet>().list(&ListParams::default()).await.expect("listed").items.len(), 2);

    cluster.merge::<Deployment>("web", json!({ "spec": { "replicas": 5 } })).await;
    rolled_out(&cluster, 5, "i:1").await;
    let events = eventually("the events", || async {
        let events = cluster.events("web").await;
        (events.len() >= 6).then_some(events)
    })
    .await;
    assert!(events[0].starts_with("ScalingReplicaSet: Scaled up replica set web-"), "{events:?}");
    assert!(events[0].ends_with("from 0 to 3"), "{events:?}");
}

#[tokio::test]
async fn a_deployment_that_recreates_has_no_two_versions_at_once() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cluster.create::<Deployment>(deployment(2, json!({ "type": "Recreate" }))).await;
    rolled_out(&cluster, 2, "i:1").await;
    cluster.merge::<Deployment>("web", json!({ "spec": { "template": template("web", "i:2") } })).await;
    eventually("the new version", || async {
        let images: std::collections::BTreeSet<_> =
            cluster.pods("web").await.into_iter().filter_map(|pod| pod.spec?.containers.remove(0).image).collect();
        assert!(images.len() <= 1, "{images:?}");
        images.contains("i:2").then_some(())
    })
    .await;
    rolled_out(&cluster, 2, "i:2").await;
}

#[tokio::test]
async fn a_replica_set_replaces_adopts_and_releases() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    // An orphan that matches is adopted rather than joined by three others.
    let mut orphan = template("rs", "i:1");
    orphan["metadata"]["name"] = json!("orphan");
    cluster.create::<Pod>(orphan).await;
    let owner = cluster.create::<ReplicaSet>(set("rs", 3)).await;
    let owned = |pods: Vec<Pod>| {
        let uid = owner.metadata.uid.clone();
        pods.into_iter()
            .filter(move |p| p.metadata.owner_references.iter().flatten().any(|o| Some(&o.uid) == uid.as_ref()))
            .collect::<Vec<_>>()
    };
    let ready = |count: i32| {
        let api = cluster.api::<ReplicaSet>();
        async move {
            eventually("ready replicas", || async {
                (api.get("rs").await.ok()?.status?.ready_replicas == Some(count)).then_some(())
            })
            .await;
        }
    };
    ready(3).await;
    let pods = owned(cluster.pods("rs").await);
    assert_eq!(pods.len(), 3);
    assert!(pods.iter().any(|pod| pod.metadata.name.as_deref() == Some("orphan")));

    let killed = pods[0].metadata.name.clone().expect("named");
    cluster.api::<Pod>().delete(&killed, &DeleteParams::default().grace_period(0)).await.expect("deleted");
    eventually("a replacement", || async {
        let pods = owned(cluster.pods("rs").await);
        (pods.len() == 3 && pods.iter().all(|pod| pod.metadata.name.as_ref() != Some(&killed))).then_some(())
    })
    .await;

    let strayed = cluster.pods("rs").await[0].metadata.name.clone().expect("named");
    cluster.merge::<Pod>(&strayed, json!({ "metadata": { "labels": { "app": "stray" } } })).await;
    eventually("the release", || async { owned(cluster.pods("stray").await).is_empty().then_some(()) }).await;
    eventually("its replacement", || async { (owned(cluster.pods("rs").await).len() == 3).then_some(()) }).await;

    cluster.merge::<ReplicaSet>("rs", json!({ "spec": { "replicas": 1 } })).await;
    eventually("fewer pods", || async { (cluster.pods("rs").await.len() == 1).then_some(()) }).await;
    assert_eq!(cluster.pods("stray").await.len(), 1, "what was released is left alone");
}

#[tokio::test]
async fn exactly_as_many_pods_are_created_as_wanted() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let owner = cluster.create::<ReplicaSet>(set("many", 150)).await;
    let api = cluster.api::<ReplicaSet>();
    eventually("all pods", || async {
        (api.get("many").await.ok()?.status?.ready_replicas == Some(150)).then_some(())
    })
    .await;
    let events = cluster.events(owner.metadata.name.as_deref().expect("named")).await;
    assert!(events.len() < 150, "a flood of events is cut");
    assert_eq!(cluster.pods("many").await.len(), 150);
    let created = cluster.api::<Pod>().list(&ListParams::default()).await.expect("listed").items.len();
    assert_eq!(created, 150, "none was created and deleted again");
}

#[tokio::test]
async fn a_replication_controller_is_a_replica_set_by_another_name() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let mut controller = set("rc", 2);
    controller["spec"]["selector"] = json!({ "app": "rc" });
    cluster.create::<ReplicationController>(controller).await;
    let api = cluster.api::<ReplicationController>();
    eventually("ready", || async { (api.get("rc").await.ok()?.status?.ready_replicas == Some(2)).then_some(()) }).await;
}

#[tokio::test]
async fn a_refused_pod_is_told_in_status_and_events() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let mut refused = set("refused", 1);
    refused["spec"]["template"]["spec"]["serviceAccountName"] = json!("missing");
    cluster.create::<ReplicaSet>(refused).await;
    let api = cluster.api::<ReplicaSet>();
    let condition =
        eventually("the condition", || async { api.get("refused").await.ok()?.status?.conditions?.pop() }).await;
    assert_eq!(
        (condition.type_.as_deref(), condition.reason.as_deref()),
        (Some("ReplicaFailure"), Some("FailedCreate"))
    );
    let event = eventually("the event", || async { cluster.events("refused").await.pop() }).await;
    assert!(event.starts_with("FailedCreate: Error creating: pods \"refused-"), "{event}");
}

fn service(spec: Value) -> Value {
    json!({ "metadata": { "name": "web", "labels": { "team": "a" } }, "spec": spec })
}

async fn slices(cluster: &Cluster) -> Vec<EndpointSlice> {
    let params = ListParams::default().labels("kubernetes.io/service-name=web");
    cluster.api::<EndpointSlice>().list(&params).await.expect("listed").items
}

#[tokio::test]
async fn endpoints_follow_pods() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cluster
        .create::<Service>(service(
            json!({ "selector": { "app": "web" }, "ports": [{ "port": 80, "targetPort": "http" }] }),
        ))
        .await;
    eventually("an empty slice", || async { (slices(&cluster).await.len() == 1).then_some(()) }).await;
    cluster.create::<ReplicaSet>(set("web", 2)).await;
    let endpoints = eventually("two endpoints", || async {
        let slices = slices(&cluster).await;
        let [slice] = &slices[..] else { return None };
        let endpoints = slice.endpoints.clone()?;
        (endpoints.len() == 2 && endpoints.iter().all(|e| e.conditions.as_ref().and_then(|c| c.ready) == Some(true)))
            .then_some(slice.clone())
    })
    .await;
    assert_eq!(endpoints.ports.as_ref().expect("ports")[0].port, Some(8080));
    assert_eq!(endpoints.endpoints.as_ref().expect("two")[0].zone.as_deref(), Some("z1"));
    let labels = endpoints.metadata.labels.clone().expect("labelled");
    assert_eq!(labels["endpointslice.kubernetes.io/managed-by"], "endpointslice-controller.k8s.io");
    assert_eq!(labels["team"], "a");

    let api = cluster.api::<Endpoints>();
    let addresses = |endpoints: &Endpoints| {
        let subset = endpoints.subsets.clone().unwrap_or_default().pop().unwrap_or_default();
        (subset.addresses.unwrap_or_default().len(), subset.not_ready_addresses.unwrap_or_default().len())
    };
    eventually("addresses", || async { (addresses(&api.get("web").await.ok()?) == (2, 0)).then_some(()) }).await;

    let name = cluster.pods("web").await[0].metadata.name.clone().expect("named");
    cluster.merge::<Pod>(&name, json!({ "metadata": { "labels": { "unready": "" } } })).await;
    eventually("one unready", || async { (addresses(&api.get("web").await.ok()?) == (1, 1)).then_some(()) }).await;

    cluster.api::<Service>().delete("web", &DeleteParams::default()).await.expect("deleted");
    eventually("no endpoints", || async { api.get_opt("web").await.ok()?.is_none().then_some(()) }).await;
    eventually("no slices", || async { slices(&cluster).await.is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn endpoints_kept_by_hand_are_mirrored() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cluster.create::<Service>(service(json!({ "ports": [{ "port": 80 }] }))).await;
    let subsets = json!([{ "addresses": [{ "ip": "192.0.2.1" }], "ports": [{ "port": 8080 }] }]);
    cluster.create::<Endpoints>(json!({ "metadata": { "name": "web" }, "subsets": subsets })).await;
    let slice = eventually("the mirror", || async { slices(&cluster).await.pop() }).await;
    assert_eq!(slice.endpoints.expect("one")[0].addresses, ["192.0.2.1"]);
    cluster.api::<Endpoints>().delete("web", &DeleteParams::default()).await.expect("deleted");
    eventually("no mirror", || async { slices(&cluster).await.is_empty().then_some(()) }).await;
}

#[tokio::test]
async fn a_daemon_set_runs_on_every_node_and_rolls() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let mut daemon = set("agent", 0);
    daemon["spec"].as_object_mut().expect("an object").remove("replicas");
    cluster.create::<DaemonSet>(daemon).await;
    let api = cluster.api::<DaemonSet>();
    let settled = |nodes: i32| {
        let api = api.clone();
        async move {
            eventually("all daemons", || async {
                let set = api.get("agent").await.ok()?;
                let status = set.status?;
                let counts =
                    (status.number_available, status.updated_number_scheduled, status.desired_number_scheduled);
                (status.observed_generation == set.metadata.generation && counts == (Some(nodes), Some(nodes), nodes))
                    .then_some(())
            })
            .await;
        }
    };
    settled(1).await;
    cluster.add_node("n2").await;
    settled(2).await;
    let on: std::collections::BTreeSet<_> =
        cluster.pods("agent").await.into_iter().filter_map(|pod| pod.spec?.node_name).collect();
    assert_eq!(on.into_iter().collect::<Vec<_>>(), ["n1", "n2"]);
    cluster.merge::<DaemonSet>("agent", json!({ "spec": { "template": template("agent", "i:2") } })).await;
    settled(2).await;
    for pod in cluster.pods("agent").await {
        assert_eq!(pod.spec.expect("a spec").containers[0].image.as_deref(), Some("i:2"));
    }
    let revisions = cluster.api::<ControllerRevision>().list(&ListParams::default()).await.expect("listed").items;
    assert_eq!(revisions.len(), 2);
}
