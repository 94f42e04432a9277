//! List: from a revision, in chunks, by selectors; the answer is stored buffers strung together.

use apimachinery::Value;
use apimachinery::status::{Cause, Details, Result, StatusError};
use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use bytes::{Bytes, BytesMut};
use serde::{Deserialize, Serialize};
use serde_json::json;
use store::{Range, Revision};

use super::filter::Filter;
use super::namespace_of;
use super::render::{self, Include};
use crate::http::negotiate::{Encoding, Shape};
use crate::http::{BoxError, Response, respond};
use crate::object::Entry;
use crate::server::{ApiServer, Call};
use crate::strategy::convert;
use crate::view::{end_of, folder};

/// Size of the pieces in which a long list is sent, in bytes.
const CHUNK: usize = 128 * 1024;

/// Objects looked at in one read when a selector leaves most of them out.
const FILTERED_PAGE: usize = 500;

/// The inside of a continue token, upstream's fields.
#[derive(Debug, Serialize, Deserialize)]
struct Token {
    v: String,
    rv: i64,
    start: String,
}

/// What part of a resource is asked for.
struct Query {
    start: String,
    end: String,
    limit: usize,
    revision: Option<Revision>,
    continued: bool,
}

struct Page {
    entries: Vec<Entry>,
    revision: Revision,
    next: Option<String>,
    remaining: Option<usize>,
}

pub async fn list(server: &ApiServer, call: &Call) -> Result<Response> {
    let filter = Filter::of(call)?;
    let query = query(server, call)?;
    let page = page(server, call, &query, &filter).await?;
    let mut metadata = json!({ "resourceVersion": page.revision.to_string() });
    if let Some(next) = &page.next {
        metadata["continue"] = json!(next);
    }
    if let Some(remaining) = page.remaining {
        metadata["remainingItemCount"] = json!(remaining);
    }
    match call.accepted.shape {
        Shape::Table => Ok(table(server, call, &metadata, &page.entries)),
        Shape::Partial => Ok(partial(call, &metadata, &page.entries)),
        Shape::Object if call.accepted.encoding == Encoding::Yaml => Ok(yaml(call, &metadata, &page.entries)),
        Shape::Object => Ok(buffers(call, &metadata, page.entries)),
    }
}

fn query(server: &ApiServer, call: &Call) -> Result<Query> {
    let start = folder(&call.row.storage_prefix, namespace_of(call));
    let end = end_of(&start);
    let limit = usize::try_from(call.query.number("limit")?.unwrap_or(0)).unwrap_or(0);
    let version = call.query.get("resourceVersion").unwrap_or_default();
    let matching = call.query.get("resourceVersionMatch").unwrap_or_default();
    let token = call.query.get("continue").unwrap_or_default();
    let newest = server.view.store().revision();
    if !token.is_empty() {
        if !version.is_empty() && version != "0" {
            return Err(StatusError::bad_request("specifying resource version is not allowed when using continue"));
        }
        let token = decode_token(token)?;
        let revision = Revision::try_from(token.rv).ok().filter(|rv| *rv > 0);
        if let Some(wanted) = revision.filter(|rv| *rv > newest) {
            return Err(too_large(wanted, newest));
        }
        return Ok(Query { start: format!("{start}{}", token.start), end, limit, revision, continued: true });
    }
    let revision = match (version, matching) {
        ("", "") | ("0", "" | "NotOlderThan") => None,
        ("", _) => return Err(invalid_match("resourceVersionMatch is forbidden unless resourceVersion is provided")),
        (text, "Exact") => Some(parse_version(text)?),
        (text, "" | "NotOlderThan") => {
            let wanted = parse_version(text)?;
            if wanted > newest {
                return Err(too_large(wanted, newest));
            }
            // A limited list at a version without a match rule is exact, as upstream's legacy behaviour.
            (matching.is_empty() && limit > 0).then_some(wanted)
        }
        (_, other) => {
            let text = format!("Unsupported value: {other:?}: supported values: \"Exact\", \"NotOlderThan\"");
            return Err(StatusError::new(
                422,
                "Invalid",
                format!("ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: {text}"),
            ));
        }
    };
    if matching == "Exact" && version == "0" {
        return Err(invalid_match("resourceVersionMatch \"exact\" is forbidden for resourceVersion \"0\""));
    }
    if let Some(wanted) = revision
        && wanted > newest
    {
        return Err(too_large(wanted, newest));
    }
    Ok(Query { start, end, limit, revision, continued: false })
}

fn invalid_match(why: &str) -> StatusError {
    let message = format!("ListOptions.meta.k8s.io \"\" is invalid: resourceVersionMatch: Forbidden: {why}");
    StatusError::new(422, "Invalid", message)
}

pub fn parse_version(text: &str) -> Result<Revision> {
    text.parse().map_err(|_| {
        StatusError::bad_request(format!(
            "Invalid value: {text:?}: strconv.ParseUint: parsing {text:?}: invalid syntax"
        ))
    })
}

/// A version that this server has not reached: clients retry on the cause `ResourceVersionTooLarge`.
pub fn too_large(wanted: Revision, newest: Revision) -> StatusError {
    let message = format!("Too large resource version: {wanted}, current: {newest}");
    StatusError::timeout(format!("Timeout: {message}"), 1).with_details(Details {
        retry_after_seconds: 1,
        causes: vec![Cause {
            reason: "ResourceVersionTooLarge".to_owned(),
            message: "Too large resource version".to_owned(),
            field: String::new(),
        }],
        ..Details::default()
    })
}

fn decode_token(text: &str) -> Result<Token> {
    let bad = || StatusError::bad_request("continue key is not valid");
    let bytes = URL_SAFE_NO_PAD.decode(text.trim_end_matches('=')).map_err(|_| bad())?;
    let token: Token = serde_json::from_slice(&bytes).map_err(|_| bad())?;
    if token.v != "meta.k8s.io/v1" || token.start.is_empty() || token.start.starts_with('/') {
        return Err(bad());
    }
    Ok(token)
}

fn encode_token(revision: i64, start: &str) -> String {
    let token = Token { v: "meta.k8s.io/v1".to_owned(), rv: revision, start: start.to_owned() };
    URL_SAFE_NO_PAD.encode(serde_json::to_vec(&token).unwrap_or_default())
}

/// Reads until `limit` objects match. Without a selector that is one range.
async fn page(server: &ApiServer, call: &Call, query: &Query, filter: &Filter) -> Result<Page> {
    let store = server.view.store();
    let everything = filter.is_everything();
    let prefix = folder(&call.row.storage_prefix, namespace_of(call));
    let mut start = query.start.clone();
    let mut revision = query.revision;
    let mut entries: Vec<Entry> = Vec::new();
    // With a selector few of many may match: small limits must not make as many small reads.
    let page_limit = if everything || query.limit == 0 { query.limit } else { query.limit.max(FILTERED_PAGE) };
    loop {
        let range = Range { start: start.clone(), end: query.end.clone(), limit: page_limit, revision };
        let mut listing = store.range(&range).map_err(|error| match error {
            store::Error::Compacted { .. } if query.continued => expired_token(query, &prefix),
            other => crate::error::from_store(other),
        })?;
        revision = Some(listing.revision);
        listing.entries = super::convert::entries(server, &call.row, listing.entries).await?;
        let last = listing.entries.last().map(|e| e.key.to_string());
        let mut full = false;
        for entry in listing.entries {
            if everything || filter.matches(&call.row, &entry) {
                entries.push(entry);
                full = query.limit > 0 && entries.len() == query.limit;
                if full {
                    break;
                }
            }
        }
        let consumed = if full { entries.last().map(|e| e.key.to_string()) } else { last };
        let more = listing.more || (full && !everything);
        if !full && listing.more {
            start = format!("{}\0", consumed.unwrap_or_default());
            continue;
        }
        let rv = i64::try_from(listing.revision).unwrap_or(i64::MAX);
        let next = (more && query.limit > 0)
            .then(|| {
                consumed
                    .as_deref()
                    .and_then(|k| k.strip_prefix(&prefix))
                    .map(|rest| encode_token(rv, &format!("{rest}\0")))
            })
            .flatten();
        let remaining = (next.is_some() && everything).then_some(listing.remaining);
        return Ok(Page { entries, revision: listing.revision, next, remaining });
    }
}

/// The snapshot of a chunked list is gone. The answer carries a token to go on at the newest state, as upstream's.
fn expired_token(query: &Query, prefix: &str) -> StatusError {
    let mut error = StatusError::expired(
        "The provided continue parameter is too old to display a consistent list result. You can start a new list without \
         the continue parameter, or use the continue token in this response to retrieve the remainder of the results. \
         Continuing with the provided token results in an inconsistent list - objects that were created, modified, or \
         deleted between the time the first chunk was returned and now may show up in the list.",
    );
    error.continue_token = query.start.strip_prefix(prefix).map(|rest| encode_token(-1, rest).into());
    error
}

/// The plain form: head, buffers, tail. Nothing is parsed or copied until the client takes it.
fn buffers(call: &Call, metadata: &Value, entries: Vec<Entry>) -> Response {
    let head = format!(
        "{{\"kind\":{:?},\"apiVersion\":{:?},\"metadata\":{metadata},\"items\":[",
        call.row.list_kind,
        call.row.api_version()
    );
    let size: usize = entries.iter().map(|e| e.value.json().len() + 1).sum::<usize>() + head.len() + 2;
    let row = call.row.clone();
    if size <= CHUNK {
        let mut out = BytesMut::with_capacity(size);
        out.extend_from_slice(head.as_bytes());
        for (index, entry) in entries.iter().enumerate() {
            if index > 0 {
                out.extend_from_slice(b",");
            }
            out.extend_from_slice(&render::json_of(&row, &entry.value));
        }
        out.extend_from_slice(b"]}");
        return respond::bytes(200, "application/json", out.freeze());
    }
    let mut entries = entries.into_iter();
    let mut lead = Some(head);
    let mut done = false;
    let chunks = std::iter::from_fn(move || {
        if done {
            return None;
        }
        let mut out = BytesMut::with_capacity(CHUNK + 8 * 1024);
        let first_chunk = lead.is_some();
        if let Some(head) = lead.take() {
            out.extend_from_slice(head.as_bytes());
        }
        let mut first = first_chunk;
        while out.len() < CHUNK {
            let Some(entry) = entries.next() else {
                out.extend_from_slice(b"]}");
                done = true;
                break;
            };
            if !first {
                out.extend_from_slice(b",");
            }
            first = false;
            out.extend_from_slice(&render::json_of(&row, &entry.value));
        }
        Some(Ok::<Bytes, BoxError>(out.freeze()))
    });
    respond::with_body(200, "application/json", respond::streamed(futures::stream::iter(chunks)))
}

fn yaml(call: &Call, metadata: &Value, entries: &[Entry]) -> Response {
    let items: Vec<Value> = entries.iter().map(|e| convert::from_storage(&call.row, e.value.value())).collect();
    let list = json!({
        "kind": call.row.list_kind, "apiVersion": call.row.api_version(), "metadata": metadata, "items": items,
    });
    respond::value(200, Encoding::Yaml, &list)
}

fn partial(call: &Call, metadata: &Value, entries: &[Entry]) -> Response {
    let items: Vec<Value> =
        entries.iter().map(|e| render::partial(&convert::from_storage(&call.row, e.value.value()))).collect();
    let list = json!({
        "kind": "PartialObjectMetadataList", "apiVersion": "meta.k8s.io/v1", "metadata": metadata, "items": items,
    });
    respond::value(200, call.accepted.encoding, &list)
}

fn table(server: &ApiServer, call: &Call, metadata: &Value, entries: &[Entry]) -> Response {
    let include = Include::of(call);
    let rows = entries
        .iter()
        .map(|e| {
            let object = convert::from_storage(&call.row, e.value.value());
            render::table_row(&call.row, &object, include, server)
        })
        .collect();
    let table = render::table_of(&call.row, Some(metadata), rows, true);
    respond::value(200, call.accepted.encoding, &table)
}
