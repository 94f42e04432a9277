//! Custom resources, from their definition to their end.

use std::time::Duration;

use serde_json::{Value, json};

use crate::harness::{Api, over_both};

over_both!(from_definition_to_end, definitions_must_fit, names_are_taken_in_turn, documents_are_sent_when_they_changed);

const DEFINITIONS: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
const WIDGETS: &str = "/apis/example.com/v1/namespaces/default/widgets";

fn definition() -> Value {
    let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
        "spec": {"type": "object", "properties": {"size": {"type": "integer", "default": 3}}},
        "status": {"type": "object", "properties": {"ready": {"type": "boolean"}}}}}});
    let version = |name: &str, storage: bool| json!({"name": name, "served": true, "storage": storage, "schema": schema, "subresources": {"status": {}}});
    json!({"apiVersion": "apiextensions.k8s.io/v1", "kind": "CustomResourceDefinition",
        "metadata": {"name": "widgets.example.com"}, "spec": {"group": "example.com", "scope": "Namespaced",
        "names": {"plural": "widgets", "kind": "Widget", "shortNames": ["wd"]},
        "versions": [version("v1", true), version("v1beta1", false)]}})
}

/// Asks again until the answer has this code.
async fn until(api: &Api, line: &str, code: u16) {
    for _ in 0..500 {
        if api.send(line, Value::Null).await.code == code {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("{line} never answers {code}");
}

async fn from_definition_to_end(api: Api) {
    apiserver::serve_definitions(&api.server).await.unwrap();
    let made = api.ok(&format!("POST {DEFINITIONS}"), definition()).await;
    assert_eq!(made["spec"]["names"]["listKind"], "WidgetList");
    assert_eq!(made["status"]["storedVersions"], json!(["v1"]));
    until(&api, &format!("GET {WIDGETS}"), 200).await;
    let live = api.get(&format!("{DEFINITIONS}/widgets.example.com")).await;
    assert_eq!(live["status"]["acceptedNames"]["kind"], "Widget");
    let resources = api.get("/apis/example.com/v1").await;
    assert!(resources["resources"].as_array().unwrap().iter().any(|r| r["name"] == "widgets/status"));

    let widget = json!({"apiVersion": "example.com/v1", "kind": "Widget", "metadata": {"name": "w",
        "finalizers": ["example.com/hold"]}, "spec": {"unknown": 1}, "status": {"ready": true}});
    let widget = api.ok(&format!("POST {WIDGETS}"), widget).await;
    assert_eq!((&widget["spec"], widget.get("status")), (&json!({"size": 3}), None));
    assert_eq!(widget["metadata"]["generation"], 1);
    let ready = api.ok(&format!("PATCH {WIDGETS}/w/status"), json!({"status": {"ready": true}})).await;
    assert_eq!((&ready["status"]["ready"], &ready["metadata"]["generation"]), (&json!(true), &json!(1)));
    let older = api.get("/apis/example.com/v1beta1/namespaces/default/widgets").await;
    assert_eq!(
        (&older["kind"], &older["items"][0]["apiVersion"]),
        (&json!("WidgetList"), &json!("example.com/v1beta1"))
    );
    assert_eq!(api.send(&format!("PATCH {WIDGETS}/w"), json!({"spec": {"size": "big"}})).await.code, 422);

    let ending = api.ok(&format!("DELETE {DEFINITIONS}/widgets.example.com"), Value::Null).await;
    assert!(ending["metadata"]["deletionTimestamp"].is_string());
    for _ in 0..500 {
        if api.get(&format!("{WIDGETS}/w")).await["metadata"]["deletionTimestamp"].is_string() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    let late = api.send(&format!("POST {WIDGETS}"), json!({"metadata": {"name": "late"}})).await;
    assert_eq!(late.code, 405, "{}", late.text);
    api.ok(&format!("PATCH {WIDGETS}/w"), json!({"metadata": {"finalizers": null}})).await;
    until(&api, &format!("GET {DEFINITIONS}/widgets.example.com"), 404).await;
    until(&api, &format!("GET {WIDGETS}"), 404).await;
}

async fn definitions_must_fit(api: Api) {
    let refused = async |change: fn(&mut Value)| {
        let mut object = definition();
        change(&mut object);
        let answer = api.send(&format!("POST {DEFINITIONS}"), object).await;
        assert_eq!(answer.code, 422, "{}", answer.text);
        answer.body["details"]["causes"][0]["field"].as_str().unwrap().to_owned()
    };
    assert_eq!(refused(|d| d["metadata"]["name"] = json!("x.example.com")).await, "metadata.name");
    assert_eq!(refused(|d| d["spec"]["versions"][1]["storage"] = json!(true)).await, "spec.versions");
    let at = refused(|d| d["spec"]["versions"][0]["schema"]["openAPIV3Schema"] = json!({"type": "string"})).await;
    assert_eq!(at, "spec.versions[0].schema.openAPIV3Schema.type");
}

async fn names_are_taken_in_turn(api: Api) {
    apiserver::serve_definitions(&api.server).await.unwrap();
    api.ok(&format!("POST {DEFINITIONS}"), definition()).await;
    until(&api, &format!("GET {WIDGETS}"), 200).await;
    let mut rival = definition();
    rival["metadata"]["name"] = json!("gadgets.example.com");
    rival["spec"]["names"] = json!({"plural": "gadgets", "kind": "Gadget", "shortNames": ["wd"]});
    api.ok(&format!("POST {DEFINITIONS}"), rival).await;
    let line = format!("{DEFINITIONS}/gadgets.example.com");
    let mut conditions = Value::Null;
    for _ in 0..500 {
        conditions = api.get(&line).await["status"]["conditions"].clone();
        if conditions[0].is_object() {
            break;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    assert_eq!((&conditions[0]["reason"], &conditions[1]["status"]), (&json!("ShortNamesConflict"), &json!("False")));
    let gadgets = "GET /apis/example.com/v1/namespaces/default/gadgets";
    assert_eq!(api.send(gadgets, Value::Null).await.code, 404);
    api.ok(&format!("DELETE {DEFINITIONS}/widgets.example.com"), Value::Null).await;
    until(&api, gadgets, 200).await;
}

/// Whoever has the newest OpenAPI document is told so, and nobody else is.
async fn documents_are_sent_when_they_changed(api: Api) {
    apiserver::serve_definitions(&api.server).await.unwrap();
    let ask = async |path: &str, tag: &str| {
        let answer = api.with(&format!("GET {path}"), &[("if-none-match", tag)], Value::Null).await;
        let tag = answer.headers["etag"].to_str().unwrap().to_owned();
        (answer.code, answer.text.len(), tag)
    };
    let (code, _, first) = ask("/openapi/v2", "").await;
    assert_eq!((code, first.len()), (200, 130));
    assert_eq!(ask("/openapi/v2", &first).await, (304, 0, first.clone()));
    let (code, _, other) = ask("/openapi/v3/apis/apps/v1", &first).await;
    assert!(code == 200 && other != first);
    api.ok(&format!("POST {DEFINITIONS}"), definition()).await;
    let changed = async {
        while ask("/openapi/v2", &first).await.0 == 304 {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        ask("/openapi/v2", &first).await
    };
    let (code, length, second) =
        tokio::time::timeout(std::time::Duration::from_secs(10), changed).await.expect("the definition is published");
    assert!(code == 200 && length > 0 && second != first);
}
