//! The taints that a node's conditions call for, and when a pod that does not tolerate them has to go. Pure.

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod, Taint, Toleration};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::health::{Readiness, condition, readiness};

pub const NOT_READY: &str = "node.kubernetes.io/not-ready";
pub const UNREACHABLE: &str = "node.kubernetes.io/unreachable";
pub const OUT_OF_SERVICE: &str = "node.kubernetes.io/out-of-service";
const UNSCHEDULABLE: &str = "node.kubernetes.io/unschedulable";
/// Conditions that keep pods off a node while they are True.
const PRESSURES: [(&str, &str); 4] = [
    ("MemoryPressure", "node.kubernetes.io/memory-pressure"),
    ("DiskPressure", "node.kubernetes.io/disk-pressure"),
    ("NetworkUnavailable", "node.kubernetes.io/network-unavailable"),
    ("PIDPressure", "node.kubernetes.io/pid-pressure"),
];

pub const NO_SCHEDULE: &str = "NoSchedule";
pub const NO_EXECUTE: &str = "NoExecute";

pub fn taints_of(node: &Node) -> &[Taint] {
    node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default()
}

/// The key of the `NoExecute` taint that the node's readiness calls for.
pub fn eviction_key(node: &Node) -> Option<&'static str> {
    match readiness(node) {
        Readiness::Ready | Readiness::New => None,
        Readiness::NotReady => Some(NOT_READY),
        Readiness::Unknown => Some(UNREACHABLE),
    }
}

/// Whether this controller answers for a taint. What a node was registered with stands until its readiness is known.
fn is_ours(node: &Node, taint: &Taint) -> bool {
    let readiness = readiness(node) != Readiness::New && (taint.key == NOT_READY || taint.key == UNREACHABLE);
    match taint.effect.as_str() {
        NO_EXECUTE => readiness,
        NO_SCHEDULE => readiness || taint.key == UNSCHEDULABLE || PRESSURES.iter().any(|(_, key)| taint.key == *key),
        _ => false,
    }
}

/// All taints the node is to have. Those of others stay; ours that stay keep their time. `evict` permits a `NoExecute`
/// taint that is not there yet.
pub fn wanted(node: &Node, evict: bool, now: Timestamp) -> Vec<Taint> {
    let mut keys: Vec<(&str, &str)> = Vec::new();
    if let Some(key) = eviction_key(node) {
        keys.push((key, NO_SCHEDULE));
        let present = taints_of(node).iter().any(|taint| taint.key == key && taint.effect == NO_EXECUTE);
        if evict || present {
            keys.push((key, NO_EXECUTE));
        }
    }
    for (type_, key) in PRESSURES {
        if condition(node, type_).is_some_and(|condition| condition.status == "True") {
            keys.push((key, NO_SCHEDULE));
        }
    }
    if node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true) {
        keys.push((UNSCHEDULABLE, NO_SCHEDULE));
    }
    let is = |taint: &Taint, (key, effect): (&str, &str)| taint.key == key && taint.effect == effect;
    let kept =
        taints_of(node).iter().filter(|taint| !is_ours(node, taint) || keys.iter().any(|wanted| is(taint, *wanted)));
    let mut taints: Vec<Taint> = kept.cloned().collect();
    for (key, effect) in keys {
        if !taints.iter().any(|taint| is(taint, (key, effect))) {
            let time_added = Some(Time(now));
            taints.push(Taint { key: key.to_owned(), effect: effect.to_owned(), time_added, value: None });
        }
    }
    taints
}

/// Upstream's `ToleratesTaint`.
pub fn tolerates(toleration: &Toleration, taint: &Taint) -> bool {
    let given = |text: &Option<String>| text.clone().unwrap_or_default();
    let (effect, key) = (given(&toleration.effect), given(&toleration.key));
    if (!effect.is_empty() && effect != taint.effect) || (!key.is_empty() && key != taint.key) {
        return false;
    }
    match toleration.operator.as_deref().unwrap_or_default() {
        "" | "Equal" => given(&toleration.value) == given(&taint.value),
        "Exists" => true,
        operator => compares(operator, &given(&toleration.value), &given(&taint.value)),
    }
}

/// `Gt` and `Lt` compare whole numbers: the taint's value with the toleration's.
fn compares(operator: &str, tolerated: &str, actual: &str) -> bool {
    let (Ok(tolerated), Ok(actual)) = (tolerated.parse::<i64>(), actual.parse::<i64>()) else { return false };
    match operator {
        "Gt" => actual > tolerated,
        "Lt" => actual < tolerated,
        _ => false,
    }
}

/// When a pod has to leave a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    Never,
    At(Timestamp),
}

/// Counted from when the taint was added, or from the pod's creation if that is later. A toleration without a time
/// tolerates for ever; of several that match a taint the shortest counts.
pub fn leave(pod: &Pod, taints: &[Taint], now: Timestamp) -> Leave {
    let tolerations = pod.spec.as_ref().and_then(|spec| spec.tolerations.as_deref()).unwrap_or_default();
    let created = pod.metadata.creation_timestamp.as_ref().map(|time| time.0);
    let mut leave = Leave::Never;
    for taint in taints.iter().filter(|taint| taint.effect == NO_EXECUTE) {
        let mut matching = tolerations.iter().filter(|toleration| tolerates(toleration, taint)).peekable();
        let at = if matching.peek().is_none() {
            now
        } else {
            let Some(seconds) = matching.filter_map(|toleration| toleration.toleration_seconds).min() else { continue };
            let added = taint.time_added.as_ref().map_or(now, |time| time.0);
            let since = created.map_or(added, |created| created.max(added));
            since.checked_add(jiff::SignedDuration::from_secs(seconds.max(0))).unwrap_or(Timestamp::MAX)
        };
        leave = match leave {
            Leave::At(earlier) => Leave::At(earlier.min(at)),
            Leave::Never => Leave::At(at),
        };
    }
    leave
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ago, now, pod, yaml};

    fn shown(taints: &[Taint]) -> String {
        let short = |key: &str| key.trim_start_matches("node.kubernetes.io/").to_owned();
        taints.iter().map(|t| format!("{}:{}", short(&t.key), t.effect)).collect::<Vec<_>>().join(" ")
    }

    #[test]
    fn taints_follow_conditions_and_leave_others_alone() {
        let node = |ready: &str, more: &str| -> Node {
            yaml(&format!(
                "{{ spec: {{ taints: [{{ key: own, effect: NoExecute }}, {{ key: node.kubernetes.io/not-ready, effect: NoExecute }}], {more} }}, status: {{ conditions: [{{ type: Ready, status: '{ready}' }}, {{ type: DiskPressure, status: 'True' }}] }} }}"
            ))
        };
        let shown = |ready, more, evict| shown(&wanted(&node(ready, more), evict, now()));
        assert_eq!(shown("True", "", true), "own:NoExecute disk-pressure:NoSchedule");
        assert_eq!(
            shown("True", "unschedulable: true", true),
            "own:NoExecute disk-pressure:NoSchedule unschedulable:NoSchedule"
        );
        assert_eq!(
            shown("False", "", false),
            "own:NoExecute not-ready:NoExecute not-ready:NoSchedule disk-pressure:NoSchedule"
        );
        assert_eq!(shown("Unknown", "", false), "own:NoExecute unreachable:NoSchedule disk-pressure:NoSchedule");
        assert_eq!(
            shown("Unknown", "", true),
            "own:NoExecute unreachable:NoSchedule unreachable:NoExecute disk-pressure:NoSchedule"
        );
    }

    #[test]
    fn tolerations_match_as_upstream() {
        let matches = |toleration: &str, taint: &str| tolerates(&yaml(toleration), &yaml(taint));
        assert!(matches("{ operator: Exists }", "{ key: a, effect: NoExecute }"));
        assert!(matches("{ key: a, value: x }", "{ key: a, value: x, effect: NoSchedule }"));
        assert!(!matches("{ key: a, value: y }", "{ key: a, value: x, effect: NoSchedule }"));
        assert!(!matches("{ key: a, operator: Exists, effect: NoExecute }", "{ key: a, effect: NoSchedule }"));
        assert!(matches("{ key: a, operator: Gt, value: '5' }", "{ key: a, value: '6', effect: NoSchedule }"));
        assert!(!matches("{ key: a, operator: Lt, value: '5' }", "{ key: a, value: six, effect: NoSchedule }"));
    }

    #[test]
    fn pods_leave_when_their_patience_ends() {
        let seconds = |tolerations: &str, age: i64| {
            let mut pod = pod(&format!("{{ name: a, age: {age} }}"));
            pod.spec.get_or_insert_default().tolerations = Some(yaml(tolerations));
            let taint = |key: &str| Taint {
                key: key.into(),
                effect: NO_EXECUTE.into(),
                time_added: Some(ago(100)),
                value: None,
            };
            match leave(&pod, &[taint("x"), taint("y")], now()) {
                Leave::Never => None,
                Leave::At(at) => Some(at.as_second() - now().as_second()),
            }
        };
        assert_eq!(seconds("[]", 1000), Some(0));
        assert_eq!(seconds("[{ operator: Exists }]", 1000), None);
        assert_eq!(seconds("[{ operator: Exists, tolerationSeconds: 300 }]", 1000), Some(200));
        assert_eq!(seconds("[{ operator: Exists, tolerationSeconds: 300 }]", 10), Some(290));
        assert_eq!(seconds("[{ key: x, operator: Exists }]", 1000), Some(0), "the other taint is not tolerated");
        assert_eq!(
            seconds("[{ operator: Exists }, { key: y, operator: Exists, tolerationSeconds: 120 }]", 1000),
            Some(20)
        );
        assert_eq!(seconds("[{ operator: Exists, tolerationSeconds: -5 }]", 1000), Some(-100));
    }
}
