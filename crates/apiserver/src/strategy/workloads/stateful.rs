//! Stateful sets: what the other workloads of `apps/v1` do not have.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, names};
use serde_json::json;

use super::super::common::path_of;

pub fn validate_spec(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (spec, path) = (&object["spec"], Path::new("spec"));
    let (update, at) = (&spec["updateStrategy"], path.child("updateStrategy").child("rollingUpdate"));
    let rolling = update.get("rollingUpdate").filter(|rolling| rolling.is_object());
    if let Some(rolling) = rolling {
        if update["type"] == "OnDelete" {
            errors.push(Error::invalid(&at, rolling, "only allowed for updateStrategy 'RollingUpdate'"));
        }
        let limit = &rolling["maxUnavailable"];
        if *limit == json!(0) || *limit == json!("0%") {
            errors.push(Error::invalid(&at.child("maxUnavailable"), limit, "cannot be 0"));
        }
    }
    if spec["template"]["spec"].get("activeDeadlineSeconds").is_some_and(|seconds| !seconds.is_null()) {
        let at = path.child("template").child("spec").child("activeDeadlineSeconds");
        errors.push(Error::forbidden(&at, "activeDeadlineSeconds in StatefulSet is not Supported"));
    }
    // Becomes the subdomain of the pods. Sets made before this was checked stay as they are.
    if let (None, Some(service)) =
        (old, spec.get("serviceName").and_then(Value::as_str).filter(|name| !name.is_empty()))
    {
        for why in names::dns1123_label(service) {
            errors.push(Error::invalid(&path.child("serviceName"), &json!(service), &why));
        }
    }
    if let Some(old) = old {
        validate_update(object, old, errors);
    }
}

fn validate_update(object: &Value, old: &Value, errors: &mut ErrorList) {
    const FREE: [&str; 7] = [
        "replicas",
        "ordinals",
        "template",
        "updateStrategy",
        "revisionHistoryLimit",
        "persistentVolumeClaimRetentionPolicy",
        "minReadySeconds",
    ];
    let strip = |object: &Value| {
        let mut spec = object["spec"].clone();
        if let Some(map) = spec.as_object_mut() {
            map.retain(|key, _| !FREE.contains(&key.as_str()));
        }
        spec
    };
    if strip(object) != strip(old) {
        let why = "updates to statefulset spec for fields other than 'replicas', 'ordinals', 'template', 'updateStrategy', 'revisionHistoryLimit', 'persistentVolumeClaimRetentionPolicy' and 'minReadySeconds' are forbidden";
        errors.push(Error::forbidden(&Path::new("spec"), why));
    }
}

pub fn validate_status(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let status = &object["status"];
    let number = |key: &str| status[key].as_i64().unwrap_or(0);
    let at = |key: &str| path_of(&["status", key]);
    const COUNTS: [&str; 5] = ["replicas", "readyReplicas", "currentReplicas", "updatedReplicas", "availableReplicas"];
    for key in COUNTS.into_iter().chain(["observedGeneration", "collisionCount"]) {
        if number(key) < 0 {
            errors.push(Error::invalid(&at(key), &status[key], "must be greater than or equal to 0"));
        }
    }
    for key in &COUNTS[1..] {
        if number(key) > number("replicas") {
            errors.push(Error::invalid(&at(key), &status[*key], "cannot be greater than status.replicas"));
        }
    }
    if number("availableReplicas") > number("readyReplicas") {
        let why = "cannot be greater than status.readyReplicas";
        errors.push(Error::invalid(&at("availableReplicas"), &status["availableReplicas"], why));
    }
    let before = old.and_then(|old| old["status"]["collisionCount"].as_i64()).unwrap_or(0);
    if number("collisionCount") < before {
        errors.push(Error::invalid(&at("collisionCount"), &status["collisionCount"], "cannot be decremented"));
    }
}

pub fn warnings(object: &Value) -> Vec<String> {
    let negative = object["spec"]["revisionHistoryLimit"].as_i64().is_some_and(|limit| limit < 0);
    let why =
        "spec.revisionHistoryLimit: a negative value retains all historical revisions; a value >= 0 is recommended";
    if negative { vec![why.to_owned()] } else { Vec::new() }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(check: impl Fn(&mut ErrorList)) -> Vec<String> {
        let mut errors = ErrorList::new();
        check(&mut errors);
        errors.iter().map(|error| error.field.to_string()).collect()
    }

    #[test]
    fn the_spec() {
        let made = |spec: Value| told(|errors| validate_spec(&json!({ "spec": spec }), None, errors));
        assert!(made(json!({"serviceName": "web", "updateStrategy": {"type": "OnDelete"}})).is_empty());
        let wrong = json!({"serviceName": "a.b", "updateStrategy": {"type": "OnDelete", "rollingUpdate": {"maxUnavailable": "0%"}},
            "template": {"spec": {"activeDeadlineSeconds": 5}}});
        assert_eq!(
            made(wrong),
            [
                "spec.updateStrategy.rollingUpdate",
                "spec.updateStrategy.rollingUpdate.maxUnavailable",
                "spec.template.spec.activeDeadlineSeconds",
                "spec.serviceName"
            ]
        );
    }

    #[test]
    fn the_status() {
        let check = |old: Value, new: Value| {
            told(|errors| validate_status(&json!({ "status": new }), Some(&json!({ "status": old })), errors))
        };
        let good = json!({"replicas": 3, "readyReplicas": 2, "availableReplicas": 1, "collisionCount": 1});
        assert!(check(json!({}), good.clone()).is_empty());
        assert_eq!(
            check(good, json!({"replicas": 1, "availableReplicas": 1, "updatedReplicas": 2})),
            ["status.updatedReplicas", "status.availableReplicas", "status.collisionCount"]
        );
    }
}
