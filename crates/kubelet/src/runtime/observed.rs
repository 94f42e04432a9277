//! One pod's sandboxes and containers at one moment, rebuilt from the runtime alone.

use std::collections::HashMap;
use std::net::IpAddr;
use std::path::PathBuf;

use cri::messages::container::{ContainerState, ContainerStatus};
use cri::messages::sandbox::{NamespaceMode, PodSandboxState, PodSandboxStatus};
use jiff::Timestamp;

use super::labels;
use crate::pods::RunState;

#[derive(Clone, Debug, PartialEq)]
pub struct SandboxView {
    pub id: String,
    pub attempt: u32,
    pub ready: bool,
    pub host_network: bool,
    /// Empty for pods of the host's network.
    pub ips: Vec<IpAddr>,
    pub created_at: Timestamp,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ContainerView {
    pub name: String,
    pub id: String,
    pub sandbox_id: String,
    pub restart_count: u32,
    pub state: RunState,
    /// See [`labels::container_hash`]; none if the container was not made by a kubelet.
    pub hash: Option<u64>,
    pub created_at: Timestamp,
    pub started_at: Option<Timestamp>,
    pub finished_at: Option<Timestamp>,
    pub exit_code: i32,
    pub reason: String,
    pub message: String,
    pub image: String,
    pub image_ref: String,
    pub log_path: PathBuf,
    pub grace_seconds: Option<i64>,
    /// The host's file under the container's termination message path.
    pub message_file: Option<PathBuf>,
    pub message_from_logs: bool,
}

/// Sandboxes and containers, each newest first.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Observed {
    pub sandboxes: Vec<SandboxView>,
    pub containers: Vec<ContainerView>,
}

impl Observed {
    /// The newest sandbox, if it is ready.
    pub fn ready_sandbox(&self) -> Option<&SandboxView> {
        self.sandboxes.first().filter(|sandbox| sandbox.ready)
    }

    /// The newest container of that name.
    pub fn latest(&self, name: &str) -> Option<&ContainerView> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The newest container of that name in the newest sandbox.
    pub fn active(&self, name: &str) -> Option<&ContainerView> {
        let sandbox = self.sandboxes.first()?;
        self.containers.iter().find(|container| container.name == name && container.sandbox_id == sandbox.id)
    }

    pub fn running(&self) -> impl Iterator<Item = &ContainerView> {
        self.containers.iter().filter(|container| container.state == RunState::Running)
    }

    /// Nothing of the pod runs or could run.
    pub fn is_stopped(&self) -> bool {
        self.sandboxes.iter().all(|sandbox| !sandbox.ready)
            && self.containers.iter().all(|c| !matches!(c.state, RunState::Running | RunState::Unknown))
    }

    pub fn runtime_ids(&self) -> impl Iterator<Item = String> {
        let sandboxes = self.sandboxes.iter().map(|sandbox| sandbox.id.clone());
        sandboxes.chain(self.containers.iter().map(|container| container.id.clone()))
    }
}

/// Remembers what cannot change any more, so that a look at the runtime asks only for what may have changed.
#[derive(Debug, Default)]
pub struct Observer {
    exited: HashMap<String, ContainerView>,
    /// Addresses of a ready sandbox do not change.
    ready: HashMap<String, SandboxView>,
}

impl Observer {
    /// The next look asks for that container, though it has ended.
    pub fn forget(&mut self, container_id: &str) {
        self.exited.remove(container_id);
    }

    /// Looks at one pod. Containers that vanish between the calls are left out.
    pub async fn observe(&mut self, runtime: &cri::Client, uid: &str) -> cri::Result<Observed> {
        let filter = [(labels::POD_UID, uid)];
        let (sandboxes, containers) =
            tokio::try_join!(runtime.list_pod_sandboxes(&filter), runtime.list_containers(&filter))?;
        let mut observed = Observed::default();
        let mut ready = HashMap::new();
        for item in sandboxes {
            let listed_ready = item.state() == PodSandboxState::Ready;
            let view = match self.ready.remove(&item.id) {
                Some(known) if listed_ready => known,
                _ => match runtime.pod_sandbox_status(&item.id).await {
                    Ok(status) => sandbox_view(&status),
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => return Err(error),
                },
            };
            if view.ready && (view.host_network || !view.ips.is_empty()) {
                ready.insert(view.id.clone(), view.clone());
            }
            observed.sandboxes.push(view);
        }
        let mut exited = HashMap::new();
        for item in containers {
            let listed_exited = item.state() == ContainerState::Exited;
            let view = match self.exited.remove(&item.id) {
                Some(known) if listed_exited => known,
                _ => match runtime.container_status(&item.id).await {
                    Ok(status) => container_view(&status, &item.pod_sandbox_id),
                    Err(error) if error.is_not_found() => continue,
                    Err(error) => return Err(error),
                },
            };
            if view.state == RunState::Exited {
                exited.insert(view.id.clone(), view.clone());
            }
            observed.containers.push(view);
        }
        (self.ready, self.exited) = (ready, exited);
        observed.sandboxes.sort_by_key(|sandbox| std::cmp::Reverse(sandbox.created_at));
        observed.containers.sort_by_key(|container| std::cmp::Reverse(container.created_at));
        Ok(observed)
    }
}

fn sandbox_view(status: &PodSandboxStatus) -> SandboxView {
    let namespaces = status.linux.as_ref().and_then(|linux| linux.namespaces.as_ref());
    let options = namespaces.and_then(|namespaces| namespaces.options.as_ref());
    let host_network = options.is_some_and(|options| options.network() == NamespaceMode::Node);
    let mut ips = Vec::new();
    if let Some(network) = status.network.as_ref().filter(|_| !host_network) {
        let more = network.additional_ips.iter().map(|ip| ip.ip.as_str());
        ips = std::iter::once(network.ip.as_str()).chain(more).filter_map(|ip| ip.parse().ok()).collect();
    }
    SandboxView {
        id: status.id.clone(),
        attempt: status.metadata.as_ref().map_or(0, |metadata| metadata.attempt),
        ready: status.state() == PodSandboxState::Ready,
        host_network,
        ips,
        created_at: time(status.created_at).unwrap_or_default(),
    }
}

fn container_view(status: &ContainerStatus, sandbox_id: &str) -> ContainerView {
    let annotated = labels::read_annotations(&status.annotations);
    let name = status.labels.get(labels::CONTAINER_NAME).cloned();
    let metadata_name = || status.metadata.as_ref().map(|metadata| metadata.name.clone()).unwrap_or_default();
    let state = match status.state() {
        ContainerState::Created => RunState::Created,
        ContainerState::Running => RunState::Running,
        ContainerState::Exited => RunState::Exited,
        ContainerState::Unknown => RunState::Unknown,
    };
    let message_mount = status.mounts.iter().find(|mount| mount.container_path == annotated.message_path);
    ContainerView {
        name: name.unwrap_or_else(metadata_name),
        id: status.id.clone(),
        sandbox_id: sandbox_id.to_owned(),
        restart_count: annotated.restart_count,
        state,
        hash: annotated.hash,
        created_at: time(status.created_at).unwrap_or_default(),
        started_at: time(status.started_at),
        finished_at: time(status.finished_at),
        exit_code: status.exit_code,
        reason: status.reason.clone(),
        message: status.message.clone(),
        image: status.image.as_ref().map(|image| image.image.clone()).unwrap_or_default(),
        image_ref: status.image_ref.clone(),
        log_path: PathBuf::from(&status.log_path),
        grace_seconds: annotated.grace_seconds,
        message_file: message_mount.map(|mount| PathBuf::from(&mount.host_path)),
        message_from_logs: annotated.message_from_logs,
    }
}

/// Nanoseconds since the epoch; zero means never.
fn time(nanoseconds: i64) -> Option<Timestamp> {
    (nanoseconds != 0).then(|| Timestamp::from_nanosecond(i128::from(nanoseconds)).ok()).flatten()
}
