//! One implementation of every verb for every row of the resource table.
//!
//! What is special about a kind comes from its row and its strategy; no code here names one.

mod admit;
mod body;
mod commit;
pub mod convert;
mod create;
mod delete;
mod filter;
mod fresh;
mod list;
mod managed;
mod meta;
mod options;
mod patch;
mod prepare;
mod render;
mod scale;
mod subresource;
mod update;
mod watch;

use apimachinery::resource::Verb;
use apimachinery::status::{Result, StatusError};

pub use body::set_defaults;
pub use delete::DeleteOptions;
pub use meta::timestamp;
pub use options::WriteOptions;

use crate::http::{Body, Response};
use crate::object::Entry;
use crate::server::{ApiServer, Call};

/// Carries out one authorised request for a resource.
pub async fn dispatch(server: &ApiServer, call: Call, body: Body) -> Result<Response> {
    fresh::wait(server, &call).await?;
    if !call.info.subresource.is_empty() {
        return subresource::dispatch(server, call, body).await;
    }
    let verb = verb_of(&call)?;
    if !call.row.verbs.contains(&verb) {
        return Err(StatusError::method_not_supported(&call.row.group_resource(), verb.as_str()));
    }
    let named =
        matches!(verb, Verb::Create | Verb::Update | Verb::Patch | Verb::Delete | Verb::Get | Verb::DeleteCollection);
    if named && call.row.is_namespaced() && call.info.namespace.is_empty() {
        return Err(method_not_allowed());
    }
    match verb {
        Verb::Get => get(server, &call).await,
        Verb::List => list::list(server, &call).await,
        Verb::Watch => watch::watch(server, &call).await,
        Verb::Create => create::create(server, call, body).await,
        Verb::Update => update::put(server, call, body, crate::strategy::Part::Main).await,
        Verb::Patch => patch::patch(server, call, body, crate::strategy::Part::Main).await,
        Verb::Delete => delete::delete(server, call, body).await,
        Verb::DeleteCollection => delete::delete_collection(server, call, body).await,
    }
}

fn method_not_allowed() -> StatusError {
    StatusError::new(405, "MethodNotAllowed", "the server does not allow this method on the requested resource")
}

fn verb_of(call: &Call) -> Result<Verb> {
    let verb = Verb::ALL.into_iter().find(|v| v.as_str() == call.info.verb).ok_or_else(method_not_allowed)?;
    // POST goes to a collection; PUT and PATCH to an object.
    let wants_name = matches!(verb, Verb::Update | Verb::Patch);
    if (wants_name && call.info.name.is_empty()) || (verb == Verb::Create && !call.info.name.is_empty()) {
        return Err(method_not_allowed());
    }
    Ok(verb)
}

async fn get(server: &ApiServer, call: &Call) -> Result<Response> {
    let entry = current(server, call).await?;
    render::entry(server, call, 200, &entry).await
}

/// The stored object that the request names, in the version that it asks for where that takes a webhook.
async fn current(server: &ApiServer, call: &Call) -> Result<Entry> {
    let missing = || StatusError::not_found(&call.row.group_resource(), &call.info.name);
    convert::entry(server, &call.row, find(server, call).ok_or_else(missing)?).await
}

fn find(server: &ApiServer, call: &Call) -> Option<Entry> {
    server.view.get(&call.row.storage_prefix, namespace_of(call), &call.info.name)
}

/// The namespace part of the key: empty for cluster scope, also where the request info repeats a namespace's own name.
fn namespace_of(call: &Call) -> &str {
    if call.row.is_namespaced() { &call.info.namespace } else { "" }
}

fn key_of(call: &Call, name: &str) -> String {
    crate::view::key(&call.row.storage_prefix, namespace_of(call), name)
}

/// Admission of a connecting subresource, whose options are the object. Logs are only read.
pub async fn connect_admission(server: &ApiServer, call: &mut Call, subresource: &str, kind: &str) -> Result<()> {
    if subresource == "log" {
        return Ok(());
    }
    let options = WriteOptions::of(call)?;
    let operation = crate::admission::Operation::Connect;
    let attributes = admit::Attributes::new(operation, subresource, options.dry_run, prepare::Moment::take());
    let mut object = connect_options(call, kind);
    attributes.decide(server, call, &mut object, None).await
}

/// The query of a connecting request as its options object (`PodExecOptions`, `ServiceProxyOptions`, …).
fn connect_options(call: &Call, kind: &str) -> apimachinery::Value {
    let mut options = serde_json::json!({"kind": kind, "apiVersion": "v1"});
    let query = &call.query;
    for key in ["stdin", "stdout", "stderr", "tty"] {
        if query.flag(key) {
            options[key] = true.into();
        }
    }
    for key in ["container", "path"] {
        if let Some(text) = query.get(key) {
            options[key] = text.into();
        }
    }
    if kind.ends_with("ProxyOptions") && !call.info.rest.is_empty() {
        options["path"] = call.info.rest.as_str().into();
    }
    let command: Vec<&str> = query.all("command").collect();
    if !command.is_empty() {
        options["command"] = command.into();
    }
    let ports: Vec<i64> = query.all("ports").flat_map(|p| p.split(',')).filter_map(|p| p.parse().ok()).collect();
    if !ports.is_empty() {
        options["ports"] = ports.into();
    }
    options
}

/// An update that creates needs the right to create.
fn require_create(server: &ApiServer, call: &Call) -> Result<()> {
    let info = crate::request::RequestInfo { verb: "create".to_owned(), ..call.info.clone() };
    crate::authz::require(&server.authorizer, &call.user, &info)
}

/// The bytes to store, unless they are more than a client could have sent: objects must not grow by patches without bound.
fn encoded(object: &apimachinery::Value) -> Result<bytes::Bytes> {
    let bytes = crate::object::encode(object);
    if bytes.len() > crate::server::MAX_BODY_BYTES {
        let limit = crate::server::MAX_BODY_BYTES;
        return Err(StatusError::request_too_large(format!(
            "Request entity too large: the object would be {} bytes, limit is {limit}",
            bytes.len()
        )));
    }
    Ok(bytes)
}
