//! Lifecycle hooks: postStart and preStop by exec, HTTP, TCP or sleep.

use std::time::Duration;

use client::EventType;
use k8s_openapi::api::core::v1::{Container, LifecycleHandler, Pod};

use crate::container::expand;
use crate::podutil;
use crate::probe::{http, net};
use crate::shared::Shared;

/// Hooks have no time limit of their own but this.
const LONGEST: Duration = Duration::from_secs(3600);

/// Runs the postStart hook.
///
/// # Errors
/// The message for the container's waiting state.
pub async fn post_start(shared: &Shared, pod: &Pod, container: &Container, id: &str) -> Result<(), String> {
    let Some(handler) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.post_start.as_ref()) else {
        return Ok(());
    };
    let result = run(shared, pod, container, id, handler, LONGEST).await;
    result.inspect_err(|error| failed(shared, pod, container, "FailedPostStartHook", "PostStartHook", error))
}

/// Runs the preStop hook within `budget`. A failure is told, and the stop goes on.
pub async fn pre_stop(shared: &Shared, pod: &Pod, container: &Container, id: &str, budget: Duration) {
    let Some(handler) = container.lifecycle.as_ref().and_then(|lifecycle| lifecycle.pre_stop.as_ref()) else { return };
    let run = run(shared, pod, container, id, handler, budget);
    match tokio::time::timeout(budget, run).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => failed(shared, pod, container, "FailedPreStopHook", "PreStopHook", &error),
        Err(_) => {
            tracing::info!(pod = %podutil::full_name(pod), container = container.name, "preStop hook used up its time");
        }
    }
}

fn failed(shared: &Shared, pod: &Pod, container: &Container, reason: &str, what: &str, error: &str) {
    let kind = podutil::find_container(pod, &container.name).map_or(crate::ContainerKind::Main, |(kind, _)| kind);
    let object = podutil::container_ref(pod, kind, &container.name);
    tracing::info!(pod = %podutil::full_name(pod), container = container.name, error, "{what} failed");
    shared.recorder.event(&object, EventType::Warning, reason, format!("{what} failed"));
}

async fn run(
    shared: &Shared,
    pod: &Pod,
    container: &Container,
    id: &str,
    handler: &LifecycleHandler,
    limit: Duration,
) -> Result<(), String> {
    let pod_ip = || net::address_of(shared, pod).ok_or_else(|| "failed to find networking container".to_owned());
    if let Some(exec) = &handler.exec {
        let command = exec.command.clone().unwrap_or_default();
        let output = shared.runtime.exec_sync(id, command.clone(), limit).await.map_err(|error| error.message())?;
        if output.exit_code == 0 {
            return Ok(());
        }
        let text = String::from_utf8_lossy(&output.stderr).into_owned() + &String::from_utf8_lossy(&output.stdout);
        let command = expand::quoted_list(&command);
        return Err(format!("command '{command}' exited with {}: {text}", output.exit_code));
    }
    if let Some(action) = &handler.http_get {
        let request = http::Request::of_action(action, container, &pod_ip()?)?;
        return http::get_for_hook(&request, limit).await;
    }
    if let Some(action) = &handler.tcp_socket {
        let host = action.host.clone().filter(|host| !host.is_empty()).map_or_else(pod_ip, Ok)?;
        let port = net::resolve_port(&action.port, container)?;
        return net::connect(&host, port, limit).await.map(drop);
    }
    if let Some(sleep) = &handler.sleep {
        tokio::time::sleep(Duration::from_secs(sleep.seconds.unsigned_abs())).await;
        return Ok(());
    }
    Err(format!("invalid handler: {handler:?}"))
}
