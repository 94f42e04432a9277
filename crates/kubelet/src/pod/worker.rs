//! One pod's worker: looks at the runtime, publishes the status, plans, carries out one action, and looks again; then sleeps
//! until something changes. Between the kill of a container and its next start nothing is published, as upstream. All that it knows it can rebuild from the runtime and the API.

use std::collections::HashMap;
use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodStatus};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::memory::{Memory, Notice};
use super::plan::{self, Action};
use super::resize::Resize;
use super::turns::Turn;
use super::{admit, sandbox, start, stop};
use crate::error::{Error, Result};
use crate::objects::Holder;
use crate::pods::{ContainerRecord, PodRecord, RunState};
use crate::podutil;
use crate::probe::ProbeSet;
use crate::runtime::Observed;
use crate::runtime::observed::{ContainerView, Observer};
use crate::shared::Handle;
use crate::status::{self, Ending};
use crate::volume::PodVolumes;

/// A failed look or action is tried again so soon, then ever later.
const FIRST_RETRY: Duration = Duration::from_millis(500);
const LONGEST_RETRY: Duration = Duration::from_secs(30);

/// The exit code of what got SIGKILL.
const KILLED: i32 = 137;
/// So long after its end the runtime knows why a container was killed.
const CAUSE_KNOWN_AFTER: Duration = Duration::from_millis(300);

/// Below the pod's directory: what is allocated to a pod that was resized.
const RESOURCES_FILE: &str = "resources.json";

/// What the worker is to work on.
#[derive(Clone)]
pub struct Input {
    pub pod: Arc<Pod>,
    /// The API object is gone: end whatever is left, at once if it was so deleted.
    pub removed: bool,
}

impl Input {
    /// The pod is to be ended, not kept running.
    pub fn must_end(&self) -> bool {
        self.removed
            || podutil::deleted_at(&self.pod).is_some()
            || podutil::is_terminal_phase(podutil::phase(&self.pod))
    }
}

/// Resolves when the pod is to be ended; long waits are given up for it.
#[derive(Clone)]
pub struct Interrupt(watch::Receiver<Input>);

impl Interrupt {
    /// `work`, unless the pod is to be ended first.
    pub async fn or_cancelled<T>(&self, work: impl Future<Output = Result<T>>) -> Result<T> {
        let mut input = self.0.clone();
        tokio::select! {
            result = work => result,
            Ok(_) = input.wait_for(Input::must_end) => Err(Error::Cancelled),
        }
    }
}

/// How others reach a worker.
pub struct WorkerHandle {
    pub input: watch::Sender<Input>,
    pub wake: Arc<Notify>,
}

pub struct Worker {
    pub(super) shared: Handle,
    pub(super) input: watch::Receiver<Input>,
    wake: Arc<Notify>,
    /// A ConfigMap or Secret that the pod refers to has changed.
    objects_changed: Arc<Notify>,
    observer: Observer,
    pub(super) observed: Observed,
    pub(super) memory: Memory,
    pub(super) objects: Arc<Holder>,
    pub(super) probes: ProbeSet,
    pub(super) volumes: PodVolumes,
    pub(super) resize: Resize,
    /// Room of the node that others have given back.
    room: watch::Receiver<u64>,
    pub(super) status: PodStatus,
    /// Termination messages by container id.
    messages: HashMap<String, String>,
    pub(super) ending: Ending,
    prepared: bool,
    admitted: bool,
    /// Until the pod is taken on, and known to be to those that come after it.
    turn: Option<Turn>,
    /// When the pod was first seen, until it has been seen to run.
    first_seen: Option<tokio::time::Instant>,
}

enum Next {
    /// Sleep until something changes, or until then.
    Sleep(Option<Timestamp>),
    /// The pod is to be ended.
    End,
}

impl Worker {
    /// Starts the worker of one pod. `done` is called when all traces of the pod are gone.
    pub fn spawn(
        shared: Handle,
        input: Input,
        shutdown: CancellationToken,
        done: impl FnOnce() + Send + 'static,
    ) -> WorkerHandle {
        let (sender, receiver) = watch::channel(input);
        let wake = Arc::new(Notify::new());
        let worker = Worker::new(shared, receiver, wake.clone());
        let work: Pin<Box<dyn Future<Output = ()> + Send>> = Box::pin(worker.run());
        tokio::spawn(async move {
            if shutdown.run_until_cancelled(work).await.is_some() {
                done();
            }
        });
        WorkerHandle { input: sender, wake }
    }

    fn new(shared: Handle, input: watch::Receiver<Input>, wake: Arc<Notify>) -> Self {
        let pod = input.borrow().pod.clone();
        let objects_changed = Arc::new(Notify::new());
        let objects = Arc::new(shared.objects.holder(podutil::namespace(&pod), objects_changed.clone()));
        Worker {
            memory: Memory::new(shared.config.max_container_back_off),
            probes: ProbeSet::new(shared.clone(), wake.clone()),
            volumes: PodVolumes::new(shared.clone(), &pod),
            resize: Resize::load(shared.config.pod_dir(podutil::uid(&pod)).join(RESOURCES_FILE), &pod),
            room: shared.room.subscribe(),
            turn: Some(shared.turns.take()),
            status: pod.status.clone().unwrap_or_default(),
            shared,
            input,
            wake,
            objects_changed,
            observer: Observer::default(),
            observed: Observed::default(),
            objects,
            messages: HashMap::new(),
            ending: Ending::default(),
            prepared: false,
            admitted: false,
            first_seen: None,
        }
    }

    async fn run(mut self) {
        let mut retry = FIRST_RETRY;
        loop {
            let pod = self.input.borrow_and_update().pod.clone();
            let begun = tokio::time::Instant::now();
            let what = if self.prepared { "sync" } else { "create" };
            let next = if self.input.borrow().must_end() { Ok(Next::End) } else { Box::pin(self.sync(&pod)).await };
            self.shared.store.metrics.worked(what, begun.elapsed());
            let until = match next {
                Ok(Next::End) => {
                    self.turn = None;
                    return self.finish().await;
                }
                Ok(Next::Sleep(until)) => {
                    retry = FIRST_RETRY;
                    until.map(|until| until.duration_since(Timestamp::now()).try_into().unwrap_or_default())
                }
                Err(Error::Cancelled) => continue,
                Err(error) => {
                    tracing::warn!(pod = %podutil::full_name(&pod), %error, "pod not in order, will retry");
                    // Others need not wait for that.
                    self.turn = (!self.admitted).then(|| self.shared.turns.take());
                    retry = (retry * 2).min(LONGEST_RETRY);
                    Some(retry)
                }
            };
            self.sleep(until).await;
        }
    }

    pub(super) async fn sleep(&mut self, longest: Option<Duration>) {
        let timer = async {
            match longest {
                Some(longest) => tokio::time::sleep(longest).await,
                None => std::future::pending().await,
            }
        };
        tokio::select! {
            // The pod's own annotations may be what a container waits for.
            _ = self.input.changed() => self.memory.configuration_changed(),
            () = self.wake.notified() => {}
            () = self.objects_changed.notified() => {
                self.memory.configuration_changed();
                self.volumes.mark_stale();
            }
            Ok(()) = self.room.changed(), if self.resize.is_deferred() => {}
            () = timer => {}
        }
    }

    pub(super) fn interrupt(&self) -> Interrupt {
        Interrupt(self.input.clone())
    }

    /// Acts until nothing is left to do.
    async fn sync(&mut self, pod: &Arc<Pod>) -> Result<Next> {
        // The container that was just killed, and is likely to be started at once.
        let mut killed: Option<String> = None;
        loop {
            self.look(pod).await?;
            self.look_for_cause(pod, killed.as_deref()).await?;
            if let Some(turn) = &self.turn {
                let come = async {
                    turn.come().await;
                    Ok(())
                };
                self.interrupt().or_cancelled(come).await?;
            }
            if !self.admit(pod) || self.deadline_passed(pod) {
                return Ok(Next::End);
            }
            let pod = &self.allocate(pod)?;
            let plan = self.decide(pod);
            if self.is_to_be_told(pod, killed.take().as_deref(), plan.actions.first()) {
                self.publish(pod, None);
            }
            self.turn = None;
            if !self.prepared {
                self.prepare(pod).await?;
            }
            let volumes_due = self.sync_volumes(pod).await?;
            let Some(action) = plan.actions.into_iter().next() else {
                self.publish(pod, None);
                self.collect_dead(pod).await;
                self.memory.round_ends();
                let times = [plan.wake_at, volumes_due, self.deadline(pod)];
                return Ok(Next::Sleep(times.into_iter().flatten().min()));
            };
            if action == Action::Finish {
                return Ok(Next::End);
            }
            if let Action::Kill { id, name, .. } = &action {
                let dead = |c: &&ContainerView| c.name == *name && c.id != *id && c.state == RunState::Exited;
                self.memory.kills(name, self.observed.containers.iter().find(dead));
                killed = Some(name.clone());
            }
            Box::pin(self.act(pod, action)).await?;
            if self.input.borrow().must_end() {
                return Ok(Next::End);
            }
        }
    }

    /// Not the moment between the kill of a container and its start, nor that before a kill that takes no time: one word after it
    /// tells both.
    fn is_to_be_told(&self, pod: &Pod, killed: Option<&str>, next: Option<&Action>) -> bool {
        match next {
            Some(Action::Start { name, .. }) => killed != Some(name.as_str()),
            Some(Action::Kill { name, reason, .. }) => !stop::grace_of(pod, name, *reason).is_zero(),
            _ => true,
        }
    }

    fn decide(&mut self, pod: &Pod) -> plan::Plan {
        let verdicts = self.probes.verdicts();
        let now = Timestamp::now();
        let inputs = plan::Inputs {
            pod,
            observed: &self.observed,
            verdicts: &verdicts,
            gate: &self.memory,
            resize: &self.resize,
            now,
        };
        let plan = plan::plan(&inputs);
        self.tell_waiting(pod, &plan.blocked, now);
        plan
    }

    /// Sees what the runtime has, and takes notice of containers that have ended.
    pub(super) async fn look(&mut self, pod: &Arc<Pod>) -> Result<()> {
        self.observed = self.observer.observe(&self.shared.runtime, podutil::uid(pod)).await?;
        let mut messages = HashMap::new();
        for container in self.observed.containers.iter().filter(|c| c.state == RunState::Exited) {
            let known = self.messages.remove(&container.id);
            let message = match known {
                Some(message) => message,
                None => crate::container::message::read(container).await,
            };
            messages.insert(container.id.clone(), message);
        }
        self.messages = messages;
        self.probes.sync(pod, &self.observed, &self.status);
        Ok(())
    }

    /// containerd tells the end of a container and that it was for want of memory by two events, in either order: what was killed a
    /// moment ago, and not by us, is looked at once more.
    async fn look_for_cause(&mut self, pod: &Arc<Pod>, killed: Option<&str>) -> Result<()> {
        let suspect = |view: &&ContainerView| {
            view.state == RunState::Exited
                && view.exit_code == KILLED
                && view.reason == "Error"
                && killed != Some(view.name.as_str())
                && has_memory_limit(pod, &view.name)
        };
        let known_at = |view: &ContainerView| Some(view.finished_at? + CAUSE_KNOWN_AFTER);
        let now = Timestamp::now();
        let suspects = self.observed.containers.iter().filter(suspect);
        let fresh: Vec<_> =
            suspects.filter_map(|view| Some((view.id.clone(), known_at(view)?))).filter(|(_, at)| *at > now).collect();
        let Some(last) = fresh.iter().map(|(_, at)| *at).max() else { return Ok(()) };
        // A clock that was set back must not hold up the pod.
        let wait = Duration::try_from(last.duration_since(now)).unwrap_or_default().min(CAUSE_KNOWN_AFTER);
        let wait = async {
            tokio::time::sleep(wait).await;
            Ok(())
        };
        self.interrupt().or_cancelled(wait).await?;
        fresh.iter().for_each(|(id, _)| self.observer.forget(id));
        self.look(pod).await
    }

    /// Determines the status, for readers on this node and for the API. `starting`: a container whose hook is under way.
    pub(super) fn publish(&mut self, pod: &Arc<Pod>, starting: Option<&str>) {
        let verdicts = self.probes.verdicts();
        let pod = &self.resize.allocated(pod);
        let actuated = self.resize.actuated(pod);
        let now = Timestamp::now();
        let inputs = status::Inputs {
            pod,
            observed: &self.observed,
            verdicts: &verdicts,
            waiting: self.memory.waiting(),
            starting,
            previous: &self.status,
            node_ips: &self.shared.config.node_ips,
            runtime_name: self.shared.runtime_name.get().map_or("containerd", String::as_str),
            messages: &self.messages,
            ending: &self.ending,
            actuated: &actuated,
            resize: if self.ending.finished { Vec::new() } else { self.resize.conditions(now) },
            now,
        };
        self.status = status::build(&inputs);
        if self.status.phase.as_deref() == Some("Running")
            && let Some(first_seen) = self.first_seen.take()
        {
            self.shared.store.metrics.pod_started(first_seen.elapsed());
        }
        let mut shown = Pod::clone(pod);
        shown.status = Some(self.status.clone());
        let containers = self.observed.containers.iter().map(|view| record(pod, view)).collect();
        let sandbox_id = self.observed.ready_sandbox().map(|sandbox| sandbox.id.clone());
        let entry = PodRecord { pod: Arc::new(shown), sandbox_id, containers, volumes: self.volumes.records(pod) };
        self.shared.store.put(entry, self.observed.runtime_ids());
        if !self.input.borrow().removed {
            self.shared.statuses.set(pod, &self.status);
        }
    }

    async fn prepare(&mut self, pod: &Arc<Pod>) -> Result<()> {
        let config = &self.shared.config;
        let (uid, name, namespace) = (podutil::uid(pod), podutil::name(pod), podutil::namespace(pod));
        for dir in [config.pod_dir(uid), config.pod_log_dir(namespace, name, uid)] {
            tokio::fs::create_dir_all(&dir).await.map_err(Error::file("create directory", &dir))?;
        }
        self.shared.cgroups.ensure_pod(pod);
        self.prepared = true;
        Ok(())
    }

    async fn sync_volumes(&mut self, pod: &Arc<Pod>) -> Result<Option<Timestamp>> {
        let objects = self.objects.clone();
        let pod_ips = self.observed.ready_sandbox().map(|sandbox| sandbox.ips.clone()).unwrap_or_default();
        let interrupt = self.interrupt();
        match interrupt.or_cancelled(self.volumes.sync(pod, &objects, &pod_ips)).await {
            Ok(()) => Ok(self.volumes.due()),
            Err(Error::Cancelled) => Err(Error::Cancelled),
            Err(error) => {
                let object = podutil::pod_ref(pod);
                self.shared.recorder.event(&object, EventType::Warning, "FailedMount", error.to_string());
                Err(error)
            }
        }
    }

    /// Shows why containers wait, and says so once.
    fn tell_waiting(&mut self, pod: &Pod, blocked: &[String], now: Timestamp) {
        let pod_name = podutil::full_name(pod);
        for name in blocked.iter().filter(|name| !name.is_empty()) {
            let previous = self.observed.latest(name).cloned();
            let Some(notice) = self.memory.waits(name, previous.as_ref(), &pod_name, now) else { continue };
            let kind = podutil::find_container(pod, name).map_or(crate::ContainerKind::Ephemeral, |(kind, _)| kind);
            let object = podutil::container_ref(pod, kind, name);
            let recorder = &self.shared.recorder;
            match notice {
                Notice::CrashLoop => {
                    let message = format!("Back-off restarting failed container {name} in pod {pod_name}");
                    recorder.event(&object, EventType::Warning, "BackOff", message);
                }
                Notice::PullBackoff { image } => {
                    let message = format!("Back-off pulling image \"{image}\"");
                    recorder.event(&object, EventType::Normal, "BackOff", message);
                    recorder.event(&object, EventType::Warning, "Failed", "Error: ImagePullBackOff");
                }
            }
        }
    }

    async fn act(&mut self, pod: &Arc<Pod>, action: Action) -> Result<()> {
        match action {
            Action::StopSandboxes => {
                let grace = Duration::from_secs(podutil::grace_seconds(pod).unsigned_abs());
                let mut told = stop::Told::default();
                stop::stop_pod(&self.shared, pod, &self.observed, grace, &mut told).await
            }
            Action::CreateSandbox { attempt } => {
                if !self.observed.sandboxes.is_empty() {
                    let message = "Pod sandbox changed, it will be killed and re-created.";
                    self.shared.recorder.event(&podutil::pod_ref(pod), EventType::Normal, "SandboxChanged", message);
                }
                sandbox::create(self, pod, attempt).await
            }
            Action::Kill { id, name, reason, message } => {
                let grace = stop::grace_of(pod, &name, reason);
                let mut told = stop::Told::default();
                stop::stop_container(&self.shared, pod, &name, &id, grace, Some(message), &mut told).await
            }
            Action::Resize => self.actuate(pod).await,
            Action::Start { kind, name } => start::start(self, pod, kind, &name).await,
            Action::Finish => Ok(()),
        }
    }

    /// Whether this node takes the pod on. A pod that it has taken on before stays.
    fn admit(&mut self, pod: &Pod) -> bool {
        if !self.admitted && self.status.start_time.is_none() && self.observed.containers.is_empty() {
            let others: Vec<_> = self.shared.store.list().iter().map(|record| record.pod.clone()).collect();
            let room = admit::Room::of(&self.shared.machine, &self.shared.config);
            if let Err(rejection) = admit::admit(pod, others.iter().map(AsRef::as_ref), &room) {
                let object = podutil::pod_ref(pod);
                self.shared.recorder.event(&object, EventType::Warning, rejection.reason, rejection.message.clone());
                let message = format!("Pod was rejected: {}", rejection.message);
                self.ending.failed = Some((rejection.reason.to_owned(), message));
                return false;
            }
        }
        if !self.admitted && podutil::phase(pod) == "Pending" {
            self.first_seen = Some(tokio::time::Instant::now());
        }
        self.admitted = true;
        true
    }

    fn deadline(&self, pod: &Pod) -> Option<Timestamp> {
        let seconds = podutil::spec(pod).active_deadline_seconds?;
        let start = self.status.start_time.as_ref()?.0;
        start.checked_add(Duration::from_secs(seconds.unsigned_abs())).ok()
    }

    fn deadline_passed(&mut self, pod: &Pod) -> bool {
        let passed = self.deadline(pod).is_some_and(|deadline| deadline <= Timestamp::now());
        if passed {
            let message = "Pod was active on the node longer than the specified deadline";
            self.shared.recorder.event(&podutil::pod_ref(pod), EventType::Normal, "DeadlineExceeded", message);
            self.ending.failed = Some(("DeadlineExceeded".to_owned(), message.to_owned()));
        }
        passed
    }

    /// Removes containers and sandboxes that nobody will ask for again: all but the newest dead container of each name.
    async fn collect_dead(&mut self, pod: &Pod) {
        for id in surplus_containers(&self.observed) {
            if let Err(error) = self.shared.runtime.remove_container(&id).await {
                tracing::debug!(pod = %podutil::full_name(pod), %error, "dead container not removed");
            }
        }
        for id in surplus_sandboxes(&self.observed) {
            if let Err(error) = self.shared.runtime.remove_pod_sandbox(&id).await {
                tracing::debug!(pod = %podutil::full_name(pod), %error, "dead sandbox not removed");
            }
        }
    }
}

/// The container's own, or its pod's.
fn has_memory_limit(pod: &Pod, container: &str) -> bool {
    let own = podutil::find_container(pod, container).and_then(|(_, container)| container.resources.as_ref());
    [own, podutil::spec(pod).resources.as_ref()]
        .into_iter()
        .flatten()
        .any(|resources| resources.limits.as_ref().is_some_and(|limits| limits.contains_key("memory")))
}

/// Exited containers that have a newer exited one of the same name.
fn surplus_containers(observed: &Observed) -> Vec<String> {
    let mut kept = std::collections::HashSet::new();
    let dead = observed.containers.iter().filter(|c| matches!(c.state, RunState::Exited | RunState::Created));
    dead.filter(|c| !kept.insert(&c.name)).map(|c| c.id.clone()).collect()
}

/// Sandboxes that are not ready, not the newest, and have no containers left.
fn surplus_sandboxes(observed: &Observed) -> Vec<String> {
    let in_use = |id: &str| observed.containers.iter().any(|container| container.sandbox_id == id);
    let old = observed.sandboxes.iter().skip(1);
    old.filter(|sandbox| !sandbox.ready && !in_use(&sandbox.id)).map(|sandbox| sandbox.id.clone()).collect()
}

fn record(pod: &Pod, view: &ContainerView) -> ContainerRecord {
    let kind = podutil::find_container(pod, &view.name).map_or(crate::ContainerKind::Ephemeral, |(kind, _)| kind);
    ContainerRecord {
        name: view.name.clone(),
        id: view.id.clone(),
        kind,
        attempt: view.restart_count,
        state: view.state,
        created_at: view.created_at,
        log_path: view.log_path.clone(),
    }
}
