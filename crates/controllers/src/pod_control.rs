//! Creating and deleting pods for an owner, with upstream's events (its RealPodControl), recorded at the owner's gate.

use std::sync::Arc;

use client::{Gate, Informer, Kind, ObjectKey, Recorder};
use futures::future::join_all;
use k8s_openapi::api::core::v1::{Pod, PodTemplateSpec};
use kube::api::Api;

use crate::error::text_of;
use crate::write;

pub struct PodControl {
    client: kube::Client,
    recorder: Recorder,
    pub gate: Gate<Pod>,
}

impl PodControl {
    pub fn new(client: kube::Client, recorder: Recorder, pods: &Informer<Pod>) -> Self {
        PodControl { client, recorder, gate: Gate::new(pods.clone()) }
    }

    /// Creates `count` pods, in batches of 1, 2, 4 … at once, so that a quota or an admission refusal costs few attempts.
    /// Ends quietly if the namespace is being deleted: the owner goes with it.
    pub async fn create<O: Kind>(
        &self,
        key: &ObjectKey,
        owner: &O,
        count: usize,
        pod: impl Fn(usize) -> Pod,
    ) -> Result<(), kube::Error> {
        self.create_counted(key, owner, count, pod).await.1
    }

    /// The same, and how many were created.
    pub async fn create_counted<O: Kind>(
        &self,
        key: &ObjectKey,
        owner: &O,
        count: usize,
        pod: impl Fn(usize) -> Pod,
    ) -> (usize, Result<(), kube::Error>) {
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        let params = write::post();
        let mut done = 0;
        let mut next = 0;
        let mut batch = 1;
        while next < count {
            let pods: Vec<Pod> = (next..(next + batch).min(count)).map(&pod).collect();
            next += pods.len();
            batch *= 2;
            let results = join_all(pods.iter().map(|pod| api.create(&params, pod))).await;
            let mut failed = None;
            for result in results {
                match result {
                    Ok(created) => {
                        let name = created.metadata.name.as_deref().unwrap_or_default();
                        self.recorder.normal(owner, "SuccessfulCreate", format!("Created pod: {name}"));
                        self.gate.wrote(key, &created);
                        done += 1;
                    }
                    Err(error) if client::is_namespace_terminating(&error) => return (done, Ok(())),
                    Err(error) => {
                        self.recorder.warning(owner, "FailedCreate", format!("Error creating: {}", text_of(&error)));
                        failed.get_or_insert(error);
                    }
                }
            }
            if let Some(error) = failed {
                return (done, Err(error));
            }
        }
        (done, Ok(()))
    }

    /// Deletes exactly these pods, not their successors; all are tried, the first error is returned.
    pub async fn delete<O: Kind>(&self, key: &ObjectKey, owner: &O, pods: Vec<Arc<Pod>>) -> Result<(), kube::Error> {
        let api: &Api<Pod> = &Api::namespaced(self.client.clone(), &key.0);
        let results = join_all(pods.iter().map(|pod| async move {
            let name = pod.metadata.name.as_deref().unwrap_or_default();
            (pod, name, api.delete(name, &write::delete_seen(&**pod)).await)
        }));
        let mut failed = None;
        for (pod, name, result) in results.await {
            match result {
                Ok(_) => {
                    self.recorder.normal(owner, "SuccessfulDelete", format!("Deleted pod: {name}"));
                    self.gate.deleted(key, pod);
                }
                // Already gone, or another pod has its name: either way this one is deleted.
                Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => {
                    self.gate.deleted(key, pod);
                }
                Err(error) => {
                    self.recorder.warning(owner, "FailedDelete", format!("Error deleting: {}", text_of(&error)));
                    failed.get_or_insert(error);
                }
            }
        }
        failed.map_or(Ok(()), Err)
    }
}

/// A pod as `owner`'s template says, to be named by the server.
pub fn pod_from<O: Kind>(owner: &O, template: &PodTemplateSpec) -> Pod {
    let meta = template.metadata.clone().unwrap_or_default();
    let mut pod = Pod { spec: template.spec.clone(), ..Pod::default() };
    pod.metadata.namespace = owner.meta().namespace.clone();
    pod.metadata.generate_name = owner.meta().name.as_ref().map(|name| format!("{name}-"));
    pod.metadata.labels = meta.labels;
    pod.metadata.annotations = meta.annotations;
    pod.metadata.finalizers = meta.finalizers;
    pod.metadata.owner_references = Some(vec![crate::owner::reference_to(owner)]);
    pod
}
