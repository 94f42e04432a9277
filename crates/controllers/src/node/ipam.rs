//! Gives each node its part of the cluster's pod networks (`spec.podCIDRs`), once and for all.
//!
//! A /24 under IPv4, a /64 under IPv6, as upstream's `--node-cidr-mask-size` defaults; the lowest that is free. What is taken follows
//! from the nodes alone.

use std::collections::HashMap;
use std::collections::hash_map::Entry;
use std::sync::Arc;

use client::{Change, Context, Gate, Informer, Next, Queue, Recorder, run_workers};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;
use kube::api::{Api, Patch};
use parking_lot::Mutex;
use serde_json::json;

use crate::error::Result;
use crate::write;

const IDENTITY: &str = "node-controller";
const WORKERS: usize = 8;
const NODE_BITS_V4: u8 = 24;
const NODE_BITS_V6: u8 = 64;

/// Runs the controller until shutdown. Networks that cannot be read are left out; without any there is nothing to do.
pub async fn run(context: Context, cluster_cidrs: Vec<String>) {
    let pools: Vec<Pool> = cluster_cidrs.iter().filter_map(|cidr| cidr.trim().parse().ok()).map(Pool::new).collect();
    if pools.is_empty() {
        return;
    }
    let client = context.as_controller(IDENTITY);
    let nodes = context.informers.of::<Node>();
    let controller = Arc::new(Controller {
        recorder: Recorder::new(client.clone(), "cidrAllocator", ""),
        client,
        gate: Gate::new(nodes.clone()),
        nodes: nodes.clone(),
        pools: Mutex::new(pools),
        queue: Queue::default(),
    });
    nodes.synced().await;
    // First all that is taken, then all that is wanted.
    for node in nodes.list() {
        controller.occupy(&node);
    }
    let changed = controller.clone();
    nodes.on_change(move |change| changed.node_changed(&change));
    let queue = controller.queue.clone();
    run_workers("node-ipam-controller", queue, WORKERS, context.shutdown, move |name| {
        let controller = controller.clone();
        async move { controller.reconcile(&name).await }
    })
    .await;
}

/// One cluster network, cut into node networks.
struct Pool {
    network: IpNet,
    bits: u8,
    /// Which node has which network.
    taken: HashMap<IpNet, String>,
    /// No network below this number is free.
    first_free: u64,
}

impl Pool {
    fn new(network: IpNet) -> Self {
        let wanted = if network.addr().is_ipv4() { NODE_BITS_V4 } else { NODE_BITS_V6 };
        let network = network.trunc();
        Pool { network, bits: network.prefix_len().max(wanted), taken: HashMap::new(), first_free: 0 }
    }

    fn count(&self) -> u64 {
        1u64.checked_shl(u32::from(self.bits - self.network.prefix_len())).unwrap_or(u64::MAX)
    }

    fn nth(&self, number: u64) -> Option<IpNet> {
        let host_bits = u32::from(self.network.max_prefix_len() - self.bits);
        let offset = u128::from(number).checked_shl(host_bits).unwrap_or(0);
        match self.network {
            IpNet::V4(net) => {
                let address = u32::from(net.network()).checked_add(u32::try_from(offset).ok()?)?;
                IpNet::new(std::net::Ipv4Addr::from(address).into(), self.bits).ok()
            }
            IpNet::V6(net) => {
                let address = u128::from(net.network()).checked_add(offset)?;
                IpNet::new(std::net::Ipv6Addr::from(address).into(), self.bits).ok()
            }
        }
    }

    /// The lowest free network, now `node`'s. None if all are taken.
    fn take(&mut self, node: &str) -> Option<IpNet> {
        for number in self.first_free..self.count() {
            let network = self.nth(number)?;
            if let Entry::Vacant(free) = self.taken.entry(network) {
                free.insert(node.to_owned());
                self.first_free = number + 1;
                return Some(network);
            }
        }
        None
    }

    fn occupy(&mut self, network: IpNet, node: &str) {
        if self.network.contains(&network) {
            self.taken.insert(network.trunc(), node.to_owned());
        }
    }

    fn release(&mut self, node: &str) {
        self.taken.retain(|_, holder| holder != node);
        self.first_free = 0;
    }
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    nodes: Informer<Node>,
    gate: Gate<Node, String>,
    pools: Mutex<Vec<Pool>>,
    queue: Queue<String>,
}

impl Controller {
    fn occupy(&self, node: &Node) {
        let name = node.metadata.name.as_deref().unwrap_or_default();
        let mut pools = self.pools.lock();
        for network in networks(node) {
            pools.iter_mut().for_each(|pool| pool.occupy(network, name));
        }
    }

    fn node_changed(&self, change: &Change<'_, Node>) {
        let name = change.object().metadata.name.clone().unwrap_or_default();
        match change {
            Change::Deleted { .. } => self.pools.lock().iter_mut().for_each(|pool| pool.release(&name)),
            Change::Applied { new, .. } if networks(new).is_empty() => self.queue.add(name),
            Change::Applied { new, .. } => self.occupy(new),
        }
    }

    async fn reconcile(&self, name: &String) -> Result<Next> {
        self.gate.opened(name).await?;
        let Some(node) = self.nodes.get("", name).filter(|node| networks(node).is_empty()) else {
            self.gate.forget(name);
            return Ok(Next::Wait);
        };
        let taken: Option<Vec<String>> = {
            let mut pools = self.pools.lock();
            // A try that failed has left its own behind.
            pools.iter_mut().for_each(|pool| pool.release(name));
            pools.iter_mut().map(|pool| pool.take(name).map(|network| network.to_string())).collect()
        };
        let Some(taken) = taken else {
            let message = format!("Node {name} status is now: CIDRNotAvailable");
            self.recorder.normal(&*node, "CIDRNotAvailable", message);
            return Ok(Next::After(std::time::Duration::from_secs(30)));
        };
        let patch = json!({
            "metadata": {"uid": node.metadata.uid, "resourceVersion": node.metadata.resource_version},
            "spec": {"podCIDR": taken.first(), "podCIDRs": taken},
        });
        let api: Api<Node> = Api::all(self.client.clone());
        let written = api.patch(name, &write::patch(), &Patch::Merge(patch)).await?;
        self.gate.wrote(name, &written);
        Ok(Next::Wait)
    }
}

fn networks(node: &Node) -> Vec<IpNet> {
    let spec = node.spec.as_ref();
    let all = spec.and_then(|spec| spec.pod_cidrs.clone()).filter(|all| !all.is_empty());
    let all = all.unwrap_or_else(|| spec.and_then(|spec| spec.pod_cidr.clone()).into_iter().collect());
    all.iter().filter_map(|text| text.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(network: &str) -> Pool {
        Pool::new(network.parse().unwrap())
    }

    fn take(pool: &mut Pool, node: &str) -> String {
        pool.take(node).map_or("none".to_owned(), |network| network.to_string())
    }

    #[test]
    fn the_lowest_free_network_of_its_own() {
        let mut four = pool("10.42.0.0/22");
        four.occupy("10.42.1.0/24".parse().unwrap(), "old");
        four.occupy("192.168.0.0/24".parse().unwrap(), "foreign");
        assert_eq!([take(&mut four, "a"), take(&mut four, "b")], ["10.42.0.0/24", "10.42.2.0/24"]);
        assert_eq!([take(&mut four, "c"), take(&mut four, "d")], ["10.42.3.0/24", "none"]);
        four.release("b");
        assert_eq!([take(&mut four, "e"), take(&mut four, "f")], ["10.42.2.0/24", "none"]);
        let mut small = pool("10.42.0.128/26");
        assert_eq!([take(&mut small, "a"), take(&mut small, "b")], ["10.42.0.128/26", "none"]);
        let mut six = pool("fd00:42::/48");
        assert_eq!([take(&mut six, "a"), take(&mut six, "b")], ["fd00:42::/64", "fd00:42:0:1::/64"]);
        let mut wide = pool("fd00::/8");
        assert_eq!([take(&mut wide, "a"), take(&mut wide, "b")], ["fd00::/64", "fd00:0:0:1::/64"]);
    }
}
