//! Kinds with a pod template: Deployment, ReplicaSet, ReplicationController, StatefulSet, DaemonSet, Job, CronJob, PodTemplate.

mod cronjob;
mod job;
mod stateful;
mod status;

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList};
use apimachinery::selector::label::LabelSelector;
use apimachinery::{Value, meta};
use serde_json::json;

use super::common::{copy_field, immutable, path_of};
use super::{Context, Family, Part, Strategy, pod};

pub fn strategies() -> Family {
    let apps = |plural: &'static str, fixed: &'static [&'static [&'static str]]| {
        let strategy: Arc<dyn Strategy> = Arc::new(Workload { fixed, restarts: &["Always"] });
        ("apps", plural, strategy)
    };
    vec![
        apps("deployments", &[&["spec", "selector"]]),
        apps("replicasets", &[&["spec", "selector"]]),
        apps("daemonsets", &[&["spec", "selector"]]),
        apps("statefulsets", &[]),
        ("", "replicationcontrollers", Arc::new(Controller)),
        ("", "podtemplates", Arc::new(Template)),
        ("batch", "jobs", Arc::new(job::Jobs)),
        ("batch", "cronjobs", Arc::new(cronjob::CronJobs)),
    ]
}

const TEMPLATE: [&str; 2] = ["spec", "template"];

fn default_template(template: Option<&mut Value>) {
    if let Some(spec) = template.and_then(|t| t.get_mut("spec")) {
        pod::default_spec(spec);
    }
}

fn template_mut(object: &mut Value) -> Option<&mut Value> {
    object.get_mut("spec")?.get_mut("template")
}

/// The selector must exist and match the template's labels; the template must be a valid pod.
fn validate_template(object: &Value, restarts: &[&str], errors: &mut ErrorList) {
    let path = path_of(&TEMPLATE);
    let template = meta::at(object, &TEMPLATE).unwrap_or(&Value::Null);
    if let Some(selector) = meta::at(object, &["spec", "selector"]) {
        validate_selector(object, selector, template, errors);
    }
    let policy = template.get("spec").and_then(|s| s.get("restartPolicy")).cloned().unwrap_or_default();
    if !restarts.iter().any(|r| policy == *r) {
        errors.push(Error::not_supported(&path.child("spec").child("restartPolicy"), &policy, restarts));
    }
    pod::validate_template(template, &path, errors);
}

fn validate_selector(object: &Value, selector: &Value, template: &Value, errors: &mut ErrorList) {
    let at = path_of(&["spec", "selector"]);
    let structured = meta::str_at(object, &["kind"]) != "ReplicationController";
    let wrapped = if structured { selector.clone() } else { json!({ "matchLabels": selector }) };
    let Ok(parsed) = LabelSelector::from_value(&wrapped) else {
        errors.push(Error::invalid(&at, selector, "invalid label selector"));
        return;
    };
    if parsed.is_empty() {
        let kind = meta::str_at(object, &["kind"]).to_lowercase();
        errors.push(Error::invalid(&at, selector, &format!("empty selector is invalid for {kind}")));
    }
    let labels = meta::at(template, &["metadata", "labels"]);
    if !parsed.matches_map(labels) {
        let field = path_of(&["spec", "template", "metadata", "labels"]);
        let why = "`selector` does not match template `labels`";
        errors.push(Error::invalid(&field, labels.unwrap_or(&Value::Null), why));
    }
}

/// The four of `apps/v1`.
struct Workload {
    /// Paths that never change.
    fixed: &'static [&'static [&'static str]],
    restarts: &'static [&'static str],
}

impl Strategy for Workload {
    fn default(&self, object: &mut Value) {
        default_template(template_mut(object));
    }

    fn prepare_update(&self, _cx: &Context<'_>, part: Part, object: &mut Value, old: &Value) {
        // A deployment's controller writes its status from a cache that may not have the newest labels.
        if part == Part::Status
            && meta::str_at(object, &["kind"]) == "Deployment"
            && let (Some(from), Some(to)) = (old.get("metadata"), object.get_mut("metadata"))
        {
            copy_field(from, to, "labels");
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let stateful = meta::str_at(object, &["kind"]) == "StatefulSet";
        if part == Part::Status {
            if stateful {
                stateful::validate_status(object, old, &mut errors);
            }
            status::validate(meta::str_at(object, &["kind"]), object, old, &mut errors);
            return errors;
        }
        validate_template(object, self.restarts, &mut errors);
        match meta::str_at(object, &["kind"]) {
            "DaemonSet" => refuse_deadline(object, "DaemonSet", &mut errors),
            // A deployment's template is that of its replica sets.
            "Deployment" | "ReplicaSet" => refuse_deadline(object, "ReplicaSet", &mut errors),
            _ => {}
        }
        validate_deadlines(object, &mut errors);
        if let Some(old) = old {
            for path in self.fixed {
                immutable(object, old, path, &mut errors);
            }
        }
        if stateful {
            stateful::validate_spec(object, old, &mut errors);
        }
        validate_rolling(object, &mut errors);
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        if meta::str_at(object, &["kind"]) != "StatefulSet" {
            return Vec::new();
        }
        let mut warnings = job::name_warnings(object, old);
        warnings.extend(stateful::warnings(object));
        warnings
    }
}

/// Pods that are kept running have no end.
fn refuse_deadline(object: &Value, kind: &str, errors: &mut ErrorList) {
    const DEADLINE: [&str; 4] = ["spec", "template", "spec", "activeDeadlineSeconds"];
    if meta::at(object, &DEADLINE).is_some_and(|seconds| !seconds.is_null()) {
        let why = format!("activeDeadlineSeconds in {kind} is not Supported");
        errors.push(Error::forbidden(&path_of(&DEADLINE), &why));
    }
}

/// Progress takes longer than becoming available does.
fn validate_deadlines(object: &Value, errors: &mut ErrorList) {
    let number = |key: &str| object["spec"].get(key).and_then(Value::as_i64);
    if let (Some(deadline), Some(ready)) = (number("progressDeadlineSeconds"), number("minReadySeconds"))
        && deadline <= ready
    {
        let at = path_of(&["spec", "progressDeadlineSeconds"]);
        errors.push(Error::invalid(&at, &json!(deadline), "must be greater than minReadySeconds"));
    }
}

/// Both bounds of a rolling update at zero would never move.
fn validate_rolling(object: &Value, errors: &mut ErrorList) {
    let update = if meta::str_at(object, &["kind"]) == "DaemonSet" { "updateStrategy" } else { "strategy" };
    let path = ["spec", update, "rollingUpdate"];
    let Some(rolling) = meta::at(object, &path).filter(|r| r.is_object()) else { return };
    let zero = |key: &str| rolling.get(key).is_some_and(|v| *v == json!(0) || *v == json!("0%"));
    if zero("maxUnavailable") && zero("maxSurge") {
        let at = path_of(&path).child("maxUnavailable");
        errors.push(Error::invalid(&at, &rolling["maxUnavailable"], "may not be 0 when `maxSurge` is 0"));
    }
    // Pods of a daemon set are one to a node: both at once would say two things.
    if update == "updateStrategy" && rolling.get("maxSurge").is_some() && !zero("maxUnavailable") && !zero("maxSurge") {
        let why = "may not be set when maxUnavailable is non-zero";
        errors.push(Error::invalid(&path_of(&path).child("maxSurge"), &rolling["maxSurge"], why));
    }
    if meta::str_at(object, &["spec", "strategy", "type"]) == "Recreate" {
        let why = "may not be specified when strategy `type` is 'Recreate'";
        errors.push(Error::forbidden(&path_of(&path), why));
    }
}

/// ReplicationController: the selector is a plain map and comes from the template when absent.
struct Controller;

impl Strategy for Controller {
    fn default(&self, object: &mut Value) {
        default_template(template_mut(object));
        let labels = meta::at(object, &["spec", "template", "metadata", "labels"]).cloned();
        let Some(labels) = labels else { return };
        if let Some(spec) = object.get_mut("spec") {
            let empty = spec.get("selector").and_then(Value::as_object).is_none_or(|m| m.is_empty());
            if empty {
                spec["selector"] = labels.clone();
            }
        }
        let metadata = meta::metadata_mut(object);
        let empty = metadata.get("labels").and_then(Value::as_object).is_none_or(|m| m.is_empty());
        if empty {
            metadata.insert("labels".to_owned(), labels);
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            status::validate("ReplicationController", object, old, &mut errors);
        } else {
            validate_template(object, &["Always"], &mut errors);
            refuse_deadline(object, "ReplicationController", &mut errors);
        }
        errors
    }
}

struct Template;

impl Strategy for Template {
    fn default(&self, object: &mut Value) {
        default_template(object.get_mut("template"));
    }
}
