//! Claims and ingresses that name no class get the cluster's default one.

use apimachinery::status::Result;
use apimachinery::{Value, meta};
use serde_json::json;

use super::{Operation, Plugin, Request};

/// Marks a StorageClass as the default; the second name is the older one.
const STORAGE_DEFAULTS: [&str; 2] =
    ["storageclass.kubernetes.io/is-default-class", "storageclass.beta.kubernetes.io/is-default-class"];
const INGRESS_DEFAULTS: [&str; 1] = ["ingressclass.kubernetes.io/is-default-class"];

pub struct DefaultStorageClass;

impl Plugin for DefaultStorageClass {
    fn name(&self) -> &'static str {
        "DefaultStorageClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        const OLD_NAME: &str = "volume.beta.kubernetes.io/storage-class";
        if request.is("", "persistentvolumeclaims", "") && meta::annotation(request.object, OLD_NAME).is_none() {
            set(request, "storageclasses", &STORAGE_DEFAULTS, "storageClassName");
        }
        Ok(())
    }
}

pub struct DefaultIngressClass;

impl Plugin for DefaultIngressClass {
    fn name(&self) -> &'static str {
        "DefaultIngressClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        const OLD_NAME: &str = "kubernetes.io/ingress.class";
        if request.is("networking.k8s.io", "ingresses", "") && meta::annotation(request.object, OLD_NAME).is_none() {
            set(request, "ingressclasses", &INGRESS_DEFAULTS, "ingressClassName");
        }
        Ok(())
    }
}

/// An empty name is a choice: it means no class.
fn set(request: &mut Request<'_>, prefix: &str, annotations: &[&str], field: &str) {
    if meta::at(request.object, &["spec", field]).is_some_and(|class| !class.is_null()) {
        return;
    }
    let classes = request.view.list(prefix, "").into_iter().map(|entry| entry.value.value());
    let is_default = |class: &Value| annotations.iter().any(|a| meta::annotation(class, a) == Some("true"));
    let mut defaults: Vec<Value> = classes.filter(is_default).collect();
    // The newest wins, then the first by name: the listing is by name, and the sort is stable.
    let created = |class: &Value| meta::str_at(class, &["metadata", "creationTimestamp"]).to_owned();
    defaults.sort_by_key(|class| std::cmp::Reverse(created(class)));
    if let Some(class) = defaults.first() {
        meta::map_mut(request.object, "spec").insert(field.to_owned(), json!(meta::name(class)));
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;

    #[test]
    fn the_newest_default_fills_in() {
        let cluster = Cluster::new();
        for (name, created, default) in [
            ("a", "2026-01-01T00:00:00Z", "true"),
            ("b", "2026-02-01T00:00:00Z", "true"),
            ("c", "2026-03-01T00:00:00Z", "false"),
        ] {
            let annotations = json!({STORAGE_DEFAULTS[0]: default, INGRESS_DEFAULTS[0]: default});
            let class = json!({"metadata": {"name": name, "creationTimestamp": created, "annotations": annotations}});
            cluster.put("storageclasses", class.clone());
            cluster.put("ingressclasses", class);
        }
        let claim = |spec: Value| {
            let mut case = Case::create("", "persistentvolumeclaims", json!({"metadata": {"name": "x"}, "spec": spec}));
            case.admit(&cluster, &DefaultStorageClass).unwrap();
            case.object["spec"].take()
        };
        assert_eq!(claim(json!({})), json!({"storageClassName": "b"}));
        assert_eq!(claim(json!({"storageClassName": ""})), json!({"storageClassName": ""}));
        let mut case = Case::create("networking.k8s.io", "ingresses", json!({"metadata": {"name": "x"}, "spec": {}}));
        case.admit(&cluster, &DefaultIngressClass).unwrap();
        assert_eq!(case.object["spec"], json!({"ingressClassName": "b"}));
        let old =
            json!({"metadata": {"name": "x", "annotations": {"kubernetes.io/ingress.class": "nginx"}}, "spec": {}});
        let mut case = Case::create("networking.k8s.io", "ingresses", old);
        case.admit(&cluster, &DefaultIngressClass).unwrap();
        assert_eq!(case.object["spec"], json!({}));
    }
}
