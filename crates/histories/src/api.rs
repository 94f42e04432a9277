//! A Kubernetes API as a subject: the Secrets of one namespace, which no controller touches, over whatever carries requests.
//!
//! A key is a Secret's name, a value the label `value`.

use std::collections::BTreeMap;
use std::time::Duration;

use serde_json::{Value as Json, json};

use crate::drive::{Events, Items, Opened, Subject};
use crate::history::{Answer, Change, Note, Op, Revision};

pub const NAMESPACE: &str = "histories";
/// To make the namespace: the server may be killed meanwhile.
const ATTEMPTS: u32 = 600;
const PAUSE: Duration = Duration::from_millis(100);

/// Carries requests to an API server, with all rights.
pub trait Transport: Clone + Send + Sync + 'static {
    type Body: Body;

    /// Status and body; none if there was no answer.
    fn send(
        &self,
        method: &str,
        path: &str,
        body: Option<Json>,
    ) -> impl Future<Output = Option<(u16, Self::Body)>> + Send;
}

pub trait Body: Send + 'static {
    /// The next bytes; none at the end, or when the connection breaks. The future may be dropped.
    fn chunk(&mut self) -> impl Future<Output = Option<Vec<u8>>> + Send;
}

#[derive(Clone)]
pub struct Api<T> {
    transport: T,
    /// How long a watch lasts; it ends with a bookmark.
    watch_seconds: u64,
}

impl<T: Transport> Api<T> {
    /// Makes the namespace.
    pub async fn new(transport: T, watch_seconds: u64) -> Self {
        let api = Api { transport, watch_seconds };
        let namespace = json!({"metadata": {"name": NAMESPACE}});
        for _ in 0..ATTEMPTS {
            match api.ask("POST", "/api/v1/namespaces", Some(namespace.clone())).await {
                // It may have been made by an attempt whose answer got lost.
                Some((201 | 409, _)) => return api,
                Some((code, answer)) if code < 500 => panic!("cannot make the namespace: {code} {answer}"),
                _ => tokio::time::sleep(PAUSE).await,
            }
        }
        panic!("cannot make the namespace: no answer");
    }

    /// None if there was no whole answer.
    async fn ask(&self, method: &str, path: &str, body: Option<Json>) -> Option<(u16, Json)> {
        let (code, mut body) = self.transport.send(method, path, body).await?;
        let mut bytes = Vec::new();
        while let Some(chunk) = body.chunk().await {
            bytes.extend(chunk);
        }
        Some((code, serde_json::from_slice(&bytes).ok()?))
    }
}

fn path(name: &str) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/secrets{}{name}", if name.is_empty() { "" } else { "/" })
}

fn secret(name: &str, value: u64, revision: Option<Revision>) -> Json {
    let mut secret = json!({"metadata": {"name": name, "labels": {"value": value.to_string()}}});
    if let Some(revision) = revision {
        secret["metadata"]["resourceVersion"] = json!(revision.to_string());
    }
    secret
}

fn revision_of(object: &Json) -> Revision {
    let text = object["metadata"]["resourceVersion"].as_str();
    text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no resourceVersion in {object}"))
}

fn value_of(object: &Json) -> u64 {
    let text = object["metadata"]["labels"]["value"].as_str();
    text.and_then(|text| text.parse().ok()).unwrap_or_else(|| panic!("no value in {object}"))
}

impl<T: Transport> Subject for Api<T> {
    type Events = Watch<T::Body>;

    async fn call(&self, key: &str, op: Op) -> Answer {
        let (method, path, body) = match op {
            Op::Create(value) => ("POST", path(""), Some(secret(key, value, None))),
            Op::Update(value, revision) => ("PUT", path(key), Some(secret(key, value, Some(revision)))),
            Op::Delete(Some(revision)) => {
                let preconditions = json!({"resourceVersion": revision.to_string()});
                ("DELETE", path(key), Some(json!({"preconditions": preconditions})))
            }
            Op::Delete(None) => ("DELETE", path(key), None),
            Op::Get => ("GET", path(key), None),
            Op::Put(_) => unreachable!("the API has no write without a condition"),
        };
        let Some((code, answer)) = self.ask(method, &path, body).await else { return Answer::Unknown };
        match (op, code) {
            (Op::Get, 200) => Answer::Found(value_of(&answer), revision_of(&answer)),
            (Op::Delete(_), 200) => Answer::Written(None),
            (_, 200 | 201) => Answer::Written(Some(revision_of(&answer))),
            (Op::Get | Op::Update(..) | Op::Delete(_), 404) => Answer::Absent,
            (_, 409) => Answer::Refused,
            (_, 500..) => Answer::Unknown,
            (_, 429) => Answer::NotDone,
            _ => panic!("{op:?} of {key}: {code} {answer}"),
        }
    }

    async fn list(&self, at: Option<Revision>) -> Option<Items> {
        let query = at.map_or_else(String::new, |at| format!("?resourceVersion={at}&resourceVersionMatch=Exact"));
        match self.ask("GET", &(path("") + &query), None).await? {
            (200, list) => {
                let items = list["items"].as_array().into_iter().flatten();
                let items: BTreeMap<_, _> = items
                    .map(|item| {
                        let name = item["metadata"]["name"].as_str().unwrap_or_default();
                        (name.to_owned(), (value_of(item), revision_of(item)))
                    })
                    .collect();
                Some((revision_of(&list), items))
            }
            (410 | 500.., _) => None,
            (code, answer) => panic!("list at {at:?}: {code} {answer}"),
        }
    }

    async fn watch(&self, after: Revision) -> Opened<Watch<T::Body>> {
        let query =
            format!("?watch=1&allowWatchBookmarks=true&timeoutSeconds={}&resourceVersion={after}", self.watch_seconds);
        match self.transport.send("GET", &(path("") + &query), None).await {
            Some((200, body)) => Opened::Stream(Watch { body, read: Vec::new(), compacted: false }),
            Some((410, _)) => Opened::Compacted,
            _ => Opened::Unreachable,
        }
    }
}

pub struct Watch<B> {
    body: B,
    /// Not a whole line yet.
    read: Vec<u8>,
    compacted: bool,
}

impl<B: Body> Events for Watch<B> {
    async fn next(&mut self) -> Vec<Note> {
        while !self.compacted {
            if let Some(end) = self.read.iter().rposition(|byte| *byte == b'\n') {
                let lines: Vec<u8> = self.read.drain(..=end).collect();
                let lines = lines.split(|byte| *byte == b'\n').filter(|line| !line.is_empty());
                let notes: Vec<Note> = lines.map_while(|line| self.note(line)).collect();
                if !notes.is_empty() {
                    return notes;
                }
                continue;
            }
            match self.body.chunk().await {
                Some(chunk) => self.read.extend(chunk),
                None => break,
            }
        }
        Vec::new()
    }

    fn is_compacted(&self) -> bool {
        self.compacted
    }
}

impl<B> Watch<B> {
    /// None if the line says that the watch cannot go on.
    fn note(&mut self, line: &[u8]) -> Option<Note> {
        let line: Json = serde_json::from_slice(line).expect("a line of a watch is JSON");
        let object = &line["object"];
        let kind = line["type"].as_str().unwrap_or_default();
        if kind == "ERROR" {
            assert_eq!(object["code"], 410, "{object}");
            self.compacted = true;
            return None;
        }
        let revision = revision_of(object);
        let change = match kind {
            "BOOKMARK" => return Some(Note::Bookmark(revision)),
            "ADDED" => Change::Put { value: value_of(object), created: true },
            "MODIFIED" => Change::Put { value: value_of(object), created: false },
            "DELETED" => Change::Delete,
            other => panic!("an event of type {other:?}"),
        };
        let key = object["metadata"]["name"].as_str().unwrap_or_default().to_owned();
        Some(Note::Event { revision, key, change })
    }
}
