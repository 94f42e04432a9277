//! Node health: notes kubelets that have fallen silent, taints nodes as their conditions say, and marks the pods of lost
//! nodes as not ready. A lease that is renewed costs one map entry; only silence and changes cost work.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::informer::Selection;
use client::{Change, Context, Gate, Index, Informer, Next, Queue, Recorder, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{Node, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch};
use parking_lot::Mutex;
use serde_json::json;
use tokio::time::Instant;

use super::health::{EvictionPace, Grace, Readiness, Verdict, eviction_pace, judge, readiness};
use super::taints;
use crate::error::Result;
use crate::{pods, write};

const IDENTITY: &str = "node-controller";
const LEASES: &str = "kube-node-lease";
const REGION: &str = "topology.kubernetes.io/region";
const ZONE: &str = "topology.kubernetes.io/zone";
const WORKERS: usize = 4;

/// Runs the controller until shutdown.
pub async fn run(context: Context, grace: Grace) {
    let controller = Arc::new(Controller::new(&context, grace));
    let leases: Informer<Lease> =
        context.informers.select(Selection { fields: Some(format!("metadata.namespace={LEASES}")), labels: None });
    controller.nodes.synced().await;
    controller.pods.synced().await;
    leases.synced().await;
    let heard = controller.clone();
    leases.on_change(move |change: Change<'_, Lease>| heard.lease_changed(&change));
    let changed = controller.clone();
    controller.nodes.on_change(move |change| changed.node_changed(&change));
    let queue = controller.queue.clone();
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    })
    .await;
}

#[derive(Default)]
struct State {
    /// When each node's kubelet was last heard of.
    heard: HashMap<String, Instant>,
    /// When a node of each zone was last given an evicting taint.
    evicted: HashMap<String, Instant>,
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    pods: Informer<Pod>,
    pods_by_node: Index<Pod>,
    nodes_by_zone: Index<Node>,
    gate: Gate<Node, String>,
    state: Mutex<State>,
    grace: Grace,
    queue: Queue<String>,
}

fn zone_of(node: &Node) -> String {
    let label =
        |name: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(name)).map_or("", String::as_str);
    format!("{}/{}", label(REGION), label(ZONE))
}

impl Controller {
    fn new(context: &Context, grace: Grace) -> Self {
        let client = context.as_controller(IDENTITY);
        let nodes = context.informers.of::<Node>();
        let pods = context.informers.of::<Pod>();
        Controller {
            recorder: Recorder::new(client.clone(), IDENTITY, ""),
            client,
            pods_by_node: pods::by_node(&pods),
            nodes_by_zone: nodes.index("controllers/zone", |node: &Node| vec![zone_of(node)]),
            gate: Gate::new(nodes.clone()),
            nodes,
            pods,
            state: Mutex::default(),
            grace,
            queue: Queue::default(),
        }
    }

    fn hear(&self, node: &str) {
        self.state.lock().heard.insert(node.to_owned(), Instant::now());
    }

    fn lease_changed(&self, change: &Change<'_, Lease>) {
        let renewed = |lease: &Lease| lease.spec.as_ref().and_then(|spec| spec.renew_time.clone());
        if let Change::Applied { old, new } = change
            && old.is_none_or(|old| renewed(old) != renewed(new))
        {
            self.hear(new.metadata.name.as_deref().unwrap_or_default());
        }
    }

    fn node_changed(&self, change: &Change<'_, Node>) {
        let node = change.object();
        let name = node.metadata.name.clone().unwrap_or_default();
        let heartbeat =
            |node: &Node| super::health::condition(node, "Ready").and_then(|ready| ready.last_heartbeat_time.clone());
        match change {
            Change::Applied { old: None, .. } => {
                self.hear(&name);
                self.recorder.normal(
                    &**node,
                    "RegisteredNode",
                    format!("Node {name} event: Registered Node {name} in Controller"),
                );
            }
            Change::Applied { old: Some(old), new } => {
                // Our own verdict keeps the heartbeat time, so that it is not taken for a sign of life.
                if heartbeat(old) != heartbeat(new) {
                    self.hear(&name);
                }
                let lost = readiness(old) == Readiness::Ready && readiness(new) != Readiness::Ready;
                if lost {
                    self.recorder.normal(&**node, "NodeNotReady", format!("Node {name} status is now: NodeNotReady"));
                }
                if readiness(old) != readiness(new) {
                    // Whether others may be evicted depends on how many of their zone are well.
                    self.zone_mates(new).into_iter().for_each(|mate| self.queue.add(mate));
                }
            }
            Change::Deleted { .. } => {
                self.state.lock().heard.remove(&name);
                self.recorder.normal(
                    &**node,
                    "RemovingNode",
                    format!("Node {name} event: Removing Node {name} from Controller"),
                );
            }
        }
        self.queue.add(name);
    }

    /// Nodes of the same zone that are waiting to be tainted or untainted.
    fn zone_mates(&self, node: &Node) -> Vec<String> {
        let mates = self.nodes_by_zone.get(&zone_of(node));
        let unwell = mates.iter().filter(|mate| readiness(mate) != Readiness::Ready);
        unwell.filter_map(|mate| mate.metadata.name.clone()).collect()
    }

    async fn reconcile(&self, name: &String) -> Result<Next> {
        self.gate.opened(name).await?;
        let Some(node) = self.nodes.get("", name) else {
            self.gate.forget(name);
            return Ok(Next::Wait);
        };
        let silence = self.state.lock().heard.entry(name.clone()).or_insert_with(Instant::now).elapsed();
        let mut recheck = match judge(&node, silence, &self.grace, Timestamp::now()) {
            Verdict::Alive(wait) => Some(wait),
            Verdict::KnownSilent => None,
            Verdict::Silent(conditions) => {
                let patch = json!({
                    "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
                    "status": { "conditions": conditions },
                });
                let api: Api<Node> = Api::all(self.client.clone());
                let written = api.patch_status(name, &write::patch(), &Patch::Strategic(patch)).await?;
                self.gate.wrote(name, &written);
                // The change comes back as an event, and with it the taints.
                return Ok(Next::Wait);
            }
        };
        let (evict, wait) = self.may_evict(&node);
        if let Some(wait) = wait {
            recheck = Some(recheck.map_or(wait, |sooner| sooner.min(wait)));
        }
        self.write_taints(name, &node, evict).await?;
        if matches!(readiness(&node), Readiness::NotReady | Readiness::Unknown) {
            self.mark_pods(name).await?;
        }
        Ok(recheck.map_or(Next::Wait, Next::After))
    }

    /// Whether the node may get an evicting taint now, and if not, when it may.
    fn may_evict(&self, node: &Node) -> (bool, Option<Duration>) {
        let Some(key) = taints::eviction_key(node) else { return (false, None) };
        let present =
            |taint: &k8s_openapi::api::core::v1::Taint| taint.key == key && taint.effect == taints::NO_EXECUTE;
        if taints::taints_of(node).iter().any(present) {
            return (true, None);
        }
        // Only now, when a node has failed, the others are counted.
        let zone = zone_of(node);
        let (mut here, mut elsewhere) = ((0, 0), (0, 0));
        for other in self.nodes.list() {
            let counts = if zone_of(&other) == zone { &mut here } else { &mut elsewhere };
            match readiness(&other) {
                Readiness::Ready => counts.0 += 1,
                Readiness::NotReady | Readiness::Unknown => counts.1 += 1,
                Readiness::New => {}
            }
        }
        let EvictionPace::OneIn(interval) = eviction_pace(here, elsewhere) else { return (false, None) };
        let mut state = self.state.lock();
        match state.evicted.get(&zone).map(Instant::elapsed) {
            Some(since) if since < interval => (false, Some(interval - since)),
            _ => {
                state.evicted.insert(zone, Instant::now());
                (true, None)
            }
        }
    }

    async fn write_taints(&self, name: &String, node: &Node, evict: bool) -> Result<()> {
        let wanted = taints::wanted(node, evict, Timestamp::now());
        if wanted == taints::taints_of(node) {
            return Ok(());
        }
        let patch = json!({
            "metadata": { "uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version },
            "spec": { "taints": wanted },
        });
        let api: Api<Node> = Api::all(self.client.clone());
        let written = api.patch(name, &write::patch(), &Patch::Merge(patch)).await?;
        self.gate.wrote(name, &written);
        Ok(())
    }

    /// Services stop sending to pods of a node that is not ready.
    async fn mark_pods(&self, node: &str) -> Result<()> {
        for pod in self.pods_by_node.get(node) {
            if !pods::is_ready(&pod) || pod.metadata.deletion_timestamp.is_some() && pods::is_finished(&pod) {
                continue;
            }
            let (namespace, name) = client::key_of(&*pod);
            let condition = json!({ "type": "Ready", "status": "False", "lastTransitionTime": Time(Timestamp::now()) });
            let patch = json!({ "metadata": { "uid": pod.metadata.uid }, "status": { "conditions": [condition] } });
            let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
            client::found(api.patch_status(&name, &write::patch(), &Patch::Strategic(patch)).await)?;
            self.recorder.warning(&*pod, "NodeNotReady", "Node is not ready");
        }
        Ok(())
    }
}
