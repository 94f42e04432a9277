//! Patch: the three merge patches and server-side apply.

use apimachinery::schema::FieldValidation;
use apimachinery::schema::decode::{Decoded, Duplicates};
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, apply, meta, patch};
use bytes::Bytes;
use http::header;
use serde_json::json;

use super::create::{self, Stored};
use super::managed::{Change, Writer};
use super::options::WriteOptions;
use super::{body, find, update};
use crate::http::negotiate::BodyFormat;
use crate::http::{Body, Response};
use crate::server::{ApiServer, Call, collect, now_seconds};
use crate::strategy::Part;

const ACCEPTED: [&str; 4] = [
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
    if options.force {
        return Err(patch_invalid("force: Forbidden: may not be specified for non-apply patch"));
    }
    let document = body::parse(&bytes, BodyFormat::Json, &call.row.kind)?.value;
    let make = |call: &mut Call, old: &Value| {
        let value = patched(call, &kind, &document, old)?;
        let object = body::conform(server, call, &options, Decoded { value, ..Decoded::default() })?;
        Ok((object, Change::Patch))
    };
    let stored = update::modify(server, &mut call, &options, part, make).await?;
    update::answer(server, &call, 200, stored).await
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
        Kind::Json => document.as_array().into_iter().flatten().any(|op| {
            matches!(op.get("path").and_then(Value::as_str), Some("/metadata/resourceVersion" | "/metadata" | ""))
                && op.get("op").and_then(Value::as_str) != Some("test")
        }),
        _ => meta::at(document, &["metadata", "resourceVersion"]).is_some(),
    }
}

async fn apply(
    server: &ApiServer,
    mut call: Call,
    options: WriteOptions,
    bytes: &Bytes,
    part: Part,
) -> Result<Response> {
    if !options.field_manager_given {
        return Err(patch_invalid("fieldManager: Required value: is required for apply patch"));
    }
    let decoded = body::parse(bytes, BodyFormat::Yaml, &call.row.kind)?;
    let config = applied_configuration(&mut call, &options, decoded)?;
    if find(server, &call).is_none() {
        return apply_new(server, call, options, &config, part).await;
    }
    let force = options.force;
    let make = |call: &mut Call, old: &Value| {
        let row = call.row.clone();
        let writer = Writer::new(&row, &options, part, now_seconds());
        let mut merged = apply::apply(&row.schema, row.root, Some(old), &config, &writer.manager(), force)
            .map_err(|e| e.status())?;
        if meta::resource_version(&config).is_empty() {
            meta::remove(&mut merged, "resourceVersion");
        }
        body::set_defaults(server, &row, &mut merged);
        Ok((merged, Change::Applied))
    };
    let stored = update::modify(server, &mut call, &options, part, make).await?;
    update::answer(server, &call, 200, stored).await
}

/// Checks an applied configuration: its kind, its fields, and that it carries no system metadata. Defaults are not set: what is
/// not said is not owned.
fn applied_configuration(call: &mut Call, options: &WriteOptions, decoded: Decoded) -> Result<Value> {
    let mut config = decoded.value;
    let row = call.row.clone();
    if meta::str_at(&config, &["apiVersion"]).is_empty() || meta::str_at(&config, &["kind"]).is_empty() {
        return Err(StatusError::bad_request("invalid object type: apiVersion and kind are required for apply"));
    }
    body::check_kind(&row, &mut config)?;
    let name = meta::name(&config).to_owned();
    if !name.is_empty() && name != call.info.name {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    if meta::at(&config, &["metadata", "managedFields"]).is_some_and(|m| !m.is_null()) {
        return Err(StatusError::bad_request("metadata.managedFields must be nil"));
    }
    meta::metadata_mut(&mut config).insert("name".to_owned(), json!(call.info.name));
    if row.is_namespaced() {
        meta::metadata_mut(&mut config).insert("namespace".to_owned(), json!(call.info.namespace));
    }
    apply::fits(&row.schema, row.root, &config).map_err(|why| why.status())?;
    match (options.field_validation, decoded.duplicates.yaml_error()) {
        (FieldValidation::Strict, Some(why)) => {
            return Err(StatusError::bad_request(format!("error strict decoding YAML: {why}")));
        }
        (FieldValidation::Warn, _) => call.warnings.extend(decoded.duplicates.of_yaml()),
        _ => {}
    }
    row.check(&mut config, &Duplicates::default(), FieldValidation::Ignore)?;
    Ok(config)
}

async fn apply_new(
    server: &ApiServer,
    mut call: Call,
    options: WriteOptions,
    config: &Value,
    part: Part,
) -> Result<Response> {
    super::require_create(server, &call)?;
    let resource: GroupResource = call.row.group_resource();
    if part != Part::Main {
        return Err(StatusError::not_found(&resource, &call.info.name));
    }
    if !meta::uid(config).is_empty() || !meta::resource_version(config).is_empty() {
        let why = "uid and resourceVersion must not be set when the object does not exist";
        return Err(StatusError::conflict(&resource, &call.info.name, why));
    }
    let writer = Writer::new(&call.row, &options, part, now_seconds());
    let mut object = apply::apply(&call.row.schema, call.row.root, None, config, &writer.manager(), options.force)
        .map_err(|e| e.status())?;
    body::set_defaults(server, &call.row.clone(), &mut object);
    match create::insert(server, &mut call, &options, object, Change::Applied).await? {
        stored @ Stored::Entry(_) => update::answer(server, &call, 201, stored).await,
        Stored::Dry(object) => super::render::value(server, &call, 201, &object),
    }
}
