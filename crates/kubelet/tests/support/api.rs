//! A small API server in memory, for a kubelet to talk to: objects as JSON, watches with initial events, status patches that
//! merge conditions by type, graceful deletion of pods. It checks UID preconditions, and nothing else.

use std::collections::BTreeMap;
use std::sync::Arc;

use bytes::Bytes;
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body_util::combinators::UnsyncBoxBody;
use http_body_util::{BodyExt as _, Full, StreamBody};
use hyper::body::Frame;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;

type Body = UnsyncBoxBody<Bytes, std::convert::Infallible>;

struct State {
    /// Resource, namespace, name.
    objects: BTreeMap<(String, String, String), Value>,
    revision: u64,
}

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    changes: broadcast::Sender<(String, Value)>,
}

struct Target {
    resource: String,
    namespace: String,
    name: String,
    subresource: String,
    query: BTreeMap<String, String>,
}

impl Target {
    fn parse(request: &Request<kube::client::Body>) -> Self {
        let mut parts: Vec<&str> = request.uri().path().split('/').filter(|part| !part.is_empty()).collect();
        parts.drain(..if parts[0] == "api" { 2 } else { 3 });
        let namespaced = parts.first() == Some(&"namespaces") && parts.len() > 2;
        let namespace = if namespaced { parts[1].to_owned() } else { String::new() };
        let rest = if namespaced { &parts[2..] } else { &parts[..] };
        let part = |index: usize| rest.get(index).map(|part| (*part).to_owned()).unwrap_or_default();
        let decode = |text: &str| text.replace("%3D", "=").replace("%2C", ",");
        let query = request.uri().query().unwrap_or_default().split('&').filter_map(|pair| pair.split_once('='));
        let query = query.map(|(key, value)| (key.to_owned(), decode(value))).collect();
        Target { resource: part(0), namespace, name: part(1), subresource: part(2), query }
    }

    fn selects(&self, object: &Value) -> bool {
        let selector = self.query.get("fieldSelector").map(String::as_str).unwrap_or_default();
        let fits = |(field, value): (&str, &str)| {
            let pointer = format!("/{}", field.replace('.', "/"));
            object.pointer(&pointer).and_then(Value::as_str) == Some(value)
        };
        let of_namespace = self.namespace.is_empty() || object["metadata"]["namespace"] == self.namespace.as_str();
        of_namespace && selector.split(',').filter_map(|term| term.split_once('=')).all(fits)
    }
}

impl FakeApi {
    pub fn new() -> Self {
        let (changes, _) = broadcast::channel(65536);
        FakeApi { state: Arc::new(Mutex::new(State { objects: BTreeMap::new(), revision: 1 })), changes }
    }

    pub fn client(&self) -> kube::Client {
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<kube::client::Body>| {
            let api = api.clone();
            async move { Ok::<_, std::convert::Infallible>(api.answer(request).await) }
        });
        kube::Client::new(service, "default")
    }

    pub fn get(&self, resource: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        self.state.lock().objects.get(&key).cloned()
    }

    pub fn list(&self, resource: &str) -> Vec<Value> {
        let state = self.state.lock();
        state.objects.iter().filter(|((of, ..), _)| of == resource).map(|(_, object)| object.clone()).collect()
    }

    /// What happens from now on: the resource, and the event as watchers get it.
    pub fn changes(&self) -> broadcast::Receiver<(String, Value)> {
        self.changes.subscribe()
    }

    /// Creates or replaces an object.
    pub fn put(&self, resource: &str, mut object: Value) -> Value {
        let meta = object["metadata"].clone();
        let text = |key: &str| meta[key].as_str().unwrap_or_default().to_owned();
        let key = (resource.to_owned(), text("namespace"), text("name"));
        let mut state = self.state.lock();
        state.revision += 1;
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = format!("uid-{}-{}", text("name"), state.revision).into();
            object["metadata"]["creationTimestamp"] = jiff::Timestamp::now().strftime("%FT%TZ").to_string().into();
        }
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        let known = state.objects.insert(key, object.clone()).is_some();
        let kind = if known { "MODIFIED" } else { "ADDED" };
        let _ = self.changes.send((resource.to_owned(), json!({"type": kind, "object": object})));
        object
    }

    /// As a user deletes a pod: with grace it is marked, without it is gone.
    pub fn delete(&self, resource: &str, namespace: &str, name: &str, grace: i64) -> Option<Value> {
        let mut object = self.get(resource, namespace, name)?;
        if grace > 0 {
            let meta = &mut object["metadata"];
            meta["deletionTimestamp"] = jiff::Timestamp::now().strftime("%FT%TZ").to_string().into();
            meta["deletionGracePeriodSeconds"] = grace.into();
            return Some(self.put(resource, object));
        }
        let key = (resource.to_owned(), namespace.to_owned(), name.to_owned());
        let mut state = self.state.lock();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = state.revision.to_string().into();
        state.objects.remove(&key);
        let _ = self.changes.send((resource.to_owned(), json!({"type": "DELETED", "object": object})));
        Some(object)
    }

    async fn answer(&self, request: Request<kube::client::Body>) -> Response<Body> {
        let target = Target::parse(&request);
        let method = request.method().clone();
        let bytes = request.into_body().collect().await.map(|body| body.to_bytes()).unwrap_or_default();
        let body: Value = serde_json::from_slice(&bytes).unwrap_or_default();
        match method {
            Method::GET if target.query.contains_key("watch") => self.watch(target),
            Method::GET if target.name.is_empty() => {
                let items: Vec<Value> = self.list(&target.resource).into_iter().filter(|o| target.selects(o)).collect();
                reply(StatusCode::OK, json!({"metadata": {"resourceVersion": "1"}, "items": items}))
            }
            Method::GET => found(self.get(&target.resource, &target.namespace, &target.name)),
            Method::POST if target.subresource == "token" => {
                let expires = jiff::Timestamp::now() + jiff::SignedDuration::from_secs(3600);
                let status = json!({"token": "a-token", "expirationTimestamp": expires.strftime("%FT%TZ").to_string()});
                reply(StatusCode::CREATED, json!({"metadata": {}, "spec": body["spec"], "status": status}))
            }
            Method::POST => self.create(target, body),
            Method::PATCH => self.patch(target, body),
            Method::DELETE => self.remove(target, &body),
            _ => failure(StatusCode::METHOD_NOT_ALLOWED, "MethodNotAllowed"),
        }
    }

    fn create(&self, target: Target, mut body: Value) -> Response<Body> {
        let name = body["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        if self.get(&target.resource, &target.namespace, &name).is_some() {
            return failure(StatusCode::CONFLICT, "AlreadyExists");
        }
        if !target.namespace.is_empty() {
            body["metadata"]["namespace"] = target.namespace.into();
        }
        reply(StatusCode::CREATED, self.put(&target.resource, body))
    }

    fn patch(&self, target: Target, body: Value) -> Response<Body> {
        let Some(mut object) = self.get(&target.resource, &target.namespace, &target.name) else {
            return failure(StatusCode::NOT_FOUND, "NotFound");
        };
        let uid = &body["metadata"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        merge(&mut object, body);
        reply(StatusCode::OK, self.put(&target.resource, object))
    }

    fn remove(&self, target: Target, options: &Value) -> Response<Body> {
        let Some(object) = self.get(&target.resource, &target.namespace, &target.name) else {
            return failure(StatusCode::NOT_FOUND, "NotFound");
        };
        let uid = &options["preconditions"]["uid"];
        if !uid.is_null() && *uid != object["metadata"]["uid"] {
            return failure(StatusCode::CONFLICT, "Conflict");
        }
        let grace = options["gracePeriodSeconds"].as_i64().unwrap_or(0);
        found(self.delete(&target.resource, &target.namespace, &target.name, grace))
    }

    fn watch(&self, target: Target) -> Response<Body> {
        let (receiver, initial) = {
            let state = self.state.lock();
            let receiver = self.changes.subscribe();
            let of_resource = state.objects.iter().filter(|((of, ..), _)| *of == target.resource);
            let mut events: Vec<Value> = of_resource
                .filter(|(_, object)| target.selects(object))
                .map(|(_, object)| json!({"type": "ADDED", "object": object}))
                .collect();
            if target.query.get("sendInitialEvents").map(String::as_str) != Some("true") {
                events.clear();
            }
            let done = json!({"annotations": {"k8s.io/initial-events-end": "true"},
                "resourceVersion": state.revision.to_string()});
            let (kind, version) = kind_of(&target.resource);
            events.push(json!({"type": "BOOKMARK", "object": {"kind": kind, "apiVersion": version, "metadata": done,
                "spec": {"containers": []}}}));
            (receiver, events)
        };
        let live = futures::stream::unfold(receiver, |mut receiver| async {
            receiver.recv().await.ok().map(|change| (change, receiver))
        });
        let live = live.filter_map(move |(resource, event)| {
            let wanted = resource == target.resource && target.selects(&event["object"]);
            futures::future::ready(wanted.then_some(event))
        });
        let events = futures::stream::iter(initial).chain(live);
        let frames = events.map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(StreamBody::new(frames).boxed_unsync())
    }
}

fn kind_of(resource: &str) -> (&'static str, &'static str) {
    match resource {
        "pods" => ("Pod", "v1"),
        "services" => ("Service", "v1"),
        "configmaps" => ("ConfigMap", "v1"),
        "secrets" => ("Secret", "v1"),
        _ => ("Node", "v1"),
    }
}

/// Merge patch, but lists of conditions merge by type and `$patch: replace` entries are dropped, as in a strategic merge.
fn merge(object: &mut Value, patch: Value) {
    let Value::Object(patch) = patch else { return *object = patch };
    if !object.is_object() {
        *object = json!({});
    }
    for (key, value) in patch {
        match (key.as_str(), value) {
            (_, Value::Null) => drop(object.as_object_mut().unwrap().remove(&key)),
            ("conditions", Value::Array(new)) => {
                let mut list = object["conditions"].as_array().cloned().unwrap_or_default();
                for condition in new {
                    if condition["$patch"] == "delete" {
                        list.retain(|old| old["type"] != condition["type"]);
                        continue;
                    }
                    match list.iter_mut().find(|old| old["type"] == condition["type"]) {
                        Some(old) => merge(old, condition),
                        None => list.push(condition),
                    }
                }
                object["conditions"] = list.into();
            }
            (_, Value::Array(new)) => {
                object[&key] = new.into_iter().filter(|item| item.get("$patch").is_none()).collect();
            }
            (_, value) => merge(&mut object[&key], value),
        }
    }
}

fn reply(status: StatusCode, value: Value) -> Response<Body> {
    let mut response = Response::new(Full::new(Bytes::from(value.to_string())).boxed_unsync());
    *response.status_mut() = status;
    response
}

fn found(object: Option<Value>) -> Response<Body> {
    object.map_or_else(|| failure(StatusCode::NOT_FOUND, "NotFound"), |object| reply(StatusCode::OK, object))
}

fn failure(status: StatusCode, reason: &str) -> Response<Body> {
    let body = json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure", "reason": reason,
        "message": reason, "code": status.as_u16()});
    reply(status, body)
}
