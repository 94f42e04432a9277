//! Stopping containers and whole pods: preStop hook, stop signal, kill, within one budget of time.

use std::collections::HashSet;
use std::time::Duration;

use client::EventType;
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Container, Pod};
use tokio::time::Instant;

use super::hooks;
use super::plan::KillReason;
use crate::error::Result;
use crate::pods::{ContainerKind, RunState};
use crate::podutil;
use crate::runtime::{ContainerView, Observed};
use crate::shared::Shared;

/// Even an exhausted budget leaves a process this long to react to its stop signal.
const LEAST_GRACE: Duration = Duration::from_secs(2);

/// What has been said and run already, so that a kill that is begun anew (with less time) repeats neither.
#[derive(Default)]
pub struct Told {
    events: HashSet<String>,
    hooks: HashSet<String>,
}

/// The grace of a container that a probe condemned: the probe's own, else the pod's.
pub fn grace_of(pod: &Pod, container: &str, reason: KillReason) -> Duration {
    let spec = podutil::find_container(pod, container).map(|(_, container)| container);
    let probe = spec.and_then(|container| match reason {
        KillReason::Liveness => container.liveness_probe.as_ref(),
        KillReason::Startup => container.startup_probe.as_ref(),
        KillReason::Changed | KillReason::Resized | KillReason::Unknown => None,
    });
    let own = probe.and_then(|probe| probe.termination_grace_period_seconds);
    Duration::from_secs(own.unwrap_or_else(|| podutil::grace_seconds(pod)).unsigned_abs())
}

/// Stops all containers of the pod, sidecars after the others, then its sandboxes.
pub async fn stop_pod(shared: &Shared, pod: &Pod, observed: &Observed, grace: Duration, told: &mut Told) -> Result<()> {
    let deadline = Instant::now() + grace;
    let running = |view: &&ContainerView| matches!(view.state, RunState::Running | RunState::Unknown);
    let (sidecars, others): (Vec<_>, Vec<_>) =
        observed.containers.iter().filter(running).partition(|view| is_sidecar(pod, &view.name));
    stop_together(shared, pod, &others, grace, told).await?;
    // In reverse order of the spec, each once the one after it has ended.
    for container in podutil::init_containers(pod).iter().rev() {
        let of_name: Vec<_> = sidecars.iter().copied().filter(|view| view.name == container.name).collect();
        let left = deadline.saturating_duration_since(Instant::now());
        stop_together(shared, pod, &of_name, left, told).await?;
    }
    let ready = observed.sandboxes.iter().filter(|sandbox| sandbox.ready);
    for stopped in join_all(ready.map(|sandbox| shared.runtime.stop_pod_sandbox(&sandbox.id))).await {
        ignore_missing(stopped)?;
    }
    Ok(())
}

async fn stop_together(
    shared: &Shared,
    pod: &Pod,
    views: &[&ContainerView],
    grace: Duration,
    told: &mut Told,
) -> Result<()> {
    let begun: Vec<_> = views.iter().map(|view| begin(shared, pod, &view.name, &view.id, None, told)).collect();
    let stops = views.iter().zip(begun).map(|(view, hook)| carry_out(shared, pod, &view.name, &view.id, grace, hook));
    join_all(stops).await.into_iter().collect()
}

/// Stops one container of a pod that goes on. `message` replaces the usual words of the event.
pub async fn stop_container(
    shared: &Shared,
    pod: &Pod,
    name: &str,
    id: &str,
    grace: Duration,
    message: Option<String>,
    told: &mut Told,
) -> Result<()> {
    let hook = begin(shared, pod, name, id, message, told);
    carry_out(shared, pod, name, id, grace, hook).await
}

/// Says what is about to happen; returns the container if its preStop hook is still to be run.
fn begin<'a>(
    shared: &Shared,
    pod: &'a Pod,
    name: &str,
    id: &str,
    message: Option<String>,
    told: &mut Told,
) -> Option<&'a Container> {
    let found = podutil::find_container(pod, name);
    if told.events.insert(id.to_owned()) {
        let kind = found.map_or(ContainerKind::Ephemeral, |(kind, _)| kind);
        let message = message.unwrap_or_else(|| format!("Stopping container {name}"));
        let object = podutil::container_ref(pod, kind, name);
        shared.recorder.event(&object, EventType::Normal, "Killing", message);
    }
    let has_hook = |container: &&Container| container.lifecycle.as_ref().is_some_and(|l| l.pre_stop.is_some());
    let container = found.map(|(_, container)| container).filter(has_hook)?;
    told.hooks.insert(id.to_owned()).then_some(container)
}

async fn carry_out(
    shared: &Shared,
    pod: &Pod,
    name: &str,
    id: &str,
    grace: Duration,
    hook: Option<&Container>,
) -> Result<()> {
    let begun = Instant::now();
    if let Some(container) = hook.filter(|_| !grace.is_zero()) {
        hooks::pre_stop(shared, pod, container, id, grace).await;
    }
    let mut left = grace.saturating_sub(begun.elapsed());
    if left < LEAST_GRACE && !grace.is_zero() {
        left = LEAST_GRACE;
    }
    tracing::debug!(pod = %podutil::full_name(pod), container = name, grace = ?left, "stopping container");
    ignore_missing(shared.runtime.stop_container(id, left).await)
}

fn is_sidecar(pod: &Pod, name: &str) -> bool {
    podutil::init_containers(pod).iter().any(|container| container.name == name && podutil::is_sidecar(container))
}

fn ignore_missing(result: cri::Result<()>) -> Result<()> {
    match result {
        Err(error) if error.is_not_found() => Ok(()),
        other => Ok(other?),
    }
}
