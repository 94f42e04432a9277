//! What to do next for a pod that ought to run: a pure function of the spec, the runtime's state, the probes' verdicts and
//! the memory of failed starts. It follows upstream's `computePodActions`.
//!
//! The executor carries out the actions in order and then looks and plans again, so a plan need not think ahead.

use std::collections::HashMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, ContainerRestartRule, Pod};

use super::resize::{Actuation, Resize};
use crate::pods::{ContainerKind, RunState};
use crate::podutil;
use crate::runtime::labels::container_hash;
use crate::runtime::{ContainerView, Observed};

/// What the probes of one running container say. None means not known yet, or not asked.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdicts {
    pub startup: Option<bool>,
    pub liveness: Option<bool>,
    pub readiness: Option<bool>,
}

/// Why a container is stopped while its pod goes on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum KillReason {
    Changed,
    /// Its resize policy wants a restart.
    Resized,
    Liveness,
    Startup,
    /// The runtime does not know whether it runs.
    Unknown,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Action {
    /// Stop all containers and sandboxes; what follows needs a new sandbox.
    StopSandboxes,
    CreateSandbox {
        attempt: u32,
    },
    Kill {
        id: String,
        name: String,
        reason: KillReason,
        message: String,
    },
    Start {
        kind: ContainerKind,
        name: String,
    },
    /// Give running containers what is allocated to them.
    Resize,
    /// All containers have ended and none will be started again.
    Finish,
}

/// Containers that ought to be started, but not before that time.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Plan {
    pub actions: Vec<Action>,
    /// Containers that wait for their gate to open; the sandbox's name is empty.
    pub blocked: Vec<String>,
    /// When to plan again if nothing happens before.
    pub wake_at: Option<Timestamp>,
}

/// When something may be tried again, by container name; the empty name is the sandbox's.
pub trait Gate {
    /// The time until which a start of `container`, whose predecessor is `previous`, must wait.
    fn blocked(&self, container: &str, previous: Option<&ContainerView>, now: Timestamp) -> Option<Timestamp>;
}

pub struct Inputs<'a> {
    pub pod: &'a Pod,
    pub observed: &'a Observed,
    /// By container id.
    pub verdicts: &'a HashMap<String, Verdicts>,
    pub gate: &'a dyn Gate,
    pub resize: &'a Resize,
    pub now: Timestamp,
}

pub fn plan(inputs: &Inputs<'_>) -> Plan {
    let mut planner = Planner { inputs, plan: Plan::default() };
    planner.run();
    planner.resize();
    planner.plan
}

/// Whether the pod needs a new sandbox, and which attempt it would be.
pub fn sandbox_wanted(pod: &Pod, observed: &Observed) -> Option<u32> {
    let Some(newest) = observed.sandboxes.first() else { return Some(0) };
    let ready = observed.sandboxes.iter().filter(|sandbox| sandbox.ready).count();
    let changed = newest.host_network != podutil::is_host_network(pod);
    let unaddressed = newest.ips.is_empty() && !newest.host_network;
    // What is left of a failed attempt keeps its name, so the number must be higher than any in use.
    let last = observed.sandboxes.iter().map(|sandbox| sandbox.attempt).max().unwrap_or(0);
    (ready != 1 || !newest.ready || changed || unaddressed).then_some(last + 1)
}

/// Whether a container that does not run should be started (again), by the pod's and its own restart policy.
pub fn should_start(pod: &Pod, container: &Container, latest: Option<&ContainerView>) -> bool {
    if podutil::deleted_at(pod).is_some() {
        return false;
    }
    let Some(latest) = latest else { return true };
    match latest.state {
        RunState::Running => false,
        RunState::Created | RunState::Unknown => true,
        RunState::Exited => restarts_after(pod, container, latest.exit_code),
    }
}

fn restarts_after(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    let matching = |rule: &ContainerRestartRule| {
        let Some(codes) = &rule.exit_codes else { return false };
        let listed = codes.values.as_deref().unwrap_or_default().contains(&exit_code);
        rule.action == "Restart" && (listed == (codes.operator == "In"))
    };
    if container.restart_policy_rules.iter().flatten().any(matching) {
        return true;
    }
    match container.restart_policy.as_deref().unwrap_or(podutil::restart_policy(pod)) {
        "Never" => false,
        "OnFailure" => exit_code != 0,
        _ => true,
    }
}

/// Whether the pod's init containers are done with: a main container was made in the present sandbox.
pub fn has_initialized(pod: &Pod, observed: &Observed) -> bool {
    podutil::spec(pod).containers.iter().any(|container| observed.active(&container.name).is_some())
}

struct Planner<'a> {
    inputs: &'a Inputs<'a>,
    plan: Plan,
}

impl Planner<'_> {
    fn run(&mut self) {
        let Inputs { pod, observed, .. } = *self.inputs;
        if let Some(attempt) = sandbox_wanted(pod, observed) {
            self.replace_sandbox(attempt);
            return;
        }
        self.start_ephemeral();
        let initialized = has_initialized(pod, observed);
        if initialized {
            // Sidecars are looked at after the main containers have decided whether the pod goes on.
            if self.main_containers() {
                self.sidecars();
            }
        } else if self.init_containers() {
            self.main_containers();
        }
    }

    fn replace_sandbox(&mut self, attempt: u32) {
        let Inputs { pod, observed, now, gate, .. } = *self.inputs;
        let containers = &podutil::spec(pod).containers;
        let made_before = attempt > 0 && !observed.containers.is_empty();
        let any_to_start = containers.iter().any(|c| should_start(pod, c, self.settled(&c.name).as_ref()));
        let initialized = containers.iter().any(|c| observed.latest(&c.name).is_some());
        let over = made_before && (podutil::restart_policy(pod) == "Never" || (initialized && !any_to_start));
        if over {
            return self.plan.actions.push(Action::Finish);
        }
        if !observed.is_stopped() {
            self.plan.actions.push(Action::StopSandboxes);
        }
        match gate.blocked("", None, now) {
            Some(until) => self.wait("", until),
            None => self.plan.actions.push(Action::CreateSandbox { attempt }),
        }
    }

    /// Once there is nothing more urgent.
    fn resize(&mut self) {
        let Inputs { pod, observed, resize, now, .. } = *self.inputs;
        let all = podutil::spec(pod).containers.iter().chain(podutil::init_containers(pod));
        let due = |container: &Container| {
            observed.active(&container.name).is_some_and(|view| view.state == RunState::Running)
                && resize.actuation(container) == Some(Actuation::InPlace)
        };
        if !self.plan.actions.is_empty() || !all.into_iter().any(due) {
            return;
        }
        match resize.retry_at().filter(|at| *at > now) {
            Some(at) => self.wake(at),
            None => self.plan.actions.push(Action::Resize),
        }
    }

    /// The latest container of that name as it will be once its dead sandbox has been stopped.
    fn settled(&self, name: &str) -> Option<ContainerView> {
        let mut latest = self.inputs.observed.latest(name)?.clone();
        if matches!(latest.state, RunState::Running | RunState::Unknown) {
            (latest.state, latest.exit_code) = (RunState::Exited, 137);
        }
        Some(latest)
    }

    fn start_ephemeral(&mut self) {
        for container in podutil::ephemeral_containers(self.inputs.pod) {
            if self.inputs.observed.latest(&container.name).is_none() {
                self.start(ContainerKind::Ephemeral, &container.name);
            }
        }
    }

    /// Walks the init containers in order; true once all are done (sidecars: started).
    fn init_containers(&mut self) -> bool {
        let Inputs { pod, observed, .. } = *self.inputs;
        for container in podutil::init_containers(pod) {
            let sidecar = podutil::is_sidecar(container);
            let Some(status) = observed.active(&container.name) else {
                self.start(ContainerKind::Init, &container.name);
                return false;
            };
            match status.state {
                RunState::Running if self.kill_if_unhealthy(container, status, true) => return false,
                RunState::Running if sidecar => {
                    if !self.has_started(container, status) {
                        return false;
                    }
                }
                RunState::Running => return false,
                RunState::Exited if !sidecar && status.exit_code == 0 => {}
                RunState::Exited if !sidecar && !restarts_init(pod, container, status.exit_code) => {
                    self.plan.actions.push(Action::Finish);
                    return false;
                }
                _ => {
                    self.kill_unknown(status);
                    self.start(ContainerKind::Init, &container.name);
                    return false;
                }
            }
        }
        true
    }

    /// Keeps sidecars alive while the main containers run.
    fn sidecars(&mut self) {
        let Inputs { pod, observed, .. } = *self.inputs;
        for container in podutil::init_containers(pod).iter().filter(|c| podutil::is_sidecar(c)) {
            match observed.active(&container.name) {
                Some(status) if status.state == RunState::Running => {
                    self.kill_if_unhealthy(container, status, true);
                }
                Some(status) => {
                    self.kill_unknown(status);
                    self.start(ContainerKind::Init, &container.name);
                }
                None => self.start(ContainerKind::Init, &container.name),
            }
        }
    }

    /// False if no main container runs or will run: the pod is finished.
    fn main_containers(&mut self) -> bool {
        let Inputs { pod, observed, .. } = *self.inputs;
        let mut alive = false;
        for container in &podutil::spec(pod).containers {
            let latest = observed.latest(&container.name);
            match latest {
                Some(status) if status.state == RunState::Running => {
                    let restarts =
                        container.restart_policy.as_deref().unwrap_or(podutil::restart_policy(pod)) != "Never";
                    let killed = self.kill_if_unhealthy(container, status, restarts);
                    alive |= !killed || restarts;
                }
                _ if should_start(pod, container, latest) => {
                    if let Some(status) = latest {
                        self.kill_unknown(status);
                    }
                    self.start(ContainerKind::Main, &container.name);
                    alive = true;
                }
                _ => {}
            }
        }
        if !alive {
            // Also when a kill is on the way: the finish stops what is left, with the pod's grace.
            self.plan.actions.retain(|action| !matches!(action, Action::Start { .. }));
            self.plan.actions.push(Action::Finish);
        }
        alive
    }

    /// Plans the kill of a running container that is outdated or failed a probe.
    fn kill_if_unhealthy(&mut self, container: &Container, status: &ContainerView, restarts: bool) -> bool {
        let verdicts = self.inputs.verdicts.get(&status.id).copied().unwrap_or_default();
        let name = &container.name;
        let changed = status.hash.is_some_and(|hash| hash != container_hash(container));
        let (reason, what) = if changed {
            (KillReason::Changed, format!("Container {name} definition changed"))
        } else if self.inputs.resize.actuation(container) == Some(Actuation::Restart) {
            (KillReason::Resized, format!("Container {name} resize requires restart"))
        } else if verdicts.liveness == Some(false) {
            (KillReason::Liveness, format!("Container {name} failed liveness probe"))
        } else if verdicts.startup == Some(false) {
            (KillReason::Startup, format!("Container {name} failed startup probe"))
        } else {
            return false;
        };
        let message = if reason == KillReason::Resized {
            what
        } else if changed || restarts {
            format!("{what}, will be restarted")
        } else {
            what
        };
        self.plan.actions.push(Action::Kill { id: status.id.clone(), name: name.clone(), reason, message });
        true
    }

    fn kill_unknown(&mut self, status: &ContainerView) {
        if status.state == RunState::Unknown {
            self.plan.actions.push(Action::Kill {
                id: status.id.clone(),
                name: status.name.clone(),
                reason: KillReason::Unknown,
                message: "Container is in \"unknown\" state, try killing it before restart".to_owned(),
            });
        }
    }

    fn has_started(&self, container: &Container, status: &ContainerView) -> bool {
        container.startup_probe.is_none()
            || self.inputs.verdicts.get(&status.id).is_some_and(|verdicts| verdicts.startup == Some(true))
    }

    fn start(&mut self, kind: ContainerKind, name: &str) {
        let Inputs { observed, gate, now, .. } = *self.inputs;
        match gate.blocked(name, observed.latest(name), now) {
            Some(until) => self.wait(name, until),
            None => self.plan.actions.push(Action::Start { kind, name: name.to_owned() }),
        }
    }

    fn wait(&mut self, name: &str, at: Timestamp) {
        self.plan.blocked.push(name.to_owned());
        self.wake(at);
    }

    fn wake(&mut self, at: Timestamp) {
        self.plan.wake_at = Some(self.plan.wake_at.map_or(at, |known| known.min(at)));
    }
}

/// A failed init container is tried again unless the pod (or the container itself) never restarts.
fn restarts_init(pod: &Pod, container: &Container, exit_code: i32) -> bool {
    match container.restart_policy.as_deref().unwrap_or(podutil::restart_policy(pod)) {
        "Never" => restarts_after(pod, container, exit_code),
        _ => true,
    }
}

#[cfg(test)]
#[path = "plan_tests.rs"]
mod tests;
