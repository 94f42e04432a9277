//! Creating and changing: preconditions, dry run, warnings, verbs.

use serde_json::{Value, json};

use crate::harness::{Api, config_map, over_both, version};

over_both!(preconditions, dry_run_changes_nothing, warnings_come_with_errors_too, put_creates_where_it_may, verbs);

const PATH: &str = "/api/v1/namespaces/default/configmaps";

async fn preconditions(api: Api) {
    let made = api.ok(&format!("POST {PATH}"), config_map("c", "1")).await;
    assert_eq!(api.send(&format!("POST {PATH}"), config_map("c", "1")).await.code, 409);
    api.ok(&format!("PATCH {PATH}/c"), json!({"data": {"key": "2"}})).await;
    let stale = api.send(&format!("PUT {PATH}/c"), made.clone()).await;
    assert_eq!((stale.code, &stale.body["reason"]), (409, &json!("Conflict")));
    let pinned = json!({"metadata": {"resourceVersion": version(&made).to_string()}, "data": {"key": "3"}});
    assert_eq!(api.send(&format!("PATCH {PATH}/c"), pinned).await.code, 409);
    let other = json!({"metadata": {"uid": "other"}});
    assert_eq!(api.send(&format!("PATCH {PATH}/c"), other).await.code, 409);
    let mut renamed = config_map("d", "1");
    assert_eq!(api.send(&format!("PUT {PATH}/c"), renamed.clone()).await.code, 400);
    renamed["metadata"]["resourceVersion"] = json!("5");
    assert_eq!(api.send(&format!("POST {PATH}"), renamed).await.code, 400);
}

async fn dry_run_changes_nothing(api: Api) {
    api.ok(&format!("POST {PATH}"), config_map("c", "1")).await;
    let before = api.server.view.store().revision();
    let dry = "dryRun=All";
    let made = api.ok(&format!("POST {PATH}?{dry}"), config_map("d", "1")).await;
    assert!(made["metadata"]["uid"].is_string());
    assert_eq!(api.ok(&format!("PUT {PATH}/c?{dry}"), config_map("c", "2")).await["data"]["key"], "2");
    assert_eq!(api.ok(&format!("PATCH {PATH}/c?{dry}"), json!({"data": {"key": "3"}})).await["data"]["key"], "3");
    let line = format!("PATCH {PATH}/e?{dry}&fieldManager=m");
    let applied = api.with(&line, &[("content-type", "application/apply-patch+yaml")], config_map("e", "1")).await;
    assert_eq!(applied.code, 201, "{}", applied.text);
    api.ok(&format!("DELETE {PATH}/c?{dry}"), Value::Null).await;
    api.ok(&format!("DELETE {PATH}?{dry}"), Value::Null).await;
    let service = json!({"metadata": {"name": "s"}, "spec": {"ports": [{"port": 80}]}});
    let service = api.ok(&format!("POST /api/v1/namespaces/default/services?{dry}"), service).await;
    assert!(service["spec"]["clusterIP"].is_string());
    assert_eq!(api.server.view.store().revision(), before);
    assert_eq!(api.send(&format!("POST {PATH}?dryRun=Some"), config_map("d", "1")).await.code, 422);
}

async fn warnings_come_with_errors_too(api: Api) {
    let mut good = config_map("c", "1");
    good["unknown"] = json!(1);
    let answer = api.send(&format!("POST {PATH}"), good.clone()).await;
    assert_eq!((answer.code, answer.warnings()), (201, vec!["299 - \"unknown field \\\"unknown\\\"\""]));
    let mut bad = good;
    bad["metadata"]["name"] = json!("No");
    let answer = api.send(&format!("POST {PATH}"), bad.clone()).await;
    assert_eq!((answer.code, answer.warnings().len()), (422, 1));
    let answer = api.send(&format!("POST {PATH}?fieldValidation=Strict"), bad).await;
    assert_eq!(answer.code, 400);
}

async fn put_creates_where_it_may(api: Api) {
    assert_eq!(api.send(&format!("PUT {PATH}/c"), config_map("c", "1")).await.code, 404);
    let leases = "/apis/coordination.k8s.io/v1/namespaces/default/leases";
    let lease = json!({"metadata": {"name": "l"}, "spec": {"holderIdentity": "a"}});
    assert_eq!(api.send(&format!("PUT {leases}/l"), lease.clone()).await.code, 201);
    let blind = api.send(&format!("PUT {leases}/l"), lease).await;
    assert_eq!(blind.code, 422);
    assert!(blind.message().contains("metadata.resourceVersion"), "{}", blind.message());
}

async fn verbs(api: Api) {
    api.ok(&format!("POST {PATH}"), config_map("c", "1")).await;
    for line in ["OPTIONS", "TRACE", "POST"] {
        assert_eq!(api.send(&format!("{line} {PATH}/c"), config_map("c", "1")).await.code, 405, "{line}");
    }
    assert_eq!(api.send(&format!("PUT {PATH}"), config_map("c", "1")).await.code, 405);
    assert_eq!(api.send("POST /api/v1/configmaps", config_map("c", "1")).await.code, 405);
    assert_eq!(api.send("GET /api/v1/nothings", Value::Null).await.code, 404);
    assert_eq!(api.send("GET /apis/none/v1/x", Value::Null).await.code, 404);
    assert_eq!(
        api.send(&format!("GET {PATH}/missing"), Value::Null).await.message(),
        "configmaps \"missing\" not found"
    );
    let media = api.with(&format!("PATCH {PATH}/c"), &[("content-type", "text/plain")], json!({})).await;
    assert_eq!(media.code, 415);
}
