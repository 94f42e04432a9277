//! Whether a node is alive, judged by how long ago its kubelet was last heard of. Pure.

use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, NodeCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

/// How long a kubelet may be silent.
#[derive(Clone, Copy, Debug)]
pub struct Grace {
    /// After it has been heard of (upstream's `--node-monitor-grace-period`).
    pub running: Duration,
    /// Before it has been (`--node-startup-grace-period`).
    pub starting: Duration,
}

impl Default for Grace {
    fn default() -> Self {
        Grace { running: Duration::from_secs(40), starting: Duration::from_secs(60) }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Readiness {
    Ready,
    NotReady,
    /// Nobody knows: the kubelet has fallen silent.
    Unknown,
    /// Just registered: nothing is said of it yet, and nothing follows.
    New,
}

pub fn condition<'a>(node: &'a Node, type_: &str) -> Option<&'a NodeCondition> {
    node.status.as_ref()?.conditions.as_ref()?.iter().find(|condition| condition.type_ == type_)
}

pub fn readiness(node: &Node) -> Readiness {
    match condition(node, "Ready").map(|ready| ready.status.as_str()) {
        Some("True") => Readiness::Ready,
        Some("False") => Readiness::NotReady,
        Some(_) => Readiness::Unknown,
        None => Readiness::New,
    }
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    /// Heard of recently; look again after this time.
    Alive(Duration),
    /// Silent, and its conditions say so.
    KnownSilent,
    /// Silent: these conditions are to be written.
    Silent(Vec<NodeCondition>),
}

/// `silence` is the time since the kubelet's lease or status last changed, on the local clock.
pub fn judge(node: &Node, silence: Duration, grace: &Grace, now: Timestamp) -> Verdict {
    let patience = if condition(node, "Ready").is_some() { grace.running } else { grace.starting };
    if silence < patience {
        return Verdict::Alive(patience - silence);
    }
    let unknown: Vec<NodeCondition> = ["Ready", "MemoryPressure", "DiskPressure", "PIDPressure"]
        .into_iter()
        .filter_map(|type_| unknown_condition(node, type_, now))
        .collect();
    if unknown.is_empty() { Verdict::KnownSilent } else { Verdict::Silent(unknown) }
}

/// The condition made Unknown; none if it is already.
fn unknown_condition(node: &Node, type_: &str, now: Timestamp) -> Option<NodeCondition> {
    let base = NodeCondition {
        type_: type_.to_owned(),
        status: "Unknown".to_owned(),
        last_transition_time: Some(Time(now)),
        ..NodeCondition::default()
    };
    match condition(node, type_) {
        Some(seen) if seen.status == "Unknown" => None,
        Some(seen) => Some(NodeCondition {
            reason: Some("NodeStatusUnknown".to_owned()),
            message: Some("Kubelet stopped posting node status.".to_owned()),
            last_heartbeat_time: seen.last_heartbeat_time.clone(),
            ..base
        }),
        None => Some(NodeCondition {
            reason: Some("NodeStatusNeverUpdated".to_owned()),
            message: Some("Kubelet never posted node status.".to_owned()),
            last_heartbeat_time: node.metadata.creation_timestamp.clone(),
            ..base
        }),
    }
}

/// How quickly nodes of a zone may lose their pods (upstream's zone states).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum EvictionPace {
    /// One node in this time.
    OneIn(Duration),
    /// None: it is more likely that this controller is cut off than that the nodes are.
    Stopped,
}

const UNHEALTHY_PERCENT: usize = 55;
const LARGE_CLUSTER: usize = 50;

/// `(ready, not ready)` nodes of the zone, and of all other zones.
pub fn eviction_pace(zone: (usize, usize), others: (usize, usize)) -> EvictionPace {
    let (ready, not_ready) = zone;
    if ready == 0 && others.0 == 0 {
        return EvictionPace::Stopped;
    }
    let total = ready + not_ready;
    let partly_cut_off = ready > 0 && not_ready > 2 && not_ready * 100 >= UNHEALTHY_PERCENT * total;
    match partly_cut_off {
        false => EvictionPace::OneIn(Duration::from_secs(10)),
        true if total > LARGE_CLUSTER => EvictionPace::OneIn(Duration::from_secs(100)),
        true => EvictionPace::Stopped,
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{now, yaml};

    fn judged(conditions: &str, silence_seconds: u64) -> String {
        let node: Node = yaml(&format!("{{ status: {{ conditions: {conditions} }} }}"));
        match judge(&node, Duration::from_secs(silence_seconds), &Grace::default(), now()) {
            Verdict::Alive(wait) => format!("alive {}", wait.as_secs()),
            Verdict::KnownSilent => "known".into(),
            Verdict::Silent(conditions) => conditions
                .iter()
                .map(|c| format!("{}:{}", c.type_, c.reason.as_deref().unwrap_or_default()))
                .collect::<Vec<_>>()
                .join(" "),
        }
    }

    #[test]
    fn a_silent_kubelet_makes_its_conditions_unknown() {
        let ready = "[{ type: Ready, status: 'True' }, { type: DiskPressure, status: Unknown }]";
        assert_eq!(judged(ready, 39), "alive 1");
        assert_eq!(
            judged(ready, 40),
            "Ready:NodeStatusUnknown MemoryPressure:NodeStatusNeverUpdated PIDPressure:NodeStatusNeverUpdated"
        );
        assert_eq!(judged("[]", 59), "alive 1");
        let unknown = "[{ type: Ready, status: Unknown }, { type: MemoryPressure, status: Unknown }, { type: DiskPressure, status: Unknown }, { type: PIDPressure, status: Unknown }]";
        assert_eq!(judged(unknown, 400), "known");
    }

    #[test]
    fn eviction_slows_or_stops_when_many_nodes_fail_at_once() {
        let seconds = |zone, others| match eviction_pace(zone, others) {
            EvictionPace::OneIn(time) => time.as_secs(),
            EvictionPace::Stopped => 0,
        };
        assert_eq!(seconds((9, 1), (0, 0)), 10);
        assert_eq!(seconds((0, 1), (0, 0)), 0, "the only node");
        assert_eq!(seconds((0, 3), (5, 0)), 10, "one zone of two");
        assert_eq!(seconds((3, 7), (0, 0)), 0);
        assert_eq!(seconds((30, 70), (0, 0)), 100);
        assert_eq!(seconds((1, 2), (0, 0)), 10, "too few to tell");
    }
}
