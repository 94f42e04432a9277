//! What all parts of one kubelet share.

use std::path::PathBuf;
use std::sync::{Arc, OnceLock};

use client::{Informer, Recorder};
use k8s_openapi::api::core::v1::{Node, Service};

use crate::cgroup::Cgroups;
use crate::config::Config;
use crate::node::machine::Machine;
use crate::objects::Objects;
use crate::pod::Turns;
use crate::pods::PodStore;
use crate::status::writer::StatusWriter;

pub struct Shared {
    pub config: Config,
    pub api: kube::Client,
    pub runtime: cri::Client,
    /// As the runtime calls itself, once it has answered.
    pub runtime_name: OnceLock<String>,
    pub store: PodStore,
    pub recorder: Recorder,
    pub objects: Objects,
    pub services: Informer<Service>,
    pub nodes: Informer<Node>,
    pub cgroups: Cgroups,
    pub statuses: StatusWriter,
    pub machine: Machine,
    /// In which pods are taken on.
    pub turns: Turns,
    /// Held while room of the node is given to a pod that is resized.
    pub allocating: parking_lot::Mutex<()>,
    /// Changes when a pod has given something back.
    pub room: tokio::sync::watch::Sender<u64>,
}

impl Shared {
    /// A directory on the file system of images; none if the runtime does not tell.
    pub async fn image_dir(&self) -> cri::Result<Option<PathBuf>> {
        let usage = self.runtime.image_fs_info().await?;
        Ok(usage.first().and_then(|usage| usage.fs_id.as_ref()).map(|id| PathBuf::from(&id.mountpoint)))
    }
}

pub type Handle = Arc<Shared>;
