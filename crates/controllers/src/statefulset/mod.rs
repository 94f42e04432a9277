//! Stateful sets: pods with names and claims of their own, made and unmade in order.

mod claims;
mod identity;
mod plan;
#[cfg(test)]
mod tests;

use std::collections::HashSet;
use std::sync::Arc;

use client::{Change, Context, Gate, Informer, Next, ObjectKey, Queue, Recorder, key_of, run_workers};
use futures::future::join_all;
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use kube::api::Api;

use plan::{Observed, Plan, Step, is_parallel, plan};

use crate::error::{Error, Result, text_of};
use crate::history::{self, Found, Keeper};
use crate::owner::{Claim, Claimer, Owned, claim, controller_of, matches, selector_of};
use crate::write;

const IDENTITY: &str = "statefulset-controller";
const WORKERS: usize = 5;
/// Requests under way at once for one set, at most.
const BURST: usize = 500;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Arc::new(Controller::new(&context));
    controller.sets.synced().await;
    controller.pods.synced().await;
    controller.claims.synced().await;
    controller.revisions.synced().await;
    controller.clone().watch();
    let queue = controller.queue.clone();
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    sets: Informer<StatefulSet>,
    pods: Informer<Pod>,
    claims: Informer<PersistentVolumeClaim>,
    revisions: Informer<ControllerRevision>,
    owned_pods: Owned<Pod>,
    owned_revisions: Owned<ControllerRevision>,
    set_gate: Gate<StatefulSet>,
    pod_gate: Gate<Pod>,
    claim_gate: Gate<PersistentVolumeClaim>,
    revision_gate: Gate<ControllerRevision>,
    queue: Queue<ObjectKey>,
}

impl Controller {
    fn new(context: &Context) -> Self {
        let client = context.as_controller(IDENTITY);
        let sets = context.informers.of::<StatefulSet>();
        let pods = context.informers.of::<Pod>();
        let claims = context.informers.of::<PersistentVolumeClaim>();
        let revisions = context.informers.of::<ControllerRevision>();
        Controller {
            recorder: Recorder::new(client.clone(), IDENTITY, ""),
            client,
            owned_pods: Owned::new(&pods),
            owned_revisions: Owned::new(&revisions),
            set_gate: Gate::new(sets.clone()),
            pod_gate: Gate::new(pods.clone()),
            claim_gate: Gate::new(claims.clone()),
            revision_gate: Gate::new(revisions.clone()),
            sets,
            pods,
            claims,
            revisions,
            queue: Queue::default(),
        }
    }

    fn watch(self: Arc<Self>) {
        let queue = self.queue.clone();
        self.sets.on_change(move |change| queue.add(key_of(&**change.object())));
        let controller = self.clone();
        self.pods.on_change(move |change| controller.pod_changed(&change));
        let controller = self.clone();
        self.claims.on_change(move |change| {
            if let Change::Deleted { old } = change {
                controller.claim_deleted(old);
            }
        });
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for seen in change.old().into_iter().chain([pod]) {
            if let Some(reference) = controller_of(&seen.metadata).filter(|reference| reference.kind == "StatefulSet") {
                self.queue.add((namespace.to_owned(), reference.name.clone()));
            }
        }
        let news = change
            .old()
            .is_none_or(|old| old.metadata.labels != pod.metadata.labels || controller_of(&old.metadata).is_some());
        if controller_of(&pod.metadata).is_none() && news && matches!(change, Change::Applied { .. }) {
            for set in self.sets.list_namespace(namespace) {
                if selector_of(&set.spec.selector).is_ok_and(|selector| matches(&selector, &pod.metadata.labels)) {
                    self.queue.add(key_of(&*set));
                }
            }
        }
    }

    /// A pod may wait for the end of its predecessor's claim.
    fn claim_deleted(&self, claim: &PersistentVolumeClaim) {
        let (namespace, name) = key_of(claim);
        for set in self.sets.list_namespace(&namespace) {
            if set.spec.volume_claim_templates.is_some() && name.contains(&format!("-{}-", identity::name_of(&set))) {
                self.queue.add(key_of(&*set));
            }
        }
    }

    async fn gates_opened(&self, key: &ObjectKey) -> Result<()> {
        self.set_gate.opened(key).await?;
        self.pod_gate.opened(key).await?;
        self.claim_gate.opened(key).await?;
        self.revision_gate.opened(key).await?;
        Ok(())
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.gates_opened(key).await?;
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.set_gate.forget(key);
            self.pod_gate.forget(key);
            self.claim_gate.forget(key);
            self.revision_gate.forget(key);
            return Ok(Next::Wait);
        };
        let (pods, revisions) = self.claim_owned(key, &set).await?;
        let keeper = Keeper { client: &self.client, set: &*set, gate: &self.revision_gate, key };
        let update = match keeper.ensure(&revisions).await? {
            Found::Revision(revision) => revision,
            Found::Ended => return Ok(Next::Wait),
            Found::Late => return Err(Error::Waiting("a revision to be seen")),
            Found::Taken => {
                let mut status = set.status.clone().unwrap_or_default();
                status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
                self.write_status(key, &set, status).await?;
                self.queue.add(key.clone());
                return Ok(Next::Wait);
            }
        };
        let named = set.status.as_ref().and_then(|status| status.current_revision.as_deref()).unwrap_or_default();
        let current = revisions.iter().find(|revision| history::name_of(revision) == named).unwrap_or(&update).clone();

        let Plan { steps, status, recheck } = self.plan(&set, &pods, &current, &update);
        let done = self.carry_out(key, &set, steps).await;
        self.write_status(key, &set, status).await?;
        done?;

        let mut live: HashSet<&str> = pods.iter().map(|pod| identity::revision_of(pod)).collect();
        live.extend([history::name_of(&current), history::name_of(&update)]);
        let is_live = |revision: &ControllerRevision| live.contains(history::name_of(revision));
        if set.metadata.deletion_timestamp.is_none() {
            keeper.delete(&history::expired(&*set, &revisions, &is_live)).await?;
        }
        Ok(recheck.map_or(Next::Wait, Next::After))
    }

    fn plan(
        &self,
        set: &StatefulSet,
        pods: &[Arc<Pod>],
        current: &ControllerRevision,
        update: &ControllerRevision,
    ) -> Plan {
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        let claim = |name: &str| self.claims.get(namespace, name);
        plan(&Observed { set, pods, current, update, claim: &claim, now: Timestamp::now() })
    }

    /// The set's pods and revisions after adoption and release. Only pods that bear the set's name can be its own.
    async fn claim_owned(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
    ) -> Result<(Vec<Arc<Pod>>, Vec<Arc<ControllerRevision>>)> {
        let selector = selector_of(&set.spec.selector)?;
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let candidates = self.owned_pods.by(uid).into_iter().chain(self.owned_pods.orphans(&key.0)).collect();
        let Claim { keep, mut adopt, mut release } = claim(&set.metadata, &selector, candidates);
        let is_member = |pod: &Arc<Pod>| identity::ordinal_of(set, pod).is_some();
        let (keep, strangers): (Vec<_>, Vec<_>) = keep.into_iter().partition(is_member);
        adopt.retain(is_member);
        if set.metadata.deletion_timestamp.is_none() {
            release.extend(strangers);
        }
        let claimer = Claimer { client: &self.client, owner: set, gate: &self.pod_gate, key };
        let pods = claimer.carry_out(Claim { keep, adopt, release }).await?;
        let candidates = self.owned_revisions.by(uid).into_iter().chain(self.owned_revisions.orphans(&key.0)).collect();
        let claimer = Claimer { client: &self.client, owner: set, gate: &self.revision_gate, key };
        let revisions = claimer.carry_out(claim(&set.metadata, &selector, candidates)).await?;
        Ok((pods, revisions))
    }

    /// Steps in order; in parallel in batches of 1, 2, 4 …, so that a refusal costs few attempts.
    async fn carry_out(&self, key: &ObjectKey, set: &StatefulSet, steps: Vec<Step>) -> Result<()> {
        let mut batch = 1;
        let mut steps = steps.into_iter().peekable();
        while steps.peek().is_some() {
            let taken: Vec<Step> = steps.by_ref().take(batch).collect();
            let results = join_all(taken.into_iter().map(|step| self.take(key, set, step))).await;
            results.into_iter().collect::<Result<Vec<()>>>()?;
            if is_parallel(set) {
                batch = (batch * 2).min(BURST);
            }
        }
        Ok(())
    }

    async fn take(&self, key: &ObjectKey, set: &StatefulSet, step: Step) -> Result<()> {
        let pods: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        match step {
            Step::Create { pod, claims } => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                self.create_claims(key, set, name, "create", claims).await?;
                match pods.create(&write::post(), &pod).await {
                    Ok(created) => {
                        self.pod_gate.wrote(key, &created);
                        self.tell(set, "create", name, None);
                        Ok(())
                    }
                    Err(error) if client::is_namespace_terminating(&error) => Ok(()),
                    Err(error) => {
                        if !client::is_already_exists(&error) {
                            self.tell(set, "create", name, Some(&text_of(&error)));
                        }
                        Err(error.into())
                    }
                }
            }
            Step::CreateClaims { pod, claims } => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                self.create_claims(key, set, name, "update", claims).await
            }
            Step::Blocked { pod, claim } => {
                self.tell(set, "create", &pod, Some(&format!("pvc {claim} is being deleted")));
                Err(Error::Waiting("a claim's end"))
            }
            Step::Correct(pod) => {
                let name = pod.metadata.name.as_deref().unwrap_or_default();
                let result = pods.replace(name, &write::post(), &pod).await;
                let refusal = result.as_ref().err().map(text_of);
                self.tell(set, "update", name, refusal.as_deref());
                self.pod_gate.wrote(key, &result?);
                Ok(())
            }
            Step::CorrectClaim(claim) => {
                let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.0);
                let name = claim.metadata.name.as_deref().unwrap_or_default();
                if let Some(written) = client::found(api.replace(name, &write::post(), &claim).await)? {
                    self.claim_gate.wrote(key, &written);
                }
                Ok(())
            }
            Step::Delete(pod) => self.delete(key, set, &pods, &pod).await,
        }
    }

    async fn delete(&self, key: &ObjectKey, set: &StatefulSet, pods: &Api<Pod>, pod: &Pod) -> Result<()> {
        let name = pod.metadata.name.as_deref().unwrap_or_default();
        match pods.delete(name, &write::delete_seen(pod)).await {
            Ok(_) => {
                self.tell(set, "delete", name, None);
                self.pod_gate.deleted(key, pod);
                Ok(())
            }
            // Already gone, or another pod has its name: either way this one is deleted.
            Err(error) if client::is_not_found(&error) || client::is_conflict(&error) => {
                self.pod_gate.deleted(key, pod);
                Ok(())
            }
            Err(error) => {
                self.tell(set, "delete", name, Some(&text_of(&error)));
                Err(error.into())
            }
        }
    }

    async fn create_claims(
        &self,
        key: &ObjectKey,
        set: &StatefulSet,
        pod: &str,
        verb: &str,
        claims: Vec<PersistentVolumeClaim>,
    ) -> Result<()> {
        let api: Api<PersistentVolumeClaim> = Api::namespaced(self.client.clone(), &key.0);
        let of = identity::name_of(set);
        for claim in claims {
            let name = claim.metadata.name.as_deref().unwrap_or_default();
            match api.create(&write::post(), &claim).await {
                Ok(created) => {
                    self.claim_gate.wrote(key, &created);
                    let message = format!("create Claim {name} Pod {pod} in StatefulSet {of} success");
                    self.recorder.normal(set, "SuccessfulCreate", message);
                }
                Err(error) if client::is_already_exists(&error) => {}
                Err(error) => {
                    let why = text_of(&error);
                    let message = format!("create Claim {name} for Pod {pod} in StatefulSet {of} failed error: {why}");
                    self.recorder.warning(set, "FailedCreate", message);
                    self.tell(set, verb, pod, Some(&format!("failed to create PVC {name}: {why}")));
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Upstream's event about `verb` (`create`, `update`, `delete`) done to a pod, or refused.
    fn tell(&self, set: &StatefulSet, verb: &str, pod: &str, refusal: Option<&str>) {
        let title = match verb {
            "create" => "Create",
            "update" => "Update",
            _ => "Delete",
        };
        let of = identity::name_of(set);
        match refusal {
            None => {
                let message = format!("{verb} Pod {pod} in StatefulSet {of} successful");
                self.recorder.normal(set, &format!("Successful{title}"), message);
            }
            Some(why) => {
                let message = format!("{verb} Pod {pod} in StatefulSet {of} failed error: {why}");
                self.recorder.warning(set, &format!("Failed{title}"), message);
            }
        }
    }

    async fn write_status(&self, key: &ObjectKey, set: &StatefulSet, status: StatefulSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let updated = StatefulSet { status: Some(status), ..set.clone() };
        let api: Api<StatefulSet> = Api::namespaced(self.client.clone(), &key.0);
        if let Some(written) = client::found(api.replace_status(&key.1, &write::post(), &updated).await)? {
            self.set_gate.wrote(key, &written);
        }
        Ok(())
    }
}
