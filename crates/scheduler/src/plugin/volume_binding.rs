//! VolumeBinding, as far as volumes that exist go: a pod waits until its claims are bound, then goes where its volumes can be
//! reached. Binding claims is the work of controllers.

use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, Pass, Plugin, Rejection};
use crate::pod::PodInfo;
use crate::selector::NodeMatch;

pub struct VolumeBinding;

impl Plugin for VolumeBinding {
    fn name(&self) -> &'static str {
        "VolumeBinding"
    }

    fn begin<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Begin<'a> {
        match cluster.storage.reachable(pod) {
            Err(reason) => Begin::Reject(reason),
            Ok(nodes) if nodes.is_empty() => Begin::Skip,
            Ok(nodes) => Begin::run(Reachable(nodes)),
        }
    }

    fn may_help(&self, event: &Event<'_>, pod: &PodInfo, _cluster: &Cluster) -> bool {
        match event {
            Event::ClaimChanged { namespace, name } => {
                *namespace == pod.namespace() && pod.claims.iter().any(|claim| claim.name == *name)
            }
            Event::VolumeChanged | Event::NodeAdded(_) => true,
            Event::NodeChanged(_, change) => change.labels,
            _ => false,
        }
    }
}

struct Reachable<'a>(Vec<&'a NodeMatch>);

impl Pass for Reachable<'_> {
    fn filters(&self) -> bool {
        true
    }

    fn check(&self, node: &Node) -> Result<(), Rejection> {
        match self.0.iter().all(|nodes| nodes.matches(&node.name, &node.offer.labels)) {
            true => Ok(()),
            false => Err(Rejection::final_("node(s) didn't match PersistentVolume's node affinity")),
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::Fixture;

    #[test]
    fn a_pod_waits_for_its_claim_and_follows_its_volume() {
        let mut fixture = Fixture::new(&["metadata: {name: a}", "metadata: {name: b}"]);
        let pod = "spec: {containers: [{name: c}], volumes: [{name: v, persistentVolumeClaim: {claimName: data}}]}";
        fixture.fails(pod, "0/2 nodes are available: persistentvolumeclaim \"data\" not found.");
        fixture.claim("metadata: {name: data, namespace: default}");
        fixture.fails(pod, "0/2 nodes are available: pod has unbound immediate PersistentVolumeClaims.");
        fixture.volume(
            "metadata: {name: pv}\nspec: {nodeAffinity: {required: {nodeSelectorTerms: [{matchExpressions: \
             [{key: kubernetes.io/hostname, operator: In, values: [b]}]}]}}}",
        );
        fixture.claim("metadata: {name: data, namespace: default}\nspec: {volumeName: pv}\nstatus: {phase: Bound}");
        fixture.schedules(pod, "b");
    }
}
