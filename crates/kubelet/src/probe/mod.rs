//! Probes: one task for each probe of each running container. A task keeps the verdict; the pod's worker is woken when it
//! changes, and decides.

pub mod grpc;
pub mod http;
pub mod net;
pub mod tls;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::EventType;
use k8s_openapi::api::core::v1::{Container, ContainerStatus, Pod, PodStatus, Probe};
use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::task::JoinHandle;

use crate::metrics::ProbeKey;
use crate::pod::plan::Verdicts;
use crate::pods::ContainerKind;
use crate::podutil;
use crate::runtime::{ContainerView, Observed};
use crate::shared::Handle;

/// Output of a probe as events quote it.
const MAX_OUTPUT_BYTES: usize = 10 * 1024;

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ProbeKind {
    Startup,
    Liveness,
    Readiness,
}

impl ProbeKind {
    fn word(self) -> &'static str {
        match self {
            ProbeKind::Startup => "Startup",
            ProbeKind::Liveness => "Liveness",
            ProbeKind::Readiness => "Readiness",
        }
    }
}

/// One attempt's result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Outcome {
    Success,
    Failure(String),
    /// Success that deserves a word (a redirect to elsewhere).
    Warning(String),
    /// The probe itself could not be carried out; counts as a failure.
    Errored(String),
}

struct Running {
    task: JoinHandle<()>,
}

impl Drop for Running {
    fn drop(&mut self) {
        self.task.abort();
    }
}

type Shown = Arc<Mutex<HashMap<String, Verdicts>>>;

/// The probes of one pod.
pub struct ProbeSet {
    shared: Handle,
    wake: Arc<Notify>,
    /// By container id and kind.
    running: HashMap<(String, ProbeKind), Running>,
    verdicts: Shown,
    /// The pod ends: only readiness is still asked.
    ending: bool,
}

impl ProbeSet {
    pub fn new(shared: Handle, wake: Arc<Notify>) -> Self {
        ProbeSet { shared, wake, running: HashMap::new(), verdicts: Shown::default(), ending: false }
    }

    /// By container id.
    pub fn verdicts(&self) -> HashMap<String, Verdicts> {
        self.verdicts.lock().clone()
    }

    /// Starts and stops probes so that they fit the running containers. `previous` seeds the verdicts of containers that ran
    /// before this process did.
    pub fn sync(&mut self, pod: &Arc<Pod>, observed: &Observed, previous: &PodStatus) {
        let running: HashMap<&str, &ContainerView> = observed.running().map(|view| (view.id.as_str(), view)).collect();
        self.running.retain(|(id, _), _| running.contains_key(id.as_str()));
        self.verdicts.lock().retain(|id, _| running.contains_key(id.as_str()));
        for view in running.values() {
            let Some((kind, container)) = podutil::find_container(pod, &view.name) else { continue };
            if kind == ContainerKind::Init && !podutil::is_sidecar(container) {
                continue;
            }
            self.seed(container, view, previous);
            self.start_due(pod, container, view);
        }
    }

    fn seed(&self, container: &Container, view: &ContainerView, previous: &PodStatus) {
        let mut verdicts = self.verdicts.lock();
        if verdicts.contains_key(&view.id) {
            return;
        }
        let lists = [&previous.container_statuses, &previous.init_container_statuses];
        let known = lists.into_iter().flatten().flatten().find(|status| is_of(status, &view.id));
        let started = known.is_some_and(|status| status.started == Some(true));
        let ready = known.is_some_and(|status| status.ready);
        verdicts.insert(
            view.id.clone(),
            Verdicts {
                startup: container.startup_probe.as_ref().and(started.then_some(true)),
                liveness: None,
                readiness: container.readiness_probe.as_ref().map(|_| ready),
            },
        );
    }

    fn start_due(&mut self, pod: &Arc<Pod>, container: &Container, view: &ContainerView) {
        let verdicts = self.verdicts.lock().get(&view.id).copied().unwrap_or_default();
        let started = container.startup_probe.is_none() || verdicts.startup == Some(true);
        let wanted = [
            (ProbeKind::Startup, &container.startup_probe, !started && verdicts.startup.is_none() && !self.ending),
            (
                ProbeKind::Liveness,
                &container.liveness_probe,
                started && verdicts.liveness != Some(false) && !self.ending,
            ),
            (ProbeKind::Readiness, &container.readiness_probe, started),
        ];
        for (kind, probe, due) in wanted {
            let key = (view.id.clone(), kind);
            match probe {
                Some(probe) if due => {
                    if !self.running.contains_key(&key) {
                        let task = self.task(pod, container, view, kind, probe);
                        self.running.insert(key, task);
                    }
                }
                _ => drop(self.running.remove(&key)),
            }
        }
    }

    fn task(
        &self,
        pod: &Arc<Pod>,
        container: &Container,
        view: &ContainerView,
        kind: ProbeKind,
        probe: &Probe,
    ) -> Running {
        let prober = Prober {
            shared: self.shared.clone(),
            pod: pod.clone(),
            container: container.clone(),
            id: view.id.clone(),
            kind,
            probe: probe.clone(),
            verdicts: self.verdicts.clone(),
            wake: self.wake.clone(),
        };
        let up_for = view.started_at.map(|started| jiff::Timestamp::now().duration_since(started));
        let up_for = up_for.and_then(|up| up.try_into().ok()).unwrap_or_default();
        Running { task: tokio::spawn(prober.run(up_for)) }
    }

    /// Ends the probes that could have a container killed; the pod ends anyway.
    pub fn stop_killing(&mut self) {
        self.ending = true;
        self.running.retain(|(_, kind), _| *kind == ProbeKind::Readiness);
    }

    pub fn stop_all(&mut self) {
        self.running.clear();
    }
}

struct Prober {
    shared: Handle,
    pod: Arc<Pod>,
    container: Container,
    id: String,
    kind: ProbeKind,
    probe: Probe,
    verdicts: Shown,
    wake: Arc<Notify>,
}

/// The verdict from a row of outcomes: it changes once the threshold of its kind is reached. Pure.
#[derive(Clone, Copy, Debug)]
struct Streak {
    last: Option<bool>,
    length: u32,
}

impl Streak {
    /// The verdict that now holds, or none if the row is too short to change anything.
    fn add(&mut self, success: bool, success_threshold: u32, failure_threshold: u32) -> Option<bool> {
        if self.last == Some(success) {
            self.length = self.length.saturating_add(1);
        } else {
            (self.last, self.length) = (Some(success), 1);
        }
        let threshold = if success { success_threshold } else { failure_threshold };
        (self.length >= threshold).then_some(success)
    }
}

impl Prober {
    /// Probes until it is aborted, or until its verdict is final.
    async fn run(self, up_for: Duration) {
        let seconds = |value: Option<i32>, default: u64| value.map_or(default, |value| u64::from(value.unsigned_abs()));
        let period = Duration::from_secs(seconds(self.probe.period_seconds, 10).max(1));
        let initial = Duration::from_secs(seconds(self.probe.initial_delay_seconds, 0));
        let count = |value: Option<i32>, default: u32| value.map_or(default, |value| value.unsigned_abs().max(1));
        let successes = count(self.probe.success_threshold, 1);
        let failures = count(self.probe.failure_threshold, 3);
        let mut streak = Streak { last: None, length: 0 };

        tokio::time::sleep(initial.saturating_sub(up_for)).await;
        let mut timer = tokio::time::interval(period);
        timer.set_missed_tick_behavior(tokio::time::MissedTickBehavior::Delay);
        loop {
            timer.tick().await;
            let outcome = self.attempt().await;
            self.count(&outcome);
            self.tell(&outcome);
            let success = matches!(outcome, Outcome::Success | Outcome::Warning(_));
            let Some(verdict) = streak.add(success, successes, failures) else { continue };
            let final_word = match self.kind {
                ProbeKind::Startup => true,
                ProbeKind::Liveness => !verdict,
                ProbeKind::Readiness => false,
            };
            if self.publish(verdict) || final_word {
                self.wake.notify_one();
            }
            if final_word {
                return;
            }
        }
    }

    /// True if the verdict is news.
    fn publish(&self, verdict: bool) -> bool {
        let mut verdicts = self.verdicts.lock();
        let Some(entry) = verdicts.get_mut(&self.id) else { return false };
        let slot = match self.kind {
            ProbeKind::Startup => &mut entry.startup,
            ProbeKind::Liveness => &mut entry.liveness,
            ProbeKind::Readiness => &mut entry.readiness,
        };
        slot.replace(verdict) != Some(verdict)
    }

    fn count(&self, outcome: &Outcome) {
        let result = match outcome {
            Outcome::Success | Outcome::Warning(_) => "successful",
            Outcome::Failure(_) => "failed",
            Outcome::Errored(_) => "unknown",
        };
        self.shared.store.metrics.probed(ProbeKey {
            namespace: podutil::namespace(&self.pod).to_owned(),
            pod: podutil::name(&self.pod).to_owned(),
            uid: podutil::uid(&self.pod).to_owned(),
            container: self.container.name.clone(),
            kind: self.kind.word(),
            result,
        });
    }

    fn tell(&self, outcome: &Outcome) {
        let word = self.kind.word();
        let (reason, message) = match outcome {
            Outcome::Success => return,
            Outcome::Warning(output) => ("ProbeWarning", format!("{word} probe warning: {output}")),
            Outcome::Failure(output) => ("Unhealthy", format!("{word} probe failed: {output}")),
            Outcome::Errored(error) => {
                ("Unhealthy", format!("{word} probe errored and resulted in unknown state: {error}"))
            }
        };
        let kind =
            podutil::find_container(&self.pod, &self.container.name).map_or(ContainerKind::Main, |(kind, _)| kind);
        let object = podutil::container_ref(&self.pod, kind, &self.container.name);
        self.shared.recorder.event(&object, EventType::Warning, reason, message);
    }

    async fn attempt(&self) -> Outcome {
        let timeout = self.probe.timeout_seconds.map_or(1, |value| u64::from(value.unsigned_abs())).max(1);
        let timeout = Duration::from_secs(timeout);
        match self.try_attempt(timeout).await {
            Ok(outcome) => outcome,
            Err(error) => Outcome::Errored(error),
        }
    }

    async fn try_attempt(&self, timeout: Duration) -> Result<Outcome, String> {
        let host = || net::address_of(&self.shared, &self.pod).ok_or_else(|| "the pod has no address".to_owned());
        if let Some(exec) = &self.probe.exec {
            return Ok(self.exec(exec.command.clone().unwrap_or_default(), timeout).await);
        }
        if let Some(action) = &self.probe.http_get {
            let request = http::Request::of_action(action, &self.container, &host()?)?;
            return Ok(http::probe(&request, timeout).await);
        }
        if let Some(action) = &self.probe.tcp_socket {
            let host = action.host.clone().filter(|host| !host.is_empty()).map_or_else(host, Ok)?;
            let port = net::resolve_port(&action.port, &self.container)?;
            return Ok(match net::connect(&host, port, timeout).await {
                Ok(_) => Outcome::Success,
                Err(error) => Outcome::Failure(error),
            });
        }
        if let Some(action) = &self.probe.grpc {
            let port = u16::try_from(action.port).map_err(|_| format!("invalid port number: {}", action.port))?;
            let service = action.service.clone().unwrap_or_default();
            return Ok(grpc::probe(&host()?, port, service, timeout).await);
        }
        Err(format!("missing probe handler for {}:{}", podutil::full_name(&self.pod), self.container.name))
    }

    async fn exec(&self, command: Vec<String>, timeout: Duration) -> Outcome {
        let call = self.shared.runtime.exec_sync(&self.id, command.clone(), timeout);
        // The runtime kills the process at the limit; the margin is for its answer.
        match tokio::time::timeout(timeout + Duration::from_secs(5), call).await {
            Ok(Ok(output)) if output.exit_code == 0 => Outcome::Success,
            Ok(Ok(output)) => {
                let mut text = String::from_utf8_lossy(&output.stdout).into_owned();
                text.push_str(&String::from_utf8_lossy(&output.stderr));
                Outcome::Failure(cut(&text))
            }
            Ok(Err(error)) if error.is_unavailable() => Outcome::Failure(format!(
                "command timed out: \"{}\" timed out after {}s",
                command.join(" "),
                timeout.as_secs()
            )),
            Ok(Err(error)) => Outcome::Errored(error.to_string()),
            Err(_) => Outcome::Failure(format!(
                "command timed out: \"{}\" timed out after {}s",
                command.join(" "),
                timeout.as_secs()
            )),
        }
    }
}

/// A status names its container as `<runtime>://<id>`.
fn is_of(status: &ContainerStatus, id: &str) -> bool {
    status.container_id.as_ref().and_then(|full| full.split_once("://")).is_some_and(|(_, own)| own == id)
}

pub(crate) fn cut(text: &str) -> String {
    let mut end = text.len().min(MAX_OUTPUT_BYTES);
    while !text.is_char_boundary(end) {
        end -= 1;
    }
    text[..end].to_owned()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_verdict_needs_its_threshold_in_a_row() {
        let mut streak = Streak { last: None, length: 0 };
        let verdicts: Vec<Option<bool>> =
            [false, false, true, false, false, false, false, true, true].map(|ok| streak.add(ok, 2, 3)).to_vec();
        let expected = [None, None, None, None, None, Some(false), Some(false), None, Some(true)];
        assert_eq!(verdicts, expected);
    }

    #[test]
    fn output_is_cut_between_characters() {
        assert_eq!(cut(&"é".repeat(MAX_OUTPUT_BYTES)).len(), MAX_OUTPUT_BYTES);
        assert_eq!(cut(&format!("a{}", "é".repeat(MAX_OUTPUT_BYTES))).len(), MAX_OUTPUT_BYTES - 1);
    }
}
