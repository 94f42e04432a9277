//! Deployments: replace the pods of one template by those of the next, step by step, through replica sets.
//!
//! Must not know: pods, except whether any of an old set are left when a deployment recreates.

mod plan;
mod revision;
mod size;
mod status;
#[cfg(test)]
mod tests;

use std::sync::Arc;

use client::{Change, Context, Gate, Informer, Next, ObjectKey, Queue, Recorder, key_of, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentStatus, ReplicaSet};
use k8s_openapi::api::core::v1::Pod;
use kube::api::Api;

use plan::{Observed, Plan, SetUpdate, plan};

use crate::error::{Result, text_of};
use crate::owner::{Claimer, Owned, claim, controller_of, matches, selector_of};
use crate::{pods, template, write};

const IDENTITY: &str = "deployment-controller";
const WORKERS: usize = 5;

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Arc::new(Controller::new(&context));
    controller.deployments.synced().await;
    controller.sets.synced().await;
    controller.pods.synced().await;
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
    deployments: Informer<Deployment>,
    sets: Informer<ReplicaSet>,
    pods: Informer<Pod>,
    owned_sets: Owned<ReplicaSet>,
    owned_pods: Owned<Pod>,
    own_gate: Gate<Deployment>,
    set_gate: Gate<ReplicaSet>,
    queue: Queue<ObjectKey>,
}

impl Controller {
    fn new(context: &Context) -> Self {
        let client = context.as_controller(IDENTITY);
        let deployments = context.informers.of::<Deployment>();
        let sets = context.informers.of::<ReplicaSet>();
        let pods = context.informers.of::<Pod>();
        Controller {
            recorder: Recorder::new(client.clone(), IDENTITY, ""),
            client,
            owned_sets: Owned::new(&sets),
            owned_pods: Owned::new(&pods),
            own_gate: Gate::new(deployments.clone()),
            set_gate: Gate::new(sets.clone()),
            deployments,
            sets,
            pods,
            queue: Queue::default(),
        }
    }

    fn watch(self: Arc<Self>) {
        let queue = self.queue.clone();
        self.deployments.on_change(move |change| queue.add(key_of(&**change.object())));
        let controller = self.clone();
        self.sets.on_change(move |change| controller.set_changed(&change));
        let controller = self.clone();
        self.pods.on_change(move |change| controller.pod_changed(&change));
    }

    fn set_changed(&self, change: &Change<'_, ReplicaSet>) {
        let set = change.object();
        let namespace = set.metadata.namespace.as_deref().unwrap_or_default();
        for seen in change.old().into_iter().chain([set]) {
            if let Some(reference) = controller_of(&seen.metadata).filter(|reference| reference.kind == "Deployment") {
                self.queue.add((namespace.to_owned(), reference.name.clone()));
            }
        }
        if controller_of(&set.metadata).is_none() && matches!(change, Change::Applied { .. }) {
            for deployment in self.deployments.list_namespace(namespace) {
                if let Ok(selector) = selector_of(&deployment.spec.selector)
                    && matches(&selector, &set.metadata.labels)
                {
                    self.queue.add(key_of(&*deployment));
                }
            }
        }
    }

    /// A deployment that recreates waits for the last old pod to finish or go.
    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let ended = match change {
            Change::Deleted { .. } => true,
            Change::Applied { old, new } => pods::is_finished(new) && old.is_some_and(|old| !pods::is_finished(old)),
        };
        let Some(reference) = controller_of(&pod.metadata).filter(|owner| ended && owner.kind == "ReplicaSet") else {
            return;
        };
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        let set = self.sets.get(namespace, &reference.name);
        let owner = set.as_ref().and_then(|set| controller_of(&set.metadata));
        let deployment = owner.and_then(|owner| self.deployments.get(namespace, &owner.name));
        if let Some(deployment) = deployment.filter(|deployment| recreates(deployment)) {
            self.queue.add(key_of(&*deployment));
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.own_gate.opened(key).await?;
        self.set_gate.opened(key).await?;
        let Some(deployment) = self.deployments.get(&key.0, &key.1) else {
            self.own_gate.forget(key);
            self.set_gate.forget(key);
            return Ok(Next::Wait);
        };
        let selector = selector_of(&deployment.spec.selector)?;
        if selector.selects_all() {
            let message = "This deployment is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*deployment, "SelectingAll", message);
            let mut status = deployment.status.clone().unwrap_or_default();
            status.observed_generation = deployment.metadata.generation;
            self.write_status(key, &deployment, status).await?;
            return Ok(Next::Wait);
        }
        let uid = deployment.metadata.uid.as_deref().unwrap_or_default();
        let candidates = self.owned_sets.by(uid).into_iter().chain(self.owned_sets.orphans(&key.0)).collect();
        let claimer = Claimer { client: &self.client, owner: &*deployment, gate: &self.set_gate, key };
        let sets = claimer.carry_out(claim(&deployment.metadata, &selector, candidates)).await?;
        let plan = self.plan(&deployment, &sets);
        self.carry_out(key, &deployment, plan).await
    }

    fn plan(&self, deployment: &Deployment, sets: &[Arc<ReplicaSet>]) -> Plan {
        let has_pods = |set: &ReplicaSet| {
            let pods = self.owned_pods.by(set.metadata.uid.as_deref().unwrap_or_default());
            pods.iter().any(|pod| !pods::is_finished(pod))
        };
        plan(&Observed { deployment, sets, has_pods: &has_pods, now: Timestamp::now() })
    }

    async fn carry_out(&self, key: &ObjectKey, deployment: &Deployment, plan: Plan) -> Result<Next> {
        if let Some(set) = &plan.create
            && !self.create(key, deployment, set).await?
        {
            return Ok(Next::Wait);
        }
        for update in &plan.updates {
            self.update(key, deployment, update).await?;
        }
        let sets: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.0);
        for set in &plan.delete {
            let name = set.metadata.name.as_deref().unwrap_or_default();
            match sets.delete(name, &write::delete_seen(&**set)).await {
                Ok(_) => self.set_gate.deleted(key, set),
                Err(error) if client::is_not_found(&error) => {}
                Err(error) => return Err(error.into()),
            }
        }
        let annotated = match plan.revision {
            Some(revision) => Some(self.annotate(key, deployment, revision).await?),
            None => None,
        };
        self.write_status(key, annotated.as_ref().unwrap_or(deployment), plan.status).await?;
        Ok(plan.recheck.map_or(Next::Wait, Next::After))
    }

    /// False if this reconcile ends here because the namespace goes or the name is taken by a set of another template.
    async fn create(&self, key: &ObjectKey, deployment: &Deployment, set: &ReplicaSet) -> Result<bool> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.0);
        let name = set.metadata.name.as_deref().unwrap_or_default();
        match api.create(&write::post(), set).await {
            Ok(created) => {
                self.set_gate.wrote(key, &created);
                let replicas = created.spec.replicas.unwrap_or(0);
                if replicas > 0 {
                    let message = format!("Scaled up replica set {name} from 0 to {replicas}");
                    self.recorder.normal(deployment, "ScalingReplicaSet", message);
                }
                Ok(true)
            }
            Err(error) if client::is_already_exists(&error) => self.resolve_collision(key, deployment, name).await,
            Err(error) if client::is_namespace_terminating(&error) => Ok(false),
            Err(error) => {
                let message = format!("Failed to create new replica set \"{name}\": {}", text_of(&error));
                let mut status = deployment.status.clone().unwrap_or_default();
                if status::progress_deadline(deployment).is_some() {
                    let condition = status::condition(
                        status::PROGRESSING,
                        "False",
                        status::SET_CREATE_ERROR,
                        &message,
                        Timestamp::now(),
                    );
                    status::set(status.conditions.get_or_insert_default(), condition);
                    self.write_status(key, deployment, status).await?;
                }
                self.recorder.warning(deployment, "ReplicaSetCreateError", message);
                Err(error.into())
            }
        }
    }

    /// The name exists. If it is our own set, the cache was merely late; if not, the next hash counts the collision.
    async fn resolve_collision(&self, key: &ObjectKey, deployment: &Deployment, name: &str) -> Result<bool> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.0);
        let Some(existing) = client::found(api.get(name).await)? else {
            self.queue.add(key.clone());
            return Ok(false);
        };
        let ours = crate::owner::controller_uid(&existing.metadata) == deployment.metadata.uid.as_deref();
        let same = existing.spec.template.as_ref().is_some_and(|seen| template::same(seen, &deployment.spec.template));
        self.set_gate.wrote(key, &existing);
        if ours && same {
            self.queue.add(key.clone());
            return Ok(false);
        }
        let mut status = deployment.status.clone().unwrap_or_default();
        status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
        self.write_status(key, deployment, status).await?;
        Ok(false)
    }

    async fn update(&self, key: &ObjectKey, deployment: &Deployment, update: &SetUpdate) -> Result<()> {
        let api: Api<ReplicaSet> = Api::namespaced(self.client.clone(), &key.0);
        let name = update.wanted.metadata.name.as_deref().unwrap_or_default();
        // The set's resourceVersion is that of the cache: a set changed meanwhile conflicts, and the step is planned anew.
        let written = api.replace(name, &write::post(), &update.wanted).await?;
        self.set_gate.wrote(key, &written);
        if let Some((before, after)) = update.scaled {
            let direction = if before < after { "up" } else { "down" };
            let message = format!("Scaled {direction} replica set {name} from {before} to {after}");
            self.recorder.normal(deployment, "ScalingReplicaSet", message);
        }
        Ok(())
    }

    async fn annotate(&self, key: &ObjectKey, deployment: &Deployment, revision: String) -> Result<Deployment> {
        let mut updated = deployment.clone();
        updated.metadata.annotations.get_or_insert_default().insert(revision::REVISION.to_owned(), revision);
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.0);
        let written = api.replace(&key.1, &write::post(), &updated).await?;
        self.own_gate.wrote(key, &written);
        Ok(written)
    }

    async fn write_status(&self, key: &ObjectKey, deployment: &Deployment, status: DeploymentStatus) -> Result<()> {
        if deployment.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let updated = Deployment { status: Some(status), ..deployment.clone() };
        let api: Api<Deployment> = Api::namespaced(self.client.clone(), &key.0);
        match api.replace_status(&key.1, &write::post(), &updated).await {
            Ok(written) => self.own_gate.wrote(key, &written),
            Err(error) if client::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}

fn recreates(deployment: &Deployment) -> bool {
    deployment.spec.strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("Recreate")
}
