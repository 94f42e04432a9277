//! Defaults of pods that no single field decides, and the quality of service.
//!
//! What is set in any pod spec, templates included, is in [`default_spec`]; the rest only in a pod itself, as upstream's `SetDefaults_Pod`.

use apimachinery::quantity::Quantity;
use apimachinery::{Value, meta};
use serde_json::{Map, json};

use super::super::common::{items, items_mut, set_default};
use super::CONTAINER_LISTS;

pub fn default_pod(object: &mut Value) {
    let Some(spec) = object.get_mut("spec") else { return };
    default_spec(spec);
    set_default(spec, "enableServiceLinks", true);
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for list in ["containers", "initContainers"] {
        for container in items_mut(spec, list) {
            request_what_is_limited(container);
            if host_network {
                items_mut(container, "ports").for_each(expose_on_host);
            }
        }
    }
}

fn request_what_is_limited(container: &mut Value) {
    let limits = meta::at(container, &["resources", "limits"]).and_then(Value::as_object).cloned();
    for (resource, limit) in limits.unwrap_or_default() {
        let requests = meta::map_mut(container, "resources").entry("requests").or_insert_with(|| json!({}));
        set_default(requests, &resource, limit);
    }
}

fn expose_on_host(port: &mut Value) {
    let Some(number) = port.get("containerPort").cloned() else { return };
    if port.get("hostPort").and_then(Value::as_i64).unwrap_or(0) == 0 {
        port["hostPort"] = number;
    }
}

/// Defaults of a pod's spec, also inside templates.
pub fn default_spec(spec: &mut Value) {
    for volume in items_mut(spec, "volumes") {
        let sources = volume.as_object().map_or(1, |m| m.iter().filter(|(k, v)| *k != "name" && !v.is_null()).count());
        if sources == 0 {
            volume["emptyDir"] = json!({});
        }
        if let Some(image) = volume.get_mut("image") {
            default_pull_policy(image, "reference", "pullPolicy");
        }
    }
    for list in CONTAINER_LISTS {
        for container in items_mut(spec, list) {
            default_pull_policy(container, "image", "imagePullPolicy");
        }
    }
    // The older name of the field mirrors the newer.
    let named = ["serviceAccountName", "serviceAccount"].map(|key| meta::str_at(spec, &[key]).to_owned());
    if let Some(name) = named.into_iter().find(|name| !name.is_empty()) {
        spec["serviceAccountName"] = json!(name);
        spec["serviceAccount"] = json!(name);
    }
}

fn default_pull_policy(object: &mut Value, image: &str, policy: &str) {
    let wanted = if is_latest(meta::str_at(object, &[image])) { "Always" } else { "IfNotPresent" };
    set_default(object, policy, wanted);
}

/// An image tagged `latest`, or with neither tag nor digest, is looked up every time.
fn is_latest(image: &str) -> bool {
    let (name, digest) = image.split_once('@').map_or((image, None), |(name, digest)| (name, Some(digest)));
    match name.rsplit('/').next().unwrap_or_default().split_once(':') {
        Some((_, tag)) => tag == "latest",
        None => digest.is_none(),
    }
}

/// `matchLabelKeys` and `mismatchLabelKeys` become requirements on the pod's own labels, once, at creation.
pub fn merge_label_keys(pod: &mut Value) {
    let labels = meta::at(pod, &["metadata", "labels"]).and_then(Value::as_object).cloned().unwrap_or_default();
    let Some(spec) = pod.get_mut("spec") else { return };
    for constraint in items_mut(spec, "topologySpreadConstraints") {
        merge_keys(constraint, &labels);
    }
    for kind in ["podAffinity", "podAntiAffinity"] {
        let Some(rules) = spec.get_mut("affinity").and_then(|a| a.get_mut(kind)) else { continue };
        for term in items_mut(rules, "requiredDuringSchedulingIgnoredDuringExecution") {
            merge_keys(term, &labels);
        }
        for preferred in items_mut(rules, "preferredDuringSchedulingIgnoredDuringExecution") {
            if let Some(term) = preferred.get_mut("podAffinityTerm") {
                merge_keys(term, &labels);
            }
        }
    }
}

fn merge_keys(term: &mut Value, labels: &Map<String, Value>) {
    for (list, operator) in [("matchLabelKeys", "In"), ("mismatchLabelKeys", "NotIn")] {
        let found: Vec<Value> = items(term, list)
            .filter_map(|key| Some((key, labels.get(key.as_str()?)?)))
            .map(|(key, value)| json!({"key": key, "operator": operator, "values": [value]}))
            .collect();
        if let (false, Some(selector)) =
            (found.is_empty(), term.get_mut("labelSelector").and_then(Value::as_object_mut))
        {
            let expressions = selector.entry("matchExpressions").or_insert_with(|| json!([]));
            expressions.as_array_mut().into_iter().for_each(|list| list.extend(found.iter().cloned()));
        }
    }
}

/// `Guaranteed`, `Burstable` or `BestEffort`. Resources of the pod as a whole, where given, stand for those of its containers.
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let whole = spec.get("resources").filter(|r| r.as_object().is_some_and(|m| !m.is_empty())).map(|_| spec);
    let holders: Vec<&Value> = match whole {
        Some(spec) => vec![spec],
        None => items(spec, "containers").chain(items(spec, "initContainers")).collect(),
    };
    let (mut any, mut guaranteed) = (false, true);
    for holder in holders {
        for resource in ["cpu", "memory"] {
            let request = positive(holder, "requests", resource);
            let limit = positive(holder, "limits", resource);
            any |= request.is_some() || limit.is_some();
            guaranteed &= limit.is_some() && request == limit;
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

fn positive(holder: &Value, list: &str, resource: &str) -> Option<Quantity> {
    let value = meta::at(holder, &["resources", list, resource])?;
    Quantity::from_value(value).ok().filter(|q| !q.is_zero())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service() {
        let check = |spec: Value, expected: &str| assert_eq!(qos_class(&json!({ "spec": spec })), expected);
        check(json!({"containers": [{"name": "a"}]}), "BestEffort");
        check(json!({"containers": [{"resources": {"requests": {"cpu": "1"}}}]}), "Burstable");
        let full = json!({"cpu": "1", "memory": "1Gi"});
        let same = json!({"requests": full, "limits": {"cpu": "1000m", "memory": "1024Mi"}});
        check(json!({"containers": [{"resources": same}]}), "Guaranteed");
        check(json!({"containers": [{"resources": {"limits": full, "requests": full}}, {}]}), "Burstable");
        check(json!({"containers": [{}], "resources": same}), "Guaranteed");
    }

    #[test]
    fn pull_policy_follows_the_tag() {
        for (image, policy) in [
            ("busybox", "Always"),
            ("busybox:latest", "Always"),
            ("host:5000/a", "Always"),
            ("host:5000/a:1", "IfNotPresent"),
            ("a@sha256:00", "IfNotPresent"),
        ] {
            let mut spec = json!({"containers": [{"image": image}]});
            default_spec(&mut spec);
            assert_eq!(spec["containers"][0]["imagePullPolicy"], policy, "{image}");
        }
    }

    #[test]
    fn only_a_pod_itself_requests_what_it_limits() {
        let container =
            json!({"image": "a:1", "resources": {"limits": {"cpu": "1"}}, "ports": [{"containerPort": 80}]});
        let spec = json!({"hostNetwork": true, "containers": [container], "volumes": [{"name": "v"}]});
        let mut template = spec.clone();
        default_spec(&mut template);
        assert_eq!(template["volumes"][0]["emptyDir"], json!({}));
        assert!(template["containers"][0]["resources"].get("requests").is_none());
        let mut pod = json!({ "spec": spec });
        default_pod(&mut pod);
        assert_eq!(pod["spec"]["containers"][0]["resources"]["requests"]["cpu"], "1");
        assert_eq!(pod["spec"]["containers"][0]["ports"][0]["hostPort"], 80);
    }

    #[test]
    fn label_keys_become_requirements() {
        let mut pod = json!({"metadata": {"labels": {"a": "1"}}, "spec": {"topologySpreadConstraints": [
            {"labelSelector": {}, "matchLabelKeys": ["a", "b"]}]}});
        merge_label_keys(&mut pod);
        let merged = &pod["spec"]["topologySpreadConstraints"][0]["labelSelector"]["matchExpressions"];
        assert_eq!(*merged, json!([{"key": "a", "operator": "In", "values": ["1"]}]));
    }
}
