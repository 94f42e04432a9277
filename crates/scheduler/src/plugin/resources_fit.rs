//! NodeResourcesFit: a node must have what the pod asks for left; of those that do, the least used are best (LeastAllocated).

use std::borrow::Cow;

use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, MAX_SCORE, Pass, Plugin, Rejection};
use crate::pod::PodInfo;
use crate::resource::Requests;

pub struct ResourcesFit;

impl Plugin for ResourcesFit {
    fn name(&self) -> &'static str {
        "NodeResourcesFit"
    }

    fn begin<'a>(&self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Begin<'a> {
        Begin::run(Fit::new(&pod.class.requests))
    }

    fn may_help(&self, event: &Event<'_>, pod: &PodInfo, cluster: &Cluster) -> bool {
        let requests = &pod.class.requests;
        match event {
            Event::PodRemoved(removed) => {
                // Where it is not known where the room is, it may be anywhere.
                let node = removed.node_name().and_then(|name| cluster.slot_of(name)).map(|slot| cluster.node(slot));
                node.is_none_or(|node| Fit::new(requests).fits(node))
            }
            Event::NodeAdded(node) => is_large_enough(node, requests),
            Event::NodeChanged(node, change) => change.allocatable && is_large_enough(node, requests),
            _ => false,
        }
    }
}

/// Whether the pod would fit if the node were empty.
fn is_large_enough(node: &Node, requests: &Requests) -> bool {
    let (wanted, offered) = (&requests.amounts, &node.offer.allocatable);
    wanted.cpu <= offered.cpu
        && wanted.memory <= offered.memory
        && wanted.storage <= offered.storage
        && wanted.others.iter().all(|(name, value)| *value <= offered.other(name))
}

struct Fit<'a> {
    requests: &'a Requests,
    nothing: bool,
}

impl<'a> Fit<'a> {
    fn new(requests: &'a Requests) -> Self {
        Fit { requests, nothing: requests.amounts.is_zero() }
    }

    fn fits(&self, node: &Node) -> bool {
        if node.pods.len() as i64 >= node.offer.allocatable_pods {
            return false;
        }
        let (wanted, offered, taken) = (&self.requests.amounts, &node.offer.allocatable, &node.requested);
        let free = |wanted: i64, offered: i64, taken: i64| wanted == 0 || wanted <= offered - taken;
        self.nothing
            || (free(wanted.cpu, offered.cpu, taken.cpu)
                && free(wanted.memory, offered.memory, taken.memory)
                && free(wanted.storage, offered.storage, taken.storage)
                && wanted.others.iter().all(|(name, value)| free(*value, offered.other(name), taken.other(name))))
    }

    fn rejection(&self, node: &Node) -> Rejection {
        let mut reasons = Vec::new();
        if node.pods.len() as i64 >= node.offer.allocatable_pods {
            reasons.push(Cow::Borrowed("Too many pods"));
        }
        let (wanted, offered, taken) = (&self.requests.amounts, &node.offer.allocatable, &node.requested);
        let known = [
            ("Insufficient cpu", wanted.cpu, offered.cpu, taken.cpu),
            ("Insufficient memory", wanted.memory, offered.memory, taken.memory),
            ("Insufficient ephemeral-storage", wanted.storage, offered.storage, taken.storage),
        ];
        for (reason, wanted, offered, taken) in known {
            if wanted > 0 && wanted > offered - taken {
                reasons.push(Cow::Borrowed(reason));
            }
        }
        for (name, wanted) in &wanted.others {
            if *wanted > 0 && *wanted > offered.other(name) - taken.other(name) {
                reasons.push(Cow::Owned(format!("Insufficient {name}")));
            }
        }
        Rejection { reasons, resolvable: is_large_enough(node, self.requests) }
    }
}

impl Pass for Fit<'_> {
    fn filters(&self) -> bool {
        true
    }

    fn check(&self, node: &Node) -> Result<(), Rejection> {
        if self.fits(node) { Ok(()) } else { Err(self.rejection(node)) }
    }

    fn scores(&self) -> bool {
        true
    }

    /// The mean of the shares of CPU and memory left, in per cent.
    fn score(&self, node: &Node) -> i64 {
        let left = |offered: i64, wanted: i64| match offered {
            0 => None,
            _ if wanted > offered => Some(0),
            _ => Some((offered - wanted) * MAX_SCORE / offered),
        };
        let offered = &node.offer.allocatable;
        let cpu = left(offered.cpu, node.scored_cpu + self.requests.scored_cpu);
        let memory = left(offered.memory, node.scored_memory + self.requests.scored_memory);
        match (cpu, memory) {
            (Some(cpu), Some(memory)) => (cpu + memory) / 2,
            (cpu, memory) => cpu.or(memory).unwrap_or(0),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::Fixture;

    #[test]
    fn what_is_missing_is_named() {
        let mut fixture = Fixture::new(&[
            "metadata: {name: a}\nstatus: {allocatable: {cpu: 2, memory: 1Gi, pods: 1}}",
            "metadata: {name: b}\nstatus: {allocatable: {cpu: 1, memory: 4Gi, pods: 10}}",
        ]);
        let pod = |cpu: &str, memory: &str| {
            format!("spec: {{containers: [{{name: c, resources: {{requests: {{cpu: {cpu}, memory: {memory}}}}}}}]}}")
        };
        fixture.schedules(&pod("2", "512Mi"), "a");
        fixture.fails(
            &pod("1500m", "2Gi"),
            "0/2 nodes are available: 1 Insufficient memory, 1 Too many pods, 2 Insufficient cpu.",
        );
        fixture.fails(
            "spec: {containers: [{name: c, resources: {requests: {example.com/gpu: 1}}}]}",
            "0/2 nodes are available: 1 Too many pods, 2 Insufficient example.com/gpu.",
        );
    }

    #[test]
    fn the_least_used_node_is_best() {
        let mut fixture = Fixture::new(&[
            "metadata: {name: small}\nstatus: {allocatable: {cpu: 2, memory: 2Gi, pods: 10}}",
            "metadata: {name: large}\nstatus: {allocatable: {cpu: 8, memory: 8Gi, pods: 10}}",
        ]);
        let pod = "spec: {containers: [{name: c, resources: {requests: {cpu: 1, memory: 1Gi}}}]}";
        // Half of the small one would be used; of the large one an eighth more each time.
        for expected in ["large", "large", "large"] {
            fixture.schedules(pod, expected);
        }
    }
}
