//! What the node knows of its pods, for readers: the HTTP server, metrics, the log rotator.
//!
//! Only pod workers write here, after each look at the runtime; readers get immutable snapshots and never wait.

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use parking_lot::RwLock;

use crate::metrics::Metrics;

/// Which list of the pod's spec a container comes from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ContainerKind {
    Init,
    Main,
    Ephemeral,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum RunState {
    Created,
    Running,
    Exited,
    Unknown,
}

/// One container as the runtime has it, dead ones included until they are collected.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ContainerRecord {
    pub name: String,
    /// The runtime's id, without the `containerd://` prefix.
    pub id: String,
    pub kind: ContainerKind,
    /// How often the container had been restarted when this one was made.
    pub attempt: u32,
    pub state: RunState,
    pub created_at: Timestamp,
    /// The log file in CRI format; rotated parts lie beside it.
    pub log_path: PathBuf,
}

/// A volume that the node keeps for a pod, host paths excepted.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeRecord {
    pub name: String,
    pub path: PathBuf,
    /// Of a PersistentVolumeClaim in the pod's namespace.
    pub claim: Option<String>,
}

/// One pod of this node.
#[derive(Clone, Debug)]
pub struct PodRecord {
    /// The API object with the status that the kubelet last determined, which the API server may not have seen yet.
    pub pod: Arc<Pod>,
    /// The newest sandbox, if it is ready.
    pub sandbox_id: Option<String>,
    /// Newest first.
    pub containers: Vec<ContainerRecord>,
    pub volumes: Vec<VolumeRecord>,
}

impl PodRecord {
    pub fn uid(&self) -> &str {
        self.pod.metadata.uid.as_deref().unwrap_or_default()
    }

    /// The newest container of that name.
    pub fn container(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.iter().find(|container| container.name == name)
    }

    /// The container that ran before the newest one (`kubectl logs --previous`).
    pub fn previous_container(&self, name: &str) -> Option<&ContainerRecord> {
        self.containers.iter().filter(|container| container.name == name).nth(1)
    }
}

#[derive(Default)]
struct Table {
    by_uid: HashMap<String, Arc<PodRecord>>,
    /// Namespace and name to UID. A successor of the same name replaces its predecessor here, never in `by_uid`.
    by_name: HashMap<(String, String), String>,
    /// Sandbox and container ids to the pod's UID, and back, so that a change costs only that pod's ids.
    by_runtime_id: HashMap<String, String>,
    runtime_ids: HashMap<String, Vec<String>>,
}

impl Table {
    fn disown(&mut self, uid: &str) {
        for id in self.runtime_ids.remove(uid).unwrap_or_default() {
            self.by_runtime_id.remove(&id);
        }
    }

    fn own(&mut self, uid: &str, id: String) {
        self.runtime_ids.entry(uid.to_owned()).or_default().push(id.clone());
        self.by_runtime_id.insert(id, uid.to_owned());
    }
}

/// The pods of this node. Cloning shares the table.
#[derive(Clone, Default)]
pub struct PodStore {
    table: Arc<RwLock<Table>>,
    pub(crate) metrics: Arc<Metrics>,
}

impl PodStore {
    pub fn list(&self) -> Vec<Arc<PodRecord>> {
        self.table.read().by_uid.values().cloned().collect()
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<PodRecord>> {
        let table = self.table.read();
        let uid = table.by_name.get(&(namespace.to_owned(), name.to_owned()))?;
        table.by_uid.get(uid).cloned()
    }

    pub fn by_uid(&self, uid: &str) -> Option<Arc<PodRecord>> {
        self.table.read().by_uid.get(uid).cloned()
    }

    /// The UID of the pod that a sandbox or container belongs to.
    pub fn uid_of_runtime_id(&self, id: &str) -> Option<String> {
        self.table.read().by_runtime_id.get(id).cloned()
    }

    /// Makes a fresh runtime id known before its first event can arrive.
    pub fn claim_runtime_id(&self, uid: &str, id: &str) {
        self.table.write().own(uid, id.to_owned());
    }

    /// Replaces what is known of a pod. `runtime_ids` are all its sandboxes and containers.
    pub fn put(&self, record: PodRecord, runtime_ids: impl IntoIterator<Item = String>) {
        let uid = record.uid().to_owned();
        let key = key_of(&record.pod);
        let mut table = self.table.write();
        table.disown(&uid);
        for id in runtime_ids {
            table.own(&uid, id);
        }
        let successor_present = table.by_name.get(&key).is_some_and(|holder| {
            *holder != uid && table.by_uid.get(holder).is_some_and(|other| is_newer(other, &record))
        });
        if !successor_present {
            table.by_name.insert(key, uid.clone());
        }
        table.by_uid.insert(uid, Arc::new(record));
    }

    /// Replaces the spec of a known pod by that with newly allocated resources.
    pub fn reallocate(&self, uid: &str, pod: &Pod) {
        if let Some(record) = self.table.write().by_uid.get_mut(uid) {
            let mut changed = Pod::clone(&record.pod);
            changed.spec.clone_from(&pod.spec);
            Arc::make_mut(record).pod = Arc::new(changed);
        }
    }

    pub fn remove(&self, uid: &str) {
        self.metrics.forget(uid);
        let mut table = self.table.write();
        table.disown(uid);
        let Some(record) = table.by_uid.remove(uid) else { return };
        let key = key_of(&record.pod);
        if table.by_name.get(&key).is_some_and(|holder| holder == uid) {
            table.by_name.remove(&key);
        }
    }
}

fn key_of(pod: &Pod) -> (String, String) {
    (pod.metadata.namespace.clone().unwrap_or_default(), pod.metadata.name.clone().unwrap_or_default())
}

fn is_newer(one: &PodRecord, other: &PodRecord) -> bool {
    one.pod.metadata.creation_timestamp > other.pod.metadata.creation_timestamp
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(uid: &str, created_second: i64) -> PodRecord {
        let mut pod = Pod::default();
        pod.metadata.uid = Some(uid.to_owned());
        pod.metadata.namespace = Some("default".to_owned());
        pod.metadata.name = Some("web".to_owned());
        let created = Timestamp::from_second(created_second).unwrap();
        pod.metadata.creation_timestamp = Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(created));
        PodRecord { pod: Arc::new(pod), sandbox_id: None, containers: Vec::new(), volumes: Vec::new() }
    }

    #[test]
    fn a_late_word_of_a_predecessor_does_not_hide_the_pod_that_has_its_name_now() {
        let store = PodStore::default();
        store.put(record("old", 1), ["s1".to_owned()]);
        store.put(record("new", 2), ["s2".to_owned()]);
        store.put(record("old", 1), ["s1".to_owned(), "c1".to_owned()]);
        assert_eq!(store.get("default", "web").unwrap().uid(), "new");
        assert_eq!(store.uid_of_runtime_id("c1").as_deref(), Some("old"));
        store.remove("old");
        assert_eq!(store.uid_of_runtime_id("s1"), None);
        assert_eq!(store.get("default", "web").unwrap().uid(), "new");
    }
}
