//! NodePorts: two pods cannot have the same port of a node.

use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, Pass, Plugin, Rejection};
use crate::pod::{HostPort, PodInfo};

pub struct NodePorts;

impl Plugin for NodePorts {
    fn name(&self) -> &'static str {
        "NodePorts"
    }

    fn begin<'a>(&self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Begin<'a> {
        match pod.class.ports.as_slice() {
            [] => Begin::Skip,
            ports => Begin::run(Free(ports)),
        }
    }

    fn may_help(&self, event: &Event<'_>, pod: &PodInfo, _cluster: &Cluster) -> bool {
        match event {
            Event::NodeAdded(_) => true,
            Event::PodRemoved(removed) => conflict(&pod.class.ports, &removed.class.ports),
            _ => false,
        }
    }
}

fn conflict(wanted: &[HostPort], taken: &[HostPort]) -> bool {
    wanted.iter().any(|wanted| taken.iter().any(|taken| taken.conflicts(wanted)))
}

struct Free<'a>(&'a [HostPort]);

impl Pass for Free<'_> {
    fn filters(&self) -> bool {
        true
    }

    fn check(&self, node: &Node) -> Result<(), Rejection> {
        match conflict(self.0, &node.ports) {
            false => Ok(()),
            true => Err(Rejection::resolvable("node(s) didn't have free ports for the requested pod ports")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::Fixture;

    #[test]
    fn a_port_is_given_once_per_node() {
        let mut fixture = Fixture::new(&["metadata: {name: a}", "metadata: {name: b}"]);
        let pod = "spec: {containers: [{name: c, ports: [{containerPort: 80, hostPort: 80}]}]}";
        fixture.places(pod);
        fixture.places(pod);
        fixture.fails(pod, "0/2 nodes are available: 2 node(s) didn't have free ports for the requested pod ports.");
    }
}
