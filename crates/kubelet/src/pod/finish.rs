//! The end of a pod: stop what runs within the grace period, publish the last status, give the node's resources back, and only
//! then let the API object go.

use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, DeleteParams, Preconditions};
use tokio::time::Instant;

use super::stop;
use super::worker::Worker;
use crate::error::Result;
use crate::podutil;

const FIRST_RETRY: Duration = Duration::from_millis(200);
const LONGEST_RETRY: Duration = Duration::from_secs(10);

/// Waits between tries, doubling.
struct Retry(Duration);

impl Retry {
    fn new() -> Self {
        Retry(FIRST_RETRY)
    }

    fn next(&mut self) -> Duration {
        let delay = self.0;
        self.0 = (delay * 2).min(LONGEST_RETRY);
        delay
    }
}

impl Worker {
    /// Returns when no trace of the pod is left.
    pub(super) async fn finish(mut self) {
        self.stop_all().await;
        let pod = self.input.borrow_and_update().pod.clone();
        self.ending.finished = true;
        self.publish(&pod, None);
        self.shared.room.send_modify(|version| *version += 1);
        self.probes.stop_all();
        self.flush_status(&pod).await;
        self.release(&pod).await;
        self.wait_for_removal().await;
        let pod = self.input.borrow().pod.clone();
        self.remove_traces(&pod).await;
        self.shared.statuses.forget(podutil::uid(&pod));
        self.shared.store.remove(podutil::uid(&pod));
        self.shared.room.send_modify(|version| *version += 1);
    }

    /// Until nothing of the pod runs. A shorter grace period that arrives meanwhile takes effect at once.
    async fn stop_all(&mut self) {
        let begun = Instant::now();
        let mut told = stop::Told::default();
        let mut retry = Retry::new();
        self.probes.stop_killing();
        loop {
            let input = self.input.borrow_and_update().clone();
            let pod = input.pod;
            match self.look(&pod).await {
                Ok(()) if self.observed.is_stopped() => return,
                Ok(()) => self.publish(&pod, None),
                Err(error) => {
                    tracing::warn!(pod = %podutil::full_name(&pod), %error, "cannot see the pod's containers");
                    self.sleep(Some(retry.next())).await;
                    continue;
                }
            }
            let grace = Duration::from_secs(podutil::grace_seconds(&pod).unsigned_abs());
            let left = (begun + grace).saturating_duration_since(Instant::now());
            let mut changed = self.input.clone();
            let stopped = tokio::select! {
                stopped = stop::stop_pod(&self.shared, &pod, &self.observed, left, &mut told) => stopped,
                () = shorter_grace(&mut changed, podutil::grace_seconds(&pod)) => continue,
            };
            if let Err(error) = stopped {
                let message = format!("error killing pod: {error}");
                let object = podutil::pod_ref(&pod);
                self.shared.recorder.event(&object, client::EventType::Warning, "FailedKillPod", message);
                self.sleep(Some(retry.next())).await;
            }
        }
    }

    async fn flush_status(&mut self, pod: &Arc<Pod>) {
        let mut retry = Retry::new();
        while !self.input.borrow().removed {
            match self.shared.statuses.flush(podutil::uid(pod)).await {
                Ok(()) => return,
                Err(_) => self.sleep(Some(retry.next())).await,
            }
        }
    }

    /// Gives volumes and cgroups back; containers and logs stay readable until the API object is gone.
    async fn release(&mut self, pod: &Arc<Pod>) {
        let mut retry = Retry::new();
        while let Err(error) = self.volumes.unmount_all().await {
            tracing::warn!(pod = %podutil::full_name(pod), %error, "volumes not given back, will retry");
            tokio::time::sleep(retry.next()).await;
        }
        self.shared.cgroups.remove_pod(pod);
    }

    /// Lets a deleted API object go, and waits until it is gone. An ended pod that nobody deleted is kept for its logs.
    async fn wait_for_removal(&mut self) {
        let mut retry = Retry::new();
        loop {
            let input = self.input.borrow_and_update().clone();
            if input.removed {
                return;
            }
            let mut delay = None;
            if podutil::deleted_at(&input.pod).is_some() {
                match self.let_go(&input.pod).await {
                    Ok(()) => return,
                    Err(error) => {
                        tracing::warn!(pod = %podutil::full_name(&input.pod), %error, "pod object not deleted, will retry");
                        delay = Some(retry.next());
                    }
                }
            }
            self.sleep(delay).await;
            // Conditions of others may have changed; the status must not fall behind them.
            let pod = self.input.borrow().pod.clone();
            self.publish(&pod, None);
        }
    }

    async fn let_go(&self, pod: &Pod) -> Result<()> {
        let api: Api<Pod> = Api::namespaced(self.shared.api.clone(), podutil::namespace(pod));
        let preconditions = Preconditions { uid: pod.metadata.uid.clone(), resource_version: None };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(preconditions),
            ..DeleteParams::default()
        };
        match api.delete(podutil::name(pod), &params).await {
            Ok(_) => Ok(()),
            // Gone already, or another pod has the name now.
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(()),
            Err(error) => Err(error.into()),
        }
    }

    async fn remove_traces(&mut self, pod: &Arc<Pod>) {
        let mut retry = Retry::new();
        while let Err(error) = self.try_remove_traces(pod).await {
            tracing::warn!(pod = %podutil::full_name(pod), %error, "pod's remains not removed, will retry");
            tokio::time::sleep(retry.next()).await;
        }
    }

    async fn try_remove_traces(&mut self, pod: &Arc<Pod>) -> Result<()> {
        self.look(pod).await?;
        for sandbox in &self.observed.sandboxes {
            self.shared.runtime.remove_pod_sandbox(&sandbox.id).await?;
        }
        for container in &self.observed.containers {
            self.shared.runtime.remove_container(&container.id).await?;
        }
        crate::gc::remove_pod_dirs(&self.shared.config, pod).await
    }
}

/// Resolves when the pod's grace period becomes shorter than `seconds`.
async fn shorter_grace(input: &mut tokio::sync::watch::Receiver<super::worker::Input>, seconds: i64) {
    let shorter = input.wait_for(|input| podutil::grace_seconds(&input.pod) < seconds).await.is_ok();
    if !shorter {
        std::future::pending::<()>().await;
    }
}
