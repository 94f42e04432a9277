//! Pod Security Standards: each namespace's labels say which pods it takes, and about which it warns.
//!
//! Pods are refused by the level to enforce; pods and the templates of workloads are warned about by the level to warn.
//! All versions of a level are judged as the latest.

mod baseline;
mod restricted;
mod words;

use std::collections::BTreeMap;
use std::fmt;

use apimachinery::field::{Error, Path};
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::json;

use super::{Operation, Plugin, Request};
use crate::object::Entry;
use words::Violation;

const PREFIX: &str = "pod-security.kubernetes.io/";
/// A namespace with more pods than this is not looked through for warnings.
const MAX_PODS: usize = 3000;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Level {
    Privileged,
    Baseline,
    Restricted,
}

/// A level and the version it was asked for in, printed as `restricted:latest`.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Policy {
    level: Level,
    version: String,
}

impl Level {
    fn parse(text: &str) -> Option<Level> {
        match text {
            "privileged" => Some(Level::Privileged),
            "baseline" => Some(Level::Baseline),
            "restricted" => Some(Level::Restricted),
            _ => None,
        }
    }
}

impl fmt::Display for Policy {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let level = match self.level {
            Level::Privileged => "privileged",
            Level::Baseline => "baseline",
            Level::Restricted => "restricted",
        };
        write!(f, "{level}:{}", self.version)
    }
}

impl Policy {
    /// The policy of `mode` (`enforce`, `warn`). A level that cannot be read is the strictest, as upstream: it fails closed.
    fn of<'a>(mode: &str, label: impl Fn(&str) -> Option<&'a str>) -> Policy {
        let level = label(&format!("{PREFIX}{mode}"));
        let version = label(&format!("{PREFIX}{mode}-version")).unwrap_or("latest").to_owned();
        let level = level.map_or(Level::Privileged, |text| Level::parse(text).unwrap_or(Level::Restricted));
        Policy { level, version }
    }

    fn of_entry(mode: &str, namespace: &Entry) -> Policy {
        Policy::of(mode, |key| namespace.value.meta().label(key))
    }

    fn of_object(mode: &str, namespace: &Value) -> Policy {
        Policy::of(mode, |key| meta::label(namespace, key))
    }

    /// What of a pod's (or template's) metadata and spec the policy forbids, in upstream's order.
    fn evaluate(&self, pod: &Value) -> Vec<Violation> {
        match self.level {
            Level::Privileged => Vec::new(),
            Level::Baseline => baseline::violations(pod, false),
            Level::Restricted => {
                let mut all = baseline::violations(pod, true);
                all.extend(restricted::violations(pod));
                all
            }
        }
    }
}

fn explain(violations: &[Violation]) -> String {
    violations.iter().map(ToString::to_string).collect::<Vec<_>>().join(", ")
}

pub struct PodSecurity;

impl Plugin for PodSecurity {
    fn name(&self) -> &'static str {
        "PodSecurity"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        if request.is("", "namespaces", "") {
            return check_namespace(request);
        }
        let pod = request.is_any("", "pods") && matches!(request.subresource, "" | "ephemeralcontainers" | "resize");
        if pod {
            return check_pod(request);
        }
        if request.subresource.is_empty() {
            warn_of_template(request);
        }
        Ok(())
    }
}

fn check_pod(request: &mut Request<'_>) -> Result<()> {
    let Some(namespace) = request.view.get("namespaces", "", request.namespace) else { return Ok(()) };
    let enforce = Policy::of_entry("enforce", &namespace);
    let warn = Policy::of_entry("warn", &namespace);
    if request.audit.is_none() && enforce.level == Level::Privileged && warn.level == Level::Privileged
        || !is_significant(request)
    {
        return Ok(());
    }
    let violations = enforce.evaluate(request.object);
    annotate(request, &namespace, Some(&enforce), request.object);
    if !violations.is_empty() {
        return Err(request.forbidden(&format!("violates PodSecurity \"{enforce}\": {}", explain(&violations))));
    }
    let violations = warn.evaluate(request.object);
    if !violations.is_empty() {
        request.warnings.push(format!("would violate PodSecurity \"{warn}\": {}", explain(&violations)));
    }
    Ok(())
}

/// Tells whoever audits the request which policy was enforced, and what the level to audit forbids.
fn annotate(request: &Request<'_>, namespace: &Entry, enforced: Option<&Policy>, pod: &Value) {
    let Some(record) = request.audit else { return };
    if let Some(enforced) = enforced {
        record.annotate(&format!("{PREFIX}enforce-policy"), &enforced.to_string());
    }
    let audit = Policy::of_entry("audit", namespace);
    let violations = audit.evaluate(pod);
    if !violations.is_empty() {
        let text = format!("would violate PodSecurity \"{audit}\": {}", explain(&violations));
        record.annotate(&format!("{PREFIX}audit-violations"), &text);
    }
}

/// An update counts if it changes what is judged.
fn is_significant(request: &Request<'_>) -> bool {
    let Some(old) = request.old.filter(|_| request.operation == Operation::Update) else { return true };
    let annotations = |pod: &Value| meta::at(pod, &["metadata", "annotations"]).cloned();
    old.get("spec") != request.object.get("spec") || annotations(old) != annotations(request.object)
}

/// Workloads are not refused: their pods may be changed by others before they are created.
fn warn_of_template(request: &mut Request<'_>) {
    let path: &[&str] = match (&*request.row.group, &*request.row.plural) {
        ("apps", "daemonsets" | "deployments" | "replicasets" | "statefulsets")
        | ("", "replicationcontrollers")
        | ("batch", "jobs") => &["spec", "template"],
        ("batch", "cronjobs") => &["spec", "jobTemplate", "spec", "template"],
        ("", "podtemplates") => &["template"],
        _ => return,
    };
    let Some(namespace) = request.view.get("namespaces", "", request.namespace) else { return };
    let warn = Policy::of_entry("warn", &namespace);
    let template = meta::at(request.object, path);
    let unchanged = request.old.is_some_and(|old| meta::at(old, path) == template);
    let template = template.filter(|_| !unchanged);
    if let Some(template) = template {
        annotate(request, &namespace, None, template);
    }
    let violations = template.map(|template| warn.evaluate(template)).unwrap_or_default();
    if !violations.is_empty() {
        request.warnings.push(format!("would violate PodSecurity \"{warn}\": {}", explain(&violations)));
    }
}

/// The labels must be readable, and whoever tightens a namespace is told which of its pods would not be let in again.
fn check_namespace(request: &mut Request<'_>) -> Result<()> {
    let changed = |key: &str| {
        let new = meta::label(request.object, key);
        new.filter(|new| request.old.is_none_or(|old| meta::label(old, key) != Some(new)))
    };
    let mut errors = Vec::new();
    for mode in ["enforce", "audit", "warn"] {
        let (level, version) = (format!("{PREFIX}{mode}"), format!("{PREFIX}{mode}-version"));
        let path = |key: &str| Path::new("metadata").child("labels").key(key);
        if let Some(text) = changed(&level).filter(|text| Level::parse(text).is_none()) {
            errors.push(Error::invalid(&path(&level), &json!(text), "must be one of privileged, baseline, restricted"));
        }
        if let Some(text) = changed(&version).filter(|text| !is_version(text)) {
            errors.push(Error::invalid(&path(&version), &json!(text), "must be \"latest\" or \"v1.x\""));
        }
    }
    if !errors.is_empty() {
        return Err(StatusError::invalid(&request.row.group_kind(), meta::name(request.object), &errors));
    }
    let Some(old) = request.old else { return Ok(()) };
    let enforce = Policy::of_object("enforce", request.object);
    if enforce.level > Policy::of_object("enforce", old).level {
        let pods = request.view.list("pods", meta::name(request.object));
        let warnings = warnings_of_pods(meta::name(request.object), &enforce, &pods);
        request.warnings.extend(warnings);
    }
    Ok(())
}

fn is_version(text: &str) -> bool {
    text == "latest"
        || text.strip_prefix("v1.").is_some_and(|minor| minor.bytes().all(|b| b.is_ascii_digit()) && !minor.is_empty())
}

/// A line for all pods that share their faults, under one heading.
fn warnings_of_pods(namespace: &str, policy: &Policy, pods: &[Entry]) -> Vec<String> {
    let mut by_fault: BTreeMap<String, Vec<String>> = BTreeMap::new();
    for pod in pods.iter().take(MAX_PODS) {
        let violations = policy.evaluate(&pod.value.value());
        if !violations.is_empty() {
            let reasons: Vec<&str> = violations.iter().map(|violation| violation.reason.as_str()).collect();
            by_fault.entry(reasons.join(", ")).or_default().push(pod.value.meta().name.to_string());
        }
    }
    if by_fault.is_empty() {
        return Vec::new();
    }
    let heading =
        format!("existing pods in namespace {namespace:?} violate the new PodSecurity enforce level \"{policy}\"");
    let lines = by_fault.into_iter().map(|(fault, pods)| match pods.as_slice() {
        [one] => format!("{one}: {fault}"),
        [first, _] => format!("{first} (and 1 other pod): {fault}"),
        [first, others @ ..] => format!("{first} (and {} other pods): {fault}", others.len()),
        [] => fault,
    });
    std::iter::once(heading).chain(lines).collect()
}

#[cfg(test)]
mod tests;
