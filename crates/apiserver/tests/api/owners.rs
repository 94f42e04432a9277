//! Who owns which field.

use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::harness::{Api, config_map, over_both, version};

over_both!(
    what_the_server_sets_is_nobodys,
    client_side_then_server_side,
    a_write_that_changes_nothing_is_none,
    conflicts,
    configurations_that_do_not_fit
);

fn job() -> Value {
    json!({"apiVersion": "batch/v1", "kind": "Job", "metadata": {"name": "j"}, "spec": {"template": {
        "spec": {"restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}})
}

fn owned(object: &Value, manager: &str) -> String {
    let entries = object["metadata"]["managedFields"].as_array().unwrap();
    entries.iter().find(|e| e["manager"] == manager).unwrap_or_else(|| panic!("{entries:?}"))["fieldsV1"].to_string()
}

async fn what_the_server_sets_is_nobodys(api: Api) {
    let made = api.ok("POST /apis/batch/v1/namespaces/default/jobs?fieldManager=maker", job()).await;
    assert!(made["spec"]["selector"]["matchLabels"].is_object());
    let fields = owned(&made, "maker");
    assert!(fields.contains("f:parallelism"), "{fields}");
    assert!(
        !fields.contains("f:selector") && !fields.contains("controller-uid") && !fields.contains("f:status"),
        "{fields}"
    );
}

async fn client_side_then_server_side(api: Api) {
    let path = "/apis/batch/v1/namespaces/default/jobs";
    let mut sent = job();
    let last = format!("{sent}\n");
    sent["metadata"]["annotations"] = json!({"kubectl.kubernetes.io/last-applied-configuration": last});
    api.ok(&format!("POST {path}?fieldManager=kubectl-client-side-apply"), sent).await;
    let answer = api.apply(&format!("{path}/j"), "kubectl", job()).await;
    assert_eq!(answer.code, 200, "{}", answer.text);
    let again = api.apply(&format!("{path}/j"), "kubectl", job()).await;
    assert_eq!(version(&again.body), version(&answer.body));
}

async fn a_write_that_changes_nothing_is_none(api: Api) {
    let path = "/api/v1/namespaces/default/configmaps";
    let made = api.ok(&format!("POST {path}"), config_map("c", "1")).await;
    let put = api.ok(&format!("PUT {path}/c"), config_map("c", "1")).await;
    let patched = api.ok(&format!("PATCH {path}/c"), json!({"data": {"key": "1"}})).await;
    assert_eq!((version(&put), version(&patched)), (version(&made), version(&made)));
    let changed = api.ok(&format!("PATCH {path}/c"), json!({"data": {"key": "2"}})).await;
    assert!(version(&changed) > version(&made));

    // A status that says the same, and a spec that says the same with its status left out.
    let pods = "/api/v1/namespaces/default/pods";
    let pod = json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": "p"},
        "spec": {"containers": [{"name": "c", "image": "i:1"}]}});
    let made = api.ok(&format!("POST {pods}"), pod).await;
    let mut bare = made.clone();
    bare.as_object_mut().unwrap().remove("status");
    let put = api.ok(&format!("PUT {pods}/p"), bare).await;
    let status = api.ok(&format!("PUT {pods}/p/status"), made.clone()).await;
    assert_eq!((version(&put), version(&status)), (version(&made), version(&made)));
}

async fn conflicts(api: Api) {
    let path = "/api/v1/namespaces/default/configmaps/c";
    let made = api.apply(path, "one", config_map("c", "1")).await;
    assert_eq!(made.code, 201, "{}", made.text);
    let refused = api.apply(path, "two", config_map("c", "2")).await;
    assert_eq!(refused.code, 409);
    assert_eq!(refused.body["details"]["causes"][0]["reason"], "FieldManagerConflict");
    let line = format!("PATCH {path}?fieldManager=two&force=true");
    let forced = api.with(&line, &[("content-type", "application/apply-patch+yaml")], config_map("c", "2")).await;
    assert_eq!((forced.code, &forced.body["data"]["key"]), (200, &json!("2")));
    let line = format!("PATCH {path}");
    let unnamed = api.with(&line, &[("content-type", "application/apply-patch+yaml")], config_map("c", "2")).await;
    assert_eq!(unnamed.code, 422);
}

/// An applied configuration fits the schema as it was sent, whatever is asked of field validation; a key twice is the reader's affair.
async fn configurations_that_do_not_fit(api: Api) {
    let path = "/api/v1/namespaces/default/configmaps/odd?fieldManager=one";
    let apply = async |validation: &str, body: &str| {
        let line = format!("PATCH {path}&fieldValidation={validation}");
        let response = api.open(&line, &[("content-type", "application/apply-patch+yaml")], body.to_owned()).await;
        let (head, body) = response.into_parts();
        let text = String::from_utf8_lossy(&body.collect().await.unwrap().to_bytes()).into_owned();
        let warning = head.headers.get("warning").map(|value| value.to_str().unwrap().to_owned());
        (head.status.as_u16(), warning, serde_json::from_str::<Value>(&text).unwrap())
    };
    let unknown = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: odd\n  unknown: a\n";
    for validation in ["Strict", "Warn", "Ignore"] {
        let (code, _, status) = apply(validation, unknown).await;
        let why = "failed to create typed patch object (/odd; /v1, Kind=ConfigMap): .metadata.unknown: field not declared in schema";
        assert_eq!((code, &status["message"]), (500, &json!(why)), "{validation}");
    }
    let twice = "apiVersion: v1\nkind: ConfigMap\nmetadata:\n  name: odd\ndata:\n  a: v\n  a: w\n";
    let (code, _, status) = apply("Strict", twice).await;
    let why = "error strict decoding patch: error converting YAML to JSON: yaml: unmarshal errors:\n  line 7: key \"a\" already set in map";
    assert_eq!((code, &status["message"]), (400, &json!(why)));
    let (code, warning, made) = apply("Warn", twice).await;
    assert_eq!((code, &made["data"]["a"]), (201, &json!("w")));
    assert_eq!(warning.as_deref(), Some("299 - \"line 7: key \\\"a\\\" already set in map\""));
}
