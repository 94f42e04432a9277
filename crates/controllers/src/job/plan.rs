//! What a Job does next: which pods it creates or deletes, and whether it has succeeded or failed. Pure.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::JobCondition;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::backoff;
use super::facts::{self, Facts, Observed, Wish, condition, failures_of, ignored_failures_of, index_of};
use super::policy::{self, Action as Verdict};
use crate::pods;

/// Pods created or deleted in one reconcile at most.
pub const BURST: usize = 500;

/// A pod to create.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NewPod {
    /// In an Indexed Job.
    pub index: Option<i32>,
    /// Counted and ignored failures of its predecessors, where the Job limits failures by index.
    pub failures: Option<(i32, i32)>,
}

#[derive(Debug, Default)]
pub enum Action {
    #[default]
    Nothing,
    Create(Vec<NewPod>),
    /// Pods that are too many: their end counts neither as success nor as failure.
    Drop(Vec<Arc<Pod>>),
    /// The Job has come to its end: the pods are deleted, and counted when they are gone.
    Stop(Vec<Arc<Pod>>),
}

pub struct Decision<'a> {
    pub observed: &'a Observed<'a>,
    pub wish: Wish<'a>,
    pub facts: Facts,
    /// `SuccessCriteriaMet`, `FailureTarget`, or `Failed` if a failure target was set before.
    pub verdict: Option<JobCondition>,
    pub action: Action,
    pub recheck: Option<Duration>,
}

pub fn new_condition(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> JobCondition {
    JobCondition {
        type_: type_.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()).filter(|reason| !reason.is_empty()),
        message: Some(message.to_owned()).filter(|message| !message.is_empty()),
        last_probe_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

/// None if the Job has no spec.
pub fn decide<'a>(observed: &'a Observed<'a>) -> Option<Decision<'a>> {
    let wish = Wish::of(observed.job)?;
    let facts = Facts::gather(observed, &wish);
    let mut decision = Decision { observed, wish, facts, verdict: None, action: Action::Nothing, recheck: None };
    decision.verdict = decision.judge();
    if decision.verdict.is_some() {
        decision.action = Action::Stop(decision.facts.active.clone());
    } else if observed.job.metadata.deletion_timestamp.is_none() {
        decision.action = decision.manage();
    }
    Some(decision)
}

impl Decision<'_> {
    fn wait(&mut self, wait: Duration) {
        self.recheck = Some(self.recheck.map_or(wait, |sooner| sooner.min(wait)));
    }

    /// The condition that leads to the Job's end, if it has come.
    fn judge(&mut self) -> Option<JobCondition> {
        let now = self.observed.now;
        let status = self.observed.job.status.clone().unwrap_or_default();
        if let Some(met) = condition(&status, "SuccessCriteriaMet") {
            return Some(met.clone());
        }
        if let Some(target) = condition(&status, "FailureTarget") {
            let text = |text: &Option<String>| text.clone().unwrap_or_default();
            return Some(new_condition("Failed", "True", &text(&target.reason), &text(&target.message), now));
        }
        if let Some((reason, message)) = self.failure() {
            return Some(new_condition("FailureTarget", "True", reason, &message, now));
        }
        let completions = self.wish.completions.filter(|_| self.wish.indexed)?;
        let policy = self.wish.spec.success_policy.as_ref();
        let message = policy::success(policy, completions, &self.facts.succeeded_indexes)?;
        Some(new_condition("SuccessCriteriaMet", "True", "SuccessPolicy", &message, now))
    }

    /// Reason and message of what makes the Job fail now.
    fn failure(&mut self) -> Option<(&'static str, String)> {
        let fails = |pod: &Arc<Pod>| match facts::action(&self.wish, pod) {
            Verdict::FailJob(message) if policy::is_failed(self.observed.job, pod) => Some(message),
            _ => None,
        };
        if let Some(message) = self.observed.pods.iter().find_map(fails) {
            return Some(("PodFailurePolicy", message));
        }
        if self.facts.failed > self.wish.backoff_limit || self.restarts_exceed_limit() {
            return Some(("BackoffLimitExceeded", "Job has reached the specified backoff limit".to_owned()));
        }
        match self.until_deadline() {
            Some(Duration::ZERO) => {
                return Some(("DeadlineExceeded", "Job was active longer than specified deadline".to_owned()));
            }
            Some(left) => self.wait(left),
            None => {}
        }
        let failed = self.facts.failed_indexes.as_ref()?.total();
        if self.wish.spec.max_failed_indexes.is_some_and(|max| failed > max) {
            let message = "Job has exceeded the specified maximal number of failed indexes";
            return Some(("MaxFailedIndexesExceeded", message.to_owned()));
        }
        let all = failed + self.facts.succeeded_indexes.total() >= self.wish.completions.unwrap_or(0);
        (failed > 0 && all).then(|| ("FailedIndexes", "Job has failed indexes".to_owned()))
    }

    /// Containers that are restarted in their pod count by their restarts.
    fn restarts_exceed_limit(&self) -> bool {
        let template = self.wish.spec.template.spec.as_ref();
        if template.and_then(|spec| spec.restart_policy.as_deref()) != Some("OnFailure") {
            return false;
        }
        let running = self.observed.pods.iter().filter(|pod| matches!(pods::phase(pod), "Running" | "Pending"));
        let statuses = running.filter_map(|pod| pod.status.as_ref());
        let containers = statuses
            .flat_map(|status| status.init_container_statuses.iter().chain(&status.container_statuses).flatten());
        let restarts: i64 = containers.map(|container| i64::from(container.restart_count)).sum();
        restarts >= i64::from(self.wish.backoff_limit).max(1)
    }

    /// The time left until the Job has been active for too long, zero if it is up.
    fn until_deadline(&self) -> Option<Duration> {
        if self.wish.suspended {
            return None;
        }
        let allowed = Duration::from_secs(u64::try_from(self.wish.spec.active_deadline_seconds?).unwrap_or(0));
        let started = self.observed.job.status.as_ref().and_then(|status| status.start_time.as_ref());
        let started = started.map_or(self.observed.now, |time| time.0);
        let elapsed = Duration::try_from(self.observed.now.duration_since(started)).unwrap_or_default();
        Some(allowed.saturating_sub(elapsed))
    }

    /// Brings the number of running pods to what is wanted. Deletion goes before creation.
    fn manage(&mut self) -> Action {
        let active = facts::count(self.facts.active.len());
        if self.wish.suspended {
            return if active == 0 { Action::Nothing } else { Action::Drop(self.facts.active.clone()) };
        }
        let wanted = match self.wish.completions {
            // After the first success the pods that still run are left to end by themselves.
            None if self.facts.succeeded > 0 => active,
            None => self.wish.parallelism,
            Some(completions) => (completions - self.facts.succeeded).min(self.wish.parallelism).max(0),
        };
        let mut surplus = self.surplus((active - wanted).max(0) as usize);
        if !surplus.is_empty() {
            surplus.truncate(BURST);
            return Action::Drop(surplus);
        }
        let terminating = if self.wish.replaces_only_failed { self.facts.terminating } else { 0 };
        let lacking = (wanted - terminating - active).max(0) as usize;
        if lacking == 0 {
            return Action::Nothing;
        }
        self.create(lacking.min(BURST))
    }

    fn create(&mut self, lacking: usize) -> Action {
        let by_index = self.wish.spec.backoff_limit_per_index.is_some();
        let wait = if by_index { Duration::ZERO } else { self.facts.record.wait(self.observed.now) };
        if !wait.is_zero() {
            self.wait(wait);
            return Action::Nothing;
        }
        let new = if self.wish.indexed { self.next_indexes(lacking) } else { vec![NewPod::default(); lacking] };
        if new.is_empty() { Action::Nothing } else { Action::Create(new) }
    }

    /// The lowest indexes that lack a pod, less those whose last failure is waited out.
    fn next_indexes(&mut self, lacking: usize) -> Vec<NewPod> {
        let waits_for_end =
            |pod: &&Arc<Pod>| self.wish.replaces_only_failed && facts::is_deleting(pod) && !pods::is_finished(pod);
        let taken: BTreeSet<i32> = self.facts.active.iter().filter_map(|pod| index_of(pod)).collect();
        let ending: BTreeSet<i32> =
            self.observed.pods.iter().filter(waits_for_end).filter_map(|pod| index_of(pod)).collect();
        let mut taken = self.facts.succeeded_indexes.union(&taken.into()).union(&ending.into());
        if let Some(failed) = &self.facts.failed_indexes {
            taken = taken.union(failed);
        }
        let indexes = taken.first_missing(lacking, self.wish.completions.unwrap_or(0));
        if self.wish.spec.backoff_limit_per_index.is_none() {
            return indexes.into_iter().map(|index| NewPod { index: Some(index), failures: None }).collect();
        }
        let mut new = Vec::new();
        for index in indexes {
            let failures = match self.facts.awaiting.get(&index) {
                None => (0, 0),
                Some(pod) => {
                    let before = (failures_of(pod), ignored_failures_of(pod));
                    let failed_at = backoff::finished_at(pod);
                    let row = u32::try_from(before.0.saturating_add(before.1).saturating_add(1)).unwrap_or(1);
                    let wait = backoff::remaining(row, failed_at, self.observed.now);
                    if !wait.is_zero() {
                        self.wait(wait);
                        continue;
                    }
                    match facts::action(&self.wish, pod) {
                        Verdict::Ignore => (before.0, before.1.saturating_add(1)),
                        _ => (before.0.saturating_add(1), before.1),
                    }
                }
            };
            new.push(NewPod { index: Some(index), failures: Some(failures) });
        }
        new
    }

    /// At least `count` active pods to delete: of an Indexed Job first those without a valid index and all but one of each
    /// index, then those that have come least far.
    fn surplus(&self, count: usize) -> Vec<Arc<Pod>> {
        let mut surplus = Vec::new();
        let mut left = Vec::new();
        if self.wish.indexed {
            let mut by_index: BTreeMap<i32, Vec<Arc<Pod>>> = BTreeMap::new();
            for pod in &self.facts.active {
                match self.wish.index_of(pod) {
                    Some(index) => by_index.entry(index).or_default().push(pod.clone()),
                    None => surplus.push(pod.clone()),
                }
            }
            for mut pods in by_index.into_values() {
                pods.sort_by(|a, b| pods::least_advanced(a, b));
                left.extend(pods.pop());
                surplus.extend(pods);
            }
        } else {
            left = self.facts.active.clone();
        }
        if surplus.len() < count {
            left.sort_by(|a, b| pods::least_advanced(a, b));
            left.truncate(count - surplus.len());
            surplus.extend(left);
        }
        surplus
    }
}
