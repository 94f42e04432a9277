//! Pod templates compared and hashed. Pure.

use k8s_openapi::api::core::v1::PodTemplateSpec;
use serde_json::Value;

/// The label by which the sets of one deployment, and their pods, are told apart.
pub const HASH_LABEL: &str = "pod-template-hash";

/// The value of [`HASH_LABEL`]: 32-bit FNV-1a over the template and the number of collisions so far, spelt with letters
/// that form no words. Upstream hashes Go's printout of the template, we its JSON: equally stable, not equal.
pub fn hash(template: &PodTemplateSpec, collisions: Option<i32>) -> String {
    let mut hasher = Fnv::default();
    hasher.write(canonical(template).to_string().as_bytes());
    if let Some(collisions) = collisions {
        hasher.write(&i64::from(collisions).to_le_bytes());
    }
    safe_encode(&hasher.0.to_string())
}

/// Equal but for [`HASH_LABEL`] and for absent against empty (upstream's EqualIgnoreHash).
pub fn same(a: &PodTemplateSpec, b: &PodTemplateSpec) -> bool {
    a == b || canonical(a) == canonical(b)
}

/// The template as JSON without what means nothing: the hash label, nulls, empty lists and maps.
fn canonical(template: &PodTemplateSpec) -> Value {
    let mut value = serde_json::to_value(template).expect("API types serialise to JSON");
    if let Some(Value::Object(labels)) = value.pointer_mut("/metadata/labels") {
        labels.remove(HASH_LABEL);
    }
    if let Some(Value::Object(meta)) = value.pointer_mut("/metadata") {
        meta.remove("creationTimestamp");
    }
    prune(&mut value);
    value
}

fn prune(value: &mut Value) {
    let empty = |value: &Value| match value {
        Value::Null => true,
        Value::Array(items) => items.is_empty(),
        _ => false,
    };
    match value {
        Value::Object(fields) => {
            fields.values_mut().for_each(prune);
            // An empty struct such as `emptyDir: {}` says something, an empty map of labels does not.
            fields.retain(|name, field| {
                let blank_map = matches!(name.as_str(), "labels" | "annotations" | "nodeSelector" | "metadata")
                    && field.as_object().is_some_and(|map| map.is_empty());
                !empty(field) && !blank_map
            });
        }
        Value::Array(items) => items.iter_mut().for_each(prune),
        _ => {}
    }
}

struct Fnv(u32);

impl Default for Fnv {
    fn default() -> Self {
        Fnv(0x811c_9dc5)
    }
}

impl Fnv {
    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.0 = (self.0 ^ u32::from(*byte)).wrapping_mul(0x0100_0193);
        }
    }
}

/// Without vowels and what looks like them, so that no generated name reads as a word (upstream's SafeEncodeString).
fn safe_encode(text: &str) -> String {
    const ALPHABET: &[u8] = b"bcdfghjklmnpqrstvwxz2456789";
    text.bytes().map(|byte| char::from(ALPHABET[usize::from(byte) % ALPHABET.len()])).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    #[test]
    fn fnv_and_encoding_match_their_published_vectors() {
        let mut fnv = Fnv::default();
        fnv.write(b"foobar");
        assert_eq!(fnv.0, 0xbf9c_f968);
        assert_eq!(safe_encode("0123456789"), "456789bcdf");
    }

    #[test]
    fn templates_are_the_same_but_for_hash_and_blanks() {
        let plain: PodTemplateSpec = yaml("{ metadata: { labels: { a: b } }, spec: { containers: [{ name: c }] } }");
        let hashed: PodTemplateSpec = yaml(
            "{ metadata: { annotations: {}, labels: { a: b, pod-template-hash: x } }, spec: { containers: [{ name: c, env: [] }] } }",
        );
        let changed: PodTemplateSpec =
            yaml("{ metadata: { labels: { a: b } }, spec: { containers: [{ name: c, volumeMounts: [], image: i }] } }");
        assert!(same(&plain, &hashed) && !same(&plain, &changed));
        assert_eq!(hash(&plain, None), hash(&hashed, None));
        assert_ne!(hash(&plain, None), hash(&changed, None));
        assert_ne!(hash(&plain, None), hash(&plain, Some(0)));
    }

    #[test]
    fn an_empty_volume_source_is_not_a_blank() {
        let with = |source: &str| -> PodTemplateSpec {
            yaml(&format!("{{ spec: {{ containers: [], volumes: [{{ name: v, {source} }}] }} }}"))
        };
        assert!(!same(&with("emptyDir: {}"), &with("downwardAPI: {}")));
    }
}
