//! NodeResourcesBalancedAllocation: nodes whose CPU and memory would be used to a like degree are best.

use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, MAX_SCORE, Pass, Plugin};
use crate::pod::PodInfo;
use crate::resource::Amounts;

pub struct BalancedAllocation;

impl Plugin for BalancedAllocation {
    fn name(&self) -> &'static str {
        "NodeResourcesBalancedAllocation"
    }

    fn begin<'a>(&self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Begin<'a> {
        let requests = &pod.class.requests.amounts;
        // A pod that asks for nothing changes no balance.
        if (requests.cpu, requests.memory) == (0, 0) { Begin::Skip } else { Begin::run(Balance(requests)) }
    }

    fn may_help(&self, _event: &Event<'_>, _pod: &PodInfo, _cluster: &Cluster) -> bool {
        false
    }
}

struct Balance<'a>(&'a Amounts);

impl Pass for Balance<'_> {
    fn scores(&self) -> bool {
        true
    }

    /// One less the standard deviation of the two used shares, in per cent.
    fn score(&self, node: &Node) -> i64 {
        let share = |taken: i64, offered: i64| (offered != 0).then(|| (taken as f64 / offered as f64).min(1.0));
        let offered = &node.offer.allocatable;
        let cpu = share(node.requested.cpu + self.0.cpu, offered.cpu);
        let memory = share(node.requested.memory + self.0.memory, offered.memory);
        let deviation = cpu.zip(memory).map_or(0.0, |(cpu, memory)| ((cpu - memory) / 2.0).abs());
        ((1.0 - deviation) * MAX_SCORE as f64) as i64
    }
}
