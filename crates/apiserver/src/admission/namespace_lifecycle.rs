//! Nothing is created in a namespace that is missing or going away, and the cluster's own namespaces stay.

use apimachinery::status::{Cause, GroupResource, Result, StatusError};

use store::{Compare, Expect};

use super::{Operation, Plugin, Request};
use crate::view::View;

/// Namespaces that cannot be deleted.
const IMMORTAL: [&str; 3] = ["default", "kube-public", "kube-system"];

pub struct NamespaceLifecycle;

impl Plugin for NamespaceLifecycle {
    fn name(&self) -> &'static str {
        "NamespaceLifecycle"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update | Operation::Delete)
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        if request.is_any("", "namespaces") {
            if request.operation == Operation::Delete && IMMORTAL.contains(&request.name) {
                return Err(request.forbidden("this namespace may not be deleted"));
            }
            return Ok(());
        }
        // Asking about permissions in a namespace is allowed while it does not exist.
        let review = request.is_any("authorization.k8s.io", "localsubjectaccessreviews");
        if request.namespace.is_empty() || request.operation == Operation::Delete || review {
            return Ok(());
        }
        let namespace = request.namespace;
        let Some(entry) = request.view.get("namespaces", "", namespace) else {
            return Err(StatusError::not_found(&GroupResource::new("", "namespaces"), namespace));
        };
        if request.operation == Operation::Create && entry.value.meta().deletion_timestamp.is_some() {
            return Err(terminating(&request.row.group_resource(), request.name, namespace));
        }
        Ok(())
    }
}

/// What a transaction that creates `name` in `namespace` has to compare: that the namespace is still the one that was seen alive.
/// Without it, content could be committed after the namespace has been found empty and let go.
pub fn guard(view: &View, resource: &GroupResource, name: &str, namespace: &str) -> Result<Option<Compare>> {
    if namespace.is_empty() {
        return Ok(None);
    }
    let Some(entry) = view.get("namespaces", "", namespace) else {
        return Err(StatusError::not_found(&GroupResource::new("", "namespaces"), namespace));
    };
    if entry.value.meta().deletion_timestamp.is_some() {
        return Err(terminating(resource, name, namespace));
    }
    Ok(Some(Compare { key: entry.key.to_string(), expect: Expect::ModRevision(entry.mod_revision) }))
}

/// Clients know this refusal by its cause.
fn terminating(resource: &GroupResource, name: &str, namespace: &str) -> StatusError {
    let why = format!("unable to create new content in namespace {namespace} because it is being terminated");
    let mut error = StatusError::forbidden(resource, name, &why);
    if let Some(details) = &mut error.details {
        details.causes.push(Cause {
            reason: "NamespaceTerminating".to_owned(),
            message: format!("namespace {namespace} is being terminated"),
            field: "metadata.namespace".to_owned(),
        });
    }
    error
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;
    use serde_json::json;

    #[test]
    fn content_needs_a_living_namespace() {
        let cluster = Cluster::new();
        cluster.put("namespaces", json!({"metadata": {"name": "ok"}}));
        cluster.put("namespaces", json!({"metadata": {"name": "dying", "deletionTimestamp": "2026-01-01T00:00:00Z"}}));
        let create = |namespace: &'static str| {
            let mut case = Case::create("", "configmaps", json!({"metadata": {"name": "c", "namespace": namespace}}));
            case.admit(&cluster, &NamespaceLifecycle)
        };
        assert!(create("ok").is_ok());
        assert_eq!(create("gone").unwrap_err().message, r#"namespaces "gone" not found"#);
        let error = create("dying").unwrap_err();
        assert_eq!(
            error.message,
            r#"configmaps "c" is forbidden: unable to create new content in namespace dying because it is being terminated"#
        );
        let cause = &error.details.unwrap().causes[0];
        assert_eq!((cause.reason.as_str(), cause.field.as_str()), ("NamespaceTerminating", "metadata.namespace"));
        let object = json!({"metadata": {"name": "c", "namespace": "dying"}});
        assert!(
            Case::update("", "configmaps", object.clone(), object.clone()).admit(&cluster, &NamespaceLifecycle).is_ok()
        );
        assert!(Case::delete("", "configmaps", object).admit(&cluster, &NamespaceLifecycle).is_ok());
    }

    #[test]
    fn the_clusters_own_namespaces_stay() {
        let cluster = Cluster::new();
        let delete = |name: &str| {
            Case::delete("", "namespaces", json!({"metadata": {"name": name}})).admit(&cluster, &NamespaceLifecycle)
        };
        assert_eq!(
            delete("kube-system").unwrap_err().message,
            r#"namespaces "kube-system" is forbidden: this namespace may not be deleted"#
        );
        assert!(delete("mine").is_ok());
    }
}
