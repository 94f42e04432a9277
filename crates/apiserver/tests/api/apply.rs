//! Server-side apply: what configurations are refused for, who owns what afterwards, and through which endpoint.

use serde_json::{Value, json};

use crate::harness::{Answer, Api, config_map, over_both};
use crate::hookserver::{HookServer, patch};

over_both!(
    configurations_are_refused,
    a_missing_object_is_created,
    nothing_new_changes_nothing,
    scales_carry_owners,
    endpoints_own_what_they_write,
    broken_owners_are_put_back,
);

const PATH: &str = "/api/v1/namespaces/default/configmaps";
const DEPLOYMENT: &str = "/apis/apps/v1/namespaces/default/deployments/web";

fn deployment(replicas: Option<i64>) -> Value {
    let mut object = json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "web"}, "spec": {
        "selector": {"matchLabels": {"a": "b"}},
        "template": {"metadata": {"labels": {"a": "b"}}, "spec": {"containers": [{"name": "c", "image": "i"}]}}}});
    if let Some(replicas) = replicas {
        object["spec"]["replicas"] = json!(replicas);
    }
    object
}

/// The entry of a manager, without its time, and whether it had one.
fn entry(object: &Value, manager: &str) -> (Value, bool) {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    let mut found = entries.iter().find(|entry| entry["manager"] == manager).unwrap().clone();
    let time = found.as_object_mut().unwrap().remove("time");
    (found, time.is_some())
}

fn refusal(answer: &Answer) -> (u16, &str) {
    (answer.code, answer.message())
}

async fn configurations_are_refused(api: Api) {
    api.ok(&format!("POST {PATH}"), config_map("c", "1")).await;
    let path = format!("{PATH}/c");
    let apply = [("content-type", "application/apply-patch+yaml")];
    let nobody = api.with(&format!("PATCH {path}"), &apply, config_map("c", "1")).await;
    assert_eq!(nobody.code, 422, "{}", nobody.text);
    let other = json!({"apiVersion": "v1", "kind": "Secret", "metadata": {"name": "c"}});
    assert_eq!(refusal(&api.apply(&path, "m", other).await), (400, "invalid object type: /v1, Kind=Secret"));
    assert_eq!(refusal(&api.apply(&path, "m", json!({"data": {}})).await), (400, "invalid object type: /, Kind="));
    let mut owned = config_map("c", "1");
    owned["metadata"]["managedFields"] = json!([]);
    assert_eq!(refusal(&api.apply(&path, "m", owned).await), (400, "metadata.managedFields must be nil"));
    assert_eq!(
        refusal(&api.apply(&path, "m", config_map("d", "1")).await),
        (400, "the name of the object (d) does not match the name on the URL (c)")
    );
    let mut unknown = config_map("c", "1");
    unknown["datas"] = json!({});
    assert_eq!(
        refusal(&api.apply(&path, "m", unknown).await),
        (500, "failed to create typed patch object (/c; /v1, Kind=ConfigMap): .datas: field not declared in schema")
    );
    let text =
        api.open(&format!("PATCH {path}"), &[("content-type", "application/merge-patch+json")], "{".into()).await;
    assert_eq!(text.status(), 400);
}

async fn a_missing_object_is_created(api: Api) {
    let path = format!("{PATH}/new");
    let mut config = config_map("new", "1");
    config["metadata"]["uid"] = json!("u");
    let why = "Operation cannot be fulfilled on configmaps \"new\": uid mismatch: the provided object specified uid u, and no \
               existing object was found";
    assert_eq!(refusal(&api.apply(&path, "m", config.clone()).await), (409, why));
    config["metadata"] = json!({});
    let why = "the name of the object (new based on URL) was undeterminable: name must be provided";
    assert_eq!(refusal(&api.apply(&path, "m", config).await), (400, why));
    // A version of something that is not there pins nothing.
    let mut config = config_map("new", "1");
    config["metadata"]["resourceVersion"] = json!("5");
    let made = api.apply(&path, "m", config).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let fields = json!({"f:data": {"f:key": {}}, "f:metadata": {"f:labels": {"f:value": {}}}});
    let expected =
        json!({"manager": "m", "operation": "Apply", "apiVersion": "v1", "fieldsType": "FieldsV1", "fieldsV1": fields});
    assert_eq!(entry(&made.body, "m"), (expected, true));
}

async fn nothing_new_changes_nothing(api: Api) {
    let path = format!("{PATH}/c");
    let made = api.apply(&path, "m", config_map("c", "1")).await.body;
    assert_eq!(api.apply(&path, "m", config_map("c", "1")).await.body, made);
    // Whoever comes to share what is there is an owner since no time.
    let shared = api.apply(&path, "n", config_map("c", "1")).await.body;
    assert_eq!((entry(&shared, "m").1, entry(&shared, "n").1), (true, false));
    let conflict = api.apply(&path, "n", config_map("c", "2")).await;
    let why = "Apply failed with 2 conflicts: conflicts with \"m\":\n- .data.key\n- .metadata.labels.value";
    assert_eq!(refusal(&conflict), (409, why));
    assert_eq!(
        conflict.body["details"]["causes"][0],
        json!({"reason": "FieldManagerConflict", "message": "conflict with \"m\"", "field": ".data.key"})
    );
    // Conflicts are told before the version that the configuration names.
    let mut stale = config_map("c", "2");
    stale["metadata"]["resourceVersion"] = json!("1");
    assert_eq!(api.apply(&path, "n", stale).await.message(), why);
}

async fn scales_carry_owners(api: Api) {
    api.apply(DEPLOYMENT, "m", deployment(Some(1))).await;
    let scale = |replicas: i64| json!({"apiVersion": "autoscaling/v1", "kind": "Scale", "metadata": {"name": "web"}, "spec": {"replicas": replicas}});
    let path = format!("{DEPLOYMENT}/scale");
    let conflict = api.apply(&path, "s", scale(2)).await;
    assert_eq!(refusal(&conflict), (409, "Apply failed with 1 conflict: conflict with \"m\": .spec.replicas"));
    let other = api.apply(&path, "s", deployment(None)).await;
    assert_eq!(refusal(&other), (400, "invalid object type: apps/v1, Kind=Deployment"));
    api.ok(&format!("PUT {path}?fieldManager=s"), scale(2)).await;
    let live = api.get(DEPLOYMENT).await;
    let expected = json!({"manager": "s", "operation": "Update", "apiVersion": "apps/v1", "subresource": "scale",
        "fieldsType": "FieldsV1", "fieldsV1": {"f:spec": {"f:replicas": {}}}});
    assert_eq!(entry(&live, "s"), (expected, false));
    assert_eq!(entry(&live, "m").0["fieldsV1"]["f:spec"].get("f:replicas"), None);
    let conflict = api.apply(DEPLOYMENT, "m", deployment(Some(1))).await;
    let why =
        "Apply failed with 1 conflict: conflict with \"s\" with subresource \"scale\" using apps/v1: .spec.replicas";
    assert_eq!(refusal(&conflict), (409, why));
}

async fn endpoints_own_what_they_write(api: Api) {
    api.ok(&format!("POST {}", DEPLOYMENT.trim_end_matches("/web")), deployment(Some(1))).await;
    let mut status = deployment(Some(9));
    status["metadata"]["labels"] = json!({"l": "v"});
    status["metadata"]["annotations"] = json!({"a": "v"});
    status["status"] = json!({"observedGeneration": 1});
    let answer = api.apply(&format!("{DEPLOYMENT}/status"), "controller", status).await;
    assert_eq!(answer.code, 200, "{}", answer.text);
    let (found, _) = entry(&answer.body, "controller");
    assert_eq!(found["subresource"], "status");
    assert_eq!(
        found["fieldsV1"],
        json!({"f:metadata": {"f:annotations": {"f:a": {}}}, "f:status": {"f:observedGeneration": {}}})
    );
    assert_eq!(answer.body["spec"]["replicas"], 1);
}

async fn broken_owners_are_put_back(api: Api) {
    let hooks = HookServer::start(&["localhost"], |_, _| {
        patch(json!([{"op": "replace", "path": "/metadata/managedFields/0/operation", "value": "Wrong"}]))
    })
    .await;
    let webhook = json!({"metadata": {"name": "w"}, "webhooks": [{"name": "w.example.com", "clientConfig": hooks.url("/m"),
        "sideEffects": "None", "admissionReviewVersions": ["v1"],
        "rules": [{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]}]});
    let configurations = "/apis/admissionregistration.k8s.io/v1/mutatingwebhookconfigurations";
    api.ok(&format!("POST {configurations}"), webhook).await;
    let made = api.apply(&format!("{PATH}/c"), "m", config_map("c", "1")).await;
    assert_eq!(entry(&made.body, "m").0["operation"], "Apply");
    let warning = "managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission \
                   controller; please fix your requests: operation must be `Apply` or `Update`";
    assert!(made.warnings().iter().any(|found| found.contains(warning)), "{:?}", made.warnings());
}
