//! Jobs: pods that run to their end, as often as is asked for; counted exactly once each, by way of a finalizer.
//!
//! Must not know: CronJobs, which only create and delete Jobs.

mod account;
mod backoff;
mod facts;
mod indexes;
mod orphans;
mod plan;
mod pod;
mod policy;
#[cfg(test)]
mod tests;
pub mod ttl;

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Context, Gate, Informer, Next, ObjectKey, Queue, Recorder, key_of, run_workers};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::batch::v1::{Job, JobStatus};
use k8s_openapi::api::core::v1::Pod;
use kube::api::{Api, Patch};
use kube::core::Selector;
use parking_lot::Mutex;
use serde_json::json;

use account::{Account, Event, Outcome, account};
use backoff::Record;
pub use facts::end_of;
use facts::{FINALIZER, Observed, is_tracked};
use plan::{Action, Decision, decide};

use crate::error::Result;
use crate::owner::{Claimer, Owned, claim, controller_of, matches, selector_of};
use crate::pod_control::PodControl;
use crate::write;

const IDENTITY: &str = "job-controller";
const WORKERS: usize = 5;
/// Changes of pods within this time are taken together.
const BATCH: Duration = Duration::from_millis(50);
/// The value of `spec.managedBy` that means this controller; so does absence.
const MANAGER: &str = "kubernetes.io/job-controller";

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Arc::new(Controller::new(&context));
    controller.jobs.synced().await;
    controller.pods.synced().await;
    controller.clone().watch();
    let (queue, orphans, shutdown) = (controller.queue.clone(), controller.orphans.clone(), context.shutdown.clone());
    let cleaner = controller.clone();
    let reconcile = run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    });
    let clean = run_workers("job-controller/orphans", orphans, 1, shutdown, move |key| {
        let controller = cleaner.clone();
        async move { controller.free_orphan(&key).await }
    });
    futures::future::join(reconcile, clean).await;
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    control: PodControl,
    jobs: Informer<Job>,
    pods: Informer<Pod>,
    owned: Owned<Pod>,
    job_gate: Gate<Job>,
    /// Failures in a row, for back-off.
    records: Mutex<HashMap<ObjectKey, Record>>,
    queue: Queue<ObjectKey>,
    /// Pods that may keep a finalizer that nobody removes any more.
    orphans: Queue<ObjectKey>,
}

fn is_managed_elsewhere(job: &Job) -> bool {
    job.spec.as_ref().and_then(|spec| spec.managed_by.as_deref()).is_some_and(|manager| manager != MANAGER)
}

/// None if the Job selects nothing.
fn selector(job: &Job) -> Result<Option<Selector>> {
    job.spec.as_ref().and_then(|spec| spec.selector.as_ref()).map(selector_of).transpose()
}

impl Controller {
    fn new(context: &Context) -> Self {
        let client = context.as_controller(IDENTITY);
        let recorder = Recorder::new(client.clone(), IDENTITY, "");
        let jobs = context.informers.of::<Job>();
        let pods = context.informers.of::<Pod>();
        Controller {
            control: PodControl::new(client.clone(), recorder.clone(), &pods),
            recorder,
            client,
            owned: Owned::new(&pods),
            job_gate: Gate::new(jobs.clone()),
            jobs,
            pods,
            records: Mutex::default(),
            queue: Queue::default(),
            orphans: Queue::default(),
        }
    }

    fn watch(self: Arc<Self>) {
        let controller = self.clone();
        self.jobs.on_change(move |change| {
            let job = change.object();
            controller.queue.add(key_of(&**job));
            let gone = matches!(change, Change::Deleted { .. });
            if gone || end_of(job).is_some() {
                // Backup: no pod should keep its finalizer now.
                controller.queue_tracked_pods(job);
            }
        });
        let controller = self.clone();
        self.pods.on_change(move |change| controller.pod_changed(&change));
    }

    fn queue_tracked_pods(&self, job: &Job) {
        let pods = self.owned.by(job.metadata.uid.as_deref().unwrap_or_default());
        pods.iter().filter(|pod| is_tracked(pod)).for_each(|pod| self.orphans.add(key_of(&**pod)));
    }

    /// Wakes the Jobs that a pod's change concerns: its old and new controller, or for an orphan those that match it.
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for seen in change.old().into_iter().chain([pod]) {
            if let Some(reference) = controller_of(&seen.metadata).filter(|reference| reference.kind == "Job") {
                self.queue.add_after((namespace.to_owned(), reference.name.clone()), BATCH);
            }
        }
        if !matches!(change, Change::Applied { .. }) {
            return;
        }
        if is_tracked(pod) && self.is_orphan(pod) {
            self.orphans.add(key_of(&**pod));
        }
        let news = change
            .old()
            .is_none_or(|old| old.metadata.labels != pod.metadata.labels || controller_of(&old.metadata).is_some());
        if controller_of(&pod.metadata).is_none() && news {
            for job in self.jobs.list_namespace(namespace) {
                if let Ok(Some(selector)) = selector(&job)
                    && matches(&selector, &pod.metadata.labels)
                {
                    self.queue.add_after(key_of(&*job), BATCH);
                }
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.job_gate.opened(key).await?;
        self.control.gate.opened(key).await?;
        let Some(job) = self.jobs.get(&key.0, &key.1) else {
            self.job_gate.forget(key);
            self.control.gate.forget(key);
            self.records.lock().remove(key);
            return Ok(Next::Wait);
        };
        if is_managed_elsewhere(&job) {
            return Ok(Next::Wait);
        }
        if end_of(&job).is_some() {
            self.records.lock().remove(key);
            return Ok(Next::Wait);
        }
        let Some(selector) = selector(&job)? else { return Ok(Next::Wait) };
        let uid = job.metadata.uid.as_deref().unwrap_or_default();
        let candidates = self.owned.by(uid).into_iter().chain(self.owned.orphans(&key.0)).collect();
        let claimer = Claimer { client: &self.client, owner: &*job, gate: &self.control.gate, key };
        let pods = claimer.carry_out_tracked(claim(&job.metadata, &selector, candidates), FINALIZER).await?;

        let record = self.records.lock().get(key).copied().unwrap_or_default();
        let now = Timestamp::from_second(Timestamp::now().as_second()).unwrap_or_default();
        let observed = Observed { job: &job, pods: &pods, record, now };
        let Some(decision) = decide(&observed) else { return Ok(Next::Wait) };
        let (outcome, error) = self.act(key, &decision).await;
        let account = account(&decision, outcome);
        let recheck = decision.recheck;
        let record = decision.facts.record;
        self.conclude(key, &job, account, record).await?;
        match error {
            Some(error) => Err(error.into()),
            None => Ok(recheck.map_or(Next::Wait, Next::After)),
        }
    }

    async fn act(&self, key: &ObjectKey, decision: &Decision<'_>) -> (Outcome, Option<kube::Error>) {
        let job = decision.observed.job;
        match &decision.action {
            Action::Nothing => (Outcome { created: 0, deleted: true }, None),
            Action::Create(new) => {
                let template = pod::template(job, decision.wish.indexed);
                let pod_for = |place: usize| pod::pod(&template, job, &new[place]);
                let (created, result) = self.control.create_counted(key, job, new.len(), pod_for).await;
                (Outcome { created, deleted: true }, result.err())
            }
            Action::Stop(pods) => {
                let result = self.control.delete(key, job, pods.clone()).await;
                (Outcome { created: 0, deleted: result.is_ok() }, result.err())
            }
            Action::Drop(pods) => {
                let (_, mut error) = self.untrack(key, pods).await;
                if error.is_none() {
                    error = self.control.delete(key, job, pods.clone()).await.err();
                }
                (Outcome { created: 0, deleted: error.is_none() }, error)
            }
        }
    }

    /// Writes the status, removes finalizers, and writes the status with what they stood for.
    async fn conclude(&self, key: &ObjectKey, job: &Job, mut account: Account, record: Record) -> Result<()> {
        let mut current = job.clone();
        if job.status.as_ref() != Some(&account.status) {
            match self.write_status(key, &current, account.status.clone()).await? {
                Some(written) => current = written,
                None => return Ok(()),
            }
            self.records.lock().insert(key.clone(), record);
        }
        self.tell(job, std::mem::take(&mut account.events));
        let release = std::mem::take(&mut account.release);
        let (released, error) = self.untrack(key, &release).await;
        let status = current.status.clone().unwrap_or_default();
        let (settled, events) = account.settle(status.clone(), &released, error.is_none());
        if settled != status && self.write_status(key, &current, settled).await?.is_some() {
            self.tell(job, events);
        }
        error.map_or(Ok(()), |error| Err(error.into()))
    }

    fn tell(&self, job: &Job, events: Vec<Event>) {
        for Event { warning, reason, message } in events {
            if warning {
                self.recorder.warning(job, &reason, message);
            } else {
                self.recorder.normal(job, &reason, message);
            }
        }
    }

    /// Removes the finalizer from the pods; returns the UIDs of those without it, and the first error.
    async fn untrack(&self, key: &ObjectKey, pods: &[Arc<Pod>]) -> (HashSet<String>, Option<kube::Error>) {
        let (mut done, mut failed) = (HashSet::new(), None);
        // In portions, so that a big Job does not fill the server's queue.
        for portion in pods.chunks(32) {
            for (pod, result) in portion.iter().zip(join_all(portion.iter().map(|pod| self.free(pod))).await) {
                match result {
                    Ok(freed) => {
                        if let Some(freed) = freed {
                            self.control.gate.wrote(key, &freed);
                        }
                        done.insert(facts::uid(pod).to_owned());
                    }
                    Err(error) => {
                        failed.get_or_insert(error);
                    }
                }
            }
        }
        (done, failed)
    }

    /// Removes the finalizer from this very pod; none if the pod is gone.
    async fn free(&self, pod: &Pod) -> Result<Option<Pod>, kube::Error> {
        let (namespace, name) = key_of(pod);
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &namespace);
        let patch =
            json!({ "metadata": { "uid": pod.metadata.uid, "$deleteFromPrimitiveList/finalizers": [FINALIZER] } });
        match api.patch(&name, &write::patch(), &Patch::Strategic(patch)).await {
            Ok(freed) => Ok(Some(freed)),
            // Gone, or another pod of the same name, of which a UID that differs tells.
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// None if the Job is gone.
    async fn write_status(&self, key: &ObjectKey, job: &Job, status: JobStatus) -> Result<Option<Job>> {
        let updated = Job { status: Some(status), ..job.clone() };
        let api: Api<Job> = Api::namespaced(self.client.clone(), &key.0);
        let written = client::found(api.replace_status(&key.1, &write::post(), &updated).await)?;
        if let Some(written) = &written {
            self.job_gate.wrote(key, written);
        }
        Ok(written)
    }
}
