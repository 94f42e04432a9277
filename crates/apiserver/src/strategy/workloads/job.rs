//! Jobs and cron jobs.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta};
use serde_json::json;

use super::super::common::{copy_field, immutable, path_of, set_default};
use super::super::{Context, Part, Strategy, pod};
use super::{TEMPLATE, cron, default_template, template_mut, validate_template};

pub struct Jobs;

/// Labels by which a job finds its pods, in the newer and the older form.
const LABELS: [(&str, bool); 4] = [
    ("batch.kubernetes.io/controller-uid", true),
    ("controller-uid", true),
    ("batch.kubernetes.io/job-name", false),
    ("job-name", false),
];
const RESTARTS: [&str; 2] = ["OnFailure", "Never"];
/// Upstream's limits on indexed jobs.
const MAX_INDEXED_PARALLELISM: i64 = 100_000;
const MAX_INDEXED_COMPLETIONS: i64 = 1_000_000_000;

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

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        if object["spec"]["manualSelector"] == json!(true) {
            return;
        }
        let (uid, name) = (meta::uid(object).to_owned(), meta::name(object).to_owned());
        let Some(template) = template_mut(object) else { return };
        let labels = meta::metadata_mut(template).entry("labels").or_insert_with(|| json!({}));
        for (key, by_uid) in LABELS {
            labels[key] = json!(if by_uid { &uid } else { &name });
        }
        object["spec"]["selector"] = json!({"matchLabels": {LABELS[0].0: uid}});
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            return errors;
        }
        validate_spec(&object["spec"], &Path::new("spec"), &mut errors);
        match old {
            None => validate_template(object, &RESTARTS, &mut errors),
            Some(old) => validate_update(object, old, &mut errors),
        }
        errors
    }
}

fn validate_spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let number = |key: &str| spec.get(key).and_then(Value::as_i64);
    let indexed = spec["completionMode"] == "Indexed";
    if indexed {
        match number("completions") {
            None => {
                let why = "when completion mode is Indexed";
                errors.push(Error::required(&path.child("completions"), why));
            }
            Some(count) if count > MAX_INDEXED_COMPLETIONS => {
                let why = format!("must be less than or equal to {MAX_INDEXED_COMPLETIONS}");
                errors.push(Error::invalid(&path.child("completions"), &json!(count), &why));
            }
            Some(_) => {}
        }
        if let Some(count) = number("parallelism").filter(|count| *count > MAX_INDEXED_PARALLELISM) {
            let why =
                format!("must be less than or equal to {MAX_INDEXED_PARALLELISM} when completion mode is Indexed");
            errors.push(Error::invalid(&path.child("parallelism"), &json!(count), &why));
        }
    }
    for key in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
        if !indexed && spec.get(key).is_some_and(|v| !v.is_null()) {
            let why = "requires indexed completion mode";
            errors.push(Error::invalid(&path.child(key), &spec[key], why));
        }
    }
    if number("maxFailedIndexes").is_some() && number("backoffLimitPerIndex").is_none() {
        let why = "when maxFailedIndexes is specified";
        errors.push(Error::required(&path.child("backoffLimitPerIndex"), why));
    }
    let policy = spec.get("podFailurePolicy").is_some_and(|p| !p.is_null());
    if policy && spec["template"]["spec"]["restartPolicy"] != "Never" {
        let at = path.child("template").child("spec").child("restartPolicy");
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        errors.push(Error::invalid(&at, &spec["template"]["spec"]["restartPolicy"], why));
    }
}

/// A job is fixed once made, but for how much of it runs at a time; where its pods go may change while it has not started.
fn validate_update(object: &Value, old: &Value, errors: &mut ErrorList) {
    for path in [
        &["spec", "selector"][..],
        &["spec", "completionMode"],
        &["spec", "podFailurePolicy"],
        &["spec", "successPolicy"],
    ] {
        immutable(object, old, path, errors);
    }
    let elastic =
        object["spec"]["completionMode"] == "Indexed" && object["spec"]["completions"] == object["spec"]["parallelism"];
    if !elastic {
        immutable(object, old, &["spec", "completions"], errors);
    }
    let mut allowed = old["spec"]["template"].clone();
    let new = &object["spec"]["template"];
    let suspended = old["spec"]["suspend"] == json!(true);
    let started = old["status"].get("startTime").is_some_and(|t| !t.is_null());
    if suspended && !started {
        const MOVING: [(&str, &[&str]); 2] = [
            ("spec", &["affinity", "nodeSelector", "schedulingGates", "tolerations"]),
            ("metadata", &["labels", "annotations"]),
        ];
        for (part, keys) in MOVING {
            if let (Some(from), Some(to)) = (new.get(part), allowed.get_mut(part)) {
                keys.iter().for_each(|key| copy_field(from, to, key));
            }
        }
    }
    if *new != allowed {
        errors.push(Error::invalid(&path_of(&TEMPLATE), new, "field is immutable"));
    }
}

pub struct CronJobs;

/// Pods of a job have its name and a suffix, and a job of a cron job has a suffix of eleven: 63 less that.
const MAX_NAME: usize = 52;

impl Strategy for CronJobs {
    fn default(&self, object: &mut Value) {
        // Only the pods: what else a job defaults, it does when it is made.
        default_template(object.pointer_mut("/spec/jobTemplate/spec/template"));
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            return errors;
        }
        if old.is_none() && meta::name(object).len() > MAX_NAME {
            let why = format!("must be no more than {MAX_NAME} characters");
            errors.push(Error::invalid(&path_of(&["metadata", "name"]), &json!(meta::name(object)), &why));
        }
        validate_schedule(object, old, &mut errors);
        let spec = meta::at(object, &["spec", "jobTemplate", "spec"]).unwrap_or(&Value::Null);
        let path = path_of(&["spec", "jobTemplate", "spec"]);
        validate_spec(spec, &path, &mut errors);
        if spec["manualSelector"] == json!(true) {
            errors.push(Error::not_supported(&path.child("manualSelector"), &json!(true), &["nil", "false"]));
        }
        let restart = &spec["template"]["spec"]["restartPolicy"];
        if !RESTARTS.iter().any(|r| *restart == **r) {
            let at = path.child("template").child("spec").child("restartPolicy");
            errors.push(Error::not_supported(&at, restart, &RESTARTS));
        }
        pod::validate_template(&spec["template"], &path.child("template"), &mut errors);
        errors
    }
}

fn validate_schedule(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let text = meta::str_at(object, &["spec", "schedule"]);
    let path = path_of(&["spec", "schedule"]);
    if text.contains("TZ=") {
        let kept = old.is_some_and(|old| meta::str_at(old, &["spec", "schedule"]) == text);
        if !kept {
            let why = "cannot use TZ or CRON_TZ in schedule, use timeZone field instead";
            errors.push(Error::invalid(&path, &json!(text), why));
        }
    } else if let (false, Err(why)) = (text.is_empty(), cron::check(text)) {
        errors.push(Error::invalid(&path, &json!(text), &why));
    }
    let Some(zone) = object["spec"].get("timeZone").and_then(Value::as_str) else { return };
    let path = path_of(&["spec", "timeZone"]);
    if zone.is_empty() {
        errors.push(Error::invalid(&path, &json!(zone), "timeZone must be nil or non-empty string"));
    } else if zone.eq_ignore_ascii_case("local") {
        let why = "timeZone must be an explicit time zone as defined in https://www.iana.org/time-zones";
        errors.push(Error::invalid(&path, &json!(zone), why));
    } else if jiff::tz::TimeZone::get(zone).is_err() {
        errors.push(Error::invalid(&path, &json!(zone), &format!("unknown time zone {zone}")));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_job_moves_only_before_its_start() {
        let job = |selector: &str, suspend: bool| json!({"spec": {"suspend": suspend, "completions": 1, "template": {"spec": {"nodeSelector": {"a": selector}}}}});
        let check = |old: Value, new: Value| {
            let mut errors = ErrorList::new();
            validate_update(&new, &old, &mut errors);
            errors.len()
        };
        assert_eq!(check(job("1", true), job("2", false)), 0);
        assert_eq!(check(job("1", false), job("2", false)), 1);
        let mut started = job("1", true);
        started["status"] = json!({"startTime": "2030-01-01T00:00:00Z"});
        assert_eq!(check(started, job("2", true)), 1);
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
}
