//! Volumes and claims: kept while in use, and grown only where their class allows.

use apimachinery::quantity::Quantity;
use apimachinery::status::Result;
use apimachinery::{Value, meta};
use serde_json::json;

use super::{Operation, Plugin, Request};

/// Adds the finalizers that the protection controllers take off when nothing uses the object any more.
pub struct StorageObjectInUseProtection;

impl Plugin for StorageObjectInUseProtection {
    fn name(&self) -> &'static str {
        "StorageObjectInUseProtection"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        let finalizer = match (&*request.row.group, &*request.row.plural, request.subresource) {
            ("", "persistentvolumeclaims", "") => "kubernetes.io/pvc-protection",
            ("", "persistentvolumes", "") => "kubernetes.io/pv-protection",
            ("storage.k8s.io", "volumeattributesclasses", "") => "kubernetes.io/vac-protection",
            _ => return Ok(()),
        };
        if !meta::finalizers(request.object).contains(&finalizer) {
            let finalizers = meta::metadata_mut(request.object).entry("finalizers").or_insert_with(|| json!([]));
            match finalizers.as_array_mut() {
                Some(list) => list.push(json!(finalizer)),
                None => *finalizers = json!([finalizer]),
            }
        }
        Ok(())
    }
}

pub struct PersistentVolumeClaimResize;

impl Plugin for PersistentVolumeClaimResize {
    fn name(&self) -> &'static str {
        "PersistentVolumeClaimResize"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Update
    }

    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        let Some(old) = request.old else { return Ok(()) };
        if !request.is("", "persistentvolumeclaims", "") || size(request.object) <= size(old) {
            return Ok(());
        }
        if meta::str_at(old, &["status", "phase"]) != "Bound" {
            return Err(request.forbidden("Only bound persistent volume claims can be expanded"));
        }
        let old_name = meta::annotation(request.object, "volume.beta.kubernetes.io/storage-class");
        let class = old_name.unwrap_or(meta::str_at(request.object, &["spec", "storageClassName"]));
        let class = request.view.get("storageclasses", "", class).map(|class| class.value.value());
        if class.is_some_and(|class| class["allowVolumeExpansion"] == true) {
            return Ok(());
        }
        Err(request.forbidden(
            "only dynamically provisioned pvc can be resized and the storageclass that provisions the pvc must support resize",
        ))
    }
}

fn size(claim: &Value) -> Option<Quantity> {
    meta::at(claim, &["spec", "resources", "requests", "storage"]).and_then(|size| Quantity::from_value(size).ok())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;

    #[test]
    fn claims_are_protected_once() {
        let cluster = Cluster::new();
        let mut case =
            Case::create("", "persistentvolumeclaims", json!({"metadata": {"name": "c", "finalizers": ["mine"]}}));
        case.admit(&cluster, &StorageObjectInUseProtection).unwrap();
        case.admit(&cluster, &StorageObjectInUseProtection).unwrap();
        assert_eq!(meta::finalizers(&case.object), ["mine", "kubernetes.io/pvc-protection"]);
    }

    #[test]
    fn only_classes_that_allow_it_grow_claims() {
        let cluster = Cluster::new();
        cluster.put("storageclasses", json!({"metadata": {"name": "grows"}, "allowVolumeExpansion": true}));
        cluster.put("storageclasses", json!({"metadata": {"name": "fixed"}}));
        let claim = |class: &str, size: &str, phase: &str| {
            json!({"metadata": {"name": "c"}, "spec": {"storageClassName": class, "resources": {"requests": {"storage": size}}},
                "status": {"phase": phase}})
        };
        let check = |class, size, phase| {
            let mut case =
                Case::update("", "persistentvolumeclaims", claim(class, size, phase), claim(class, "1Gi", phase));
            case.validate(&cluster, &PersistentVolumeClaimResize)
        };
        assert!(check("grows", "2Gi", "Bound").is_ok());
        assert!(check("fixed", "1024Mi", "Bound").is_ok());
        assert!(check("fixed", "2Gi", "Bound").unwrap_err().message.contains("must support resize"));
        assert!(check("grows", "2Gi", "Pending").unwrap_err().message.contains("Only bound"));
    }
}
