//! The API kinds of `authorization.k8s.io`: questions about permissions, answered and never stored.

use std::collections::BTreeMap;

use apimachinery::field::{self, Path};
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::{Map, json};

use super::{Authorizer, Decision, node};
use crate::request::{RequestInfo, UserInfo};

/// `SubjectAccessReview`: may somebody else do this?
pub fn subject_access_review(authorizer: &Authorizer, body: &Value) -> Result<Value> {
    let spec = body.get("spec").unwrap_or(&Value::Null);
    check("SubjectAccessReview", spec, true)?;
    answer(authorizer, body, &subject(spec))
}

/// `LocalSubjectAccessReview`: the same within one namespace.
pub fn local_access_review(authorizer: &Authorizer, namespace: &str, body: &Value) -> Result<Value> {
    let spec = body.get("spec").unwrap_or(&Value::Null);
    check("LocalSubjectAccessReview", spec, true)?;
    if spec.get("nonResourceAttributes").is_some_and(|v| !v.is_null()) {
        return Err(StatusError::bad_request("spec.nonResourceAttributes is disallowed on this kind of request"));
    }
    if meta::str_at(spec, &["resourceAttributes", "namespace"]) != namespace {
        return Err(StatusError::bad_request(format!(
            "spec.resourceAttributes.namespace must match namespace: {namespace}"
        )));
    }
    answer(authorizer, body, &subject(spec))
}

/// `SelfSubjectAccessReview`: may I?
pub fn self_access_review(authorizer: &Authorizer, user: &UserInfo, body: &Value) -> Result<Value> {
    check("SelfSubjectAccessReview", body.get("spec").unwrap_or(&Value::Null), false)?;
    answer(authorizer, body, user)
}

/// `SelfSubjectRulesReview`: what may I do in this namespace? Rules, as far as they can be told.
pub fn self_rules_review(authorizer: &Authorizer, user: &UserInfo, body: &Value) -> Result<Value> {
    let namespace = meta::str_at(body, &["spec", "namespace"]);
    if namespace.is_empty() {
        return Err(StatusError::bad_request("no namespace on request"));
    }
    let (rules, mut errors) = authorizer.rules_for(user, namespace);
    if node::name_of(user).is_some() {
        errors.push("node authorizer does not support user rule resolution".to_owned());
    }
    let (mut resources, mut paths) = (Vec::new(), Vec::new());
    for rule in rules {
        if !rule.resources.is_empty() {
            let mut shown = json!({"verbs": rule.verbs, "apiGroups": rule.api_groups, "resources": rule.resources});
            if !rule.resource_names.is_empty() {
                shown["resourceNames"] = json!(rule.resource_names);
            }
            resources.push(shown);
        }
        if !rule.non_resource_urls.is_empty() {
            paths.push(json!({"verbs": rule.verbs, "nonResourceURLs": rule.non_resource_urls}));
        }
    }
    let mut status = json!({"resourceRules": resources, "nonResourceRules": paths, "incomplete": !errors.is_empty()});
    if !errors.is_empty() {
        status["evaluationError"] = json!(errors.join(", "));
    }
    Ok(with_status(body, status))
}

fn answer(authorizer: &Authorizer, body: &Value, user: &UserInfo) -> Result<Value> {
    let (allowed, denied, reason) = match authorizer.authorize(user, &asked(&body["spec"])) {
        Decision::Allow { reason } => (true, false, reason),
        Decision::NoOpinion { reason } => (false, false, reason),
        Decision::Deny { reason } => (false, true, reason),
    };
    let mut status = json!({"allowed": allowed});
    if denied {
        status["denied"] = json!(true);
    }
    if !reason.is_empty() {
        status["reason"] = json!(reason);
    }
    Ok(with_status(body, status))
}

fn with_status(body: &Value, status: Value) -> Value {
    let mut answer = body.clone();
    answer["status"] = status;
    answer
}

/// The rules of upstream's `ValidateSubjectAccessReviewSpec`.
fn check(kind: &str, spec: &Value, has_subject: bool) -> Result<()> {
    let path = Path::new("spec");
    let given = |key: &str| spec.get(key).filter(|value| !value.is_null());
    let mut errors = field::ErrorList::new();
    match (given("resourceAttributes"), given("nonResourceAttributes")) {
        (Some(_), Some(other)) => errors.push(field::Error::invalid(
            &path.child("nonResourceAttributes"),
            other,
            "cannot be specified in combination with resourceAttributes",
        )),
        (None, None) => errors.push(field::Error::invalid(
            &path.child("resourceAttributes"),
            &Value::Null,
            "exactly one of nonResourceAttributes or resourceAttributes must be specified",
        )),
        _ => {}
    }
    let nobody = meta::str_at(spec, &["user"]).is_empty() && meta::strings(spec.get("groups")).is_empty();
    if has_subject && nobody {
        let detail = "at least one of user or group must be specified";
        errors.push(field::Error::invalid(&path.child("user"), &json!(""), detail));
    }
    if errors.is_empty() {
        return Ok(());
    }
    Err(StatusError::invalid(&GroupResource::new("authorization.k8s.io", kind), "", &errors))
}

fn subject(spec: &Value) -> UserInfo {
    let extra: BTreeMap<String, Vec<String>> = spec
        .get("extra")
        .and_then(Value::as_object)
        .unwrap_or(&Map::new())
        .iter()
        .map(|(key, values)| (key.to_lowercase(), meta::strings(Some(values)).into_iter().map(str::to_owned).collect()))
        .collect();
    UserInfo {
        name: meta::str_at(spec, &["user"]).to_owned(),
        uid: meta::str_at(spec, &["uid"]).to_owned(),
        groups: meta::strings(spec.get("groups")).into_iter().map(str::to_owned).collect(),
        extra,
    }
}

fn asked(spec: &Value) -> RequestInfo {
    if let Some(attributes) = spec.get("nonResourceAttributes").filter(|v| !v.is_null()) {
        return RequestInfo {
            verb: meta::str_at(attributes, &["verb"]).to_owned(),
            path: meta::str_at(attributes, &["path"]).to_owned(),
            ..RequestInfo::default()
        };
    }
    let text = |key: &str| meta::str_at(spec, &["resourceAttributes", key]).to_owned();
    RequestInfo {
        is_resource: true,
        verb: text("verb"),
        group: text("group"),
        version: text("version"),
        namespace: text("namespace"),
        resource: text("resource"),
        subresource: text("subresource"),
        name: text("name"),
        field_selector: field_selector(spec["resourceAttributes"].get("fieldSelector").unwrap_or(&Value::Null)),
        ..RequestInfo::default()
    }
}

/// A review's field selector in the raw form. Requirements without such a form are left out: that only widens what is asked.
fn field_selector(selector: &Value) -> String {
    let raw = meta::str_at(selector, &["rawSelector"]);
    if !raw.is_empty() {
        return raw.to_owned();
    }
    let requirements = selector.get("requirements").and_then(Value::as_array).into_iter().flatten();
    let terms: Vec<String> = requirements
        .filter_map(|requirement| {
            let operator = match meta::str_at(requirement, &["operator"]) {
                "In" => "=",
                "NotIn" => "!=",
                _ => return None,
            };
            match meta::strings(requirement.get("values")).as_slice() {
                [value] => Some(format!("{}{operator}{value}", meta::str_at(requirement, &["key"]))),
                _ => None,
            }
        })
        .collect();
    terms.join(",")
}
