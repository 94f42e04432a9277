//! The phase of a pod from the statuses of its containers (upstream's `getPhase`).

use k8s_openapi::api::core::v1::{ContainerState, ContainerStatus, Pod, PodStatus};

use crate::podutil;

#[derive(Default)]
struct Counts {
    waiting: usize,
    running: usize,
    stopped: usize,
    succeeded: usize,
}

/// `over`: nothing runs any more and nothing will be started.
pub fn phase(pod: &Pod, status: &PodStatus, over: bool) -> &'static str {
    let policy = podutil::restart_policy(pod);
    let statuses = |list: &Option<Vec<ContainerStatus>>| list.clone().unwrap_or_default();
    let init_statuses = statuses(&status.init_container_statuses);

    let (mut initializing, mut failed_init, mut sidecar_running) = (false, false, false);
    for (container, status) in podutil::init_containers(pod).iter().zip(&init_statuses) {
        let state = status.state.clone().unwrap_or_default();
        let sidecar = podutil::is_sidecar(container);
        sidecar_running |= sidecar && state.running.is_some();
        match exit_code(&state) {
            Some(0) => {}
            Some(_) if !sidecar => failed_init = true,
            _ if sidecar => initializing |= status.started != Some(true) && state.terminated.is_none(),
            _ if state.waiting.is_some() && status.last_state.as_ref().is_some_and(failed) => failed_init = true,
            _ => initializing = true,
        }
    }
    let main = count(&statuses(&status.container_statuses));
    let all = podutil::spec(pod).containers.len();
    // Sidecars may start again after the main containers were made; that does not undo the initialization.
    let initializing = initializing && main.running + main.stopped == 0;
    if failed_init && policy == "Never" {
        return "Failed";
    }
    if over {
        let good = main.succeeded == all && !failed_init;
        return if good { "Succeeded" } else { "Failed" };
    }
    if initializing || failed_init || main.waiting > 0 {
        "Pending"
    } else if main.running > 0 {
        "Running"
    } else if main.stopped > 0 {
        match policy {
            _ if sidecar_running => "Running",
            "Never" if main.succeeded == main.stopped => "Succeeded",
            "Never" => "Failed",
            "OnFailure" if main.succeeded == main.stopped => "Succeeded",
            _ => "Running",
        }
    } else {
        "Pending"
    }
}

fn count(statuses: &[ContainerStatus]) -> Counts {
    let mut counts = Counts::default();
    for status in statuses {
        let state = status.state.clone().unwrap_or_default();
        let before = status.last_state.as_ref().is_some_and(|state| state.terminated.is_some());
        if state.running.is_some() {
            counts.running += 1;
        } else if let Some(code) = exit_code(&state) {
            counts.stopped += 1;
            counts.succeeded += usize::from(code == 0);
        } else if before {
            counts.stopped += 1;
        } else {
            counts.waiting += 1;
        }
    }
    counts
}

fn exit_code(state: &ContainerState) -> Option<i32> {
    state.terminated.as_ref().map(|terminated| terminated.exit_code)
}

fn failed(state: &ContainerState) -> bool {
    exit_code(state).is_some_and(|code| code != 0)
}
