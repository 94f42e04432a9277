//! What several plugins look for in pods.

use apimachinery::{Value, meta};
use serde_json::Map;

/// Set on pods that a kubelet runs by itself and only shows to the API.
pub const MIRROR_ANNOTATION: &str = "kubernetes.io/config.mirror";

pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

pub fn is_mirror(pod: &Value) -> bool {
    meta::annotation(pod, MIRROR_ANNOTATION).is_some()
}

/// The items of `spec.<list>`.
pub fn items<'a>(pod: &'a Value, list: &str) -> impl Iterator<Item = &'a Value> {
    meta::at(pod, &["spec", list]).and_then(Value::as_array).into_iter().flatten()
}

/// `spec.<list>` to be changed, made if it is missing.
pub fn items_mut<'a>(pod: &'a mut Value, list: &str) -> &'a mut Vec<Value> {
    let entry = spec_mut(pod).entry(list).or_insert(Value::Null);
    if !entry.is_array() {
        *entry = Value::Array(Vec::new());
    }
    let Value::Array(items) = entry else { unreachable!("made an array above") };
    items
}

pub fn spec_mut(pod: &mut Value) -> &mut Map<String, Value> {
    meta::map_mut(pod, "spec")
}

/// Containers of all kinds.
pub fn containers(pod: &Value) -> impl Iterator<Item = &Value> {
    CONTAINER_LISTS.into_iter().flat_map(|list| items(pod, list))
}

/// The service account tokens that the pod's volumes project.
pub fn token_projections(pod: &Value) -> impl Iterator<Item = &Value> {
    items(pod, "volumes")
        .filter_map(|volume| meta::at(volume, &["projected", "sources"])?.as_array())
        .flatten()
        .filter_map(|source| source.get("serviceAccountToken").filter(|token| !token.is_null()))
}

/// Where pods refer to a secret, and to which: `(what, secret)` with what in upstream's words.
pub fn secret_references(pod: &Value) -> Vec<(String, &str)> {
    let mut out = Vec::new();
    for volume in items(pod, "volumes") {
        let name = meta::str_at(volume, &["secret", "secretName"]);
        if !name.is_empty() {
            out.push((format!("volume with secret.secretName={name:?}"), name));
        }
        for source in meta::at(volume, &["projected", "sources"]).and_then(Value::as_array).into_iter().flatten() {
            let name = meta::str_at(source, &["secret", "name"]);
            if !name.is_empty() {
                out.push((format!("volume with secret.secretName={name:?}"), name));
            }
        }
    }
    for container in containers(pod) {
        let container_name = meta::str_at(container, &["name"]);
        let list = |key: &str| container.get(key).and_then(Value::as_array).into_iter().flatten();
        for env in list("env") {
            let name = meta::str_at(env, &["valueFrom", "secretKeyRef", "name"]);
            if !name.is_empty() {
                let variable = meta::str_at(env, &["name"]);
                let what =
                    format!("container {container_name} with envVar {variable} referencing secret.secretName={name:?}");
                out.push((what, name));
            }
        }
        for source in list("envFrom") {
            let name = meta::str_at(source, &["secretRef", "name"]);
            if !name.is_empty() {
                out.push((
                    format!("container {container_name} with envFrom referencing secret.secretName={name:?}"),
                    name,
                ));
            }
        }
    }
    out
}
