//! Starting one container: image, configuration, creation, start, postStart hook. Each failure becomes a waiting reason and
//! an event in upstream's words.

use std::sync::Arc;

use client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod};

use super::memory::StartFailure;
use super::stop::{self, Told};
use super::worker::Worker;
use super::{hooks, sandbox};
use crate::container::spec::{self, Request};
use crate::error::{Error, Result};
use crate::pods::ContainerKind;
use crate::podutil;
use crate::{images, runtime};

enum Failure {
    /// The image could not be had: reason, message, and whether a pull was tried.
    Image(images::ImageError),
    Other(StartFailure),
    Given(Error),
}

impl From<Error> for Failure {
    fn from(error: Error) -> Self {
        Failure::Given(error)
    }
}

/// Starts the container. What can be told to the user is remembered and told; only what stops the whole worker is an error.
pub async fn start(worker: &mut Worker, pod: &Arc<Pod>, kind: ContainerKind, name: &str) -> Result<()> {
    let Some(container) = container_of(pod, kind, name) else { return Ok(()) };
    let now = Timestamp::now();
    let previous = worker.observed.latest(name).cloned();
    worker.memory.attempt(name, previous.as_ref(), now);
    match Box::pin(try_start(worker, pod, kind, &container)).await {
        Ok(()) => worker.memory.succeeded(name),
        Err(Failure::Given(error)) => return Err(error),
        Err(Failure::Image(error)) => {
            let object = podutil::container_ref(pod, kind, name);
            worker.shared.recorder.event(&object, EventType::Warning, "Failed", format!("Error: {}", error.reason));
            let failure = StartFailure { reason: error.reason, message: error.message };
            let pulled = error.pulled.then_some(container.image.as_deref().unwrap_or_default());
            worker.memory.failed(name, failure, pulled, Timestamp::now());
        }
        Err(Failure::Other(failure)) => {
            let object = podutil::container_ref(pod, kind, name);
            worker.shared.recorder.event(&object, EventType::Warning, "Failed", format!("Error: {}", failure.message));
            worker.memory.failed(name, failure, None, Timestamp::now());
        }
    }
    Ok(())
}

fn container_of(pod: &Pod, kind: ContainerKind, name: &str) -> Option<Container> {
    match kind {
        ContainerKind::Ephemeral => {
            podutil::ephemeral_containers(pod).iter().find(|c| c.name == name).map(podutil::as_container)
        }
        _ => podutil::find_container(pod, name).map(|(_, container)| container.clone()),
    }
}

async fn try_start(
    worker: &mut Worker,
    pod: &Arc<Pod>,
    kind: ContainerKind,
    container: &Container,
) -> Result<(), Failure> {
    let shared = worker.shared.clone();
    let Some(sandbox) = worker.observed.ready_sandbox().cloned() else { return Ok(()) };
    let sandbox_config = sandbox::config_for_containers(&shared, pod, sandbox.attempt);
    let object = podutil::container_ref(pod, kind, &container.name);

    let ensure = Box::pin(images::ensure(&shared, pod, container, &object, &worker.objects, &sandbox_config));
    let image = worker.interrupt().or_cancelled(async { Ok(ensure.await) }).await?.map_err(Failure::Image)?;

    let restart_count = restart_count(worker, &container.name);
    let request = Request {
        shared: &shared,
        pod,
        container,
        image: &image,
        pod_ips: &sandbox.ips,
        restart_count,
        volumes: &worker.volumes,
        objects: &worker.objects,
        target_id: target_id(worker, pod, &container.name),
    };
    let build = Box::pin(spec::build(&request));
    let made = worker.interrupt().or_cancelled(async { Ok(build.await) }).await?;
    let config = made.map_err(|error| refused("CreateContainerConfigError", error.to_string()))?;

    let begun = tokio::time::Instant::now();
    let created = shared.runtime.create_container(&sandbox.id, config, sandbox_config).await;
    let id = created.map_err(|error| refused("CreateContainerError", error.message()))?;
    shared.store.claim_runtime_id(podutil::uid(pod), &id);
    shared.recorder.event(&object, EventType::Normal, "Created", format!("Created container: {}", container.name));
    let creation = begun.elapsed();
    let started = shared.runtime.start_container(&id).await;
    tracing::debug!(
        pod = %podutil::full_name(pod), container = container.name, ?creation, took = ?begun.elapsed(), "container started"
    );
    started.map_err(|error| refused("RunContainerError", error.message()))?;
    worker.given(pod, &container.name)?;
    shared.recorder.event(&object, EventType::Normal, "Started", format!("Started container {}", container.name));

    if container.lifecycle.as_ref().is_some_and(|lifecycle| lifecycle.post_start.is_some()) {
        after_start(worker, pod, container, &id).await?;
    }
    Ok(())
}

async fn after_start(worker: &mut Worker, pod: &Arc<Pod>, container: &Container, id: &str) -> Result<(), Failure> {
    let shared = worker.shared.clone();
    worker.look(pod).await?;
    worker.publish(pod, Some(id));
    let hook = async { Ok(hooks::post_start(&shared, pod, container, id).await) };
    if let Err(message) = worker.interrupt().or_cancelled(hook).await? {
        let grace = std::time::Duration::from_secs(podutil::grace_seconds(pod).unsigned_abs());
        let (mut told, event) = (Told::default(), Some("FailedPostStartHook".to_owned()));
        stop::stop_container(&shared, pod, &container.name, id, grace, event, &mut told).await?;
        return Err(refused("PostStartHookError", message));
    }
    Ok(())
}

fn refused(reason: &'static str, message: String) -> Failure {
    Failure::Other(StartFailure { reason, message })
}

/// One more than the newest container of that name has, or than the API remembers if none is left.
fn restart_count(worker: &Worker, name: &str) -> u32 {
    if let Some(latest) = worker.observed.latest(name) {
        return latest.restart_count + 1;
    }
    let status = &worker.status;
    let lists = [&status.container_statuses, &status.init_container_statuses, &status.ephemeral_container_statuses];
    let known = lists.into_iter().flatten().flatten().find(|status| status.name == name);
    known.map_or(0, |status| u32::try_from(status.restart_count).unwrap_or(0))
}

/// The container whose processes an ephemeral container is to see.
fn target_id(worker: &Worker, pod: &Pod, name: &str) -> Option<String> {
    let ephemeral = podutil::ephemeral_containers(pod).iter().find(|container| container.name == name)?;
    let target = ephemeral.target_container_name.as_deref().filter(|target| !target.is_empty())?;
    let view: &runtime::ContainerView = worker.observed.latest(target)?;
    Some(view.id.clone())
}
