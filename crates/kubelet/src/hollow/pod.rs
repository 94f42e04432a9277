//! A pod on a hollow node: what is read of it, what has to be done about it, and the status that follows. Pure.

use std::borrow::Cow;
use std::net::IpAddr;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, Time};
use serde::Deserialize;
use serde_json::{Value, json};

use super::node::{ConditionView, seconds, slim_metadata};

/// What is read of a Pod.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct PodView {
    #[serde(deserialize_with = "slim_metadata")]
    pub metadata: ObjectMeta,
    pub spec: SpecView,
    pub status: StatusView,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct SpecView {
    pub node_name: String,
    pub host_network: bool,
    pub active_deadline_seconds: Option<i64>,
    pub containers: Vec<ContainerView>,
    pub init_containers: Vec<ContainerView>,
    pub readiness_gates: Vec<GateView>,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ContainerView {
    pub name: String,
    pub image: String,
    /// `Always` makes an init container a sidecar.
    pub restart_policy: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct GateView {
    pub condition_type: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct StatusView {
    pub phase: String,
    #[serde(rename = "podIP")]
    pub pod_ip: Option<IpAddr>,
    pub start_time: Option<Time>,
    pub observed_generation: Option<i64>,
    pub conditions: Vec<ConditionView>,
}

impl kube::Resource for PodView {
    type DynamicType = ();
    type Scope = k8s_openapi::NamespaceResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Pod".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "pods".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

/// What a pod needs of its node now.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Plan {
    /// It is as it should be. If it has a deadline, another look is due then.
    Nothing { look_again: Option<Timestamp> },
    /// Its status must say that it runs.
    Run,
    /// Its time is over: it failed.
    Fail,
    /// It was asked to go: its containers end at once, and then the object does.
    End,
    /// It has ended, and its address is free.
    Over,
}

pub fn plan(pod: &PodView, now: Timestamp) -> Plan {
    if pod.metadata.deletion_timestamp.is_some() {
        // With a grace of zero the kubelet's word was given already: what keeps the object are finalizers.
        return if pod.metadata.deletion_grace_period_seconds == Some(0) { Plan::Over } else { Plan::End };
    }
    if matches!(pod.status.phase.as_str(), "Succeeded" | "Failed") {
        return Plan::Over;
    }
    let deadline = deadline(pod);
    if deadline.is_some_and(|deadline| deadline <= now) {
        return Plan::Fail;
    }
    let is_ready = pod.condition("Ready") == Some("True");
    let generation_seen =
        pod.metadata.generation.is_none() || pod.status.observed_generation == pod.metadata.generation;
    if pod.status.phase == "Running" && pod.status.pod_ip.is_some() && is_ready == pod.gates_open() && generation_seen {
        return Plan::Nothing { look_again: deadline };
    }
    Plan::Run
}

fn deadline(pod: &PodView) -> Option<Timestamp> {
    let allowed = SignedDuration::from_secs(pod.spec.active_deadline_seconds?);
    pod.status.start_time.as_ref()?.0.checked_add(allowed).ok()
}

impl PodView {
    fn condition(&self, kind: &str) -> Option<&str> {
        self.status
            .conditions
            .iter()
            .find(|condition| condition.kind == kind)
            .map(|condition| condition.status.as_str())
    }

    /// Whether every readiness gate's condition is true.
    fn gates_open(&self) -> bool {
        self.spec.readiness_gates.iter().all(|gate| self.condition(&gate.condition_type) == Some("True"))
    }

    fn started(&self, now: Timestamp) -> Timestamp {
        self.status.start_time.as_ref().map_or(now, |time| time.0)
    }
}

/// A strategic merge patch of the status of a pod that runs at `ip` on a node at `host`.
pub fn running(pod: &PodView, ip: IpAddr, host: IpAddr, now: Timestamp) -> Value {
    let started = pod.started(now);
    let ready = if pod.gates_open() { "True" } else { "False" };
    let wanted =
        [("PodReadyToStartContainers", "True"), ("Initialized", "True"), ("ContainersReady", "True"), ("Ready", ready)];
    let conditions: Vec<Value> = wanted
        .into_iter()
        .filter(|(kind, status)| pod.condition(kind) != Some(*status))
        .map(|(kind, status)| {
            let mut condition = json!({"type": kind, "status": status, "lastTransitionTime": seconds(now)});
            if status == "False" {
                condition["reason"] = "ReadinessGatesNotReady".into();
            }
            condition
        })
        .collect();
    let running = |container: &ContainerView| {
        container_status(pod, container, json!({"running": {"startedAt": seconds(started)}}), true)
    };
    let init = |container: &ContainerView| {
        if container.restart_policy == "Always" {
            return running(container);
        }
        container_status(pod, container, terminated(started, started, "Completed", 0), true)
    };
    let mut status = json!({
        "phase": "Running", "conditions": conditions, "startTime": seconds(started),
        "podIP": ip.to_string(), "podIPs": [{"ip": ip.to_string()}],
        "hostIP": host.to_string(), "hostIPs": [{"ip": host.to_string()}],
        "containerStatuses": pod.spec.containers.iter().map(running).collect::<Vec<_>>(),
    });
    if !pod.spec.init_containers.is_empty() {
        status["initContainerStatuses"] = pod.spec.init_containers.iter().map(init).collect();
    }
    patch(pod, status)
}

/// A patch of the status of a pod that was asked to go: its containers exited with success.
pub fn ended(pod: &PodView, now: Timestamp) -> Value {
    over(pod, now, "Succeeded", "Completed", 0)
}

/// A patch of the status of a pod that ran into its deadline.
pub fn failed(pod: &PodView, now: Timestamp) -> Value {
    let mut patch = over(pod, now, "Failed", "Error", 137);
    patch["status"]["reason"] = "DeadlineExceeded".into();
    patch["status"]["message"] = "Pod was active on the node longer than the specified deadline".into();
    patch
}

fn over(pod: &PodView, now: Timestamp, phase: &str, reason: &str, exit_code: i32) -> Value {
    let started = pod.started(now);
    let why = if phase == "Succeeded" { "PodCompleted" } else { "PodFailed" };
    let condition =
        |kind: &str| json!({"type": kind, "status": "False", "reason": why, "lastTransitionTime": seconds(now)});
    let containers = pod.spec.containers.iter();
    let ended = |container| container_status(pod, container, terminated(started, now, reason, exit_code), false);
    let status = json!({
        "phase": phase, "conditions": [condition("ContainersReady"), condition("Ready")],
        "containerStatuses": containers.map(ended).collect::<Vec<_>>(),
    });
    patch(pod, status)
}

/// With the UID, so that a pod of the same name that came later is not touched.
fn patch(pod: &PodView, mut status: Value) -> Value {
    if let Some(generation) = pod.metadata.generation {
        status["observedGeneration"] = generation.into();
    }
    json!({"metadata": {"uid": pod.metadata.uid}, "status": status})
}

fn terminated(started: Timestamp, finished: Timestamp, reason: &str, exit_code: i32) -> Value {
    let (started, finished) = (seconds(started), seconds(finished));
    json!({"terminated": {"startedAt": started, "finishedAt": finished, "reason": reason, "exitCode": exit_code}})
}

/// `fine`: it runs, or has done what an init container is for.
fn container_status(pod: &PodView, container: &ContainerView, state: Value, fine: bool) -> Value {
    let runs = state.get("running").is_some();
    json!({
        "name": container.name, "image": container.image, "imageID": container.image, "restartCount": 0,
        "containerID": format!("hollow://{}/{}", pod.metadata.uid.as_deref().unwrap_or_default(), container.name),
        "ready": fine, "started": runs, "state": state,
    })
}

/// What the final deletion says: at once, and this very pod.
pub fn delete_options(pod: &PodView) -> Value {
    json!({
        "apiVersion": "v1", "kind": "DeleteOptions", "gracePeriodSeconds": 0,
        "preconditions": {"uid": pod.metadata.uid},
    })
}

pub fn path(pod: &PodView) -> String {
    let text = |value: &Option<String>| value.clone().unwrap_or_default();
    format!("/api/v1/namespaces/{}/pods/{}", text(&pod.metadata.namespace), text(&pod.metadata.name))
}

#[cfg(test)]
#[path = "pod_tests.rs"]
mod tests;
