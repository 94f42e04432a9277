//! Puts one kubelet together and runs it.

use std::path::Path;
use std::sync::Arc;

use client::informer::Selection;
use client::{Context, Informer, Recorder};
use k8s_openapi::api::core::v1::{Node, Pod, Service};
use tokio_util::sync::CancellationToken;

use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::error::{Error, Result};
use crate::node::{lease, machine, register};
use crate::objects::Objects;
use crate::pod::manager::Manager;
use crate::pods::PodStore;
use crate::shared::{Handle, Shared};
use crate::status::writer::StatusWriter;
use crate::{gc, logs, runtime};

/// A kubelet that is ready to run. In two steps, so that the HTTP server can read the same store.
pub struct Kubelet {
    context: Context,
    shared: Handle,
    pods: Informer<Pod>,
}

/// Runs a kubelet until the context's shutdown. Containers go on running.
pub async fn run(context: Context, config: Config) -> Result<()> {
    Box::pin(Kubelet::new(context, config)?.run()).await;
    Ok(())
}

impl Kubelet {
    /// `context.client` must be `system:node:<name>` in group `system:nodes`. Must be called within a tokio runtime.
    ///
    /// # Errors
    /// If the runtime endpoint is no address or the directories cannot be made.
    pub fn new(context: Context, config: Config) -> Result<Self> {
        for dir in [config.root_dir.join("pods"), config.log_dir.join("pods")] {
            std::fs::create_dir_all(&dir).map_err(Error::file("create directory", &dir))?;
        }
        let machine = machine::read(&config.root_dir);
        let by_node = |field: &str| Selection { labels: None, fields: Some(format!("{field}={}", config.node_name)) };
        let pods = context.informers.select::<Pod>(by_node("spec.nodeName"));
        let shared = Shared {
            runtime: cri::Client::new(&config.runtime_endpoint)?,
            runtime_name: std::sync::OnceLock::new(),
            store: PodStore::default(),
            recorder: Recorder::new(context.client.clone(), "kubelet", &config.node_name),
            objects: Objects::new(context.client.clone()),
            services: context.informers.of::<Service>(),
            nodes: context.informers.of::<Node>(),
            cgroups: Cgroups::detect(Path::new(crate::cgroup::MOUNT)),
            statuses: StatusWriter::new(context.client.clone()),
            api: context.client.clone(),
            machine,
            turns: crate::pod::Turns::default(),
            allocating: parking_lot::Mutex::default(),
            room: tokio::sync::watch::Sender::default(),
            config,
        };
        Ok(Kubelet { context, shared: Arc::new(shared), pods })
    }

    /// What the node knows of its pods, for the HTTP server.
    pub fn store(&self) -> PodStore {
        self.shared.store.clone()
    }

    pub fn runtime(&self) -> cri::Client {
        self.shared.runtime.clone()
    }

    /// Runs until the context's shutdown.
    pub async fn run(self) {
        let shutdown = self.context.shutdown.clone();
        let shared = self.shared.clone();
        shared.cgroups.ensure_base();
        let manager = Manager::new(shared.clone(), shutdown.clone());
        let work = futures::future::join(
            futures::future::join3(
                register::run(shared.clone(), shutdown.clone()),
                lease::run(shared.clone(), shutdown.clone()),
                shared.statuses.clone().run(shutdown.clone()),
            ),
            futures::future::join4(
                runtime::events::pump(
                    shared.runtime.clone(),
                    shared.store.clone(),
                    Arc::new(manager.clone()),
                    shutdown.clone(),
                ),
                logs::run(shared.clone(), shutdown.clone()),
                gc::run_images(shared.clone(), shutdown.clone()),
                shutdown.run_until_cancelled(follow_pods(self.pods, shared, manager, shutdown.clone())),
            ),
        );
        Box::pin(work).await;
    }
}

async fn follow_pods(pods: Informer<Pod>, shared: Handle, manager: Manager, shutdown: CancellationToken) {
    // Service variables are part of a container's environment; without the list they would be missing for good.
    shared.services.synced().await;
    manager.follow(&pods);
    pods.synced().await;
    gc::remove_orphaned_dirs(&shared, &manager.uids()).await;
    let mut delay = std::time::Duration::from_millis(100);
    while let Err(error) = manager.end_orphans().await {
        tracing::debug!(%error, "the runtime cannot be asked for orphans yet");
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(std::time::Duration::from_secs(5));
    }
    shutdown.cancelled().await;
}
