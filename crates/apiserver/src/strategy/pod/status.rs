//! `pods/status`: what a kubelet may say of a pod.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::super::common::{copy_field, items, items_mut};

/// Keeps what a status does not change: the owners, the quality of service, and generations that the writer has left out.
pub fn keep(object: &mut Value, old: &Value) {
    copy_metadata(object, old, "ownerReferences");
    let Some(status) = object.get_mut("status").filter(|s| s.is_object()) else { return };
    let before = &old["status"];
    if meta::str_at(status, &["qosClass"]).is_empty() {
        copy_field(before, status, "qosClass");
    }
    if unset(status) {
        copy_field(before, status, "observedGeneration");
    }
    let known: Vec<Value> = items(before, "conditions").cloned().collect();
    for condition in items_mut(status, "conditions").filter(|c| unset(c)) {
        if let Some(same) = known.iter().find(|k| k["type"] == condition["type"]) {
            copy_field(same, condition, "observedGeneration");
        }
    }
}

fn unset(object: &Value) -> bool {
    object.get("observedGeneration").and_then(Value::as_i64).unwrap_or(0) == 0
}

fn copy_metadata(object: &mut Value, old: &Value, key: &str) {
    if let (Some(from), Some(to)) = (old.get("metadata"), object.get_mut("metadata")) {
        copy_field(from, to, key);
    }
}

/// `ValidatePodStatusUpdate`
pub fn validate(object: &Value, old: &Value, errors: &mut ErrorList) {
    let (status, before, path) = (&object["status"], &old["status"], Path::new("status"));
    let nominated = meta::str_at(status, &["nominatedNodeName"]);
    if !nominated.is_empty() {
        let at = path.child("nominatedNodeName");
        errors.extend(names::dns1123_subdomain(nominated).iter().map(|p| Error::invalid(&at, &json!(nominated), p)));
    }
    let class = meta::str_at(before, &["qosClass"]);
    if !class.is_empty() && status["qosClass"] != before["qosClass"] {
        errors.push(Error::invalid(&path.child("qosClass"), &status["qosClass"], "field is immutable"));
    }
    let restarts = meta::str_at(&object["spec"], &["restartPolicy"]);
    validate_states(object, status, before, restarts, &path, errors);
}

/// A container that will not be restarted stays terminated.
fn validate_states(
    object: &Value,
    status: &Value,
    before: &Value,
    restarts: &str,
    path: &Path,
    errors: &mut ErrorList,
) {
    if restarts == "Always" {
        return;
    }
    for (list, containers) in [("containerStatuses", "containers"), ("initContainerStatuses", "initContainers")] {
        for (index, past) in items(before, list).enumerate() {
            let Some(ended) = past["state"].get("terminated").filter(|t| t.is_object()) else { continue };
            // A failed container of an OnFailure pod runs again, and so does a sidecar, whatever its end.
            let failed = ended["exitCode"].as_i64().unwrap_or(0) != 0;
            let own = items(&object["spec"], containers).find(|c| c["name"] == past["name"]);
            let own_policy = own.is_some_and(|c| c.get("restartPolicy").is_some_and(|p| !p.is_null()));
            if (failed && restarts == "OnFailure") || own_policy {
                continue;
            }
            let now = items(status, list).find(|c| c["name"] == past["name"]);
            if now.is_some_and(|c| c["state"].get("terminated").is_none_or(Value::is_null)) {
                let why = "may not be transitioned to non-terminated state";
                errors.push(Error::forbidden(&path.child(list).index(index).child("state"), why));
            }
        }
    }
}
