//! Which policies speak of a write, with which bindings and params.

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::resource::ResourceRow;
use apimachinery::status::{GroupResource, Result, StatusError};
use serde_json::{Map, json};

use super::config::{Binding, Policy};
use super::{Attempt, Hooks, params};
use crate::admission::webhooks::{dispatch, matching};

/// A policy, a binding and one object of params, for one write.
pub struct Invocation {
    pub policy: Arc<Policy>,
    pub binding: Arc<Binding>,
    /// In whose version the policy sees the objects.
    pub row: Arc<ResourceRow>,
    pub params: Option<Value>,
}

/// What keeps a policy, or one of its bindings, from being evaluated. Its failure policy decides.
pub struct Fault {
    pub policy: Arc<Policy>,
    pub binding: Option<Arc<Binding>>,
    pub message: String,
}

pub enum Found {
    Invocation(Invocation),
    Fault(Fault),
}

/// All that concerns the write, in order of the policies' names, then of their bindings'.
pub async fn find(hooks: &Hooks, attempt: &Attempt<'_>, object: &Value, old: Option<&Value>) -> Vec<Found> {
    let mut found = Vec::new();
    for active in hooks.iter() {
        let policy = &active.policy;
        let fault = |binding: Option<&Arc<Binding>>, why: &str| {
            let what = if binding.is_some() { "binding" } else { "policy" };
            let message = format!("failed to configure {what}: {why}");
            Found::Fault(Fault { policy: policy.clone(), binding: binding.cloned(), message })
        };
        let Some(criteria) = &policy.criteria else {
            found.push(fault(None, "policy contained no match constraints, a required field"));
            continue;
        };
        let row = match matching::called_as(criteria, attempt, object, old) {
            Ok(Some(row)) => row,
            Ok(None) => continue,
            Err(error) => {
                found.push(fault(None, &error.message));
                continue;
            }
        };
        let param_row = match params::row_of(policy, attempt) {
            Ok(param_row) => param_row,
            Err(why) => {
                found.push(fault(None, &why));
                continue;
            }
        };
        for binding in &active.bindings {
            let bound = binding.criteria.as_ref().map(|criteria| matching::called_as(criteria, attempt, object, old));
            match bound.transpose() {
                Ok(Some(None)) => continue,
                Ok(_) => {}
                Err(error) => {
                    found.push(fault(Some(binding), &error.message));
                    continue;
                }
            }
            match params::collect(param_row.as_ref(), binding, attempt).await {
                Ok(all) => found.extend(all.into_iter().map(|params| {
                    let (policy, binding, row) = (policy.clone(), binding.clone(), row.clone());
                    Found::Invocation(Invocation { policy, binding, row, params })
                })),
                Err(why) => found.push(fault(Some(binding), &why)),
            }
        }
    }
    found
}

/// The objects of a write in the version that a policy sees; `None` where they are in it already.
pub async fn shown(
    attempt: &Attempt<'_>,
    row: &Arc<ResourceRow>,
    object: &Value,
    old: Option<&Value>,
) -> Result<Option<(Value, Option<Value>)>> {
    let own = attempt.row();
    if own.version == row.version && own.group == row.group {
        return Ok(None);
    }
    dispatch::versions(attempt, row, object, old).await.map(Some)
}

/// `namespaceObject`: the namespace of the write, without what expressions have no business with; null at cluster scope and for
/// namespaces themselves.
pub fn namespace(attempt: &Attempt<'_>) -> Result<Value> {
    const METADATA: [&str; 12] = [
        "annotations",
        "creationTimestamp",
        "deletionGracePeriodSeconds",
        "deletionTimestamp",
        "finalizers",
        "generateName",
        "generation",
        "labels",
        "name",
        "namespace",
        "resourceVersion",
        "uid",
    ];
    let name = attempt.namespace();
    if name.is_empty() || attempt.is_namespaces() {
        return Ok(Value::Null);
    }
    let Some(found) = attempt.server.view.get("namespaces", "", name) else {
        return Err(StatusError::not_found(&GroupResource::new("", "namespaces"), name));
    };
    let mut namespace = found.value.value();
    let metadata = namespace["metadata"].as_object_mut().map(std::mem::take).unwrap_or_default();
    let kept: Map<String, Value> = metadata.into_iter().filter(|(key, _)| METADATA.contains(&key.as_str())).collect();
    let part = |key: &str| namespace.get(key).cloned().unwrap_or_else(|| json!({}));
    Ok(json!({"metadata": kept, "spec": part("spec"), "status": part("status")}))
}

/// What refuses a write (`admission.NewForbidden`): a name that is still to be generated is told by its start.
pub fn forbidden(attempt: &Attempt<'_>, object: &Value, why: &str) -> StatusError {
    let metadata = |key: &str| object["metadata"][key].as_str().filter(|name| !name.is_empty());
    let name = Some(attempt.name.as_str()).filter(|name| !name.is_empty());
    let name = name.or_else(|| metadata("name")).or_else(|| metadata("generateName")).unwrap_or("Unknown");
    StatusError::forbidden(&attempt.row().group_resource(), name, why)
}
