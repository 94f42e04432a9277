//! A pod's priority is its class's: the class named by the pod, else the cluster's default, else none.

use apimachinery::status::Result;
use apimachinery::{Value, meta};
use serde_json::json;

use super::pod_spec::spec_mut;
use super::{Operation, Plugin, Request, mentions};

const CLASSES: &str = "priorityclasses";
const PREEMPT: &str = "PreemptLowerPriority";

pub struct Priority;

impl Plugin for Priority {
    fn name(&self) -> &'static str {
        "Priority"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        if !request.is("", "pods", "") {
            return Ok(());
        }
        match request.operation {
            Operation::Create => set(request),
            _ => {
                keep(request);
                Ok(())
            }
        }
    }

    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        if !request.is("scheduling.k8s.io", CLASSES, "") || request.object["globalDefault"] != true {
            return Ok(());
        }
        match default_class(request) {
            Some(class) if meta::name(&class) != meta::name(request.object) => Err(request.forbidden(&format!(
                "PriorityClass {} is already marked as default. Only one default can exist",
                meta::name(&class)
            ))),
            _ => Ok(()),
        }
    }
}

fn set(request: &mut Request<'_>) -> Result<()> {
    let name = meta::str_at(request.object, &["spec", "priorityClassName"]).to_owned();
    let class = if name.is_empty() {
        default_class(request)
    } else {
        let found = request.view.get(CLASSES, "", &name);
        Some(
            found
                .ok_or_else(|| request.forbidden(&format!("no PriorityClass with name {name} was found")))?
                .value
                .value(),
        )
    };
    let class = class.unwrap_or(Value::Null);
    let priority = class.get("value").and_then(Value::as_i64).unwrap_or(0);
    let policy = Some(meta::str_at(&class, &["preemptionPolicy"])).filter(|p| !p.is_empty()).unwrap_or(PREEMPT);
    let given = |field: &str| request.object["spec"].get(field).filter(|value| !value.is_null());
    if let Some(other) = given("priority").filter(|given| **given != priority) {
        return Err(request.forbidden(&format!(
            "the integer value of priority ({other}) must not be provided in pod spec; priority admission controller computed {priority} from the given PriorityClass name"
        )));
    }
    if let Some(other) = given("preemptionPolicy").and_then(Value::as_str).filter(|given| *given != policy) {
        return Err(request.forbidden(&format!(
            "the string value of PreemptionPolicy ({other}) must not be provided in pod spec; priority admission controller computed {policy} from the given PriorityClass name"
        )));
    }
    let spec = spec_mut(request.object);
    if name.is_empty() && !meta::name(&class).is_empty() {
        spec.insert("priorityClassName".to_owned(), json!(meta::name(&class)));
    }
    spec.insert("priority".to_owned(), json!(priority));
    spec.insert("preemptionPolicy".to_owned(), json!(policy));
    Ok(())
}

/// An update without the computed fields keeps them.
fn keep(request: &mut Request<'_>) {
    let Some(old) = request.old.and_then(|old| old.get("spec")) else { return };
    let spec = spec_mut(request.object);
    for field in ["priority", "preemptionPolicy"] {
        if let Some(value) = old.get(field)
            && spec.get(field).is_none_or(Value::is_null)
        {
            spec.insert(field.to_owned(), value.clone());
        }
    }
}

/// The class with `globalDefault`; the lowest if a race made two.
fn default_class(request: &Request<'_>) -> Option<Value> {
    let entries = request.view.list(CLASSES, "").into_iter();
    let classes = entries.filter(|entry| mentions(entry, "\"globalDefault\":true")).map(|entry| entry.value.value());
    classes.filter(|class| class["globalDefault"] == true).min_by_key(|class| class["value"].as_i64())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;

    fn class(name: &str, value: i64, default: bool) -> Value {
        json!({"metadata": {"name": name}, "value": value, "globalDefault": default, "preemptionPolicy": "Never"})
    }

    fn admitted(cluster: &Cluster, spec: Value) -> std::result::Result<Value, String> {
        let mut case = Case::create("", "pods", json!({"metadata": {"name": "p"}, "spec": spec}));
        case.admit(cluster, &Priority).map_err(|error| error.message)?;
        Ok(case.object["spec"].take())
    }

    #[test]
    fn the_class_decides() {
        let cluster = Cluster::new();
        assert_eq!(admitted(&cluster, json!({})), Ok(json!({"priority": 0, "preemptionPolicy": PREEMPT})));
        cluster.put(CLASSES, class("high", 100, false));
        let high = json!({"priorityClassName": "high", "priority": 100, "preemptionPolicy": "Never"});
        assert_eq!(admitted(&cluster, json!({"priorityClassName": "high"})), Ok(high.clone()));
        assert_eq!(admitted(&cluster, high.clone()), Ok(high));
        let error = admitted(&cluster, json!({"priorityClassName": "gone"})).unwrap_err();
        assert_eq!(error, r#"pods "p" is forbidden: no PriorityClass with name gone was found"#);
        let error = admitted(&cluster, json!({"priorityClassName": "high", "priority": 7})).unwrap_err();
        assert!(error.contains("the integer value of priority (7) must not be provided"), "{error}");
        cluster.put(CLASSES, class("usual", 5, true));
        let usual = json!({"priorityClassName": "usual", "priority": 5, "preemptionPolicy": "Never"});
        assert_eq!(admitted(&cluster, json!({})), Ok(usual));
    }

    #[test]
    fn there_is_one_default_class() {
        let cluster = Cluster::new();
        cluster.put(CLASSES, class("usual", 5, true));
        let check =
            |name| Case::create("scheduling.k8s.io", CLASSES, class(name, 1, true)).validate(&cluster, &Priority);
        assert!(check("usual").is_ok());
        assert_eq!(
            check("other").unwrap_err().message,
            r#"priorityclasses.scheduling.k8s.io "other" is forbidden: PriorityClass usual is already marked as default. Only one default can exist"#
        );
    }
}
