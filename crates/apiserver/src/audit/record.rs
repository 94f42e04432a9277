//! One request on its way through the server: what is known of it so far, and an event at each stage.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use apimachinery::schema::decode::from_yaml;
use apimachinery::{Value, meta, names, protobuf};
use bytes::Bytes;
use http::{HeaderMap, StatusCode, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use parking_lot::Mutex;
use serde_json::value::RawValue;

use super::Auditor;
use super::event::{Event, Micros, ObjectReference, Status, User};
use super::policy::{Level, Stage, Verdict};
use crate::gate::{guarded, plain};
use crate::http::{Response, respond};
use crate::request::{RequestInfo, UserInfo};
use crate::server::{header_text, is_long_running};
use crate::warnings::Warnings;

const USER_AGENT_MAX: usize = 1024;
/// A `Status` that is larger is not looked into.
const STATUS_BYTES_MAX: u64 = 64 * 1024;

/// What is known of a request when it comes.
pub struct Arrival<'a> {
    /// Who was authenticated, before any impersonation; none where nobody was.
    pub user: Option<&'a Arc<UserInfo>>,
    pub info: &'a RequestInfo,
    pub uri: &'a http::Uri,
    pub headers: &'a HeaderMap,
    /// Of the connection; none in process.
    pub address: Option<SocketAddr>,
    pub received: Micros,
    pub audit_id: &'a str,
    /// Where annotations are collected.
    pub notes: &'a Warnings,
}

/// A request that is recorded. The last event is made at the latest when the last clone of this is dropped, so what goes on after an
/// answer (a stream, a session) holds one.
pub struct Record {
    auditor: Arc<Auditor>,
    verdict: Verdict,
    long_running: bool,
    event: Mutex<Event>,
    notes: Warnings,
    /// The answer is another server's: its objects are not ours to tell.
    passed_on: AtomicBool,
    started: AtomicBool,
    finished: AtomicBool,
}

/// Put among a request's extensions, it keeps the record of a session open until the session ends.
#[derive(Clone)]
pub struct Hold(#[allow(dead_code, reason = "held, and dropped")] Arc<Record>);

impl Auditor {
    /// Begins to record a request, if the policy wants it. Where that has to be kept and cannot be, this is the answer.
    #[allow(clippy::result_large_err, reason = "it is the answer")]
    pub async fn begin(self: &Arc<Self>, arrival: Arrival<'_>) -> Result<Option<Arc<Record>>, Response> {
        let uri = arrival.uri.clone();
        let Some(record) = self.record(arrival) else { return Ok(None) };
        if record.stage(Stage::RequestReceived).await {
            return Ok(Some(Arc::new(record)));
        }
        self.counters.rejected();
        record.finished.store(true, Ordering::Relaxed);
        Err(plain(500, &format!("Internal Server Error: {:?}: failed to store audit event", uri.to_string())))
    }

    /// Records a request whose sender could not be told. Of those only the answer makes an event.
    pub async fn unauthenticated(self: &Arc<Self>, arrival: Arrival<'_>, response: Response) -> Response {
        let Some(record) = self.record(arrival) else { return response };
        let response = record.tell(response).await;
        record.stage(Stage::ResponseStarted).await;
        record.finished.store(true, Ordering::Relaxed);
        response
    }

    fn record(self: &Arc<Self>, arrival: Arrival<'_>) -> Option<Record> {
        let Arrival { user, info, uri, headers, address, received, audit_id, notes } = arrival;
        let verdict = self.policy.evaluate(user.map(|user| &**user), info);
        self.counters.level(verdict.level);
        if verdict.level == Level::None {
            return None;
        }
        let mut agent = header_text(headers, header::USER_AGENT).unwrap_or_default().to_owned();
        if agent.len() > USER_AGENT_MAX {
            agent.truncate(USER_AGENT_MAX);
            agent.push_str("...TRUNCATED");
        }
        let event = Event {
            level: verdict.level,
            audit_id: audit_id.into(),
            stage: Stage::RequestReceived,
            request_uri: uri.path_and_query().map_or("/", |path| path.as_str()).into(),
            verb: info.verb.as_str().into(),
            user: User(user.cloned()),
            impersonated_user: None,
            source_ips: source_ips(headers, address).into(),
            user_agent: agent.into(),
            object_ref: ObjectReference::of(info),
            response_status: None,
            request_object: None,
            response_object: None,
            request_received_timestamp: received,
            stage_timestamp: received,
            annotations: std::collections::BTreeMap::new(),
        };
        Some(Record {
            auditor: self.clone(),
            verdict,
            long_running: is_long_running(info),
            event: Mutex::new(event),
            notes: notes.clone(),
            passed_on: AtomicBool::new(false),
            started: AtomicBool::new(false),
            finished: AtomicBool::new(false),
        })
    }
}

impl Record {
    pub fn level(&self) -> Level {
        self.verdict.level
    }

    pub fn hold(self: &Arc<Self>) -> Hold {
        Hold(self.clone())
    }

    pub fn annotate(&self, key: &str, value: &str) {
        self.notes.annotate(key, value);
    }

    pub fn impersonated(&self, user: &Arc<UserInfo>) {
        self.event.lock().impersonated_user = Some(User(Some(user.clone())));
    }

    /// Another server answers.
    pub fn passed_on(&self) {
        self.passed_on.store(true, Ordering::Relaxed);
    }

    /// What was sent, as an object: the body of a write, or delete options.
    pub fn request_object(&self, object: &Value) {
        let told = (self.level() >= Level::Request).then(|| self.told(object)).flatten();
        let mut event = self.event.lock();
        if let Some(reference) = &mut event.object_ref {
            reference.complete(object);
        }
        event.request_object = told;
    }

    /// The document of a patch, which is no object.
    pub fn request_patch(&self, document: &Value) {
        if self.level() >= Level::Request {
            self.event.lock().request_object = raw(document.to_string());
        }
    }

    /// An object, without what the policy does not want of it.
    fn told(&self, object: &Value) -> Option<Arc<RawValue>> {
        if !self.verdict.omit_managed_fields || !object.is_object() {
            return raw(object.to_string());
        }
        let mut object = object.clone();
        drop_managed_fields(&mut object);
        raw(object.to_string())
    }

    /// Records the answer, and makes the events that come of it: of what is answered whole before it is sent, of what goes on for
    /// long when it begins and when it has ended.
    pub async fn answered(self: Arc<Self>, response: Response) -> Response {
        let response = self.tell(response).await;
        if self.long_running {
            self.started.store(true, Ordering::Relaxed);
            self.stage(Stage::ResponseStarted).await;
        }
        // A session holds the record by itself.
        if response.status() == StatusCode::SWITCHING_PROTOCOLS {
            return response;
        }
        if response.body().size_hint().exact().is_none() || self.passed_on.load(Ordering::Relaxed) {
            return guarded(response, self);
        }
        self.finished.store(true, Ordering::Relaxed);
        self.stage(Stage::ResponseComplete).await;
        response
    }

    /// Takes code, status and object from an answer. Of a stream only its code is known.
    async fn tell(&self, response: Response) -> Response {
        let code = response.status();
        let size = response.body().size_hint().exact();
        let passed_on = self.passed_on.load(Ordering::Relaxed);
        let wants_object = self.level() >= Level::RequestResponse && (size.is_some() || !self.long_running);
        let may_be_status = size.is_some_and(|size| size <= STATUS_BYTES_MAX);
        if passed_on || code == StatusCode::SWITCHING_PROTOCOLS || !(wants_object || may_be_status) {
            self.event.lock().response_status = Some(Status::of_code(code.as_u16()));
            return response;
        }
        let (head, body) = response.into_parts();
        let bytes = match body.collect().await {
            Ok(collected) => collected.to_bytes(),
            Err(error) => {
                self.event.lock().response_status = Some(Status::of_code(code.as_u16()));
                let broken = futures::stream::once(async move { Err(error) });
                return Response::from_parts(head, respond::streamed(broken));
            }
        };
        let media = head.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
        let status = may_be_status.then(|| status_in(media, &bytes, code.as_u16())).flatten();
        let object = if wants_object { self.object_in(media, &bytes) } else { None };
        let mut event = self.event.lock();
        event.response_status = Some(status.unwrap_or_else(|| Status::of_code(code.as_u16())));
        event.response_object = object;
        drop(event);
        Response::from_parts(head, respond::full(bytes))
    }

    fn object_in(&self, media: &str, bytes: &Bytes) -> Option<Arc<RawValue>> {
        if media.starts_with("application/json") && !self.verdict.omit_managed_fields {
            return raw(String::from_utf8(bytes.to_vec()).ok()?.trim_end().to_owned());
        }
        self.told(&document(media, bytes)?)
    }

    /// Makes an event of the stage, unless the policy leaves it out. False where it had to be kept and was not.
    async fn stage(&self, stage: Stage) -> bool {
        match self.event_of(stage) {
            Some(event) => self.auditor.process(&event).await,
            None => true,
        }
    }

    fn event_of(&self, stage: Stage) -> Option<Arc<Event>> {
        if self.verdict.omitted.contains(stage) {
            return None;
        }
        let mut event = self.event.lock();
        for (key, value) in self.notes.take_annotations() {
            event.annotations.entry(key).or_insert(value);
        }
        event.stage = stage;
        event.stage_timestamp =
            if stage == Stage::RequestReceived { event.request_received_timestamp } else { Micros::now() };
        Some(Arc::new(event.clone()))
    }
}

impl Drop for Record {
    /// The request ended without our doing: its answer has been sent or given up, its client has gone, or it made the server panic.
    fn drop(&mut self) {
        if *self.finished.get_mut() {
            return;
        }
        let mut stages = Vec::new();
        if std::thread::panicking() {
            let status = Status {
                status: "Failure".to_owned(),
                reason: "InternalError".to_owned(),
                message: "APIServer panic'd".to_owned(),
                ..Status::of_code(500)
            };
            self.event.get_mut().response_status = Some(status);
            stages.push(Stage::Panic);
        } else {
            let event = self.event.get_mut();
            if event.response_status.is_none() {
                let early = "Connection closed early".to_owned();
                event.response_status =
                    Some(Status { status: "Success".to_owned(), message: early, ..Status::of_code(200) });
            }
            if self.long_running && !*self.started.get_mut() {
                stages.push(Stage::ResponseStarted);
            }
            stages.push(Stage::ResponseComplete);
        }
        for stage in stages {
            if let Some(event) = self.event_of(stage) {
                self.auditor.process_detached(&event);
            }
        }
    }
}

fn raw(json: String) -> Option<Arc<RawValue>> {
    RawValue::from_string(json).ok().map(Arc::from)
}

/// An answer as JSON, whatever form the client has asked for.
fn document(media: &str, bytes: &Bytes) -> Option<Value> {
    match media.split(';').next().unwrap_or_default() {
        "application/json" => serde_json::from_slice(bytes).ok(),
        "application/yaml" => from_yaml(bytes).ok().map(|decoded| decoded.value),
        "application/vnd.kubernetes.protobuf" => protobuf::decode(bytes).ok(),
        _ => None,
    }
}

/// The `Status` that an answer is, if it is one.
fn status_in(media: &str, bytes: &Bytes, code: u16) -> Option<Status> {
    // Most answers are none, and are not parsed to find that out.
    if !bytes.windows(6).any(|window| window == b"Status") {
        return None;
    }
    let value = document(media, bytes)?;
    let is_status = value["kind"] == "Status" && value["apiVersion"] == "v1";
    is_status.then(|| Status::of(&value, code))
}

/// Of an object, of the items of a list and of the rows of a Table.
fn drop_managed_fields(object: &mut Value) {
    meta::remove(object, "managedFields");
    for (list, part) in [("items", None), ("rows", Some("object"))] {
        for item in object.get_mut(list).and_then(Value::as_array_mut).into_iter().flatten() {
            let item = match part {
                Some(part) => item.get_mut(part),
                None => Some(item),
            };
            if let Some(item) = item {
                meta::remove(item, "managedFields");
            }
        }
    }
}

/// Where a request comes from: what proxies say, and last the connection's own end (upstream's `SourceIPs`). All but the last are
/// whatever the client says.
fn source_ips(headers: &HeaderMap, address: Option<SocketAddr>) -> Vec<String> {
    let text = |name: &'static str| header_text(headers, header::HeaderName::from_static(name)).unwrap_or_default();
    let parse = |text: &str| names::parse_ip_sloppy(text.trim()).map(|ip| ip.to_canonical());
    let mut all: Vec<IpAddr> = text("x-forwarded-for").split(',').filter_map(parse).collect();
    let real = parse(text("x-real-ip")).filter(|ip| !all.contains(ip));
    all.extend(real);
    let own = address.map(|address| address.ip().to_canonical()).filter(|ip| all.last() != Some(ip));
    all.extend(own);
    all.into_iter().map(|ip| ip.to_string()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::audit::testing::Log;
    use serde_json::json;

    #[test]
    fn sources_are_told_in_order_and_once() {
        let check = |forwarded: &str, real: &str, own: Option<&str>, expected: &[&str]| {
            let mut headers = HeaderMap::new();
            for (name, value) in [("x-forwarded-for", forwarded), ("x-real-ip", real)] {
                headers.insert(name, value.parse().unwrap());
            }
            assert_eq!(source_ips(&headers, own.map(|own| own.parse().unwrap())), expected);
        };
        check("", "", Some("10.0.0.1:99"), &["10.0.0.1"]);
        check("1.1.1.1, x,2.2.2.2", "3.3.3.3", Some("10.0.0.1:9"), &["1.1.1.1", "2.2.2.2", "3.3.3.3", "10.0.0.1"]);
        check("1.1.1.1", "1.1.1.1", Some("1.1.1.1:9"), &["1.1.1.1"]);
        check("", "", Some("[::1]:9"), &["::1"]);
        check("", "", None, &[]);
    }

    #[test]
    fn managed_fields_go_wherever_they_are() {
        let owned = || json!({"metadata": {"name": "a", "managedFields": [1]}});
        let mut all = json!({
            "metadata": {"managedFields": [1]}, "items": [owned(), {"spec": 1}], "rows": [{"object": owned()}, {"cells": []}],
        });
        drop_managed_fields(&mut all);
        let bare = json!({"metadata": {"name": "a"}});
        assert_eq!(
            all,
            json!({"metadata": {}, "items": [bare, {"spec": 1}], "rows": [{"object": bare}, {"cells": []}]})
        );
    }

    #[tokio::test]
    async fn who_ends_by_itself_is_still_recorded() {
        let log = Log::new();
        let panics = log.begin("get").await;
        let panicked = std::panic::catch_unwind(std::panic::AssertUnwindSafe(move || {
            let _record = panics;
            panic!("a bug, on purpose");
        }));
        assert!(panicked.is_err());
        drop(log.begin("watch").await);
        let session = log.begin("watch").await;
        let hold = session.hold();
        let mut switching = Response::new(respond::full(""));
        *switching.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        session.answered(switching).await;
        let expected = [
            "Panic 500 APIServer panic'd",
            "ResponseStarted 200 Connection closed early",
            "ResponseComplete 200 Connection closed early",
            "ResponseStarted 101 null",
            "ResponseComplete 101 null",
        ];
        assert_eq!(log.told(), expected[..4]);
        drop(hold);
        assert_eq!(log.told(), expected);
    }

    #[test]
    fn a_status_is_recognised() {
        let of = |media: &str, text: &'static str| status_in(media, &Bytes::from_static(text.as_bytes()), 404);
        let status = r#"{"kind":"Status","apiVersion":"v1","status":"Failure","message":"m","reason":"NotFound"}"#;
        let told = of("application/json", status).unwrap();
        assert_eq!((&*told.message, &*told.reason, told.code), ("m", "NotFound", 404));
        assert!(of("application/yaml", "kind: Status\napiVersion: v1\nstatus: Failure\n").is_some());
        assert!(of("application/json", r#"{"kind":"Pod","apiVersion":"v1","message":"Status"}"#).is_none());
        assert!(of("text/plain", status).is_none());
    }
}
