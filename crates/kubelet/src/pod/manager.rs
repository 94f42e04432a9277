//! Hands each pod of this node to its worker, and ends what the runtime still has of pods that are no more.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use client::{Change, Informer};
use k8s_openapi::api::core::v1::{Pod, PodSpec};
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use super::worker::{Input, Worker, WorkerHandle};
use crate::podutil;
use crate::runtime::events::Wake;
use crate::runtime::labels;
use crate::shared::Handle;

enum Entry {
    Working(WorkerHandle),
    /// All traces are gone; the API object is about to be.
    Done,
}

/// The pods' workers by UID. Cloning shares them.
#[derive(Clone)]
pub struct Manager {
    shared: Handle,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    shutdown: CancellationToken,
}

impl Manager {
    pub fn new(shared: Handle, shutdown: CancellationToken) -> Self {
        Manager { shared, entries: Arc::default(), shutdown }
    }

    /// Follows the informer of this node's pods from now on.
    pub fn follow(&self, pods: &Informer<Pod>) {
        let manager = self.clone();
        pods.on_change(move |change| match change {
            Change::Applied { old, new } => {
                // A successor under the same name: nobody will report the predecessor's end.
                if let Some(old) = old.filter(|old| podutil::uid(old) != podutil::uid(new)) {
                    manager.gone(old);
                }
                manager.apply(new);
            }
            Change::Deleted { old } => manager.gone(old),
        });
    }

    /// Gives the worker of `pod` its new version, starting one if there is none.
    pub fn apply(&self, pod: &Arc<Pod>) {
        let uid = podutil::uid(pod);
        let mut entries = self.entries.lock();
        match entries.get(uid) {
            Some(Entry::Working(handle)) => handle.input.send_modify(|input| input.pod = pod.clone()),
            Some(Entry::Done) => {}
            None => {
                let handle = self.spawn(Input { pod: pod.clone(), removed: false });
                entries.insert(uid.to_owned(), Entry::Working(handle));
            }
        }
    }

    /// The API object is gone.
    pub fn gone(&self, pod: &Pod) {
        let mut entries = self.entries.lock();
        match entries.get(podutil::uid(pod)) {
            Some(Entry::Working(handle)) => handle.input.send_modify(|input| input.removed = true),
            Some(Entry::Done) => drop(entries.remove(podutil::uid(pod))),
            None => {}
        }
    }

    fn spawn(&self, input: Input) -> WorkerHandle {
        let uid = podutil::uid(&input.pod).to_owned();
        let entries = self.entries.clone();
        let done = move || {
            let mut entries = entries.lock();
            let removed = match entries.get(&uid) {
                Some(Entry::Working(handle)) => handle.input.borrow().removed,
                _ => true,
            };
            if removed {
                entries.remove(&uid);
            } else {
                entries.insert(uid, Entry::Done);
            }
        };
        Worker::spawn(self.shared.clone(), input, self.shutdown.clone(), done)
    }

    pub fn uids(&self) -> HashSet<String> {
        self.entries.lock().keys().cloned().collect()
    }

    /// Ends pods that the runtime has and the API does not: they were deleted while the daemon was away. To be called once
    /// the informer has synced.
    pub async fn end_orphans(&self) -> cri::Result<()> {
        let sandboxes = self.shared.runtime.list_pod_sandboxes(&[]).await?;
        let mut seen = HashSet::new();
        for sandbox in sandboxes {
            let Some(uid) = sandbox.labels.get(labels::POD_UID) else { continue };
            if !seen.insert(uid.clone()) || self.entries.lock().contains_key(uid) {
                continue;
            }
            let pod = stand_in(&sandbox.labels);
            tracing::info!(pod = %podutil::full_name(&pod), "ending a pod that is no more");
            let handle = self.spawn(Input { pod: Arc::new(pod), removed: true });
            self.entries.lock().insert(uid.clone(), Entry::Working(handle));
        }
        Ok(())
    }
}

/// What the runtime's labels tell of a pod; enough to end it.
fn stand_in(labels: &HashMap<String, String>) -> Pod {
    let mut pod = Pod::default();
    let get = |key: &str| labels.get(key).cloned();
    pod.metadata.name = get(labels::POD_NAME);
    pod.metadata.namespace = get(labels::POD_NAMESPACE);
    pod.metadata.uid = get(labels::POD_UID);
    pod.spec = Some(PodSpec::default());
    pod
}

impl Wake for Manager {
    fn wake(&self, uid: &str) {
        if let Some(Entry::Working(handle)) = self.entries.lock().get(uid) {
            handle.wake.notify_one();
        }
    }

    fn wake_all(&self) {
        for entry in self.entries.lock().values() {
            if let Entry::Working(handle) = entry {
                handle.wake.notify_one();
            }
        }
    }
}
