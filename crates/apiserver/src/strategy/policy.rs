//! Budgets, quotas, limits, priorities, runtimes and flow control: kinds that rule over others.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::quantity::Quantity;
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::common::{Fixed, immutable, items, items_mut, path_of, set_default};
use super::{Context, Family, Part, Strategy};

const FLOW: &str = "flowcontrol.apiserver.k8s.io";

pub fn strategies() -> Family {
    vec![
        ("policy", "poddisruptionbudgets", Arc::new(Budgets)),
        ("", "resourcequotas", Arc::new(Quotas)),
        ("", "limitranges", Arc::new(Limits)),
        ("scheduling.k8s.io", "priorityclasses", Arc::new(Priorities)),
        ("node.k8s.io", "runtimeclasses", Arc::new(Fixed(&[&["handler"]]))),
        ("coordination.k8s.io", "leases", Arc::new(Leases)),
        (FLOW, "flowschemas", Arc::new(FlowSchemas)),
        (FLOW, "prioritylevelconfigurations", Arc::new(PriorityLevels)),
        ("autoscaling", "horizontalpodautoscalers", Arc::new(Autoscalers)),
    ]
}

struct Budgets;

impl Strategy for Budgets {
    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, _old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let given = |key: &str| object["spec"].get(key).is_some_and(|v| !v.is_null());
        if part == Part::Main && given("minAvailable") && given("maxUnavailable") {
            let why = "minAvailable and maxUnavailable cannot be both set";
            errors.push(Error::invalid(&Path::new("spec"), &object["spec"], why));
        }
        errors
    }
}

struct Quotas;

impl Strategy for Quotas {
    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            return errors;
        }
        let hard = object["spec"].get("hard").and_then(Value::as_object);
        for name in hard.into_iter().flatten().map(|(name, _)| name) {
            let at = path_of(&["spec", "hard"]).key(name);
            errors.extend(names::qualified_name(name).iter().map(|p| Error::invalid(&at, &json!(name), p)));
        }
        if let Some(old) = old {
            immutable(object, old, &["spec", "scopes"], &mut errors);
            immutable(object, old, &["spec", "scopeSelector"], &mut errors);
        }
        errors
    }
}

struct Limits;

impl Strategy for Limits {
    /// What a container gets unasked is its limit; what it asks for unasked, what it gets, or the least there is.
    fn default(&self, object: &mut Value) {
        let Some(spec) = object.get_mut("spec") else { return };
        for item in items_mut(spec, "limits").filter(|item| item["type"] == "Container") {
            for (from, to) in [("max", "default"), ("default", "defaultRequest"), ("min", "defaultRequest")] {
                let known = item.get(from).and_then(Value::as_object).cloned().unwrap_or_default();
                for (resource, amount) in known {
                    set_default(json_map(item, to), &resource, amount);
                }
            }
        }
    }

    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, _old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        for (index, item) in items(&object["spec"], "limits").enumerate() {
            let at = path_of(&["spec", "limits"]).index(index);
            for (lower, upper) in [
                ("min", "max"),
                ("min", "default"),
                ("defaultRequest", "default"),
                ("default", "max"),
                ("defaultRequest", "max"),
            ] {
                for (resource, amount) in item.get(lower).and_then(Value::as_object).into_iter().flatten() {
                    let quantity = |value: &Value| Quantity::from_value(value).ok();
                    let bound = item.get(upper).and_then(|l| l.get(resource));
                    let (Some(low), Some(high)) = (quantity(amount), bound.and_then(quantity)) else { continue };
                    if low > high {
                        let (a, b) =
                            (amount.as_str().unwrap_or_default(), bound.and_then(Value::as_str).unwrap_or_default());
                        let why = format!("{lower} value {a} is greater than {upper} value {b}");
                        errors.push(Error::invalid(&at.child(lower).key(resource), amount, &why));
                    }
                }
            }
        }
        errors
    }
}

fn json_map<'a>(item: &'a mut Value, key: &str) -> &'a mut Value {
    if item.get(key).is_none_or(Value::is_null) {
        item[key] = json!({});
    }
    &mut item[key]
}

struct Priorities;

/// Upstream's `HighestUserDefinablePriority`.
const MAX_PRIORITY: i64 = 1_000_000_000;

impl Strategy for Priorities {
    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let name = meta::name(object);
        let value = object["value"].as_i64().unwrap_or(0);
        if let Some(old) = old {
            immutable(object, old, &["preemptionPolicy"], &mut errors);
            if object["value"] != old["value"] {
                errors.push(Error::forbidden(&Path::new("value"), "may not be changed in an update."));
            }
            return errors;
        }
        let system = matches!(
            (name, value),
            ("system-node-critical", 2_000_001_000) | ("system-cluster-critical", 2_000_000_000)
        );
        if name.starts_with("system-") && !system {
            let why = "priority class names with 'system-' prefix are reserved for system use only. error: this name is not one of them";
            errors.push(Error::forbidden(&path_of(&["metadata", "name"]), why));
        }
        if value > MAX_PRIORITY && !system {
            let why = format!("maximum allowed value of a user defined priority is {MAX_PRIORITY}");
            errors.push(Error::forbidden(&Path::new("value"), &why));
        }
        errors
    }
}

struct Leases;

impl Strategy for Leases {
    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, _old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let given = |key: &str| object["spec"].get(key).is_some_and(|v| !v.is_null() && *v != "");
        if given("preferredHolder") && !given("strategy") {
            let why = "may only be specified if `strategy` is defined";
            errors.push(Error::forbidden(&path_of(&["spec", "preferredHolder"]), why));
        }
        errors
    }
}

struct FlowSchemas;

impl Strategy for FlowSchemas {
    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, _old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let level = meta::str_at(object, &["spec", "priorityLevelConfiguration", "name"]);
        if part == Part::Main && meta::name(object) == "exempt" && level != "exempt" {
            let why = "must be exempt if the name of the flow schema is exempt";
            errors.push(Error::invalid(&path_of(&["spec", "priorityLevelConfiguration"]), &json!(level), why));
        }
        errors
    }
}

struct PriorityLevels;

impl Strategy for PriorityLevels {
    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, _old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            return errors;
        }
        let (spec, path) = (&object["spec"], Path::new("spec"));
        let limited = spec.get("limited").is_some_and(|l| !l.is_null());
        match meta::str_at(spec, &["type"]) {
            "Exempt" if limited => {
                errors.push(Error::forbidden(&path.child("limited"), "must be nil if the type is not Limited"));
            }
            "Limited" if !limited => {
                errors.push(Error::required(&path.child("limited"), "must not be empty when type is Limited"));
            }
            _ => {}
        }
        errors
    }
}

struct Autoscalers;

impl Strategy for Autoscalers {
    /// Without metrics the target is 80 % of the processor, as upstream.
    fn default(&self, object: &mut Value) {
        if object["apiVersion"] != "autoscaling/v2" {
            return;
        }
        let Some(spec) = object.get_mut("spec").filter(|s| s.is_object()) else { return };
        if items(spec, "metrics").next().is_none() {
            spec["metrics"] = json!([{
                "type": "Resource",
                "resource": {"name": "cpu", "target": {"type": "Utilization", "averageUtilization": 80}},
            }]);
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, _old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let number = |key: &str| object["spec"].get(key).and_then(Value::as_i64);
        if let (Part::Main, Some(least), Some(most)) = (part, number("minReplicas"), number("maxReplicas"))
            && most < least
        {
            let why = "must be greater than or equal to `minReplicas`";
            errors.push(Error::invalid(&path_of(&["spec", "maxReplicas"]), &json!(most), why));
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn limits_follow_from_each_other() {
        let mut object = json!({"spec": {"limits": [
            {"type": "Container", "max": {"cpu": "2"}, "default": {"memory": "1Gi"}, "min": {"cpu": "1"}}]}});
        Limits.default(&mut object);
        let item = &object["spec"]["limits"][0];
        assert_eq!(item["default"], json!({"memory": "1Gi", "cpu": "2"}));
        assert_eq!(item["defaultRequest"], json!({"memory": "1Gi", "cpu": "2"}));
    }
}
