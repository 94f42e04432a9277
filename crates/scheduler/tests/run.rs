//! The whole scheduler against a scripted API server: what it asks for and what it writes.
#![allow(clippy::unwrap_used, reason = "a test that cannot go on fails")]

use std::collections::HashMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::time::Duration;

use client::{ClientFactory, Context, Informers};
use futures::FutureExt as _;
use futures::channel::mpsc::{UnboundedSender, unbounded};
use http::{Method, Request, Response};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::{Bytes, Frame};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::mpsc;

type Lines = UnboundedSender<Result<Frame<Bytes>, Infallible>>;

type Answer = UnsyncBoxBody<Bytes, Infallible>;

fn whole(value: &Value) -> Answer {
    Full::new(Bytes::from(value.to_string())).boxed_unsync()
}

fn refusal(code: u16, reason: &str) -> Response<Answer> {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code, "reason": reason, "message": "no",
    });
    Response::builder().status(code).body(whole(&status)).unwrap()
}

/// Answers every watch with what there is, keeps it open for more, and notes every write.
#[derive(Clone)]
struct Server {
    objects: Arc<HashMap<&'static str, Vec<Value>>>,
    watches: Arc<Mutex<HashMap<String, Lines>>>,
    writes: mpsc::UnboundedSender<(String, Value)>,
    refuse_first_binding: Arc<Mutex<bool>>,
}

impl Server {
    fn client(&self) -> kube::Client {
        let server = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let server = server.clone();
            async move { Ok::<_, Infallible>(server.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    async fn answer(&self, request: Request<Body>) -> Response<Answer> {
        let (parts, body) = request.into_parts();
        let path = parts.uri.path().to_owned();
        if parts.method == Method::GET && path.ends_with("/pods/raced") {
            return Response::new(whole(&pod("raced", "1", Some("elsewhere"))));
        }
        if parts.method == Method::GET {
            return self.watch(path, parts.uri.query().unwrap_or_default());
        }
        let bytes = body.collect().await.unwrap().to_bytes();
        let body: Value = serde_json::from_slice(&bytes).unwrap();
        let _ = self.writes.send((format!("{} {path}", parts.method), body.clone()));
        if path.ends_with("/binding") {
            return self.bind();
        }
        if path.ends_with("/pods/raced/status") {
            return refusal(409, "Conflict");
        }
        Response::builder().status(201).body(whole(&body)).unwrap()
    }

    fn bind(&self) -> Response<Answer> {
        let refuse = std::mem::take(&mut *self.refuse_first_binding.lock());
        if refuse {
            return refusal(500, "InternalError");
        }
        let status = json!({"kind": "Status", "apiVersion": "v1", "status": "Success", "code": 201});
        Response::builder().status(201).body(whole(&status)).unwrap()
    }

    fn watch(&self, path: String, query: &str) -> Response<Answer> {
        assert!(query.contains("watch=true") && query.contains("sendInitialEvents=true"), "{path}?{query}");
        let (lines, stream) = unbounded();
        let resource = path.rsplit('/').next().unwrap().to_owned();
        for object in self.objects.get(resource.as_str()).into_iter().flatten() {
            send(&lines, json!({"type": "ADDED", "object": object}));
        }
        let end = json!({"k8s.io/initial-events-end": "true"});
        send(
            &lines,
            json!({"type": "BOOKMARK", "object": {"kind": "X", "apiVersion": "v1", "metadata": {"resourceVersion": "9", "annotations": end}, "spec": {}}}),
        );
        self.watches.lock().insert(resource, lines);
        Response::new(StreamBody::new(stream).boxed_unsync())
    }
}

fn send(lines: &Lines, line: Value) {
    lines.unbounded_send(Ok(Frame::data(Bytes::from(format!("{line}\n"))))).unwrap();
}

impl ClientFactory for Server {
    fn client_as(&self, _: &str, _: &[&str]) -> kube::Client {
        self.client()
    }
}

fn pod(name: &str, cpu: &str, node: Option<&str>) -> Value {
    let mut pod = json!({
        "kind": "Pod", "apiVersion": "v1",
        "metadata": {"name": name, "namespace": "default", "uid": format!("uid-{name}"), "resourceVersion": "5"},
        "spec": {"schedulerName": "default-scheduler", "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]},
    });
    if let Some(node) = node {
        pod["spec"]["nodeName"] = json!(node);
    }
    pod
}

/// Starts the scheduler; returns the server and what is written.
fn start(pods: Vec<Value>, refuse_first_binding: bool) -> (Server, mpsc::UnboundedReceiver<(String, Value)>, Context) {
    let node = json!({
        "kind": "Node", "apiVersion": "v1", "metadata": {"name": "n", "resourceVersion": "1"},
        "status": {"allocatable": {"cpu": "1", "memory": "1Gi", "pods": "10"}},
    });
    let (writes, written) = mpsc::unbounded_channel();
    let server = Server {
        objects: Arc::new(HashMap::from([("nodes", vec![node]), ("pods", pods)])),
        watches: Arc::default(),
        writes,
        refuse_first_binding: Arc::new(Mutex::new(refuse_first_binding)),
    };
    let shutdown = tokio_util::sync::CancellationToken::new();
    let context = Context {
        client: server.client(),
        clients: Arc::new(server.clone()),
        informers: Informers::new(server.client(), shutdown.clone()),
        shutdown,
    };
    tokio::spawn(scheduler::run(context.clone(), scheduler::Config::default()));
    (server, written, context)
}

async fn next(written: &mut mpsc::UnboundedReceiver<(String, Value)>) -> (String, Value) {
    tokio::time::timeout(Duration::from_secs(10), written.recv()).await.expect("something is written").unwrap()
}

async fn next_two(written: &mut mpsc::UnboundedReceiver<(String, Value)>) -> HashMap<String, Value> {
    HashMap::from([next(written).await, next(written).await])
}

#[tokio::test]
async fn a_pod_is_bound_and_told_of() {
    let (_, mut written, context) = start(vec![pod("a", "500m", None)], false);
    let (path, binding) = next(&mut written).await;
    assert_eq!(path, "POST /api/v1/namespaces/default/pods/a/binding");
    assert_eq!(binding["target"], json!({"kind": "Node", "name": "n"}));
    assert_eq!(binding["metadata"]["uid"], "uid-a");
    let (path, event) = next(&mut written).await;
    assert_eq!(path, "POST /api/v1/namespaces/default/events");
    assert_eq!((&event["reason"], &event["type"]), (&json!("Scheduled"), &json!("Normal")));
    assert_eq!(event["message"], "Successfully assigned default/a to n");
    context.shutdown.cancel();
    assert!(written.recv().now_or_never().is_none(), "nothing else is written");
}

#[tokio::test]
async fn a_pod_that_fits_nowhere_is_told_why_and_bound_when_it_fits() {
    let (server, mut written, context) = start(vec![pod("first", "1", Some("n")), pod("a", "1", None)], false);
    let message = "0/1 nodes are available: 1 Insufficient cpu. \
                   preemption: 0/1 nodes are available: 1 No preemption victims found for incoming pod.";
    let both = next_two(&mut written).await;
    assert_eq!(both["POST /api/v1/namespaces/default/events"]["message"], message);
    let condition = &both["PATCH /api/v1/namespaces/default/pods/a/status"]["status"]["conditions"][0];
    assert_eq!(
        [&condition["type"], &condition["status"], &condition["reason"], &condition["message"]],
        ["PodScheduled", "False", "Unschedulable", message]
    );
    let lines = server.watches.lock()["pods"].clone();
    send(&lines, json!({"type": "DELETED", "object": pod("first", "1", Some("n"))}));
    assert_eq!(next(&mut written).await.0, "POST /api/v1/namespaces/default/pods/a/binding");
    context.shutdown.cancel();
}

#[tokio::test]
async fn a_refused_binding_is_tried_again() {
    let (_, mut written, context) = start(vec![pod("a", "1", None)], true);
    assert_eq!(next(&mut written).await.0, "POST /api/v1/namespaces/default/pods/a/binding");
    let both = next_two(&mut written).await;
    let condition = &both["PATCH /api/v1/namespaces/default/pods/a/status"]["status"]["conditions"][0];
    assert_eq!(condition["reason"], "SchedulerError");
    assert_eq!(next(&mut written).await.0, "POST /api/v1/namespaces/default/pods/a/binding");
    context.shutdown.cancel();
}

#[tokio::test]
async fn room_is_made_for_a_more_important_pod() {
    let mut important = pod("important", "1", None);
    important["spec"]["priority"] = json!(10);
    let (_, mut written, context) = start(vec![pod("victim", "1", Some("n")), important], false);
    let both = next_two(&mut written).await;
    let patch = &both["PATCH /api/v1/namespaces/default/pods/important/status"];
    assert_eq!(
        (&patch["status"]["nominatedNodeName"], &patch["metadata"]["resourceVersion"]),
        (&json!("n"), &json!("5"))
    );
    let (path, patch) = next(&mut written).await;
    assert_eq!(path, "PATCH /api/v1/namespaces/default/pods/victim/status");
    let condition = &patch["status"]["conditions"][0];
    assert_eq!([&condition["type"], &condition["reason"]], ["DisruptionTarget", "PreemptionByScheduler"]);
    let (path, options) = next(&mut written).await;
    assert_eq!(path, "DELETE /api/v1/namespaces/default/pods/victim");
    assert_eq!(options["preconditions"]["uid"], "uid-victim");
    context.shutdown.cancel();
}

#[tokio::test]
async fn a_report_that_comes_too_late_is_dropped() {
    let (_, mut written, context) = start(vec![pod("first", "1", Some("n")), pod("raced", "1", None)], false);
    let both = next_two(&mut written).await;
    assert!(both.contains_key("PATCH /api/v1/namespaces/default/pods/raced/status"));
    // The patch was refused, and the pod turned out to be bound by then.
    tokio::time::sleep(Duration::from_millis(300)).await;
    assert!(written.recv().now_or_never().is_none(), "it is not tried again");
    context.shutdown.cancel();
}
