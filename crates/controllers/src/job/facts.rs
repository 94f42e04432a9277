//! What is known of a Job and its pods before anything is decided. Pure.

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobCondition, JobSpec, JobStatus};
use k8s_openapi::api::core::v1::Pod;

use super::backoff::{self, Record};
use super::indexes::Indexes;
use super::policy::{self, Action};
use crate::pods;

/// Keeps a pod until its end is counted in the Job's status.
pub const FINALIZER: &str = "batch.kubernetes.io/job-tracking";
/// Annotation and label of a pod of an Indexed Job.
pub const INDEX: &str = "batch.kubernetes.io/job-completion-index";
/// Failures of the pod's predecessors at its index, where the Job limits them by index.
pub const FAILURES: &str = "batch.kubernetes.io/job-index-failure-count";
/// The same for failures that the pod failure policy ignores.
pub const IGNORED_FAILURES: &str = "batch.kubernetes.io/job-index-ignored-failure-count";

pub struct Observed<'a> {
    pub job: &'a Job,
    /// All pods that the Job owns, ended and deleted ones too.
    pub pods: &'a [Arc<Pod>],
    pub record: Record,
    /// In whole seconds, as times are kept in the API.
    pub now: Timestamp,
}

/// A Job's wish with the defaults that the server fills in.
pub struct Wish<'a> {
    pub spec: &'a JobSpec,
    pub parallelism: i32,
    pub completions: Option<i32>,
    pub backoff_limit: i32,
    pub indexed: bool,
    pub suspended: bool,
    pub replaces_only_failed: bool,
}

impl<'a> Wish<'a> {
    /// None if the Job has no spec, which the server does not let pass.
    pub fn of(job: &'a Job) -> Option<Self> {
        let spec = job.spec.as_ref()?;
        Some(Wish {
            spec,
            parallelism: spec.parallelism.unwrap_or(1),
            completions: spec.completions,
            backoff_limit: spec.backoff_limit.unwrap_or(6),
            indexed: spec.completion_mode.as_deref() == Some("Indexed"),
            suspended: spec.suspend == Some(true),
            replaces_only_failed: policy::replaces_only_failed(job),
        })
    }

    /// The index of a pod, if it is one that the Job asks for.
    pub fn index_of(&self, pod: &Pod) -> Option<i32> {
        index_of(pod).filter(|index| self.completions.is_some_and(|completions| *index < completions))
    }

    /// Whether the end of a pod counts at all: pods of an Indexed Job need an index that is asked for.
    fn is_meant(&self, pod: &Pod) -> bool {
        !self.indexed || self.index_of(pod).is_some()
    }
}

/// The index that the pod's annotation names.
pub fn index_of(pod: &Pod) -> Option<i32> {
    number(pod, INDEX)
}

/// An annotation that holds a number which is not negative.
fn number(pod: &Pod, annotation: &str) -> Option<i32> {
    pod.metadata.annotations.as_ref()?.get(annotation)?.parse().ok().filter(|number| *number >= 0)
}

pub fn failures_of(pod: &Pod) -> i32 {
    number(pod, FAILURES).unwrap_or(0)
}

pub fn ignored_failures_of(pod: &Pod) -> i32 {
    number(pod, IGNORED_FAILURES).unwrap_or(0)
}

pub fn is_tracked(pod: &Pod) -> bool {
    pod.metadata.finalizers.iter().flatten().any(|finalizer| finalizer == FINALIZER)
}

pub fn uid(pod: &Pod) -> &str {
    pod.metadata.uid.as_deref().unwrap_or_default()
}

pub fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

/// The condition of this type, if it is true.
pub fn condition<'a>(status: &'a JobStatus, type_: &str) -> Option<&'a JobCondition> {
    status.conditions.iter().flatten().find(|condition| condition.type_ == type_ && condition.status == "True")
}

/// The condition that ended the Job: `Complete` or `Failed`.
pub fn end_of(job: &Job) -> Option<&JobCondition> {
    let status = job.status.as_ref()?;
    condition(status, "Complete").or_else(|| condition(status, "Failed"))
}

/// What the pods say, taken together with what the status has counted already.
pub struct Facts {
    pub active: Vec<Arc<Pod>>,
    pub ready: i32,
    pub terminating: i32,
    /// Pods in the status that are counted when their finalizer is gone.
    pub uncounted_succeeded: HashSet<String>,
    pub uncounted_failed: HashSet<String>,
    /// Pods, or indexes of an Indexed Job.
    pub succeeded: i32,
    /// Pods whose failure counts.
    pub failed: i32,
    /// The succeeded indexes of the status, and those with what succeeded since.
    pub counted_indexes: Indexes,
    pub succeeded_indexes: Indexes,
    /// If the Job limits failures by index.
    pub failed_indexes: Option<Indexes>,
    /// The last failed pod of each index that waits for a replacement, which takes over its count of failures.
    pub awaiting: BTreeMap<i32, Arc<Pod>>,
    pub record: Record,
}

impl Facts {
    pub fn gather(observed: &Observed<'_>, wish: &Wish<'_>) -> Self {
        let status = observed.job.status.clone().unwrap_or_default();
        let uncounted = status.uncounted_terminated_pods.unwrap_or_default();
        let set = |list: Option<Vec<String>>| -> HashSet<String> { list.into_iter().flatten().collect() };
        let (uncounted_succeeded, uncounted_failed) = (set(uncounted.succeeded), set(uncounted.failed));
        let active: Vec<Arc<Pod>> = observed.pods.iter().filter(|pod| pods::is_active(pod)).cloned().collect();
        let new = |known: &HashSet<String>, ended: &dyn Fn(&Pod) -> bool| -> Vec<&Arc<Pod>> {
            let is_new = |pod: &&Arc<Pod>| is_tracked(pod) && !known.contains(uid(pod));
            observed.pods.iter().filter(is_new).filter(|pod| wish.is_meant(pod) && ended(pod)).collect()
        };
        let succeeded = new(&uncounted_succeeded, &|pod| pods::phase(pod) == "Succeeded");
        let failed = new(&uncounted_failed, &|pod| policy::is_failed(observed.job, pod));
        let counts = |pod: &&&Arc<Pod>| action(wish, pod) != Action::Ignore;
        let mut facts = Facts {
            ready: count(active.iter().filter(|pod| pods::is_ready(pod)).count()),
            terminating: count(observed.pods.iter().filter(|pod| is_deleting(pod) && !pods::is_finished(pod)).count()),
            succeeded: status.succeeded.unwrap_or(0) + count(succeeded.len() + uncounted_succeeded.len()),
            failed: status.failed.unwrap_or(0) + count(failed.iter().filter(counts).count() + uncounted_failed.len()),
            record: observed.record.after(&succeeded, &failed),
            active,
            uncounted_succeeded,
            uncounted_failed,
            counted_indexes: Indexes::default(),
            succeeded_indexes: Indexes::default(),
            failed_indexes: None,
            awaiting: BTreeMap::new(),
        };
        if wish.indexed {
            facts.gather_indexes(observed, wish);
        }
        facts
    }

    fn gather_indexes(&mut self, observed: &Observed<'_>, wish: &Wish<'_>) {
        let completions = wish.completions.unwrap_or(0);
        let status = observed.job.status.as_ref();
        let tracked = || observed.pods.iter().filter(|pod| is_tracked(pod));
        let known = |text: Option<&String>| Indexes::parse(text.map_or("", String::as_str), completions);
        self.counted_indexes = known(status.and_then(|status| status.completed_indexes.as_ref()));
        let succeeded: BTreeSet<i32> =
            tracked().filter(|pod| pods::phase(pod) == "Succeeded").filter_map(|pod| wish.index_of(pod)).collect();
        self.succeeded_indexes = self.counted_indexes.union(&succeeded.into());
        self.succeeded = self.succeeded_indexes.total();
        let Some(limit) = wish.spec.backoff_limit_per_index else { return };
        let has_failed = |pod: &&Arc<Pod>| {
            policy::is_failed(observed.job, pod)
                && match action(wish, pod) {
                    Action::FailIndex => true,
                    Action::Ignore => false,
                    Action::Count | Action::FailJob(_) => failures_of(pod) >= limit,
                }
        };
        let failed: BTreeSet<i32> = tracked().filter(has_failed).filter_map(|pod| wish.index_of(pod)).collect();
        let failed = known(status.and_then(|status| status.failed_indexes.as_ref())).union(&failed.into());
        let active: BTreeSet<i32> = self.active.iter().filter_map(|pod| index_of(pod)).collect();
        for pod in tracked().filter(|pod| policy::is_failed(observed.job, pod)) {
            let Some(index) = wish.index_of(pod) else { continue };
            if self.succeeded_indexes.has(index) || failed.has(index) || active.contains(&index) {
                continue;
            }
            let age = |pod: &Pod| (failures_of(pod) + ignored_failures_of(pod), backoff::finished_at(pod));
            let newer = self.awaiting.get(&index).is_none_or(|last| {
                let (new, old) = (age(pod), age(last));
                old.0 <= new.0 && old.1 <= new.1
            });
            if newer {
                self.awaiting.insert(index, pod.clone());
            }
        }
        self.failed_indexes = Some(failed);
    }
}

/// What the Job's policy says of a failed pod.
pub fn action(wish: &Wish<'_>, pod: &Pod) -> Action {
    policy::action(wish.spec.pod_failure_policy.as_ref(), pod)
}

pub fn count(number: usize) -> i32 {
    i32::try_from(number).unwrap_or(i32::MAX)
}
