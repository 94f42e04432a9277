//! The cluster that is tested, ours or upstream's, with the images of the tests on every node. The one place that knows how they come to be.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::cache::Cache;
use super::{images, upstream};
use crate::compare::upstream_node::Tools;
use crate::e2e::cluster::Cluster;

/// What to start.
pub enum Program {
    /// Our binary.
    Ours(PathBuf),
    /// Upstream's programs lie in the cache; these are what its nodes need beside them.
    Upstream(Tools),
}

impl Program {
    /// As the record of phases calls it.
    pub fn word(&self) -> &'static str {
        match self {
            Program::Ours(_) => "ours",
            Program::Upstream(_) => "upstream",
        }
    }
}

/// A running cluster.
pub enum Tested {
    Ours(Cluster),
    Upstream(upstream::Cluster),
}

impl Tested {
    /// `own` is the program of our own tests, whose image is made here.
    pub fn start(cache: &Cache, program: &Program, own: Option<&Path>, work: &Path, nodes: u32) -> Result<Self> {
        match program {
            Program::Ours(binary) => Ok(Tested::Ours(ours(cache, binary, own, work, nodes)?)),
            Program::Upstream(tools) => Ok(Tested::Upstream(upstream::Cluster::start(cache, tools, work, nodes)?)),
        }
    }

    /// An administrator's.
    pub fn kubeconfig(&self) -> PathBuf {
        match self {
            Tested::Ours(cluster) => cluster.admin(),
            Tested::Upstream(cluster) => cluster.kubeconfig(),
        }
    }

    /// Leaves it running for a look.
    pub fn keep(self) {
        let how = match &self {
            Tested::Ours(cluster) => cluster.describe(),
            Tested::Upstream(cluster) => cluster.describe(),
        };
        println!("cluster kept: {how}");
        std::mem::forget(self);
    }

    pub fn stop(self) {
        // Upstream's stops when it goes.
        if let Tested::Ours(cluster) = self {
            cluster.stop();
        }
    }
}

fn ours(cache: &Cache, binary: &Path, own: Option<&Path>, work: &Path, nodes: u32) -> Result<Cluster> {
    let cluster = Cluster::start(binary, work, &cache.program("kubectl"))?;
    // Every image that lies here is given to a node that joins.
    let folder = work.join("images");
    std::os::unix::fs::symlink(cache.at("images.tar"), folder.join("conformance.tar"))?;
    let mut archives = vec![folder.join("conformance.tar")];
    if let Some(program) = own {
        images::ours(program, &folder.join("ours.tar"))?;
        archives.push(folder.join("ours.tar"));
    }
    let socket = cluster.environment().into_iter().find(|(name, _)| *name == "CONTAINERD");
    let (_, socket) = socket.context("the cluster does not tell its containerd")?;
    for archive in archives {
        let mut ctr = Command::new("ctr");
        ctr.args(["--address", &socket, "--namespace", "k8s.io", "images", "import"]).arg(archive);
        let output = ctr.output().context("cannot run ctr")?;
        if !output.status.success() {
            bail!("image import: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    (2..=nodes).try_for_each(|number| cluster.join(number))?;
    Ok(cluster)
}
