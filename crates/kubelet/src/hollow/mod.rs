//! Hollow nodes: many simulated nodes in one process, which register, heartbeat, and run pods without containers. They are for
//! measuring and testing a control plane at a size that no machine at hand has.
//!
//! Everything is one [`Fleet`], a state machine without I/O: what the two watches, the clock and answers tell it becomes writes, of
//! which so many are under way at a time. There is no task, thread or timer per node, and of a pod is kept its address alone.
//!
//! Must not know: containers, volumes, probes, the machine's facts; neither the rest of the kubelet. A hollow node has no HTTPS
//! server, so there are no logs and no exec. Nothing ends a hollow pod but its deletion and `activeDeadlineSeconds`.

mod fleet;
mod network;
mod node;
mod pod;
mod round;
mod write;

use std::time::Duration;

use client::informer::WatchBackoff;
use futures::{Stream, StreamExt as _};
use jiff::Timestamp;
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use fleet::Fleet;
pub use network::Network;
use node::NodeView;
use pod::PodView;

/// What to simulate.
#[derive(Clone, Debug)]
pub struct Config {
    /// Number of nodes, named `<prefix>0`, `<prefix>1` and so on.
    pub nodes: u32,
    pub prefix: String,
    /// What each node has, as quantities.
    pub cpu: String,
    pub memory: String,
    pub pods: u32,
    /// Values of the label `topology.kubernetes.io/zone` that the nodes have in turn; none have it if zero.
    pub zones: u32,
    /// Each node takes its part of this as its `podCIDR`. None: something in the cluster gives out the nodes' networks.
    pub pod_network: Option<Network>,
    /// Reported as the kubelet's version.
    pub version: String,
    /// Leases are renewed four times in this.
    pub lease_duration: Duration,
    /// Node status is written this often, without a change too.
    pub status_period: Duration,
    /// Requests under way at any time.
    pub concurrency: usize,
}

impl Config {
    /// `nodes` nodes of the defaults of upstream's kubelet, with 32 processors and 256 GiB.
    pub fn new(nodes: u32) -> Self {
        Config {
            nodes,
            prefix: "hollow-".to_owned(),
            cpu: "32".to_owned(),
            memory: "256Gi".to_owned(),
            pods: 110,
            zones: 0,
            pod_network: None,
            version: concat!("v1.37.0+coxswain.", env!("CARGO_PKG_VERSION")).to_owned(),
            lease_duration: Duration::from_secs(40),
            status_period: Duration::from_secs(300),
            concurrency: 32,
        }
    }
}

/// Simulates until `shutdown`. The nodes stay registered after that, as those of a kubelet that stopped do.
pub async fn run(client: kube::Client, config: Config, shutdown: CancellationToken) {
    let limit = config.concurrency.max(1);
    let mut nodes = watch(Api::<NodeView>::all(client.clone()), watcher::Config::default());
    let bound = watcher::Config::default().fields("spec.nodeName!=");
    let mut pods = watch(Api::<PodView>::all(client.clone()), bound);
    let mut fleet = Fleet::new(config, Instant::now());
    let mut writes = JoinSet::new();
    loop {
        fleet.tick(Instant::now());
        while writes.len() < limit
            && let Some(write) = fleet.next_write(Timestamp::now())
        {
            writes.spawn(write::send(client.clone(), write));
        }
        tokio::select! {
            () = shutdown.cancelled() => return,
            Some(event) = nodes.next() => fleet.node_event(event, Timestamp::now()),
            Some(event) = pods.next() => fleet.pod_event(event, Timestamp::now(), Instant::now()),
            Some(done) = writes.join_next() => {
                // A panic of a write would have ended the process's usefulness for one object only; there is nothing to undo.
                if let Ok((job, result)) = done {
                    fleet.written(job, result, Instant::now());
                }
            }
            () = tokio::time::sleep_until(fleet.wakes_at(Instant::now())) => {}
        }
    }
}

/// A list in pages and a watch, as any server since long ago serves them; interruptions are waited out.
fn watch<K: client::Kind>(api: Api<K>, config: watcher::Config) -> impl Stream<Item = watcher::Event<K>> + Unpin {
    let events = watcher::watcher(api, config).backoff(WatchBackoff::default());
    Box::pin(events.filter_map(|event| async {
        event.inspect_err(|error| tracing::debug!(kind = std::any::type_name::<K>(), %error, "watch interrupted")).ok()
    }))
}
