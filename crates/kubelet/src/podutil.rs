//! Questions about a pod's spec that several parts ask. Pure.

use std::collections::BTreeMap;

use apimachinery::quantity::Quantity;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, EphemeralContainer, ObjectReference, Pod, PodSpec, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity as ApiQuantity;

use crate::pods::ContainerKind;

pub const DEFAULT_GRACE_SECONDS: i64 = 30;

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or("default")
}

/// `name_namespace(uid)`, the form of pods in upstream's messages.
pub fn full_name(pod: &Pod) -> String {
    format!("{}_{}({})", name(pod), namespace(pod), uid(pod))
}

/// The spec; a pod without one has no containers.
pub fn spec(pod: &Pod) -> &PodSpec {
    static EMPTY: std::sync::LazyLock<PodSpec> = std::sync::LazyLock::new(PodSpec::default);
    pod.spec.as_ref().unwrap_or(&EMPTY)
}

pub fn init_containers(pod: &Pod) -> &[Container] {
    spec(pod).init_containers.as_deref().unwrap_or_default()
}

pub fn ephemeral_containers(pod: &Pod) -> &[EphemeralContainer] {
    spec(pod).ephemeral_containers.as_deref().unwrap_or_default()
}

/// An init container that runs as long as the pod (`restartPolicy: Always`).
pub fn is_sidecar(container: &Container) -> bool {
    container.restart_policy.as_deref() == Some("Always")
}

/// The container of that name, with the list it is from.
pub fn find_container<'a>(pod: &'a Pod, name: &str) -> Option<(ContainerKind, &'a Container)> {
    let main = spec(pod).containers.iter().map(|c| (ContainerKind::Main, c));
    let init = init_containers(pod).iter().map(|c| (ContainerKind::Init, c));
    main.chain(init).find(|(_, container)| container.name == name)
}

/// An ephemeral container in the form of the others, whose fields it shares.
pub fn as_container(ephemeral: &EphemeralContainer) -> Container {
    let e = ephemeral.clone();
    Container {
        args: e.args,
        command: e.command,
        env: e.env,
        env_from: e.env_from,
        image: e.image,
        image_pull_policy: e.image_pull_policy,
        name: e.name,
        ports: e.ports,
        resources: e.resources,
        security_context: e.security_context,
        stdin: e.stdin,
        stdin_once: e.stdin_once,
        termination_message_path: e.termination_message_path,
        termination_message_policy: e.termination_message_policy,
        tty: e.tty,
        volume_devices: e.volume_devices,
        volume_mounts: e.volume_mounts,
        working_dir: e.working_dir,
        ..Container::default()
    }
}

pub fn restart_policy(pod: &Pod) -> &str {
    spec(pod).restart_policy.as_deref().unwrap_or("Always")
}

pub fn is_host_network(pod: &Pod) -> bool {
    spec(pod).host_network == Some(true)
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or("Pending")
}

pub fn is_terminal_phase(phase: &str) -> bool {
    matches!(phase, "Succeeded" | "Failed")
}

pub fn deleted_at(pod: &Pod) -> Option<Timestamp> {
    pod.metadata.deletion_timestamp.as_ref().map(|time| time.0)
}

/// The seconds that a pod's containers get to end by themselves.
pub fn grace_seconds(pod: &Pod) -> i64 {
    pod.metadata
        .deletion_grace_period_seconds
        .or(spec(pod).termination_grace_period_seconds)
        .unwrap_or(DEFAULT_GRACE_SECONDS)
        .max(0)
}

/// The reference that events on a container carry.
pub fn container_ref(pod: &Pod, kind: ContainerKind, container: &str) -> ObjectReference {
    let list = match kind {
        ContainerKind::Init => "initContainers",
        ContainerKind::Main => "containers",
        ContainerKind::Ephemeral => "ephemeralContainers",
    };
    ObjectReference { field_path: Some(format!("spec.{list}{{{container}}}")), ..pod_ref(pod) }
}

pub fn pod_ref(pod: &Pod) -> ObjectReference {
    ObjectReference {
        api_version: Some("v1".to_owned()),
        kind: Some("Pod".to_owned()),
        name: pod.metadata.name.clone(),
        namespace: pod.metadata.namespace.clone(),
        uid: pod.metadata.uid.clone(),
        resource_version: pod.metadata.resource_version.clone(),
        field_path: None,
    }
}

pub type Amounts = BTreeMap<String, ApiQuantity>;

fn amount(list: Option<&Amounts>, resource: &str) -> Option<Quantity> {
    Quantity::parse(&list?.get(resource)?.0).ok()
}

pub fn request(resources: Option<&ResourceRequirements>, resource: &str) -> Option<Quantity> {
    amount(resources?.requests.as_ref(), resource)
}

pub fn limit(resources: Option<&ResourceRequirements>, resource: &str) -> Option<Quantity> {
    amount(resources?.limits.as_ref(), resource)
}

/// Upstream's quality of service class: of cpu and memory, over all containers.
pub fn qos_class(pod: &Pod) -> &'static str {
    let all = || spec(pod).containers.iter().chain(init_containers(pod));
    let positive = |quantity: Option<Quantity>| quantity.is_some_and(|q| !q.is_zero());
    let mut any = false;
    let mut guaranteed = true;
    for container in all() {
        let resources = container.resources.as_ref();
        for resource in ["cpu", "memory"] {
            let (request, limit) = (request(resources, resource), limit(resources, resource));
            any |= positive(request) || positive(limit);
            let equal = match (request, limit) {
                (Some(request), Some(limit)) => request == limit,
                // An absent request takes the limit's value.
                (None, Some(_)) => true,
                _ => false,
            };
            guaranteed &= equal && positive(limit);
        }
    }
    match (any, guaranteed) {
        (false, _) => "BestEffort",
        (true, true) => "Guaranteed",
        (true, false) => "Burstable",
    }
}

/// What the scheduler counts for the pod: the greater of the main containers with sidecars and each init container with the
/// sidecars before it, plus overhead.
pub fn pod_total(
    pod: &Pod,
    of: impl Fn(Option<&ResourceRequirements>) -> Option<Quantity>,
    resource: &str,
) -> Quantity {
    let value = |container: &Container| of(container.resources.as_ref()).unwrap_or(Quantity::ZERO);
    let mut running = spec(pod).containers.iter().fold(Quantity::ZERO, |sum, c| sum + value(c));
    let mut sidecars = Quantity::ZERO;
    let mut starting = Quantity::ZERO;
    for container in init_containers(pod) {
        if is_sidecar(container) {
            sidecars += value(container);
            starting = starting.max(sidecars);
        } else {
            starting = starting.max(sidecars + value(container));
        }
    }
    running += sidecars;
    let overhead = amount(spec(pod).overhead.as_ref(), resource).unwrap_or(Quantity::ZERO);
    running.max(starting) + overhead
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(json: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "p"}, "spec": json})).unwrap()
    }

    #[test]
    fn classes_of_service() {
        let with = |resources: serde_json::Value| {
            qos_class(&pod(serde_json::json!({"containers": [{"name": "a", "resources": resources}]})))
        };
        assert_eq!(with(serde_json::json!({})), "BestEffort");
        assert_eq!(with(serde_json::json!({"requests": {"cpu": "0"}})), "BestEffort");
        assert_eq!(with(serde_json::json!({"requests": {"cpu": "1"}})), "Burstable");
        assert_eq!(with(serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}})), "Guaranteed");
        let both =
            serde_json::json!({"limits": {"cpu": "1", "memory": "1Gi"}, "requests": {"cpu": "1000m", "memory": "1Gi"}});
        assert_eq!(with(both), "Guaranteed");
        assert_eq!(with(serde_json::json!({"limits": {"cpu": "1"}})), "Burstable");
    }

    #[test]
    fn an_init_container_counts_with_the_sidecars_started_before_it() {
        let cpu = |value: &str| serde_json::json!({"requests": {"cpu": value}});
        let pod = pod(serde_json::json!({
            "initContainers": [
                {"name": "side", "restartPolicy": "Always", "resources": cpu("1")},
                {"name": "once", "resources": cpu("3")},
            ],
            "containers": [{"name": "main", "resources": cpu("2")}],
        }));
        assert_eq!(pod_total(&pod, |r| request(r, "cpu"), "cpu").milli_value(), 4000);
    }
}
