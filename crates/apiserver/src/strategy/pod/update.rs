//! What may change of a pod: very little through itself, one thing each through `ephemeralcontainers` and `resize`.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta};
use serde_json::json;

use super::super::common::{copy_field, items, items_mut};
use super::{CONTAINER_LISTS, defaults};

const REFUSED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

/// `ValidatePodUpdate`
pub fn validate(object: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let (new, before) = (&object["spec"], &old["spec"]);
    for list in ["containers", "initContainers"] {
        if items(new, list).count() != items(before, list).count() {
            errors.push(Error::forbidden(&path.child(list), "pod updates may not add or remove containers"));
            return;
        }
    }
    let mut allowed = before.clone();
    for list in ["containers", "initContainers"] {
        for (index, container) in items_mut(&mut allowed, list).enumerate() {
            if let Some(image) = new[list][index].get("image").filter(|i| *i != "") {
                container["image"] = image.clone();
            }
        }
    }
    if !validate_deadline(new, before, path, errors) {
        return;
    }
    copy_field(new, &mut allowed, "activeDeadlineSeconds");
    validate_tolerations(new, before, path, errors);
    copy_field(new, &mut allowed, "tolerations");
    validate_gates(new, before, &mut allowed, path, errors);
    let grace = |spec: &Value| spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0);
    if grace(before) < 0 && grace(new) == 1 {
        copy_field(new, &mut allowed, "terminationGracePeriodSeconds");
    }
    if *new != allowed {
        errors.push(Error::forbidden(path, REFUSED));
    }
}

/// A deadline may be set or come nearer. Answers whether it is worth looking further.
fn validate_deadline(new: &Value, before: &Value, path: &Path, errors: &mut ErrorList) -> bool {
    let deadline = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    let at = path.child("activeDeadlineSeconds");
    let why = match (deadline(before), deadline(new)) {
        (Some(_), None) => "must not update from a positive integer to nil value",
        (Some(before), Some(after)) if after > before => "must be less than or equal to previous value",
        _ => return true,
    };
    errors.push(Error::invalid(&at, &json!(deadline(new)), why));
    false
}

/// Tolerations may be added; of those that are there only the seconds may change.
fn validate_tolerations(new: &Value, before: &Value, path: &Path, errors: &mut ErrorList) {
    let timeless = |toleration: &Value| {
        let mut toleration = toleration.clone();
        if let Some(map) = toleration.as_object_mut() {
            map.remove("tolerationSeconds");
        }
        toleration
    };
    let kept: Vec<Value> = items(new, "tolerations").map(timeless).collect();
    if !items(before, "tolerations").all(|t| kept.contains(&timeless(t))) {
        let why = "existing toleration can not be modified except its tolerationSeconds";
        errors.push(Error::forbidden(&path.child("tolerations"), why));
    }
}

/// Gates only go; while there are any, where the pod may run can be narrowed.
fn validate_gates(new: &Value, before: &Value, allowed: &mut Value, path: &Path, errors: &mut ErrorList) {
    let gates: Vec<&Value> = items(before, "schedulingGates").collect();
    if let Some(added) = items(new, "schedulingGates").find(|g| !gates.contains(g)) {
        let why =
            format!("only deletion is allowed, but found new scheduling gate '{}'", meta::str_at(added, &["name"]));
        errors.push(Error::forbidden(&path.child("schedulingGates"), &why));
    }
    copy_field(new, allowed, "schedulingGates");
    if gates.is_empty() {
        return;
    }
    let labels = |spec: &'_ Value| spec.get("nodeSelector").and_then(Value::as_object).cloned().unwrap_or_default();
    let wanted = labels(new);
    if labels(before).iter().all(|(key, value)| wanted.get(key) == Some(value)) {
        copy_field(new, allowed, "nodeSelector");
    }
    if narrows(new, before) {
        copy_field(new, allowed, "affinity");
    }
}

/// Whether each required term on nodes says at least what it said.
fn narrows(new: &Value, before: &Value) -> bool {
    let path = ["affinity", "nodeAffinity", "requiredDuringSchedulingIgnoredDuringExecution", "nodeSelectorTerms"];
    let terms = |spec: &'_ Value| meta::at(spec, &path).and_then(Value::as_array).cloned().unwrap_or_default();
    let (wanted, known) = (terms(new), terms(before));
    let holds = |new: &Value, old: &Value, list: &str| {
        let said: Vec<&Value> = items(new, list).collect();
        items(old, list).all(|requirement| said.contains(&requirement))
    };
    known.is_empty()
        || (wanted.len() == known.len()
            && wanted
                .iter()
                .zip(&known)
                .all(|(new, old)| holds(new, old, "matchExpressions") && holds(new, old, "matchFields")))
}

/// Keeps `old` but for what `take` copies from the new spec; the version and the field owners stay with the writer.
fn only(object: &mut Value, old: &Value, take: impl Fn(&Value, &mut Value)) {
    let mut next = old.clone();
    take(&object["spec"], &mut next["spec"]);
    for key in ["resourceVersion", "managedFields"] {
        if let (Some(from), Some(to)) = (object.get("metadata"), next.get_mut("metadata")) {
            copy_field(from, to, key);
        }
    }
    *object = next;
}

pub fn only_ephemeral_containers(object: &mut Value, old: &Value) {
    only(object, old, |new, next| copy_field(new, next, "ephemeralContainers"));
}

/// Resources of containers in their order; lists that do not fit are left to [`validate_resize`].
pub fn only_resources(object: &mut Value, old: &Value) {
    let names = |spec: &Value, list: &str| items(spec, list).map(|c| c["name"].clone()).collect::<Vec<_>>();
    if ["containers", "initContainers"].iter().any(|list| names(&object["spec"], list) != names(&old["spec"], list)) {
        return;
    }
    only(object, old, |new, next| {
        copy_field(new, next, "resources");
        for list in ["containers", "initContainers"] {
            for (wanted, container) in items(new, list).zip(items_mut(next, list)) {
                copy_field(wanted, container, "resources");
                copy_field(wanted, container, "resizePolicy");
            }
        }
    });
}

pub fn validate_ephemeral_containers(object: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    const UNFIT: [&str; 6] = ["ports", "livenessProbe", "readinessProbe", "startupProbe", "lifecycle", "resizePolicy"];
    let at = path.child("ephemeralContainers");
    let spec = &object["spec"];
    let others: Vec<&Value> =
        CONTAINER_LISTS[..2].iter().flat_map(|list| items(spec, list)).map(|c| &c["name"]).collect();
    for (index, container) in items(spec, "ephemeralContainers").enumerate() {
        let at = at.index(index);
        if others.contains(&&container["name"]) {
            errors.push(Error::duplicate(&at.child("name"), &container["name"]));
        }
        let target = meta::str_at(container, &["targetContainerName"]);
        if !target.is_empty() && !others.iter().any(|name| **name == target) {
            errors.push(Error::not_found(&at.child("targetContainerName"), &json!(target)));
        }
        for field in UNFIT.iter().filter(|f| container.get(**f).is_some_and(|v| !v.is_null())) {
            errors.push(Error::forbidden(&at.child(field), "cannot be set for an Ephemeral Container"));
        }
    }
    for before in items(&old["spec"], "ephemeralContainers") {
        let name = meta::str_at(before, &["name"]);
        let why = match items(spec, "ephemeralContainers").find(|c| c["name"] == before["name"]) {
            None => format!("existing ephemeral containers {name:?} may not be removed\n"),
            Some(now) if now != before => format!("existing ephemeral containers {name:?} may not be changed\n"),
            Some(_) => continue,
        };
        errors.push(Error::forbidden(&at, &why));
    }
}

/// `ValidatePodResize`
pub fn validate_resize(object: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let names = |spec: &Value, list: &str| items(spec, list).map(|c| c["name"].clone()).collect::<Vec<_>>();
    for list in ["containers", "initContainers"] {
        if names(&object["spec"], list) != names(&old["spec"], list) {
            let why = "containers may not be renamed or reordered on resize";
            errors.push(Error::forbidden(&path.child(list), why));
            return;
        }
    }
    if defaults::qos_class(object) != defaults::qos_class(old) {
        let why = "Pod QOS Class may not change as a result of resizing";
        errors.push(Error::invalid(path, &json!(defaults::qos_class(object)), why));
    }
    for (index, (new, before)) in
        items(&object["spec"], "containers").zip(items(&old["spec"], "containers")).enumerate()
    {
        let at = path.child("containers").index(index);
        if new.get("resizePolicy") != before.get("resizePolicy") {
            errors.push(Error::invalid(&at.child("resizePolicy"), &new["resizePolicy"], "field is immutable"));
        }
        for kind in ["requests", "limits"] {
            let resources =
                |c: &Value| c["resources"].get(kind).and_then(Value::as_object).cloned().unwrap_or_default();
            let (wanted, known) = (resources(new), resources(before));
            let at = at.child("resources").child(kind);
            if let Some(removed) = known.keys().find(|k| !wanted.contains_key(*k)) {
                errors.push(Error::forbidden(&at, &format!("resource {kind} cannot be removed: {removed}")));
            }
            let other = |k: &&String| !matches!(k.as_str(), "cpu" | "memory") && wanted.get(*k) != known.get(*k);
            if wanted.keys().any(|k| other(&k)) {
                errors.push(Error::forbidden(&at, "only cpu and memory resources are mutable"));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(old: Value, new: Value) -> Vec<String> {
        let mut errors = ErrorList::new();
        validate(&json!({ "spec": new }), &json!({ "spec": old }), &Path::new("spec"), &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn only_images_and_few_others_change() {
        let old = json!({"containers": [{"name": "a", "image": "x:1"}], "nodeName": "n",
            "tolerations": [{"key": "k", "effect": "NoExecute"}]});
        let mut new = old.clone();
        new["containers"][0]["image"] = json!("x:2");
        new["tolerations"] = json!([{"key": "k", "effect": "NoExecute", "tolerationSeconds": 5}, {"key": "l"}]);
        new["activeDeadlineSeconds"] = json!(30);
        assert_eq!(check(old.clone(), new.clone()), Vec::<String>::new());
        new["activeDeadlineSeconds"] = json!(20);
        new["nodeName"] = json!("m");
        assert_eq!(check(old.clone(), new).len(), 1);
        let mut fewer = old.clone();
        fewer["tolerations"] = json!([]);
        assert!(check(old.clone(), fewer)[0].starts_with("spec.tolerations: Forbidden"));
        let mut more = old.clone();
        more["containers"].as_array_mut().unwrap().push(json!({"name": "b"}));
        assert_eq!(check(old, more), ["spec.containers: Forbidden: pod updates may not add or remove containers"]);
    }

    #[test]
    fn a_gated_pod_may_be_narrowed_and_let_go() {
        let old = json!({"containers": [], "schedulingGates": [{"name": "g"}], "nodeSelector": {"a": "1"}});
        let with = |selector: Value, gates: Value| {
            let mut new = old.clone();
            new["nodeSelector"] = selector;
            new["schedulingGates"] = gates;
            check(old.clone(), new).len()
        };
        assert_eq!(with(json!({"a": "1", "b": "2"}), json!([{"name": "g"}])), 0);
        assert_eq!(with(json!({"a": "1"}), json!([])), 0);
        assert_eq!(with(json!({"b": "2"}), json!([])), 1);
        assert_eq!(with(json!({"a": "1"}), json!([{"name": "g"}, {"name": "h"}])), 1);
    }
}
