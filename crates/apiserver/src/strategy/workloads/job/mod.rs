//! Jobs.

mod policy;
pub mod spec;
mod status;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::selector::label::LabelSelector;
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::super::common::{copy_field, immutable, items_mut, path_of, set_default};
use super::super::{Context, Part, Strategy};
use super::{TEMPLATE, default_template, template_mut};

pub struct Jobs;

/// Labels by which a job finds its pods, in the newer and the older form.
const LABELS: [(&str, bool); 4] = [
    ("batch.kubernetes.io/controller-uid", true),
    ("controller-uid", true),
    ("batch.kubernetes.io/job-name", false),
    ("job-name", false),
];

/// One pod unless something else is asked for; a retry limit, unlimited where each index has its own.
fn default_job(spec: &mut Value) {
    if spec.get("completions").is_none() && spec.get("parallelism").is_none() {
        set_default(spec, "completions", 1);
    }
    set_default(spec, "parallelism", 1);
    let per_index = spec.get("backoffLimitPerIndex").is_some_and(|l| !l.is_null());
    set_default(spec, "backoffLimit", if per_index { i64::from(i32::MAX) } else { 6 });
    set_default(spec, "completionMode", "NonIndexed");
    set_default(spec, "suspend", false);
    let by_policy = spec.get("podFailurePolicy").is_some_and(|p| !p.is_null());
    set_default(spec, "podReplacementPolicy", if by_policy { "Failed" } else { "TerminatingOrFailed" });
    default_template(spec.get_mut("template"));
}

fn is_manual(object: &Value) -> bool {
    object["spec"]["manualSelector"] == json!(true)
}

impl Strategy for Jobs {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) {
            set_default(spec, "manualSelector", false);
            default_job(spec);
        }
        let labels = meta::at(object, &["spec", "template", "metadata", "labels"]).cloned();
        let bare = meta::at(object, &["metadata", "labels"]).and_then(Value::as_object).is_none_or(|l| l.is_empty());
        if let (Some(labels), true) = (labels.filter(Value::is_object), bare) {
            meta::metadata_mut(object).insert("labels".to_owned(), labels);
        }
    }

    /// What a client has set already stays; where it is wrong validation says so.
    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        if is_manual(object) {
            return;
        }
        let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
        let Some(template) = template_mut(object) else { return };
        let labels = meta::metadata_mut(template).entry("labels").or_insert_with(|| json!({}));
        for (key, by_uid) in LABELS {
            set_default(labels, key, if by_uid { uid.as_str() } else { name.as_str() });
        }
        let selector = meta::map_mut(object, "spec").entry("selector").or_insert_with(|| json!({}));
        set_default(selector, "matchLabels", json!({}));
        if let Some(labels) = selector.get_mut("matchLabels") {
            set_default(labels, LABELS[0].0, uid);
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            if let Some(old) = old {
                status::validate(object, old, &mut errors);
            }
            return errors;
        }
        validate_selector(object, old, &mut errors);
        spec::validate(&object["spec"], &Path::new("spec"), &mut errors);
        validate_hostnames(object, &mut errors);
        if let Some(old) = old {
            validate_update(object, old, &mut errors);
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let mut warnings = name_warnings(object, old);
        warnings.extend(spec::warnings(&object["spec"]));
        warnings
    }
}

/// Of an object whose name becomes part of hostnames.
pub fn name_warnings(object: &Value, old: Option<&Value>) -> Vec<String> {
    let problems = names::dns1123_label(meta::name(object));
    if old.is_some() || problems.is_empty() {
        return Vec::new();
    }
    let why =
        "this is used in Pod names and hostnames, which can result in surprising behavior; a DNS label is recommended";
    vec![format!("metadata.name: {why}: [{}]", problems.join(" "))]
}

/// The selector matches the template; if it is generated it selects by the labels that were generated.
fn validate_selector(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (at, labels_at) = (path_of(&["spec", "selector"]), path_of(&TEMPLATE).child("metadata").child("labels"));
    let Some(sent) = meta::at(object, &["spec", "selector"]).filter(|selector| selector.is_object()) else {
        errors.push(Error::required(&at, ""));
        return;
    };
    let labels = meta::at(object, &["spec", "template", "metadata", "labels"]);
    let selector = match LabelSelector::from_value(sent) {
        Ok(selector) => selector,
        Err(why) => {
            errors.push(Error::invalid(&at, sent, &why.to_string()));
            return;
        }
    };
    if !selector.matches_map(labels) {
        let why = "`selector` does not match template `labels`";
        errors.push(Error::invalid(&labels_at, labels.unwrap_or(&Value::Null), why));
    }
    // Jobs made long ago have the older labels only.
    let is_new = |key: &str| key.starts_with("batch.");
    let had =
        |key: &str| old.is_none_or(|old| meta::at(old, &["spec", "template", "metadata", "labels", key]).is_some());
    if is_manual(object) {
        return;
    }
    let mut expected = json!({});
    for (key, by_uid) in LABELS.into_iter().filter(|(key, _)| !is_new(key) || had(key)) {
        let wanted = if by_uid { meta::uid(object) } else { meta::name(object) };
        expected[key] = json!(wanted);
        let why = format!("must be '{wanted}'");
        match labels.and_then(|labels| labels.get(key)) {
            None => errors.push(Error::required(&labels_at.key(key), &why)),
            Some(found) if *found != json!(wanted) => {
                errors.push(Error::invalid(&labels_at.key(key), labels.unwrap_or(&Value::Null), &why));
            }
            Some(_) => {}
        }
    }
    if !selector.matches_map(Some(&expected)) {
        errors.push(Error::invalid(&at, sent, "`selector` not auto-generated"));
    }
}

/// The highest index makes the longest hostname.
fn validate_hostnames(object: &Value, errors: &mut ErrorList) {
    let completions = object["spec"]["completions"].as_i64().unwrap_or(0);
    if object["spec"]["completionMode"] != "Indexed" || completions <= 0 {
        return;
    }
    let longest = format!("{}-{}", meta::name(object), completions - 1);
    if !names::dns1123_label(&longest).is_empty() {
        let why = format!("will not able to create pod with invalid DNS label: {longest}");
        errors.push(Error::invalid(&path_of(&["metadata", "name"]), &json!(meta::name(object)), &why));
    }
}

/// A job is fixed once made, but for how much of it runs at a time, and for where its pods go and what they get while it
/// is suspended.
fn validate_update(object: &Value, old: &Value, errors: &mut ErrorList) {
    for key in ["selector", "completionMode", "podFailurePolicy", "backoffLimitPerIndex", "managedBy", "successPolicy"]
    {
        immutable(object, old, &["spec", key], errors);
    }
    let (new, before) = (&object["spec"], &old["spec"]);
    if new["completionMode"] != "Indexed" {
        immutable(object, old, &["spec", "completions"], errors);
    } else if new["completions"] != before["completions"] && new["completions"] != new["parallelism"] {
        let why = "can only be modified in tandem with spec.parallelism";
        errors.push(Error::invalid(&path_of(&["spec", "completions"]), &new["completions"], why));
    }
    let mut allowed = before["template"].clone();
    if is_at_rest(old) {
        loosen(&mut allowed, &new["template"]);
    }
    if new["template"] != allowed {
        errors.push(Error::invalid(&path_of(&TEMPLATE), &new["template"], "field is immutable"));
    }
}

/// Suspended, and without pods: never started, or seen by the controller as suspended.
fn is_at_rest(job: &Value) -> bool {
    let status = &job["status"];
    let suspended =
        || super::super::common::items(status, "conditions").any(|c| c["type"] == "Suspended" && c["status"] == "True");
    job["spec"]["suspend"] == json!(true)
        && status["active"].as_i64().unwrap_or(0) == 0
        && (status["startTime"].is_null() || suspended())
}

/// Takes over from `new` what may change in a job at rest: where its pods may go, and their resources.
fn loosen(allowed: &mut Value, new: &Value) {
    if let (Some(from), Some(to)) = (new.get("metadata"), allowed.as_object_mut()) {
        let to = to.entry("metadata").or_insert_with(|| json!({}));
        ["labels", "annotations"].iter().for_each(|key| copy_field(from, to, key));
    }
    let (Some(from), Some(to)) = (new.get("spec"), allowed.get_mut("spec")) else { return };
    ["nodeSelector", "schedulingGates", "tolerations"].iter().for_each(|key| copy_field(from, to, key));
    let affinity = from.get("affinity").filter(|affinity| affinity.is_object());
    let mut kept = to.get("affinity").filter(|a| a.is_object()).cloned().unwrap_or_else(|| json!({}));
    copy_field(affinity.unwrap_or(&json!({})), &mut kept, "nodeAffinity");
    match affinity.is_none() && kept.as_object().is_none_or(|kept| kept.is_empty()) {
        true => drop(to.as_object_mut().map(|to| to.remove("affinity"))),
        false => to["affinity"] = kept,
    }
    for list in ["initContainers", "containers"] {
        let sent = from.get(list).and_then(Value::as_array).cloned().unwrap_or_default();
        for (container, sent) in items_mut(to, list).zip(&sent) {
            if container["name"] == sent["name"] {
                copy_field(sent, container, "resources");
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn job(pod: Value, suspend: bool, status: Value) -> Value {
        json!({"spec": {"suspend": suspend, "completions": 1, "template": {"spec": pod}}, "status": status})
    }

    fn changes(old: &Value, pod: Value) -> usize {
        let mut errors = ErrorList::new();
        let mut new = old.clone();
        new["spec"]["template"]["spec"] = pod;
        validate_update(&new, old, &mut errors);
        errors.len()
    }

    #[test]
    fn a_job_moves_only_while_it_rests() {
        let (a, b) = (json!({"nodeSelector": {"a": "1"}}), json!({"nodeSelector": {"a": "2"}}));
        let resting = job(a.clone(), true, json!({}));
        assert_eq!(changes(&resting, b.clone()), 0);
        assert_eq!(changes(&job(a.clone(), false, json!({})), b.clone()), 1);
        let started = json!({"startTime": "2030-01-01T00:00:00Z"});
        assert_eq!(changes(&job(a.clone(), true, started), b.clone()), 1, "its pods may still run");
        let suspended =
            json!({"startTime": "2030-01-01T00:00:00Z", "conditions": [{"type": "Suspended", "status": "True"}]});
        assert_eq!(changes(&job(a.clone(), true, suspended), b.clone()), 0);
        assert_eq!(changes(&job(a.clone(), true, json!({"active": 1})), b), 1);
        assert_eq!(changes(&resting, json!({"nodeSelector": {"a": "1"}, "hostNetwork": true})), 1);
    }

    #[test]
    fn of_affinity_only_that_to_nodes_may_change() {
        let with = |affinity: Value| json!({"affinity": affinity});
        let resting = |affinity: Value| job(with(affinity), true, json!({}));
        let (node, pod) = (json!({"nodeAffinity": {"x": 1}}), json!({"podAffinity": {"x": 1}}));
        assert_eq!(changes(&resting(json!({})), with(node.clone())), 0);
        assert_eq!(changes(&resting(node.clone()), json!({})), 0);
        assert_eq!(changes(&resting(json!({})), with(pod.clone())), 1);
        assert_eq!(changes(&resting(pod), json!({})), 1);
        let containers =
            |cpu: &str| json!({"containers": [{"name": "c", "image": "i", "resources": {"limits": {"cpu": cpu}}}]});
        assert_eq!(changes(&job(containers("1"), true, json!({})), containers("2")), 0);
        let mut other = containers("2");
        other["containers"][0]["image"] = json!("j");
        assert_eq!(changes(&job(containers("1"), true, json!({})), other), 1);
    }

    #[test]
    fn completions_of_an_indexed_job_follow_its_parallelism() {
        let indexed = |completions: i64, parallelism: i64| json!({"spec": {"completionMode": "Indexed", "completions": completions, "parallelism": parallelism}});
        let change = |old: Value, new: Value| {
            let mut errors = ErrorList::new();
            validate_update(&new, &old, &mut errors);
            errors.iter().map(ToString::to_string).collect::<Vec<_>>().join("; ")
        };
        assert_eq!(change(indexed(3, 3), indexed(5, 5)), "");
        let told = change(indexed(3, 3), indexed(5, 3));
        assert_eq!(told, "spec.completions: Invalid value: 5: can only be modified in tandem with spec.parallelism");
    }

    #[test]
    fn defaults_follow_from_what_is_asked() {
        let made = |spec: Value| {
            let mut spec = spec;
            default_job(&mut spec);
            (spec["completions"].clone(), spec["backoffLimit"].clone(), spec["podReplacementPolicy"].clone())
        };
        assert_eq!(made(json!({})), (json!(1), json!(6), json!("TerminatingOrFailed")));
        assert_eq!(made(json!({"parallelism": 2, "podFailurePolicy": {}})), (Value::Null, json!(6), json!("Failed")));
    }

    #[test]
    fn a_generated_selector_is_checked() {
        let mut job = json!({"kind": "Job", "metadata": {"name": "j", "uid": "u"}, "spec": {"selector": {"matchLabels": {"controller-uid": "u"}},
            "template": {"metadata": {"labels": {"controller-uid": "u", "batch.kubernetes.io/controller-uid": "u", "job-name": "j", "batch.kubernetes.io/job-name": "x"}}}}});
        let told = |job: &Value| {
            let mut errors = ErrorList::new();
            validate_selector(job, None, &mut errors);
            errors.iter().map(|error| error.field.to_string()).collect::<Vec<_>>()
        };
        assert_eq!(told(&job), ["spec.template.metadata.labels[batch.kubernetes.io/job-name]"]);
        job["spec"]["template"]["metadata"]["labels"]["batch.kubernetes.io/job-name"] = json!("j");
        assert!(told(&job).is_empty());
        job["spec"]["selector"]["matchLabels"]["app"] = json!("x");
        assert_eq!(told(&job), ["spec.template.metadata.labels", "spec.selector"]);
        job["spec"]["manualSelector"] = json!(true);
        job["spec"]["template"]["metadata"]["labels"]["app"] = json!("x");
        assert!(told(&job).is_empty());
    }
}
