//! Watches: initial events, views, bookmarks, forms, ends.

use std::time::Duration;

use apiserver::http::Body;
use http_body_util::BodyExt as _;
use serde_json::{Value, json};

use crate::harness::{Api, config_map, over_both, version};

over_both!(events_in_order, selectors_make_views, initial_events_end_with_a_bookmark, old_paths_and_forms, refusals);

const PATH: &str = "/api/v1/namespaces/default/configmaps";
const SOON: Duration = Duration::from_secs(5);

struct Watch {
    body: Body,
    read: Vec<u8>,
}

impl Watch {
    async fn open(api: &Api, query: &str) -> Self {
        Self::at(
            api,
            &format!("{PATH}?watch=1&fieldSelector=metadata.name!%3Dkube-root-ca.crt&{query}"),
            "application/json",
        )
        .await
    }

    async fn at(api: &Api, path: &str, accept: &str) -> Self {
        let response = api.open(&format!("GET {path}"), &[("accept", accept)], String::new()).await;
        assert_eq!(response.status(), 200);
        Watch { body: response.into_body(), read: Vec::new() }
    }

    /// The next event; none at the end.
    async fn next(&mut self) -> Option<Value> {
        loop {
            if let Some(end) = self.read.iter().position(|b| *b == b'\n') {
                let line: Vec<u8> = self.read.drain(..=end).collect();
                return Some(serde_json::from_slice(&line).unwrap());
            }
            let frame = tokio::time::timeout(SOON, self.body.frame()).await.expect("an event comes soon")?;
            self.read.extend(frame.unwrap().into_data().unwrap_or_default());
        }
    }

    /// `TYPE name`
    async fn line(&mut self) -> String {
        let event = self.next().await.unwrap();
        let name = event["object"]["metadata"]["name"].as_str().unwrap_or_default();
        format!("{} {name}", event["type"].as_str().unwrap())
    }
}

async fn events_in_order(api: Api) {
    let made = api.ok(&format!("POST {PATH}"), config_map("a", "1")).await;
    let mut all = Watch::open(&api, "").await;
    let mut after = Watch::open(&api, &format!("resourceVersion={}", version(&made))).await;
    api.ok(&format!("PATCH {PATH}/a"), json!({"data": {"key": "2"}})).await;
    let changed = version(&api.get(&format!("{PATH}/a")).await);
    api.ok(&format!("DELETE {PATH}/a"), Value::Null).await;
    assert_eq!(all.line().await, "ADDED a");
    for watch in [&mut all, &mut after] {
        assert_eq!(watch.line().await, "MODIFIED a");
        let last = watch.next().await.unwrap();
        assert_eq!(last["type"], "DELETED");
        // The deletion has a version of its own.
        assert!(version(&last["object"]) > changed);
    }
}

async fn selectors_make_views(api: Api) {
    api.ok(&format!("POST {PATH}"), config_map("a", "1")).await;
    let mut ones = Watch::open(&api, "labelSelector=value%3D1").await;
    let mut twos = Watch::open(&api, "labelSelector=value%3D2").await;
    api.ok(&format!("PATCH {PATH}/a"), json!({"metadata": {"labels": {"value": "2"}}})).await;
    assert_eq!((ones.line().await, ones.line().await), ("ADDED a".to_owned(), "DELETED a".to_owned()));
    assert_eq!(twos.line().await, "ADDED a");
}

async fn initial_events_end_with_a_bookmark(api: Api) {
    api.ok(&format!("POST {PATH}"), config_map("a", "1")).await;
    let query = "sendInitialEvents=true&resourceVersionMatch=NotOlderThan&allowWatchBookmarks=true";
    let mut watch = Watch::open(&api, query).await;
    assert_eq!(watch.line().await, "ADDED a");
    let mark = watch.next().await.unwrap();
    assert_eq!((&mark["type"], &mark["object"]["kind"]), (&json!("BOOKMARK"), &json!("ConfigMap")));
    assert_eq!(mark["object"]["metadata"]["annotations"]["k8s.io/initial-events-end"], "true");
    api.ok(&format!("POST {PATH}"), config_map("b", "1")).await;
    assert_eq!(watch.line().await, "ADDED b");
    let mut short = Watch::open(&api, "timeoutSeconds=1&allowWatchBookmarks=true&resourceVersion=1").await;
    while let Some(event) = short.next().await {
        assert!(matches!(event["type"].as_str(), Some("ADDED" | "BOOKMARK")), "{event}");
    }
}

async fn old_paths_and_forms(api: Api) {
    api.ok(&format!("POST {PATH}"), config_map("a", "1")).await;
    let prefix = "/api/v1/watch/namespaces/default/configmaps/a";
    let table = "application/json;as=Table;v=v1;g=meta.k8s.io";
    let partial = "application/json;as=PartialObjectMetadata;v=v1;g=meta.k8s.io";
    assert_eq!(Watch::at(&api, prefix, "application/json").await.line().await, "ADDED a");
    let mut tables = Watch::at(&api, prefix, table).await;
    let first = tables.next().await.unwrap();
    assert_eq!(first["object"]["kind"], "Table");
    assert!(!first["object"]["columnDefinitions"].as_array().unwrap().is_empty());
    api.ok(&format!("PATCH {PATH}/a"), json!({"data": {"key": "2"}})).await;
    let second = tables.next().await.unwrap();
    assert!(second["object"]["columnDefinitions"].as_array().is_none_or(Vec::is_empty));
    assert_eq!(second["object"]["rows"][0]["cells"][0], "a");
    let event = Watch::at(&api, prefix, partial).await.next().await.unwrap();
    assert_eq!(event["object"]["kind"], "PartialObjectMetadata");
}

async fn refusals(api: Api) {
    let code = async |query: &str| api.send(&format!("GET {PATH}?watch=1&{query}"), Value::Null).await.code;
    assert_eq!(code("sendInitialEvents=true").await, 422);
    assert_eq!(code("resourceVersionMatch=NotOlderThan").await, 422);
    assert_eq!(code("resourceVersion=999999").await, 504);
    assert_eq!(code("resourceVersion=abc").await, 400);
    api.ok(&format!("POST {PATH}"), config_map("a", "1")).await;
    let store = api.server.view.store();
    store.compact(store.revision()).unwrap();
    // As from a watch cache: the stream begins and says at once that it cannot go on.
    let mut watch = Watch::open(&api, "resourceVersion=1").await;
    let event = watch.next().await.unwrap();
    assert_eq!((&event["type"], &event["object"]["code"]), (&json!("ERROR"), &json!(410)));
    assert!(watch.next().await.is_none());
}
