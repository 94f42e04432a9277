//! A deployment's status and conditions, with upstream's reasons and messages. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::size::Wish;

pub const AVAILABLE: &str = "Available";
pub const PROGRESSING: &str = "Progressing";
pub const REPLICA_FAILURE: &str = "ReplicaFailure";

pub const NEW_SET_CREATED: &str = "NewReplicaSetCreated";
pub const NEW_SET_FOUND: &str = "FoundNewReplicaSet";
pub const NEW_SET_AVAILABLE: &str = "NewReplicaSetAvailable";
pub const SET_CREATE_ERROR: &str = "ReplicaSetCreateError";
const SET_UPDATED: &str = "ReplicaSetUpdated";
const TIMED_OUT: &str = "ProgressDeadlineExceeded";
const PAUSED: &str = "DeploymentPaused";
const RESUMED: &str = "DeploymentResumed";

pub fn condition(type_: &str, status: &str, reason: &str, message: &str, now: Timestamp) -> DeploymentCondition {
    DeploymentCondition {
        type_: Some(type_.to_owned()),
        status: Some(status.to_owned()),
        reason: Some(reason.to_owned()),
        message: Some(message.to_owned()),
        last_update_time: Some(Time(now)),
        last_transition_time: Some(Time(now)),
    }
}

pub fn find<'a>(conditions: &'a [DeploymentCondition], type_: &str) -> Option<&'a DeploymentCondition> {
    conditions.iter().find(|condition| condition.type_.as_deref() == Some(type_))
}

pub fn remove(conditions: &mut Vec<DeploymentCondition>, type_: &str) {
    conditions.retain(|condition| condition.type_.as_deref() != Some(type_));
}

/// Nothing changes if status and reason are the same; the transition time is kept if only the reason differs.
pub fn set(conditions: &mut Vec<DeploymentCondition>, mut new: DeploymentCondition) {
    let type_ = new.type_.clone().unwrap_or_default();
    if let Some(old) = find(conditions, &type_) {
        if old.status == new.status && old.reason == new.reason {
            return;
        }
        if old.status == new.status {
            new.last_transition_time = old.last_transition_time.clone();
        }
    }
    remove(conditions, &type_);
    conditions.push(new);
}

pub fn progress_deadline(deployment: &Deployment) -> Option<i64> {
    deployment.spec.progress_deadline_seconds.filter(|seconds| *seconds != i32::MAX).map(i64::from)
}

/// The time of a pause does not count against the deadline, so pausing and resuming are noted as progress.
pub fn note_pause(deployment: &Deployment, conditions: &mut Vec<DeploymentCondition>, now: Timestamp) {
    if progress_deadline(deployment).is_none() {
        return;
    }
    let reason = find(conditions, PROGRESSING).and_then(|condition| condition.reason.as_deref());
    let noted = reason == Some(PAUSED);
    let paused = deployment.spec.paused == Some(true);
    if reason == Some(TIMED_OUT) || paused == noted {
        return;
    }
    let (reason, message) = if paused { (PAUSED, "Deployment is paused") } else { (RESUMED, "Deployment is resumed") };
    set(conditions, condition(PROGRESSING, "Unknown", reason, message, now));
}

/// Counts and the `Available` condition. `sets` are all sets as they are wanted now, with their status as seen.
pub fn counted(
    deployment: &Deployment,
    sets: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    mut conditions: Vec<DeploymentCondition>,
    now: Timestamp,
) -> DeploymentStatus {
    let wish = Wish::of(deployment);
    let sum = |count: &dyn Fn(&ReplicaSet) -> i32| sets.iter().fold(0i32, |sum, set| sum.saturating_add(count(set)));
    let available = sum(&|set| available_of(set));
    let minimum = if available >= wish.replicas - wish.max_unavailable {
        condition(AVAILABLE, "True", "MinimumReplicasAvailable", "Deployment has minimum availability.", now)
    } else {
        condition(
            AVAILABLE,
            "False",
            "MinimumReplicasUnavailable",
            "Deployment does not have minimum availability.",
            now,
        )
    };
    set(&mut conditions, minimum);
    let old = deployment.status.as_ref();
    DeploymentStatus {
        observed_generation: deployment.metadata.generation,
        replicas: some(sum(&|set| set.status.as_ref().map_or(0, |status| status.replicas))),
        updated_replicas: some(new.and_then(|set| set.status.as_ref()).map_or(0, |status| status.replicas)),
        ready_replicas: some(sum(&|set| set.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or(0))),
        available_replicas: some(available),
        unavailable_replicas: some((sum(&|set| set.spec.replicas.unwrap_or(0)) - available).max(0)),
        terminating_replicas: Some(sum(&|set| {
            set.status.as_ref().and_then(|status| status.terminating_replicas).unwrap_or(0)
        })),
        collision_count: old.and_then(|status| status.collision_count),
        conditions: Some(conditions),
    }
}

/// Zero is absent in these fields.
fn some(number: i32) -> Option<i32> {
    Some(number).filter(|number| *number != 0)
}

pub fn available_of(set: &ReplicaSet) -> i32 {
    set.status.as_ref().and_then(|status| status.available_replicas).unwrap_or(0)
}

/// Adds how the rollout goes: progressing, complete or timed out, and failures of sets.
pub fn rollout(
    deployment: &Deployment,
    sets: &[&ReplicaSet],
    new: Option<&ReplicaSet>,
    mut status: DeploymentStatus,
    now: Timestamp,
) -> DeploymentStatus {
    let mut conditions = status.conditions.take().unwrap_or_default();
    match progress_deadline(deployment) {
        None => remove(&mut conditions, PROGRESSING),
        Some(deadline_seconds) => {
            let current = find(&conditions, PROGRESSING).cloned();
            // A finished rollout stays finished: pods that fail or are added later are not its progress.
            let finished = status.replicas == status.updated_replicas
                && current.as_ref().and_then(|c| c.reason.as_deref()) == Some(NEW_SET_AVAILABLE);
            if !finished {
                let subject = match new.and_then(|set| set.metadata.name.as_deref()) {
                    Some(name) => format!("ReplicaSet \"{name}\""),
                    None => format!("Deployment \"{}\"", deployment.metadata.name.as_deref().unwrap_or_default()),
                };
                progress(deployment, &status, &mut conditions, current, deadline_seconds, &subject, now);
            }
        }
    }
    match failure_of(sets, new) {
        Some(failure) => set(&mut conditions, failure),
        None => remove(&mut conditions, REPLICA_FAILURE),
    }
    status.conditions = Some(conditions);
    status
}

fn progress(
    deployment: &Deployment,
    status: &DeploymentStatus,
    conditions: &mut Vec<DeploymentCondition>,
    current: Option<DeploymentCondition>,
    deadline_seconds: i64,
    subject: &str,
    now: Timestamp,
) {
    if is_complete(deployment, status) {
        let message = format!("{subject} has successfully progressed.");
        set(conditions, condition(PROGRESSING, "True", NEW_SET_AVAILABLE, &message, now));
    } else if has_progressed(deployment, status) {
        let message = format!("{subject} is progressing.");
        let mut new = condition(PROGRESSING, "True", SET_UPDATED, &message, now);
        if let Some(current) = current.filter(|current| current.status.as_deref() == Some("True")) {
            new.last_transition_time = current.last_transition_time;
        }
        // Always replaced: the update time is what the deadline counts from.
        remove(conditions, PROGRESSING);
        conditions.push(new);
    } else if has_timed_out(conditions, deadline_seconds, now) {
        let message = format!("{subject} has timed out progressing.");
        set(conditions, condition(PROGRESSING, "False", TIMED_OUT, &message, now));
    }
}

/// All pods are of the newest template and available, and no others are left.
pub fn is_complete(deployment: &Deployment, status: &DeploymentStatus) -> bool {
    let wanted = some(deployment.spec.replicas.unwrap_or(1));
    status.updated_replicas == wanted
        && status.replicas == wanted
        && status.available_replicas == wanted
        && status.observed_generation >= deployment.metadata.generation
}

fn has_progressed(deployment: &Deployment, new: &DeploymentStatus) -> bool {
    let blank = DeploymentStatus::default();
    let old = deployment.status.as_ref().unwrap_or(&blank);
    let left = |status: &DeploymentStatus| status.replicas.unwrap_or(0) - status.updated_replicas.unwrap_or(0);
    new.updated_replicas > old.updated_replicas
        || left(new) < left(old)
        || new.ready_replicas > old.ready_replicas
        || new.available_replicas > old.available_replicas
}

fn has_timed_out(conditions: &[DeploymentCondition], deadline_seconds: i64, now: Timestamp) -> bool {
    let Some(current) = find(conditions, PROGRESSING) else { return false };
    match current.reason.as_deref() {
        Some(NEW_SET_AVAILABLE) => false,
        Some(TIMED_OUT) => true,
        _ => current
            .last_update_time
            .as_ref()
            .is_some_and(|since| since.0.as_second().saturating_add(deadline_seconds) < now.as_second()),
    }
}

/// When to look again whether the rollout has timed out, if it may yet.
pub fn deadline_check(deployment: &Deployment, status: &DeploymentStatus, now: Timestamp) -> Option<Duration> {
    let deadline_seconds = progress_deadline(deployment)?;
    let current = find(status.conditions.as_deref().unwrap_or_default(), PROGRESSING)?;
    let settled = matches!(current.reason.as_deref(), Some(TIMED_OUT | PAUSED));
    if settled || is_complete(deployment, status) {
        return None;
    }
    let due = current.last_update_time.as_ref()?.0.as_second().saturating_add(deadline_seconds);
    // One second more, because times in conditions have whole seconds.
    let wait = due.saturating_sub(now.as_second()).saturating_add(1);
    if current.reason.as_deref() == Some(NEW_SET_AVAILABLE) {
        None
    } else {
        Some(Duration::from_secs(wait.max(1).unsigned_abs()))
    }
}

/// The failure of the new set, else of any, as a condition of the deployment.
fn failure_of(sets: &[&ReplicaSet], new: Option<&ReplicaSet>) -> Option<DeploymentCondition> {
    let failures = new.into_iter().chain(sets.iter().copied());
    let mut conditions = failures.filter_map(|set| set.status.as_ref()?.conditions.as_ref()).flatten();
    let failure = conditions.find(|condition| condition.type_.as_deref() == Some(REPLICA_FAILURE))?;
    Some(DeploymentCondition {
        type_: failure.type_.clone(),
        status: failure.status.clone(),
        reason: failure.reason.clone(),
        message: failure.message.clone(),
        last_transition_time: failure.last_transition_time.clone(),
        last_update_time: failure.last_transition_time.clone(),
    })
}
