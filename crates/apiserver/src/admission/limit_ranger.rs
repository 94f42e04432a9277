//! A namespace's LimitRanges: default requests and limits for containers, and bounds for pods, containers and claims.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use apimachinery::status::Result;
use apimachinery::{Value, meta};
use serde_json::{Map, json};

use super::pod_spec::{items, items_mut};
use super::{Operation, Plugin, Request};

const ANNOTATION: &str = "kubernetes.io/limit-ranger";

type Amounts = BTreeMap<String, Quantity>;

pub struct LimitRanger;

impl Plugin for LimitRanger {
    fn name(&self) -> &'static str {
        "LimitRanger"
    }

    fn handles(&self, operation: Operation) -> bool {
        matches!(operation, Operation::Create | Operation::Update)
    }

    fn admit(&self, request: &mut Request<'_>) -> Result<()> {
        if !request.is("", "pods", "") || request.operation != Operation::Create {
            return Ok(());
        }
        for limit in limits(request) {
            if meta::str_at(&limit, &["type"]) == "Container" {
                set_defaults(request.object, &limit);
            }
        }
        Ok(())
    }

    fn validate(&self, request: &mut Request<'_>) -> Result<()> {
        let pod = request.is("", "pods", "") && request.operation == Operation::Create;
        let claim = request.is("", "persistentvolumeclaims", "");
        if !pod && !claim {
            return Ok(());
        }
        let mut errors: Vec<String> = Vec::new();
        for limit in limits(request) {
            if pod {
                check_pod(request.object, &limit, &mut errors);
            } else if meta::str_at(&limit, &["type"]) == "PersistentVolumeClaim" {
                check_claim(request.object, &limit, &mut errors);
            }
        }
        match errors.as_slice() {
            [] => Ok(()),
            [one] => Err(request.forbidden(one)),
            several => Err(request.forbidden(&format!("[{}]", several.join(", ")))),
        }
    }
}

/// The items of all LimitRanges of the namespace.
fn limits(request: &Request<'_>) -> Vec<Value> {
    let ranges = request.view.list("limitranges", request.namespace).into_iter().map(|entry| entry.value.value());
    ranges.flat_map(|range| items(&range, "limits").cloned().collect::<Vec<_>>()).collect()
}

fn amounts(value: Option<&Value>) -> Amounts {
    let map = value.and_then(Value::as_object).into_iter().flatten();
    map.filter_map(|(name, amount)| Some((name.clone(), Quantity::from_value(amount).ok()?))).collect()
}

/// What the item gives containers that say nothing: `default` falls back to `max`, `defaultRequest` to that and to `min`.
fn set_defaults(pod: &mut Value, limit: &Value) {
    let map = |field: &str| limit.get(field).and_then(Value::as_object).cloned().unwrap_or_default();
    let with = |mut map: Map<String, Value>, other: Map<String, Value>| {
        for (name, amount) in other {
            map.entry(name).or_insert(amount);
        }
        map
    };
    let limits = with(map("default"), map("max"));
    let requests = with(with(map("defaultRequest"), limits.clone()), map("min"));
    let mut told: Vec<String> = Vec::new();
    for (list, kind) in [("containers", "container"), ("initContainers", "init container")] {
        if items(pod, list).next().is_none() {
            continue;
        }
        for container in items_mut(pod, list) {
            // A limit of its own is the container's request, too: the default request is for those that have neither.
            let own_limits = meta::at(container, &["resources", "limits"]).and_then(Value::as_object).cloned();
            fill(container, "requests", own_limits.unwrap_or_default());
            let name = meta::str_at(container, &["name"]).to_owned();
            for (field, defaults, word) in [("requests", &requests, "request"), ("limits", &limits, "limit")] {
                let set = fill(container, field, defaults.clone());
                if !set.is_empty() {
                    told.push(format!("{} {word} for {kind} {name}", set.join(", ")));
                }
            }
        }
    }
    if !told.is_empty() {
        let annotations = meta::metadata_mut(pod).entry("annotations").or_insert_with(|| json!({}));
        annotations[ANNOTATION] = json!(format!("LimitRanger plugin set: {}", told.join("; ")));
    }
}

/// Adds what is missing to `resources.<field>`; tells what that was, in order of name.
fn fill(container: &mut Value, field: &str, defaults: Map<String, Value>) -> Vec<String> {
    let known = meta::at(container, &["resources", field]).and_then(Value::as_object);
    let mut missing: Vec<(String, Value)> =
        defaults.into_iter().filter(|(name, _)| known.is_none_or(|known| !known.contains_key(name))).collect();
    if missing.is_empty() {
        return Vec::new();
    }
    missing.sort_by(|a, b| a.0.cmp(&b.0));
    let resources = meta::map_mut(container, "resources");
    let target = resources.entry(field).or_insert_with(|| json!({}));
    if !target.is_object() {
        *target = json!({});
    }
    let mut names = Vec::new();
    for (name, amount) in missing {
        target[name.as_str()] = amount;
        names.push(name);
    }
    names
}

fn check_pod(pod: &Value, limit: &Value, errors: &mut Vec<String>) {
    match meta::str_at(limit, &["type"]) {
        "Container" => {
            for container in items(pod, "containers").chain(items(pod, "initContainers")) {
                let of = |field: &str| amounts(meta::at(container, &["resources", field]));
                check("Container", limit, &of("requests"), &of("limits"), errors);
            }
        }
        "Pod" => check("Pod", limit, &total(pod, "requests"), &total(pod, "limits"), errors),
        _ => {}
    }
}

/// What the pod needs at its worst moment: all containers and sidecars together, or the largest init container.
fn total(pod: &Value, field: &str) -> Amounts {
    let of = |container: &Value| amounts(meta::at(container, &["resources", field]));
    let sidecar = |container: &&Value| meta::str_at(container, &["restartPolicy"]) == "Always";
    let mut sum = Amounts::new();
    for container in items(pod, "containers").chain(items(pod, "initContainers").filter(sidecar)) {
        for (name, amount) in of(container) {
            *sum.entry(name).or_insert(Quantity::ZERO) += amount;
        }
    }
    for container in items(pod, "initContainers").filter(|c| !sidecar(c)) {
        for (name, amount) in of(container) {
            let so_far = sum.entry(name).or_insert(Quantity::ZERO);
            if amount > *so_far {
                *so_far = amount;
            }
        }
    }
    sum
}

fn check(kind: &str, limit: &Value, requests: &Amounts, limits: &Amounts, errors: &mut Vec<String>) {
    for (name, min) in amounts(limit.get("min")) {
        let rule = format!("minimum {name} usage per {kind} is {min}");
        match (requests.get(&name), limits.get(&name)) {
            (None, _) => errors.push(format!("{rule}.  No request is specified")),
            (Some(request), _) if *request < min => errors.push(format!("{rule}, but request is {request}")),
            (_, Some(limit)) if *limit < min => errors.push(format!("{rule}, but limit is {limit}")),
            _ => {}
        }
    }
    for (name, max) in amounts(limit.get("max")) {
        let rule = format!("maximum {name} usage per {kind} is {max}");
        match (requests.get(&name), limits.get(&name)) {
            (_, None) => errors.push(format!("{rule}.  No limit is specified")),
            (_, Some(limit)) if *limit > max => errors.push(format!("{rule}, but limit is {limit}")),
            (Some(request), _) if *request > max => errors.push(format!("{rule}, but request is {request}")),
            _ => {}
        }
    }
    for (name, ratio) in amounts(limit.get("maxLimitRequestRatio")) {
        let rule = format!("{name} max limit to request ratio per {kind} is {ratio}, but");
        let given = |amounts: &Amounts| amounts.get(&name).map(Quantity::as_f64).filter(|amount| *amount > 0.0);
        match (given(requests), given(limits)) {
            (None, _) => errors.push(format!("{rule} no request is specified or request is 0")),
            (_, None) => errors.push(format!("{rule} no limit is specified or limit is 0")),
            (Some(request), Some(limit)) if limit / request > ratio.as_f64() => {
                errors.push(format!("{rule} provided ratio is {:.6}", limit / request));
            }
            _ => {}
        }
    }
}

fn check_claim(claim: &Value, limit: &Value, errors: &mut Vec<String>) {
    let requests = amounts(meta::at(claim, &["spec", "resources", "requests"]));
    for (field, word) in [("min", "minimum"), ("max", "maximum")] {
        for (name, bound) in amounts(limit.get(field)) {
            let rule = format!("{word} {name} usage per PersistentVolumeClaim is {bound}");
            match requests.get(&name) {
                None => errors.push(format!("{rule}.  No request is specified")),
                Some(request) if (field == "min" && *request < bound) || (field == "max" && *request > bound) => {
                    errors.push(format!("{rule}, but request is {request}"));
                }
                Some(_) => {}
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing::{Case, Cluster};
    use super::*;

    fn cluster(limit: Value) -> Cluster {
        let cluster = Cluster::new();
        cluster.put("limitranges", json!({"metadata": {"name": "l", "namespace": "ns"}, "spec": {"limits": [limit]}}));
        cluster
    }

    fn pod(resources: &[Value]) -> Case {
        let containers: Vec<Value> =
            resources.iter().enumerate().map(|(n, r)| json!({"name": format!("c{n}"), "resources": r})).collect();
        let object = json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {"containers": containers}});
        Case::create("", "pods", object)
    }

    #[test]
    fn defaults_fill_in_and_are_told() {
        let cluster = cluster(
            json!({"type": "Container", "default": {"cpu": "500m"}, "defaultRequest": {"cpu": "100m", "memory": "1Gi"}}),
        );
        let mut case = pod(&[json!({}), json!({"limits": {"cpu": "2"}})]);
        case.admit(&cluster, &LimitRanger).unwrap();
        let containers = &case.object["spec"]["containers"];
        assert_eq!(
            containers[0]["resources"],
            json!({"limits": {"cpu": "500m"}, "requests": {"cpu": "100m", "memory": "1Gi"}})
        );
        assert_eq!(
            containers[1]["resources"],
            json!({"limits": {"cpu": "2"}, "requests": {"cpu": "2", "memory": "1Gi"}})
        );
        assert_eq!(
            meta::annotation(&case.object, ANNOTATION),
            Some(
                "LimitRanger plugin set: cpu, memory request for container c0; cpu limit for container c0; memory request for container c1"
            )
        );
    }

    #[test]
    fn bounds_are_worded_as_upstream() {
        let bounds = json!({"type": "Container", "min": {"cpu": "100m"}, "max": {"cpu": "1"}});
        let resources = |request: &str, limit: &str| json!({"requests": {"cpu": request}, "limits": {"cpu": limit}});
        let check = |limit: &Value, resources: &[Value]| {
            pod(resources)
                .validate(&cluster(limit.clone()), &LimitRanger)
                .map_err(|e| e.message.split_once(": ").unwrap().1.to_owned())
        };
        assert_eq!(check(&bounds, &[resources("100m", "1")]), Ok(()));
        assert_eq!(
            check(&bounds, &[resources("50m", "1")]),
            Err("minimum cpu usage per Container is 100m, but request is 50m".into())
        );
        assert_eq!(
            check(&bounds, &[resources("1", "2")]),
            Err("maximum cpu usage per Container is 1, but limit is 2".into())
        );
        assert_eq!(
            check(&bounds, &[json!({})]),
            Err("[minimum cpu usage per Container is 100m.  No request is specified, maximum cpu usage per Container is 1.  No limit is specified]".into())
        );
        let of_pod = json!({"type": "Pod", "max": {"cpu": "1500m"}});
        assert_eq!(
            check(&of_pod, &[resources("1", "1"), resources("1", "1")]),
            Err("maximum cpu usage per Pod is 1500m, but limit is 2".into())
        );
        let ratio = json!({"type": "Container", "maxLimitRequestRatio": {"cpu": "2"}});
        assert_eq!(
            check(&ratio, &[resources("100m", "300m")]),
            Err("cpu max limit to request ratio per Container is 2, but provided ratio is 3.000000".into())
        );
    }

    #[test]
    fn claims_have_bounds_too() {
        let cluster = cluster(json!({"type": "PersistentVolumeClaim", "max": {"storage": "1Gi"}}));
        let claim = |size: &str| {
            let object = json!({"metadata": {"name": "c", "namespace": "ns"}, "spec": {"resources": {"requests": {"storage": size}}}});
            Case::create("", "persistentvolumeclaims", object).validate(&cluster, &LimitRanger)
        };
        assert!(claim("1Gi").is_ok());
        assert_eq!(
            claim("2Gi").unwrap_err().message,
            r#"persistentvolumeclaims "c" is forbidden: maximum storage usage per PersistentVolumeClaim is 1Gi, but request is 2Gi"#
        );
    }
}
