//! An API server for tests: as much of one as informers, create and replace need. It compares resourceVersions.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;

use bytes::Bytes;
use client::{ClientFactory, Context, Informers};
use futures::StreamExt as _;
use http::{Method, Request, Response, StatusCode};
use http_body::Frame;
use http_body_util::combinators::BoxBody;
use http_body_util::{BodyExt, Full, StreamBody};
use kube::client::Body;
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::sync::broadcast;
use tokio_util::sync::CancellationToken;

type Answer = Response<BoxBody<Bytes, Infallible>>;

#[derive(Clone)]
pub struct FakeApi {
    state: Arc<Mutex<State>>,
    events: broadcast::Sender<(String, Value)>,
}

#[derive(Default)]
struct State {
    /// By collection (`/api/v1/services`), then by namespace and name.
    objects: BTreeMap<String, BTreeMap<(String, String), Value>>,
    revision: u64,
}

fn key_of(object: &Value) -> (String, String) {
    let text = |field: &str| object["metadata"][field].as_str().unwrap_or_default().to_owned();
    (text("namespace"), text("name"))
}

/// The collection over all namespaces, and the name behind it if any.
fn split(path: &str) -> (String, Option<String>) {
    let parts: Vec<&str> = path.trim_matches('/').split('/').collect();
    let group = if parts[0] == "api" { 2 } else { 3 };
    let rest = match &parts[group..] {
        ["namespaces", _, rest @ ..] if !rest.is_empty() => rest,
        rest => rest,
    };
    (format!("/{}/{}", parts[..group].join("/"), rest[0]), rest.get(1).map(|name| (*name).to_owned()))
}

impl FakeApi {
    pub fn new() -> Self {
        FakeApi { state: Arc::default(), events: broadcast::channel(1024).0 }
    }

    /// A context whose components talk to this server until the token is cancelled.
    pub fn context(&self) -> Context {
        struct Nobody(kube::Client);
        impl ClientFactory for Nobody {
            fn client_as(&self, _user: &str, _groups: &[&str]) -> kube::Client {
                self.0.clone()
            }
        }
        let api = self.clone();
        let service = tower::service_fn(move |request: Request<Body>| {
            let api = api.clone();
            async move { Ok::<_, Infallible>(api.serve(request).await) }
        });
        let client = kube::Client::new(service, "default");
        let shutdown = CancellationToken::new();
        Context {
            clients: Arc::new(Nobody(client.clone())),
            informers: Informers::new(client.clone(), shutdown.clone()),
            client,
            shutdown,
        }
    }

    /// Creates or replaces an object, given as text.
    pub fn put(&self, collection: &str, object: &str) {
        self.write(collection, serde_saphyr::from_str(object).unwrap());
    }

    pub fn get(&self, collection: &str, namespace: &str, name: &str) -> Option<Value> {
        let key = (namespace.to_owned(), name.to_owned());
        self.state.lock().objects.get(collection).and_then(|objects| objects.get(&key)).cloned()
    }

    pub fn delete(&self, collection: &str, namespace: &str, name: &str) {
        let mut state = self.state.lock();
        let key = (namespace.to_owned(), name.to_owned());
        let mut gone = state.objects.get_mut(collection).and_then(|o| o.remove(&key)).expect("an object to delete");
        state.revision += 1;
        gone["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let _ = self.events.send((collection.to_owned(), json!({ "type": "DELETED", "object": gone })));
    }

    fn write(&self, collection: &str, mut object: Value) -> Value {
        let mut state = self.state.lock();
        state.revision += 1;
        object["metadata"]["resourceVersion"] = json!(state.revision.to_string());
        let key = key_of(&object);
        if object["metadata"]["uid"].is_null() {
            object["metadata"]["uid"] = json!(format!("uid-{}", key.1));
        }
        let old = state.objects.entry(collection.to_owned()).or_default().insert(key, object.clone());
        let kind = if old.is_some() { "MODIFIED" } else { "ADDED" };
        let _ = self.events.send((collection.to_owned(), json!({ "type": kind, "object": object })));
        object
    }

    async fn serve(&self, request: Request<Body>) -> Answer {
        let (collection, name) = split(request.uri().path());
        let method = request.method().clone();
        if method == Method::GET {
            return self.watch(collection, request.uri().query().unwrap_or_default());
        }
        let body = request.into_body().collect().await.unwrap().to_bytes();
        let object: Value = serde_json::from_slice(&body).unwrap();
        let present = self.get(&collection, &key_of(&object).0, &key_of(&object).1);
        match (method, present) {
            (Method::POST, None) => answer(StatusCode::CREATED, &self.write(&collection, object)),
            (Method::POST, Some(_)) => refusal(StatusCode::CONFLICT, "AlreadyExists"),
            (Method::PUT, Some(present)) if name.is_some() => {
                let same = present["metadata"]["resourceVersion"] == object["metadata"]["resourceVersion"];
                if !same {
                    return refusal(StatusCode::CONFLICT, "Conflict");
                }
                answer(StatusCode::OK, &self.write(&collection, object))
            }
            (Method::PUT, None) => refusal(StatusCode::NOT_FOUND, "NotFound"),
            (method, _) => panic!("the fake server does not know {method}"),
        }
    }

    /// A watch that begins with all objects, as informers ask for.
    fn watch(&self, collection: String, query: &str) -> Answer {
        assert!(query.contains("watch=true"), "informers use streaming lists: {query}");
        // Subscribed under the lock: no event is missed and none comes twice.
        let state = self.state.lock();
        let events = self.events.subscribe();
        let mut first: Vec<Value> = Vec::new();
        if query.contains("sendInitialEvents=true") {
            let objects = state.objects.get(&collection).into_iter().flat_map(|objects| objects.values());
            first.extend(objects.map(|object| json!({ "type": "ADDED", "object": object })));
            let metadata = json!({
                "resourceVersion": state.revision.to_string(), "annotations": { "k8s.io/initial-events-end": "true" },
            });
            // Of whichever kind: readers look at the metadata only.
            let end =
                json!({ "kind": "x", "apiVersion": "v1", "metadata": metadata, "spec": {}, "addressType": "IPv4" });
            first.push(json!({ "type": "BOOKMARK", "object": end }));
        }
        drop(state);
        let later = futures::stream::unfold(events, |mut events| async move {
            events.recv().await.ok().map(|event| (event, events))
        });
        let later = later.filter_map(move |(of, event)| {
            let wanted = of == collection;
            async move { wanted.then_some(event) }
        });
        let lines = futures::stream::iter(first).chain(later);
        let frames = lines.map(|event| Ok(Frame::data(Bytes::from(format!("{event}\n")))));
        Response::new(BodyExt::boxed(StreamBody::new(SyncStream(Mutex::new(Box::pin(frames))))))
    }
}

/// `BoxBody` wants its stream to be `Sync`; a lock makes any so.
struct SyncStream<S>(Mutex<std::pin::Pin<Box<S>>>);

impl<S: futures::Stream> futures::Stream for SyncStream<S> {
    type Item = S::Item;

    fn poll_next(
        self: std::pin::Pin<&mut Self>,
        context: &mut std::task::Context<'_>,
    ) -> std::task::Poll<Option<S::Item>> {
        self.0.lock().as_mut().poll_next(context)
    }
}

fn answer(code: StatusCode, object: &Value) -> Answer {
    let body = Full::new(Bytes::from(object.to_string()));
    Response::builder().status(code).body(BodyExt::boxed(body)).unwrap()
}

fn refusal(code: StatusCode, reason: &str) -> Answer {
    let status = json!({
        "kind": "Status", "apiVersion": "v1", "status": "Failure", "reason": reason, "message": reason,
        "code": code.as_u16(), "metadata": {},
    });
    answer(code, &status)
}
