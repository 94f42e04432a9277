//! JSON Patch (RFC 6902) as upstream's library (evanphx/json-patch v4) does it, its leniences and words included: negative array
//! indices count from the end, `replace` of a missing key adds it, `test` takes a missing key for null.

use std::borrow::Cow;

use serde_json::{Map, Value};

use super::{PatchError, depth};
use crate::schema::MAX_DEPTH;

/// Upstream's `maxJSONPatchOperations`.
pub const MAX_OPERATIONS: usize = 10_000;
/// Upstream's `JSONPatchMaxCopyBytes`: how much all `copy` operations of a patch may add, in bytes of JSON.
pub const MAX_COPIED: usize = 3 * 1024 * 1024;

/// What goes wrong within one operation.
type Fault = String;

/// Applies a patch, given as the decoded array of operations.
pub fn apply(mut document: Value, patch: &Value) -> Result<Value, PatchError> {
    let Value::Array(operations) = patch else {
        let text = format!("json: cannot unmarshal {} into Go value of type jsonpatch.Patch", json_type(patch));
        return Err(PatchError::Malformed(text));
    };
    if operations.len() > MAX_OPERATIONS {
        let count = operations.len();
        let text = format!("The allowed maximum operations in a JSON patch is {MAX_OPERATIONS}, got {count}");
        return Err(PatchError::TooLarge(text));
    }
    let mut copied = 0;
    for operation in operations {
        let Value::Object(operation) = operation else {
            let kind = json_type(operation);
            let text = format!("json: cannot unmarshal {kind} into Go value of type jsonpatch.Operation");
            return Err(PatchError::Malformed(text));
        };
        if operation.get("op").and_then(Value::as_str) == Some("test") {
            test(&mut document, operation)?;
        } else {
            run(&mut document, operation, &mut copied).map_err(PatchError::Unprocessable)?;
        }
    }
    Ok(document)
}

fn json_type(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "bool",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn run(document: &mut Value, operation: &Map<String, Value>, copied: &mut usize) -> Result<(), Fault> {
    let text = |name: &str| operation.get(name).and_then(Value::as_str);
    let path = text("path");
    let value = operation.get("value").unwrap_or(&Value::Null);
    let need_path = |verb: &str| path.ok_or_else(|| format!("{verb} operation failed to decode path: missing value"));
    let need_from = |verb: &str| {
        let missing = format!("{verb} operation failed to decode from: operation, missing from field: missing value");
        text("from").ok_or(missing)
    };
    match text("op").unwrap_or("unknown") {
        "add" => add(document, need_path("add")?, value),
        "remove" => remove(document, need_path("remove")?),
        "replace" => replace(document, need_path("replace")?, value),
        "move" => {
            let from = need_from("move")?;
            let (container, key) = find(document, from).ok_or_else(|| {
                format!("move operation does not apply: doc is missing from path: {from}: missing value")
            })?;
            let taken = take(container, &key).map_err(|e| format!("error in move for path: '{key}': {e}"))?;
            let path = need_path("move")?;
            let (container, key) = find(document, path).ok_or_else(|| {
                format!("move operation does not apply: doc is missing destination path: {path}: missing value")
            })?;
            bounded(path, &taken)?;
            insert(container, &key, taken).map_err(|e| format!("error in move for path: '{path}': {e}"))
        }
        "copy" => copy(document, need_from("copy")?, need_path("copy"), copied),
        other => Err(format!("Unexpected kind: {other}")),
    }
}

fn add(document: &mut Value, path: &str, value: &Value) -> Result<(), Fault> {
    let (container, key) = find(document, path)
        .ok_or_else(|| format!("add operation does not apply: doc is missing path: \"{path}\": missing value"))?;
    bounded(path, value)?;
    insert(container, &key, value.clone()).map_err(|e| format!("error in add for path: '{path}': {e}"))
}

fn remove(document: &mut Value, path: &str) -> Result<(), Fault> {
    let (container, key) = find(document, path)
        .ok_or_else(|| format!("remove operation does not apply: doc is missing path: \"{path}\": missing value"))?;
    take(container, &key).map(drop).map_err(|e| format!("error in remove for path: '{path}': {e}"))
}

fn replace(document: &mut Value, path: &str, value: &Value) -> Result<(), Fault> {
    if path.is_empty() {
        if !value.is_object() && !value.is_array() {
            return Err("replace operation value must be object or array".to_owned());
        }
        *document = value.clone();
        return Ok(());
    }
    let (container, key) = find(document, path)
        .ok_or_else(|| format!("replace operation does not apply: doc is missing path: {path}: missing value"))?;
    bounded(path, value)?;
    match container {
        Value::Array(items) => {
            let index = index(&key, items.len())
                .map_err(|_| format!("replace operation does not apply: doc is missing key: {path}: missing value"))?;
            items[index] = value.clone();
        }
        Value::Object(map) => {
            map.insert(key.into_owned(), value.clone());
        }
        _ => {}
    }
    Ok(())
}

fn test(document: &mut Value, operation: &Map<String, Value>) -> Result<(), PatchError> {
    let value = operation.get("value").unwrap_or(&Value::Null);
    let Some(path) = operation.get("path").and_then(Value::as_str) else {
        let why = "test operation failed to decode path: missing value";
        return Err(PatchError::Unprocessable(why.to_owned()));
    };
    if is_value(document, path, value).map_err(PatchError::Unprocessable)? {
        return Ok(());
    }
    Err(PatchError::TestFailed(format!("testing value {path} failed: test failed")))
}

fn is_value(document: &mut Value, path: &str, value: &Value) -> Result<bool, Fault> {
    if path.is_empty() {
        return Ok(document == value);
    }
    let (container, key) = find(document, path)
        .ok_or_else(|| format!("test operation does not apply: is missing path: {path}: missing value"))?;
    let found = get(container, &key).map_err(|e| format!("error in test for path: '{path}': {e}"))?;
    Ok(found == value)
}

fn copy(document: &mut Value, from: &str, path: Result<&str, Fault>, copied: &mut usize) -> Result<(), Fault> {
    let (container, key) = find(document, from)
        .ok_or_else(|| format!("copy operation does not apply: doc is missing from path: {from}: missing value"))?;
    let value = get(container, &key).map_err(|e| format!("error in copy for from: '{from}': {e}"))?.clone();
    let path = path?;
    let (container, key) = find(document, path).ok_or_else(|| {
        format!("copy operation does not apply: doc is missing destination path: {path}: missing value")
    })?;
    *copied += serde_json::to_string(&value).map_or(0, |text| text.len());
    if *copied > MAX_COPIED {
        return Err(format!(
            "Unable to complete the copy, the accumulated size increase of copy is {copied}, exceeding the limit {MAX_COPIED}"
        ));
    }
    bounded(path, &value)?;
    insert(container, &key, value).map_err(|e| format!("error while adding value during copy: {e}"))
}

/// Nothing may grow deeper than what can be read back.
fn bounded(path: &str, value: &Value) -> Result<(), Fault> {
    if path.split('/').count() + depth(value) > MAX_DEPTH {
        return Err(format!("exceeded max depth at path: '{path}'"));
    }
    Ok(())
}

/// The container that a pointer's last token names something in, and that token. The text before the first slash is ignored.
fn find<'d, 'p>(document: &'d mut Value, path: &'p str) -> Option<(&'d mut Value, Cow<'p, str>)> {
    let (_, pointer) = path.split_once('/')?;
    let mut tokens: Vec<&str> = pointer.split('/').collect();
    let last = tokens.pop()?;
    let mut container = document;
    for token in tokens {
        let token = unescape(token);
        container = match container {
            Value::Object(map) => map.get_mut(&*token)?,
            Value::Array(items) => {
                let index = index(&token, items.len()).ok()?;
                items.get_mut(index)?
            }
            _ => return None,
        };
    }
    (container.is_object() || container.is_array()).then(|| (container, unescape(last)))
}

/// `~1` is `/` and `~0` is `~`, in one pass.
fn unescape(token: &str) -> Cow<'_, str> {
    if !token.contains('~') {
        return Cow::Borrowed(token);
    }
    Cow::Owned(token.replace("~1", "/").replace("~0", "~"))
}

fn number(key: &str) -> Result<i64, Fault> {
    key.parse().map_err(|_| format!("strconv.Atoi: parsing {}: invalid syntax", crate::field::quote(key)))
}

/// The place that `key` names among `length` items.
fn index(key: &str, length: usize) -> Result<usize, Fault> {
    let given = number(key)?;
    let signed = i64::try_from(length).unwrap_or(i64::MAX);
    let place = if given < 0 { given.saturating_add(signed) } else { given };
    match usize::try_from(place) {
        Ok(place) if place < length => Ok(place),
        _ => Err(format!("Unable to access invalid index: {given}: invalid index referenced")),
    }
}

fn get<'v>(container: &'v Value, key: &str) -> Result<&'v Value, Fault> {
    match container {
        Value::Array(items) => Ok(&items[index(key, items.len())?]),
        other => Ok(other.get(key).unwrap_or(&Value::Null)),
    }
}

fn take(container: &mut Value, key: &str) -> Result<Value, Fault> {
    match container {
        Value::Array(items) => {
            let index = index(key, items.len())?;
            Ok(items.remove(index))
        }
        Value::Object(map) => {
            map.remove(key).ok_or_else(|| format!("Unable to remove nonexistent key: {key}: missing value"))
        }
        _ => Ok(Value::Null),
    }
}

fn insert(container: &mut Value, key: &str, value: Value) -> Result<(), Fault> {
    match container {
        Value::Array(items) if key == "-" => items.push(value),
        Value::Array(items) => {
            number(key).map_err(|e| format!("value was not a proper array index: '{key}': {e}"))?;
            items.insert(index(key, items.len() + 1)?, value);
        }
        Value::Object(map) => {
            map.insert(key.to_owned(), value);
        }
        _ => {}
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn patched(document: &str, patch: &str) -> String {
        let (document, patch) = (serde_json::from_str(document).unwrap(), serde_json::from_str(patch).unwrap());
        match apply(document, &patch) {
            Ok(value) => value.to_string(),
            Err(error) => format!("{} {error}", error.status().code),
        }
    }

    #[test]
    fn applies_operations() {
        for (document, patch, expected) in [
            (r#"{"a":1}"#, r#"[{"op":"add","path":"/b","value":2}]"#, r#"{"a":1,"b":2}"#),
            (r#"{"a":[1,3]}"#, r#"[{"op":"add","path":"/a/1","value":2}]"#, r#"{"a":[1,2,3]}"#),
            (
                r#"{"a":[1]}"#,
                r#"[{"op":"add","path":"/a/-","value":2},{"op":"add","path":"/a/-1","value":3}]"#,
                r#"{"a":[1,2,3]}"#,
            ),
            (
                r#"{"a":[1]}"#,
                r#"[{"op":"add","path":"/a/2","value":2}]"#,
                "422 error in add for path: '/a/2': Unable to access invalid index: 2: invalid index referenced",
            ),
            (
                r#"{"a":[1]}"#,
                r#"[{"op":"add","path":"/a/x","value":2}]"#,
                "422 error in add for path: '/a/x': value was not a proper array index: 'x': strconv.Atoi: parsing \"x\": invalid syntax",
            ),
            (
                r#"{"a":1}"#,
                r#"[{"op":"add","path":"/b/c","value":2}]"#,
                "422 add operation does not apply: doc is missing path: \"/b/c\": missing value",
            ),
            (r#"{"a":1}"#, r#"[{"op":"remove","path":"/a"}]"#, "{}"),
            (
                r#"{"a":1}"#,
                r#"[{"op":"remove","path":"/b"}]"#,
                "422 error in remove for path: '/b': Unable to remove nonexistent key: b: missing value",
            ),
            (r#"{"a":[1,2]}"#, r#"[{"op":"remove","path":"/a/-1"}]"#, r#"{"a":[1]}"#),
            (r#"{"a":1}"#, r#"[{"op":"replace","path":"/a","value":null}]"#, r#"{"a":null}"#),
            (r#"{}"#, r#"[{"op":"replace","path":"/a","value":1}]"#, r#"{"a":1}"#),
            (
                r#"{"a":[]}"#,
                r#"[{"op":"replace","path":"/a/0","value":1}]"#,
                "422 replace operation does not apply: doc is missing key: /a/0: missing value",
            ),
            (r#"{"a/b":{"c~d":1}}"#, r#"[{"op":"replace","path":"/a~1b/c~0d","value":2}]"#, r#"{"a/b":{"c~d":2}}"#),
            (r#"{"a":1}"#, r#"[{"op":"replace","path":"","value":{"b":1}}]"#, r#"{"b":1}"#),
            (r#"{"a":{"b":1}}"#, r#"[{"op":"move","from":"/a/b","path":"/c"}]"#, r#"{"a":{},"c":1}"#),
            (
                r#"{"a":{"b":1}}"#,
                r#"[{"op":"move","from":"/x","path":"/c"}]"#,
                "422 error in move for path: 'x': Unable to remove nonexistent key: x: missing value",
            ),
            (r#"{"a":{"b":1}}"#, r#"[{"op":"copy","from":"/a","path":"/c"}]"#, r#"{"a":{"b":1},"c":{"b":1}}"#),
            (
                r#"{"a":1}"#,
                r#"[{"op":"test","path":"/a","value":1},{"op":"test","path":"/b","value":null}]"#,
                r#"{"a":1}"#,
            ),
            (r#"{"a":1}"#, r#"[{"op":"test","path":"/a","value":2}]"#, "422 testing value /a failed: test failed"),
            (r#"{"a":1}"#, r#"[{"op":"jump","path":"/a"}]"#, "422 Unexpected kind: jump"),
            (r#"{"a":1}"#, r#"[{"op":"add","value":2}]"#, "422 add operation failed to decode path: missing value"),
            (
                r#"{"a":1}"#,
                r#"{"op":"add"}"#,
                "400 json: cannot unmarshal object into Go value of type jsonpatch.Patch",
            ),
        ] {
            assert_eq!(patched(document, patch), expected, "{patch}");
        }
    }

    #[test]
    fn bounds_work() {
        let many = Value::Array(vec![json!({"op": "test", "path": "/a"}); MAX_OPERATIONS + 1]);
        let error = apply(json!({}), &many).unwrap_err();
        assert_eq!(error.status().code, 413);
        // Copying the document into itself doubles it each time.
        let doubling: Vec<Value> =
            (0..100).map(|i| json!({"op": "copy", "from": "/a", "path": format!("/a/{i}")})).collect();
        let error = apply(json!({"a": {"x": "y".repeat(1000)}}), &Value::Array(doubling)).unwrap_err();
        assert!(error.to_string().starts_with("Unable to complete the copy"), "{error}");
        let deep = json!([{"op": "add", "path": format!("{}/a", "/a".repeat(90)), "value": nested(60)}]);
        assert!(apply(nested(95), &deep).is_err());
    }

    fn nested(levels: usize) -> Value {
        (0..levels).fold(json!({}), |inner, _| json!({"a": inner}))
    }
}
