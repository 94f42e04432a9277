//! The status of each container, from the runtime's newest and second newest container of that name.

use k8s_openapi::api::core::v1::{
    Container, ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus,
    ResourceRequirements, VolumeMountStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::Inputs;
use crate::pod::plan::should_start;
use crate::pods::{ContainerKind, RunState};
use crate::podutil;
use crate::runtime::ContainerView;

/// A container that vanished is reported as killed.
const LOST_EXIT_CODE: i32 = 137;
const LOST_REASON: &str = "ContainerStatusUnknown";

pub fn main(inputs: &Inputs<'_>) -> Vec<ContainerStatus> {
    let containers = &podutil::spec(inputs.pod).containers;
    let mut statuses: Vec<_> = containers.iter().map(|c| one(inputs, c, ContainerKind::Main)).collect();
    statuses.sort_by(|a, b| a.name.cmp(&b.name));
    statuses
}

pub fn init(inputs: &Inputs<'_>) -> Option<Vec<ContainerStatus>> {
    let containers = podutil::init_containers(inputs.pod);
    (!containers.is_empty()).then(|| containers.iter().map(|c| one(inputs, c, ContainerKind::Init)).collect())
}

pub fn ephemeral(inputs: &Inputs<'_>) -> Option<Vec<ContainerStatus>> {
    let containers = podutil::ephemeral_containers(inputs.pod);
    let status = |c| one(inputs, &podutil::as_container(c), ContainerKind::Ephemeral);
    (!containers.is_empty()).then(|| containers.iter().map(status).collect())
}

fn one(inputs: &Inputs<'_>, container: &Container, kind: ContainerKind) -> ContainerStatus {
    let previous = previous_of(inputs, kind, &container.name);
    let mut of_name = inputs.observed.containers.iter().filter(|c| c.name == container.name);
    let mut status = match of_name.next() {
        Some(latest) => {
            let mut status = from_view(inputs, container, latest);
            let before = of_name.find(|c| c.state == RunState::Exited).map(|c| terminated(inputs, c));
            // The container before may have been collected, or lost with the runtime's memory.
            let remembered = || previous.and_then(|p| p.last_state.clone()).and_then(|state| state.terminated);
            status.last_state = before.or_else(remembered).map(of_terminated).or(Some(ContainerState::default()));
            status
        }
        None => unmade(inputs, container, kind, previous),
    };
    if kind != ContainerKind::Ephemeral {
        show_waiting(inputs, container, kind, &mut status);
    }
    readiness(inputs, container, kind, &mut status);
    status
}

fn previous_of<'a>(inputs: &Inputs<'a>, kind: ContainerKind, name: &str) -> Option<&'a ContainerStatus> {
    let list = match kind {
        ContainerKind::Init => &inputs.previous.init_container_statuses,
        ContainerKind::Main => &inputs.previous.container_statuses,
        ContainerKind::Ephemeral => &inputs.previous.ephemeral_container_statuses,
    };
    list.as_ref()?.iter().find(|status| status.name == name)
}

fn from_view(inputs: &Inputs<'_>, container: &Container, view: &ContainerView) -> ContainerStatus {
    let state = match view.state {
        RunState::Running => {
            let started_at = view.started_at.or(Some(view.created_at)).map(Time);
            ContainerState { running: Some(ContainerStateRunning { started_at }), ..ContainerState::default() }
        }
        RunState::Exited => of_terminated(terminated(inputs, view)),
        RunState::Created => default_waiting(inputs),
        RunState::Unknown => of_terminated(lost("The container's state is unknown to the runtime")),
    };
    let actuated =
        podutil::find_container(inputs.actuated, &container.name).map_or(container, |(_, actuated)| actuated);
    let actual = if view.state == RunState::Running { &actuated.resources } else { &container.resources }.as_ref();
    ContainerStatus {
        name: container.name.clone(),
        container_id: Some(format!("{}://{}", inputs.runtime_name, view.id)),
        image: view.image.clone(),
        image_id: view.image_ref.clone(),
        restart_count: i32::try_from(view.restart_count).unwrap_or(i32::MAX),
        state: Some(state),
        allocated_resources: container.resources.as_ref().and_then(|resources| resources.requests.clone()),
        resources: Some(without_claims(actual.cloned().unwrap_or_default())),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    }
}

/// No container of that name exists: not made yet, or lost.
fn unmade(
    inputs: &Inputs<'_>,
    container: &Container,
    kind: ContainerKind,
    previous: Option<&ContainerStatus>,
) -> ContainerStatus {
    let mut status = ContainerStatus {
        name: container.name.clone(),
        image: container.image.clone().unwrap_or_default(),
        state: Some(default_waiting(inputs)),
        last_state: Some(ContainerState::default()),
        volume_mounts: volume_mounts(container),
        ..ContainerStatus::default()
    };
    let Some(previous) = previous else { return ended_unmade(inputs, kind, status) };
    status.restart_count = previous.restart_count;
    status.last_state.clone_from(&previous.last_state);
    let state = previous.state.clone().unwrap_or_default();
    if let Some(terminated) = state.terminated {
        let done_for_good = kind == ContainerKind::Init && terminated.exit_code == 0
            || podutil::restart_policy(inputs.pod) == "Never"
            || inputs.ending.finished;
        if done_for_good {
            status.container_id.clone_from(&previous.container_id);
            status.image_id.clone_from(&previous.image_id);
            status.state = Some(of_terminated(terminated));
        } else {
            status.last_state = Some(of_terminated(terminated));
        }
    } else if state.running.is_some() {
        let lost =
            lost("The container could not be located when the pod was deleted.  The container used to be Running");
        if inputs.ending.finished {
            status.state = Some(of_terminated(lost));
        } else {
            status.last_state = Some(of_terminated(lost));
            status.restart_count += 1;
        }
        return status;
    }
    ended_unmade(inputs, kind, status)
}

/// Once the pod is over, a container whose turn had come waits no longer; one whose turn had not come is shown as waiting for
/// the initialization that never ended.
fn ended_unmade(inputs: &Inputs<'_>, kind: ContainerKind, mut status: ContainerStatus) -> ContainerStatus {
    let waits = status.state.as_ref().is_some_and(|state| state.waiting.is_some());
    if inputs.ending.finished && waits && turn_had_come(inputs, kind, &status.name) {
        let message = "The container could not be located when the pod was terminated";
        status.state = Some(of_terminated(lost(message)));
    }
    status
}

fn turn_had_come(inputs: &Inputs<'_>, kind: ContainerKind, name: &str) -> bool {
    let made = |name: &str| inputs.observed.latest(name).is_some();
    let init = podutil::init_containers(inputs.pod);
    let initialized = podutil::spec(inputs.pod).containers.iter().any(|container| made(&container.name));
    match kind {
        ContainerKind::Init => {
            let later = init.iter().skip_while(|container| container.name != name).skip(1);
            initialized || later.into_iter().any(|container| made(&container.name))
        }
        _ => initialized,
    }
}

fn default_waiting(inputs: &Inputs<'_>) -> ContainerState {
    let has_init = !podutil::init_containers(inputs.pod).is_empty();
    waiting(ContainerStateWaiting {
        reason: Some(if has_init { "PodInitializing" } else { "ContainerCreating" }.to_owned()),
        message: None,
    })
}

/// A container that is to be started again shows why it is not running yet.
fn show_waiting(inputs: &Inputs<'_>, container: &Container, kind: ContainerKind, status: &mut ContainerStatus) {
    let Some(why) = inputs.waiting.get(&container.name) else { return };
    if inputs.ending.finished {
        return;
    }
    let latest = inputs.observed.latest(&container.name);
    let restarts = should_start(inputs.pod, container, latest)
        || (kind == ContainerKind::Init && latest.is_some_and(|c| c.state == RunState::Exited));
    if !restarts {
        return;
    }
    let state = status.state.take().unwrap_or_default();
    if let Some(terminated) = state.terminated {
        status.last_state = Some(of_terminated(terminated));
    }
    status.state = Some(waiting(why.clone()));
}

fn readiness(inputs: &Inputs<'_>, container: &Container, kind: ContainerKind, status: &mut ContainerStatus) {
    let state = status.state.clone().unwrap_or_default();
    let latest = inputs.observed.latest(&container.name);
    let id = latest.map(|view| view.id.as_str()).unwrap_or_default();
    let verdicts = inputs.verdicts.get(id).copied().unwrap_or_default();
    let hooked = inputs.starting == Some(id);
    let started =
        state.running.is_some() && !hooked && (container.startup_probe.is_none() || verdicts.startup == Some(true));
    if kind == ContainerKind::Ephemeral {
        status.ready = false;
        return;
    }
    status.started = Some(started);
    status.ready = if kind == ContainerKind::Init && !podutil::is_sidecar(container) {
        state.terminated.is_some_and(|terminated| terminated.exit_code == 0)
    } else {
        started && (container.readiness_probe.is_none() || verdicts.readiness == Some(true))
    };
}

fn terminated(inputs: &Inputs<'_>, view: &ContainerView) -> ContainerStateTerminated {
    let message = inputs.messages.get(&view.id).cloned().unwrap_or_else(|| view.message.clone());
    // Times of a container that never ran are the epoch upstream.
    let epoch = jiff::Timestamp::UNIX_EPOCH;
    ContainerStateTerminated {
        container_id: Some(format!("{}://{}", inputs.runtime_name, view.id)),
        exit_code: view.exit_code,
        reason: Some(view.reason.clone()).filter(|reason| !reason.is_empty()),
        message: Some(message).filter(|message| !message.is_empty()),
        started_at: Some(Time(view.started_at.unwrap_or(epoch))),
        finished_at: Some(Time(view.finished_at.unwrap_or(epoch))),
        signal: None,
    }
}

fn lost(message: &str) -> ContainerStateTerminated {
    ContainerStateTerminated {
        exit_code: LOST_EXIT_CODE,
        reason: Some(LOST_REASON.to_owned()),
        message: Some(message.to_owned()),
        ..ContainerStateTerminated::default()
    }
}

fn of_terminated(terminated: ContainerStateTerminated) -> ContainerState {
    ContainerState { terminated: Some(terminated), ..ContainerState::default() }
}

fn waiting(waiting: ContainerStateWaiting) -> ContainerState {
    ContainerState { waiting: Some(waiting), ..ContainerState::default() }
}

fn without_claims(resources: ResourceRequirements) -> ResourceRequirements {
    ResourceRequirements { claims: None, ..resources }
}

fn volume_mounts(container: &Container) -> Option<Vec<VolumeMountStatus>> {
    let mounts = container.volume_mounts.as_ref()?;
    let status = |mount: &k8s_openapi::api::core::v1::VolumeMount| {
        let read_only = mount.read_only == Some(true);
        VolumeMountStatus {
            name: mount.name.clone(),
            mount_path: mount.mount_path.clone(),
            read_only: read_only.then_some(true),
            recursive_read_only: read_only.then(|| "Disabled".to_owned()),
            ..VolumeMountStatus::default()
        }
    };
    Some(mounts.iter().map(status).collect())
}
