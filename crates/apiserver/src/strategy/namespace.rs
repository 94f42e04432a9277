//! Namespaces: their own finalizers in `spec`, and the phase.

use std::sync::Arc;

use apimachinery::{Value, meta, names};
use serde_json::json;

use super::{Context, Family, Part, Strategy};

pub fn strategies() -> Family {
    vec![("", "namespaces", Arc::new(Namespaces))]
}

struct Namespaces;

impl Strategy for Namespaces {
    fn default(&self, object: &mut Value) {
        let name = meta::name(object).to_owned();
        if name.is_empty() {
            return;
        }
        let metadata = meta::metadata_mut(object);
        let labels = metadata.entry("labels").or_insert_with(|| json!({}));
        if labels.is_null() {
            *labels = json!({});
        }
        labels["kubernetes.io/metadata.name"] = json!(name);
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        self.default(object);
        let spec = meta::map_mut(object, "spec");
        let finalizers = spec.entry("finalizers").or_insert_with(|| json!([]));
        if let Some(list) = finalizers.as_array_mut()
            && !list.iter().any(|f| f == "kubernetes")
        {
            list.push(json!("kubernetes"));
        }
        meta::map_mut(object, "status").insert("phase".to_owned(), json!("Active"));
    }

    fn prepare_update(&self, _cx: &Context<'_>, part: Part, object: &mut Value, old: &Value) {
        match part {
            Part::Main => object["spec"] = old["spec"].clone(),
            Part::Other("finalize") => object["status"] = old["status"].clone(),
            _ => {}
        }
    }

    fn validate_name(&self, name: &str) -> Vec<String> {
        names::dns1123_label(name)
    }

    fn holds_deletion(&self, object: &Value) -> bool {
        meta::at(object, &["spec", "finalizers"]).and_then(Value::as_array).is_some_and(|f| !f.is_empty())
    }

    fn prepare_delete(&self, object: &mut Value) {
        meta::map_mut(object, "status").insert("phase".to_owned(), json!("Terminating"));
        // A namespace goes when it is empty, not when time is up.
        meta::remove(object, "deletionGracePeriodSeconds");
    }
}
