//! kube-proxy: makes the node's nf_tables follow Services and EndpointSlices.
//!
//! `plan` decides (pure), `table` turns plans into transactions (pure), this file carries them out. Only our own tables
//! `ip coxswain` and `ip6 coxswain` are ever touched.

pub mod base;
pub mod flows;
pub mod health;
pub mod plan;
pub mod selection;
pub mod table;

#[cfg(test)]
mod laws;
#[cfg(test)]
mod packet_tests;
#[cfg(test)]
mod tests;

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use client::{Context, Index, Informer, Queue, key_of};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use parking_lot::RwLock;

use crate::endpoints;
use crate::nft::{self, Family, Monitor, Seen, Transaction};
use crate::sysctl::{read_sysctl, write_sysctl};
use crate::{Error, Result};
use base::plan_base;
use flows::StaleFlows;
use health::{AbortOnDrop, HealthChecks};
use plan::{PlanConfig, plan_service};
use selection::Place;
use table::{ServiceName, Table};

/// How long changes are gathered: a rollout's burst becomes few transactions, and nobody notices the wait.
const GATHERING: Duration = Duration::from_millis(2);

#[derive(Debug, Clone)]
pub struct ProxyConfig {
    pub node_name: String,
    /// Pod networks of the cluster, one or two (dual-stack).
    pub cluster_cidrs: Vec<IpNet>,
    /// Service networks of the cluster, one or two (dual-stack).
    pub service_cidrs: Vec<IpNet>,
    /// Where `/healthz` and `/livez` are served; upstream's is port 10256 on all addresses.
    pub healthz: Option<SocketAddr>,
}

impl ProxyConfig {
    fn families(&self) -> Vec<Family> {
        let dual = self.service_cidrs.iter().any(|c| c.addr().is_ipv6());
        let v4 = self.service_cidrs.is_empty() || self.service_cidrs.iter().any(|c| c.addr().is_ipv4());
        let wanted = [(Family::V4, v4), (Family::V6, dual)];
        wanted.into_iter().filter(|(_, wanted)| *wanted).map(|(family, _)| family).collect()
    }

    fn plan_config(&self, family: Family, zone: Option<String>) -> PlanConfig {
        let of_family = |cidrs: &[IpNet]| cidrs.iter().copied().filter(|c| Family::of(c.addr()) == family).collect();
        PlanConfig {
            family,
            place: Place { node: self.node_name.clone(), zone },
            cluster_cidrs: of_family(&self.cluster_cidrs),
            service_cidrs: of_family(&self.service_cidrs),
        }
    }
}

/// Runs kube-proxy until the context shuts down. The rules stay behind: connections outlive the daemon.
///
/// Errors: only what makes it impossible to run at all. A refused transaction is retried.
pub async fn run_proxy(context: Context, config: ProxyConfig) -> Result<()> {
    let queue: Queue<ServiceName> = Queue::default();
    let services = context.informers.of::<Service>();
    let changed = queue.clone();
    services.on_change(move |change| changed.add(key_of(&**change.object())));
    let changed = queue.clone();
    let slices = context.informers.of::<EndpointSlice>();
    let slice_index = endpoints::by_service(&slices);
    slices.on_change(move |change| endpoints::services_of_change(&change).for_each(|service| changed.add(service)));
    let zone = follow_zone(&context, &config.node_name, &services, &queue);
    services.synced().await;
    slices.synced().await;

    let tables = config.families().into_iter().map(|f| Table::new(plan_base(&config.plan_config(f, None)))).collect();
    let monitor = Monitor::open()?;
    let health = HealthChecks::default();
    let healthz = config.healthz.map(|address| tokio::spawn(health.clone().serve_healthz(address)));
    // Ended with us, however we end.
    let _healthz = healthz.map(AbortOnDrop);
    let stale = StaleFlows::default();
    let mut proxy = Proxy { config, services, slices: slice_index, zone, tables, health, stale, in_kernel: false };
    tune_connection_tracking();
    // The queue holds every service there is; taking all at once makes the first transaction the whole table.
    let mut batch = take_all(Vec::new(), &queue).await;
    loop {
        let failed = match proxy.sync(&batch).await {
            Ok(()) => false,
            Err(error) => {
                tracing::warn!(%error, "cannot bring the service rules up to date, will retry");
                true
            }
        };
        batch.iter().for_each(|name| queue.done(name, failed));
        let wait_again = if failed { Duration::from_secs(1) } else { Duration::MAX };
        batch = tokio::select! {
            () = context.shutdown.cancelled() => return Ok(()),
            first = queue.next() => gather(first, &queue).await,
            seen = monitor.next() => {
                proxy.notice(seen);
                Vec::new()
            }
            () = tokio::time::sleep(wait_again) => Vec::new(),
        };
    }
}

/// Waits a little for more changes than the first.
async fn gather(first: ServiceName, queue: &Queue<ServiceName>) -> Vec<ServiceName> {
    tokio::time::sleep(GATHERING).await;
    take_all(vec![first], queue).await
}

async fn take_all(mut batch: Vec<ServiceName>, queue: &Queue<ServiceName>) -> Vec<ServiceName> {
    while !queue.is_empty() {
        batch.push(queue.next().await);
    }
    batch
}

/// Follows this node's zone; a change of it concerns all services.
fn follow_zone(
    context: &Context,
    node_name: &str,
    services: &Informer<Service>,
    queue: &Queue<ServiceName>,
) -> Arc<RwLock<Option<String>>> {
    let zone = Arc::new(RwLock::new(None));
    let (followed, services, queue, node_name) = (zone.clone(), services.clone(), queue.clone(), node_name.to_owned());
    context.informers.of::<Node>().on_change(move |change| {
        let node = change.object();
        if node.metadata.name.as_deref() != Some(node_name.as_str()) {
            return;
        }
        let labels = node.metadata.labels.as_ref();
        let now = labels.and_then(|l| l.get("topology.kubernetes.io/zone")).cloned();
        let before = std::mem::replace(&mut *followed.write(), now.clone());
        if before != now {
            services.list().iter().for_each(|service| queue.add(key_of(&**service)));
        }
    });
    zone
}

struct Proxy {
    config: ProxyConfig,
    services: Informer<Service>,
    slices: Index<EndpointSlice>,
    zone: Arc<RwLock<Option<String>>>,
    tables: Vec<Table>,
    health: HealthChecks,
    /// What is to be looked for once the rules are in the kernel.
    stale: StaleFlows,
    /// Whether the kernel holds what `tables` says. If not, the next sync writes everything.
    in_kernel: bool,
}

impl Proxy {
    /// Plans the named services anew and commits what has changed.
    async fn sync(&mut self, names: &[ServiceName]) -> Result<()> {
        let transactions: Vec<_> = (0..self.tables.len()).map(|family| self.plan(family, names)).collect();
        // Until the kernel has agreed we do not know what it holds.
        let whole = !std::mem::replace(&mut self.in_kernel, false);
        let committed = run_blocking(move || nft::commit(&transactions)).await;
        self.in_kernel = committed.is_ok();
        self.health.set_synced(committed.is_ok());
        committed?;
        let stale = std::mem::take(&mut self.stale);
        run_blocking(move || {
            if whole {
                // Not before the table is there: it guards what this opens. Without it, all but 127.0.0.1 still answers.
                if let Err(error) = write_sysctl("net/ipv4/conf/all/route_localnet", "1") {
                    tracing::warn!(%error, "node ports will not answer on 127.0.0.1");
                }
            }
            stale.delete()
        })
        .await
    }

    /// Plans the named services for one address family; returns what to commit.
    fn plan(&mut self, family: usize, names: &[ServiceName]) -> Transaction {
        let table = &mut self.tables[family];
        let config = self.config.plan_config(table.family(), self.zone.read().clone());
        let mut plans = Vec::with_capacity(names.len());
        for name in names {
            let service = self.services.get(&name.0, &name.1);
            let slices = self.slices.get(&endpoints::index_key(&name.0, &name.1));
            let rules = service.map(|s| plan_service(&config, &s, &slices)).unwrap_or_default();
            self.stale.note(table.rules(name), &rules);
            // The first family speaks for the service.
            if family == 0 {
                self.health.set(name, rules.health_check.as_ref());
            }
            plans.push((name.clone(), rules));
        }
        let changes = table.apply(plans);
        if self.in_kernel { changes } else { table.replace() }
    }

    /// Somebody else may have deleted our table.
    fn notice(&mut self, seen: Seen) {
        let concerns_us = match &seen {
            Seen::TableDeleted(table) => table == plan::TABLE,
            Seen::Lost => true,
        };
        let gone = |table: &Table| !nft::exists(table.family(), plan::TABLE).unwrap_or(false);
        if concerns_us && self.tables.iter().any(gone) {
            tracing::warn!("the service rules were deleted by another program; writing them again");
            self.in_kernel = false;
        }
    }
}

/// Upstream's defaults. Where the kernel does not let us, as in a network namespace of its own, its own values stand.
fn tune_connection_tracking() {
    const PER_CORE: usize = 32 * 1024;
    const AT_LEAST: usize = 128 * 1024;
    const MAX: &str = "net/netfilter/nf_conntrack_max";
    let cores = std::thread::available_parallelism().map_or(1, |n| n.get());
    let wanted = (cores * PER_CORE).max(AT_LEAST);
    let present = read_sysctl(MAX).and_then(|text| text.parse::<usize>().ok());
    let mut settings = vec![
        ("net/netfilter/nf_conntrack_tcp_timeout_established", "86400".to_owned()),
        ("net/netfilter/nf_conntrack_tcp_timeout_close_wait", "3600".to_owned()),
    ];
    if present.is_some_and(|present| present < wanted) {
        settings.push((MAX, wanted.to_string()));
    }
    for (name, value) in settings {
        if let Err(error) = write_sysctl(name, &value) {
            tracing::debug!(%error, "cannot tune connection tracking");
        }
    }
}

async fn run_blocking(work: impl FnOnce() -> Result<()> + Send + 'static) -> Result<()> {
    let joined = tokio::task::spawn_blocking(work).await;
    joined.unwrap_or_else(|error| Err(Error::io("running a kernel transaction")(std::io::Error::other(error))))
}
