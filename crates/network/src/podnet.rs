//! The node's side of the pod network: prepares the host, writes the container runtime's network configuration once the
//! node knows its pod networks, and keeps routes to the other nodes' pods.
//!
//! Other nodes are reached directly ("host-gw"): no overlay, so all nodes must share a link.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::sync::Arc;

use client::{Context, Queue};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::Node;

use crate::cni::config::{PLUGIN_NAMES, PodNetwork};
use crate::netlink::route::{Handle, Route, Via};
use crate::nft::{Family, Monitor, Seen};
use crate::sysctl::write_sysctl;
use crate::{Error, Result, cni, nft};

/// Behind every other route, so that it only serves where the host has no default route.
const LAST_RESORT_METRIC: u32 = 0x7fff_ffff;
const DEFAULT_MTU: u32 = 1500;

#[derive(Debug, Clone)]
pub struct PodNetConfig {
    pub node_name: String,
    /// The addresses under which the other nodes reach this one.
    pub node_ips: Vec<IpAddr>,
    pub cluster_cidrs: Vec<IpNet>,
    pub service_cidrs: Vec<IpNet>,
    /// `<data-dir>/cni`: gets `bin`, `net.d` and `allocations`.
    pub cni_dir: PathBuf,
    /// Our own program, which the runtime calls under the names in `bin`.
    pub executable: PathBuf,
}

impl PodNetConfig {
    /// Where the container runtime must look for plugins.
    pub fn bin_dir(&self) -> PathBuf {
        self.cni_dir.join("bin")
    }

    /// Where the container runtime must look for the network configuration.
    pub fn conf_dir(&self) -> PathBuf {
        self.cni_dir.join("net.d")
    }

    fn allocations_dir(&self) -> PathBuf {
        self.cni_dir.join("allocations")
    }
}

/// Runs until the context shuts down. Pods keep their network then.
///
/// Errors: a data directory that cannot be written. Whatever else fails is retried.
pub async fn run_podnet(context: Context, config: PodNetConfig) -> Result<()> {
    install_plugins(&config)?;
    let nodes = context.informers.of::<Node>();
    // The key carries nothing: whatever node changes, the routes as a whole are compared.
    let queue: Queue<()> = Queue::default();
    let changed = queue.clone();
    nodes.on_change(move |change| {
        let relevant = |node: &Node| (node_networks(node), internal_addresses(node));
        if change.old().is_none_or(|old| relevant(old) != relevant(change.object())) || is_deletion(&change) {
            changed.add(());
        }
    });
    nodes.synced().await;
    let monitor = Monitor::open()?;
    let mut prepared: Vec<IpNet> = Vec::new();
    loop {
        tokio::select! {
            () = context.shutdown.cancelled() => return Ok(()),
            seen = monitor.next() => {
                if !prepared.is_empty() && is_our_loss(&seen, &prepared) {
                    tracing::warn!("the rules of the pod network were deleted by another program; writing them again");
                    prepared.clear();
                    queue.add(());
                }
                continue;
            }
            () = queue.next() => {}
        }
        let synced = sync(&config, &nodes.list(), &mut prepared);
        if let Err(error) = &synced {
            tracing::warn!(%error, "cannot bring the pod network up to date, will retry");
        }
        queue.done(&(), synced.is_err());
    }
}

/// Whether somebody else deleted our table, and it is still gone.
fn is_our_loss(seen: &Seen, networks: &[IpNet]) -> bool {
    let concerns_us = match seen {
        Seen::TableDeleted(table) => table == cni::rules::TABLE,
        Seen::Lost => true,
    };
    let gone = |network: &IpNet| !nft::exists(Family::of(network.addr()), cni::rules::TABLE).unwrap_or(false);
    concerns_us && networks.iter().any(gone)
}

/// Brings host and routes to what the nodes say. `prepared` are the networks that the host is ready for.
fn sync(config: &PodNetConfig, nodes: &[Arc<Node>], prepared: &mut Vec<IpNet>) -> Result<()> {
    let is_own = |node: &&Arc<Node>| node.metadata.name.as_deref() == Some(config.node_name.as_str());
    let (own, others): (Vec<_>, Vec<_>) = nodes.iter().partition(is_own);
    let networks = own.first().map(|node| node_networks(node)).unwrap_or_default();
    if !networks.is_empty() && networks != *prepared {
        prepare(config, &networks)?;
        tracing::info!(?networks, "pod network ready");
        *prepared = networks;
    }
    set_routes(&plan_routes(&others, config, prepared))
}

fn is_deletion(change: &client::Change<'_, Node>) -> bool {
    matches!(change, client::Change::Deleted { .. })
}

/// Makes the host ready for pods of these networks, and then tells the container runtime. Idempotent.
pub fn prepare(config: &PodNetConfig, pod_cidrs: &[IpNet]) -> Result<()> {
    write_sysctl("net/ipv4/ip_forward", "1")?;
    if pod_cidrs.iter().any(|network| network.addr().is_ipv6()) {
        write_sysctl("net/ipv6/conf/all/forwarding", "1")?;
    }
    let network = PodNetwork {
        data_dir: config.allocations_dir(),
        pod_cidrs: pod_cidrs.to_vec(),
        cluster_cidrs: config.cluster_cidrs.clone(),
        mtu: link_mtu(&config.node_ips)?,
    };
    cni::restore(&network)?;
    network.write_config_list(&config.conf_dir())
}

/// Puts our program under the names that the container runtime calls.
pub fn install_plugins(config: &PodNetConfig) -> Result<()> {
    let bin = config.bin_dir();
    std::fs::create_dir_all(&bin).map_err(Error::file("creating", &bin))?;
    for name in PLUGIN_NAMES {
        let link = bin.join(name);
        if std::fs::read_link(&link).is_ok_and(|target| target == config.executable) {
            continue;
        }
        let unfinished = bin.join(format!(".{name}.new"));
        let _ = std::fs::remove_file(&unfinished);
        std::os::unix::fs::symlink(&config.executable, &unfinished).map_err(Error::file("linking", &unfinished))?;
        std::fs::rename(&unfinished, &link).map_err(Error::file("linking", &link))?;
    }
    Ok(())
}

/// The routes that this node should have:
/// - to the other nodes' pods, through their addresses;
/// - its own pod networks refuse what no pod has: such packets must not leave by the default route and come back;
/// - service networks lead to `lo`: a host without default route could not even begin to send to a service.
fn plan_routes(others: &[&Arc<Node>], config: &PodNetConfig, own_networks: &[IpNet]) -> BTreeMap<(IpNet, u32), Route> {
    let mut routes = BTreeMap::new();
    let mut add = |route: Route| routes.insert((route.destination, route.metric), route);
    for node in others {
        let addresses = internal_addresses(node);
        for network in node_networks(node) {
            let gateway = addresses.iter().find(|a| a.is_ipv4() == network.addr().is_ipv4());
            if let Some(address) = gateway {
                add(Route {
                    destination: network,
                    via: Via::Gateway { address: *address },
                    metric: usual_metric(&network),
                });
            }
        }
    }
    for network in own_networks {
        add(Route { destination: network.trunc(), via: Via::Unreachable, metric: usual_metric(network) });
    }
    for network in &config.service_cidrs {
        let source = config.node_ips.iter().copied().find(|ip| ip.is_ipv4() == network.addr().is_ipv4());
        // Index 1 is `lo` in every network namespace.
        let via = Via::Link { index: 1, source };
        add(Route { destination: network.trunc(), via, metric: LAST_RESORT_METRIC });
    }
    routes
}

/// What the kernel makes of a route without a metric; said openly, so that routes read back compare equal.
fn usual_metric(network: &IpNet) -> u32 {
    if network.addr().is_ipv6() { 1024 } else { 0 }
}

/// Adds what is missing and deletes what is ours and not wanted. Routes to single pods are the plugin's.
fn set_routes(wanted: &BTreeMap<(IpNet, u32), Route>) -> Result<()> {
    let mut handle = Handle::open()?;
    let is_pod = |route: &Route| route.destination.prefix_len() == route.destination.max_prefix_len();
    let present: Vec<Route> = handle.own_routes()?.into_iter().filter(|route| !is_pod(route)).collect();
    for route in present.iter().filter(|r| !wanted.contains_key(&(r.destination, r.metric))) {
        handle.delete_route(route)?;
    }
    for route in wanted.values().filter(|route| !present.contains(route)) {
        match handle.set_route(route) {
            // Not on our link, or not yet: the other nodes' pods are then out of reach, but ours are not.
            Err(error) if matches!(route.via, Via::Gateway { .. }) => {
                tracing::warn!(%error, "no direct route to another node's pods");
            }
            other => other?,
        }
    }
    Ok(())
}

fn node_networks(node: &Node) -> Vec<IpNet> {
    let Some(spec) = &node.spec else { return Vec::new() };
    let networks = match &spec.pod_cidrs {
        Some(all) if !all.is_empty() => all.clone(),
        _ => spec.pod_cidr.iter().cloned().collect(),
    };
    networks.iter().filter_map(|network| network.parse().ok()).collect()
}

fn internal_addresses(node: &Node) -> Vec<IpAddr> {
    let addresses = node.status.iter().flat_map(|s| s.addresses.iter().flatten());
    addresses.filter(|a| a.type_ == "InternalIP").filter_map(|a| a.address.parse().ok()).collect()
}

/// The packet size of the link that carries traffic to other nodes.
fn link_mtu(node_ips: &[IpAddr]) -> Result<u32> {
    let mut handle = Handle::open()?;
    let addresses = handle.all_addresses()?;
    let index = addresses.iter().find(|(_, net)| node_ips.contains(&net.addr())).map(|(index, _)| *index);
    let link = handle.links()?.into_iter().find(|link| Some(link.index) == index && link.name != "lo");
    Ok(link.map_or(DEFAULT_MTU, |link| link.mtu))
}

/// Whether the kernel has what the pod network needs; for `coxswain check`.
pub fn probe() -> Result<()> {
    nft::exists(nft::Family::V4, cni::rules::TABLE).map(drop)
}
