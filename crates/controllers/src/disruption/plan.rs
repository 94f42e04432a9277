//! What a disruption budget's status has to say. Pure.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::pods;

/// How long an evicted pod may take to be marked as deleted, and a pod that was said to be disrupted to be gone from its node.
pub const PATIENCE: Duration = Duration::from_secs(120);
const ALLOWED: &str = "DisruptionAllowed";

/// How many pods there should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Expected {
    pub pods: i32,
    pub healthy: i32,
}

/// Whether the number of expected pods is asked of the pods' owners, and not counted.
pub fn needs_scale(budget: &PodDisruptionBudget) -> bool {
    let Some(spec) = &budget.spec else { return false };
    spec.max_unavailable.is_some() || matches!(spec.min_available, Some(IntOrString::String(_)))
}

/// `scale` is what the pods' owners want in all, where [`needs_scale`]; `selected` is the number of pods there are.
pub fn expected(budget: &PodDisruptionBudget, scale: i32, selected: usize) -> Result<Expected, String> {
    let spec = budget.spec.as_ref();
    if let Some(most) = spec.and_then(|spec| spec.max_unavailable.as_ref()) {
        let healthy = scale.saturating_sub(resolve(most, scale)?).max(0);
        return Ok(Expected { pods: scale, healthy });
    }
    match spec.and_then(|spec| spec.min_available.as_ref()) {
        Some(IntOrString::Int(least)) => {
            Ok(Expected { pods: i32::try_from(selected).unwrap_or(i32::MAX), healthy: *least })
        }
        Some(least) => Ok(Expected { pods: scale, healthy: resolve(least, scale)? }),
        None => Ok(Expected { pods: 0, healthy: 0 }),
    }
}

/// A number, or a percentage of `total` rounded up.
fn resolve(value: &IntOrString, total: i32) -> Result<i32, String> {
    let text = match value {
        IntOrString::Int(number) => return Ok(*number),
        IntOrString::String(text) => text,
    };
    let percent: i64 = text
        .strip_suffix('%')
        .and_then(|digits| digits.parse().ok())
        .ok_or_else(|| format!("invalid value for IntOrString: invalid type: string is not a percentage: {text:?}"))?;
    let hundredths = percent.saturating_mul(i64::from(total));
    Ok(i32::try_from(hundredths.saturating_add(99).div_euclid(100)).unwrap_or(i32::MAX))
}

/// Evictions that have not shown yet.
#[derive(Debug, Default)]
pub struct Unnoticed {
    pub pods: BTreeMap<String, Time>,
    /// When the first of them is given up.
    pub until: Option<Timestamp>,
    /// Those that were given up.
    pub lost: Vec<Arc<Pod>>,
}

/// Of the evictions that the API server noted, those whose pods are still there and not marked as deleted.
pub fn unnoticed(budget: &PodDisruptionBudget, selected: &[Arc<Pod>], now: Timestamp) -> Unnoticed {
    let mut result = Unnoticed::default();
    let Some(noted) = budget.status.as_ref().and_then(|status| status.disrupted_pods.as_ref()) else { return result };
    for pod in selected.iter().filter(|pod| pod.metadata.deletion_timestamp.is_none()) {
        let Some((name, at)) = pod.metadata.name.as_deref().and_then(|name| noted.get_key_value(name)) else {
            continue;
        };
        let until = at.0 + PATIENCE;
        if until < now {
            result.lost.push(pod.clone());
        } else {
            result.until = Some(result.until.map_or(until, |first| first.min(until)));
            result.pods.insert(name.clone(), at.clone());
        }
    }
    result
}

fn healthy(selected: &[Arc<Pod>], unnoticed: &Unnoticed) -> i32 {
    let stays = |pod: &&Arc<Pod>| {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        pod.metadata.deletion_timestamp.is_none() && !unnoticed.pods.contains_key(name)
    };
    let count = selected.iter().filter(stays).filter(|pod| pods::is_ready(pod)).count();
    i32::try_from(count).unwrap_or(i32::MAX)
}

/// The status to write, if it is another one.
pub fn status(
    budget: &PodDisruptionBudget,
    selected: &[Arc<Pod>],
    expected: Expected,
    unnoticed: &Unnoticed,
    now: Timestamp,
) -> Option<PodDisruptionBudgetStatus> {
    let old = budget.status.clone().unwrap_or_default();
    let current = healthy(selected, unnoticed);
    // With no pods expected nothing is allowed: the first ones may come before this is looked at again.
    let allowed = if expected.pods <= 0 { 0 } else { current.saturating_sub(expected.healthy).max(0) };
    let generation = budget.metadata.generation.unwrap_or(0);
    let (truth, reason) = if allowed > 0 { ("True", "SufficientPods") } else { ("False", "InsufficientPods") };
    let new = PodDisruptionBudgetStatus {
        current_healthy: Some(current),
        desired_healthy: Some(expected.healthy),
        expected_pods: Some(expected.pods),
        disruptions_allowed: Some(allowed),
        disrupted_pods: Some(unnoticed.pods.clone()).filter(|pods| !pods.is_empty()),
        observed_generation: Some(generation),
        conditions: Some(with_condition(&old, truth, reason, "", generation, now)),
    };
    let comparable = |status: &PodDisruptionBudgetStatus| PodDisruptionBudgetStatus {
        disrupted_pods: status.disrupted_pods.clone().filter(|pods| !pods.is_empty()),
        ..status.clone()
    };
    (comparable(&old) != new).then_some(new)
}

/// The status of a budget that cannot be calculated: nothing is allowed until it can.
pub fn failed(budget: &PodDisruptionBudget, why: &str, now: Timestamp) -> Option<PodDisruptionBudgetStatus> {
    let old = budget.status.clone().unwrap_or_default();
    let seen = old.observed_generation.unwrap_or(0);
    let conditions = with_condition(&old, "False", "SyncFailed", why, seen, now);
    let new = PodDisruptionBudgetStatus { disruptions_allowed: Some(0), conditions: Some(conditions), ..old.clone() };
    (old != new).then_some(new)
}

/// The conditions with that of whether disruptions are allowed.
fn with_condition(
    old: &PodDisruptionBudgetStatus,
    status: &str,
    reason: &str,
    message: &str,
    generation: i64,
    now: Timestamp,
) -> Vec<Condition> {
    let mut conditions = old.conditions.clone().unwrap_or_default();
    let known = conditions.iter().position(|condition| condition.type_ == ALLOWED);
    let since = known.map(|at| &conditions[at]).filter(|condition| condition.status == status);
    let condition = Condition {
        type_: ALLOWED.to_owned(),
        status: status.to_owned(),
        reason: reason.to_owned(),
        message: message.to_owned(),
        observed_generation: Some(generation).filter(|generation| *generation != 0),
        last_transition_time: since.map_or(Time(now), |condition| condition.last_transition_time.clone()),
    };
    match known {
        Some(at) => conditions[at] = condition,
        None => conditions.push(condition),
    }
    conditions
}

/// How long a pod that was said to be disrupted, and is not being deleted, has until that is taken back. None: it is not such a pod.
/// What a kubelet says of its own pods may stand as long as it likes.
pub fn stale_after(pod: &Pod, now: Timestamp) -> Option<Duration> {
    let told = pods::condition(pod, "DisruptionTarget").filter(|condition| condition.status == "True")?;
    let by_kubelet = told.reason.as_deref() == Some("TerminationByKubelet");
    if by_kubelet || pod.metadata.deletion_timestamp.is_some() || pods::is_finished(pod) {
        return None;
    }
    let end = told.last_transition_time.as_ref().map_or(now, |since| since.0 + PATIENCE);
    Some(Duration::try_from(end.duration_since(now)).unwrap_or_default())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ago, names, now, pod, pods, yaml};

    fn budget(spec: &str) -> PodDisruptionBudget {
        yaml(&format!("{{ metadata: {{ generation: 2 }}, spec: {spec} }}"))
    }

    #[test]
    fn wishes_are_numbers_or_parts_rounded_up() {
        let of = |spec: &str, scale, selected| {
            expected(&budget(spec), scale, selected).map(|expected| (expected.pods, expected.healthy))
        };
        assert_eq!(of("{ minAvailable: 2 }", 0, 5), Ok((5, 2)));
        assert_eq!(of("{ minAvailable: 30% }", 10, 5), Ok((10, 3)));
        assert_eq!(of("{ minAvailable: 28% }", 7, 7), Ok((7, 2)));
        assert_eq!(of("{ maxUnavailable: 1 }", 3, 2), Ok((3, 2)));
        assert_eq!(of("{ maxUnavailable: 30% }", 3, 3), Ok((3, 2)));
        assert_eq!(of("{ maxUnavailable: 5 }", 3, 3), Ok((3, 0)));
        assert_eq!(of("{ }", 0, 3), Ok((0, 0)));
        assert!(of("{ minAvailable: many }", 3, 3).is_err());
        assert!(!needs_scale(&budget("{ minAvailable: 2 }")) && needs_scale(&budget("{ minAvailable: 2% }")));
    }

    fn line(budget: &PodDisruptionBudget, selected: &[Arc<Pod>], expected: Expected) -> String {
        let unnoticed = unnoticed(budget, selected, now());
        let Some(status) = status(budget, selected, expected, &unnoticed, now()) else { return "same".into() };
        let condition = &status.conditions.as_ref().expect("conditions")[0];
        let number = |number: Option<i32>| number.unwrap_or(-1);
        format!(
            "{}/{} of {}: {} {} {}",
            number(status.current_healthy),
            number(status.desired_healthy),
            number(status.expected_pods),
            number(status.disruptions_allowed),
            condition.reason,
            status.disrupted_pods.unwrap_or_default().into_keys().collect::<Vec<_>>().join(",")
        )
    }

    #[test]
    fn healthy_pods_beyond_the_wish_may_go() {
        let selected =
            pods("{ name: a, ready: 5 }\n{ name: b, ready: 5 }\n{ name: c }\n{ name: d, ready: 5, deleting: true }");
        let mut budget = budget("{ minAvailable: 1 }");
        let wish = Expected { pods: 4, healthy: 1 };
        assert_eq!(line(&budget, &selected, wish), "2/1 of 4: 1 SufficientPods ");
        assert_eq!(line(&budget, &selected, Expected { pods: 4, healthy: 2 }), "2/2 of 4: 0 InsufficientPods ");
        assert_eq!(line(&budget, &[], Expected { pods: 0, healthy: 0 }), "0/0 of 0: 0 InsufficientPods ");
        budget.status = status(&budget, &selected, wish, &Unnoticed::default(), now());
        assert_eq!(line(&budget, &selected, wish), "same");
        budget.metadata.generation = Some(3);
        assert_eq!(line(&budget, &selected, wish), "2/1 of 4: 1 SufficientPods ");
    }

    #[test]
    fn evictions_count_until_they_show_or_are_given_up() {
        let selected = pods(
            "{ name: going, ready: 5 }
             { name: gone, ready: 5, deleting: true }
             { name: stayed, ready: 5 }
             { name: other, ready: 5 }",
        );
        let mut budget = budget("{ minAvailable: 1 }");
        let noted = [("going", 20), ("gone", 20), ("stayed", 121), ("absent", 5)];
        let noted = noted.map(|(name, seconds)| (name.to_owned(), ago(seconds)));
        budget.status = Some(PodDisruptionBudgetStatus { disrupted_pods: Some(noted.into()), ..Default::default() });
        let found = unnoticed(&budget, &selected, now());
        assert_eq!(found.pods.keys().collect::<Vec<_>>(), ["going"]);
        assert_eq!(found.until.map(|until| until.as_second() - now().as_second()), Some(100));
        assert_eq!(names(&found.lost), ["stayed"]);
        assert_eq!(line(&budget, &selected, Expected { pods: 4, healthy: 1 }), "2/1 of 4: 1 SufficientPods going");
    }

    #[test]
    fn a_failure_forbids_and_keeps_the_rest() {
        let mut budget = budget("{ minAvailable: 1 }");
        let selected = pods("{ name: a, ready: 5 }\n{ name: b, ready: 5 }");
        budget.status = status(&budget, &selected, Expected { pods: 2, healthy: 1 }, &Unnoticed::default(), now());
        let failed_status = failed(&budget, "why", now()).expect("changed");
        assert_eq!((failed_status.disruptions_allowed, failed_status.current_healthy), (Some(0), Some(2)));
        let condition = &failed_status.conditions.as_ref().expect("conditions")[0];
        assert_eq!((condition.reason.as_str(), condition.message.as_str()), ("SyncFailed", "why"));
        budget.status = Some(failed_status);
        assert_eq!(failed(&budget, "why", now()), None);
    }

    #[test]
    fn what_was_said_of_a_pod_that_stays_is_taken_back() {
        let with = |line: &str, reason: &str, age: i64| {
            let mut pod = pod(line);
            let condition = k8s_openapi::api::core::v1::PodCondition {
                type_: "DisruptionTarget".into(),
                status: "True".into(),
                reason: Some(reason.into()),
                last_transition_time: Some(ago(age)),
                ..Default::default()
            };
            pod.status.get_or_insert_default().conditions.get_or_insert_default().push(condition);
            stale_after(&pod, now()).map(|wait| wait.as_secs())
        };
        assert_eq!(with("{ name: p }", "EvictionByEvictionAPI", 20), Some(100));
        assert_eq!(with("{ name: p }", "EvictionByEvictionAPI", 500), Some(0));
        assert_eq!(with("{ name: p }", "TerminationByKubelet", 500), None);
        assert_eq!(with("{ name: p, deleting: true }", "EvictionByEvictionAPI", 500), None);
        assert_eq!(with("{ name: p, phase: Failed }", "EvictionByEvictionAPI", 500), None);
        assert_eq!(stale_after(&pod("{ name: p }"), now()), None);
    }
}
