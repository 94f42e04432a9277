//! Subresources: `status` and `scale` for any row, those that a strategy computes, and those that connect elsewhere.

use apimachinery::Value;
use apimachinery::resource::Verb;
use apimachinery::status::{Result, StatusError};
use http::header;

use super::admit::Attributes;
use super::create::Stored;
use super::delete::{self, Cause};
use super::managed::Change;
use super::options::WriteOptions;
use super::prepare::{self, Moment};
use super::{body, current, scale, update};
use crate::admission::Operation;
use crate::http::{Body, Response, respond};
use crate::server::{ApiServer, Call, collect, is_connect};
use crate::strategy::{Part, Posted};

pub async fn dispatch(server: &ApiServer, mut call: Call, sent: Body) -> Result<Response> {
    if is_connect(&call.info) {
        return crate::proxy::connect(server, call, sent).await;
    }
    let Some(subresource) = call.row.subresource(&call.info.subresource).cloned() else {
        return Err(StatusError::no_such_path());
    };
    let verb = Verb::ALL
        .into_iter()
        .find(|v| v.as_str() == call.info.verb && subresource.verbs.contains(v))
        .ok_or_else(|| StatusError::method_not_supported(&call.row.group_resource(), &call.info.verb))?;
    if &*subresource.name == "scale" {
        return scaled(server, call, sent, verb).await;
    }
    let part = if &*subresource.name == "status" { Part::Status } else { Part::other(&subresource.name) };
    match verb {
        Verb::Get => super::get(server, &call).await,
        Verb::Update => update::put(server, call, sent, part).await,
        Verb::Patch => update_by_patch(server, call, sent, part).await,
        Verb::Create => {
            let bytes = collect(sent).await?;
            let encoding = crate::http::negotiate::body_format(call.header(header::CONTENT_TYPE))?;
            let value = body::parse(&bytes, encoding, &subresource.kind)?.value;
            if let Some(record) = &call.audit {
                record.request_object(&value);
            }
            post(server, &mut call, value).await
        }
        _ => Err(StatusError::method_not_supported(&call.row.group_resource(), verb.as_str())),
    }
}

async fn update_by_patch(server: &ApiServer, call: Call, sent: Body, part: Part) -> Result<Response> {
    super::patch::patch(server, call, sent, part).await
}

/// POST to a subresource: the strategy says what it means for the object.
async fn post(server: &ApiServer, call: &mut Call, sent: Value) -> Result<Response> {
    let Some(strategy) = server.strategies.get(&call.row) else { return Err(StatusError::no_such_path()) };
    let options = WriteOptions::of(call)?;
    let subresource = call.info.subresource.clone();
    let moment = Moment::take();
    let old = current(server, call).await?.value.value();
    let mut sent = sent;
    let attributes = Attributes::new(Operation::Create, &subresource, options.dry_run, moment);
    attributes.decide(server, call, &mut sent, Some(&old)).await?;
    let posted = strategy.post(&prepare::context(server, call, moment), &subresource, &old, &sent)?;
    match posted {
        Posted::Answer(value) => Ok(respond::value(201, call.accepted.encoding, &value)),
        Posted::Update { part } => {
            let make = |call: &mut Call, old: &Value| {
                let moment = Moment::take();
                let next = strategy.posted(&prepare::context(server, call, moment), &subresource, old, &sent)?;
                Ok((next, Change::Patch))
            };
            update::modify(server, call, &options, part, make).await?;
            Ok(respond::value(201, call.accepted.encoding, &plain_success()))
        }
        Posted::Delete { options: delete } => {
            delete::remove(server, call, &delete.dry(options.dry_run), Cause::Eviction).await?;
            Ok(respond::value(201, call.accepted.encoding, &plain_success()))
        }
    }
}

fn plain_success() -> Value {
    serde_json::json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Success", "code": 201})
}

/// A kind that is only answered: reviews. Nothing is stored.
pub async fn answer(server: &ApiServer, mut call: Call, object: Value) -> Result<Response> {
    let Some(strategy) = server.strategies.get(&call.row) else {
        return Err(StatusError::method_not_supported(&call.row.group_resource(), "create"));
    };
    let options = WriteOptions::of(&call)?;
    let moment = Moment::take();
    let mut object = object;
    let attributes = Attributes::new(Operation::Create, "", options.dry_run, moment);
    attributes.decide(server, &mut call, &mut object, None).await?;
    let answer = strategy.answer(&prepare::context(server, &call, moment), &object)?;
    super::render::value(server, &call, 201, &answer)
}

async fn scaled(server: &ApiServer, mut call: Call, sent: Body, verb: Verb) -> Result<Response> {
    let row = call.row.clone();
    if verb == Verb::Get {
        let object = current(server, &call).await?.value.value();
        return Ok(respond::value(200, call.accepted.encoding, &scale::view(&row, &object)));
    }
    let options = WriteOptions::of(&call)?;
    let media = call.header(header::CONTENT_TYPE).unwrap_or_default().to_owned();
    let bytes = collect(sent).await?;
    let wish = scale::Wish::read(&options, verb, &media, &bytes)?;
    if let Some(record) = &call.audit {
        match &wish {
            scale::Wish::Replace(scale) => record.request_object(scale),
            scale::Wish::JsonPatch(patch) | scale::Wish::MergePatch(patch) | scale::Wish::Apply(patch) => {
                record.request_patch(patch);
            }
        }
    }
    let paths = scale::paths(&server.table(), &row);
    let make = |call: &mut Call, old: &Value| {
        let next = wish.next(call, &options, &paths, old, crate::server::now_seconds())?;
        Ok((next, Change::Recorded))
    };
    let stored = update::modify(server, &mut call, &options, Part::other("scale"), make).await?;
    let object = match stored {
        Stored::Entry(entry) => entry.value.value(),
        Stored::Dry(object) => object,
    };
    Ok(respond::value(200, call.accepted.encoding, &scale::view(&row, &object)))
}
