//! Rows of one resource in several versions: how the served form is made of the stored one, and back.
//!
//! Most rows are served as they are stored. The exceptions differ in shape and are listed here.

use apimachinery::resource::ResourceRow;
use apimachinery::{Value, meta};
use serde_json::{Map, json};

/// Whether this object of a row is served as it is stored. A custom one may have been stored in a version that was current then, and
/// before its definition had the defaults that it has now.
pub fn is_stored_form(row: &ResourceRow, json: &[u8]) -> bool {
    if !row.custom {
        return kind_of(row).is_none();
    }
    if row.schema.has_defaults {
        return false;
    }
    has_version(row, json)
}

/// Whether an encoded object of a group is in the version of `row`.
pub fn has_version(row: &ResourceRow, json: &[u8]) -> bool {
    // `encode` writes the version first.
    let rest = json.strip_prefix(b"{\"apiVersion\":\"").and_then(|rest| rest.strip_prefix(row.group.as_bytes()));
    let rest = rest.and_then(|rest| rest.strip_prefix(b"/")).and_then(|rest| rest.strip_prefix(row.version.as_bytes()));
    rest.is_some_and(|rest| rest.starts_with(b"\""))
}

/// Versions of a custom resource differ in their name only (conversion strategy `None`).
fn versioned(mut object: Value, api_version: &str) -> Value {
    if let Some(map) = object.as_object_mut() {
        map.insert("apiVersion".to_owned(), json!(api_version));
    }
    object
}

#[derive(Clone, Copy)]
enum Conversion {
    /// `events.k8s.io/v1`, stored as core `v1`.
    NewEvent,
    /// `autoscaling/v1`, stored as `v2`.
    OldAutoscaler,
}

fn kind_of(row: &ResourceRow) -> Option<Conversion> {
    match (&*row.group, &*row.version, &*row.plural) {
        ("events.k8s.io", "v1", "events") => Some(Conversion::NewEvent),
        ("autoscaling", "v1", "horizontalpodautoscalers") => Some(Conversion::OldAutoscaler),
        _ => None,
    }
}

/// A stored object in the version of `row`.
pub fn from_storage(row: &ResourceRow, object: Value) -> Value {
    if row.custom {
        let mut object = versioned(object, &row.api_version());
        if row.schema.has_defaults {
            apimachinery::schema::default(&row.schema, row.root, &mut object);
        }
        return object;
    }
    match kind_of(row) {
        None => object,
        Some(Conversion::NewEvent) => renamed(object, "events.k8s.io/v1", &EVENT_FIELDS, false),
        Some(Conversion::OldAutoscaler) => autoscaler_to_v1(object),
    }
}

/// An object of `row` in the version that is stored.
pub fn to_storage(row: &ResourceRow, object: Value) -> Value {
    if row.custom {
        return versioned(object, &format!("{}/{}", row.group, row.storage_version));
    }
    match kind_of(row) {
        None => object,
        Some(Conversion::NewEvent) => renamed(object, "v1", &EVENT_FIELDS, true),
        Some(Conversion::OldAutoscaler) => autoscaler_to_v2(object),
    }
}

/// Names of the same field in `v1` and in `events.k8s.io/v1`.
const EVENT_FIELDS: [(&str, &str); 7] = [
    ("involvedObject", "regarding"),
    ("message", "note"),
    ("source", "deprecatedSource"),
    ("firstTimestamp", "deprecatedFirstTimestamp"),
    ("lastTimestamp", "deprecatedLastTimestamp"),
    ("count", "deprecatedCount"),
    ("reportingComponent", "reportingController"),
];

fn renamed(object: Value, api_version: &str, names: &[(&str, &str)], back: bool) -> Value {
    let Value::Object(map) = object else { return object };
    let mut out: Map<String, Value> = map
        .into_iter()
        .map(|(key, value)| {
            let found = names.iter().find(|(old, new)| key == if back { *new } else { *old });
            let key = found.map_or(key, |(old, new)| (if back { *old } else { *new }).to_owned());
            (key, value)
        })
        .collect();
    out.insert("apiVersion".to_owned(), json!(api_version));
    Value::Object(out)
}

/// Upstream keeps what `v1` cannot say in this annotation.
const METRICS: &str = "autoscaling.alpha.kubernetes.io/metrics";

fn autoscaler_to_v1(mut object: Value) -> Value {
    object["apiVersion"] = json!("autoscaling/v1");
    let metrics = object.get_mut("spec").and_then(Value::as_object_mut).and_then(|s| s.remove("metrics"));
    let mut others = Vec::new();
    for metric in metrics.as_ref().and_then(Value::as_array).into_iter().flatten() {
        let cpu = meta::str_at(metric, &["type"]) == "Resource" && meta::str_at(metric, &["resource", "name"]) == "cpu";
        match meta::at(metric, &["resource", "target", "averageUtilization"]) {
            Some(percent) if cpu => object["spec"]["targetCPUUtilizationPercentage"] = percent.clone(),
            _ => others.push(metric.clone()),
        }
    }
    if !others.is_empty() {
        let text = json!(others).to_string();
        let metadata = meta::metadata_mut(&mut object);
        metadata.entry("annotations").or_insert_with(|| json!({}))[METRICS] = json!(text);
    }
    if let Some(spec) = object.get_mut("spec").and_then(Value::as_object_mut) {
        spec.remove("behavior");
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut) {
        status.remove("conditions");
        let current = status.remove("currentMetrics");
        let cpu = current
            .as_ref()
            .and_then(Value::as_array)
            .into_iter()
            .flatten()
            .find_map(|m| meta::at(m, &["resource", "current", "averageUtilization"]).cloned());
        if let Some(cpu) = cpu {
            status.insert("currentCPUUtilizationPercentage".to_owned(), cpu);
        }
    }
    object
}

fn autoscaler_to_v2(mut object: Value) -> Value {
    object["apiVersion"] = json!("autoscaling/v2");
    let percent =
        object.get_mut("spec").and_then(Value::as_object_mut).and_then(|s| s.remove("targetCPUUtilizationPercentage"));
    let kept = object
        .get_mut("metadata")
        .and_then(|m| m.get_mut("annotations"))
        .and_then(Value::as_object_mut)
        .and_then(|a| a.remove(METRICS));
    let mut metrics: Vec<Value> =
        kept.as_ref().and_then(Value::as_str).and_then(|t| serde_json::from_str(t).ok()).unwrap_or_default();
    if let Some(percent) = percent {
        metrics.insert(
            0,
            json!({
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": percent}},
            }),
        );
    }
    if !metrics.is_empty() {
        object["spec"]["metrics"] = json!(metrics);
    }
    if let Some(status) = object.get_mut("status").and_then(Value::as_object_mut)
        && let Some(cpu) = status.remove("currentCPUUtilizationPercentage")
    {
        status.insert(
            "currentMetrics".to_owned(),
            json!([{
                "type": "Resource", "resource": {"name": "cpu", "current": {"averageUtilization": cpu}},
            }]),
        );
    }
    object
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_rename_both_ways() {
        let old =
            json!({"apiVersion": "v1", "kind": "Event", "involvedObject": {"name": "x"}, "message": "m", "count": 2});
        let new = renamed(old.clone(), "events.k8s.io/v1", &EVENT_FIELDS, false);
        assert_eq!(new["regarding"]["name"], "x");
        assert_eq!(new["deprecatedCount"], 2);
        assert_eq!(renamed(new, "v1", &EVENT_FIELDS, true), old);
    }

    #[test]
    fn autoscaler_round_trip() {
        let v1 =
            json!({"apiVersion": "autoscaling/v1", "spec": {"maxReplicas": 3, "targetCPUUtilizationPercentage": 80}});
        let v2 = autoscaler_to_v2(v1.clone());
        assert_eq!(v2["spec"]["metrics"][0]["resource"]["target"]["averageUtilization"], 80);
        assert_eq!(autoscaler_to_v1(v2), v1);
    }
}
