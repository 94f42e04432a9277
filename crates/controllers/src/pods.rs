//! Questions about one pod that several controllers ask. Pure.

use std::cmp::Ordering;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodCondition};

/// Running, or on its way there: not finished and not being deleted (upstream's `IsPodActive`).
pub fn is_active(pod: &Pod) -> bool {
    !is_finished(pod) && pod.metadata.deletion_timestamp.is_none()
}

/// Succeeded or failed.
pub fn is_finished(pod: &Pod) -> bool {
    matches!(phase(pod), "Succeeded" | "Failed")
}

pub fn phase(pod: &Pod) -> &str {
    pod.status.as_ref().and_then(|status| status.phase.as_deref()).unwrap_or_default()
}

pub fn node_name(pod: &Pod) -> Option<&str> {
    pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
}

pub fn condition<'a>(pod: &'a Pod, type_: &str) -> Option<&'a PodCondition> {
    pod.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

pub fn is_ready(pod: &Pod) -> bool {
    condition(pod, "Ready").is_some_and(|ready| ready.status == "True")
}

/// Since when the pod has been ready, if it is and its condition says.
pub fn ready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = condition(pod, "Ready").filter(|ready| ready.status == "True")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

/// Whether a pod counts as available, or when it will if nothing happens.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Availability {
    Available,
    After(Duration),
    NotReady,
}

/// A pod is available once it has been ready for `min_ready_seconds`.
pub fn availability(pod: &Pod, min_ready_seconds: i32, now: Timestamp) -> Availability {
    if !is_ready(pod) {
        return Availability::NotReady;
    }
    if min_ready_seconds <= 0 {
        return Availability::Available;
    }
    let Some(since) = ready_since(pod) else { return Availability::NotReady };
    let due_seconds = since.as_second().saturating_add(i64::from(min_ready_seconds));
    // Condition times have whole seconds; looking again just after the due second is soon enough.
    match due_seconds - now.as_second() {
        ..=0 => Availability::Available,
        seconds => Availability::After(Duration::from_secs(seconds.unsigned_abs())),
    }
}

/// Restarts of the container that restarted most: ordinary ones, then restartable init containers ("sidecars").
pub fn most_restarts(pod: &Pod) -> (i32, i32) {
    let Some(status) = &pod.status else { return (0, 0) };
    let max = |list: &Option<Vec<k8s_openapi::api::core::v1::ContainerStatus>>| {
        list.iter().flatten().map(|container| container.restart_count).max().unwrap_or(0)
    };
    (max(&status.container_statuses), max(&status.init_container_statuses))
}

/// Orders pods by what is lost with them: unbound before bound, pending before running, unready before ready, and younger
/// before older (upstream's ActivePods).
pub fn least_advanced(a: &Pod, b: &Pod) -> Ordering {
    let rank = |pod: &Pod| match phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    // Without a time counts as the youngest.
    let younger = |a: Option<Timestamp>, b: Option<Timestamp>| match (a, b) {
        (Some(a), Some(b)) => b.cmp(&a),
        (a, b) => a.is_some().cmp(&b.is_some()),
    };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    (node_name(a).is_some(), rank(a), is_ready(a))
        .cmp(&(node_name(b).is_some(), rank(b), is_ready(b)))
        .then_with(|| if is_ready(a) { younger(ready_since(a), ready_since(b)) } else { Ordering::Equal })
        .then_with(|| most_restarts(b).cmp(&most_restarts(a)))
        .then_with(|| younger(created(a), created(b)))
}

/// The pods of each node.
pub fn by_node(pods: &client::Informer<Pod>) -> client::Index<Pod> {
    pods.index("controllers/node", |pod: &Pod| node_name(pod).map(str::to_owned).into_iter().collect())
}
