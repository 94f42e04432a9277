//! Resource quotas: admission and controller together.

use controllers::Config;
use futures::future::join_all;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, ResourceQuota, Secret, Service};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, ApiResource, DeleteParams, DynamicObject, ListParams, PostParams};
use serde_json::{Value, json};

use crate::support::{Cluster, eventually, object};

async fn limit(cluster: &Cluster, name: &str, spec: Value) {
    let hard = spec["hard"].clone();
    cluster.create::<ResourceQuota>(json!({ "metadata": { "name": name }, "spec": spec })).await;
    eventually("the first count", || async {
        let status = cluster.api::<ResourceQuota>().get(name).await.ok()?.status?;
        (status.used?.len() == hard.as_object()?.len() && status.hard.is_some()).then_some(())
    })
    .await;
}

/// `status.used` in one line.
async fn used(cluster: &Cluster, name: &str) -> String {
    let status = cluster.api::<ResourceQuota>().get(name).await.expect("there").status.unwrap_or_default();
    let used = status.used.unwrap_or_default();
    used.iter().map(|(name, amount)| format!("{name}={}", amount.0)).collect::<Vec<_>>().join(" ")
}

async fn becomes(cluster: &Cluster, name: &str, expected: &str) {
    eventually(expected, || async { (used(cluster, name).await == expected).then_some(()) }).await;
}

fn map(name: &str) -> ConfigMap {
    object(json!({ "metadata": { "name": name } }))
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn creates_at_once_never_take_more_than_there_is() {
    let cluster = Cluster::start(Config::default()).await;
    limit(&cluster, "q", json!({ "hard": { "configmaps": "20", "count/configmaps": "100" } })).await;
    let maps = cluster.api::<ConfigMap>();
    let creates = (0..150).map(|n| {
        let maps = maps.clone();
        async move { maps.create(&PostParams::default(), &map(&format!("m{n}"))).await }
    });
    let outcomes = join_all(creates.map(tokio::spawn)).await;
    let errors: Vec<String> =
        outcomes.into_iter().filter_map(|outcome| outcome.expect("no panic").err()).map(|e| e.to_string()).collect();
    assert_eq!(maps.list(&ListParams::default()).await.expect("listed").items.len(), 20);
    assert_eq!(errors.len(), 130);
    for error in errors {
        let words =
            "is forbidden: exceeded quota: q, requested: configmaps=1, used: configmaps=20, limited: configmaps=20";
        assert!(error.contains(words), "{error}");
    }
    assert_eq!(used(&cluster, "q").await, "configmaps=20 count/configmaps=20");
    maps.delete_collection(&DeleteParams::default(), &ListParams::default()).await.expect("deleted");
    becomes(&cluster, "q", "configmaps=0 count/configmaps=0").await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_quota_that_comes_among_creates_misses_none() {
    let cluster = Cluster::start(Config::default()).await;
    let maps = cluster.api::<ConfigMap>();
    let creates = (0..200).map(|n| {
        let maps = maps.clone();
        async move { maps.create(&PostParams::default(), &map(&format!("m{n}"))).await.map(|_| ()) }
    });
    let all: Vec<_> = creates.map(tokio::spawn).collect();
    limit(&cluster, "q", json!({ "hard": { "count/configmaps": "1000" } })).await;
    for created in join_all(all).await {
        created.expect("no panic").expect("created");
    }
    assert_eq!(used(&cluster, "q").await, "count/configmaps=200");
}

fn pod(name: &str, resources: Value) -> Value {
    json!({ "metadata": { "name": name }, "spec": { "containers": [{ "name": "c", "image": "i:1", "resources": resources }] } })
}

#[tokio::test]
async fn pods_and_services_are_charged_and_given_back() {
    let cluster = Cluster::start(Config::default()).await;
    let hard =
        json!({ "pods": "2", "requests.cpu": "1", "requests.example.com/dongle": "3", "services.nodeports": "1" });
    limit(&cluster, "q", json!({ "hard": hard })).await;
    let limits = json!({ "example.com/dongle": "2" });
    cluster.create::<Pod>(pod("p", json!({ "requests": { "cpu": "500m" }, "limits": limits }))).await;
    assert_eq!(
        used(&cluster, "q").await,
        "pods=1 requests.cpu=500m requests.example.com/dongle=2 services.nodeports=0"
    );
    let refused = |value: Value| {
        let pods = cluster.api::<Pod>();
        async move { pods.create(&PostParams::default(), &object(value)).await.expect_err("refused").to_string() }
    };
    let error = refused(pod("big", json!({ "requests": { "cpu": "600m" } }))).await;
    let words = "pods \"big\" is forbidden: exceeded quota: q, requested: requests.cpu=600m, used: requests.cpu=500m, limited: requests.cpu=1";
    assert!(error.contains(words), "{error}");
    let error = refused(pod("vague", json!({}))).await;
    assert!(error.contains("failed quota: q: must specify requests.cpu for: c"), "{error}");

    let service = json!({ "metadata": { "name": "s" }, "spec": { "type": "NodePort", "ports": [{ "port": 80 }], "selector": { "a": "b" } } });
    cluster.create::<Service>(service).await;
    let more = json!({ "spec": { "ports": [{ "name": "a", "port": 80 }, { "name": "b", "port": 81 }] } });
    let patch = kube::api::Patch::Merge(more);
    let error =
        cluster.api::<Service>().patch("s", &Default::default(), &patch).await.expect_err("refused").to_string();
    assert!(error.contains("requested: services.nodeports=1, used: services.nodeports=1"), "{error}");
    cluster.merge::<Service>("s", json!({ "spec": { "type": "ClusterIP" } })).await;
    cluster.api::<Pod>().delete("p", &DeleteParams::default()).await.expect("deleted");
    becomes(&cluster, "q", "pods=0 requests.cpu=0 requests.example.com/dongle=0 services.nodeports=0").await;
}

#[tokio::test]
async fn scopes_part_pods_among_quotas() {
    let cluster = Cluster::start(Config::default()).await;
    limit(&cluster, "short", json!({ "hard": { "pods": "5" }, "scopes": ["Terminating"] })).await;
    limit(&cluster, "long", json!({ "hard": { "pods": "5" }, "scopes": ["NotTerminating"] })).await;
    cluster.create::<Pod>(pod("p", json!({}))).await;
    assert_eq!((used(&cluster, "short").await, used(&cluster, "long").await), ("pods=0".into(), "pods=1".into()));
    cluster.merge::<Pod>("p", json!({ "spec": { "activeDeadlineSeconds": 3600 } })).await;
    becomes(&cluster, "short", "pods=1").await;
    becomes(&cluster, "long", "pods=0").await;
}

#[tokio::test]
async fn custom_resources_and_changed_limits_are_counted() {
    let cluster = Cluster::start(Config::default()).await;
    cluster.create::<Secret>(json!({ "metadata": { "name": "s" } })).await;
    // Before there is such a kind.
    let hard = json!({ "count/widgets.example.com": "1" });
    cluster.create::<ResourceQuota>(json!({ "metadata": { "name": "q" }, "spec": { "hard": hard } })).await;
    let definition: CustomResourceDefinition = object(json!({
        "metadata": { "name": "widgets.example.com" },
        "spec": { "group": "example.com", "scope": "Namespaced",
            "names": { "plural": "widgets", "singular": "widget", "kind": "Widget", "listKind": "WidgetList" },
            "versions": [{ "name": "v1", "served": true, "storage": true,
                "schema": { "openAPIV3Schema": { "type": "object", "x-kubernetes-preserve-unknown-fields": true } } }] },
    }));
    let definitions: Api<CustomResourceDefinition> = Api::all(cluster.client.clone());
    definitions.create(&PostParams::default(), &definition).await.expect("created");
    becomes(&cluster, "q", "count/widgets.example.com=0").await;
    let resource = ApiResource {
        group: "example.com".into(),
        version: "v1".into(),
        api_version: "example.com/v1".into(),
        kind: "Widget".into(),
        plural: "widgets".into(),
    };
    let widgets: Api<DynamicObject> = Api::namespaced_with(cluster.client.clone(), "test", &resource);
    let create = |name: &'static str| {
        let (widgets, widget) = (widgets.clone(), DynamicObject::new(name, &resource));
        async move { widgets.create(&PostParams::default(), &widget).await }
    };
    create("one").await.expect("created");
    assert!(create("two").await.expect_err("refused").to_string().contains("exceeded quota: q"));
    cluster.merge::<ResourceQuota>("q", json!({ "spec": { "hard": { "secrets": "1" } } })).await;
    becomes(&cluster, "q", "count/widgets.example.com=1 secrets=1").await;
    widgets.delete("one", &DeleteParams::default()).await.expect("deleted");
    becomes(&cluster, "q", "count/widgets.example.com=0 secrets=1").await;
    create("two").await.expect("created");
}
