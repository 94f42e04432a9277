//! What a set of replicas needs: how many pods to create, which to delete, and its status. Pure.

use std::cmp::Ordering;
use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::pods::{self, Availability};

/// Pods created or deleted in one reconcile at most (upstream's BurstReplicas).
pub const BURST: usize = 500;

pub const DELETION_COST: &str = "controller.kubernetes.io/pod-deletion-cost";

#[derive(Debug)]
pub enum Scale {
    /// As many as wanted.
    Keep,
    Create(usize),
    Delete(Vec<Arc<Pod>>),
}

/// `active` are the owned pods that run or will; `related` are those of all sets of the same owner (the old and new sets
/// of a deployment), which tell how crowded a node is.
pub fn scale(replicas: i32, active: &[Arc<Pod>], related: &[Arc<Pod>], now: Timestamp) -> Scale {
    let wanted = usize::try_from(replicas).unwrap_or(0);
    match active.len().cmp(&wanted) {
        Ordering::Equal => Scale::Keep,
        Ordering::Less => Scale::Create((wanted - active.len()).min(BURST)),
        Ordering::Greater => Scale::Delete(first_to_go(active, related, (active.len() - wanted).min(BURST), now)),
    }
}

/// The `count` pods whose loss costs least (upstream's ActivePodsWithRanks).
fn first_to_go(active: &[Arc<Pod>], related: &[Arc<Pod>], count: usize, now: Timestamp) -> Vec<Arc<Pod>> {
    if count >= active.len() {
        return active.to_vec();
    }
    let mut on_node: HashMap<&str, usize> = HashMap::new();
    for pod in related.iter().filter(|pod| pods::is_active(pod)) {
        *on_node.entry(pods::node_name(pod).unwrap_or_default()).or_default() += 1;
    }
    let crowd = |pod: &Pod| on_node.get(pods::node_name(pod).unwrap_or_default()).copied().unwrap_or(0);
    let mut ranked = active.to_vec();
    ranked.sort_by(|a, b| cost_order(a, b, crowd(a), crowd(b), now));
    ranked.truncate(count);
    ranked
}

/// Less means: deleted earlier.
fn cost_order(a: &Pod, b: &Pod, crowd_a: usize, crowd_b: usize, now: Timestamp) -> Ordering {
    let assigned = |pod| pods::node_name(pod).is_some();
    let phase_rank = |pod| match pods::phase(pod) {
        "Pending" => 0,
        "Unknown" => 1,
        _ => 2,
    };
    let both_ready = pods::is_ready(a) && pods::is_ready(b);
    let ready_order =
        || if both_ready { younger(pods::ready_since(a), pods::ready_since(b), a, b, now) } else { Ordering::Equal };
    let created = |pod: &Pod| pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    assigned(a)
        .cmp(&assigned(b))
        .then_with(|| phase_rank(a).cmp(&phase_rank(b)))
        .then_with(|| pods::is_ready(a).cmp(&pods::is_ready(b)))
        .then_with(|| deletion_cost(a).cmp(&deletion_cost(b)))
        .then_with(|| crowd_b.cmp(&crowd_a))
        .then_with(ready_order)
        .then_with(|| pods::most_restarts(b).cmp(&pods::most_restarts(a)))
        .then_with(|| younger(created(a), created(b), a, b, now))
}

/// Missing or malformed costs count as zero.
fn deletion_cost(pod: &Pod) -> i32 {
    pod.metadata
        .annotations
        .as_ref()
        .and_then(|all| all.get(DELETION_COST))
        .and_then(|text| text.parse().ok())
        .unwrap_or(0)
}

/// The younger first, by the logarithm of the age (upstream's LogarithmicScaleDown): among pods of about one age the
/// choice falls by UID, so that the newest are not always the ones to go.
fn younger(a: Option<Timestamp>, b: Option<Timestamp>, pod_a: &Pod, pod_b: &Pod, now: Timestamp) -> Ordering {
    let (Some(a), Some(b)) = (a, b) else {
        // What has no time yet is the youngest.
        return a.is_some().cmp(&b.is_some());
    };
    if a == b {
        return Ordering::Equal;
    }
    let rank = |since: Timestamp| match now.as_nanosecond() - since.as_nanosecond() {
        ..=0 => -1,
        age => i64::from(age.ilog2()),
    };
    rank(a).cmp(&rank(b)).then_with(|| pod_a.metadata.uid.cmp(&pod_b.metadata.uid))
}

/// A condition of either kind of set.
#[derive(Clone, Debug, PartialEq)]
pub struct Condition {
    pub type_: String,
    pub status: String,
    pub reason: Option<String>,
    pub message: Option<String>,
    pub last_transition_time: Option<Time>,
}

/// The status that both kinds share.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ScaleStatus {
    pub replicas: i32,
    pub fully_labeled: i32,
    pub ready: i32,
    pub available: i32,
    /// Pods being deleted; told by ReplicaSets only.
    pub terminating: i32,
    pub observed_generation: i64,
    pub conditions: Vec<Condition>,
}

/// Why the last attempt to scale failed.
#[derive(Clone, Copy, Debug)]
pub struct Failure<'a> {
    /// `FailedCreate` or `FailedDelete`.
    pub reason: &'static str,
    pub message: &'a str,
}

/// What the status depends on.
pub struct Observed<'a> {
    pub old: &'a ScaleStatus,
    pub generation: i64,
    pub template: Option<&'a PodTemplateSpec>,
    pub min_ready_seconds: i32,
    pub active: &'a [Arc<Pod>],
    pub terminating: usize,
    pub failure: Option<Failure<'a>>,
}

/// The new status, and when to look again because a pod becomes available by the passing of time.
pub fn status(observed: &Observed<'_>, now: Timestamp) -> (ScaleStatus, Option<Duration>) {
    let count = |number: usize| i32::try_from(number).unwrap_or(i32::MAX);
    let template_labels = observed.template.and_then(|t| t.metadata.as_ref()).and_then(|meta| meta.labels.as_ref());
    let fully_labeled = |pod: &&Arc<Pod>| {
        template_labels
            .into_iter()
            .flatten()
            .all(|(k, v)| pod.metadata.labels.as_ref().and_then(|l| l.get(k)) == Some(v))
    };
    let mut available = 0;
    let mut recheck: Option<Duration> = None;
    for pod in observed.active {
        match pods::availability(pod, observed.min_ready_seconds, now) {
            Availability::Available => available += 1,
            Availability::After(wait) => recheck = Some(recheck.map_or(wait, |sooner| sooner.min(wait))),
            Availability::NotReady => {}
        }
    }
    let status = ScaleStatus {
        replicas: count(observed.active.len()),
        fully_labeled: count(observed.active.iter().filter(fully_labeled).count()),
        ready: count(observed.active.iter().filter(|pod| pods::is_ready(pod)).count()),
        available,
        terminating: count(observed.terminating),
        observed_generation: observed.generation,
        conditions: conditions(&observed.old.conditions, observed.failure, now),
    };
    (status, recheck)
}

/// A failure is noted once and stays as first noted until scaling works again.
fn conditions(old: &[Condition], failure: Option<Failure<'_>>, now: Timestamp) -> Vec<Condition> {
    const TYPE: &str = "ReplicaFailure";
    let noted = old.iter().any(|condition| condition.type_ == TYPE);
    let mut conditions = old.to_vec();
    match failure {
        None => conditions.retain(|condition| condition.type_ != TYPE),
        Some(failure) if !noted => conditions.push(Condition {
            type_: TYPE.to_owned(),
            status: "True".to_owned(),
            reason: Some(failure.reason.to_owned()),
            message: Some(failure.message.to_owned()),
            last_transition_time: Some(Time(now)),
        }),
        Some(_) => {}
    }
    conditions
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ago, names, now, pods};

    fn order(lines: &str) -> Vec<String> {
        let all = pods(lines);
        let mut order = names(&first_to_go(&all, &all, all.len() - 1, now()));
        order.extend(names(&all).into_iter().filter(|name| !order.contains(name)).collect::<Vec<_>>());
        order
    }

    #[test]
    fn pods_go_in_upstreams_order() {
        let order = order(
            "{ name: h-old, node: quiet, ready: 90000, age: 100000 }
             { name: g-young, node: quiet, ready: 5, age: 100000 }
             { name: f-crowded, node: crowd, ready: 90000, age: 100000 }
             { name: f-crowded2, node: crowd, ready: 90000, age: 99999 }
             { name: f-crowded3, node: crowd, ready: 90000, age: 99998 }
             { name: e-cheap, node: n, ready: 90000, annotations: { controller.kubernetes.io/pod-deletion-cost: '-5' } }
             { name: d-unready, node: n }
             { name: c-unknown, node: n, phase: Unknown }
             { name: b-pending, node: n, phase: Pending }
             { name: a-unassigned, phase: Pending }",
        );
        let kept: Vec<&str> = order.iter().map(|name| &name[..1]).collect();
        assert_eq!(kept.concat(), "abcdefffgh");
    }

    #[test]
    fn more_restarts_go_first_and_a_malformed_cost_counts_as_none() {
        let order = order(
            "{ name: c, node: n, ready: 50, restarts: 1 }
             { name: b, node: n, ready: 50, restarts: 7, annotations: { controller.kubernetes.io/pod-deletion-cost: dear } }
             { name: a, node: n, ready: 50, restarts: 9 }",
        );
        assert_eq!(order, ["a", "b", "c"]);
    }

    #[test]
    fn scaling_is_the_difference_bounded_by_the_burst() {
        let two = pods("{ name: a }\n{ name: b }");
        assert!(matches!(scale(2, &two, &two, now()), Scale::Keep));
        assert!(matches!(scale(5, &two, &two, now()), Scale::Create(3)));
        assert!(matches!(scale(5000, &two, &two, now()), Scale::Create(BURST)));
        assert!(matches!(scale(0, &two, &two, now()), Scale::Delete(gone) if gone.len() == 2));
    }

    #[test]
    fn status_counts_and_says_when_to_look_again() {
        let active = pods(
            "{ name: a, ready: 100, labels: { app: web } }
             { name: b, ready: 4, labels: { app: web } }
             { name: c, ready: 7 }
             { name: d }",
        );
        let template = crate::fixture::yaml("metadata: { labels: { app: web } }");
        let old = ScaleStatus::default();
        let observed = Observed {
            old: &old,
            generation: 3,
            template: Some(&template),
            min_ready_seconds: 10,
            active: &active,
            terminating: 1,
            failure: None,
        };
        let (status, recheck) = status(&observed, now());
        assert_eq!((status.replicas, status.fully_labeled, status.ready, status.available), (4, 2, 3, 1));
        assert_eq!(recheck, Some(Duration::from_secs(3)));
    }

    #[test]
    fn a_failure_stays_as_first_noted_and_goes_with_success() {
        let failure = |message| Some(Failure { reason: "FailedCreate", message });
        let noted = conditions(&[], failure("quota"), ago(10).0);
        assert_eq!(conditions(&noted, failure("other"), now()), noted);
        assert!(conditions(&noted, None, now()).is_empty());
    }
}
