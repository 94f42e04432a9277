//! Webhook configurations: what of upstream's validation is no rule of a single field. What becomes of them is
//! `crate::admission::webhooks`' work.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::common::items;
use super::{Context, Family, Part, Strategy};
use crate::admission::webhooks::VARIABLES;
use crate::cel::Expression;

pub fn strategies() -> Family {
    const GROUP: &str = "admissionregistration.k8s.io";
    vec![
        (GROUP, "mutatingwebhookconfigurations", Arc::new(Webhooks)),
        (GROUP, "validatingwebhookconfigurations", Arc::new(Webhooks)),
    ]
}

struct Webhooks;

/// Upstream's limit on the conditions of a webhook.
const CONDITIONS_MAX: usize = 64;

impl Strategy for Webhooks {
    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        for (index, hook) in items(object, "webhooks").enumerate() {
            let at = Path::new("webhooks").index(index);
            let name = meta::str_at(hook, &["name"]);
            if !name.is_empty() {
                errors.extend(names::fully_qualified_name(&at.child("name"), name));
            }
            for (index, rule) in items(hook, "rules").enumerate() {
                validate_rule(rule, &at.child("rules").index(index), &mut errors);
            }
            validate_client(&hook["clientConfig"], &at.child("clientConfig"), &mut errors);
            validate_versions(hook, &at.child("admissionReviewVersions"), &mut errors);
            validate_conditions(hook, old, &at.child("matchConditions"), &mut errors);
        }
        errors
    }
}

/// A `Rule`, but for what is data: wildcards stand alone.
pub fn validate_rule(rule: &Value, at: &Path, errors: &mut ErrorList) {
    for (list, what) in [("operations", "operations"), ("apiGroups", "API groups"), ("apiVersions", "API versions")] {
        let values = meta::strings(rule.get(list));
        if values.len() > 1 && values.contains(&"*") {
            let why = format!("if '*' is present, must not specify other {what}");
            errors.push(Error::invalid(&at.child(list), &rule[list], &why));
        }
    }
    for (index, version) in items(rule, "apiVersions").enumerate() {
        if version == "" {
            errors.push(Error::required(&at.child("apiVersions").index(index), ""));
        }
    }
    validate_resources(rule, &at.child("resources"), errors);
}

fn validate_resources(rule: &Value, at: &Path, errors: &mut ErrorList) {
    let resources = meta::strings(rule.get("resources"));
    let (mut all_of, mut of_all): (Vec<&str>, Vec<&str>) = (Vec::new(), Vec::new());
    let mut plain = false;
    for (index, resource) in resources.iter().enumerate() {
        if resource.is_empty() {
            errors.push(Error::required(&at.index(index), ""));
            continue;
        }
        let Some((parent, sub)) = resource.split_once('/') else {
            plain = *resource != "*";
            continue;
        };
        if all_of.contains(&parent) {
            let why = format!("if '{parent}/*' is present, must not specify {resource}");
            errors.push(Error::invalid(&at.index(index), &json!(resource), &why));
        }
        if of_all.contains(&sub) {
            let why = format!("if '*/{sub}' is present, must not specify {resource}");
            errors.push(Error::invalid(&at.index(index), &json!(resource), &why));
        }
        if sub == "*" {
            all_of.push(parent);
        }
        if parent == "*" {
            of_all.push(sub);
        }
    }
    if resources.len() > 1 && resources.contains(&"*/*") {
        let why = "if '*/*' is present, must not specify other resources";
        errors.push(Error::invalid(at, &rule["resources"], why));
    }
    if plain && resources.contains(&"*") {
        let why = "if '*' is present, must not specify other resources without subresources";
        errors.push(Error::invalid(at, &rule["resources"], why));
    }
}

/// A `WebhookClientConfig`. Conversion webhooks have the same.
pub fn validate_client(client: &Value, at: &Path, errors: &mut ErrorList) {
    let service = client.get("service").filter(|service| !service.is_null());
    let url = client.get("url").and_then(Value::as_str);
    match (service, url) {
        (Some(_), Some(_)) | (None, None) => {
            errors.push(Error::required(at, "exactly one of url or service is required"));
        }
        (None, Some(url)) => validate_url(url, &at.child("url"), errors),
        (Some(service), None) => {
            if let Some(path) = service.get("path").and_then(Value::as_str) {
                validate_path(path, &at.child("service").child("path"), errors);
            }
        }
    }
}

fn validate_url(url: &str, at: &Path, errors: &mut ErrorList) {
    const FORM: &str = "; desired format: https://host[/path]";
    let (scheme, rest) = url.split_once("://").unwrap_or(("", url));
    if scheme != "https" {
        errors.push(Error::invalid(at, &json!(scheme), &format!("'https' is the only allowed URL scheme{FORM}")));
    }
    let (rest, fragment) = rest.split_once('#').unwrap_or((rest, ""));
    let (rest, query) = rest.split_once('?').unwrap_or((rest, ""));
    let authority = if scheme.is_empty() { "" } else { rest.split('/').next().unwrap_or_default() };
    let (user, host) = authority.rsplit_once('@').unwrap_or(("", authority));
    if host.is_empty() {
        errors.push(Error::invalid(at, &json!(host), &format!("host must be provided{FORM}")));
    }
    let forbidden = [
        (user, "user information is not permitted in the URL"),
        (fragment, "fragments are not permitted in the URL"),
        (query, "query parameters are not permitted in the URL"),
    ];
    for (found, why) in forbidden.into_iter().filter(|(found, _)| !found.is_empty()) {
        errors.push(Error::invalid(at, &json!(found), why));
    }
}

fn validate_path(path: &str, at: &Path, errors: &mut ErrorList) {
    if matches!(path, "" | "/") {
        return;
    }
    if path == "//" {
        return errors.push(Error::invalid(at, &json!(path), "segment[0] may not be empty"));
    }
    if !path.starts_with('/') {
        errors.push(Error::invalid(at, &json!(path), "must start with a '/'"));
    }
    let mut letters = path.chars();
    letters.next();
    let inner = letters.as_str();
    for (index, step) in inner.strip_suffix('/').unwrap_or(inner).split('/').enumerate() {
        if step.is_empty() {
            errors.push(Error::invalid(at, &json!(path), &format!("segment[{index}] may not be empty")));
            continue;
        }
        for why in names::dns1123_subdomain(step) {
            errors.push(Error::invalid(at, &json!(path), &format!("segment[{index}]: {why}")));
        }
    }
}

fn validate_versions(hook: &Value, at: &Path, errors: &mut ErrorList) {
    let versions = meta::strings(hook.get("admissionReviewVersions"));
    for (index, version) in versions.iter().enumerate() {
        if versions[..index].contains(version) {
            errors.push(Error::invalid(&at.index(index), &json!(version), "duplicate version"));
            continue;
        }
        let faults = names::dns1035_label(version);
        errors.extend(faults.iter().map(|why| Error::invalid(&at.index(index), &json!(version), why)));
    }
    if !versions.is_empty() && !versions.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
        errors.push(Error::invalid(at, &json!(versions), "must include at least one of v1, v1beta1"));
    }
}

/// As upstream, conditions are looked at again only where any hook's have changed.
fn validate_conditions(hook: &Value, old: Option<&Value>, at: &Path, errors: &mut ErrorList) {
    let conditions: Vec<&Value> = items(hook, "matchConditions").collect();
    let same = |before: &Value| before["name"] == hook["name"] && before["matchConditions"] == hook["matchConditions"];
    if old.is_some_and(|old| items(old, "webhooks").any(same)) {
        return;
    }
    if conditions.len() > CONDITIONS_MAX {
        errors.push(Error::too_many(at, conditions.len(), CONDITIONS_MAX));
    }
    let mut seen: Vec<&str> = Vec::new();
    for (index, condition) in conditions.iter().enumerate() {
        let at = at.index(index);
        let (name, source) = (meta::str_at(condition, &["name"]), meta::str_at(condition, &["expression"]));
        if source.trim().is_empty() {
            errors.push(Error::required(&at.child("expression"), ""));
        } else if let Err(why) = Expression::compile(source, &VARIABLES) {
            let why = format!("compilation failed: {why}");
            errors.push(Error::invalid(&at.child("expression"), &json!(source), &why));
        }
        if name.is_empty() {
            errors.push(Error::required(&at.child("name"), ""));
            continue;
        }
        let faults = names::qualified_name(name);
        errors.extend(faults.iter().map(|why| Error::invalid(&at.child("name"), &json!(name), why)));
        if seen.contains(&name) {
            errors.push(Error::duplicate(&at.child("name"), &json!(name)));
        }
        seen.push(name);
    }
}
