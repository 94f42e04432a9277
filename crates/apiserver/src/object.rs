//! The stored form of every object: one immutable JSON buffer, shared by get, list and every watcher.
//!
//! On disk an object has no `resourceVersion`: it is the revision of its commit, and is spliced into the buffer at that moment.
//! So that this needs no parsing, [`encode`] writes `apiVersion`, `kind` and `metadata` first, in this order.

use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use bytes::{Bytes, BytesMut};
use serde::Deserialize;
use store::Revision;

pub type ObjectStore = store::Store<Object>;
pub type Entry = Arc<store::Entry<Object>>;

/// A committed object.
#[derive(Debug)]
pub struct Object {
    json: Bytes,
    meta: OnceLock<Meta>,
}

/// What selectors, owners and authorisation need of an object without parsing it again.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Meta {
    pub name: Box<str>,
    pub namespace: Box<str>,
    pub uid: Box<str>,
    #[serde(deserialize_with = "pairs")]
    pub labels: Vec<(Box<str>, Box<str>)>,
    pub deletion_timestamp: Option<Box<str>>,
}

impl Meta {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }
}

fn pairs<'de, D: serde::Deserializer<'de>>(de: D) -> Result<Vec<(Box<str>, Box<str>)>, D::Error> {
    let map: Option<std::collections::BTreeMap<Box<str>, Box<str>>> = Option::deserialize(de)?;
    Ok(map.unwrap_or_default().into_iter().collect())
}

impl Object {
    /// The object as clients see it, `resourceVersion` included.
    pub fn json(&self) -> &Bytes {
        &self.json
    }

    /// Parsed at first use, then shared.
    pub fn meta(&self) -> &Meta {
        #[derive(Deserialize)]
        struct Outer {
            #[serde(default)]
            metadata: Meta,
        }
        self.meta.get_or_init(|| serde_json::from_slice::<Outer>(&self.json).map(|o| o.metadata).unwrap_or_default())
    }

    /// The whole object, parsed. For write paths and controllers of the server itself; no read path calls it.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }
}

impl store::Value for Object {
    fn committed(bytes: Bytes, revision: Revision) -> Self {
        Object { json: splice(&bytes, revision), meta: OnceLock::new() }
    }

    fn deleted(&self, revision: Revision) -> Self {
        Object { json: replace(&self.json, revision), meta: OnceLock::new() }
    }
}

const METADATA: &[u8] = b"\"metadata\":{";
const VERSION: &[u8] = b"\"resourceVersion\":\"";

/// Puts `"resourceVersion":"N"` first into `metadata`.
fn splice(bytes: &[u8], revision: Revision) -> Bytes {
    let Some(start) = find(bytes, METADATA) else { return Bytes::copy_from_slice(bytes) };
    let (head, tail) = bytes.split_at(start + METADATA.len());
    let mut out = BytesMut::with_capacity(bytes.len() + VERSION.len() + 22);
    out.extend_from_slice(head);
    out.extend_from_slice(VERSION);
    out.extend_from_slice(revision.to_string().as_bytes());
    out.extend_from_slice(if tail.first() == Some(&b'}') { b"\"" } else { b"\"," });
    out.extend_from_slice(tail);
    out.freeze()
}

/// Exchanges the spliced version for another: the last state of a deleted object carries the revision of its deletion.
fn replace(json: &[u8], revision: Revision) -> Bytes {
    let Some(start) = find(json, METADATA).map(|at| at + METADATA.len()) else { return Bytes::copy_from_slice(json) };
    let rest = &json[start..];
    let Some(tail) = rest.strip_prefix(VERSION).and_then(|v| find(v, b"\"").map(|end| &v[end..])) else {
        return Bytes::copy_from_slice(json);
    };
    let mut out = BytesMut::with_capacity(json.len() + 22);
    out.extend_from_slice(&json[..start]);
    out.extend_from_slice(VERSION);
    out.extend_from_slice(revision.to_string().as_bytes());
    out.extend_from_slice(tail);
    out.freeze()
}

fn find(haystack: &[u8], needle: &[u8]) -> Option<usize> {
    haystack.windows(needle.len()).position(|w| w == needle)
}

/// The bytes to store for `object`: `apiVersion`, `kind`, `metadata` without `resourceVersion`, then the rest.
pub fn encode(object: &Value) -> Bytes {
    let mut out = Vec::with_capacity(1024);
    out.push(b'{');
    let Some(map) = object.as_object() else { return Bytes::from_static(b"{\"metadata\":{}}") };
    for key in ["apiVersion", "kind"] {
        if let Some(value) = map.get(key) {
            member(&mut out, key, value);
        }
    }
    if out.len() > 1 {
        out.push(b',');
    }
    out.extend_from_slice(METADATA);
    let before = out.len();
    if let Some(Value::Object(metadata)) = map.get("metadata") {
        for (key, value) in metadata.iter().filter(|(k, _)| *k != "resourceVersion") {
            if out.len() > before {
                out.push(b',');
            }
            write_member(&mut out, key, value);
        }
    }
    out.push(b'}');
    for (key, value) in map.iter().filter(|(k, _)| !matches!(k.as_str(), "apiVersion" | "kind" | "metadata")) {
        member(&mut out, key, value);
    }
    out.push(b'}');
    out.into()
}

fn member(out: &mut Vec<u8>, key: &str, value: &Value) {
    if out.len() > 1 {
        out.push(b',');
    }
    write_member(out, key, value);
}

fn write_member(out: &mut Vec<u8>, key: &str, value: &Value) {
    serde_json::to_writer(&mut *out, key).expect("writing a string to memory cannot fail");
    out.push(b':');
    serde_json::to_writer(&mut *out, value).expect("writing a JSON value to memory cannot fail");
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;
    use store::Value as _;

    #[test]
    fn the_version_is_spliced_in_and_replaced_at_deletion() {
        let object = json!({
            "kind": "ConfigMap", "apiVersion": "v1", "data": {"a": "\"metadata\":{"},
            "metadata": {"name": "x", "resourceVersion": "7", "labels": {"l": "v"}},
        });
        let stored = encode(&object);
        let committed = Object::committed(stored, 42);
        assert_eq!(apimachinery::meta::resource_version(&committed.value()), "42");
        assert_eq!(committed.meta().label("l"), Some("v"));
        let gone = committed.deleted(1000);
        assert_eq!(apimachinery::meta::resource_version(&gone.value()), "1000");
        assert_eq!(gone.value()["data"], object["data"]);
    }

    #[test]
    fn empty_metadata_is_still_an_object() {
        let committed = Object::committed(encode(&json!({"kind": "X", "apiVersion": "v1"})), 3);
        assert_eq!(committed.value()["metadata"], json!({"resourceVersion": "3"}));
    }
}
