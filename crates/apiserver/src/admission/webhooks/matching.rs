//! Whether a hook is to be called, and with which version of the object. Admission policies are chosen by the same rules.

use std::sync::Arc;

use apimachinery::resource::{ResourceRow, ResourceTable};
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::json;

use super::config::{Criteria, Hook, Rule, Scope};
use super::{Attempt, Operation, review};
use crate::cel;

/// The row in whose version whoever has these criteria sees the write; `None` if it is none of its business. Conditions are still to
/// be asked.
pub fn called_as(
    criteria: &Criteria,
    attempt: &Attempt<'_>,
    object: &Value,
    old: Option<&Value>,
) -> Result<Option<Arc<ResourceRow>>> {
    let in_namespace = match_namespace(criteria, attempt, object);
    if matches!(in_namespace, Ok(false)) || !match_objects(criteria, object, old) {
        return Ok(None);
    }
    let by_rules = |rules: &[Rule]| by_rules(rules, criteria.exact, attempt);
    if !criteria.excluded.is_empty() && by_rules(&criteria.excluded).is_some() {
        return Ok(None);
    }
    let row = if criteria.rules.is_empty() && criteria.all_without_rules {
        Some(attempt.row().clone())
    } else {
        by_rules(&criteria.rules)
    };
    // A namespace that is not there matters only to those whom the write concerns.
    let Some(row) = row else { return Ok(None) };
    in_namespace.map(|_| Some(row))
}

fn by_rules(rules: &[Rule], exact: bool, attempt: &Attempt<'_>) -> Option<Arc<ResourceRow>> {
    let row = attempt.row();
    // A name that is still to be generated is none of those that a rule names.
    let names = |rule: &Rule| rule.names.is_empty() || rule.names.contains(&attempt.name);
    let fits = |rule: &Rule, row: &ResourceRow| matches(rule, attempt, row) && names(rule);
    if rules.iter().any(|rule| fits(rule, row)) {
        return Some(row.clone());
    }
    if exact {
        return None;
    }
    let table = attempt.server.table();
    let equivalents = equivalents(&table, attempt);
    let found = |rule: &Rule| equivalents.iter().find(|other| fits(rule, other));
    rules.iter().find_map(found).map(|row| (*row).clone())
}

/// The other versions of the attempt's resource, in whatever group (`EquivalentResourceMapper`).
fn equivalents<'t>(table: &'t ResourceTable, attempt: &Attempt<'_>) -> Vec<&'t Arc<ResourceRow>> {
    let row = attempt.row();
    let is_equivalent = |other: &&Arc<ResourceRow>| {
        other.stored
            && other.storage_prefix == row.storage_prefix
            && (&other.group, &other.version) != (&row.group, &row.version)
            && (attempt.subresource.is_empty() || other.subresource(attempt.subresource).is_some())
    };
    table.rows().filter(is_equivalent).collect()
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

fn match_namespace(criteria: &Criteria, attempt: &Attempt<'_>, object: &Value) -> Result<bool> {
    let namespace = attempt.namespace();
    if criteria.namespaces.is_empty() || (namespace.is_empty() && !attempt.is_namespaces()) {
        return Ok(true);
    }
    let written = matches!(attempt.operation, Operation::Create | Operation::Update) && attempt.subresource.is_empty();
    if attempt.is_namespaces() && written {
        return Ok(criteria.namespaces.matches_object(object));
    }
    match attempt.server.view.get("namespaces", "", namespace) {
        Some(found) => Ok(criteria.namespaces.matches(|key| found.value.meta().label(key))),
        None => Err(StatusError::not_found(&GroupResource::new("", "namespaces"), namespace)),
    }
}

/// Old or new may match: nothing gets past a hook by losing its label.
fn match_objects(criteria: &Criteria, object: &Value, old: Option<&Value>) -> bool {
    let has_labels = |object: &&Value| object.get("metadata").is_some();
    criteria.objects.is_empty()
        || [Some(object), old].into_iter().flatten().filter(has_labels).any(|o| criteria.objects.matches_object(o))
}

/// Whether all of a hook's conditions hold. One that is false decides, whatever others fail with.
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
        (
            cel::REQUEST_RESOURCE,
            cel::request_resource(&attempt.server.authorizer, &attempt.call.user, attempt.resource_info()),
        ),
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
    outcome_of(&faults, hook.fails_open).map_err(|why| {
        let name = if attempt.name.is_empty() { meta::name(object) } else { &attempt.name };
        StatusError::forbidden(&attempt.row().group_resource(), name, &why)
    })
}

/// What faults of conditions come to where none was false: failures are as good as false where they are ignored.
pub fn outcome_of(faults: &[String], fails_open: bool) -> Result<bool, String> {
    match faults {
        [] => Ok(true),
        _ if fails_open => Ok(false),
        [one] => Err(one.clone()),
        faults => Err(format!("[{}]", faults.join(", "))),
    }
}

/// What conditions see of the request: all but the objects, which are variables of their own.
pub fn bare(mut request: Value) -> Value {
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
