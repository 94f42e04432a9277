//! Rules of the counts in a workload's status: `ValidateDeploymentStatus` and those of the other kinds that keep pods running.

use apimachinery::Value;
use apimachinery::field::{Error, ErrorList};
use serde_json::json;

use super::super::common::path_of;

/// What the status of a kind counts.
struct Counts {
    /// Never negative, in upstream's order.
    all: &'static [&'static str],
    /// Never more than `replicas`.
    parts: &'static [&'static str],
}

const DEPLOYMENT: Counts = Counts {
    all: &[
        "observedGeneration",
        "replicas",
        "updatedReplicas",
        "readyReplicas",
        "availableReplicas",
        "unavailableReplicas",
        "collisionCount",
    ],
    parts: &["updatedReplicas", "readyReplicas", "availableReplicas"],
};
const REPLICAS: Counts = Counts {
    all: &["replicas", "fullyLabeledReplicas", "readyReplicas", "availableReplicas", "observedGeneration"],
    parts: &["fullyLabeledReplicas", "readyReplicas", "availableReplicas"],
};
const DAEMONS: Counts = Counts {
    all: &[
        "currentNumberScheduled",
        "numberMisscheduled",
        "desiredNumberScheduled",
        "numberReady",
        "observedGeneration",
        "updatedNumberScheduled",
        "numberAvailable",
        "numberUnavailable",
        "collisionCount",
    ],
    parts: &[],
};

/// The faults of the status of a `kind` that is written over `old`.
pub fn validate(kind: &str, object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let counts = match kind {
        "Deployment" => DEPLOYMENT,
        "ReplicaSet" | "ReplicationController" => REPLICAS,
        "DaemonSet" => DAEMONS,
        _ => return,
    };
    let number = |key: &str| object["status"][key].as_i64().unwrap_or(0);
    let mut refuse = |key: &str, why: &str| {
        errors.push(Error::invalid(&path_of(&["status", key]), &json!(number(key)), why));
    };
    for key in counts.all.iter().filter(|key| number(key) < 0) {
        refuse(key, "must be greater than or equal to 0");
    }
    for key in counts.parts.iter().filter(|key| number(key) > number("replicas")) {
        refuse(key, "cannot be greater than status.replicas");
    }
    if !counts.parts.is_empty() && number("availableReplicas") > number("readyReplicas") {
        refuse("availableReplicas", "cannot be greater than readyReplicas");
    }
    let before = old.and_then(|old| old["status"]["collisionCount"].as_i64());
    if before.is_some_and(|before| number("collisionCount") < before) {
        let value = object["status"].get("collisionCount").cloned().unwrap_or_default();
        errors.push(Error::invalid(&path_of(&["status", "collisionCount"]), &value, "cannot be decremented"));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(kind: &str, old: Value, new: Value) -> Vec<String> {
        let mut errors = ErrorList::new();
        validate(kind, &json!({ "status": new }), Some(&json!({ "status": old })), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn counts_fit_each_other() {
        let good = json!({"replicas": 3, "readyReplicas": 2, "availableReplicas": 1, "collisionCount": 1});
        assert!(told("Deployment", json!({}), good.clone()).is_empty());
        assert_eq!(
            told("Deployment", good, json!({"replicas": 1, "readyReplicas": 2, "collisionCount": 0})),
            [
                "status.readyReplicas: Invalid value: 2: cannot be greater than status.replicas",
                "status.collisionCount: Invalid value: 0: cannot be decremented"
            ]
        );
        assert_eq!(
            told("ReplicaSet", json!({}), json!({"replicas": 1, "availableReplicas": 1})),
            ["status.availableReplicas: Invalid value: 1: cannot be greater than readyReplicas"]
        );
        assert_eq!(
            told("DaemonSet", json!({}), json!({"numberReady": -1})),
            ["status.numberReady: Invalid value: -1: must be greater than or equal to 0"]
        );
    }
}
