//! Rules of a job's status. A job may be managed by others than our controller, and clients rely on how it comes to its end:
//! so the server holds everybody to it. What has not changed is not judged, since the spec may have changed under it.

use apimachinery::Value;
use apimachinery::field::{Error, ErrorList, Path};
use serde_json::json;

use super::super::super::common::items;
use super::policy::parse_indexes;

/// A job, for questions about its status.
#[derive(Clone, Copy)]
struct Job<'a>(&'a Value);

impl<'a> Job<'a> {
    fn status(self, key: &str) -> &'a Value {
        &self.0["status"][key]
    }

    fn number(self, key: &str) -> i64 {
        self.status(key).as_i64().unwrap_or(0)
    }

    fn is(self, condition: &str) -> bool {
        items(&self.0["status"], "conditions").any(|c| c["type"] == condition && c["status"] == "True")
    }

    fn is_finished(self) -> bool {
        self.is("Complete") || self.is("Failed")
    }

    fn uncounted(self) -> usize {
        let uncounted = self.status("uncountedTerminatedPods");
        items(uncounted, "succeeded").chain(items(uncounted, "failed")).count()
    }

    fn is_suspended(self) -> bool {
        self.0["spec"]["suspend"] == json!(true)
    }

    fn is_indexed(self) -> bool {
        self.0["spec"]["completionMode"] == "Indexed"
    }
}

pub fn validate(object: &Value, old: &Value, errors: &mut ErrorList) {
    let (job, old) = (Job(object), Job(old));
    validate_counts(job, old, errors);
    validate_conditions(job, old, errors);
    validate_times(job, old, errors);
    validate_end(job, old, errors);
    validate_indexes(job, old, errors);
}

fn at(key: &str) -> Path {
    Path::new("status").child(key)
}

fn validate_counts(job: Job<'_>, old: Job<'_>, errors: &mut ErrorList) {
    for key in ["active", "succeeded", "failed", "ready", "terminating"] {
        if job.number(key) < 0 {
            errors.push(Error::invalid(&at(key), job.status(key), "must be greater than or equal to 0"));
        }
    }
    let mut seen: Vec<&Value> = Vec::new();
    for list in ["succeeded", "failed"] {
        for (index, uid) in items(job.status("uncountedTerminatedPods"), list).enumerate() {
            let at = at("uncountedTerminatedPods").child(list).index(index);
            if uid == "" {
                errors.push(Error::invalid(&at, uid, "must not be empty"));
            } else if seen.contains(&uid) {
                errors.push(Error::duplicate(&at, uid));
            }
            seen.push(uid);
        }
    }
    // An Indexed job may be made smaller.
    let elastic = job.is_indexed() && job.0["spec"]["completions"] == job.0["spec"]["parallelism"];
    for (key, fixed) in [("failed", true), ("succeeded", !elastic)] {
        if fixed && job.number(key) < old.number(key) {
            let why = format!("cannot decrease the {key} counter");
            errors.push(Error::invalid(&at(key), &json!(job.number(key)), &why));
        }
    }
    let changed = |key: &str| job.number(key) != old.number(key);
    if (changed("ready") || changed("active")) && job.number("ready") > job.number("active") {
        let why = "cannot set more ready pods than active";
        errors.push(Error::invalid(&at("ready"), job.status("ready"), why));
    }
}

fn validate_conditions(job: Job<'_>, old: Job<'_>, errors: &mut ErrorList) {
    let mut refuse = |why: String| errors.push(Error::invalid(&at("conditions"), job.status("conditions"), &why));
    let changed = |condition: &str| job.is(condition) != old.is(condition);
    for last in ["Failed", "Complete", "FailureTarget"] {
        if old.is(last) && !job.is(last) {
            refuse(format!("cannot disable the terminal {last}=True condition"));
        }
    }
    for (one, other, text) in [
        ("Complete", "Failed", "Complete=True and Failed=true"),
        ("Complete", "FailureTarget", "Complete=True and FailureTarget=true"),
        ("SuccessCriteriaMet", "Failed", "SuccessCriteriaMet=True and Failed=true"),
        ("SuccessCriteriaMet", "FailureTarget", "SuccessCriteriaMet=True and FailureTarget=true"),
    ] {
        let judged = one == "SuccessCriteriaMet" || changed(one) || changed(other);
        if judged && job.is(one) && job.is(other) {
            refuse(format!("cannot set {text} conditions"));
        }
    }
    for (end, before, text) in [
        ("Failed", "FailureTarget", "FailureTarget=true"),
        ("Complete", "SuccessCriteriaMet", "SuccessCriteriaMet=true"),
    ] {
        if (changed(end) || changed(before)) && job.is(end) && !job.is(before) {
            refuse(format!("cannot set {end}=True condition without the {text} condition"));
        }
    }
    if old.is("SuccessCriteriaMet") && !job.is("SuccessCriteriaMet") {
        refuse("cannot disable the SuccessCriteriaMet=True condition".to_owned());
    }
    if old.is("Complete") && !old.is("SuccessCriteriaMet") && job.is("SuccessCriteriaMet") {
        refuse("cannot set SuccessCriteriaMet=True for Job already has Complete=true conditions".to_owned());
    }
}

fn validate_times(job: Job<'_>, old: Job<'_>, errors: &mut ErrorList) {
    let (start, end) = (job.status("startTime"), job.status("completionTime"));
    let (old_start, old_end) = (old.status("startTime"), old.status("completionTime"));
    let ended_otherwise = end != old_end || job.is("Complete") != old.is("Complete");
    if ended_otherwise && !end.is_null() && !job.is("Complete") {
        let why = "cannot set completionTime when there is no Complete=True condition";
        errors.push(Error::invalid(&at("completionTime"), end, why));
    }
    if ended_otherwise && end.is_null() && job.is("Complete") {
        errors.push(Error::required(&at("completionTime"), "completionTime is required for Complete jobs"));
    }
    let parsed = |time: &Value| time.as_str().and_then(|text| text.parse::<jiff::Timestamp>().ok());
    if let (Some(begun), Some(done)) = (parsed(start), parsed(end))
        && (start != old_start || end != old_end)
        && done < begun
    {
        errors.push(Error::invalid(&at("completionTime"), end, "completionTime cannot be set before startTime"));
    }
    if !end.is_null() && !old_end.is_null() && end != old_end {
        errors.push(Error::invalid(&at("completionTime"), end, "completionTime cannot be mutated"));
    }
    if !old_start.is_null() && start != old_start && !job.is_suspended() {
        errors.push(Error::required(&at("startTime"), "startTime cannot be removed for unsuspended job"));
    }
}

/// A job that has ended has no pods left, running or uncounted.
fn validate_end(job: Job<'_>, old: Job<'_>, errors: &mut ErrorList) {
    if !job.is_finished() {
        return;
    }
    let newly = !old.is_finished();
    for (key, why) in [
        ("active", "active>0 is invalid for finished job"),
        ("terminating", "terminating>0 is invalid for finished job"),
    ] {
        if job.number(key) > 0 && (newly || job.number(key) != old.number(key)) {
            errors.push(Error::invalid(&at(key), job.status(key), why));
        }
    }
    let start_changed = job.status("startTime") != old.status("startTime");
    if job.status("startTime").is_null() && (newly || start_changed) && !job.is_suspended() {
        errors.push(Error::required(&at("startTime"), "startTime is required for finished job"));
    }
    let key = "uncountedTerminatedPods";
    if job.uncounted() > 0 && (newly || job.status(key) != old.status(key)) {
        let why = "uncountedTerminatedPods needs to be empty for finished job";
        errors.push(Error::invalid(&at(key), job.status(key), why));
    }
}

fn validate_indexes(job: Job<'_>, old: Job<'_>, errors: &mut ErrorList) {
    let changed = |key: &str| job.status(key) != old.status(key);
    let text = |key: &str| job.status(key).as_str().unwrap_or_default();
    let (done, failed) = (text("completedIndexes"), text("failedIndexes"));
    let per_index = !job.0["spec"]["backoffLimitPerIndex"].is_null();
    if changed("completedIndexes") && !done.is_empty() && !job.is_indexed() {
        let why = "cannot set non-empty completedIndexes when non-indexed completion mode";
        errors.push(Error::invalid(&at("completedIndexes"), &json!(done), why));
    }
    if changed("failedIndexes") && !job.status("failedIndexes").is_null() && !per_index {
        let why = "cannot set non-null failedIndexes when backoffLimitPerIndex is null";
        errors.push(Error::invalid(&at("failedIndexes"), &json!(failed), why));
    }
    let Some(completions) = job.0["spec"]["completions"].as_i64() else { return };
    for (key, text, judged) in [("completedIndexes", done, true), ("failedIndexes", failed, per_index)] {
        if let Err(why) = parse_indexes(text, completions)
            && judged
            && changed(key)
        {
            errors.push(Error::invalid(&at(key), &json!(text), &format!("error parsing {key}: {why}")));
        }
    }
    if changed("completedIndexes") || changed("failedIndexes") {
        let (Ok(done), Ok(failed)) = (parse_indexes(done, completions), parse_indexes(failed, completions)) else {
            return;
        };
        let overlap = |one: &(i64, i64)| {
            done.iter().find(|other| one.0 <= other.1 && other.0 <= one.1).map(|other| one.0.max(other.0))
        };
        if let Some(index) = failed.iter().find_map(overlap) {
            let why = format!("failedIndexes and completedIndexes overlap at index: {index}");
            errors.push(Error::invalid(&at("failedIndexes"), job.status("failedIndexes"), &why));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const START: &str = "2030-01-01T00:00:00Z";

    fn told(spec: Value, old: Value, new: Value) -> Vec<String> {
        let job = |status: Value| json!({"spec": spec, "status": status});
        let mut errors = ErrorList::new();
        validate(&job(new), &job(old), &mut errors);
        errors.iter().map(|error| error.field.to_string()).collect()
    }

    fn with(mut status: Value, conditions: &[&str]) -> Value {
        status["conditions"] = conditions.iter().map(|type_| json!({"type": type_, "status": "True"})).collect();
        status
    }

    #[test]
    fn a_job_ends_in_two_steps() {
        let running = json!({"startTime": START, "active": 1});
        let met = with(json!({"startTime": START}), &["SuccessCriteriaMet"]);
        assert!(told(json!({}), running.clone(), met.clone()).is_empty());
        let complete = with(json!({"startTime": START, "completionTime": START}), &["SuccessCriteriaMet", "Complete"]);
        assert!(told(json!({}), met, complete.clone()).is_empty());
        let hasty = with(json!({"startTime": START, "completionTime": START}), &["Complete"]);
        assert_eq!(told(json!({}), running.clone(), hasty), ["status.conditions"]);
        let timeless = with(json!({"startTime": START}), &["SuccessCriteriaMet", "Complete"]);
        assert_eq!(told(json!({}), running.clone(), timeless), ["status.completionTime"]);
        let busy = with(
            json!({"startTime": START, "active": 1, "terminating": 2, "uncountedTerminatedPods": {"failed": ["u"]}}),
            &["FailureTarget", "Failed"],
        );
        assert_eq!(
            told(json!({}), running.clone(), busy),
            ["status.active", "status.terminating", "status.uncountedTerminatedPods"]
        );
        let both = with(json!({"startTime": START}), &["SuccessCriteriaMet", "FailureTarget"]);
        assert_eq!(told(json!({}), running.clone(), both), ["status.conditions"]);
        assert!(!told(json!({}), complete, running).is_empty(), "an end is final");
    }

    #[test]
    fn what_is_counted_stays_counted() {
        assert_eq!(told(json!({}), json!({"failed": 2}), json!({"failed": 1})), ["status.failed"]);
        let smaller = || (json!({"succeeded": 2}), json!({"succeeded": 1}));
        let elastic = json!({"completionMode": "Indexed", "completions": 2, "parallelism": 2});
        assert_eq!(told(json!({}), smaller().0, smaller().1), ["status.succeeded"]);
        assert!(told(elastic, smaller().0, smaller().1).is_empty());
        assert_eq!(told(json!({}), json!({}), json!({"active": 1, "ready": 2})), ["status.ready"]);
        let twice = json!({"uncountedTerminatedPods": {"succeeded": ["u", ""], "failed": ["u"]}});
        let pods = "status.uncountedTerminatedPods";
        assert_eq!(told(json!({}), json!({}), twice), [format!("{pods}.succeeded[1]"), format!("{pods}.failed[0]")]);
    }

    #[test]
    fn the_clock_is_reset_only_by_suspension() {
        let started = json!({"startTime": START});
        assert_eq!(told(json!({}), started.clone(), json!({})), ["status.startTime"]);
        assert!(told(json!({"suspend": true}), started.clone(), json!({})).is_empty());
        assert!(told(json!({}), json!({}), started).is_empty());
    }

    #[test]
    fn indexes_are_those_of_the_job() {
        let indexed = json!({"completionMode": "Indexed", "completions": 3, "backoffLimitPerIndex": 1});
        assert!(told(indexed.clone(), json!({}), json!({"completedIndexes": "0,2", "failedIndexes": "1"})).is_empty());
        assert_eq!(told(indexed.clone(), json!({}), json!({"completedIndexes": "3"})), ["status.completedIndexes"]);
        let overlap = json!({"completedIndexes": "0-1", "failedIndexes": "1"});
        assert_eq!(told(indexed, json!({}), overlap.clone()), ["status.failedIndexes"]);
        let fields = told(json!({"completions": 3}), json!({}), overlap.clone());
        assert_eq!(fields[..2], ["status.completedIndexes", "status.failedIndexes"]);
        assert!(
            told(json!({"completions": 1}), overlap.clone(), overlap).is_empty(),
            "what has not changed is not judged"
        );
    }
}
