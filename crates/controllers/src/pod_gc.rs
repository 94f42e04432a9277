//! Pods that nobody else will remove: those of nodes that no longer exist, those deleted before they were scheduled, and
//! the oldest finished ones beyond a threshold (upstream's pod-garbage-collector-controller).

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Context, Gate, Index, Informer, Next, ObjectKey, Queue, key_of, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch};
use parking_lot::Mutex;
use serde_json::json;

use crate::error::Result;
use crate::{pods, write};

const IDENTITY: &str = "pod-garbage-collector";
const WORKERS: usize = 4;
/// A node may be missing from the cache for a moment only (upstream's quarantine).
const QUARANTINE: Duration = Duration::from_secs(40);

/// Runs the controller until shutdown. `threshold` is the number of finished pods that are kept; zero keeps all.
pub async fn run(context: Context, threshold: usize) {
    let pods = context.informers.of::<Pod>();
    let controller = Arc::new(Controller {
        client: context.as_controller(IDENTITY),
        nodes: context.informers.of::<Node>(),
        by_node: pods::by_node(&pods),
        gate: Gate::new(pods.clone()),
        pods,
        finished: Mutex::new(Finished { pods: BTreeSet::new(), threshold }),
        queue: Queue::default(),
    });
    controller.nodes.synced().await;
    controller.pods.synced().await;
    let changed = controller.clone();
    controller.pods.on_change(move |change| changed.pod_changed(&change));
    let changed = controller.clone();
    controller.nodes.on_change(move |change| changed.node_changed(&change));
    let queue = controller.queue.clone();
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

/// Evicted ones first, then the oldest.
type Rank = (bool, Option<Time>, ObjectKey);

/// The finished pods in the order in which they are given up.
struct Finished {
    pods: BTreeSet<Rank>,
    threshold: usize,
}

fn rank(pod: &Pod) -> Rank {
    let evicted = pod.status.as_ref().and_then(|status| status.reason.as_deref()) == Some("Evicted");
    (!evicted, pod.metadata.creation_timestamp.clone(), key_of(pod))
}

impl Finished {
    fn observe(&mut self, change: &Change<'_, Pod>) {
        if let Some(old) = change.old() {
            self.pods.remove(&rank(old));
        }
        if let Change::Applied { new, .. } = change
            && pods::is_finished(new)
        {
            self.pods.insert(rank(new));
        }
    }

    /// The pods beyond the threshold.
    fn excess(&self) -> Vec<ObjectKey> {
        let count = if self.threshold == 0 { 0 } else { self.pods.len().saturating_sub(self.threshold) };
        self.pods.iter().take(count).map(|(_, _, key)| key.clone()).collect()
    }

    fn is_excess(&self, pod: &Pod) -> bool {
        let count = if self.threshold == 0 { 0 } else { self.pods.len().saturating_sub(self.threshold) };
        let own = rank(pod);
        self.pods.iter().take(count).any(|rank| *rank == own)
    }
}

/// Why a pod is removed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fate {
    Keep,
    /// Being deleted, but on no node that could finish it.
    Unscheduled,
    /// Being deleted on a node that an administrator declared out of service.
    OutOfService,
    /// Its node is unknown; to be confirmed by the server.
    NodeMissing,
}

fn fate(pod: &Pod, node: Option<&Node>) -> Fate {
    let deleting = pod.metadata.deletion_timestamp.is_some();
    match (pods::node_name(pod), node) {
        (None, _) if deleting => Fate::Unscheduled,
        (Some(_), None) => Fate::NodeMissing,
        (Some(_), Some(node)) if deleting && is_out_of_service(node) => Fate::OutOfService,
        _ => Fate::Keep,
    }
}

fn is_out_of_service(node: &Node) -> bool {
    let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
    let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    let ready = conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True");
    !ready && taints.iter().any(|taint| taint.key == crate::node::OUT_OF_SERVICE)
}

struct Controller {
    client: kube::Client,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    by_node: Index<Pod>,
    gate: Gate<Pod>,
    finished: Mutex<Finished>,
    queue: Queue<ObjectKey>,
}

impl Controller {
    fn node_of(&self, pod: &Pod) -> Option<Arc<Node>> {
        pods::node_name(pod).and_then(|name| self.nodes.get("", name))
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let excess = {
            let mut finished = self.finished.lock();
            finished.observe(change);
            finished.excess()
        };
        excess.into_iter().for_each(|key| self.queue.add(key));
        if let Change::Applied { new, .. } = change {
            match fate(new, self.node_of(new).as_deref()) {
                Fate::Keep => {}
                Fate::NodeMissing => self.queue.add_after(key_of(&***new), QUARANTINE),
                Fate::Unscheduled | Fate::OutOfService => self.queue.add(key_of(&***new)),
            }
        }
    }

    fn node_changed(&self, change: &Change<'_, Node>) {
        let node = change.object();
        let gone = matches!(change, Change::Deleted { .. });
        if gone || is_out_of_service(node) {
            for pod in self.by_node.get(node.metadata.name.as_deref().unwrap_or_default()) {
                let delay = if gone { QUARANTINE } else { Duration::ZERO };
                self.queue.add_after(key_of(&*pod), delay);
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.gate.opened(key).await?;
        let Some(pod) = self.pods.get(&key.0, &key.1) else {
            self.gate.forget(key);
            return Ok(Next::Wait);
        };
        let reason = match fate(&pod, self.node_of(&pod).as_deref()) {
            Fate::Keep if self.finished.lock().is_excess(&pod) => None,
            Fate::Keep => return Ok(Next::Wait),
            Fate::Unscheduled => None,
            Fate::OutOfService => Some("PodGC: pod is being deleted on a node that is out of service"),
            Fate::NodeMissing => {
                let nodes: Api<Node> = Api::all(self.client.clone());
                if client::found(nodes.get_metadata(pods::node_name(&pod).unwrap_or_default()).await)?.is_some() {
                    return Ok(Next::Wait);
                }
                Some("PodGC: node no longer exists")
            }
        };
        self.remove(key, &pod, reason).await?;
        Ok(Next::Wait)
    }

    /// With a `reason`, a pod that has not finished is first marked as failed, for whoever counts failures.
    async fn remove(&self, key: &ObjectKey, pod: &Pod, reason: Option<&str>) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        if let Some(message) = reason.filter(|_| !pods::is_finished(pod)) {
            let condition = json!({
                "type": "DisruptionTarget",
                "status": "True",
                "reason": "DeletionByPodGC",
                "message": message,
                "lastTransitionTime": Time(Timestamp::now()),
            });
            let status = json!({ "phase": "Failed", "conditions": [condition] });
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": status });
            if client::found(api.patch_status(&key.1, &write::patch(), &Patch::Strategic(patch)).await)?.is_none() {
                return Ok(());
            }
        }
        // Nobody is there to stop it gracefully.
        let params = write::delete_seen(pod).grace_period(0);
        if client::found(api.delete(&key.1, &params).await)?.is_some() {
            self.gate.deleted(key, pod);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{pod, pods, yaml};

    #[test]
    fn fates() {
        let node: Node = yaml("{ metadata: { name: n } }");
        let retired: Node =
            yaml("{ spec: { taints: [{ key: node.kubernetes.io/out-of-service, effect: NoExecute }] } }");
        assert_eq!(fate(&pod("{ name: a, phase: Pending }"), None), Fate::Keep);
        assert_eq!(fate(&pod("{ name: a, deleting: true }"), None), Fate::Unscheduled);
        assert_eq!(fate(&pod("{ name: a, node: n }"), None), Fate::NodeMissing);
        assert_eq!(fate(&pod("{ name: a, node: n, deleting: true }"), Some(&node)), Fate::Keep);
        assert_eq!(fate(&pod("{ name: a, node: n, deleting: true }"), Some(&retired)), Fate::OutOfService);
    }

    #[test]
    fn the_oldest_finished_pods_go_first_and_evicted_ones_before_them() {
        let mut finished = Finished { pods: BTreeSet::new(), threshold: 1 };
        let mut all = pods(
            "{ name: young, phase: Failed, age: 10 }
             { name: old, phase: Succeeded, age: 100 }
             { name: running, age: 1000 }
             { name: evicted, phase: Failed, age: 1 }",
        );
        let evicted = Arc::make_mut(&mut all[3]);
        evicted.status.get_or_insert_default().reason = Some("Evicted".into());
        all.iter().for_each(|pod| finished.observe(&Change::Applied { old: None, new: pod }));
        let names: Vec<String> = finished.excess().into_iter().map(|(_, name)| name).collect();
        assert_eq!(names, ["evicted", "old"]);
        finished.observe(&Change::Deleted { old: &all[3] });
        assert!(finished.is_excess(&all[1]) && !finished.is_excess(&all[0]));
    }
}
