//! NodeUnschedulable: nodes that were cordoned take no pods, but those that tolerate it.

use k8s_openapi::api::core::v1::Taint;

use super::taint_toleration::tolerates;
use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, Pass, Plugin, Rejection};
use crate::pod::PodInfo;

pub struct NodeUnschedulable;

impl Plugin for NodeUnschedulable {
    fn name(&self) -> &'static str {
        "NodeUnschedulable"
    }

    fn is_static(&self) -> bool {
        true
    }

    fn begin<'a>(&self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Begin<'a> {
        match tolerates_cordon(pod) {
            true => Begin::Skip,
            false => Begin::run(Uncordoned),
        }
    }

    fn may_help(&self, event: &Event<'_>, _pod: &PodInfo, _cluster: &Cluster) -> bool {
        match event {
            Event::NodeAdded(node) => !node.offer.unschedulable,
            Event::NodeChanged(node, change) => change.unschedulable && !node.offer.unschedulable,
            _ => false,
        }
    }
}

fn tolerates_cordon(pod: &PodInfo) -> bool {
    let cordon = Taint {
        key: "node.kubernetes.io/unschedulable".to_owned(),
        effect: "NoSchedule".to_owned(),
        ..Taint::default()
    };
    tolerates(&pod.class.tolerations, &cordon)
}

struct Uncordoned;

impl Pass for Uncordoned {
    fn filters(&self) -> bool {
        true
    }

    fn check(&self, node: &Node) -> Result<(), Rejection> {
        if node.offer.unschedulable { Err(Rejection::final_("node(s) were unschedulable")) } else { Ok(()) }
    }
}
