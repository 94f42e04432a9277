//! Priority and fairness as clients meet it, modelled on upstream's integration tests of flow control.

use std::sync::Arc;
use std::time::Duration;

use apiserver::http::inprocess::InProcess;
use apiserver::request::UserInfo;
use apiserver::{ApiServer, Limits};
use http::{HeaderMap, Request};
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tower::Service as _;

use crate::harness::{self, Api};

const FLOWCONTROL: &str = "/apis/flowcontrol.apiserver.k8s.io/v1";

/// A server with all the objects of a cluster, whose limits are `limits`.
async fn cluster(limits: Limits) -> Api {
    let api = Api::of(harness::server_with(limits).await);
    harness::bootstrap(&api.server).await;
    api
}

fn as_user(server: &ApiServer, name: &str) -> InProcess {
    InProcess::new(server.clone(), UserInfo::new(name, &[]))
}

async fn call(client: &InProcess, method: &str, path: &str, body: Value) -> (u16, HeaderMap, String) {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let request = Request::builder().method(method).uri(path).header("content-type", "application/json");
    let response = client.clone().call(request.body(Full::from(text)).unwrap()).await.unwrap();
    let (head, body) = response.into_parts();
    let bytes = body.collect().await.unwrap().to_bytes();
    (head.status.as_u16(), head.headers, String::from_utf8_lossy(&bytes).into_owned())
}

fn level(name: &str, shares: u32, response: Value) -> Value {
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "PriorityLevelConfiguration", "metadata": {"name": name},
        "spec": {"type": "Limited", "limited": {
            "nominalConcurrencyShares": shares, "lendablePercent": 0, "borrowingLimitPercent": 0, "limitResponse": response,
        }},
    })
}

/// All requests of some users.
fn schema(name: &str, level: &str, precedence: u32, users: &[&str]) -> Value {
    let subjects: Vec<Value> = users.iter().map(|user| json!({"kind": "User", "user": {"name": user}})).collect();
    json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema", "metadata": {"name": name},
        "spec": {
            "priorityLevelConfiguration": {"name": level}, "matchingPrecedence": precedence,
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{
                "subjects": subjects,
                "resourceRules": [{"verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            }],
        },
    })
}

fn queue(length: u32) -> Value {
    json!({"type": "Queue", "queuing": {"queues": 1, "handSize": 1, "queueLengthLimit": length}})
}

async fn condition(api: &Api, schema: &str) -> Value {
    for _ in 0..200 {
        let object = api.get(&format!("{FLOWCONTROL}/flowschemas/{schema}")).await;
        let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
        if let Some(condition) = conditions.into_iter().find(|condition| condition["type"] == "Dangling") {
            return condition;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("{schema} has no condition");
}

/// Until requests of a user are of a schema, by its UID.
async fn until_in_force(server: &ApiServer, user: &str, schema: &Value) {
    for _ in 0..200 {
        let (_, headers, _) = call(&as_user(server, user), "GET", "/version", Value::Null).await;
        if headers["x-kubernetes-pf-flowschema-uid"] == *schema["metadata"]["uid"].as_str().unwrap() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("not in force");
}

/// A level with a schema for some users; both in force.
async fn limited(api: &Api, name: &str, shares: u32, response: Value, users: &[&str]) -> (Value, Value) {
    let level = api.ok(&format!("POST {FLOWCONTROL}/prioritylevelconfigurations"), level(name, shares, response)).await;
    let schema = api.ok(&format!("POST {FLOWCONTROL}/flowschemas"), schema(name, name, 700, users)).await;
    until_in_force(&api.server, users[0], &schema).await;
    (level, schema)
}

/// Requests that take their seats until they are dropped: lists whose answers nobody reads.
struct Held(Vec<http::Response<apiserver::http::Body>>);

async fn hold(server: &ApiServer, user: &str, count: usize) -> Held {
    let mut held = Vec::new();
    for _ in 0..count {
        let request =
            Request::get("/api/v1/namespaces/default/configmaps").body(Full::<bytes::Bytes>::default()).unwrap();
        held.push(as_user(server, user).call(request).await.unwrap());
    }
    Held(held)
}

async fn metric(api: &Api, line: &str) -> Option<f64> {
    let page = api.send("GET /metrics", Value::Null).await.text;
    page.lines().find_map(|known| known.strip_prefix(line)?.trim().parse().ok())
}

#[tokio::test]
async fn answers_tell_the_objects_that_were_applied() {
    let api = cluster(Limits::default()).await;
    let (level, schema) = limited(&api, "mine", 5, queue(50), &["jane"]).await;
    let (code, headers, _) = call(&as_user(&api.server, "jane"), "GET", "/api/v1/pods", Value::Null).await;
    assert_eq!(code, 403, "what is refused has its turn too");
    assert_eq!(headers["x-kubernetes-pf-flowschema-uid"], *schema["metadata"]["uid"].as_str().unwrap());
    assert_eq!(headers["x-kubernetes-pf-prioritylevel-uid"], *level["metadata"]["uid"].as_str().unwrap());
    let exempt = api.get(&format!("{FLOWCONTROL}/flowschemas/exempt")).await;
    let answer = api.send("GET /api/v1/pods", Value::Null).await;
    assert_eq!(answer.headers["x-kubernetes-pf-flowschema-uid"], *exempt["metadata"]["uid"].as_str().unwrap());
}

#[tokio::test]
async fn a_schema_says_whether_its_level_exists() {
    let api = cluster(Limits::default()).await;
    let found = condition(&api, "global-default").await;
    assert_eq!((&found["status"], &found["reason"]), (&json!("False"), &json!("Found")));
    api.ok(&format!("POST {FLOWCONTROL}/flowschemas"), schema("early", "late", 700, &["jane"])).await;
    let dangles = condition(&api, "early").await;
    assert_eq!((&dangles["status"], &dangles["reason"]), (&json!("True"), &json!("NotFound")));
    api.ok(&format!("POST {FLOWCONTROL}/prioritylevelconfigurations"), level("late", 5, json!({"type": "Reject"})))
        .await;
    for _ in 0..200 {
        if condition(&api, "early").await["status"] == "False" {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("still dangling");
}

#[tokio::test]
async fn what_is_too_much_waits_or_is_told_to_come_back() {
    // 24 shares of 269: three seats of 30 are theirs.
    let api =
        cluster(Limits { max_requests_inflight: 20, max_mutating_requests_inflight: 10, ..Limits::default() }).await;
    grant(&api, &["greedy", "humble"]).await;
    let (_, _) = limited(&api, "narrow", 24, queue(1), &["greedy"]).await;
    let held = hold(&api.server, "greedy", 3).await;
    assert!(held.0.iter().all(|response| response.status() == 200));
    // The fourth waits; for the fifth the queue is full.
    let path = "/api/v1/namespaces/default/configmaps";
    let waiting = tokio::spawn({
        let client = as_user(&api.server, "greedy");
        async move { call(&client, "GET", path, Value::Null).await }
    });
    let waits = "apiserver_flowcontrol_current_inqueue_requests{flow_schema=\"narrow\",priority_level=\"narrow\"}";
    while metric(&api, waits).await != Some(1.0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (code, headers, text) = call(&as_user(&api.server, "greedy"), "GET", path, Value::Null).await;
    assert_eq!((code, text.as_str()), (429, "Too many requests, please try again later.\n"));
    assert_eq!(headers["retry-after"], "1");
    assert_eq!(headers["content-type"], "text/plain; charset=utf-8");
    assert!(headers.contains_key("x-kubernetes-pf-flowschema-uid"));
    // Others are served meanwhile, and so is whoever is exempt.
    assert_eq!(call(&as_user(&api.server, "humble"), "GET", path, Value::Null).await.0, 200);
    assert_eq!(api.send(&format!("GET {path}"), Value::Null).await.code, 200);
    let dump =
        api.send("GET /debug/api_priority_and_fairness/dump_requests?includeRequestDetails=1", Value::Null).await;
    let mine: Vec<&str> = dump.text.lines().filter(|line| line.starts_with("narrow,")).collect();
    assert_eq!(mine.len(), 4, "{}", dump.text);
    assert!(mine[0].contains("greedy"), "{}", dump.text);
    drop(held);
    assert_eq!(waiting.await.unwrap().0, 200, "its turn has come");
    let refused = "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"narrow\",priority_level=\"narrow\",reason=\"queue-full\"}";
    assert_eq!(metric(&api, refused).await, Some(1.0));
}

#[tokio::test]
async fn who_waits_too_long_is_told_to_come_back() {
    let api =
        cluster(Limits { max_requests_inflight: 20, max_mutating_requests_inflight: 10, ..Limits::default() }).await;
    grant(&api, &["greedy"]).await;
    limited(&api, "narrow", 24, queue(50), &["greedy"]).await;
    let _held = hold(&api.server, "greedy", 3).await;
    // A quarter of its time it may wait.
    let path = "/api/v1/namespaces/default/configmaps?timeout=400ms";
    let began = std::time::Instant::now();
    let (code, _, _) = call(&as_user(&api.server, "greedy"), "GET", path, Value::Null).await;
    assert_eq!(code, 429);
    assert!((90..350).contains(&began.elapsed().as_millis()), "{:?}", began.elapsed());
    let late = "apiserver_flowcontrol_rejected_requests_total{flow_schema=\"narrow\",priority_level=\"narrow\",reason=\"time-out\"}";
    assert_eq!(metric(&api, late).await, Some(1.0));
}

#[tokio::test]
async fn a_client_that_goes_away_leaves_its_place() {
    let api =
        cluster(Limits { max_requests_inflight: 20, max_mutating_requests_inflight: 10, ..Limits::default() }).await;
    grant(&api, &["greedy"]).await;
    limited(&api, "narrow", 24, queue(50), &["greedy"]).await;
    let held = hold(&api.server, "greedy", 3).await;
    let path = "/api/v1/namespaces/default/configmaps";
    let mut waiting = tokio::task::JoinSet::new();
    for _ in 0..20 {
        let client = as_user(&api.server, "greedy");
        waiting.spawn(async move { call(&client, "GET", path, Value::Null).await });
    }
    let label = "{flow_schema=\"narrow\",priority_level=\"narrow\"}";
    let waits = format!("apiserver_flowcontrol_current_inqueue_requests{label}");
    while metric(&api, &waits).await != Some(20.0) {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    waiting.shutdown().await;
    assert_eq!(metric(&api, &waits).await, Some(0.0));
    drop(held);
    assert_eq!(metric(&api, &format!("apiserver_flowcontrol_current_executing_seats{label}")).await, Some(0.0));
    // All seats are there again.
    let held = hold(&api.server, "greedy", 3).await;
    assert_eq!(held.0.len(), 3);
}

#[tokio::test]
async fn a_level_that_rejects_does_not_queue() {
    let api =
        cluster(Limits { max_requests_inflight: 20, max_mutating_requests_inflight: 10, ..Limits::default() }).await;
    grant(&api, &["greedy"]).await;
    limited(&api, "narrow", 24, json!({"type": "Reject"}), &["greedy"]).await;
    let _held = hold(&api.server, "greedy", 3).await;
    let (code, _, _) = call(&as_user(&api.server, "greedy"), "GET", "/version", Value::Null).await;
    assert_eq!(code, 429);
}

#[tokio::test]
async fn watches_take_a_seat_only_to_begin() {
    let api =
        cluster(Limits { max_requests_inflight: 20, max_mutating_requests_inflight: 10, ..Limits::default() }).await;
    grant(&api, &["greedy"]).await;
    limited(&api, "narrow", 24, json!({"type": "Reject"}), &["greedy"]).await;
    let mut open = Vec::new();
    for _ in 0..10 {
        let request =
            Request::get("/api/v1/namespaces/default/configmaps?watch=1").body(Full::<bytes::Bytes>::default());
        let response = as_user(&api.server, "greedy").call(request.unwrap()).await.unwrap();
        assert_eq!(response.status(), 200);
        open.push(response);
    }
}

#[tokio::test]
async fn without_it_requests_are_bounded_by_kind() {
    let limits = Limits {
        max_requests_inflight: 0,
        max_mutating_requests_inflight: 1,
        enable_priority_and_fairness: false,
        ..Limits::default()
    };
    let api = Api::of(harness::server_with(limits).await);
    let answer = api.send("GET /api/v1/pods", Value::Null).await;
    assert_eq!(answer.code, 200);
    assert!(!answer.headers.contains_key("x-kubernetes-pf-flowschema-uid"));
    assert_eq!(api.send("GET /debug/api_priority_and_fairness/dump_queues", Value::Null).await.code, 404);
}

#[tokio::test]
async fn what_every_cluster_has_is_put_back() {
    let api = cluster(Limits::default()).await;
    condition(&api, "probes").await;
    let old = json!({
        "apiVersion": "flowcontrol.apiserver.k8s.io/v1", "kind": "FlowSchema",
        "metadata": {"name": "old", "annotations": {"apf.kubernetes.io/autoupdate-spec": "true"}},
        "spec": schema("old", "system", 700, &["nobody"])["spec"],
    });
    api.ok(&format!("POST {FLOWCONTROL}/flowschemas"), old).await;
    for _ in 0..200 {
        if api.send(&format!("GET {FLOWCONTROL}/flowschemas/old"), Value::Null).await.code == 404 {
            return;
        }
        tokio::time::sleep(Duration::from_millis(20)).await;
    }
    panic!("it is upstream's no more");
}

/// Lets users read everything.
async fn grant(api: &Api, users: &[&str]) {
    let subjects: Vec<Value> = users
        .iter()
        .map(|user| json!({"kind": "User", "apiGroup": "rbac.authorization.k8s.io", "name": user}))
        .collect();
    let binding = json!({
        "apiVersion": "rbac.authorization.k8s.io/v1", "kind": "ClusterRoleBinding", "metadata": {"name": "all"},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": "cluster-admin"},
        "subjects": subjects,
    });
    api.ok("POST /apis/rbac.authorization.k8s.io/v1/clusterrolebindings", binding).await;
}

#[tokio::test]
async fn many_users_at_once_all_get_through() {
    let api =
        cluster(Limits { max_requests_inflight: 20, max_mutating_requests_inflight: 10, ..Limits::default() }).await;
    grant(&api, &["a", "b", "c"]).await;
    let server = Arc::new(api.server.clone());
    let mut all = tokio::task::JoinSet::new();
    for n in 0..60 {
        let client = as_user(&server, ["a", "b", "c"][n % 3]);
        all.spawn(async move {
            for _ in 0..10 {
                let (code, _, text) = call(&client, "GET", "/api/v1/namespaces/default", Value::Null).await;
                assert_eq!(code, 200, "{text}");
            }
        });
    }
    while let Some(done) = all.join_next().await {
        done.unwrap();
    }
    let page = api.send("GET /debug/api_priority_and_fairness/dump_priority_levels", Value::Null).await.text;
    let row = page.lines().find(|line| line.starts_with("global-default,")).unwrap();
    let cells: Vec<&str> = row.split(',').map(str::trim).collect();
    assert_eq!((cells[2], cells[4], cells[5]), ("true", "0", "0"), "idle, nobody waits, nobody is served: {row}");
}
