//! Pods that keep the tracking finalizer although no Job counts them any more: their Job is gone or has ended.

use client::{Next, ObjectKey};
use k8s_openapi::api::batch::v1::Job;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use super::{Controller, end_of, is_managed_elsewhere, is_tracked};
use crate::error::Result;
use crate::owner::controller_of;

impl Controller {
    /// Whether the cache knows no Job that will remove the pod's finalizer.
    pub(super) fn is_orphan(&self, pod: &Pod) -> bool {
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        match controller_of(&pod.metadata) {
            None => true,
            Some(owner) if owner.kind != "Job" => false,
            Some(owner) => match self.jobs.get(namespace, &owner.name) {
                Some(job) => !counts(&job, &owner.uid),
                None => true,
            },
        }
    }

    pub(super) async fn free_orphan(&self, key: &ObjectKey) -> Result<Next> {
        let Some(pod) = self.pods.get(&key.0, &key.1).filter(|pod| is_tracked(pod)) else { return Ok(Next::Wait) };
        if !self.is_orphan(&pod) {
            return Ok(Next::Wait);
        }
        if let Some(owner) = controller_of(&pod.metadata) {
            // The cache may not have shown a new Job yet.
            let api: Api<Job> = Api::namespaced(self.client.clone(), &key.0);
            if client::found(api.get(&owner.name).await)?.is_some_and(|job| counts(&job, &owner.uid)) {
                return Ok(Next::Wait);
            }
        }
        self.free(&pod).await?;
        Ok(Next::Wait)
    }
}

/// Whether the pods of the Job with this UID are still to be counted, by us or by whoever manages the Job.
fn counts(job: &Job, uid: &str) -> bool {
    job.metadata.uid.as_deref() == Some(uid) && (is_managed_elsewhere(job) || end_of(job).is_none())
}
