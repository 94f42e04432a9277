//! Deleting: policies, finalizers, preconditions, grace, collections, evictions.

use serde_json::{Value, json};

use crate::harness::{Api, config_map, over_both, version};

over_both!(policies_become_finalizers, conditions_of_a_delete, grace_only_shortens, collections, evictions);

const PATH: &str = "/api/v1/namespaces/default/configmaps";

fn pod(name: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "Pod", "metadata": {"name": name, "labels": {"app": "a"}}, "spec": {
        "nodeName": "n", "containers": [{"name": "c", "image": "i:1"}]}})
}

async fn policies_become_finalizers(api: Api) {
    let delete = async |kind: &str, options: Value| {
        let path = match kind {
            "Job" => "/apis/batch/v1/namespaces/default/jobs",
            _ => PATH,
        };
        let object = match kind {
            "Job" => json!({"metadata": {"name": "c"}, "spec": {"template": {"spec": {
                "restartPolicy": "Never", "containers": [{"name": "c", "image": "i:1"}]}}}}),
            _ => config_map("c", "1"),
        };
        api.ok(&format!("POST {path}"), object).await;
        let answer = api.send(&format!("DELETE {path}/c"), options).await;
        let left = answer.body["metadata"]["finalizers"].clone();
        if !left.is_null() {
            let line = format!("PATCH {path}/c");
            api.ok(&line, json!({"metadata": {"finalizers": null}})).await;
        }
        assert_eq!(api.send(&format!("GET {path}/c"), Value::Null).await.code, 404);
        (answer.code, left)
    };
    assert_eq!(delete("", Value::Null).await, (200, Value::Null));
    assert_eq!(delete("", json!({"propagationPolicy": "Background"})).await, (200, Value::Null));
    assert_eq!(delete("", json!({"propagationPolicy": "Foreground"})).await, (202, json!(["foregroundDeletion"])));
    assert_eq!(delete("", json!({"propagationPolicy": "Orphan"})).await, (200, json!(["orphan"])));
    assert_eq!(delete("", json!({"orphanDependents": true})).await, (200, json!(["orphan"])));
    assert_eq!(delete("Job", Value::Null).await, (200, json!(["orphan"])));
    assert_eq!(delete("Job", json!({"propagationPolicy": "Background"})).await, (200, Value::Null));
    let both = json!({"propagationPolicy": "Orphan", "orphanDependents": true});
    assert_eq!(api.send(&format!("DELETE {PATH}/c"), both).await.code, 422);
}

async fn conditions_of_a_delete(api: Api) {
    let mut held = config_map("c", "1");
    held["metadata"]["finalizers"] = json!(["example.com/hold"]);
    let made = api.ok(&format!("POST {PATH}"), held).await;
    let wrong = json!({"preconditions": {"uid": "other"}});
    assert_eq!(api.send(&format!("DELETE {PATH}/c"), wrong).await.code, 409);
    let stale = json!({"preconditions": {"resourceVersion": "1"}});
    assert_eq!(api.send(&format!("DELETE {PATH}/c"), stale).await.code, 409);
    let right = json!({"preconditions": {
        "uid": made["metadata"]["uid"], "resourceVersion": version(&made).to_string()}});
    let marked = api.ok(&format!("DELETE {PATH}/c"), right).await;
    assert!(marked["metadata"]["deletionTimestamp"].is_string());
    // Deleting again changes nothing, and nobody may hold it longer.
    let again = api.ok(&format!("DELETE {PATH}/c"), Value::Null).await;
    assert_eq!(version(&again), version(&marked));
    let more = json!({"metadata": {"finalizers": ["example.com/hold", "example.com/more"]}});
    assert_eq!(api.send(&format!("PATCH {PATH}/c"), more).await.code, 422);
    let gone = api.ok(&format!("PATCH {PATH}/c"), json!({"metadata": {"finalizers": null}})).await;
    assert!(version(&gone) > version(&marked));
    assert_eq!(api.send(&format!("GET {PATH}/c"), Value::Null).await.code, 404);
}

async fn grace_only_shortens(api: Api) {
    let pods = "/api/v1/namespaces/default/pods";
    let made = api.ok(&format!("POST {pods}"), pod("p")).await;
    assert_eq!(made["metadata"]["generation"], 1);
    let delete = async |seconds: i64| {
        let answer = api.ok(&format!("DELETE {pods}/p"), json!({"gracePeriodSeconds": seconds})).await;
        (answer["metadata"]["deletionGracePeriodSeconds"].clone(), answer["metadata"]["generation"].clone())
    };
    assert_eq!(delete(60).await, (json!(60), json!(2)));
    assert_eq!(delete(90).await, (json!(60), json!(2)));
    let silent = api.ok(&format!("DELETE {pods}/p"), Value::Null).await;
    assert_eq!(silent["metadata"]["deletionGracePeriodSeconds"], 60);
    assert_eq!(delete(10).await, (json!(10), json!(2)));
    delete(0).await;
    assert_eq!(api.send(&format!("GET {pods}/p"), Value::Null).await.code, 404);
}

async fn collections(api: Api) {
    for index in 0..40 {
        api.ok(&format!("POST {PATH}"), config_map(&format!("c{index}"), &(index % 2).to_string())).await;
    }
    let deleted = api.ok(&format!("DELETE {PATH}?labelSelector=value%3D1"), Value::Null).await;
    assert_eq!((&deleted["kind"], deleted["items"].as_array().unwrap().len()), (&json!("ConfigMapList"), 20));
    let left = api.get(&format!("{PATH}?labelSelector=value")).await;
    assert_eq!(left["items"].as_array().unwrap().len(), 20);
    assert_eq!(api.send("DELETE /api/v1/configmaps", Value::Null).await.code, 405);
}

async fn evictions(api: Api) {
    let pods = "/api/v1/namespaces/default/pods";
    for name in ["p", "q"] {
        api.ok(&format!("POST {pods}"), pod(name)).await;
        let running = json!({"status": {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}});
        api.ok(&format!("PATCH {pods}/{name}/status"), running).await;
    }
    let budgets = "/apis/policy/v1/namespaces/default/poddisruptionbudgets";
    let budget =
        json!({"metadata": {"name": "b"}, "spec": {"minAvailable": 1, "selector": {"matchLabels": {"app": "a"}}}});
    api.ok(&format!("POST {budgets}"), budget).await;
    let evict = async |name: &str, dry: &str| {
        let eviction = json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name}});
        api.send(&format!("POST {pods}/{name}/eviction?{dry}"), eviction).await
    };
    let unseen = evict("p", "").await;
    assert_eq!((unseen.code, unseen.headers["retry-after"].to_str().unwrap()), (429, "10"));
    let status = json!({"status": {"observedGeneration": 1, "disruptionsAllowed": 1, "currentHealthy": 2, "desiredHealthy": 1,
        "expectedPods": 2}});
    api.ok(&format!("PATCH {budgets}/b/status"), status).await;
    assert_eq!(evict("p", "dryRun=All").await.code, 201);
    let done = evict("p", "").await;
    assert_eq!(done.code, 201, "{}", done.text);
    let evicted = api.get(&format!("{pods}/p")).await;
    let target = evicted["status"]["conditions"].as_array().unwrap().iter().find(|c| c["type"] == "DisruptionTarget");
    assert_eq!(target.unwrap()["reason"], "EvictionByEvictionAPI");
    assert!(evicted["metadata"]["deletionTimestamp"].is_string());
    let budget = api.get(&format!("{budgets}/b")).await;
    assert_eq!(budget["status"]["disruptionsAllowed"], 0);
    assert!(budget["status"]["disruptedPods"]["p"].is_string());
    let refused = evict("q", "").await;
    assert_eq!((refused.code, &refused.body["details"]["causes"][0]["reason"]), (429, &json!("DisruptionBudget")));
}
