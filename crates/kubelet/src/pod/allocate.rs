//! The worker's part of in-place resize: allocate what the spec wants if the node has room, and give it to running containers.
//! What is decided here is [`super::resize`]'s.

use std::sync::Arc;
use std::time::Duration;

use client::EventType;
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;

use super::admit::Room;
use super::resize::{Actuation, Refusal, Resize};
use super::worker::Worker;
use crate::container::resources;
use crate::error::{Error, Result};
use crate::pods::RunState;
use crate::podutil;
use crate::runtime::ContainerView;

/// A failed actuation is tried again after so long: memory may have become free.
const RETRY: Duration = Duration::from_secs(10);

impl Worker {
    /// Decides on what the spec wants, and returns the pod as it is allocated.
    pub(super) fn allocate(&mut self, pod: &Arc<Pod>) -> Result<Arc<Pod>> {
        if self.resize.is_wanted(pod) {
            self.decide_on_resize(pod)?;
        } else {
            self.resize.nothing_wanted();
        }
        let running = |name: &str| self.observed.latest(name).is_some_and(|view| view.state == RunState::Running);
        let mut news = false;
        for container in podutil::spec(pod).containers.iter().chain(podutil::init_containers(pod)) {
            // One that does not run gets what is allocated when it starts.
            news |= !running(&container.name) && self.resize.actuate(&container.name);
        }
        if news {
            self.resize.save()?;
        }
        Ok(self.resize.allocated(pod))
    }

    fn decide_on_resize(&mut self, pod: &Arc<Pod>) -> Result<()> {
        let shared = self.shared.clone();
        let room = Room::of(&shared.machine, &shared.config);
        // Two pods must not be given the same room.
        let deciding = shared.allocating.lock();
        let others: Vec<_> = shared.store.list().iter().map(|record| record.pod.clone()).collect();
        match Resize::check(pod, others.iter().map(AsRef::as_ref), &room) {
            Some(refusal) => self.refuse(pod, refusal),
            None => {
                self.resize.accept(pod)?;
                shared.store.reallocate(podutil::uid(pod), &self.resize.allocated(pod));
                drop(deciding);
                shared.room.send_modify(|version| *version += 1);
                let message = "Pod resize accepted; resources are being actuated";
                shared.recorder.event(&podutil::pod_ref(pod), EventType::Normal, "ResizeStarted", message);
                self.size_pod_cgroup(pod);
            }
        }
        Ok(())
    }

    fn refuse(&mut self, pod: &Pod, refusal: Refusal) {
        let (reason, message) = (format!("Resize{}", refusal.reason()), refusal.message().to_owned());
        if self.resize.refuse(pod, refusal) {
            self.shared.recorder.event(&podutil::pod_ref(pod), EventType::Warning, &reason, message);
        }
    }

    /// Gives running containers what is allocated to them. A failure is shown by the pod's status and tried again.
    pub(super) async fn actuate(&mut self, pod: &Arc<Pod>) -> Result<()> {
        self.size_pod_cgroup(pod);
        let containers = podutil::spec(pod).containers.iter().chain(podutil::init_containers(pod));
        let targets = containers.filter(|c| self.resize.actuation(c) == Some(Actuation::InPlace));
        let targets: Vec<_> = targets.filter_map(|c| Some((c, self.observed.active(&c.name)?.clone()))).collect();
        for (container, view) in targets {
            let wanted = resources::linux(pod, container, self.shared.machine.memory_bytes);
            let done = match self.below_usage(pod, &view, wanted.memory_limit_in_bytes) {
                Some(message) => Err(Error::Invalid(message)),
                None => self.shared.runtime.update_container_resources(&view.id, wanted).await.map_err(Error::from),
            };
            if let Err(error) = done {
                let at = Timestamp::now().checked_add(RETRY).unwrap_or(Timestamp::MAX);
                let object = podutil::pod_ref(pod);
                self.shared.recorder.event(&object, EventType::Warning, "ResizeError", error.to_string());
                self.resize.fail(error.to_string(), at);
                return self.resize.save();
            }
            self.given(pod, &container.name)?;
        }
        Ok(())
    }

    /// The container has what is allocated to it.
    pub(super) fn given(&mut self, pod: &Arc<Pod>, container: &str) -> Result<()> {
        if !self.resize.actuate(container) {
            return Ok(());
        }
        self.size_pod_cgroup(pod);
        if self.resize.all_actuated() {
            let message = "Pod resize completed";
            self.shared.recorder.event(&podutil::pod_ref(pod), EventType::Normal, "ResizeCompleted", message);
        }
        self.resize.save()
    }

    /// While containers have other sizes than they are to have, the pod's cgroup must hold both.
    fn size_pod_cgroup(&self, pod: &Arc<Pod>) {
        self.shared.cgroups.resize_pod(&self.resize.allocated(pod), &self.resize.actuated(pod));
    }

    /// Why the memory limit cannot be set: the container uses more.
    fn below_usage(&self, pod: &Pod, view: &ContainerView, limit: i64) -> Option<String> {
        let usage = self.shared.cgroups.memory_usage(pod, &view.id)?;
        (limit > 0 && usage > limit).then(|| {
            format!("attempting to set container {:?} memory limit ({limit}) below current usage ({usage})", view.name)
        })
    }
}
