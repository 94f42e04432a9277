//! Carrying decisions out over the API: binding pods, saying why not, making room.

use std::sync::Arc;

use client::{EventType, Recorder, found, is_conflict, is_not_found};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Binding, ObjectReference, Pod, PodCondition};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::api::{Api, DeleteParams, Patch, PatchParams, PostParams, Preconditions};
use serde_json::{Value, json};

use crate::core::Failure;
use crate::pod::PodInfo;

/// Writes of a status that others keep changing.
const ATTEMPTS: u32 = 3;

#[derive(Clone)]
pub struct Executor {
    pub client: kube::Client,
    pub recorder: Recorder,
    pub scheduler_name: String,
}

impl Executor {
    fn pods(&self, pod: &PodInfo) -> Api<Pod> {
        Api::namespaced(self.client.clone(), pod.namespace())
    }

    pub async fn bind(&self, pod: &PodInfo, node: &str) -> Result<(), kube::Error> {
        let (namespace, name) = (pod.namespace(), pod.name());
        let binding = Binding {
            metadata: ObjectMeta {
                name: Some(name.to_owned()),
                namespace: Some(namespace.to_owned()),
                uid: Some(pod.uid.to_string()),
                ..ObjectMeta::default()
            },
            target: ObjectReference {
                kind: Some("Node".to_owned()),
                name: Some(node.to_owned()),
                ..ObjectReference::default()
            },
        };
        let _: Value = self.pods(pod).create_subresource("binding", name, &PostParams::default(), &binding).await?;
        let message = format!("Successfully assigned {namespace}/{name} to {node}");
        self.recorder.normal(&*pod.pod, "Scheduled", message);
        Ok(())
    }

    /// Tells of a binding that did not come about.
    pub async fn report_unbound(&self, pod: &PodInfo, error: &kube::Error) {
        tracing::warn!(namespace = pod.namespace(), pod = pod.name(), %error, "pod not bound, will be tried again");
        let message = format!("binding rejected: {error}");
        self.report(pod, "SchedulerError", &message, None).await;
    }

    /// Tells why, and makes room: in this order, since the pod may be bound as soon as the room is there.
    pub async fn report_failure(&self, failure: &Failure) {
        let Failure { pod, message, nominated, victims } = failure;
        self.report(pod, "Unschedulable", message, nominated.as_deref()).await;
        if let Some(node) = nominated {
            for victim in victims {
                self.evict(victim, pod, node).await;
            }
        }
    }

    async fn report(&self, pod: &PodInfo, reason: &str, message: &str, nominated: Option<&str>) {
        self.recorder.warning(&*pod.pod, "FailedScheduling", message);
        let mut current = pod.pod.clone();
        for _ in 0..ATTEMPTS {
            let Some(patch) = unscheduled(&current, reason, message, nominated, Timestamp::now()) else { return };
            if !self.patch_status(pod, &patch).await.is_err_and(|error| is_conflict(&error)) {
                return;
            }
            // If it is because the pod has been bound meanwhile, that is the newer truth.
            match found(self.pods(pod).get(pod.name()).await) {
                Ok(Some(fresh)) if fresh.metadata.uid == current.metadata.uid && !is_bound(&fresh) => {
                    current = Arc::new(fresh);
                }
                _ => return,
            }
        }
    }

    async fn patch_status(&self, pod: &PodInfo, patch: &Value) -> Result<(), kube::Error> {
        let patched = self.pods(pod).patch_status(pod.name(), &PatchParams::default(), &Patch::Strategic(patch)).await;
        // What was not written is written with the next attempt to schedule the pod.
        patched.map(|_| ()).inspect_err(|error| {
            tracing::debug!(namespace = pod.namespace(), pod = pod.name(), %error, "status not written");
        })
    }

    async fn evict(&self, victim: &PodInfo, pod: &PodInfo, node: &str) {
        if victim.terminating {
            return;
        }
        let message = format!("{}: preempting to accommodate a higher priority pod", self.scheduler_name);
        let condition = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "PreemptionByScheduler", "message": message,
            "lastTransitionTime": Timestamp::now(),
        });
        let patch = json!({"metadata": {"uid": &*victim.uid}, "status": {"conditions": [condition]}});
        // The condition only explains; the pod has to go with or without.
        let _ = self.patch_status(victim, &patch).await;
        let exactly = Preconditions { uid: Some(victim.uid.to_string()), resource_version: None };
        let params = DeleteParams { preconditions: Some(exactly), ..DeleteParams::default() };
        match self.pods(victim).delete(victim.name(), &params).await {
            Ok(_) => {
                let message = format!("Preempted by pod {} on node {node}", pod.uid);
                self.recorder.event(&reference(&victim.pod), EventType::Normal, "Preempted", message);
            }
            Err(error) if is_not_found(&error) => {}
            Err(error) => {
                tracing::warn!(namespace = victim.namespace(), pod = victim.name(), %error, "victim not removed");
            }
        }
    }
}

fn is_bound(pod: &Pod) -> bool {
    pod.spec.as_ref().is_some_and(|spec| spec.node_name.is_some())
}

fn reference(pod: &Pod) -> ObjectReference {
    use kube::Resource as _;
    pod.object_ref(&())
}

/// The patch that says that a pod was not scheduled; none if that is what its status says already.
fn unscheduled(pod: &Pod, reason: &str, message: &str, nominated: Option<&str>, now: Timestamp) -> Option<Value> {
    let status = pod.status.as_ref();
    let conditions = status.and_then(|status| status.conditions.as_ref()).into_iter().flatten();
    let current = conditions.into_iter().find(|condition| condition.type_ == "PodScheduled");
    let says = |condition: &PodCondition| {
        (condition.status.as_str(), condition.reason.as_deref(), condition.message.as_deref())
            == ("False", Some(reason), Some(message))
    };
    let current_nominated = status.and_then(|status| status.nominated_node_name.as_deref());
    let nominates = nominated.is_some() && nominated != current_nominated;
    if current.is_some_and(says) && !nominates {
        return None;
    }
    let mut condition = json!({
        "type": "PodScheduled", "status": "False", "reason": reason, "message": message,
        "observedGeneration": pod.metadata.generation,
    });
    if current.is_none_or(|current| current.status != "False") {
        condition["lastTransitionTime"] = json!(now);
    }
    let mut status = json!({"conditions": [condition]});
    if nominates {
        status["nominatedNodeName"] = json!(nominated);
    }
    // Refused if the pod has changed since it was judged.
    let metadata = json!({"uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version});
    Some(json!({"metadata": metadata, "status": status}))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod;

    #[test]
    fn a_status_that_says_it_already_is_left_alone() {
        let now = Timestamp::UNIX_EPOCH;
        let fresh = pod("metadata: {name: a, uid: u, generation: 2, resourceVersion: '7'}");
        let patch = unscheduled(&fresh, "Unschedulable", "why", None, now).unwrap();
        assert_eq!(
            patch.to_string(),
            r#"{"metadata":{"resourceVersion":"7","uid":"u"},"status":{"conditions":[{"lastTransitionTime":"1970-01-01T00:00:00Z","message":"why","observedGeneration":2,"reason":"Unschedulable","status":"False","type":"PodScheduled"}]}}"#
        );
        let told = pod(
            "metadata: {name: a, uid: u}\nstatus: {conditions: [{type: PodScheduled, status: 'False', reason: Unschedulable, message: why}]}",
        );
        assert_eq!(unscheduled(&told, "Unschedulable", "why", None, now), None);
        let nominated = unscheduled(&told, "Unschedulable", "why", Some("node"), now).unwrap();
        assert_eq!(nominated["status"]["nominatedNodeName"], "node");
        let other = unscheduled(&told, "Unschedulable", "why else", None, now).unwrap();
        assert!(other["status"]["conditions"][0].get("lastTransitionTime").is_none(), "still false since then");
    }
}
