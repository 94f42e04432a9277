//! Bringing a stored default object up to date without undoing what its owner added (`auth-reconcile` and its kin upstream).

use apimachinery::{Value, meta};
use serde_json::json;

use super::{AUTOUPDATE, flow};
use crate::authz::rules::{compact, rules_of, uncovered};

/// What to write so that a default object is as it should be.
#[derive(Clone, Debug, PartialEq)]
pub enum Step {
    /// Update the stored object to this.
    Update(Value),
    /// Delete the stored object, then create this: its role cannot be changed in place.
    Replace(Value),
}

/// `None` if nothing is missing, or if the object opted out. `existing` and `wanted` are the same object by kind and name.
pub fn reconcile(existing: &Value, wanted: &Value) -> Option<Step> {
    let kind = meta::str_at(wanted, &["kind"]);
    match kind {
        "ClusterRole" | "Role" | "ClusterRoleBinding" | "RoleBinding" => {
            if meta::annotation(existing, AUTOUPDATE) == Some("false") {
                return None;
            }
            if existing.get("roleRef").is_some_and(|role| *role != wanted["roleRef"]) {
                return Some(Step::Replace(wanted.clone()));
            }
            let mut updated = existing.clone();
            add_metadata(&mut updated, wanted);
            if kind.ends_with("Role") {
                // The rules of an aggregated role follow from those it selects.
                if wanted.get("aggregationRule").is_none() {
                    add_rules(&mut updated, wanted);
                }
                add_missing(&mut updated, wanted, &["aggregationRule", "clusterRoleSelectors"]);
            } else {
                add_missing(&mut updated, wanted, &["subjects"]);
            }
            changed(existing, updated)
        }
        "FlowSchema" | "PriorityLevelConfiguration" => {
            let follows = follows_upstream(existing, meta::name(wanted));
            let mut updated = existing.clone();
            updated["metadata"]["annotations"][flow::AUTOUPDATE] = json!(follows.to_string());
            if follows && !contains(&existing["spec"], &wanted["spec"]) {
                updated["spec"] = wanted["spec"].clone();
            }
            changed(existing, updated)
        }
        "ConfigMap" => {
            let mut updated = existing.clone();
            updated["data"] = wanted["data"].clone();
            changed(existing, updated)
        }
        _ => None,
    }
}

/// Whether an object's spec is upstream's to set, as its annotation says. Without one it is if nobody has changed it since it was
/// made; and it always is of the objects that no server goes without, of which only what exempt requests lend may differ.
fn follows_upstream(object: &Value, name: &str) -> bool {
    let told = meta::annotation(object, flow::AUTOUPDATE).and_then(|text| match text {
        "1" | "t" | "T" | "true" | "TRUE" | "True" => Some(true),
        "0" | "f" | "F" | "false" | "FALSE" | "False" => Some(false),
        _ => None,
    });
    let mandatory = name == "catch-all" || (name == "exempt" && object["kind"] == "FlowSchema");
    mandatory || told.unwrap_or_else(|| object["metadata"]["generation"].as_i64().unwrap_or(0) <= 1)
}

/// Whether an object that follows upstream's is none of upstream's any more, and goes.
pub fn is_left_over(object: &Value, wanted: &[Value]) -> bool {
    let same = |w: &Value| w["kind"] == object["kind"] && meta::name(w) == meta::name(object);
    meta::annotation(object, flow::AUTOUPDATE) == Some("true") && !wanted.iter().any(same)
}

fn changed(existing: &Value, updated: Value) -> Option<Step> {
    (*existing != updated).then_some(Step::Update(updated))
}

/// Labels and annotations that are missing; those that have another value stay.
fn add_metadata(object: &mut Value, wanted: &Value) {
    for field in ["labels", "annotations"] {
        for (key, value) in wanted["metadata"][field].as_object().into_iter().flatten() {
            let known = object["metadata"].get(field).and_then(|map| map.get(key)).is_some();
            if !known {
                object["metadata"][field][key] = value.clone();
            }
        }
    }
}

fn add_rules(object: &mut Value, wanted: &Value) {
    let missing = compact(uncovered(&rules_of(object), &rules_of(wanted)));
    if missing.is_empty() {
        return;
    }
    if !object["rules"].is_array() {
        object["rules"] = json!([]);
    }
    if let Some(rules) = object["rules"].as_array_mut() {
        rules.extend(missing.iter().filter_map(|rule| serde_json::to_value(rule).ok()));
    }
}

/// Items of the list at `path` that are missing.
fn add_missing(object: &mut Value, wanted: &Value, path: &[&str]) {
    let Some(items) = meta::at(wanted, path).and_then(Value::as_array) else { return };
    for item in items {
        let known = meta::at(object, path).and_then(Value::as_array).is_some_and(|list| list.contains(item));
        if known {
            continue;
        }
        let list = path.iter().fold(&mut *object, |value, key| &mut value[*key]);
        match list.as_array_mut() {
            Some(list) => list.push(item.clone()),
            None => *list = json!([item]),
        }
    }
}

/// Whether `value` has all that `part` has; defaults may have been added.
fn contains(value: &Value, part: &Value) -> bool {
    match (value, part) {
        (Value::Object(value), Value::Object(part)) => {
            part.iter().all(|(key, part)| value.get(key).is_some_and(|value| contains(value, part)))
        }
        (Value::Array(value), Value::Array(part)) => {
            value.len() == part.len() && value.iter().zip(part).all(|(value, part)| contains(value, part))
        }
        _ => value == part,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_created_needs_no_reconciling() {
        for object in super::super::objects(&super::super::Settings::default()) {
            assert_eq!(reconcile(&object, &object), None, "{object}");
        }
    }

    #[test]
    fn missing_rules_are_added_and_additions_kept() {
        let rule = |verbs: Value| json!({"verbs": verbs, "apiGroups": [""], "resources": ["pods"]});
        let wanted =
            json!({"kind": "Role", "metadata": {"labels": {"a": "1"}}, "rules": [rule(json!(["get", "list"]))]});
        let existing = json!({"kind": "Role", "metadata": {"uid": "u"}, "rules": [rule(json!(["get", "delete"]))]});
        let Some(Step::Update(updated)) = reconcile(&existing, &wanted) else { panic!("no update") };
        assert_eq!(updated["rules"], json!([rule(json!(["get", "delete"])), rule(json!(["list"]))]));
        assert_eq!(updated["metadata"], json!({"uid": "u", "labels": {"a": "1"}}));
        let mut out = existing.clone();
        out["metadata"]["annotations"] = json!({AUTOUPDATE: "false"});
        assert_eq!(reconcile(&out, &wanted), None);
    }

    #[test]
    fn subjects_are_added_and_another_role_replaces() {
        let wanted =
            json!({"kind": "RoleBinding", "metadata": {}, "roleRef": {"name": "r"}, "subjects": [{"name": "a"}]});
        let mut existing = json!({"kind": "RoleBinding", "metadata": {}, "roleRef": {"name": "r"}});
        let Some(Step::Update(updated)) = reconcile(&existing, &wanted) else { panic!("no update") };
        assert_eq!(updated["subjects"], wanted["subjects"]);
        existing["roleRef"]["name"] = json!("other");
        assert_eq!(reconcile(&existing, &wanted), Some(Step::Replace(wanted)));
    }

    #[test]
    fn flow_control_follows_upstream_but_not_its_own_defaults() {
        let object = |name: &str, told: Option<&str>, generation: i64, value: i64| {
            let mut object = json!({"kind": "FlowSchema", "metadata": {"name": name, "generation": generation},
                "spec": {"a": value, "defaulted": 2}});
            if let Some(told) = told {
                object["metadata"]["annotations"] = json!({ flow::AUTOUPDATE: told });
            }
            object
        };
        let wanted = json!({"kind": "FlowSchema", "metadata": {"name": "x"}, "spec": {"a": 1}});
        let result = |existing: &Value| match reconcile(existing, &wanted) {
            Some(Step::Update(o)) => {
                Some((o["spec"]["a"].as_i64().unwrap(), meta::annotation(&o, flow::AUTOUPDATE).unwrap().to_owned()))
            }
            _ => None,
        };
        assert_eq!(result(&object("x", Some("true"), 5, 1)), None);
        assert_eq!(result(&object("x", Some("true"), 5, 2)), Some((1, "true".into())));
        assert_eq!(result(&object("x", Some("false"), 1, 2)), None, "its owner has said so");
        assert_eq!(result(&object("x", None, 1, 2)), Some((1, "true".into())), "nobody has touched it");
        assert_eq!(result(&object("x", None, 2, 2)), Some((2, "false".into())), "somebody has changed it");
        let mandatory = json!({"kind": "FlowSchema", "metadata": {"name": "catch-all"}, "spec": {"a": 1}});
        assert!(reconcile(&object("catch-all", Some("false"), 2, 2), &mandatory).is_some(), "it is not theirs");
        assert!(is_left_over(&object("old", Some("true"), 1, 1), std::slice::from_ref(&wanted)));
        assert!(!is_left_over(&object("x", Some("true"), 1, 1), std::slice::from_ref(&wanted)));
        assert!(!is_left_over(&object("own", None, 1, 1), &[wanted]));
    }
}
