//! A pod that names a RuntimeClass gets the class's overhead and scheduling constraints, and no overhead otherwise.

use apimachinery::status::Result;
use apimachinery::{Value, meta};

use super::pod_spec::{items, items_mut, spec_mut};
use super::{Operation, Plugin, Request};

pub struct RuntimeClass;

impl Plugin for RuntimeClass {
    fn name(&self) -> &'static str {
        "RuntimeClass"
    }

    fn handles(&self, operation: Operation) -> bool {
        operation == Operation::Create
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        if !request.is("", "pods", "") {
            return Ok(());
        }
        let Some(class) = class_of(request)? else { return Ok(()) };
        if let Some(overhead) = meta::at(&class, &["overhead", "podFixed"]) {
            let given = meta::at(request.object, &["spec", "overhead"]).filter(|o| !o.is_null());
            if given.is_some_and(|given| given != overhead) {
                return Err(
                    request.forbidden("pod rejected: Pod's Overhead doesn't match RuntimeClass's defined Overhead")
                );
            }
            spec_mut(request.object).insert("overhead".to_owned(), overhead.clone());
        }
        constrain(request, &class)
    }

    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        if !request.is("", "pods", "") {
            return Ok(());
        }
        let class = class_of(request)?.unwrap_or(Value::Null);
        let given =
            meta::at(request.object, &["spec", "overhead"]).filter(|o| o.as_object().is_some_and(|o| !o.is_empty()));
        if given.is_some() && meta::at(&class, &["overhead", "podFixed"]).is_none() {
            return Err(
                request.forbidden("pod rejected: Pod Overhead set without corresponding RuntimeClass defined Overhead")
            );
        }
        Ok(())
    }
}

fn class_of(request: &Request<'_>) -> Result<Option<Value>> {
    let name = meta::str_at(request.object, &["spec", "runtimeClassName"]);
    if name.is_empty() {
        return Ok(None);
    }
    let found = request.view.get("runtimeclasses", "", name);
    let found = found.ok_or_else(|| request.forbidden(&format!("pod rejected: RuntimeClass {name:?} not found")))?;
    Ok(Some(found.value.value()))
}

/// Merges the class's node selector and tolerations into the pod's.
fn constrain(request: &mut Request<'_>, class: &Value) -> Result<()> {
    for (key, wanted) in
        meta::at(class, &["scheduling", "nodeSelector"]).and_then(Value::as_object).into_iter().flatten()
    {
        let given = meta::at(request.object, &["spec", "nodeSelector"]).and_then(|selector| selector.get(key));
        if let Some(given) = given.filter(|given| *given != wanted) {
            let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
            return Err(request.forbidden(&format!(
                "conflict: runtimeClass.scheduling.nodeSelector[{key}] = {}; pod.spec.nodeSelector[{key}] = {}",
                text(wanted),
                text(given)
            )));
        }
        let spec = meta::map_mut(request.object, "spec");
        let selector = spec.entry("nodeSelector").or_insert_with(|| Value::Object(serde_json::Map::new()));
        selector[key.as_str()] = wanted.clone();
    }
    for toleration in meta::at(class, &["scheduling", "tolerations"]).and_then(Value::as_array).into_iter().flatten() {
        if !items(request.object, "tolerations").any(|given| given == toleration) {
            items_mut(request.object, "tolerations").push(toleration.clone());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;
    use serde_json::json;

    #[test]
    fn the_class_adds_overhead_and_constraints() {
        let cluster = Cluster::new();
        let tolerations = json!([{"key": "vm", "operator": "Exists"}]);
        cluster.put(
            "runtimeclasses",
            json!({"metadata": {"name": "vm"}, "overhead": {"podFixed": {"memory": "64Mi"}},
            "scheduling": {"nodeSelector": {"vm": "yes"}, "tolerations": tolerations}}),
        );
        let admit = |spec: Value| {
            let mut case = Case::create("", "pods", json!({"metadata": {"name": "p"}, "spec": spec}));
            case.admit(&cluster, &RuntimeClass)
                .and_then(|()| case.validate(&cluster, &RuntimeClass))
                .map_err(|e| e.message)?;
            Ok::<_, String>(case.object["spec"].take())
        };
        assert_eq!(
            admit(json!({"runtimeClassName": "vm", "nodeSelector": {"a": "b"}})),
            Ok(
                json!({"runtimeClassName": "vm", "overhead": {"memory": "64Mi"}, "nodeSelector": {"a": "b", "vm": "yes"}, "tolerations": tolerations})
            )
        );
        assert_eq!(admit(json!({})), Ok(json!({})));
        for (spec, expected) in [
            (json!({"runtimeClassName": "gone"}), r#"RuntimeClass "gone" not found"#),
            (json!({"runtimeClassName": "vm", "overhead": {"memory": "1Mi"}}), "doesn't match"),
            (json!({"overhead": {"memory": "1Mi"}}), "without corresponding RuntimeClass"),
            (json!({"runtimeClassName": "vm", "nodeSelector": {"vm": "no"}}), "pod.spec.nodeSelector[vm] = no"),
        ] {
            let error = admit(spec).unwrap_err();
            assert!(error.contains(expected), "{error}");
        }
    }
}
