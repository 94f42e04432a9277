//! Pods: defaults, quality of service, what may change, graceful deletion, binding and eviction.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::quantity::Quantity;
use apimachinery::selector::label::LabelSelector;
use apimachinery::status::{Cause, Details, GroupResource, Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::{Map, json};
use store::{Compare, Durability, Expect, Op, Txn};

use super::common::{items, items_mut, set_default, unique_names};
use super::{Context, Family, Part, Posted, Strategy};
use crate::object::encode;
use crate::registry::{DeleteOptions, timestamp};

pub fn strategies() -> Family {
    vec![("", "pods", Arc::new(Pods))]
}

pub const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        if let Some(spec) = object.get_mut("spec") {
            default_spec(spec);
            set_default(spec, "enableServiceLinks", true);
        }
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        let status = json!({ "phase": "Pending", "qosClass": qos_class(object) });
        let gated = items(&object["spec"], "schedulingGates").next().is_some();
        if let Some(map) = object.as_object_mut() {
            map.insert("status".to_owned(), status);
        }
        if gated {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated", "lastProbeTime": null,
                "lastTransitionTime": null, "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
    }

    fn prepare_update(&self, _cx: &Context<'_>, part: Part, object: &mut Value, old: &Value) {
        match part {
            Part::Other("ephemeralcontainers") => only(object, old, |new, next| {
                copy(new, next, "ephemeralContainers");
            }),
            Part::Other("resize") => only(object, old, |new, next| {
                for list in ["containers", "initContainers"] {
                    resize(new, next, list);
                }
            }),
            _ => {}
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Path::new("spec");
        match (part, old) {
            (_, None) => validate_spec(&object["spec"], &spec, &mut errors),
            (Part::Main, Some(old)) => validate_update(object, old, &spec, &mut errors),
            (Part::Other("ephemeralcontainers"), Some(old)) => {
                unique_names(&object["spec"], "ephemeralContainers", &spec, &mut errors);
                for container in items(&old["spec"], "ephemeralContainers") {
                    if !items(&object["spec"], "ephemeralContainers").any(|c| c["name"] == container["name"]) {
                        let name = meta::str_at(container, &["name"]);
                        let why = format!("existing ephemeral containers {name:?} may not be removed\n");
                        errors.push(Error::forbidden(&spec.child("ephemeralContainers"), &why));
                    }
                }
            }
            _ => {}
        }
        errors
    }

    fn deletion_grace(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let spec = meta::at(object, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
        let grace = requested.or(spec).unwrap_or(30);
        let unscheduled = meta::str_at(object, &["spec", "nodeName"]).is_empty();
        let finished = matches!(meta::str_at(object, &["status", "phase"]), "Succeeded" | "Failed");
        // No kubelet would ever confirm, or there is nothing to wait for.
        Some(if unscheduled || finished {
            0
        } else if grace < 0 {
            1
        } else {
            grace
        })
    }

    fn returns_deleted_object(&self) -> bool {
        true
    }

    fn post(&self, cx: &Context<'_>, subresource: &str, object: &Value, sent: &Value) -> Result<Posted> {
        match subresource {
            "binding" => Ok(Posted::Update { part: Part::Other("binding") }),
            "eviction" => evict(cx, object, sent),
            _ => Err(StatusError::no_such_path()),
        }
    }

    fn posted(&self, cx: &Context<'_>, _subresource: &str, object: &Value, sent: &Value) -> Result<Value> {
        bind(cx, object, sent)
    }

    fn connect(&self, ask: &super::connect::Ask<'_>) -> Result<super::connect::Connection> {
        super::connect::pod(ask)
    }
}

/// Defaults of a pod's spec, also inside templates.
pub fn default_spec(spec: &mut Value) {
    let host_network = spec.get("hostNetwork").and_then(Value::as_bool).unwrap_or(false);
    for list in CONTAINER_LISTS {
        for container in items_mut(spec, list) {
            default_container(container, host_network);
        }
    }
    // The older name of the field mirrors the newer.
    if let Some(name) = spec.get("serviceAccountName").or_else(|| spec.get("serviceAccount")).cloned() {
        spec["serviceAccountName"] = name.clone();
        spec["serviceAccount"] = name;
    }
}

fn default_container(container: &mut Value, host_network: bool) {
    let image = meta::str_at(container, &["image"]);
    let policy = if pulls_always(image) { "Always" } else { "IfNotPresent" };
    set_default(container, "imagePullPolicy", policy);
    if host_network {
        for port in items_mut(container, "ports") {
            if let Some(number) = port.get("containerPort").cloned() {
                set_default(port, "hostPort", number);
            }
        }
    }
    let limits = meta::at(container, &["resources", "limits"]).and_then(Value::as_object).cloned();
    for (resource, limit) in limits.unwrap_or_default() {
        let resources = meta::map_mut(container, "resources");
        let requests = resources.entry("requests").or_insert_with(|| json!({}));
        set_default(requests, &resource, limit);
    }
}

/// An image without tag, or tagged `latest`, is looked up every time; a digest never changes.
fn pulls_always(image: &str) -> bool {
    if image.contains('@') {
        return false;
    }
    let last = image.rsplit('/').next().unwrap_or_default();
    last.split_once(':').is_none_or(|(_, tag)| tag == "latest")
}

/// `Guaranteed`, `Burstable` or `BestEffort`.
pub fn qos_class(pod: &Value) -> &'static str {
    let spec = &pod["spec"];
    let mut any = false;
    let mut guaranteed = true;
    for container in items(spec, "containers").chain(items(spec, "initContainers")) {
        for resource in ["cpu", "memory"] {
            let request = positive(container, "requests", resource);
            let limit = positive(container, "limits", resource);
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

fn positive(container: &Value, list: &str, resource: &str) -> Option<Quantity> {
    let text = meta::str_at(container, &["resources", list, resource]);
    Quantity::parse(text).ok().filter(|q| !q.is_zero())
}

fn validate_spec(spec: &Value, path: &Path, errors: &mut ErrorList) {
    if items(spec, "containers").next().is_none() {
        errors.push(Error::required(&path.child("containers"), ""));
    }
    unique_names(spec, "volumes", path, errors);
    validate_volumes(spec, path, errors);
    let mut names: Vec<&str> = Vec::new();
    for list in CONTAINER_LISTS {
        for (index, container) in items(spec, list).enumerate() {
            let at = path.child(list).index(index);
            let name = meta::str_at(container, &["name"]);
            if names.contains(&name) {
                errors.push(Error::duplicate(&at.child("name"), &json!(name)));
            }
            names.push(name);
            validate_container(spec, container, &at, errors);
        }
    }
}

/// As [`validate_spec`], for the template of a workload.
pub fn validate_template(template: &Value, path: &Path, errors: &mut ErrorList) {
    validate_spec(&template["spec"], &path.child("spec"), errors);
}

fn validate_volumes(spec: &Value, path: &Path, errors: &mut ErrorList) {
    for (index, volume) in items(spec, "volumes").enumerate() {
        let at = path.child("volumes").index(index);
        let sources = volume.as_object().map_or(0, |m| m.keys().filter(|k| *k != "name").count());
        if sources > 1 {
            let extra = volume.as_object().into_iter().flatten().map(|(k, _)| k).filter(|k| *k != "name").nth(1);
            let field = at.child(extra.map(String::as_str).unwrap_or_default());
            errors.push(Error::forbidden(&field, "may not specify more than 1 volume type"));
        }
    }
}

fn validate_container(spec: &Value, container: &Value, at: &Path, errors: &mut ErrorList) {
    if meta::str_at(container, &["image"]).is_empty() {
        errors.push(Error::required(&at.child("image"), ""));
    }
    let mut mounts: Vec<&str> = Vec::new();
    for (index, mount) in items(container, "volumeMounts").enumerate() {
        let at = at.child("volumeMounts").index(index);
        let name = meta::str_at(mount, &["name"]);
        if !items(spec, "volumes").any(|v| meta::str_at(v, &["name"]) == name) {
            errors.push(Error::not_found(&at.child("name"), &json!(name)));
        }
        let target = meta::str_at(mount, &["mountPath"]);
        if mounts.contains(&target) {
            errors.push(Error::invalid(&at.child("mountPath"), &json!(target), "must be unique"));
        }
        mounts.push(target);
    }
    unique_names(container, "ports", at, errors);
    validate_probes(container, at, errors);
    let empty = Map::new();
    let limits = meta::at(container, &["resources", "limits"]).and_then(Value::as_object).unwrap_or(&empty);
    let requests = meta::at(container, &["resources", "requests"]).and_then(Value::as_object).unwrap_or(&empty);
    for (resource, request) in requests {
        let (Some(limit), Some(text)) = (limits.get(resource).and_then(Value::as_str), request.as_str()) else {
            continue;
        };
        let over = matches!((Quantity::parse(text), Quantity::parse(limit)), (Ok(r), Ok(l)) if r > l);
        if over {
            let why = format!("must be less than or equal to {resource} limit of {limit}");
            errors.push(Error::invalid(&at.child("resources").child("requests"), request, &why));
        }
    }
}

/// A probe or hook has exactly one action.
fn validate_probes(container: &Value, at: &Path, errors: &mut ErrorList) {
    for probe in ["livenessProbe", "readinessProbe", "startupProbe"] {
        let Some(value) = container.get(probe).filter(|p| !p.is_null()) else { continue };
        let actions = ["exec", "httpGet", "tcpSocket", "grpc"].iter().filter(|a| value.get(**a).is_some()).count();
        if actions == 0 {
            errors.push(Error::required(&at.child(probe), "must specify a handler type"));
        } else if actions > 1 {
            errors.push(Error::forbidden(&at.child(probe), "may not specify more than 1 handler type"));
        }
        let successes = value.get("successThreshold").and_then(Value::as_i64).unwrap_or(1);
        if probe != "readinessProbe" && successes != 1 {
            errors.push(Error::invalid(&at.child(probe).child("successThreshold"), &json!(successes), "must be 1"));
        }
    }
}

const UPDATE_REFUSED: &str = "pod updates may not change fields other than `spec.containers[*].image`,`spec.initContainers[*].image`,`spec.activeDeadlineSeconds`,`spec.tolerations` (only additions to existing tolerations),`spec.terminationGracePeriodSeconds` (allow it to be set to 1 if it was previously negative)";

fn validate_update(object: &Value, old: &Value, path: &Path, errors: &mut ErrorList) {
    let mut allowed = old["spec"].clone();
    let new = &object["spec"];
    for list in ["containers", "initContainers"] {
        for (index, container) in items_mut(&mut allowed, list).enumerate() {
            if let Some(image) = new.get(list).and_then(|l| l.get(index)).and_then(|c| c.get("image")) {
                container["image"] = image.clone();
            }
        }
    }
    let deadline = |spec: &Value| spec.get("activeDeadlineSeconds").and_then(Value::as_i64);
    if let (Some(before), after) = (deadline(&old["spec"]), deadline(new))
        && after.is_none_or(|after| after > before)
    {
        let field = path.child("activeDeadlineSeconds");
        let why = "must be less than or equal to previous value";
        errors.push(Error::invalid(&field, &json!(after), why));
        return;
    }
    copy_field(new, &mut allowed, "activeDeadlineSeconds");
    let tolerations: Vec<&Value> = items(new, "tolerations").collect();
    if items(&old["spec"], "tolerations").all(|t| tolerations.contains(&t)) {
        copy_field(new, &mut allowed, "tolerations");
    } else {
        errors.push(Error::forbidden(
            &path.child("tolerations"),
            "existing toleration can not be modified except its tolerationSeconds",
        ));
    }
    let gates: Vec<&Value> = items(&old["spec"], "schedulingGates").collect();
    if items(new, "schedulingGates").all(|g| gates.contains(&g)) {
        copy_field(new, &mut allowed, "schedulingGates");
        if !gates.is_empty() {
            // Still gated: where it may run can be narrowed.
            copy_field(new, &mut allowed, "nodeSelector");
            copy_field(new, &mut allowed, "affinity");
        }
    }
    if deadline_of_grace(&old["spec"]) < 0 && deadline_of_grace(new) == 1 {
        copy_field(new, &mut allowed, "terminationGracePeriodSeconds");
    }
    if *new != allowed {
        errors.push(Error::forbidden(path, UPDATE_REFUSED));
    }
}

fn deadline_of_grace(spec: &Value) -> i64 {
    spec.get("terminationGracePeriodSeconds").and_then(Value::as_i64).unwrap_or(0)
}

fn copy_field(from: &Value, to: &mut Value, key: &str) {
    if let Some(map) = to.as_object_mut() {
        match from.get(key) {
            Some(value) => map.insert(key.to_owned(), value.clone()),
            None => map.remove(key),
        };
    }
}

/// Keeps `old` but for what `take` copies from the new spec; metadata's version and books stay with the writer.
fn only(object: &mut Value, old: &Value, take: impl Fn(&Value, &mut Value)) {
    let mut next = old.clone();
    take(&object["spec"], &mut next["spec"]);
    if let Some(version) = meta::at(object, &["metadata", "resourceVersion"]) {
        next["metadata"]["resourceVersion"] = version.clone();
    }
    *object = next;
}

fn copy(new: &Value, next: &mut Value, key: &str) {
    copy_field(new, next, key);
}

fn resize(new: &Value, next: &mut Value, list: &str) {
    let wanted: Vec<(String, Value)> = items(new, list)
        .map(|c| (meta::str_at(c, &["name"]).to_owned(), c.get("resources").cloned().unwrap_or_default()))
        .collect();
    for container in items_mut(next, list) {
        let name = meta::str_at(container, &["name"]).to_owned();
        if let Some((_, resources)) = wanted.iter().find(|(n, _)| *n == name) {
            container["resources"] = resources.clone();
        }
    }
}

fn bind(cx: &Context<'_>, pod: &Value, binding: &Value) -> Result<Value> {
    let name = meta::name(pod);
    let conflict = |why: &str| StatusError::conflict(&GroupResource::new("", "pods/binding"), name, why);
    let target = meta::str_at(binding, &["target", "name"]);
    let kind = meta::str_at(binding, &["target", "kind"]);
    if target.is_empty() || !matches!(kind, "" | "Node") {
        let path = Path::new("target").child(if target.is_empty() { "name" } else { "kind" });
        let error = if target.is_empty() {
            Error::required(&path, "")
        } else {
            Error::not_supported(&path, &json!(kind), &["Node", "<empty>"])
        };
        return Err(StatusError::invalid(&GroupResource::new("", "Binding"), name, &[error]));
    }
    let uid = meta::uid(binding);
    if !uid.is_empty() && uid != meta::uid(pod) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(pod));
        return Err(conflict(&why));
    }
    if meta::is_deleting(pod) {
        return Err(conflict(&format!("pod {name} is being deleted, cannot be assigned to a host")));
    }
    let node = meta::str_at(pod, &["spec", "nodeName"]);
    if !node.is_empty() {
        return Err(conflict(&format!("pod {name} is already assigned to node {node:?}")));
    }
    if items(&pod["spec"], "schedulingGates").next().is_some() {
        return Err(conflict(&format!("pod {name} has non-empty .spec.schedulingGates")));
    }
    let mut next = pod.clone();
    next["spec"]["nodeName"] = json!(target);
    if let Some(annotations) = meta::at(binding, &["metadata", "annotations"]).and_then(Value::as_object) {
        let metadata = meta::metadata_mut(&mut next);
        let into = metadata.entry("annotations").or_insert_with(|| json!({}));
        for (key, value) in annotations {
            into[key] = value.clone();
        }
    }
    set_condition(
        &mut next,
        json!({
            "type": "PodScheduled", "status": "True", "lastProbeTime": null, "lastTransitionTime": timestamp(cx.now),
        }),
    );
    meta::remove(&mut next, "resourceVersion");
    Ok(next)
}

fn set_condition(pod: &mut Value, condition: Value) {
    let status = meta::map_mut(pod, "status");
    let list = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(list) = list.as_array_mut() {
        list.retain(|c| c["type"] != condition["type"]);
        list.push(condition);
    }
}

fn evict(cx: &Context<'_>, pod: &Value, eviction: &Value) -> Result<Posted> {
    let options: DeleteOptions = match eviction.get("deleteOptions") {
        Some(options) => serde_json::from_value(options.clone())
            .map_err(|e| StatusError::bad_request(format!("cannot decode DeleteOptions: {e}")))?,
        None => DeleteOptions::default(),
    };
    let harmless = matches!(meta::str_at(pod, &["status", "phase"]), "Succeeded" | "Failed" | "Pending");
    if harmless || meta::is_deleting(pod) {
        return Ok(Posted::Delete { options, also: Vec::new() });
    }
    let budgets: Vec<_> = cx
        .view
        .list("poddisruptionbudgets", meta::namespace(pod))
        .into_iter()
        .filter(|entry| selects(&entry.value.value(), pod))
        .collect();
    match budgets.as_slice() {
        [] => Ok(Posted::Delete { options, also: Vec::new() }),
        [budget] => {
            let txn = spend(cx, budget, pod)?;
            Ok(Posted::Delete { options, also: vec![txn] })
        }
        _ => Err(StatusError::new(
            500,
            "InternalError",
            "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.",
        )),
    }
}

fn selects(budget: &Value, pod: &Value) -> bool {
    meta::at(budget, &["spec", "selector"])
        .and_then(|s| LabelSelector::from_value(s).ok())
        .is_some_and(|selector| selector.matches_object(pod))
}

/// Takes one disruption from a budget, or refuses with 429.
fn spend(cx: &Context<'_>, entry: &crate::object::Entry, pod: &Value) -> Result<Txn> {
    let mut budget = entry.value.value();
    let number = |path: &[&str]| meta::at(&budget, path).and_then(Value::as_i64).unwrap_or(0);
    let name = meta::name(&budget).to_owned();
    let refuse = |message: String, seconds: u32| {
        StatusError::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", seconds)
            .with_details(Details {
                causes: vec![Cause { reason: "DisruptionBudget".to_owned(), message, field: String::new() }],
                retry_after_seconds: seconds,
                ..Details::default()
            })
    };
    if number(&["status", "observedGeneration"]) < meta::generation(&budget) {
        return Err(refuse(format!("The disruption budget {name} is still being processed by the server."), 10));
    }
    let allowed = number(&["status", "disruptionsAllowed"]);
    if allowed <= 0 {
        let (wanted, found) = (number(&["status", "desiredHealthy"]), number(&["status", "currentHealthy"]));
        return Err(refuse(
            format!("The disruption budget {name} needs {wanted} healthy pods and has {found} currently"),
            0,
        ));
    }
    let status = meta::map_mut(&mut budget, "status");
    status.insert("disruptionsAllowed".to_owned(), json!(allowed - 1));
    let disrupted = status.entry("disruptedPods").or_insert_with(|| json!({}));
    disrupted[meta::name(pod)] = json!(timestamp(cx.now));
    Ok(Txn {
        compares: vec![Compare { key: entry.key.to_string(), expect: Expect::ModRevision(entry.mod_revision) }],
        ops: vec![Op::Put { key: entry.key.to_string(), value: encode(&budget) }],
        durability: Durability::Synced,
    })
}

/// Refused eviction and bad binding name the resource they are about.
#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quality_of_service() {
        let check = |containers: Value, expected: &str| {
            assert_eq!(qos_class(&json!({"spec": {"containers": containers}})), expected);
        };
        check(json!([{"name": "a"}]), "BestEffort");
        check(json!([{"resources": {"requests": {"cpu": "1"}}}]), "Burstable");
        let full = json!({"cpu": "1", "memory": "1Gi"});
        check(json!([{"resources": {"requests": full, "limits": {"cpu": "1000m", "memory": "1024Mi"}}}]), "Guaranteed");
        check(json!([{"resources": {"limits": full, "requests": full}}, {}]), "Burstable");
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
    fn only_images_and_few_others_change() {
        let old = json!({"spec": {"containers": [{"name": "a", "image": "x:1"}], "nodeName": "n"}});
        let mut new = old.clone();
        new["spec"]["containers"][0]["image"] = json!("x:2");
        let mut errors = ErrorList::new();
        validate_update(&new, &old, &Path::new("spec"), &mut errors);
        assert!(errors.is_empty(), "{errors:?}");
        new["spec"]["nodeName"] = json!("m");
        validate_update(&new, &old, &Path::new("spec"), &mut errors);
        assert_eq!(errors.len(), 1);
    }
}
