//! Patch: the three merge patches and server-side apply.

use apimachinery::schema::FieldValidation;
use apimachinery::schema::decode::{self, Decoded, Duplicates};
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, apply, meta, patch};
use bytes::Bytes;
use http::header;
use serde_json::json;

use super::create::{self, Stored};
use super::managed::{self, Change};
use super::options::WriteOptions;
use super::{body, find, update};
use crate::http::{Body, Response};
use crate::server::{ApiServer, Call, collect, now_seconds};
use crate::strategy::Part;

pub const ACCEPTED: [&str; 4] = [
    "application/json-patch+json",
    "application/merge-patch+json",
    "application/strategic-merge-patch+json",
    "application/apply-patch+yaml",
];

enum Kind {
    Json,
    Merge,
    Strategic,
    Apply,
}

pub async fn patch(server: &ApiServer, mut call: Call, sent: Body, part: Part) -> Result<Response> {
    let media = call.header(header::CONTENT_TYPE).unwrap_or_default().split(';').next().unwrap_or_default().trim();
    let kind = match media {
        "application/json-patch+json" => Kind::Json,
        "application/merge-patch+json" => Kind::Merge,
        // A custom resource has no merge keys.
        "application/strategic-merge-patch+json" if !call.row.custom => Kind::Strategic,
        "application/apply-patch+yaml" => Kind::Apply,
        _ => return Err(StatusError::unsupported_media_type(&ACCEPTED)),
    };
    let options = WriteOptions::of(&call)?;
    let bytes = collect(sent).await?;
    if let Kind::Apply = kind {
        return apply(server, call, options, &bytes, part).await;
    }
    let document = document(&bytes)?;
    if let Some(record) = &call.audit {
        record.request_patch(&document);
    }
    if options.force {
        return Err(patch_invalid("force: Forbidden: may not be specified for non-apply patch"));
    }
    let make = |call: &mut Call, old: &Value| {
        let value = patched(call, &kind, &document, old)?;
        let object = body::conform(server, call, &options, Decoded { value, ..Decoded::default() })?;
        Ok((object, Change::Patch))
    };
    let stored = update::modify(server, &mut call, &options, part, make).await?;
    update::answer(server, &call, 200, stored).await
}

/// The document of a patch in JSON.
pub fn document(bytes: &Bytes) -> Result<Value> {
    let invalid = |_| StatusError::bad_request("invalid JSON patch");
    decode::from_json(bytes).map(|decoded| decoded.value).map_err(invalid)
}

fn patch_invalid(text: &str) -> StatusError {
    StatusError::new(422, "Invalid", format!("PatchOptions.meta.k8s.io \"\" is invalid: {text}"))
}

fn patched(call: &Call, kind: &Kind, document: &Value, old: &Value) -> Result<Value> {
    let row = &call.row;
    let outcome = match kind {
        Kind::Json => patch::json::apply(old.clone(), document),
        Kind::Merge => {
            let mut merged = old.clone();
            patch::merge::apply(&mut merged, document.clone()).map(|()| merged)
        }
        Kind::Strategic => patch::strategic::apply(&row.schema, row.root, old.clone(), document.clone()),
        Kind::Apply => return Err(StatusError::internal("apply is not a merge")),
    };
    let mut value = outcome.map_err(|error| error.status())?;
    // A patch that does not speak of the version is made from whatever is newest; one that does is pinned to it.
    if !names_version(kind, document) {
        meta::remove(&mut value, "resourceVersion");
    }
    Ok(value)
}

fn names_version(kind: &Kind, document: &Value) -> bool {
    match kind {
        Kind::Json => names_version_in(document),
        _ => meta::at(document, &["metadata", "resourceVersion"]).is_some(),
    }
}

/// Whether a JSON patch sets the version.
pub fn names_version_in(operations: &Value) -> bool {
    operations.as_array().into_iter().flatten().any(|op| {
        matches!(op.get("path").and_then(Value::as_str), Some("/metadata/resourceVersion" | "/metadata" | ""))
            && op.get("op").and_then(Value::as_str) != Some("test")
    })
}

async fn apply(
    server: &ApiServer,
    mut call: Call,
    options: WriteOptions,
    bytes: &Bytes,
    part: Part,
) -> Result<Response> {
    require_manager(&options)?;
    let config = applied_configuration(&mut call, &options, bytes)?;
    if find(server, &call).is_none() {
        return apply_new(server, call, options, config, part).await;
    }
    let make = |_: &mut Call, _: &Value| Ok((config.clone(), Change::Apply));
    let stored = update::modify(server, &mut call, &options, part, make).await?;
    update::answer(server, &call, 200, stored).await
}

/// An applier says who it is.
pub fn require_manager(options: &WriteOptions) -> Result<()> {
    if options.field_manager_given {
        return Ok(());
    }
    Err(patch_invalid("fieldManager: Required value: is required for apply patch"))
}

/// Checks an applied configuration: its kind, its fields, and that it does not say who owns them. Defaults are not set: what is not
/// said is not owned.
fn applied_configuration(call: &mut Call, options: &WriteOptions, bytes: &Bytes) -> Result<Value> {
    let decoded = decoded_configuration(bytes)?;
    let mut config = decoded.value;
    if let Some(record) = &call.audit {
        record.request_patch(&config);
    }
    let row = call.row.clone();
    managed::check_kind(&config, &row.api_version(), &row.kind)?;
    if meta::at(&config, &["metadata", "managedFields"]).is_some_and(|m| !m.is_null()) {
        return Err(StatusError::bad_request("metadata.managedFields must be nil"));
    }
    apply::fits(&row.schema, row.root, &config).map_err(|why| why.status())?;
    match (options.field_validation, decoded.duplicates.yaml_error()) {
        (FieldValidation::Strict, Some(why)) => {
            return Err(StatusError::bad_request(format!("error strict decoding patch: {why}")));
        }
        (FieldValidation::Warn, _) => call.warnings.extend(decoded.duplicates.of_yaml()),
        _ => {}
    }
    row.check(&mut config, &Duplicates::default(), FieldValidation::Ignore)?;
    Ok(config)
}

/// The YAML of an apply patch.
pub fn decoded_configuration(bytes: &Bytes) -> Result<Decoded> {
    let undecodable = |why: String| StatusError::bad_request(format!("error decoding patch: {why}"));
    let decoded =
        decode::from_yaml(bytes).map_err(|why| StatusError::bad_request(format!("error encoding patch: {why}")))?;
    match decoded.value {
        Value::Object(_) => Ok(decoded),
        // Nothing at all is an empty map, which is of no kind.
        Value::Null => Ok(Decoded { value: json!({}), ..decoded }),
        _ => Err(undecodable(
            "json: cannot unmarshal non-object into Go value of type map[string]interface {}".to_owned(),
        )),
    }
}

async fn apply_new(
    server: &ApiServer,
    mut call: Call,
    options: WriteOptions,
    config: Value,
    part: Part,
) -> Result<Response> {
    super::require_create(server, &call)?;
    let resource: GroupResource = call.row.group_resource();
    if part != Part::Main {
        return Err(StatusError::not_found(&resource, &call.info.name));
    }
    let row = call.row.clone();
    let mut object = managed::merged(server, &row, None, &config, &options, part, now_seconds()).await?;
    if !meta::uid(&config).is_empty() {
        let uid = meta::uid(&config);
        let why = format!("uid mismatch: the provided object specified uid {uid}, and no existing object was found");
        return Err(StatusError::conflict(&resource, &call.info.name, &why));
    }
    check_name(&call, meta::name(&object))?;
    meta::remove(&mut object, "resourceVersion");
    body::set_defaults(server, &row, &mut object);
    match create::insert(server, &mut call, &options, object, Change::Recorded).await? {
        stored @ Stored::Entry(_) => update::answer(server, &call, 201, stored).await,
        Stored::Dry(object) => super::render::value(server, &call, 201, &object),
    }
}

fn check_name(call: &Call, name: &str) -> Result<()> {
    let wanted = &call.info.name;
    if name.is_empty() {
        let why = format!("the name of the object ({wanted} based on URL) was undeterminable: name must be provided");
        return Err(StatusError::bad_request(why));
    }
    if name != wanted {
        let why = format!("the name of the object ({name}) does not match the name on the URL ({wanted})");
        return Err(StatusError::bad_request(why));
    }
    Ok(())
}
