//! Watch: a cursor over the store's shared events, filtered, in the client's form.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::resource::ResourceRow;
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use bytes::{BufMut as _, Bytes, BytesMut};
use futures::StreamExt as _;
use futures::future::BoxFuture;
use serde_json::json;
use store::{Change, Event, Range, Revision, Watcher};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use super::filter::Filter;
use super::list::{parse_version, too_large};
use super::namespace_of;
use super::render::{self, Include};
use crate::http::negotiate::{Encoding, Shape};
use crate::http::{BoxError, Response, respond};
use crate::object::{Entry, Object};
use crate::server::{ApiServer, Call};
use crate::strategy::convert;
use crate::view::{end_of, folder};

/// Upstream sends one about every minute, so that clients resume near the newest revision.
const BOOKMARK_EVERY: Duration = Duration::from_secs(60);
/// Upstream's `--min-request-timeout`; each watch lasts between this and twice this.
const MIN_TIMEOUT_SECONDS: u64 = 1800;
/// Objects are sent in pieces of about this many bytes, however far a slow client is behind.
const CHUNK: usize = 64 * 1024;

pub async fn watch(server: &ApiServer, call: &Call) -> Result<Response> {
    let mut start = start(server, call)?;
    start.initial = super::convert::entries(server, &call.row, start.initial).await?;
    let content_type = match call.accepted.encoding {
        Encoding::Json => "application/json",
        Encoding::Yaml => return Err(StatusError::not_acceptable(&["application/json;stream=watch"])),
    };
    let stream = match Stream::new(server, call, start) {
        // As from upstream's watch cache: the stream begins, and says at once that it cannot go on.
        Err(error) if error.code == 410 => {
            let mut out = BytesMut::new();
            frame(&mut out, "ERROR", error.to_value().to_string().as_bytes());
            return Ok(respond::bytes(200, content_type, out.freeze()));
        }
        other => other?,
    };
    let chunks = futures::stream::unfold(stream, |mut stream| async move {
        let chunk = stream.next().await?;
        Some((Ok::<Bytes, BoxError>(chunk), stream))
    });
    Ok(respond::with_body(200, content_type, respond::streamed(chunks.fuse())))
}

/// From where a watch goes.
struct Start {
    /// Everything up to here is told by `initial`, or known to the client.
    after: Revision,
    initial: Vec<Entry>,
    /// `sendInitialEvents=true`: a bookmark marks the end of the initial objects.
    mark_end: bool,
}

fn start(server: &ApiServer, call: &Call) -> Result<Start> {
    let store = server.view.store();
    let text = call.query.get("resourceVersion").unwrap_or_default();
    let send_initial = call.query.optional_flag("sendInitialEvents");
    let matching = call.query.get("resourceVersionMatch").unwrap_or_default();
    let invalid = |why: &str| {
        let message = format!("ListOptions.meta.k8s.io \"\" is invalid: {why}");
        Err(StatusError::new(422, "Invalid", message))
    };
    match (send_initial, matching) {
        (Some(_), "NotOlderThan") | (None, "") => {}
        (Some(_), _) => {
            return invalid(
                "resourceVersionMatch: Forbidden: sendInitialEvents requires setting resourceVersionMatch to NotOlderThan",
            );
        }
        (None, _) => {
            return invalid(
                "resourceVersionMatch: Forbidden: resourceVersionMatch is forbidden for watch unless sendInitialEvents is provided",
            );
        }
    }
    let version = if text.is_empty() { 0 } else { parse_version(text)? };
    let newest = store.revision();
    if version > newest {
        return Err(too_large(version, newest));
    }
    if send_initial == Some(false) && version == 0 {
        return Ok(Start { after: newest, initial: Vec::new(), mark_end: false });
    }
    if send_initial != Some(true) && version > 0 {
        return Ok(Start { after: version, initial: Vec::new(), mark_end: false });
    }
    let folder = folder(&call.row.storage_prefix, namespace_of(call));
    let range = Range { end: end_of(&folder), start: folder, limit: 0, revision: None };
    let listing = store.range(&range).map_err(crate::error::from_store)?;
    Ok(Start { after: listing.revision, initial: listing.entries, mark_end: send_initial == Some(true) })
}

struct Stream {
    watcher: Watcher<Object>,
    writer: Writer,
    initial: VecDeque<Entry>,
    /// Taken from the watcher and not written yet.
    waiting: VecDeque<Arc<Event<Object>>>,
    /// Revision of the initial state, until its end has been marked.
    mark_end: Option<Revision>,
    bookmarks: bool,
    next_bookmark: Instant,
    /// The watch's time is over, or the server's.
    end: BoxFuture<'static, ()>,
    ended: bool,
}

impl Stream {
    fn new(server: &ApiServer, call: &Call, start: Start) -> Result<Self> {
        let folder = folder(&call.row.storage_prefix, namespace_of(call));
        let watcher = server.view.store().watch(&folder, start.after).map_err(|error| match error {
            store::Error::Compacted { compacted, .. } => {
                StatusError::expired(format!("too old resource version: {} ({compacted})", start.after))
            }
            other => crate::error::from_store(other),
        })?;
        let seconds = match call.query.number("timeoutSeconds")? {
            Some(seconds) if seconds > 0 => seconds.unsigned_abs(),
            _ => MIN_TIMEOUT_SECONDS + rand::random_range(0..MIN_TIMEOUT_SECONDS),
        };
        let now = Instant::now();
        Ok(Stream {
            watcher,
            writer: Writer {
                row: call.row.clone(),
                filter: Filter::of(call)?,
                shape: call.accepted.shape,
                include: Include::of(call),
                server: server.clone(),
                columns_sent: false,
            },
            initial: start.initial.into(),
            waiting: VecDeque::new(),
            mark_end: start.mark_end.then_some(start.after),
            bookmarks: call.query.flag("allowWatchBookmarks"),
            next_bookmark: now + BOOKMARK_EVERY,
            end: Box::pin(end(Duration::from_secs(seconds), server.health.draining())),
            ended: false,
        })
    }

    /// The next piece of the answer; none at the end. At least one event a piece, so a quiet watch sends nothing.
    async fn next(&mut self) -> Option<Bytes> {
        if self.ended {
            return None;
        }
        let mut out = BytesMut::new();
        while out.len() < CHUNK {
            let Some(entry) = self.initial.pop_front() else { break };
            self.writer.initial(&mut out, &entry);
        }
        if self.initial.is_empty()
            && let Some(revision) = self.mark_end.take()
        {
            self.writer.bookmark(&mut out, revision, true);
        }
        loop {
            while out.len() < CHUNK
                && let Some(event) = self.waiting.pop_front()
            {
                self.writer.event(&mut out, &event);
            }
            if !out.is_empty() {
                return Some(out.freeze());
            }
            let due = if self.bookmarks { self.next_bookmark } else { Instant::now() + BOOKMARK_EVERY };
            tokio::select! {
                biased;
                events = self.watcher.next() => match events {
                    Ok(events) => match super::convert::events(&self.writer.server, &self.writer.row, events).await {
                        Ok(events) => self.waiting.extend(events),
                        Err(error) => {
                            self.ended = true;
                            self.writer.error(&mut out, &error);
                        }
                    },
                    Err(error) => {
                        self.ended = true;
                        self.writer.error(&mut out, &gone(error));
                    }
                },
                () = self.end.as_mut() => {
                    self.ended = true;
                    if !self.bookmarks {
                        return None;
                    }
                    self.writer.bookmark(&mut out, self.watcher.progress(), false);
                }
                () = tokio::time::sleep_until(due), if self.bookmarks => {
                    self.next_bookmark = Instant::now() + BOOKMARK_EVERY;
                    self.writer.bookmark(&mut out, self.watcher.progress(), false);
                }
            }
        }
    }
}

async fn end(after: Duration, draining: CancellationToken) {
    let _ = draining.run_until_cancelled_owned(tokio::time::sleep(after)).await;
}

fn gone(error: store::Error) -> StatusError {
    match error {
        store::Error::Compacted { compacted, .. } => {
            StatusError::expired(format!("too old resource version: {compacted}"))
        }
        other => crate::error::from_store(other),
    }
}

/// Writes events in the form the client asked for.
struct Writer {
    row: Arc<ResourceRow>,
    filter: Filter,
    shape: Shape,
    include: Include,
    server: ApiServer,
    columns_sent: bool,
}

impl Writer {
    fn initial(&mut self, out: &mut BytesMut, entry: &Entry) {
        if self.filter.matches(&self.row, entry) {
            self.write(out, "ADDED", &entry.value);
        }
    }

    /// A selector makes views: an object that enters one is added there, one that leaves is deleted there.
    fn event(&mut self, out: &mut BytesMut, event: &Event<Object>) {
        let before = event.previous.as_ref().is_some_and(|p| self.filter.matches(&self.row, p));
        match &event.change {
            Change::Put(entry) => match (before, self.filter.matches(&self.row, entry)) {
                (false, true) => self.write(out, "ADDED", &entry.value),
                (true, true) => self.write(out, "MODIFIED", &entry.value),
                (true, false) => {
                    if let Some(previous) = &event.previous {
                        let left = store::Value::deleted(&previous.value, event.revision);
                        self.write(out, "DELETED", &left);
                    }
                }
                (false, false) => {}
            },
            Change::Delete(last) => {
                if before {
                    self.write(out, "DELETED", &last.value);
                }
            }
        }
    }

    fn write(&mut self, out: &mut BytesMut, kind: &str, object: &Object) {
        match self.shape {
            Shape::Object => frame(out, kind, &render::json_of(&self.row, object)),
            Shape::Partial => {
                let value = convert::from_storage(&self.row, object.value());
                frame(out, kind, render::partial(&value).to_string().as_bytes());
            }
            Shape::Table => {
                let value = convert::from_storage(&self.row, object.value());
                let row = render::table_row(&self.row, &value, self.include, &self.server);
                let table = render::table_of(&self.row, value.get("metadata"), vec![row], !self.columns_sent);
                self.columns_sent = true;
                frame(out, kind, table.to_string().as_bytes());
            }
        }
    }

    fn bookmark(&mut self, out: &mut BytesMut, revision: Revision, initial_end: bool) {
        let mut object = json!({
            "kind": self.row.kind, "apiVersion": self.row.api_version(),
            "metadata": {"resourceVersion": revision.to_string(), "creationTimestamp": null},
        });
        if initial_end {
            let annotations = json!({"k8s.io/initial-events-end": "true"});
            meta::metadata_mut(&mut object).insert("annotations".to_owned(), annotations);
        }
        let value: Value = match self.shape {
            Shape::Object => object,
            Shape::Partial => render::partial(&object),
            Shape::Table => render::table_of(&self.row, object.get("metadata"), Vec::new(), false),
        };
        frame(out, "BOOKMARK", value.to_string().as_bytes());
    }

    fn error(&self, out: &mut BytesMut, error: &StatusError) {
        frame(out, "ERROR", error.to_value().to_string().as_bytes());
    }
}

fn frame(out: &mut BytesMut, kind: &str, object: &[u8]) {
    out.reserve(object.len() + 40);
    out.put_slice(b"{\"type\":\"");
    out.put_slice(kind.as_bytes());
    out.put_slice(b"\",\"object\":");
    out.put_slice(object);
    out.put_slice(b"}\n");
}
