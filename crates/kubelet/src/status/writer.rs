//! Writes pod statuses to the API: at once, only what changed, the newest word wins.
//!
//! The patch is a strategic merge of the differences, with the UID as precondition, so that a successor of the same name and
//! conditions of others are left alone.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Pod, PodStatus};
use kube::api::{Api, Patch, PatchParams};
use parking_lot::Mutex;
use serde_json::{Map, Value, json};
use tokio_util::sync::CancellationToken;

use client::{Next, Queue};

use super::conditions::TRANSIENT;
use crate::podutil;

struct Entry {
    namespace: String,
    name: String,
    desired: PodStatus,
    /// What the API server has, as far as we know.
    written: PodStatus,
}

/// Cloning shares it.
#[derive(Clone)]
pub struct StatusWriter {
    api: kube::Client,
    entries: Arc<Mutex<HashMap<String, Entry>>>,
    queue: Queue<String>,
    /// Writes of one pod happen one after another, whoever asks for them.
    turns: Arc<Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>>,
}

impl StatusWriter {
    pub fn new(api: kube::Client) -> Self {
        StatusWriter { api, entries: Arc::default(), queue: Queue::default(), turns: Arc::default() }
    }

    /// Writes until `shutdown`, with several requests under way.
    pub async fn run(self, shutdown: CancellationToken) {
        let writer = self.clone();
        let write = move |uid: String| {
            let writer = writer.clone();
            async move { writer.flush(&uid).await.map(|()| Next::Wait) }
        };
        client::run_workers("kubelet-status", self.queue, 8, shutdown, write).await;
    }

    /// Makes `status` the word to be written for `pod`.
    pub fn set(&self, pod: &Pod, status: &PodStatus) {
        let uid = podutil::uid(pod).to_owned();
        let mut entries = self.entries.lock();
        let entry = entries.entry(uid.clone()).or_insert_with(|| Entry {
            namespace: podutil::namespace(pod).to_owned(),
            name: podutil::name(pod).to_owned(),
            desired: PodStatus::default(),
            written: pod.status.clone().unwrap_or_default(),
        });
        entry.desired = status.clone();
        let changed = entry.desired != entry.written;
        drop(entries);
        if changed {
            self.queue.add(uid);
        }
    }

    /// Writes what is pending for the pod now. A pod that is gone counts as written.
    pub async fn flush(&self, uid: &str) -> Result<(), kube::Error> {
        if !self.entries.lock().contains_key(uid) {
            return Ok(());
        }
        let turn = self.turns.lock().entry(uid.to_owned()).or_default().clone();
        let _turn = turn.lock().await;
        let Some((namespace, name, desired, patch)) = self.pending(uid) else { return Ok(()) };
        let api: Api<Pod> = Api::namespaced(self.api.clone(), &namespace);
        match api.patch_status(&name, &PatchParams::default(), &Patch::Strategic(&patch)).await {
            Ok(_) => {
                if let Some(entry) = self.entries.lock().get_mut(uid) {
                    entry.written = desired;
                }
                Ok(())
            }
            // Gone, or another pod has the name now.
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => {
                self.forget(uid);
                Ok(())
            }
            Err(error) => {
                tracing::debug!(pod = %format_args!("{namespace}/{name}"), %error, "status not written");
                Err(error)
            }
        }
    }

    fn pending(&self, uid: &str) -> Option<(String, String, PodStatus, Value)> {
        let entries = self.entries.lock();
        let entry = entries.get(uid)?;
        let changes = difference(&entry.written, &entry.desired)?;
        let patch = json!({"metadata": {"uid": uid}, "status": changes});
        Some((entry.namespace.clone(), entry.name.clone(), entry.desired.clone(), patch))
    }

    /// Drops what is known of a pod that is gone.
    pub fn forget(&self, uid: &str) {
        self.entries.lock().remove(uid);
        self.turns.lock().remove(uid);
    }
}

/// The strategic merge patch from `old` to `new`; none if they are the same.
fn difference(old: &PodStatus, new: &PodStatus) -> Option<Value> {
    let object = |status: &PodStatus| match serde_json::to_value(status) {
        Ok(Value::Object(map)) => map,
        _ => Map::new(),
    };
    let (old, new) = (object(old), object(new));
    let mut patch = Map::new();
    for (field, value) in &new {
        let before = old.get(field);
        if before == Some(value) {
            continue;
        }
        let change = match (field.as_str(), value, before) {
            // Merged by type: send what changed, leave the conditions of others alone.
            ("conditions", Value::Array(new), Some(Value::Array(old))) => {
                let changed = new.iter().filter(|condition| !old.contains(condition));
                let changed = changed.map(|condition| without_leftovers(condition, old));
                let over = |condition: &&Value| {
                    let kind = condition["type"].as_str().unwrap_or_default();
                    TRANSIENT.contains(&kind) && !new.iter().any(|new| new["type"] == kind)
                };
                let over = old.iter().filter(over).map(|gone| json!({"type": gone["type"], "$patch": "delete"}));
                Value::Array(changed.chain(over).collect())
            }
            // Merged by address, so that old ones would stay without the directive.
            ("podIPs" | "hostIPs", Value::Array(new), Some(_)) => {
                let replace = json!({"$patch": "replace"});
                Value::Array(new.iter().cloned().chain([replace]).collect())
            }
            _ => value.clone(),
        };
        patch.insert(field.clone(), change);
    }
    for field in old.keys().filter(|field| !new.contains_key(*field)) {
        patch.insert(field.clone(), Value::Null);
    }
    (!patch.is_empty()).then_some(Value::Object(patch))
}

/// A condition whose merge leaves nothing of the old one of its type: what it has no more is taken away in so many words.
fn without_leftovers(condition: &Value, old: &[Value]) -> Value {
    let mut condition = condition.clone();
    let before = old.iter().find(|other| other["type"] == condition["type"]).and_then(Value::as_object);
    if let Some(fields) = condition.as_object_mut() {
        for field in before.into_iter().flat_map(Map::keys) {
            fields.entry(field.as_str()).or_insert(Value::Null);
        }
    }
    condition
}

#[cfg(test)]
mod tests {
    use super::*;

    fn status(json: Value) -> PodStatus {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_resize_that_is_over_leaves_no_condition() {
        let condition = |kind: &str| json!({"type": kind, "status": "True"});
        let old =
            status(json!({"conditions": [condition("Ready"), condition("PodResizeInProgress"), condition("x/y")]}));
        let new = status(json!({"conditions": [condition("Ready")]}));
        let expected = json!({"conditions": [{"type": "PodResizeInProgress", "$patch": "delete"}]});
        assert_eq!(difference(&old, &new), Some(expected));
    }

    #[test]
    fn only_differences_are_sent_and_lists_that_merge_say_so() {
        let ready = |value: &str| json!({"type": "Ready", "status": value});
        let unready = json!({"type": "Ready", "status": "False", "reason": "ContainersNotReady"});
        let other = json!({"type": "Other", "status": "True"});
        let old =
            status(json!({"phase": "Pending", "hostIP": "1.1.1.1", "reason": "x", "podIPs": [{"ip": "10.0.0.1"}],
            "conditions": [unready, other]}));
        let new = status(json!({"phase": "Running", "hostIP": "1.1.1.1", "podIPs": [{"ip": "10.0.0.2"}],
            "conditions": [ready("True"), other]}));
        let now_ready = json!({"type": "Ready", "status": "True", "reason": null});
        let expected = json!({"phase": "Running", "reason": null, "conditions": [now_ready],
            "podIPs": [{"ip": "10.0.0.2"}, {"$patch": "replace"}]});
        assert_eq!(difference(&old, &new), Some(expected));
        assert_eq!(difference(&new, &new), None);
    }
}
