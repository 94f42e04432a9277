//! JSON merge patch (RFC 7386), as upstream's library does it.

use serde_json::{Map, Value};

use super::PatchError;

/// Merges `patch` into `document`. Recursion goes no deeper than the patch, whose depth its decoder has bounded.
pub fn apply(document: &mut Value, patch: Value) -> Result<(), PatchError> {
    let Value::Object(patch) = patch else {
        return Err(PatchError::Malformed("Invalid JSON Patch".to_owned()));
    };
    let Value::Object(document) = document else {
        return Err(PatchError::Other("Invalid JSON Document".to_owned()));
    };
    merge(document, patch);
    Ok(())
}

fn merge(document: &mut Map<String, Value>, patch: Map<String, Value>) {
    for (key, mut value) in patch {
        match (document.get_mut(&key), &mut value) {
            (_, Value::Null) => {
                document.remove(&key);
            }
            (Some(Value::Object(current)), Value::Object(patch)) => merge(current, std::mem::take(patch)),
            // Over an object, anything else is taken as it is; elsewhere nulls within it mean absence.
            (Some(current @ Value::Object(_)), _) => *current = value,
            (Some(current), _) => {
                prune(&mut value);
                *current = value;
            }
            (None, _) => {
                prune(&mut value);
                document.insert(key, value);
            }
        }
    }
}

/// Drops keys with null values, also from objects in lists; nulls in lists stay.
fn prune(value: &mut Value) {
    match value {
        Value::Object(map) => {
            map.retain(|_, v| !v.is_null());
            map.values_mut().for_each(prune);
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn merges() {
        for (document, patch, expected) in [
            (json!({"a": "b"}), json!({"a": "c", "b": 1}), json!({"a": "c", "b": 1})),
            (json!({"a": 1, "b": 2}), json!({"a": null, "c": null}), json!({"b": 2})),
            (json!({"a": [1, 2]}), json!({"a": [3]}), json!({"a": [3]})),
            (json!({"a": {"b": 1, "c": 2}}), json!({"a": {"b": null, "d": 3}}), json!({"a": {"c": 2, "d": 3}})),
            (json!({"a": 1}), json!({"a": {"b": null, "c": [null, {"d": null}]}}), json!({"a": {"c": [null, {}]}})),
            (json!({"a": {"b": 1}}), json!({"a": [{"b": null}]}), json!({"a": [{"b": null}]})),
            (json!({"a": null}), json!({"a": {"b": null}}), json!({"a": {}})),
        ] {
            let mut merged = document;
            apply(&mut merged, patch).unwrap();
            assert_eq!(merged, expected);
        }
        assert_eq!(apply(&mut json!({}), json!("x")).unwrap_err().status().message, "Invalid JSON Patch");
    }
}
