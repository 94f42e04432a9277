//! The stored form of every object: one immutable JSON buffer, shared by get, list and every watcher.
//!
//! On disk an object has no `resourceVersion`: it is the revision of its commit, and is spliced into the buffer at that moment.
//! So that this needs no parsing, [`encode`] writes `apiVersion`, `kind` and `metadata` first, in this order.

use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use bytes::Bytes;
use serde::Deserialize;
use store::Revision;

pub type ObjectStore = store::Store<Object>;
pub type Entry = Arc<store::Entry<Object>>;

/// A committed object.
#[derive(Debug)]
pub struct Object {
    json: Bytes,
    /// What [`splice`] put in, so that what was committed can be had back; empty where nothing was.
    spliced: std::ops::Range<u32>,
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
    pub labels: Pairs,
    pub deletion_timestamp: Option<Box<str>>,
}

impl Meta {
    pub fn label(&self, key: &str) -> Option<&str> {
        self.labels.iter().find(|(k, _)| &**k == key).map(|(_, v)| &**v)
    }
}

type Pairs = Vec<(Box<str>, Box<str>)>;

fn pairs<'de, D: serde::Deserializer<'de>>(de: D) -> Result<Pairs, D::Error> {
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

    /// Puts `"resourceVersion":"N"` between `head`, which ends where `metadata` begins, and `tail`.
    fn spliced(head: &[u8], tail: &[u8], revision: Revision) -> Self {
        let mut digits = [0; 20];
        let version = decimal(revision, &mut digits);
        let end: &[u8] = if tail.first() == Some(&b'}') { b"\"" } else { b"\"," };
        let start = head.len();
        let len = VERSION.len() + version.len() + end.len();
        let mut json = Vec::with_capacity(start + len + tail.len());
        for piece in [head, VERSION, version, end, tail] {
            json.extend_from_slice(piece);
        }
        let place = |at: usize| u32::try_from(at).expect("an object is far smaller than 4 GiB");
        Object { json: json.into(), spliced: place(start)..place(start + len), meta: OnceLock::new() }
    }

    /// The whole object, parsed. For write paths and controllers of the server itself; no read path calls it.
    pub fn value(&self) -> Value {
        serde_json::from_slice(&self.json).unwrap_or_default()
    }
}

impl store::Value for Object {
    fn committed(bytes: Bytes, revision: Revision) -> Self {
        match find(&bytes, METADATA) {
            Some(at) => {
                let at = at + METADATA.len();
                Object::spliced(&bytes[..at], &bytes[at..], revision)
            }
            None => Object { json: bytes, spliced: 0..0, meta: OnceLock::new() },
        }
    }

    fn deleted(&self, revision: Revision) -> Self {
        if self.spliced.is_empty() {
            return Object { json: self.json.clone(), spliced: 0..0, meta: OnceLock::new() };
        }
        let [head, tail] = self.stored();
        Object::spliced(head, tail, revision)
    }

    fn stored(&self) -> [&[u8]; 2] {
        [&self.json[..self.spliced.start as usize], &self.json[self.spliced.end as usize..]]
    }
}

const METADATA: &[u8] = b"\"metadata\":{";
const VERSION: &[u8] = b"\"resourceVersion\":\"";

/// `number` in decimal, in the last bytes of `digits`.
fn decimal(mut number: u64, digits: &mut [u8; 20]) -> &[u8] {
    let mut at = digits.len();
    loop {
        at -= 1;
        digits[at] = b'0' + (number % 10) as u8;
        number /= 10;
        if number == 0 {
            return &digits[at..];
        }
    }
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
        let committed = Object::committed(stored.clone(), 42);
        assert_eq!(apimachinery::meta::resource_version(&committed.value()), "42");
        assert_eq!(committed.meta().label("l"), Some("v"));
        let gone = committed.deleted(1000);
        assert_eq!(apimachinery::meta::resource_version(&gone.value()), "1000");
        assert_eq!(gone.value()["data"], object["data"]);
        for state in [&committed, &gone] {
            assert_eq!(state.stored().concat(), stored);
        }
    }

    #[test]
    fn empty_metadata_is_still_an_object() {
        let committed = Object::committed(encode(&json!({"kind": "X", "apiVersion": "v1"})), 3);
        assert_eq!(committed.value()["metadata"], json!({"resourceVersion": "3"}));
    }
}
