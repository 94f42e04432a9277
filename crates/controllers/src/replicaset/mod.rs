//! ReplicaSets and ReplicationControllers: keep the wanted number of pods. One mechanism for both kinds.
//!
//! Must not know: deployments, except that sets of one owner share nodes when pods to delete are ranked.

mod kinds;
mod plan;

use std::sync::Arc;

use client::{Change, Context, Gate, Informer, Next, ObjectKey, Queue, Recorder, key_of, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

pub use kinds::Replicated;
use plan::{Failure, Observed, Scale, ScaleStatus};

use crate::error::Result;
use crate::owner::{Claimer, Owned, claim, controller_of, controller_uid, matches};
use crate::pod_control::{PodControl, pod_from};
use crate::{pods, write};

const WORKERS: usize = 5;

/// Runs the controller of one of the two kinds until shutdown.
pub async fn run<R: Replicated>(context: Context) {
    let controller = Arc::new(Controller::<R>::new(&context));
    controller.sets.synced().await;
    controller.pods.synced().await;
    controller.clone().watch();
    let queue = controller.queue.clone();
    run_workers(R::IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

struct Controller<R: Replicated> {
    client: kube::Client,
    control: PodControl,
    sets: Informer<R>,
    pods: Informer<Pod>,
    owned: Owned<Pod>,
    /// The sets of one owner (a deployment), for ranking.
    siblings: Owned<R>,
    set_gate: Gate<R>,
    queue: Queue<ObjectKey>,
}

impl<R: Replicated> Controller<R> {
    fn new(context: &Context) -> Self {
        let client = context.as_controller(R::IDENTITY);
        let sets = context.informers.of::<R>();
        let pods = context.informers.of::<Pod>();
        Controller {
            control: PodControl::new(client.clone(), Recorder::new(client.clone(), R::IDENTITY, ""), &pods),
            client,
            owned: Owned::new(&pods),
            siblings: Owned::new(&sets),
            set_gate: Gate::new(sets.clone()),
            sets,
            pods,
            queue: Queue::default(),
        }
    }

    fn watch(self: Arc<Self>) {
        let queue = self.queue.clone();
        self.sets.on_change(move |change| queue.add(key_of(&**change.object())));
        let controller = self.clone();
        self.pods.on_change(move |change| controller.pod_changed(&change));
    }

    /// Wakes the sets that a pod's change concerns: its old and new controller, or for an orphan those that match it.
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for seen in change.old().into_iter().chain([pod]) {
            if let Some(reference) = controller_of(&seen.metadata).filter(|reference| reference.kind == R::kind(&())) {
                self.queue.add((namespace.to_owned(), reference.name.clone()));
            }
        }
        let orphaned = controller_of(&pod.metadata).is_none() && matches!(change, Change::Applied { .. });
        let news = change
            .old()
            .is_none_or(|old| old.metadata.labels != pod.metadata.labels || controller_of(&old.metadata).is_some());
        if orphaned && news {
            for set in self.sets.list_namespace(namespace) {
                if let Ok(Some(selector)) = set.selector()
                    && matches(&selector, &pod.metadata.labels)
                {
                    self.queue.add(key_of(&*set));
                }
            }
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.set_gate.opened(key).await?;
        self.control.gate.opened(key).await?;
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.set_gate.forget(key);
            self.control.gate.forget(key);
            return Ok(Next::Wait);
        };
        let Some(selector) = set.selector()? else { return Ok(Next::Wait) };
        let uid = set.meta().uid.as_deref().unwrap_or_default();
        let owned = self.owned.by(uid);
        let terminating = owned.iter().filter(|pod| !pods::is_finished(pod) && !pods::is_active(pod)).count();
        let candidates = owned.into_iter().chain(self.owned.orphans(&key.0));
        let candidates = candidates.filter(|pod| pods::is_active(pod)).collect();
        let claimer = Claimer { client: &self.client, owner: &*set, gate: &self.control.gate, key };
        let active = claimer.carry_out(claim(set.meta(), &selector, candidates)).await?;

        let scaled =
            if set.meta().deletion_timestamp.is_none() { self.scale(key, &set, &active).await } else { Ok(()) };
        let failure = scaled.as_ref().err().map(|(reason, error)| (*reason, error.to_string()));
        let old = set.status();
        let observed = Observed {
            old: &old,
            generation: set.meta().generation.unwrap_or(0),
            template: set.template(),
            min_ready_seconds: set.min_ready_seconds(),
            active: &active,
            terminating,
            failure: failure.as_ref().map(|(reason, message)| Failure { reason, message }),
        };
        let (status, recheck) = plan::status(&observed, Timestamp::now());
        self.write_status(key, &set, &old, status).await?;
        match scaled {
            Ok(()) => Ok(recheck.map_or(Next::Wait, Next::After)),
            Err((_, error)) => Err(error.into()),
        }
    }

    /// On failure: the reason for the condition, and the first error.
    async fn scale(&self, key: &ObjectKey, set: &R, active: &[Arc<Pod>]) -> Result<(), (&'static str, kube::Error)> {
        let related = self.related(set, active);
        match plan::scale(set.replicas(), active, &related, Timestamp::now()) {
            Scale::Keep => Ok(()),
            Scale::Create(count) => {
                let Some(template) = set.template() else { return Ok(()) };
                let pod = pod_from(set, template);
                let created = self.control.create(key, set, count, |_| pod.clone()).await;
                created.map_err(|error| ("FailedCreate", error))
            }
            Scale::Delete(pods) => self.control.delete(key, set, pods).await.map_err(|error| ("FailedDelete", error)),
        }
    }

    /// The pods of all sets that share this set's owner, or only its own.
    fn related(&self, set: &R, own: &[Arc<Pod>]) -> Vec<Arc<Pod>> {
        let Some(owner) = controller_uid(set.meta()) else { return own.to_vec() };
        let siblings = self.siblings.by(owner);
        siblings.iter().filter_map(|sibling| sibling.meta().uid.as_deref()).flat_map(|uid| self.owned.by(uid)).collect()
    }

    async fn write_status(&self, key: &ObjectKey, set: &R, old: &ScaleStatus, new: ScaleStatus) -> Result<()> {
        if *old == new {
            return Ok(());
        }
        let mut updated = set.clone();
        updated.set_status(new);
        let api: Api<R> = Api::namespaced(self.client.clone(), &key.0);
        match api.replace_status(&key.1, &write::post(), &updated).await {
            Ok(written) => self.set_gate.wrote(key, &written),
            Err(error) if client::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
