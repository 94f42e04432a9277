//! The `scale` subresource of any row: an `autoscaling/v1 Scale` view of three places in the object.

use apimachinery::resource::ResourceRow;
use apimachinery::selector::label::LabelSelector;
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::json;

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
