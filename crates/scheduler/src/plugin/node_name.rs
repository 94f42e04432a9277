//! NodeName: a pod that names its node goes there or nowhere.

use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, Pass, Plugin, Rejection};
use crate::pod::PodInfo;

pub struct NodeName;

impl Plugin for NodeName {
    fn name(&self) -> &'static str {
        "NodeName"
    }

    // Not static: the name is the pod's, not its class's.

    fn begin<'a>(&self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Begin<'a> {
        pod.node_name().map_or(Begin::Skip, |name| Begin::run(Named(name)))
    }

    fn may_help(&self, event: &Event<'_>, pod: &PodInfo, _cluster: &Cluster) -> bool {
        matches!(event, Event::NodeAdded(node) if pod.node_name() == Some(&*node.name))
    }
}

struct Named<'a>(&'a str);

impl Pass for Named<'_> {
    fn filters(&self) -> bool {
        true
    }

    fn check(&self, node: &Node) -> Result<(), Rejection> {
        if &*node.name == self.0 {
            Ok(())
        } else {
            Err(Rejection::final_("node(s) didn't match the requested node name"))
        }
    }
}
