//! The `scale` subresource of any row: an `autoscaling/v1 Scale` view of three places in the object.

use std::sync::LazyLock;

use apimachinery::apply::scale::{ReplicasPaths, SCALE_VERSION, owners_of_parent, owners_of_scale};
use apimachinery::apply::{self, Filter, Manager, OneVersion};
use apimachinery::resource::{ResourceRow, ResourceTable, Verb};
use apimachinery::schema::{Schema, TypeId, builtin};
use apimachinery::selector::label::LabelSelector;
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta, patch};
use bytes::Bytes;
use serde_json::json;

use super::options::WriteOptions;
use super::{body, managed};
use crate::http::negotiate::body_format;
use crate::server::Call;

/// Where a kind keeps its scale. The defaults are those of all built-in kinds.
const SPEC_REPLICAS: [&str; 2] = ["spec", "replicas"];
const STATUS_REPLICAS: [&str; 2] = ["status", "replicas"];

/// The Scale of `object`.
pub fn view(_row: &ResourceRow, object: &Value) -> Value {
    let number = |path: &[&str]| meta::at(object, path).and_then(Value::as_i64).unwrap_or(0);
    let mut metadata = json!({});
    for key in ["name", "namespace", "uid", "resourceVersion", "creationTimestamp"] {
        if let Some(value) = meta::at(object, &["metadata", key]) {
            metadata[key] = value.clone();
        }
    }
    let mut status = json!({ "replicas": number(&STATUS_REPLICAS) });
    let selector = selector_text(object.get("spec").and_then(|s| s.get("selector")));
    if !selector.is_empty() {
        status["selector"] = json!(selector);
    }
    json!({
        "kind": "Scale", "apiVersion": "autoscaling/v1", "metadata": metadata,
        "spec": {"replicas": number(&SPEC_REPLICAS)}, "status": status,
    })
}

/// The text of a `LabelSelector`, or of a plain map as replication controllers have it.
fn selector_text(selector: Option<&Value>) -> String {
    let Some(selector) = selector else { return String::new() };
    let is_structured = selector.get("matchLabels").is_some() || selector.get("matchExpressions").is_some();
    let parsed = if is_structured {
        LabelSelector::from_value(selector)
    } else {
        LabelSelector::from_value(&json!({ "matchLabels": selector }))
    };
    parsed.map(|s| s.to_string()).unwrap_or_default()
}

/// The wish of a Scale: a 32-bit integer, zero when absent, as typed decoding has it.
fn replicas_of(scale: &Value) -> Result<i64> {
    let Some(found) = meta::at(scale, &SPEC_REPLICAS).filter(|v| !v.is_null()) else { return Ok(0) };
    found.as_i64().filter(|n| i32::try_from(*n).is_ok()).ok_or_else(|| {
        StatusError::bad_request(format!(
            "Scale in version \"v1\" cannot be handled as a Scale: json: cannot unmarshal {found} into Go struct field \
             ScaleSpec.spec.replicas of type int32"
        ))
    })
}

/// Sets the wish of `scale` in `object`.
pub fn set(row: &ResourceRow, object: &mut Value, scale: &Value) -> Result<()> {
    let replicas = replicas_of(scale)?;
    if replicas < 0 {
        let path = apimachinery::field::Path::new("spec").child("replicas");
        let error = apimachinery::field::Error::invalid(&path, &json!(replicas), "must be greater than or equal to 0");
        let kind = apimachinery::status::GroupResource::new("autoscaling", "Scale");
        return Err(StatusError::invalid(&kind, meta::name(object), &[error]));
    }
    let wanted = meta::resource_version(scale);
    if !wanted.is_empty() && wanted != meta::resource_version(object) {
        return Err(StatusError::modified(&row.group_resource(), meta::name(object)));
    }
    meta::map_mut(object, "spec").insert("replicas".to_owned(), json!(replicas));
    meta::remove(object, "resourceVersion");
    Ok(())
}

/// Where each version of a row's kind keeps its replicas.
pub fn paths(table: &ResourceTable, row: &ResourceRow) -> ReplicasPaths {
    let versions = table.rows().filter(|other| other.group == row.group && other.plural == row.plural);
    let path = |row: &ResourceRow| row.subresource("scale").map(|_| SPEC_REPLICAS.map(str::to_owned).to_vec());
    versions.map(|other| (other.api_version(), path(other))).collect()
}

fn schema() -> Option<(&'static Schema, TypeId)> {
    let schema = builtin();
    Some((schema, schema.by_kind("autoscaling", "v1", "Scale")?))
}

/// What a write to `scale` asks for.
pub enum Wish {
    Replace(Value),
    JsonPatch(Value),
    /// A Scale has neither lists nor merge keys, so both merge patches agree on it.
    MergePatch(Value),
    Apply(Value),
}

impl Wish {
    pub fn read(options: &WriteOptions, verb: Verb, media: &str, bytes: &Bytes) -> Result<Self> {
        if verb == Verb::Update {
            return Ok(Wish::Replace(body::parse(bytes, body_format(Some(media))?, "Scale")?.value));
        }
        let parse = || super::patch::document(bytes);
        match media.split(';').next().unwrap_or_default().trim() {
            "application/json-patch+json" => Ok(Wish::JsonPatch(parse()?)),
            "application/apply-patch+yaml" => {
                super::patch::require_manager(options)?;
                let config = super::patch::decoded_configuration(bytes)?.value;
                managed::check_kind(&config, SCALE_VERSION, "Scale")?;
                Ok(Wish::Apply(config))
            }
            "application/merge-patch+json" | "application/strategic-merge-patch+json" => Ok(Wish::MergePatch(parse()?)),
            _ => Err(StatusError::unsupported_media_type(&super::patch::ACCEPTED)),
        }
    }

    /// The object that `old` becomes, its owners among it.
    pub fn next(
        &self,
        call: &Call,
        options: &WriteOptions,
        paths: &ReplicasPaths,
        old: &Value,
        now: i64,
    ) -> Result<Value> {
        let row = &call.row;
        let mut view = view(row, old);
        if let Some(owners) = owners_of_scale(old, paths) {
            meta::metadata_mut(&mut view).insert("managedFields".to_owned(), owners);
        }
        let wanted = self.scale(options, &view, now)?;
        let name = meta::name(&wanted);
        if !name.is_empty() && name != call.info.name {
            return Err(StatusError::bad_request(format!(
                "the name of the object ({name}) does not match the name on the URL ({})",
                call.info.name
            )));
        }
        let mut next = old.clone();
        set(row, &mut next, &wanted)?;
        meta::remove(&mut next, "managedFields");
        if let Some(owners) = owners_of_parent(old, &wanted, &row.api_version(), paths) {
            meta::metadata_mut(&mut next).insert("managedFields".to_owned(), owners);
        }
        Ok(next)
    }

    /// The Scale that is wished for, with its owners.
    fn scale(&self, options: &WriteOptions, view: &Value, now: i64) -> Result<Value> {
        static ALL: LazyLock<Filter> = LazyLock::new(Filter::all);
        let now = super::meta::timestamp(now);
        let name = &options.field_manager;
        let manager = Manager { name, api_version: SCALE_VERSION, subresource: "scale", now: &now, reset: &ALL };
        let (schema, root) = schema().ok_or_else(|| StatusError::internal("there is no schema of Scale"))?;
        let mut pinned = true;
        let mut wanted = match self {
            Wish::Replace(scale) => scale.clone(),
            Wish::JsonPatch(operations) => {
                patch::json::apply(view.clone(), operations).map_err(|error| error.status())?
            }
            Wish::MergePatch(document) => {
                pinned = meta::at(document, &["metadata", "resourceVersion"]).is_some();
                let mut merged = view.clone();
                patch::merge::apply(&mut merged, document.clone()).map_err(|error| error.status())?;
                merged
            }
            Wish::Apply(config) => {
                pinned = !meta::resource_version(config).is_empty();
                apply::apply(schema, root, &OneVersion, Some(view), config, &manager, options.force)
                    .map_err(|error| error.status())?
            }
        };
        if let Wish::JsonPatch(operations) = self {
            pinned = super::patch::names_version_in(operations);
        }
        if !pinned {
            meta::remove(&mut wanted, "resourceVersion");
        }
        if !matches!(self, Wish::Apply(_)) {
            apply::track_update(schema, root, &OneVersion, Some(view), &mut wanted, &manager)
                .map_err(StatusError::internal)?;
        }
        Ok(wanted)
    }
}
