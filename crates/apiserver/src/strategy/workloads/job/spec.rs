//! Rules over several fields of a job's spec, in jobs and in the templates of cron jobs.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, names};
use serde_json::json;

use super::super::super::pod;
use super::policy;

const RESTARTS: [&str; 2] = ["OnFailure", "Never"];
const MANAGED_BY_MAX: usize = 63;
/// An Indexed job's status lists indexes: these bounds keep it from growing too long.
const PARALLELISM_MAX: i64 = 100_000;
const FAILED_INDEXES_MAX: i64 = 100_000;
const MANY_COMPLETIONS: i64 = 100_000;
/// Of parallelism and of failed indexes, with many completions.
const MAX_WITH_MANY: i64 = 10_000;

/// The bounds that an Indexed job's status sets to its spec.
fn validate_indexed(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let number = |key: &str| spec.get(key).and_then(Value::as_i64);
    let (completions, parallelism, failed) = (number("completions"), number("parallelism"), number("maxFailedIndexes"));
    if completions.is_none() {
        errors.push(Error::required(&path.child("completions"), "when completion mode is Indexed"));
    }
    let mut above = |key: &str, value: Option<i64>, max: i64, when: &str| {
        if let Some(value) = value.filter(|value| *value > max) {
            let why = format!("must be less than or equal to {max}{when}");
            errors.push(Error::invalid(&path.child(key), &json!(value), &why));
        }
    };
    above("parallelism", parallelism, PARALLELISM_MAX, " when completion mode is Indexed");
    above("maxFailedIndexes", failed, FAILED_INDEXES_MAX, "");
    let many = completions.is_some_and(|count| count > MANY_COMPLETIONS) && number("backoffLimitPerIndex").is_some();
    if many {
        let when = format!(" when completions are above {MANY_COMPLETIONS} and used with backoff limit per index");
        above("parallelism", parallelism, MAX_WITH_MANY, &when);
        above("maxFailedIndexes", failed, MAX_WITH_MANY, &when);
    }
    if many && failed.is_none() {
        let why = format!("must be specified when completions is above {MANY_COMPLETIONS}");
        errors.push(Error::required(&path.child("maxFailedIndexes"), &why));
    }
    if let (Some(failed), Some(completions)) = (failed, completions)
        && failed > completions
    {
        let why = "must be less than or equal to completions";
        errors.push(Error::invalid(&path.child("maxFailedIndexes"), &json!(failed), why));
    }
}

pub fn validate(spec: &Value, path: &Path, errors: &mut ErrorList) {
    let given = |key: &str| spec.get(key).is_some_and(|value| !value.is_null());
    let indexed = spec["completionMode"] == "Indexed";
    if indexed {
        validate_indexed(spec, path, errors);
    }
    for key in ["backoffLimitPerIndex", "maxFailedIndexes", "successPolicy"] {
        if !indexed && given(key) {
            errors.push(Error::invalid(&path.child(key), &spec[key], "requires indexed completion mode"));
        }
    }
    if given("maxFailedIndexes") && !given("backoffLimitPerIndex") {
        errors.push(Error::required(&path.child("backoffLimitPerIndex"), "when maxFailedIndexes is specified"));
    }
    if let Some(manager) = spec.get("managedBy").and_then(Value::as_str) {
        let at = path.child("managedBy");
        errors.extend(names::domain_prefixed_path(&at, manager));
        if manager.len() > MANAGED_BY_MAX {
            errors.push(Error::too_long(&at, MANAGED_BY_MAX));
        }
    }
    if given("podFailurePolicy") {
        policy::validate_failure(spec, &path.child("podFailurePolicy"), errors);
        if given("podReplacementPolicy") && spec["podReplacementPolicy"] != "Failed" {
            let at = path.child("podReplacementPolicy");
            errors.push(Error::not_supported(&at, &spec["podReplacementPolicy"], &["Failed"]));
        }
    }
    if indexed && given("successPolicy") {
        policy::validate_success(spec, &path.child("successPolicy"), errors);
    }
    let template = path.child("template");
    validate_restarts(spec, &template.child("spec").child("restartPolicy"), errors);
    pod::validate_template(&spec["template"], &template, errors);
}

fn validate_restarts(spec: &Value, at: &Path, errors: &mut ErrorList) {
    let restarts = &spec["template"]["spec"]["restartPolicy"];
    match restarts.as_str().unwrap_or_default() {
        // Always is what the pod's own default says when nobody has chosen.
        "" | "Always" => errors.push(Error::required(at, "valid values: \"OnFailure\", \"Never\"")),
        "Never" => {}
        "OnFailure" if spec.get("podFailurePolicy").is_some_and(|policy| !policy.is_null()) => {
            let why = "only \"Never\" is supported when podFailurePolicy is specified";
            errors.push(Error::invalid(at, restarts, why));
        }
        "OnFailure" => {}
        _ => errors.push(Error::not_supported(at, restarts, &RESTARTS)),
    }
}

pub fn warnings(spec: &Value) -> Vec<String> {
    let above = |key: &str, limit: i64| spec.get(key).and_then(Value::as_i64).is_some_and(|number| number > limit);
    let endless = spec["completionMode"] == "Indexed"
        && above("completions", MANY_COMPLETIONS)
        && above("parallelism", MAX_WITH_MANY);
    let why = format!(
        "In Indexed Jobs with a number of completions higher than {MANY_COMPLETIONS} and a parallelism higher than {MAX_WITH_MANY}, Kubernetes might not be able to track completedIndexes when a big number of indexes fail"
    );
    if endless { vec![why] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(mut spec: Value) -> Vec<String> {
        let restarts = spec["restarts"].take();
        let containers = json!([{"name": "main", "image": "i"}]);
        spec["template"] = json!({"spec": {"restartPolicy": if restarts.is_null() { json!("Never") } else { restarts }, "containers": containers}});
        let mut errors = ErrorList::new();
        validate(&spec, &Path::new("spec"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn restarts_are_chosen() {
        let at = "spec.template.spec.restartPolicy";
        assert_eq!(told(json!({"restarts": "OnFailure"})), Vec::<String>::new());
        assert_eq!(
            told(json!({"restarts": "Always"})),
            [format!("{at}: Required value: valid values: \"OnFailure\", \"Never\"")]
        );
        let policy = json!({"rules": [{"action": "Count", "onPodConditions": [{"type": "A", "status": "True"}]}]});
        let why = "only \"Never\" is supported when podFailurePolicy is specified";
        assert_eq!(
            told(json!({"restarts": "OnFailure", "podFailurePolicy": policy})),
            [format!("{at}: Invalid value: \"OnFailure\": {why}")]
        );
    }

    #[test]
    fn indexed_jobs_have_bounds() {
        assert_eq!(
            told(json!({"completionMode": "Indexed"})),
            ["spec.completions: Required value: when completion mode is Indexed"]
        );
        let many = json!({"completionMode": "Indexed", "completions": 100_001, "backoffLimitPerIndex": 1});
        assert_eq!(
            told(many),
            ["spec.maxFailedIndexes: Required value: must be specified when completions is above 100000"]
        );
        let fields = |spec: Value| {
            told(spec).into_iter().map(|told| told.split(':').next().unwrap_or_default().to_owned()).collect::<Vec<_>>()
        };
        assert_eq!(
            fields(json!({"completionMode": "NonIndexed", "backoffLimitPerIndex": 1})),
            ["spec.backoffLimitPerIndex"]
        );
        assert_eq!(
            fields(
                json!({"completionMode": "Indexed", "completions": 2, "maxFailedIndexes": 3, "backoffLimitPerIndex": 1})
            ),
            ["spec.maxFailedIndexes"]
        );
        assert_eq!(fields(json!({"managedBy": "nobody"})), ["spec.managedBy"]);
        assert_eq!(fields(json!({"managedBy": "example.com/me"})), Vec::<String>::new());
    }
}
