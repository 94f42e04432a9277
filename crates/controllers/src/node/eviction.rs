//! Evicts pods from nodes with `NoExecute` taints that they do not, or no longer, tolerate (upstream's
//! taint-eviction-controller). One timer a pod, none for pods of untainted nodes.

use std::sync::Arc;
use std::time::Duration;

use client::{Change, Context, Index, Informer, Next, ObjectKey, Queue, Recorder, key_of, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch};
use parking_lot::Mutex;
use serde_json::json;

use super::taints::{self, Leave, NO_EXECUTE};
use crate::error::Result;
use crate::{pods, write};

const NAME: &str = "taint-eviction-controller";
/// It has no service account of its own.
const IDENTITY: &str = "node-controller";
const WORKERS: usize = 8;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let client = context.as_controller(IDENTITY);
    let pods = context.informers.of::<Pod>();
    let controller = Arc::new(Controller {
        recorder: Recorder::new(client.clone(), NAME, ""),
        client,
        nodes: context.informers.of::<Node>(),
        by_node: pods::by_node(&pods),
        pods,
        scheduled: Mutex::default(),
        queue: Queue::default(),
    });
    controller.nodes.synced().await;
    controller.pods.synced().await;
    let changed = controller.clone();
    controller.nodes.on_change(move |change| changed.node_changed(&change));
    let changed = controller.clone();
    controller.pods.on_change(move |change| changed.pod_changed(&change));
    let queue = controller.queue.clone();
    run_workers(NAME, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    by_node: Index<Pod>,
    /// Pods with a pending eviction, so that its cancellation can be told.
    scheduled: Mutex<std::collections::HashSet<ObjectKey>>,
    queue: Queue<ObjectKey>,
}

fn evicts(node: &Node) -> bool {
    taints::taints_of(node).iter().any(|taint| taint.effect == NO_EXECUTE)
}

impl Controller {
    fn node_changed(&self, change: &Change<'_, Node>) {
        let Change::Applied { old, new } = change else { return };
        let had = old.map(|old| taints::taints_of(old)).unwrap_or_default();
        if had != taints::taints_of(new) && (evicts(new) || old.is_some_and(|old| evicts(old))) {
            let name = new.metadata.name.as_deref().unwrap_or_default();
            self.by_node.get(name).iter().for_each(|pod| self.queue.add(key_of(&**pod)));
        }
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        if matches!(change, Change::Deleted { .. }) {
            self.scheduled.lock().remove(&key_of(&**pod));
            return;
        }
        let node = pods::node_name(pod).and_then(|name| self.nodes.get("", name));
        if node.is_some_and(|node| evicts(&node)) {
            self.queue.add(key_of(&**pod));
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        let Some(pod) = self.pods.get(&key.0, &key.1) else { return Ok(Next::Wait) };
        let node = pods::node_name(&pod).and_then(|name| self.nodes.get("", name));
        let now = Timestamp::now();
        let leave = node.map_or(Leave::Never, |node| taints::leave(&pod, taints::taints_of(&node), now));
        match leave {
            Leave::Never => {
                if self.scheduled.lock().remove(key) {
                    let message = format!("Cancelling deletion of Pod {}/{}", key.0, key.1);
                    self.recorder.normal(&*pod, "TaintManagerEviction", message);
                }
                Ok(Next::Wait)
            }
            Leave::At(at) if at > now => {
                self.scheduled.lock().insert(key.clone());
                let wait = Duration::try_from(at.duration_since(now)).unwrap_or_default();
                Ok(Next::After(wait))
            }
            Leave::At(_) => self.evict(key, &pod).await,
        }
    }

    async fn evict(&self, key: &ObjectKey, pod: &Pod) -> Result<Next> {
        if pod.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Wait);
        }
        self.scheduled.lock().remove(key);
        self.recorder.normal(pod, "TaintManagerEviction", format!("Marking for deletion Pod {}/{}", key.0, key.1));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        let condition = json!({
            "type": "DisruptionTarget",
            "status": "True",
            "reason": "DeletionByTaintManager",
            "message": "Taint manager: deleting due to NoExecute taint",
            "lastTransitionTime": Time(Timestamp::now()),
        });
        let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
        if client::found(api.patch_status(&key.1, &write::patch(), &Patch::Strategic(patch)).await)?.is_some() {
            client::found(api.delete(&key.1, &write::delete_seen(pod)).await)?;
        }
        Ok(Next::Wait)
    }
}
