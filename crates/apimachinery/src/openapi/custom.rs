//! Custom kinds as OpenAPI schemas: what the definition's author wrote, with the fields that every object has, and for version 2
//! without what that dialect (and kubectl's reading of it) cannot express.

use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;
use super::schemas::{Dialect, META};

/// A kind of which every text of the common fields can be had.
pub const TEXTS_FROM: &str = "io.k8s.api.core.v1.ConfigMap";

/// The schema of a kind whose structural schema is `source`.
pub fn kind(source: &str, dialect: Dialect, texts: &Descriptions) -> Value {
    // What was compiled was JSON.
    let mut schema: Value = serde_json::from_str(source).unwrap_or_default();
    if dialect == Dialect::V2 && schema["x-kubernetes-preserve-unknown-fields"] == true {
        // Any property here would make kubectl refuse the others.
        return json!({"type": "object"});
    }
    publish(&mut schema, dialect, texts);
    add_object_fields(&mut schema, dialect, texts);
    schema
}

fn publish(schema: &mut Value, dialect: Dialect, texts: &Descriptions) {
    let Value::Object(map) = schema else { return };
    if dialect == Dialect::V2 {
        fit_version_2(map);
    }
    for (_, property) in map.get_mut("properties").and_then(Value::as_object_mut).into_iter().flatten() {
        publish(property, dialect, texts);
    }
    for key in ["items", "additionalProperties"] {
        if let Some(inner) = map.get_mut(key) {
            publish(inner, dialect, texts);
        }
    }
    let embedded = map.get("x-kubernetes-embedded-resource") == Some(&Value::Bool(true));
    let open = map.get("x-kubernetes-preserve-unknown-fields") == Some(&Value::Bool(true));
    if embedded && !(open && dialect == Dialect::V2) {
        add_object_fields(schema, dialect, texts);
    }
}

/// Upstream's `ToStructuralOpenAPIV2`.
fn fit_version_2(map: &mut Map<String, Value>) {
    for junction in ["allOf", "anyOf", "oneOf", "not"] {
        map.remove(junction);
    }
    let is = |map: &Map<String, Value>, key: &str| map.get(key) == Some(&Value::Bool(true));
    let (nullable, open) = (is(map, "nullable"), is(map, "x-kubernetes-preserve-unknown-fields"));
    map.remove("nullable");
    if nullable || open {
        map.remove("items");
        map.remove("properties");
    }
    let ty = map.get("type").and_then(Value::as_str).unwrap_or_default();
    if nullable || (ty == "array" && !map.contains_key("items")) || (ty == "object" && open) {
        map.remove("type");
    }
    let properties = map.get("properties").and_then(Value::as_object);
    let nullables: Vec<String> = properties
        .into_iter()
        .flatten()
        .filter(|(_, property)| property["nullable"] == true)
        .map(|(name, _)| name.clone())
        .collect();
    if let Some(Value::Array(required)) = map.get_mut("required") {
        required.retain(|name| name.as_str().is_none_or(|name| !nullables.iter().any(|n| n == name)));
        if required.is_empty() {
            map.remove("required");
        }
    }
}

fn add_object_fields(schema: &mut Value, dialect: Dialect, texts: &Descriptions) {
    if !schema["properties"].is_object() {
        schema["properties"] = json!({});
    }
    for name in ["apiVersion", "kind"] {
        schema["properties"][name] = json!({"type": "string"});
        if let Some(text) = texts.field(TEXTS_FROM, name) {
            schema["properties"][name]["description"] = text.into();
        }
    }
    let mut metadata = dialect.reference(&format!("{META}.ObjectMeta"));
    if let Some(text) = texts.field(TEXTS_FROM, "metadata") {
        metadata = dialect.described(metadata, text);
    }
    schema["properties"]["metadata"] = metadata;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn version_2_drops_what_it_cannot_say() {
        let source = json!({
            "type": "object", "description": "d",
            "properties": {"spec": {
                "type": "object", "required": ["a", "n"], "oneOf": [{"required": ["a"]}],
                "properties": {
                    "a": {"type": "string", "format": "uuid", "pattern": "x"},
                    "n": {"type": "object", "nullable": true, "properties": {"x": {"type": "string"}}},
                    "o": {"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"x": {"type": "string"}}},
                    "e": {"type": "object", "x-kubernetes-embedded-resource": true},
                },
            }},
        });
        let texts = Descriptions::default();
        let schema = kind(&source.to_string(), Dialect::V2, &texts);
        let reference = json!({"$ref": format!("#/definitions/{META}.ObjectMeta")});
        let common = json!({"apiVersion": {"type": "string"}, "kind": {"type": "string"}, "metadata": reference});
        assert_eq!(schema["properties"]["metadata"], reference);
        assert_eq!(
            schema["properties"]["spec"],
            json!({
                "type": "object", "required": ["a"],
                "properties": {
                    "a": {"type": "string", "format": "uuid", "pattern": "x"},
                    "n": {},
                    "o": {"x-kubernetes-preserve-unknown-fields": true},
                    "e": {"type": "object", "x-kubernetes-embedded-resource": true, "properties": common},
                },
            })
        );
        let third = kind(&source.to_string(), Dialect::V3, &texts);
        assert_eq!(third["properties"]["spec"]["oneOf"], json!([{"required": ["a"]}]));
        assert_eq!(third["properties"]["spec"]["properties"]["n"]["nullable"], true);

        let open = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true, "properties": {"a": {"type": "string"}}});
        assert_eq!(kind(&open.to_string(), Dialect::V2, &texts), json!({"type": "object"}));
    }
}
