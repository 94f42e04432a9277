//! Whether a hook is to be called, and with which version of the object.

use std::sync::Arc;

use apimachinery::resource::{ResourceRow, ResourceTable};
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::json;

use super::config::{Hook, Rule, Scope};
use super::{Attempt, Operation, review};
use crate::cel;

/// The row in whose version the hook is called; `None` if it is not. Conditions are still to be asked.
pub fn called_as(
    hook: &Hook,
    attempt: &Attempt<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Result<Option<Arc<ResourceRow>>> {
    let in_namespace = match_namespace(hook, attempt, object);
    if matches!(in_namespace, Ok(false)) || !match_objects(hook, object, old) {
        return Ok(None);
    }
    let table = attempt.server.table();
    let Some(row) = by_rules(hook, attempt, &table) else { return Ok(None) };
    // A namespace that is not there matters only to hooks that the write concerns.
    in_namespace.map(|_| Some(row))
}

fn by_rules(hook: &Hook, attempt: &Attempt<'_>, table: &ResourceTable) -> Option<Arc<ResourceRow>> {
    let row = attempt.row();
    if hook.rules.iter().any(|rule| matches(rule, attempt, row)) {
        return Some(row.clone());
    }
    if hook.exact {
        return None;
    }
    let equivalents: Vec<&Arc<ResourceRow>> = table
        .rows()
        .filter(|other| {
            other.stored
                && other.storage_prefix == row.storage_prefix
                && (&other.group, &other.version) != (&row.group, &row.version)
                && (attempt.subresource.is_empty() || other.subresource(attempt.subresource).is_some())
        })
        .collect();
    let found = |rule: &Rule| equivalents.iter().find(|other| matches(rule, attempt, other));
    hook.rules.iter().find_map(found).map(|row| (*row).clone())
}

fn matches(rule: &Rule, attempt: &Attempt<'_>, row: &ResourceRow) -> bool {
    let has = |list: &[String], wanted: &str| list.iter().any(|one| one == "*" || one == wanted);
    let resource = |pattern: &String| {
        let (resource, subresource) = pattern.split_once('/').unwrap_or((pattern, ""));
        (resource == "*" || *resource == *row.plural) && (subresource == "*" || subresource == attempt.subresource)
    };
    // The namespace of a request for a namespace is its own name.
    let namespaced = !attempt.is_namespaces() && !attempt.namespace().is_empty();
    rule.scope.is_none_or(|scope| (scope == Scope::Namespaced) == namespaced)
        && has(&rule.operations, attempt.operation.as_str())
        && has(&rule.groups, &row.group)
        && has(&rule.versions, &row.version)
        && rule.resources.iter().any(resource)
}

fn match_namespace(hook: &Hook, attempt: &Attempt<'_>, object: &Value) -> Result<bool> {
    let namespace = attempt.namespace();
    if hook.namespaces.is_empty() || (namespace.is_empty() && !attempt.is_namespaces()) {
        return Ok(true);
    }
    let written = matches!(attempt.operation, Operation::Create | Operation::Update) && attempt.subresource.is_empty();
    if attempt.is_namespaces() && written {
        return Ok(hook.namespaces.matches_object(object));
    }
    match attempt.server.view.get("namespaces", "", namespace) {
        Some(found) => Ok(hook.namespaces.matches(|key| found.value.meta().label(key))),
        None => Err(StatusError::not_found(&GroupResource::new("", "namespaces"), namespace)),
    }
}

/// Old or new may match: nothing gets past a hook by losing its label.
fn match_objects(hook: &Hook, object: &Value, old: Option<&Value>) -> bool {
    let has_labels = |object: &&Value| object.get("metadata").is_some();
    hook.objects.is_empty()
        || [Some(object), old].into_iter().flatten().filter(has_labels).any(|o| hook.objects.matches_object(o))
}

/// Whether all conditions hold. One that is false decides, whatever others fail with.
pub fn conditions_hold(
    hook: &Hook,
    attempt: &Attempt<'_>,
    row: &ResourceRow,
    object: &Value,
    old: Option<&Value>,
) -> Result<bool> {
    if hook.conditions.is_empty() {
        return Ok(true);
    }
    let request = review::request(attempt, row, "", &Value::Null, None);
    let optional = |value: Option<&Value>| cel::from_json(value.unwrap_or(&Value::Null));
    let variables = [
        ("object", optional(Some(object))),
        ("oldObject", optional(old)),
        ("request", cel::from_json(&bare(request))),
        ("authorizer", cel::authorizer(&attempt.server.authorizer, &attempt.call.user)),
    ];
    let mut faults = Vec::new();
    for condition in &hook.conditions {
        match condition {
            Ok(expression) => match expression.test(&variables) {
                Ok(true) => {}
                Ok(false) => return Ok(false),
                Err(why) => faults.push(format!("expression '{}' resulted in error: {why}", expression.source())),
            },
            Err(why) => faults.push(format!("compilation error: compilation failed: {why}")),
        }
    }
    match faults.as_slice() {
        [] => Ok(true),
        _ if hook.fails_open => Ok(false),
        faults => {
            let why = if let [one] = faults { one.clone() } else { format!("[{}]", faults.join(", ")) };
            let name = if attempt.name.is_empty() { meta::name(object) } else { &attempt.name };
            Err(StatusError::forbidden(&attempt.row().group_resource(), name, &why))
        }
    }
}

/// What conditions see of the request: all but the objects, which are variables of their own.
fn bare(mut request: Value) -> Value {
    for key in ["object", "oldObject", "uid"] {
        request.as_object_mut().map(|map| map.remove(key));
    }
    for key in ["subResource", "requestSubResource", "name", "namespace"] {
        if request[key].is_null() {
            request[key] = json!("");
        }
    }
    request
}
