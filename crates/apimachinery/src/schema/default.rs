//! Sets what is absent, as the defaulting functions of upstream's API packages do.

use serde_json::Value;

use super::{Field, MAX_DEPTH, Object, Schema, Shape, TypeId};

/// Fills in the defaults of every object in `value`, parents before children, so that a default object gets its own.
pub fn default(schema: &Schema, root: TypeId, value: &mut Value) {
    walk(schema, root, value, 0);
}

fn walk(schema: &Schema, id: TypeId, value: &mut Value, depth: usize) {
    if depth > MAX_DEPTH {
        return;
    }
    match (&schema.get(id).shape, value) {
        (Shape::Object(object), Value::Object(map)) => {
            fill(schema, object, map);
            for (key, value) in map {
                if let Some(ty) = object.field(key).map(|f| f.ty).or(object.additional) {
                    walk(schema, ty, value, depth + 1);
                }
            }
        }
        (Shape::Map { value: ty, .. }, Value::Object(map)) => {
            map.values_mut().for_each(|value| walk(schema, *ty, value, depth + 1));
        }
        (Shape::List(list), Value::Array(items)) => {
            items.iter_mut().for_each(|item| walk(schema, list.item, item, depth + 1));
        }
        _ => {}
    }
}

/// Unconditional defaults first: conditions look at siblings that may be defaults themselves.
fn fill(schema: &Schema, object: &Object, map: &mut serde_json::Map<String, Value>) {
    for conditional in [false, true] {
        for field in object.fields.iter().filter(|f| f.default_when.is_some() == conditional) {
            let Some(default) = &field.default else { continue };
            if is_absent(schema, field, default, map.get(&*field.name)) && holds(field, map) {
                map.insert(field.name.to_string(), default.clone());
            }
        }
    }
}

/// To Go, a string that may not be null is absent when it is empty. A structural schema knows absent from empty.
fn is_absent(schema: &Schema, field: &Field, default: &Value, present: Option<&Value>) -> bool {
    match present {
        None => true,
        Some(Value::Null) => !field.nullable,
        Some(Value::Number(number)) => field.default_for_zero && number.as_i64() == Some(0),
        Some(Value::String(text)) => !schema.get(field.ty).structural && text.is_empty() && default.is_string(),
        Some(_) => false,
    }
}

fn holds(field: &Field, map: &serde_json::Map<String, Value>) -> bool {
    let Some(when) = &field.default_when else { return true };
    let sibling = map.get(&*when.sibling).and_then(Value::as_str).unwrap_or_default();
    when.any_of.iter().any(|v| **v == *sibling)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::schema::builtin;
    use serde_json::json;

    fn check(definition: &str, mut value: Value, expected: Value) {
        let schema = builtin();
        default(schema, schema.by_name(&format!("io.k8s.api.{definition}")).unwrap(), &mut value);
        assert_eq!(value, expected);
    }

    #[test]
    fn pod_gets_upstreams_defaults() {
        check(
            "core.v1.PodSpec",
            json!({
                "containers": [{"name": "a", "image": "x", "ports": [{"containerPort": 80}], "livenessProbe": {"httpGet": {"port": 80}}}],
                "volumes": [{"name": "v", "secret": {"secretName": "s"}}],
                "terminationGracePeriodSeconds": 5,
            }),
            json!({
                "containers": [{
                    "name": "a", "image": "x", "ports": [{"containerPort": 80, "protocol": "TCP"}],
                    "livenessProbe": {
                        "httpGet": {"port": 80, "path": "/", "scheme": "HTTP"},
                        "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
                    },
                    "resources": {}, "terminationMessagePath": "/dev/termination-log", "terminationMessagePolicy": "File",
                }],
                "volumes": [{"name": "v", "secret": {"secretName": "s", "defaultMode": 420}}],
                "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "schedulerName": "default-scheduler",
                "securityContext": {}, "terminationGracePeriodSeconds": 5,
            }),
        );
    }

    #[test]
    fn deployment_strategy_depends_on_its_type() {
        let common = |strategy: Value| json!({"replicas": 1, "revisionHistoryLimit": 10, "progressDeadlineSeconds": 600, "strategy": strategy});
        let rolling = json!({"type": "RollingUpdate", "rollingUpdate": {"maxSurge": "25%", "maxUnavailable": "25%"}});
        check("apps.v1.DeploymentSpec", json!({}), common(rolling));
        check("apps.v1.DeploymentSpec", json!({"strategy": {"type": "Recreate"}}), common(json!({"type": "Recreate"})));
    }

    #[test]
    fn service_policies_depend_on_its_type() {
        let spec = |value: Value| {
            let mut spec = json!({"sessionAffinity": "None"});
            spec.as_object_mut().unwrap().extend(value.as_object().unwrap().clone());
            spec
        };
        check("core.v1.ServiceSpec", json!({}), spec(json!({"type": "ClusterIP", "internalTrafficPolicy": "Cluster"})));
        check("core.v1.ServiceSpec", json!({"type": "ExternalName"}), spec(json!({"type": "ExternalName"})));
        check(
            "core.v1.ServiceSpec",
            json!({"type": "LoadBalancer", "ports": [{"port": 1}]}),
            spec(json!({
                "type": "LoadBalancer", "internalTrafficPolicy": "Cluster", "externalTrafficPolicy": "Cluster",
                "allocateLoadBalancerNodePorts": true, "ports": [{"port": 1, "protocol": "TCP"}],
            })),
        );
    }

    #[test]
    fn some_defaults_hold_in_one_place_only() {
        check(
            "core.v1.Pod",
            json!({"spec": {}}),
            json!({
                "spec": {
                    "enableServiceLinks": true, "dnsPolicy": "ClusterFirst", "restartPolicy": "Always", "securityContext": {},
                    "schedulerName": "default-scheduler", "terminationGracePeriodSeconds": 30,
                },
                "status": {},
            }),
        );
        let schema = builtin();
        let mut template = json!({"spec": {}});
        default(schema, schema.by_name("io.k8s.api.core.v1.PodTemplateSpec").unwrap(), &mut template);
        assert!(template["spec"].get("enableServiceLinks").is_none());
    }

    #[test]
    fn zero_counts_as_absent_where_upstream_cannot_tell() {
        let probe =
            |n: i32| json!({"timeoutSeconds": n, "periodSeconds": n, "successThreshold": n, "failureThreshold": n});
        check(
            "core.v1.Probe",
            probe(0),
            json!({
                "timeoutSeconds": 1, "periodSeconds": 10, "successThreshold": 1, "failureThreshold": 3,
            }),
        );
        check("core.v1.Probe", probe(7), probe(7));
    }
}
