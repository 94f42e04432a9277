//! Disruption budgets and evictions.

use controllers::Config;
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use kube::api::{DeleteParams, EvictParams};
use serde_json::{Value, json};

use crate::support::{Cluster, eventually};

async fn budget(cluster: &Cluster, name: &str, spec: Value) {
    cluster.create::<PodDisruptionBudget>(json!({ "metadata": { "name": name }, "spec": spec })).await;
}

/// `current/desired of expected: allowed reason`
async fn status(cluster: &Cluster, name: &str) -> String {
    let budget = cluster.api::<PodDisruptionBudget>().get(name).await.expect("there");
    let status = budget.status.unwrap_or_default();
    let reason = status.conditions.unwrap_or_default().pop().map(|condition| condition.reason).unwrap_or_default();
    let number = |number: Option<i32>| number.unwrap_or(0);
    format!(
        "{}/{} of {}: {} {reason}",
        number(status.current_healthy),
        number(status.desired_healthy),
        number(status.expected_pods),
        number(status.disruptions_allowed)
    )
}

async fn becomes(cluster: &Cluster, name: &str, expected: &str) {
    eventually(expected, || async { (status(cluster, name).await == expected).then_some(()) }).await;
}

fn deployment(name: &str, replicas: i32) -> Value {
    json!({
        "metadata": { "name": name },
        "spec": { "replicas": replicas, "selector": { "matchLabels": { "app": name } }, "template": {
            "metadata": { "labels": { "app": name } }, "spec": { "containers": [{ "name": "c", "image": "i:1" }] } } },
    })
}

/// The code and the cause's text of a refused eviction.
async fn evict(cluster: &Cluster, pod: &Pod) -> Result<(), (u16, String)> {
    let name = pod.metadata.name.as_deref().expect("a name");
    match cluster.api::<Pod>().evict(name, &EvictParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) => {
            let cause = status.details.as_ref().and_then(|details| details.causes.first());
            Err((status.code, cause.map(|cause| cause.message.clone()).unwrap_or_default()))
        }
        Err(error) => panic!("{error}"),
    }
}

#[tokio::test]
async fn a_budget_follows_its_pods_and_their_owner() {
    let cluster = Cluster::start(Config::default()).await;
    let selector = json!({ "matchLabels": { "app": "web" } });
    budget(&cluster, "half", json!({ "minAvailable": "50%", "selector": selector })).await;
    becomes(&cluster, "half", "0/0 of 0: 0 InsufficientPods").await;
    cluster.create::<Deployment>(deployment("web", 3)).await;
    becomes(&cluster, "half", "3/2 of 3: 1 SufficientPods").await;
    cluster.merge::<Deployment>("web", json!({ "spec": { "replicas": 6 } })).await;
    becomes(&cluster, "half", "6/3 of 6: 3 SufficientPods").await;
    cluster
        .merge::<PodDisruptionBudget>("half", json!({ "spec": { "minAvailable": null, "maxUnavailable": 1 } }))
        .await;
    becomes(&cluster, "half", "6/5 of 6: 1 SufficientPods").await;
}

#[tokio::test]
async fn evictions_stop_at_the_budget() {
    let cluster = Cluster::start(Config::default()).await;
    let pod = |name: &str| {
        json!({ "metadata": { "name": name, "labels": { "app": "lone" } },
            "spec": { "containers": [{ "name": "c", "image": "i:1" }] } })
    };
    for name in ["a", "b", "c"] {
        cluster.create::<Pod>(pod(name)).await;
    }
    // An empty selector is about the whole namespace.
    budget(&cluster, "two", json!({ "minAvailable": 2, "selector": {} })).await;
    becomes(&cluster, "two", "3/2 of 3: 1 SufficientPods").await;
    let pods = cluster.pods("lone").await;
    let outcomes = futures::future::join_all(pods.iter().map(|pod| evict(&cluster, pod))).await;
    let refused: Vec<_> = outcomes.into_iter().filter_map(Result::err).collect();
    assert_eq!(refused.len(), 2, "{refused:?}");
    for (code, cause) in refused {
        // Either before or after the controller has seen the first.
        let known = ["needs 2 healthy pods and has 2 currently", "does not allow evicting pods currently"];
        assert!(code == 429 && known.iter().any(|text| cause.contains(text)), "{code} {cause}");
    }
    becomes(&cluster, "two", "2/2 of 2: 0 InsufficientPods").await;
    let left = cluster.pods("lone").await;
    assert_eq!(
        evict(&cluster, &left[0]).await,
        Err((429, "The disruption budget two needs 2 healthy pods and has 2 currently".to_owned()))
    );
    let noted = cluster.api::<PodDisruptionBudget>().get("two").await.expect("there").status.unwrap_or_default();
    assert!(noted.disrupted_pods.unwrap_or_default().is_empty(), "the deletion was seen");
    cluster.create::<Pod>(pod("d")).await;
    becomes(&cluster, "two", "3/2 of 3: 1 SufficientPods").await;
    evict(&cluster, &left[0]).await.expect("evicted");
}

#[tokio::test]
async fn pods_whose_owner_has_no_scale_cannot_be_counted() {
    let cluster = Cluster::start(Config::default()).await;
    let owner = json!([{ "apiVersion": "v1", "kind": "ConfigMap", "name": "owner", "controller": true,
        "uid": cluster.create::<k8s_openapi::api::core::v1::ConfigMap>(json!({ "metadata": { "name": "owner" } })).await.metadata.uid }]);
    let pod = json!({
        "metadata": { "name": "p", "labels": { "app": "odd" }, "ownerReferences": owner },
        "spec": { "containers": [{ "name": "c", "image": "i:1" }] },
    });
    let pod: Pod = cluster.create(pod).await;
    let selector = json!({ "matchLabels": { "app": "odd" } });
    budget(&cluster, "b", json!({ "maxUnavailable": 1, "selector": selector })).await;
    eventually("the failure", || async { status(&cluster, "b").await.ends_with("SyncFailed").then_some(()) }).await;
    let events =
        eventually("an event", || async { Some(cluster.events("b").await).filter(|events| !events.is_empty()) });
    let why = "configmaps does not implement the scale subresource";
    assert!(events.await.iter().any(|event| event.ends_with(why)));
    // With a number there is no owner to be asked.
    cluster.merge::<PodDisruptionBudget>("b", json!({ "spec": { "maxUnavailable": null, "minAvailable": 0 } })).await;
    becomes(&cluster, "b", "1/0 of 1: 1 SufficientPods").await;
    evict(&cluster, &pod).await.expect("evicted");
    let gone = cluster.api::<Pod>().delete("p", &DeleteParams::default()).await;
    assert!(gone.is_ok() || gone.is_err_and(|error| client::is_not_found(&error)));
}
