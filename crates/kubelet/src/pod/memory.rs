//! What a pod's worker remembers of its attempts: when each container may be started again, and what to show meanwhile.
//! Pure: time is an argument.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::ContainerStateWaiting;

use super::plan::Gate;
use crate::backoff::Backoff;
use crate::pods::RunState;
use crate::runtime::ContainerView;

const FIRST_DELAY: Duration = Duration::from_secs(10);
/// How long a failed pull is shown as such before it is shown as backing off.
const PULL_ERROR_SHOWN: Duration = Duration::from_secs(3);
/// Failures that no event will mend are tried again so soon, then ever later.
const FIRST_RETRY: Duration = Duration::from_secs(1);
const LONGEST_RETRY: Duration = Duration::from_secs(60);

/// Why a start failed, as status and events name it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct StartFailure {
    /// The waiting reason: ErrImagePull, CreateContainerConfigError, RunContainerError …
    pub reason: &'static str,
    pub message: String,
}

#[derive(Clone, Debug)]
struct Failed {
    failure: StartFailure,
    at: Timestamp,
    retry_at: Timestamp,
    /// The image whose pull failed, until the back-off has been shown.
    unannounced_pull: Option<String>,
}

/// What is newly to be told of a container that waits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Notice {
    CrashLoop,
    PullBackoff { image: String },
}

pub struct Memory {
    crashes: Backoff,
    pulls: Backoff,
    retries: Backoff,
    failed: HashMap<String, Failed>,
    waiting: HashMap<String, ContainerStateWaiting>,
    /// The container whose crash has been told, by name.
    crash_told: HashMap<String, String>,
    /// By name, what was killed in this round, with the end of the dead one before it.
    killed: HashMap<String, Option<Timestamp>>,
}

impl Memory {
    pub fn new(longest_crash_delay: Duration) -> Self {
        Memory {
            crashes: Backoff::new(FIRST_DELAY, longest_crash_delay),
            pulls: Backoff::new(FIRST_DELAY, Duration::from_secs(300)),
            retries: Backoff::new(FIRST_RETRY, LONGEST_RETRY),
            failed: HashMap::new(),
            waiting: HashMap::new(),
            crash_told: HashMap::new(),
            killed: HashMap::new(),
        }
    }

    /// `name` is being killed, to be started again at once. Until the round is over its back-off counts from the end of the dead
    /// container before it, as upstream's, which decides by what it saw before the kill: what fails its liveness probe after a
    /// good while comes back without delay.
    pub fn kills(&mut self, name: &str, dead_before: Option<&ContainerView>) {
        self.killed.insert(name.to_owned(), ended_at(dead_before));
    }

    /// Nothing is left to do for now.
    pub fn round_ends(&mut self) {
        self.killed.clear();
    }

    /// From when the delay of the next start counts; none if there is nothing to back off from.
    fn crashed_at(&self, name: &str, previous: Option<&ContainerView>) -> Option<Timestamp> {
        match self.killed.get(name) {
            Some(before) => *before,
            None => ended_at(previous),
        }
    }

    /// Why containers do not run, by name.
    pub fn waiting(&self) -> &HashMap<String, ContainerStateWaiting> {
        &self.waiting
    }

    /// The start of `name` after `previous` is being tried.
    pub fn attempt(&mut self, name: &str, previous: Option<&ContainerView>, now: Timestamp) {
        self.failed.remove(name);
        if let Some(since) = self.crashed_at(name, previous) {
            self.crashes.next(name, since, now);
        }
    }

    pub fn succeeded(&mut self, name: &str) {
        self.waiting.remove(name);
        self.crash_told.remove(name);
        self.pulls.forget(name);
        self.retries.forget(name);
    }

    /// `pulled` is the image when it was the pull that failed.
    pub fn failed(&mut self, name: &str, failure: StartFailure, pulled: Option<&str>, now: Timestamp) {
        let backoff = if pulled.is_some() { &mut self.pulls } else { &mut self.retries };
        backoff.next(name, now, now);
        let retry_at = backoff.blocked(name, now, now).map_or(now, |(_, until)| until);
        let unannounced_pull = pulled.map(str::to_owned);
        self.show(name, failure.reason, failure.message.clone());
        self.failed.insert(name.to_owned(), Failed { failure, at: now, retry_at, unannounced_pull });
    }

    /// Objects that a container refers to have changed: what failed for want of them may be tried at once.
    pub fn configuration_changed(&mut self) {
        self.failed.retain(|_, failed| failed.failure.reason != "CreateContainerConfigError");
    }

    /// Updates what is shown of a container that waits, and says what is new about it.
    pub fn waits(&mut self, name: &str, previous: Option<&ContainerView>, pod: &str, now: Timestamp) -> Option<Notice> {
        if let Some(failed) = self.failed.get_mut(name) {
            let shown_long_enough = now >= after(failed.at, PULL_ERROR_SHOWN);
            let image = failed.unannounced_pull.take_if(|_| shown_long_enough)?;
            let message = format!("Back-off pulling image \"{image}\": {}", failed.failure.message);
            self.show(name, "ImagePullBackOff", message);
            return Some(Notice::PullBackoff { image });
        }
        let (since, previous) = (self.crashed_at(name, previous)?, previous?);
        let (delay, _) = self.crashes.blocked(name, since, now)?;
        let delay = in_words(delay);
        self.show(name, "CrashLoopBackOff", format!("back-off {delay} restarting failed container={name} pod={pod}"));
        let told = self.crash_told.insert(name.to_owned(), previous.id.clone());
        (told.as_ref() != Some(&previous.id)).then_some(Notice::CrashLoop)
    }

    fn show(&mut self, name: &str, reason: &str, message: String) {
        let waiting = ContainerStateWaiting { reason: Some(reason.to_owned()), message: Some(message) };
        self.waiting.insert(name.to_owned(), waiting);
    }
}

impl Gate for Memory {
    fn blocked(&self, name: &str, previous: Option<&ContainerView>, now: Timestamp) -> Option<Timestamp> {
        if let Some(failed) = self.failed.get(name) {
            let shown_until = after(failed.at, PULL_ERROR_SHOWN);
            let next =
                if failed.unannounced_pull.is_some() { shown_until.min(failed.retry_at) } else { failed.retry_at };
            return (now < failed.retry_at).then_some(next);
        }
        self.crashes.blocked(name, self.crashed_at(name, previous)?, now).map(|(_, until)| until)
    }
}

/// When a container ended, if it has.
fn ended_at(previous: Option<&ContainerView>) -> Option<Timestamp> {
    previous.filter(|view| view.state == RunState::Exited)?.finished_at
}

fn after(time: Timestamp, delay: Duration) -> Timestamp {
    time.checked_add(delay).unwrap_or(Timestamp::MAX)
}

/// Go's form of a duration of whole seconds: `10s`, `1m20s`, `5m0s`.
fn in_words(delay: Duration) -> String {
    let seconds = delay.as_secs();
    if seconds < 60 { format!("{seconds}s") } else { format!("{}m{}s", seconds / 60, seconds % 60) }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn a_failed_pull_is_shown_then_backs_off_then_is_tried_again() {
        let mut memory = Memory::new(Duration::from_secs(300));
        memory.attempt("c", None, at(0));
        let failure = StartFailure { reason: "ErrImagePull", message: "no route".to_owned() };
        memory.failed("c", failure, Some("nginx"), at(0));
        assert_eq!(memory.waiting()["c"].reason.as_deref(), Some("ErrImagePull"));
        assert_eq!(memory.blocked("c", None, at(0)), Some(at(3)));
        assert_eq!(memory.waits("c", None, "p", at(1)), None);
        assert_eq!(memory.waits("c", None, "p", at(3)), Some(Notice::PullBackoff { image: "nginx".to_owned() }));
        assert_eq!(memory.waiting()["c"].message.as_deref(), Some("Back-off pulling image \"nginx\": no route"));
        assert_eq!(memory.waits("c", None, "p", at(4)), None);
        assert_eq!(memory.blocked("c", None, at(4)), Some(at(10)));
        assert_eq!(memory.blocked("c", None, at(10)), None);
    }

    #[test]
    fn a_missing_config_map_that_appears_ends_the_wait() {
        let mut memory = Memory::new(Duration::from_secs(300));
        let failure =
            StartFailure { reason: "CreateContainerConfigError", message: "configmap \"x\" not found".into() };
        memory.failed("c", failure, None, at(0));
        assert!(memory.blocked("c", None, at(0)).is_some());
        memory.configuration_changed();
        assert_eq!(memory.blocked("c", None, at(0)), None);
        assert_eq!(memory.waiting()["c"].reason.as_deref(), Some("CreateContainerConfigError"), "until it has started");
        memory.succeeded("c");
        assert!(memory.waiting().is_empty());
    }

    #[test]
    fn what_is_killed_after_a_good_while_comes_back_at_once() {
        let ended = |at: Timestamp| ContainerView {
            id: at.to_string(),
            state: RunState::Exited,
            finished_at: Some(at),
            ..crate::status::tests::view("c", "", "exit137", 0)
        };
        let mut memory = Memory::new(Duration::from_secs(300));
        let mut before = None;
        for kill in [100, 200, 300] {
            memory.kills("c", before.as_ref());
            let dead = ended(at(kill));
            assert_eq!(memory.blocked("c", Some(&dead), at(kill)), None);
            memory.attempt("c", Some(&dead), at(kill));
            memory.round_ends();
            before = Some(dead);
        }
        memory.kills("c", before.as_ref());
        let dead = ended(at(305));
        assert_eq!(memory.blocked("c", Some(&dead), at(305)), Some(at(320)), "20 s from the death before");
        memory.round_ends();
        assert_eq!(memory.blocked("c", Some(&dead), at(306)), Some(at(325)), "then from its own");
    }

    #[test]
    fn durations_in_words() {
        let words = [10, 80, 300].map(|s| in_words(Duration::from_secs(s)));
        assert_eq!(words, ["10s", "1m20s", "5m0s"]);
    }
}
