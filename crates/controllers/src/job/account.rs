//! A Job's status: what is counted, and how it comes to its end. Pure.
//!
//! A pod that has ended is counted in two steps, so that it is counted exactly once whatever fails between them: its UID
//! (or its index) enters the status, then its finalizer is removed, then the UID leaves the status and the counter rises.

use std::collections::HashSet;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{JobCondition, JobStatus, UncountedTerminatedPods};
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::facts::{self, action, condition, index_of, is_tracked, uid};
use super::plan::{Action, Decision, new_condition};
use super::policy::{self, Action as Verdict};
use crate::pods;

/// Pods that wait in the status to be counted, at most.
pub const UNCOUNTED_MAX: usize = 500;

/// What came of the decision's action.
#[derive(Clone, Copy, Debug, Default)]
pub struct Outcome {
    pub created: usize,
    /// Whether all pods that were to be deleted are.
    pub deleted: bool,
}

/// An event about the Job.
#[derive(Debug, PartialEq, Eq)]
pub struct Event {
    pub warning: bool,
    pub reason: String,
    pub message: String,
}

fn normal(reason: &str, message: &str) -> Event {
    Event { warning: false, reason: reason.to_owned(), message: message.to_owned() }
}

pub struct Account {
    /// To be written before any finalizer is removed.
    pub status: JobStatus,
    /// Pods whose finalizer can go then.
    pub release: Vec<Arc<Pod>>,
    /// The condition that ends the Job once all is counted.
    pub end: Option<JobCondition>,
    pub events: Vec<Event>,
    tracked: HashSet<String>,
    /// Some pods had to be left to the next round.
    full: bool,
    completions: Option<i32>,
}

/// Zero is absent in most numbers of the API.
fn some(number: i32) -> Option<i32> {
    Some(number).filter(|number| *number != 0)
}

fn is_met(end: &Option<JobCondition>) -> bool {
    end.as_ref().is_some_and(|end| end.type_ == "SuccessCriteriaMet")
}

/// The status after the action, before finalizers are removed.
pub fn account(decision: &Decision<'_>, outcome: Outcome) -> Account {
    let tracked = decision.observed.pods.iter().filter(|pod| is_tracked(pod)).map(|pod| uid(pod).to_owned());
    let mut account = Account {
        status: decision.observed.job.status.clone().unwrap_or_default(),
        release: Vec::new(),
        end: decision.verdict.clone(),
        events: Vec::new(),
        tracked: tracked.collect(),
        full: false,
        completions: decision.wish.completions,
    };
    if account.status.start_time.is_none() && !decision.wish.suspended {
        account.status.start_time = Some(Time(decision.observed.now));
    }
    account.count_running(decision, outcome);
    account.count_ended(decision);
    account.announce_end(decision.observed.now);
    account
}

impl Account {
    fn count_running(&mut self, decision: &Decision<'_>, outcome: Outcome) {
        let facts = &decision.facts;
        let going: &[Arc<Pod>] = match &decision.action {
            Action::Drop(pods) | Action::Stop(pods) if outcome.deleted => pods,
            _ => &[],
        };
        let deleted = facts::count(going.len());
        let active = facts::count(facts.active.len() + outcome.created) - deleted;
        self.status.active = some(active);
        self.status.ready = Some(facts.ready - facts::count(going.iter().filter(|pod| pods::is_ready(pod)).count()));
        self.status.terminating = Some(facts.terminating + deleted);
        if self.end.is_some() {
            // Not yet at its end while a pod still runs.
            self.end = self.end.take().filter(|_| active == 0);
            return;
        }
        let now = decision.observed.now;
        let complete = match decision.wish.completions {
            None => facts.succeeded > 0 && active == 0,
            Some(completions) => facts.succeeded >= completions && active == 0,
        };
        if complete {
            let (reason, message) = ("CompletionsReached", "Reached expected number of succeeded pods");
            self.end = Some(new_condition("SuccessCriteriaMet", "True", reason, message, now));
        } else if decision.observed.job.metadata.deletion_timestamp.is_none() {
            self.note_suspension(decision.wish.suspended, now);
        }
    }

    /// The clock of the deadline stands while a Job is suspended, and starts anew when it is resumed.
    fn note_suspension(&mut self, suspended: bool, now: Timestamp) {
        if suspended {
            self.status.start_time = None;
            if self.set(new_condition("Suspended", "True", "JobSuspended", "Job suspended", now)) {
                self.events.push(normal("Suspended", "Job suspended"));
            }
        } else if self.set(new_condition("Suspended", "False", "JobResumed", "Job resumed", now)) {
            self.events.push(normal("Resumed", "Job resumed"));
            self.status.start_time = Some(Time(now));
        }
    }

    /// Adds or changes a condition; a false one is not added. Whether anything changed.
    fn set(&mut self, new: JobCondition) -> bool {
        let conditions = self.status.conditions.get_or_insert_default();
        let same = |a: &JobCondition, b: &JobCondition| {
            (&a.status, &a.reason, &a.message) == (&b.status, &b.reason, &b.message)
        };
        let changed = match conditions.iter_mut().find(|old| old.type_ == new.type_) {
            Some(old) if same(old, &new) => false,
            Some(old) => {
                *old = new;
                true
            }
            None if new.status == "False" => false,
            None => {
                conditions.push(new);
                true
            }
        };
        if conditions.is_empty() {
            self.status.conditions = None;
        }
        changed
    }

    /// Notes newly ended pods as uncounted, and finds those whose finalizer is no longer needed.
    fn count_ended(&mut self, decision: &Decision<'_>) {
        self.count_released();
        let (wish, facts) = (&decision.wish, &decision.facts);
        let mut pods: Vec<&Arc<Pod>> = decision.observed.pods.iter().filter(|pod| is_tracked(pod)).collect();
        if wish.indexed {
            pods.sort_by_key(|pod| index_of(pod));
        }
        let mut new_indexes = std::collections::BTreeSet::new();
        for pod in pods {
            let failed = policy::is_failed(decision.observed.job, pod);
            if !self.can_release(decision, pod, failed) {
                continue;
            }
            let known_failure = facts.uncounted_failed.contains(uid(pod));
            let uncounted = self.status.uncounted_terminated_pods.get_or_insert_default();
            let stopped = self.end.is_some() && !is_met(&self.end);
            if pods::phase(pod) == "Succeeded" && !known_failure {
                if wish.indexed {
                    // The index in the status is enough to count a success once.
                    new_indexes.extend(wish.index_of(pod).filter(|index| !facts.counted_indexes.has(*index)));
                } else if !facts.uncounted_succeeded.contains(uid(pod)) {
                    uncounted.succeeded.get_or_insert_default().push(uid(pod).to_owned());
                }
            } else if (failed || stopped)
                && !known_failure
                && (!wish.indexed || wish.index_of(pod).is_some())
                && action(wish, pod) != Verdict::Ignore
            {
                uncounted.failed.get_or_insert_default().push(uid(pod).to_owned());
            }
            self.release.push(pod.clone());
            let length = |list: &Option<Vec<String>>| list.as_ref().map_or(0, Vec::len);
            if new_indexes.len() + length(&uncounted.succeeded) + length(&uncounted.failed) >= UNCOUNTED_MAX {
                // The writes of this round bring the next.
                self.full = true;
                break;
            }
        }
        if wish.indexed {
            let counted = facts.counted_indexes.union(&new_indexes.into());
            self.status.succeeded = some(counted.total());
            self.status.completed_indexes = Some(counted.to_string()).filter(|text| !text.is_empty());
            self.status.failed_indexes = facts.failed_indexes.as_ref().map(ToString::to_string);
        }
    }

    /// Whether a pod's finalizer has served its purpose: the Job is at its end, or the pod has ended and no replacement
    /// has to learn from it how often its index has failed.
    fn can_release(&self, decision: &Decision<'_>, pod: &Pod, failed: bool) -> bool {
        let ending = decision.observed.job.metadata.deletion_timestamp.is_some() || self.end.is_some();
        let awaited = || {
            let index = index_of(pod).and_then(|index| decision.facts.awaiting.get(&index));
            index.is_some_and(|last| last.metadata.uid == pod.metadata.uid)
        };
        ending || pods::phase(pod) == "Succeeded" || (failed && !awaited())
    }

    /// UIDs without a finalizer leave the status and raise its counters.
    fn count_released(&mut self) {
        let uncounted = self.status.uncounted_terminated_pods.get_or_insert_default();
        let tracked = &self.tracked;
        let clear = |list: &mut Option<Vec<String>>, counter: &mut Option<i32>| {
            let Some(uids) = list else { return };
            let before = uids.len();
            uids.retain(|uid| tracked.contains(uid));
            *counter = some(counter.unwrap_or(0) + facts::count(before - uids.len()));
            if uids.is_empty() {
                *list = None;
            }
        };
        clear(&mut uncounted.succeeded, &mut self.status.succeeded);
        clear(&mut uncounted.failed, &mut self.status.failed);
    }

    /// Says that the end is near before finalizers go, so that no later round can judge otherwise.
    fn announce_end(&mut self, now: Timestamp) {
        let Some(end) = self.end.clone() else { return };
        let text = |text: &Option<String>| text.clone().unwrap_or_default();
        let last = match end.type_.as_str() {
            "FailureTarget" => "Failed",
            "SuccessCriteriaMet" => "Complete",
            _ => return,
        };
        if condition(&self.status, &end.type_).is_none() {
            self.status.conditions.get_or_insert_default().push(end.clone());
        }
        self.end = Some(new_condition(last, "True", &text(&end.reason), &text(&end.message), now));
    }

    /// The status after the finalizers of `released` are gone; `status` is the one that was written last. Ends the Job if all
    /// is counted, no pod is left to end, and `all` finalizers that could go are gone.
    pub fn settle(mut self, status: JobStatus, released: &HashSet<String>, all: bool) -> (JobStatus, Vec<Event>) {
        self.status = status;
        self.events.clear();
        self.tracked.retain(|uid| !released.contains(uid));
        self.count_released();
        let empty = UncountedTerminatedPods::default();
        let counted = self.status.uncounted_terminated_pods.as_ref().is_none_or(|left| *left == empty);
        let all = all && !self.full;
        if let Some(end) = self.end.take().filter(|_| all && counted && self.status.terminating.unwrap_or(0) == 0) {
            if end.type_ == "Complete" {
                self.status.completion_time = end.last_transition_time.clone();
                let many = self.completions.is_some_and(|wanted| self.status.succeeded.unwrap_or(0) > wanted);
                if many {
                    let message = "Too many succeeded pods running after completion count reached";
                    let reason = "TooManySucceededPods".to_owned();
                    self.events.push(Event { warning: true, reason, message: message.to_owned() });
                }
                self.events.push(normal("Completed", "Job completed"));
            } else {
                let text = |text: &Option<String>| text.clone().unwrap_or_default();
                let event = Event { warning: true, reason: text(&end.reason), message: text(&end.message) };
                self.events.push(event);
            }
            self.set(end);
        }
        (self.status, self.events)
    }
}
