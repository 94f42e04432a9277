//! What an audited request leaves in a log, and what a webhook is sent.

use std::path::PathBuf;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use apiserver::Caller;
use apiserver::audit::{
    Auditor, Batch, Delivery, Format, LogOptions, Mode, Options, Policy, Rotation, Truncation, WebhookOptions,
};
use apiserver::http::inprocess::InProcess;
use apiserver::request::UserInfo;
use bytes::Bytes;
use http::Request;
use http_body_util::{BodyExt as _, Full};
use serde_json::{Value, json};
use tower::Service as _;

use crate::harness::{Api, config_map, over_both};
use crate::hookserver::HookServer;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

over_both!(
    objects_are_told_by_level,
    streams_have_a_beginning_and_an_end,
    what_is_forbidden_is_told_with_its_reason,
    patches_deletes_and_subresources,
);

/// A log of one test.
struct Log {
    path: PathBuf,
}

impl Log {
    fn new() -> Self {
        static COUNT: AtomicUsize = AtomicUsize::new(0);
        let count = COUNT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("coxswain-audit-api-{}-{count}.log", std::process::id()));
        let _ = std::fs::remove_file(&path);
        Log { path }
    }

    fn options(&self) -> LogOptions {
        LogOptions {
            path: self.path.to_str().unwrap().to_owned(),
            format: Format::Json,
            rotation: Rotation { max_megabytes: 100, max_age_days: 0, max_backups: 0, compress: false },
            delivery: delivery(Mode::Blocking),
        }
    }

    fn events(&self) -> Vec<Value> {
        let text = std::fs::read_to_string(&self.path).unwrap();
        text.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
    }

    /// The events of the request with this `Audit-ID`, once the stage has come.
    async fn of(&self, id: &str, stage: &str) -> Vec<Value> {
        for _ in 0..400 {
            let events: Vec<Value> = self.events().into_iter().filter(|event| event["auditID"] == id).collect();
            if events.iter().any(|event| event["stage"] == stage) {
                return events;
            }
            tokio::time::sleep(Duration::from_millis(10)).await;
        }
        panic!("no {stage} of {id}: {:?}", self.events());
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

fn delivery(mode: Mode) -> Delivery {
    let batch =
        Batch { buffer_size: 100, max_size: 2, max_wait: Duration::from_millis(200), throttle: Some((100.0, 15)) };
    Delivery { mode, batch, truncation: None }
}

fn policy(rules: &str) -> Policy {
    Policy::parse(format!("apiVersion: audit.k8s.io/v1\nkind: Policy\n{rules}").as_bytes()).unwrap()
}

/// Audits `api` into a log.
fn audited(api: &Api, rules: &str) -> Log {
    let log = Log::new();
    let options = Options { log: Some(log.options()), webhook: None };
    set(api, rules, &options);
    log
}

fn set(api: &Api, rules: &str, options: &Options) {
    assert!(api.server.audit.set(Auditor::new(policy(rules), options).unwrap()).is_ok());
}

fn stages(events: &[Value]) -> Vec<&str> {
    events.iter().map(|event| event["stage"].as_str().unwrap()).collect()
}

const ALL: &str = "rules: [{level: RequestResponse}]";

async fn objects_are_told_by_level(api: Api) {
    let rules = "omitManagedFields: true\nrules:\n- {level: RequestResponse, verbs: [create]}\n\
                 - {level: Request, verbs: [update], omitManagedFields: false}\n- {level: Metadata, verbs: [list]}\n\
                 - {level: RequestResponse, verbs: [get], omitManagedFields: false, omitStages: [RequestReceived]}\n";
    let log = audited(&api, rules);
    let headers = [("content-type", "application/json"), ("audit-id", "make"), ("user-agent", "kubectl/v1")];
    let made = api.with(&format!("POST {MAPS}?fieldManager=m"), &headers, config_map("a", "1")).await;
    assert_eq!((made.code, &made.headers["audit-id"]), (201, &http::HeaderValue::from_static("make")));
    let events = log.of("make", "ResponseComplete").await;
    assert_eq!(stages(&events), ["RequestReceived", "ResponseComplete"]);
    let (first, last) = (&events[0], &events[1]);
    assert_eq!((first["kind"].as_str(), first["apiVersion"].as_str()), (Some("Event"), Some("audit.k8s.io/v1")));
    assert_eq!(first["requestReceivedTimestamp"], first["stageTimestamp"]);
    assert_eq!(first["requestReceivedTimestamp"].as_str().unwrap().len(), "2023-11-14T22:13:20.000001Z".len());
    assert_eq!((first.get("requestObject"), first.get("responseStatus"), first.get("annotations")), (None, None, None));
    assert_eq!((&last["level"], &last["verb"]), (&json!("RequestResponse"), &json!("create")));
    assert_eq!(last["requestURI"], format!("{MAPS}?fieldManager=m"));
    assert_eq!(last["user"]["username"], "tester");
    assert_eq!(last["user"]["groups"], json!(["system:masters", "system:authenticated"]));
    assert_eq!(last["userAgent"], "kubectl/v1");
    let reference = json!({"resource": "configmaps", "namespace": "default", "name": "a", "apiVersion": "v1"});
    assert_eq!(last["objectRef"], reference);
    assert_eq!(last["responseStatus"], json!({"metadata": {}, "code": 201}));
    assert_eq!(last["requestObject"]["data"], json!({"key": "1"}));
    assert_eq!(last["responseObject"]["metadata"]["uid"], made.body["metadata"]["uid"]);
    assert_eq!(last["responseObject"]["metadata"].get("managedFields"), None);
    assert!(made.body["metadata"].get("managedFields").is_some());
    let allowed = json!({"authorization.k8s.io/decision": "allow", "authorization.k8s.io/reason": ""});
    assert_eq!(last["annotations"], allowed);

    let headers = [("content-type", "application/json"), ("audit-id", "put")];
    let mut next = made.body.clone();
    next["data"] = json!({"key": "2"});
    assert_eq!(api.with(&format!("PUT {MAPS}/a"), &headers, next).await.code, 200);
    let last = log.of("put", "ResponseComplete").await.pop().unwrap();
    assert_eq!(last["objectRef"]["uid"], made.body["metadata"]["uid"]);
    assert_eq!(last["objectRef"]["resourceVersion"], made.body["metadata"]["resourceVersion"]);
    assert!(last["requestObject"]["metadata"].get("managedFields").is_some());
    assert_eq!(last.get("responseObject"), None);

    assert_eq!(api.with(&format!("GET {MAPS}"), &[("audit-id", "list")], Value::Null).await.code, 200);
    let events = log.of("list", "ResponseComplete").await;
    assert_eq!(stages(&events), ["RequestReceived", "ResponseComplete"]);
    assert_eq!((events[1].get("responseObject"), &events[1]["responseStatus"]["code"]), (None, &json!(200)));

    let got =
        api.with(&format!("GET {MAPS}/a"), &[("audit-id", "get"), ("accept", "application/yaml")], Value::Null).await;
    let events = log.of("get", "ResponseComplete").await;
    assert_eq!(stages(&events), ["ResponseComplete"]);
    assert!(got.text.starts_with("apiVersion: v1"), "{}", got.text);
    assert_eq!(events[0]["responseObject"]["data"], json!({"key": "2"}));
    assert!(events[0]["responseObject"]["metadata"].get("managedFields").is_some());

    // This one and that of the metrics count, too.
    assert_eq!(api.with("GET /version", &[("audit-id", "version")], Value::Null).await.code, 200);
    assert!(log.events().iter().all(|event| event["verb"] != "list" || event["level"] == "Metadata"));
    let text = api.with("GET /metrics", &[], Value::Null).await.text;
    for line in [
        "apiserver_audit_event_total 8",
        "apiserver_audit_level_total{level=\"RequestResponse\"} 4",
        "apiserver_audit_level_total{level=\"Request\"} 1",
        "apiserver_audit_level_total{level=\"Metadata\"} 1",
        "apiserver_audit_requests_rejected_total 0",
    ] {
        assert!(text.lines().any(|other| other == line), "{line}\n{text}");
    }
}

async fn streams_have_a_beginning_and_an_end(api: Api) {
    let log = audited(&api, ALL);
    let watch = format!("GET {MAPS}?watch=1");
    let mut response = api.open(&watch, &[("audit-id", "watch")], String::new()).await;
    let events = log.of("watch", "ResponseStarted").await;
    assert_eq!(stages(&events), ["RequestReceived", "ResponseStarted"]);
    assert_eq!(events[1]["responseStatus"], json!({"metadata": {}, "code": 200}));
    api.ok(&format!("POST {MAPS}"), config_map("a", "1")).await;
    assert!(response.body_mut().frame().await.is_some());
    assert_eq!(log.of("watch", "ResponseStarted").await.len(), 2);
    drop(response);
    let last = log.of("watch", "ResponseComplete").await.pop().unwrap();
    assert_eq!((&last["verb"], last.get("responseObject")), (&json!("watch"), None));
    assert_eq!(last["responseStatus"], json!({"metadata": {}, "code": 200}));

    let line = "GET /api/v1/namespaces/default/pods/x/log";
    assert_eq!(api.with(line, &[("audit-id", "log")], Value::Null).await.code, 404);
    let events = log.of("log", "ResponseComplete").await;
    assert_eq!(stages(&events), ["RequestReceived", "ResponseStarted", "ResponseComplete"]);
    assert_eq!(events[1]["responseStatus"]["reason"], "NotFound");
    assert_eq!(events[2]["objectRef"]["subresource"], "log");
    let line = "POST /api/v1/namespaces/default/pods/x/exec?command=ls";
    assert_eq!(api.with(line, &[("audit-id", "exec")], Value::Null).await.code, 404);
    let events = log.of("exec", "ResponseComplete").await;
    assert_eq!((events.len(), &events[2]["verb"]), (3, &json!("create")));
}

async fn what_is_forbidden_is_told_with_its_reason(api: Api) {
    let log = audited(&api, ALL);
    let headers = [
        ("audit-id", "as"),
        ("impersonate-user", "ann"),
        ("impersonate-extra-scopes", "a"),
        ("x-forwarded-for", "10.1.1.1, 10.2.2.2"),
    ];
    assert_eq!(api.with("GET /api/v1/namespaces/default/secrets/s", &headers, Value::Null).await.code, 403);
    let last = log.of("as", "ResponseComplete").await.pop().unwrap();
    assert_eq!(last["user"]["username"], "tester");
    let other = json!({"username": "ann", "groups": ["system:authenticated"], "extra": {"scopes": ["a"]}});
    assert_eq!(last["impersonatedUser"], other);
    assert_eq!(last["sourceIPs"].as_array().unwrap()[..2], ["10.1.1.1", "10.2.2.2"]);
    let status = &last["responseStatus"];
    assert_eq!(
        (&status["code"], &status["reason"], &status["status"]),
        (&json!(403), &json!("Forbidden"), &json!("Failure"))
    );
    assert_eq!(status["details"], json!({"name": "s", "kind": "secrets"}));
    assert_eq!(last["responseObject"]["message"], status["message"]);
    assert_eq!(last["annotations"]["authorization.k8s.io/decision"], "forbid");
}

async fn patches_deletes_and_subresources(api: Api) {
    let log = audited(&api, "rules: [{level: Request}]");
    api.ok(&format!("POST {MAPS}"), config_map("a", "1")).await;
    let send = async |line: &str, media: &str, id: &str, body: Value| {
        let answer = api.with(line, &[("content-type", media), ("audit-id", id)], body).await;
        assert!(answer.code < 300, "{line}: {}", answer.text);
        log.of(id, "ResponseComplete").await.pop().unwrap()
    };
    let operations = json!([{"op": "replace", "path": "/data/key", "value": "2"}]);
    let line = format!("PATCH {MAPS}/a");
    let event = send(&line, "application/json-patch+json", "json", operations.clone()).await;
    assert_eq!((&event["verb"], &event["requestObject"]), (&json!("patch"), &operations));
    let merge = json!({"data": {"key": "3"}});
    let event = send(&line, "application/merge-patch+json", "merge", merge.clone()).await;
    assert_eq!(event["requestObject"], merge);
    let applied = json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "a"}, "data": {"other": "1"}});
    let line = format!("PATCH {MAPS}/a?fieldManager=m");
    let event = send(&line, "application/apply-patch+yaml", "apply", applied.clone()).await;
    assert_eq!(event["requestObject"], applied);
    let options = json!({"kind": "DeleteOptions", "apiVersion": "v1", "propagationPolicy": "Background"});
    let event = send(&format!("DELETE {MAPS}/a"), "application/json", "delete", options.clone()).await;
    assert_eq!((&event["requestObject"], &event["responseStatus"]["status"]), (&options, &json!("Success")));
    assert_eq!(event["responseStatus"]["details"]["kind"], "configmaps");
    let event = send(&format!("DELETE {MAPS}"), "application/json", "all", Value::Null).await;
    assert_eq!((&event["verb"], event.get("requestObject")), (&json!("deletecollection"), None));
    let token = "/api/v1/namespaces/default/serviceaccounts/default/token";
    let event =
        send(&format!("POST {token}"), "application/json", "token", json!({"spec": {"audiences": ["x"]}})).await;
    assert_eq!(event["objectRef"]["subresource"], "token");
    let issued = event["annotations"]["authentication.kubernetes.io/issued-credential-id"].as_str().unwrap();
    assert!(issued.starts_with("JTI="), "{issued}");
    assert_eq!(event["requestObject"]["spec"]["audiences"], json!(["x"]));
    assert_eq!(event.get("responseObject"), None);
}

#[tokio::test]
async fn whoever_is_nobody_makes_one_event() {
    let api = Api::in_process().await;
    let log = audited(&api, "rules: [{level: Metadata}]");
    let request = Request::get("/api/v1/pods").header("authorization", "Bearer nobody").header("audit-id", "who");
    let request = request.body(Full::new(Bytes::new())).unwrap();
    let address = Some("192.0.2.7:1234".parse().unwrap());
    let response = api.server.handle(request, Caller::Remote { peer: None, address }).await;
    assert_eq!(response.status(), 401);
    let events = log.of("who", "ResponseStarted").await;
    assert_eq!(stages(&events), ["ResponseStarted"]);
    assert_eq!((&events[0]["user"], &events[0]["sourceIPs"]), (&json!({}), &json!(["192.0.2.7"])));
    assert_eq!(events[0]["responseStatus"]["reason"], "Unauthorized");
    assert_eq!(events[0]["responseStatus"]["code"], 401);
}

#[tokio::test]
async fn a_panic_is_told_as_one() {
    let api = Api::in_process().await;
    let log = audited(&api, "rules: [{level: Metadata}]");
    type Chunk = Result<http_body::Frame<Bytes>, apiserver::http::BoxError>;
    let broken = futures::stream::poll_fn(|_| -> std::task::Poll<Option<Chunk>> { panic!("a body, on purpose") });
    let request = Request::post(MAPS).header("content-type", "application/json").header("audit-id", "panic");
    let request = request.body(http_body_util::StreamBody::new(broken)).unwrap();
    let user = UserInfo::new("tester", &["system:masters"]);
    let response = api.server.handle(request, Caller::Known(std::sync::Arc::new(user))).await;
    assert_eq!(response.status(), 500);
    let events = log.of("panic", "Panic").await;
    assert_eq!(stages(&events), ["RequestReceived", "Panic"]);
    let status = &events[1]["responseStatus"];
    assert_eq!((&status["code"], &status["reason"]), (&json!(500), &json!("InternalError")));
}

#[tokio::test]
async fn a_strict_log_that_cannot_be_written_refuses() {
    let api = Api::in_process().await;
    let log = Log::new();
    let mut options = log.options();
    options.path = "/dev/full".to_owned();
    options.delivery.mode = Mode::BlockingStrict;
    set(&api, "rules: [{level: Metadata, verbs: [get]}]", &Options { log: Some(options), webhook: None });
    let answer = api.with(&format!("GET {MAPS}/a"), &[], Value::Null).await;
    assert_eq!(answer.code, 500);
    assert_eq!(answer.text, format!("Internal Server Error: \"{MAPS}/a\": failed to store audit event\n"));
    assert_eq!(api.with(&format!("GET {MAPS}"), &[], Value::Null).await.code, 200);
    let mut user = InProcess::new(api.server.clone(), UserInfo::new("tester", &["system:masters"]));
    let request = Request::post("/metrics").body(Full::new(Bytes::new())).unwrap();
    assert_ne!(user.call(request).await.unwrap().status(), 500);
    let auditor = api.server.audit.get().unwrap();
    auditor.shutdown().await;
}

#[tokio::test]
async fn large_events_lose_their_objects() {
    let api = Api::in_process().await;
    let log = Log::new();
    let mut options = log.options();
    options.delivery.truncation = Some(Truncation { max_event_size: 4096 });
    set(&api, ALL, &Options { log: Some(options), webhook: None });
    let headers = [("content-type", "application/json"), ("audit-id", "large")];
    let answer = api.with(&format!("POST {MAPS}"), &headers, config_map("a", &"x".repeat(60))).await;
    assert_eq!(answer.code, 201);
    let mut large = config_map("b", "1");
    large["data"]["key"] = json!("x".repeat(5000));
    assert_eq!(api.with(&format!("POST {MAPS}"), &headers, large).await.code, 201);
    let events: Vec<Value> = log.events().into_iter().filter(|event| event["stage"] == "ResponseComplete").collect();
    assert!(events[0].get("requestObject").is_some());
    assert_eq!((events[1].get("requestObject"), events[1].get("responseObject")), (None, None));
    assert_eq!(events[1]["annotations"]["audit.k8s.io/truncated"], "true");
}

#[tokio::test]
async fn a_webhook_is_sent_batches_and_asked_again() {
    let api = Api::in_process().await;
    let tries = AtomicUsize::new(0);
    let hook = HookServer::start(&["localhost"], move |_, _| match tries.fetch_add(1, Ordering::Relaxed) {
        0 => json!({"httpCode": 403}),
        _ => json!({}),
    });
    let hook = hook.await;
    let file = std::env::temp_dir().join(format!("coxswain-audit-hook-{}.yaml", std::process::id()));
    let ca = hook.url("/")["caBundle"].clone();
    let config = json!({
        "current-context": "hook", "contexts": [{"name": "hook", "context": {"cluster": "hook", "user": ""}}],
        "clusters": [{"name": "hook", "cluster": {
            "server": format!("https://localhost:{}/audit", hook.port), "certificate-authority-data": ca,
        }}],
    });
    std::fs::write(&file, config.to_string()).unwrap();
    let initial_backoff = Duration::from_millis(20);
    let options = WebhookOptions { config_file: file.clone(), initial_backoff, delivery: delivery(Mode::Batch) };
    set(
        &api,
        "rules: [{level: Metadata, omitStages: [RequestReceived]}]",
        &Options { log: None, webhook: Some(options) },
    );
    std::fs::remove_file(&file).unwrap();
    for id in ["one", "two", "three"] {
        api.with(&format!("GET {MAPS}/a"), &[("audit-id", id)], Value::Null).await;
    }
    // Two fill a batch, which is refused once; the third waits, and the shutdown for it.
    api.server.audit.get().unwrap().shutdown().await;
    let asked = hook.asked.lock().unwrap().clone();
    assert_eq!(asked.len(), 3, "{asked:?}");
    assert!(asked.iter().all(|(path, body)| path == "/audit?timeout=30s" && body["kind"] == "EventList"), "{asked:?}");
    let ids = |body: &Value| -> Vec<String> {
        body["items"].as_array().unwrap().iter().map(|event| event["auditID"].as_str().unwrap().to_owned()).collect()
    };
    let mut batches: Vec<Vec<String>> = asked.iter().map(|(_, body)| ids(body)).collect();
    batches.sort_by_key(|batch| std::cmp::Reverse(batch.len()));
    assert_eq!(batches[0], ["one", "two"]);
    let of = |id: &str| batches.iter().flatten().filter(|other| *other == id).count();
    assert_eq!((of("one") + of("three"), of("one") == of("two")), (3, true), "one of the two was refused: {batches:?}");
}

#[tokio::test]
async fn admission_leaves_its_annotations() {
    let api = Api::in_process().await;
    let log = audited(&api, "rules: [{level: Request, verbs: [create, update], omitStages: [RequestReceived]}]");
    let hook = HookServer::start(&["localhost"], |path, _| match path.split('?').next().unwrap() {
        "/break" => json!({"httpCode": 500}),
        "/mutate" => {
            let mut answer = crate::hookserver::patch(json!([{"op": "add", "path": "/data/by", "value": "hook"}]));
            answer["response"]["auditAnnotations"] = json!({"why": "because"});
            answer
        }
        _ => crate::hookserver::allow(),
    });
    let hook = hook.await;
    let webhook = |name: &str, path: &str| {
        json!({
            "name": name, "clientConfig": hook.url(path), "sideEffects": "None", "admissionReviewVersions": ["v1"],
            "failurePolicy": "Ignore",
            "rules": [{"apiGroups": [""], "apiVersions": ["v1"], "operations": ["CREATE"], "resources": ["configmaps"]}],
        })
    };
    let hooks = "/apis/admissionregistration.k8s.io/v1";
    let mutating = json!({
        "metadata": {"name": "conf"}, "webhooks": [webhook("m.example.com", "/mutate"), webhook("b.example.com", "/break")],
    });
    api.ok(&format!("POST {hooks}/mutatingwebhookconfigurations"), mutating).await;
    let validating = json!({"metadata": {"name": "v"}, "webhooks": [webhook("v.example.com", "/break")]});
    api.ok(&format!("POST {hooks}/validatingwebhookconfigurations"), validating).await;
    let headers = [("content-type", "application/json"), ("audit-id", "hooked")];
    assert_eq!(api.with(&format!("POST {MAPS}"), &headers, config_map("a", "1")).await.code, 201);
    let event = log.of("hooked", "ResponseComplete").await.pop().unwrap();
    let expected = json!({
        "authorization.k8s.io/decision": "allow",
        "authorization.k8s.io/reason": "",
        "m.example.com/why": "because",
        "mutation.webhook.admission.k8s.io/round_0_index_0":
            "{\"configuration\":\"conf\",\"webhook\":\"m.example.com\",\"mutated\":true}",
        "patch.webhook.admission.k8s.io/round_0_index_0":
            "{\"configuration\":\"conf\",\"webhook\":\"m.example.com\",\
             \"patch\":[{\"op\":\"add\",\"path\":\"/data/by\",\"value\":\"hook\"}],\"patchType\":\"JSONPatch\"}",
        "mutation.webhook.admission.k8s.io/round_0_index_1":
            "{\"configuration\":\"conf\",\"webhook\":\"b.example.com\",\"mutated\":false}",
        "failed-open.mutation.webhook.admission.k8s.io/round_0_index_1": "b.example.com",
        "failed-open.validating.webhook.admission.k8s.io/round_0_index_0": "v.example.com",
    });
    assert_eq!(event["annotations"], expected);

    let matched = json!({"resourceRules": [
        {"operations": ["UPDATE"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["configmaps"]}]});
    let validations = json!([{"expression": "false", "message": "never"}, {"expression": "object.data.key != '2'"}]);
    let notes = json!([{"key": "who", "valueExpression": "'by ' + object.metadata.name"}]);
    let spec = json!({"matchConstraints": matched, "validations": validations, "auditAnnotations": notes});
    let policy = json!({"metadata": {"name": "p"}, "spec": spec});
    api.ok(&format!("POST {hooks}/validatingadmissionpolicies"), policy).await;
    let binding = json!({"metadata": {"name": "p-b"}, "spec": {"policyName": "p", "validationActions": ["Audit"]}});
    api.ok(&format!("POST {hooks}/validatingadmissionpolicybindings"), binding).await;
    let headers = [("content-type", "application/json"), ("audit-id", "judged")];
    assert_eq!(api.with(&format!("PUT {MAPS}/a"), &headers, config_map("a", "2")).await.code, 200);
    let event = log.of("judged", "ResponseComplete").await.pop().unwrap();
    assert_eq!(event["annotations"]["p/who"], "by a");
    let failure = |index: usize, message: &str| {
        format!(
            "{{\"message\":\"{message}\",\"policy\":\"p\",\"binding\":\"p-b\",\"expressionIndex\":{index},\
             \"validationActions\":[\"Audit\"]}}"
        )
    };
    let failures = format!("[{},{}]", failure(0, "never"), failure(1, "failed expression: object.data.key != '2'"));
    assert_eq!(event["annotations"]["validation.policy.admission.k8s.io/validation_failure"], failures);

    let labels =
        json!({"pod-security.kubernetes.io/enforce": "baseline", "pod-security.kubernetes.io/audit": "restricted"});
    api.ok("POST /api/v1/namespaces", json!({"metadata": {"name": "guarded", "labels": labels}})).await;
    api.ok("POST /api/v1/namespaces/guarded/serviceaccounts", json!({"metadata": {"name": "default"}})).await;
    let headers = [("content-type", "application/json"), ("audit-id", "pod")];
    let pod = json!({"metadata": {"name": "p"}, "spec": {"containers": [{"name": "c", "image": "i"}]}});
    assert_eq!(api.with("POST /api/v1/namespaces/guarded/pods", &headers, pod).await.code, 201);
    let event = log.of("pod", "ResponseComplete").await.pop().unwrap();
    assert_eq!(event["annotations"]["pod-security.kubernetes.io/enforce-policy"], "baseline:latest");
    let violations = event["annotations"]["pod-security.kubernetes.io/audit-violations"].as_str().unwrap();
    assert!(violations.starts_with("would violate PodSecurity \"restricted:latest\": "), "{violations}");
}
