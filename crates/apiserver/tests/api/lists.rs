//! Lists: chunks, versions, selectors, forms.

use serde_json::{Value, json};

use crate::harness::{Api, config_map, over_both, version};

over_both!(chunks, versions, selectors, forms);

const PATH: &str = "/api/v1/namespaces/lists/configmaps";

async fn fill(api: &Api, count: usize) {
    api.ok("POST /api/v1/namespaces", json!({"metadata": {"name": "lists"}})).await;
    for index in 0..count {
        api.ok(&format!("POST {PATH}"), config_map(&format!("c{index}"), &(index % 2).to_string())).await;
    }
}

fn names(list: &Value) -> Vec<&str> {
    list["items"].as_array().unwrap().iter().map(|item| item["metadata"]["name"].as_str().unwrap()).collect()
}

async fn chunks(api: Api) {
    fill(&api, 5).await;
    let first = api.get(&format!("{PATH}?limit=2")).await;
    assert_eq!((names(&first), &first["metadata"]["remainingItemCount"]), (vec!["c0", "c1"], &json!(3)));
    let token = first["metadata"]["continue"].as_str().unwrap();
    // What comes later is no part of this list.
    api.ok(&format!("POST {PATH}"), config_map("c22", "0")).await;
    let second = api.get(&format!("{PATH}?limit=2&continue={token}")).await;
    assert_eq!((names(&second), version(&second)), (vec!["c2", "c3"], version(&first)));
    let selected = api.get(&format!("{PATH}?limit=2&labelSelector=value%3D0")).await;
    assert_eq!(names(&selected), ["c0", "c2"]);
    assert!(selected["metadata"].get("remainingItemCount").is_none());

    let store = api.server.view.store();
    store.compact(store.revision()).unwrap();
    let gone = api.send(&format!("GET {PATH}?limit=2&continue={token}"), Value::Null).await;
    assert_eq!((gone.code, &gone.body["reason"]), (410, &json!("Expired")));
    let token = gone.body["metadata"]["continue"].as_str().unwrap();
    let rest = api.get(&format!("{PATH}?continue={token}")).await;
    assert_eq!(names(&rest), ["c2", "c22", "c3", "c4"]);
    assert_eq!(api.send(&format!("GET {PATH}?continue=bad"), Value::Null).await.code, 400);
}

async fn versions(api: Api) {
    fill(&api, 2).await;
    let now = version(&api.get(PATH).await);
    api.ok(&format!("DELETE {PATH}/c0"), Value::Null).await;
    let count = async |query: &str| {
        let answer = api.send(&format!("GET {PATH}?{query}"), Value::Null).await;
        (answer.code, answer.body["items"].as_array().map_or(0, Vec::len))
    };
    assert_eq!(count("").await, (200, 1));
    assert_eq!(count("resourceVersion=0").await, (200, 1));
    assert_eq!(count(&format!("resourceVersion={now}")).await, (200, 1));
    assert_eq!(count(&format!("resourceVersion={now}&resourceVersionMatch=NotOlderThan")).await, (200, 1));
    assert_eq!(count(&format!("resourceVersion={now}&resourceVersionMatch=Exact")).await, (200, 2));
    assert_eq!(count(&format!("resourceVersion={now}&limit=5")).await, (200, 2));
    assert_eq!(count("resourceVersionMatch=Exact").await.0, 422);
    assert_eq!(count("resourceVersion=0&resourceVersionMatch=Exact").await.0, 422);
    assert_eq!(count("resourceVersion=abc").await.0, 400);
    let future = api.send(&format!("GET {PATH}?resourceVersion=999999"), Value::Null).await;
    assert_eq!((future.code, &future.body["details"]["causes"][0]["reason"]), (504, &json!("ResourceVersionTooLarge")));
}

async fn selectors(api: Api) {
    fill(&api, 3).await;
    assert_eq!(names(&api.get(&format!("{PATH}?labelSelector=value%20in%20(1)")).await), ["c1"]);
    assert_eq!(names(&api.get(&format!("{PATH}?fieldSelector=metadata.name%3Dc2")).await), ["c2"]);
    assert_eq!(names(&api.get("/api/v1/configmaps?fieldSelector=metadata.namespace%3Dlists").await).len(), 3);
    let bad = api.send(&format!("GET {PATH}?fieldSelector=data.key%3D1"), Value::Null).await;
    assert_eq!(bad.code, 400);
    assert!(bad.message().ends_with("field label not supported: data.key"), "{}", bad.message());
}

async fn forms(api: Api) {
    fill(&api, 2).await;
    let form = async |line: &str, accept: &str| api.with(line, &[("accept", accept)], Value::Null).await;
    let list = format!("GET {PATH}");
    let table = form(&list, "application/json;as=Table;v=v1;g=meta.k8s.io").await.body;
    assert_eq!((&table["kind"], table["rows"].as_array().unwrap().len()), (&json!("Table"), 2));
    assert_eq!(table["rows"][0]["object"]["kind"], "PartialObjectMetadata");
    let bare = form(&format!("{list}?includeObject=None"), "application/json;as=Table;v=v1;g=meta.k8s.io").await.body;
    assert!(bare["rows"][0].get("object").is_none_or(Value::is_null));
    let partial = form(&list, "application/json;as=PartialObjectMetadataList;v=v1;g=meta.k8s.io").await.body;
    assert_eq!(partial["kind"], "PartialObjectMetadataList");
    assert!(partial["items"][0].get("data").is_none());
    let one = form(&format!("{list}/c0"), "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io").await.body;
    assert_eq!((&one["kind"], &one["metadata"]["name"]), (&json!("PartialObjectMetadata"), &json!("c0")));
    assert!(form(&format!("{list}/c0"), "application/yaml").await.text.contains("kind: ConfigMap"));
    assert_eq!(form(&list, "image/png").await.code, 406);
    let pretty = form(&format!("{list}/c0?pretty=true"), "application/json").await;
    assert!(pretty.text.starts_with("{\n  \"") && pretty.body["kind"] == "ConfigMap", "{}", pretty.text);
    let plain = form(&format!("{list}/c0"), "application/json").await.text;
    assert!(!plain.contains('\n'));
}
