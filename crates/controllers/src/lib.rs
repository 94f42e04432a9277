//! The controller manager: one file or folder per controller, each with pure planning and a small executor.
//!
//! Every controller acts as its own service account, wakes on changes and timers only, and costs no more for a change
//! than the objects it touches. Must not know: the API server, the store, nodes' insides.

mod cronjob;
pub mod csr;
mod daemonset;
mod deployment;
mod discovery;
mod disruption;
mod endpointslice;
mod error;
#[cfg(test)]
mod fixture;
mod garbage;
mod history;
mod job;
mod namespace;
mod node;
mod owner;
mod pod_control;
mod pod_gc;
mod pods;
mod quota;
mod replicaset;
mod serviceaccount;
mod servicecidr;
mod statefulset;
mod template;
mod write;

use std::future::Future;
use std::pin::Pin;
use std::sync::Arc;

use client::Context;
use k8s_openapi::api::apps::v1::ReplicaSet;
use k8s_openapi::api::core::v1::ReplicationController;
use tokio::task::JoinSet;

pub use error::Error;
pub use node::Grace;

/// What the controllers need to be told.
#[derive(Clone, Debug)]
pub struct Config {
    /// Which controllers run, as upstream's `--controllers`: `*` is all, `name` one, `-name` all but one. The first entry
    /// that names a controller decides.
    pub controllers: Vec<String>,
    /// The cluster's certificate authority (PEM), published in each namespace; empty if there is none.
    pub root_ca: String,
    /// The networks that nodes' pod networks are cut from, one of each address family; empty if somebody else does so.
    pub cluster_cidrs: Vec<String>,
    /// Finished pods that are kept (upstream's `--terminated-pod-gc-threshold`); zero keeps all.
    pub terminated_pods_max: usize,
    /// How long a kubelet may be silent.
    pub node_grace: Grace,
    /// Holds the authorities that sign certificates; without one nothing is signed.
    pub signer: Option<Arc<dyn csr::CertificateSigner>>,
}

impl Default for Config {
    /// Upstream's defaults, and no certificate authority to publish.
    fn default() -> Self {
        Config {
            controllers: vec!["*".to_owned()],
            root_ca: String::new(),
            cluster_cidrs: Vec::new(),
            terminated_pods_max: 12_500,
            node_grace: Grace::default(),
            signer: None,
        }
    }
}

impl Config {
    fn is_enabled(&self, name: &str) -> bool {
        for entry in &self.controllers {
            if entry == name {
                return true;
            }
            if entry.strip_prefix('-') == Some(name) {
                return false;
            }
        }
        self.controllers.iter().any(|entry| entry == "*")
    }
}

type Controller = fn(Context, Config) -> Pin<Box<dyn Future<Output = ()> + Send>>;

/// By upstream's names.
const CONTROLLERS: &[(&str, Controller)] = &[
    ("serviceaccount-controller", |context, _| Box::pin(serviceaccount::run(context))),
    ("root-ca-certificate-publisher-controller", |context, config| {
        Box::pin(serviceaccount::publish_root_ca(context, config.root_ca))
    }),
    ("namespace-controller", |context, _| Box::pin(namespace::run(context))),
    ("deployment-controller", |context, _| Box::pin(deployment::run(context))),
    ("replicaset-controller", |context, _| Box::pin(replicaset::run::<ReplicaSet>(context))),
    ("replicationcontroller-controller", |context, _| Box::pin(replicaset::run::<ReplicationController>(context))),
    ("daemonset-controller", |context, _| Box::pin(daemonset::run(context))),
    ("statefulset-controller", |context, _| Box::pin(statefulset::run(context))),
    ("job-controller", |context, _| Box::pin(job::run(context))),
    ("cronjob-controller", |context, _| Box::pin(cronjob::run(context))),
    ("ttl-after-finished-controller", |context, _| Box::pin(job::ttl::run(context))),
    ("endpointslice-controller", |context, _| Box::pin(endpointslice::run(context))),
    ("endpoints-controller", |context, _| Box::pin(endpointslice::endpoints::run(context))),
    ("endpointslice-mirroring-controller", |context, _| Box::pin(endpointslice::mirror::run(context))),
    ("garbage-collector-controller", |context, _| Box::pin(garbage::run(context))),
    ("node-lifecycle-controller", |context, config| Box::pin(node::lifecycle::run(context, config.node_grace))),
    ("node-ipam-controller", |context, config| Box::pin(node::ipam::run(context, config.cluster_cidrs))),
    ("taint-eviction-controller", |context, _| Box::pin(node::eviction::run(context))),
    ("pod-garbage-collector-controller", |context, config| Box::pin(pod_gc::run(context, config.terminated_pods_max))),
    ("certificatesigningrequest-approving-controller", |context, config| {
        Box::pin(csr::run_approving(context, config.signer))
    }),
    ("certificatesigningrequest-signing-controller", |context, config| {
        Box::pin(csr::run_signing(context, config.signer))
    }),
    ("certificatesigningrequest-cleaner-controller", |context, _| Box::pin(csr::run_cleaner(context))),
    ("resourcequota-controller", |context, _| Box::pin(quota::run(context))),
    ("disruption-controller", |context, _| Box::pin(disruption::run(context))),
    ("service-cidr-controller", |context, _| Box::pin(servicecidr::run(context))),
];

/// The names that [`Config::controllers`] may hold.
pub fn names() -> impl Iterator<Item = &'static str> {
    CONTROLLERS.iter().map(|(name, _)| *name)
}

/// Runs the enabled controllers until `context.shutdown`; returns when all have finished the work in hand.
pub async fn run(context: Context, config: Config) {
    let mut tasks = JoinSet::new();
    let enabled = CONTROLLERS.iter().filter(|(name, _)| config.is_enabled(name));
    for (name, controller) in enabled {
        let (shutdown, work) = (context.shutdown.clone(), controller(context.clone(), config.clone()));
        tasks.spawn(async move {
            let mut work = std::pin::pin!(work);
            tokio::select! {
                () = &mut work => {}
                () = async { shutdown.cancelled().await; tokio::time::sleep(DRAIN).await } => {
                    tracing::debug!(controller = name, "stopped before its work in hand was done");
                }
            }
        });
    }
    while let Some(ended) = tasks.join_next().await {
        if let Err(error) = ended {
            tracing::error!(%error, "a controller ended unexpectedly");
        }
    }
}

/// How long work in hand may take after shutdown was asked for.
const DRAIN: std::time::Duration = std::time::Duration::from_secs(5);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_entry_that_names_a_controller_decides() {
        let enabled = |entries: &[&str], name| {
            let controllers = entries.iter().map(|entry| entry.to_string()).collect();
            Config { controllers, ..Config::default() }.is_enabled(name)
        };
        assert!(enabled(&["*"], "namespace-controller"));
        assert!(!enabled(&["*", "-namespace-controller"], "namespace-controller"));
        assert!(!enabled(&["deployment-controller"], "namespace-controller"));
        assert!(enabled(&["deployment-controller"], "deployment-controller"));
    }

    #[test]
    fn names_are_unique() {
        let all: std::collections::BTreeSet<_> = names().collect();
        assert_eq!(all.len(), CONTROLLERS.len());
    }
}
