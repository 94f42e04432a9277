//! In-place resize of one pod: what its spec wants, what this node has allocated to it, and what its containers have been given.
//! Pure but for the checkpoint, which carries the last two over a restart of the daemon.
//!
//! Everything else works on the pod as it is allocated ([`Resize::allocated`]), never on what is merely wanted.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, ResourceRequirements};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde::{Deserialize, Serialize};

use super::admit::{self, Room};
use crate::error::{Error, Result};
use crate::podutil::{self, Amounts};

/// What can be resized.
const RESOURCES: [&str; 2] = ["cpu", "memory"];
pub const PENDING: &str = "PodResizePending";
pub const IN_PROGRESS: &str = "PodResizeInProgress";

/// CPU and memory of a pod's containers, by name.
type Sizes = BTreeMap<String, ResourceRequirements>;

/// Why a resize is not allocated.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// It fits once others have given something back.
    Deferred(String),
    /// This node can never hold it.
    Infeasible(String),
}

/// How a container gets what is allocated to it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Actuation {
    InPlace,
    Restart,
}

#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
struct Checkpoint {
    allocated: Sizes,
    /// Of running containers.
    actuated: Sizes,
    /// The pod's generation whose resources are allocated, once it was resized.
    generation: Option<i64>,
}

pub struct Resize {
    file: PathBuf,
    state: Checkpoint,
    refusal: Option<(Refusal, Option<i64>)>,
    /// Why the last try to actuate failed, and when to try again.
    failed: Option<(String, Timestamp)>,
}

impl Resize {
    /// What is known of the pod: the checkpoint of an earlier run, else what an earlier run told the API, else the spec.
    pub fn load(file: PathBuf, pod: &Pod) -> Self {
        let saved = std::fs::read(&file).ok().and_then(|bytes| serde_json::from_slice(&bytes).ok());
        let state = saved.unwrap_or_else(|| {
            let sizes: Sizes = containers(pod).map(|c| (c.name.clone(), told(pod, c))).collect();
            Checkpoint { allocated: sizes.clone(), actuated: sizes, generation: None }
        });
        Resize { file, state, refusal: None, failed: None }
    }

    /// The pod with the resources that it has on this node.
    pub fn allocated(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        with(pod, &self.state.allocated)
    }

    /// The pod with the resources that its running containers have.
    pub fn actuated(&self, pod: &Arc<Pod>) -> Arc<Pod> {
        with(pod, &self.state.actuated)
    }

    /// Whether the spec wants something else than what is allocated.
    pub fn is_wanted(&self, pod: &Pod) -> bool {
        containers(pod).any(|c| self.state.allocated.get(&c.name).is_some_and(|known| !equal(known, &size_of(c))))
    }

    /// Decides on what the spec wants. `others` are the node's pods with what is allocated to them.
    pub fn check<'a>(pod: &Pod, others: impl Iterator<Item = &'a Pod> + Clone, room: &Room) -> Option<Refusal> {
        let total = |name: &'static str| podutil::pod_total(pod, |r| podutil::request(r, name), name);
        for (name, wanted, capacity) in [
            ("memory", total("memory").value(), room.memory_bytes),
            ("cpu", total("cpu").milli_value(), room.cpu_milli),
        ] {
            if wanted > capacity {
                return Some(Refusal::Infeasible(format!(
                    "Node didn't have enough capacity: {name}, requested: {wanted}, capacity: {capacity}"
                )));
            }
        }
        admit::resources_fit(pod, others, room).err().map(|rejection| Refusal::Deferred(rejection.message))
    }

    /// The spec's resources are allocated from now on.
    pub fn accept(&mut self, pod: &Pod) -> Result<()> {
        self.state.allocated = containers(pod).map(|c| (c.name.clone(), size_of(c))).collect();
        self.state.generation = pod.metadata.generation;
        (self.refusal, self.failed) = (None, None);
        self.save()
    }

    /// True if that is news.
    pub fn refuse(&mut self, pod: &Pod, refusal: Refusal) -> bool {
        let new = Some((refusal, pod.metadata.generation));
        let news = self.refusal != new;
        self.refusal = new;
        news
    }

    /// The spec wants what is allocated.
    pub fn nothing_wanted(&mut self) {
        self.refusal = None;
    }

    /// The resize waits for others to give something back.
    pub fn is_deferred(&self) -> bool {
        matches!(self.refusal, Some((Refusal::Deferred(_), _)))
    }

    /// Whether and how the running container gets other resources than it has.
    pub fn actuation(&self, container: &Container) -> Option<Actuation> {
        let allocated = self.state.allocated.get(&container.name)?;
        let actuated = self.state.actuated.get(&container.name)?;
        let changed = |name: &&str| {
            let of =
                |size: &ResourceRequirements| (podutil::request(Some(size), name), podutil::limit(Some(size), name));
            of(allocated) != of(actuated)
        };
        let restarts = |name: &str| {
            let policy = container.resize_policy.iter().flatten().find(|policy| policy.resource_name == name);
            policy.is_some_and(|policy| policy.restart_policy == "RestartContainer")
        };
        let mut changed = RESOURCES.into_iter().filter(changed).peekable();
        changed.peek()?;
        Some(if changed.any(restarts) { Actuation::Restart } else { Actuation::InPlace })
    }

    pub fn all_actuated(&self) -> bool {
        let known = |(name, size)| self.state.actuated.get(name).is_none_or(|actuated| equal(actuated, size));
        self.state.allocated.iter().all(known)
    }

    /// The container runs with what is allocated to it. True if that is news.
    pub fn actuate(&mut self, container: &str) -> bool {
        let Some(size) = self.state.allocated.get(container) else { return false };
        if self.state.actuated.get(container) == Some(size) {
            return false;
        }
        self.state.actuated.insert(container.to_owned(), size.clone());
        self.failed = None;
        true
    }

    pub fn fail(&mut self, message: String, retry_at: Timestamp) {
        self.failed = Some((message, retry_at));
    }

    /// When actuation may be tried again, if it failed.
    pub fn retry_at(&self) -> Option<Timestamp> {
        self.failed.as_ref().map(|(_, at)| *at)
    }

    pub fn conditions(&self, now: Timestamp) -> Vec<PodCondition> {
        let condition = |kind: &str, reason: Option<&str>, message: Option<&String>, generation| PodCondition {
            type_: kind.to_owned(),
            status: "True".to_owned(),
            reason: reason.map(str::to_owned),
            message: message.cloned(),
            observed_generation: generation,
            last_transition_time: Some(Time(now)),
            last_probe_time: None,
        };
        let pending = self.refusal.as_ref().map(|(refusal, generation)| {
            let (Refusal::Deferred(message) | Refusal::Infeasible(message)) = refusal;
            condition(PENDING, Some(refusal.reason()), Some(message), *generation)
        });
        let progress = (!self.all_actuated()).then(|| {
            let error = self.failed.as_ref().map(|(message, _)| message);
            condition(IN_PROGRESS, error.map(|_| "Error"), error, self.state.generation)
        });
        pending.into_iter().chain(progress).collect()
    }

    /// # Errors
    /// If the checkpoint cannot be written: what is allocated must not be forgotten.
    pub fn save(&self) -> Result<()> {
        let text = serde_json::to_vec(&self.state).map_err(|error| Error::Invalid(error.to_string()))?;
        if let Some(dir) = self.file.parent() {
            std::fs::create_dir_all(dir).map_err(Error::file("create directory", dir))?;
        }
        let fresh = self.file.with_extension("new");
        let write = |path: &Path| std::fs::write(path, &text).and_then(|()| std::fs::rename(path, &self.file));
        write(&fresh).map_err(Error::file("write", &self.file))
    }
}

impl Refusal {
    pub fn reason(&self) -> &'static str {
        match self {
            Refusal::Deferred(_) => "Deferred",
            Refusal::Infeasible(_) => "Infeasible",
        }
    }

    pub fn message(&self) -> &str {
        let (Refusal::Deferred(message) | Refusal::Infeasible(message)) = self;
        message
    }
}

/// Those that can be resized: main containers and sidecars.
fn containers(pod: &Pod) -> impl Iterator<Item = &Container> {
    let sidecars = podutil::init_containers(pod).iter().filter(|container| podutil::is_sidecar(container));
    podutil::spec(pod).containers.iter().chain(sidecars)
}

fn size_of(container: &Container) -> ResourceRequirements {
    container.resources.as_ref().map(resizable).unwrap_or_default()
}

fn resizable(resources: &ResourceRequirements) -> ResourceRequirements {
    let only = |list: &Option<Amounts>| {
        let mut list = list.clone()?;
        list.retain(|name, _| RESOURCES.contains(&name.as_str()));
        (!list.is_empty()).then_some(list)
    };
    ResourceRequirements { claims: None, limits: only(&resources.limits), requests: only(&resources.requests) }
}

/// What the pod's status says of the running container, else what the spec has.
fn told(pod: &Pod, container: &Container) -> ResourceRequirements {
    let status = pod.status.as_ref();
    let lists = status.map(|status| [&status.container_statuses, &status.init_container_statuses]);
    let mut statuses = lists.into_iter().flatten().flatten().flatten();
    let running = statuses.find(|status| {
        status.name == container.name && status.state.as_ref().is_some_and(|state| state.running.is_some())
    });
    let told = running.and_then(|status| status.resources.as_ref()).map(resizable);
    let spec = size_of(container);
    // A status that is without resources altogether is that of a kubelet that tells none.
    told.filter(|told| *told != ResourceRequirements::default() || spec == ResourceRequirements::default())
        .unwrap_or(spec)
}

fn equal(a: &ResourceRequirements, b: &ResourceRequirements) -> bool {
    RESOURCES.iter().all(|name| {
        podutil::request(Some(a), name) == podutil::request(Some(b), name)
            && podutil::limit(Some(a), name) == podutil::limit(Some(b), name)
    })
}

/// The pod with these sizes; itself if it has them already.
fn with(pod: &Arc<Pod>, sizes: &Sizes) -> Arc<Pod> {
    if containers(pod).all(|c| sizes.get(&c.name).is_none_or(|size| equal(size, &size_of(c)))) {
        return pod.clone();
    }
    let mut changed = Pod::clone(pod);
    if let Some(spec) = &mut changed.spec {
        let sidecars = spec.init_containers.iter_mut().flatten().filter(|container| podutil::is_sidecar(container));
        for container in spec.containers.iter_mut().chain(sidecars) {
            if let Some(size) = sizes.get(&container.name) {
                let resources = container.resources.get_or_insert_default();
                put(&mut resources.requests, size.requests.as_ref());
                put(&mut resources.limits, size.limits.as_ref());
            }
        }
    }
    Arc::new(changed)
}

fn put(list: &mut Option<Amounts>, size: Option<&Amounts>) {
    let mut amounts = list.take().unwrap_or_default();
    amounts.retain(|name, _| !RESOURCES.contains(&name.as_str()));
    amounts.extend(size.into_iter().flatten().map(|(name, amount)| (name.clone(), amount.clone())));
    *list = (!amounts.is_empty()).then_some(amounts);
}

#[cfg(test)]
#[path = "resize_tests.rs"]
mod tests;
