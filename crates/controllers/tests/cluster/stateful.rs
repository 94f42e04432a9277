//! Stateful sets.

use std::collections::BTreeSet;

use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::{DeleteParams, ListParams};
use serde_json::{Value, json};

use crate::support::{Cluster, end_pod, eventually};

fn template(image: &str) -> Value {
    json!({ "metadata": { "labels": { "app": "web" } }, "spec": { "containers": [{ "name": "c", "image": image }] } })
}

/// A set named `web`; `more` is merged into its spec.
fn set(replicas: i32, more: Value) -> Value {
    let mut spec = json!({
        "serviceName": "web", "replicas": replicas,
        "selector": { "matchLabels": { "app": "web" } }, "template": template("i:1")
    });
    for (key, value) in more.as_object().expect("an object") {
        spec[key] = value.clone();
    }
    json!({ "metadata": { "name": "web" }, "spec": spec })
}

/// The status once the newest spec is observed and `met`.
async fn status_when(cluster: &Cluster, what: &str, met: impl Fn(&StatefulSetStatus) -> bool) -> StatefulSetStatus {
    let api = cluster.api::<StatefulSet>();
    eventually(what, || async {
        let set = api.get("web").await.ok()?;
        let status = set.status.filter(|status| status.observed_generation == set.metadata.generation)?;
        met(&status).then_some(status)
    })
    .await
}

async fn settled(cluster: &Cluster, replicas: i32) -> StatefulSetStatus {
    let all = Some(replicas).filter(|count| *count != 0);
    let status = status_when(cluster, "all pods", |status| {
        status.replicas == replicas && status.ready_replicas == all && status.updated_replicas == all
    });
    status.await
}

fn names(pods: &[Pod]) -> Vec<&str> {
    pods.iter().filter_map(|pod| pod.metadata.name.as_deref()).collect()
}

fn images(pods: &[Pod]) -> Vec<&str> {
    pods.iter().filter_map(|pod| pod.spec.as_ref()?.containers[0].image.as_deref()).collect()
}

#[tokio::test]
async fn pods_come_in_order_and_keep_their_names() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    cluster.create::<StatefulSet>(set(3, json!({}))).await;
    let status = settled(&cluster, 3).await;
    assert_eq!((status.available_replicas, status.current_replicas), (Some(3), Some(3)));
    assert_eq!((status.current_revision == status.update_revision, status.collision_count), (true, Some(0)));
    let pods = cluster.pods("web").await;
    assert_eq!(names(&pods), ["web-0", "web-1", "web-2"]);
    let labels = pods[1].metadata.labels.clone().expect("labelled");
    assert_eq!(labels["statefulset.kubernetes.io/pod-name"], "web-1");
    assert_eq!(labels["apps.kubernetes.io/pod-index"], "1");
    assert_eq!(Some(&labels["controller-revision-hash"]), status.update_revision.as_ref());
    let spec = pods[1].spec.as_ref().expect("a spec");
    assert_eq!((spec.hostname.as_deref(), spec.subdomain.as_deref()), (Some("web-1"), Some("web")));
    cluster.told("web", "SuccessfulCreate: create Pod web-0 in StatefulSet web successful").await;

    let uid = pods[1].metadata.uid.clone();
    end_pod(&cluster.api(), "web-1", "Failed", 1).await.expect("patched");
    eventually("its successor", || async {
        let pod = cluster.api::<Pod>().get_opt("web-1").await.ok()??;
        (pod.metadata.uid != uid).then_some(())
    })
    .await;
    settled(&cluster, 3).await;
    cluster.merge::<StatefulSet>("web", json!({ "spec": { "replicas": 1 } })).await;
    settled(&cluster, 1).await;
    assert_eq!(names(&cluster.pods("web").await), ["web-0"]);
    cluster.merge::<StatefulSet>("web", json!({ "spec": { "replicas": 0 } })).await;
    settled(&cluster, 0).await;
}

#[tokio::test]
async fn what_is_not_ready_holds_up_what_follows() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let mut held = set(3, json!({}));
    held["spec"]["template"]["metadata"]["labels"]["unready"] = json!("");
    cluster.create::<StatefulSet>(held.clone()).await;
    eventually("the first pod", || async { (cluster.pods("web").await.len() == 1).then_some(()) }).await;
    tokio::time::sleep(std::time::Duration::from_millis(300)).await;
    assert_eq!(names(&cluster.pods("web").await), ["web-0"]);
    cluster.api::<StatefulSet>().delete("web", &DeleteParams::background()).await.expect("deleted");
    eventually("no pods", || async { cluster.pods("web").await.is_empty().then_some(()) }).await;
    held["spec"]["podManagementPolicy"] = json!("Parallel");
    cluster.create::<StatefulSet>(held).await;
    eventually("all pods", || async { (cluster.pods("web").await.len() == 3).then_some(()) }).await;
}

#[tokio::test]
async fn an_update_rolls_down_and_back() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let strategy = json!({ "updateStrategy": { "type": "RollingUpdate", "rollingUpdate": { "partition": 2 } } });
    cluster.create::<StatefulSet>(set(3, strategy)).await;
    let first = settled(&cluster, 3).await;
    cluster.merge::<StatefulSet>("web", json!({ "spec": { "template": template("i:2") } })).await;
    let half = status_when(&cluster, "one updated", |status| {
        status.updated_replicas == Some(1) && status.ready_replicas == Some(3)
    })
    .await;
    assert_eq!(images(&cluster.pods("web").await), ["i:1", "i:1", "i:2"]);
    assert_eq!(half.current_revision, first.current_revision);
    assert_ne!(half.update_revision, first.update_revision);
    assert_eq!(half.current_replicas, Some(2));

    let before = cluster.api::<Pod>().get("web-0").await.expect("there");
    cluster.api::<Pod>().delete("web-0", &DeleteParams::default()).await.expect("deleted");
    // The status may still be that of before: the successor itself is what is waited for.
    let deleted = before.metadata.uid.clone();
    let successor = eventually("its successor", || async {
        cluster.api::<Pod>().get("web-0").await.ok().filter(|pod| pod.metadata.uid != deleted)
    });
    successor.await;
    assert_eq!(images(&cluster.pods("web").await), ["i:1", "i:1", "i:2"], "below the partition all stays");
    status_when(&cluster, "three ready", |status| status.ready_replicas == Some(3)).await;

    let whole = json!({ "spec": { "updateStrategy": { "rollingUpdate": { "partition": 0 } } } });
    cluster.merge::<StatefulSet>("web", whole).await;
    status_when(&cluster, "all updated", |status| {
        status.updated_replicas == Some(3)
            && status.ready_replicas == Some(3)
            && status.current_revision == half.update_revision
    })
    .await;
    assert_eq!(images(&cluster.pods("web").await), ["i:2"; 3]);

    cluster.merge::<StatefulSet>("web", json!({ "spec": { "template": template("i:1") } })).await;
    status_when(&cluster, "the way back", |status| {
        status.updated_replicas == Some(3)
            && status.update_revision == first.update_revision
            && status.current_revision == first.current_revision
    })
    .await;
    let mut revisions = cluster.api::<ControllerRevision>().list(&ListParams::default()).await.expect("listed").items;
    revisions.sort_by_key(|revision| revision.revision);
    let numbers: Vec<_> = revisions.iter().map(|revision| revision.revision).collect();
    assert_eq!(numbers, [Some(2), Some(3)]);
    assert_eq!(revisions[1].metadata.name, first.current_revision);
}

async fn claims(cluster: &Cluster) -> Vec<PersistentVolumeClaim> {
    let mut claims = cluster.api::<PersistentVolumeClaim>().list(&ListParams::default()).await.expect("listed").items;
    claims.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    claims
}

#[tokio::test]
async fn claims_stay_or_go_as_the_policy_says() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    let resources = json!({ "requests": { "storage": "1Mi" } });
    let claim =
        json!({ "metadata": { "name": "data" }, "spec": { "accessModes": ["ReadWriteOnce"], "resources": resources } });
    cluster.create::<StatefulSet>(set(2, json!({ "volumeClaimTemplates": [claim] }))).await;
    settled(&cluster, 2).await;
    let made = claims(&cluster).await;
    let names = |claims: &[PersistentVolumeClaim]| -> BTreeSet<String> {
        claims.iter().filter_map(|claim| claim.metadata.name.clone()).collect()
    };
    assert_eq!(names(&made), ["data-web-0".to_owned(), "data-web-1".to_owned()].into());
    assert!(made.iter().all(|claim| claim.metadata.owner_references.is_none()));
    assert_eq!(made[0].metadata.labels.as_ref().expect("labelled")["app"], "web");

    let policy = json!({ "whenScaled": "Delete", "whenDeleted": "Delete" });
    let policy = json!({ "spec": { "persistentVolumeClaimRetentionPolicy": policy } });
    cluster.merge::<StatefulSet>("web", policy).await;
    let owner = |claim: &PersistentVolumeClaim| Some(claim.metadata.owner_references.as_ref()?.first()?.kind.clone());
    eventually("the set to own them", || async {
        claims(&cluster).await.iter().all(|claim| owner(claim).as_deref() == Some("StatefulSet")).then_some(())
    })
    .await;
    cluster.merge::<StatefulSet>("web", json!({ "spec": { "replicas": 1 } })).await;
    eventually("one claim to go with its pod", || async {
        // The claim protection finalizer is another controller's to remove.
        for claim in claims(&cluster).await.iter().filter(|claim| claim.metadata.deletion_timestamp.is_some()) {
            let name = claim.metadata.name.as_deref().expect("named");
            let free = json!({ "metadata": { "finalizers": null } });
            let patch = kube::api::Patch::Merge(free);
            let _ = cluster.api::<PersistentVolumeClaim>().patch(name, &Default::default(), &patch).await;
        }
        (names(&claims(&cluster).await) == ["data-web-0".to_owned()].into()).then_some(())
    })
    .await;
    assert_eq!(cluster.pods("web").await.len(), 1);
}

#[tokio::test]
async fn only_pods_of_the_name_are_adopted() {
    let cluster = Cluster::start(controllers::Config::default()).await;
    for name in ["web-0", "other-1"] {
        let mut orphan = template("i:1");
        orphan["metadata"]["name"] = json!(name);
        cluster.create::<Pod>(orphan).await;
    }
    let created = cluster.create::<StatefulSet>(set(2, json!({}))).await;
    let owner = |pod: &Pod| Some(pod.metadata.owner_references.as_ref()?.first()?.uid.clone());
    let pods = eventually("three pods, two of them owned", || async {
        let pods = cluster.pods("web").await;
        (pods.iter().filter(|pod| owner(pod).is_some()).count() == 2).then_some(pods)
    })
    .await;
    assert_eq!(names(&pods), ["other-1", "web-0", "web-1"]);
    assert_eq!(owner(&pods[0]), None);
    assert_eq!((owner(&pods[1]), owner(&pods[2])), (created.metadata.uid.clone(), created.metadata.uid));
}
