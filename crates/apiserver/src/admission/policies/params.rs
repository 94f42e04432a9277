//! The objects that a binding hands its policy as `params` (upstream's `CollectParams`).

use std::sync::Arc;

use apimachinery::Value;
use apimachinery::resource::ResourceRow;
use store::Range;

use super::Attempt;
use super::config::{Binding, ParamRef, Policy};
use crate::object::Entry;
use crate::registry::convert;
use crate::strategy::convert as versions;
use crate::view::folder;

/// The row of a policy's `paramKind`, if it has one; an error if there is no such kind now.
pub fn row_of(policy: &Policy, attempt: &Attempt<'_>) -> Result<Option<Arc<ResourceRow>>, String> {
    let Some(kind) = &policy.param_kind else { return Ok(None) };
    match attempt.server.table().by_kind(&kind.group, &kind.version, &kind.kind).filter(|row| row.stored) {
        Some(row) => Ok(Some(row.clone())),
        None => Err(format!("failed to find resource referenced by paramKind: '{kind}'")),
    }
}

/// What the policy is to be evaluated with, once for each; one `None` is an evaluation with `params` null.
pub async fn collect(
    row: Option<&Arc<ResourceRow>>,
    binding: &Binding,
    attempt: &Attempt<'_>,
) -> Result<Vec<Option<Value>>, String> {
    // Whatever the binding says of params is none of the policy's business if it has no kind of them.
    let (Some(row), Some(params)) = (row, &binding.params) else { return Ok(vec![None]) };
    let namespace = namespace_of(row, params, attempt.namespace())?;
    let mut entries = read(row, params, namespace, attempt)?;
    if let Some(selector) = &params.selector {
        let selector = selector.as_ref().map_err(Clone::clone)?;
        entries.retain(|entry| selector.matches(|key| entry.value.meta().label(key)));
    }
    if entries.is_empty() && params.must_exist {
        return Err("no params found for policy binding with `Deny` parameterNotFoundAction".to_owned());
    }
    let entries = convert::entries(attempt.server, row, entries).await.map_err(|error| error.message)?;
    Ok(entries.iter().map(|entry| Some(versions::from_storage(row, entry.value.value()))).collect())
}

fn namespace_of<'a>(row: &ResourceRow, params: &'a ParamRef, of_request: &'a str) -> Result<&'a str, String> {
    match (row.is_namespaced(), params.namespace.as_str()) {
        (false, "") => Ok(""),
        (false, _) => Err("paramRef.namespace must not be provided for a cluster-scoped `paramKind`".to_owned()),
        (true, "") if of_request.is_empty() => {
            Err("cannot use namespaced paramRef in policy binding that matches cluster-scoped resources".to_owned())
        }
        (true, "") => Ok(of_request),
        (true, namespace) => Ok(namespace),
    }
}

/// One object by its name, or all that may be selected. A store that cannot be read is an error, and not as good as empty.
fn read(row: &ResourceRow, params: &ParamRef, namespace: &str, attempt: &Attempt<'_>) -> Result<Vec<Entry>, String> {
    let view = &attempt.server.view;
    match (params.name.as_str(), &params.selector) {
        ("", None) => Err("one of name or selector must be provided".to_owned()),
        ("", Some(_)) => {
            let all = Range::prefix(&folder(&row.storage_prefix, namespace));
            view.store().range(&all).map(|listing| listing.entries).map_err(|error| error.to_string())
        }
        (_, Some(_)) => Err("paramRef.name and paramRef.selector are mutually exclusive".to_owned()),
        (name, None) => Ok(view.get(&row.storage_prefix, namespace, name).into_iter().collect()),
    }
}
