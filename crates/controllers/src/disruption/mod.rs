//! Disruption budgets: how many of the pods that a budget is about may be evicted now (upstream's disruption-controller).
//!
//! The API server takes an eviction from `status.disruptionsAllowed` in the transaction that deletes the pod, and notes the
//! pod, so that this controller does not count it as healthy before it sees the deletion. A status is written only over
//! the version of the budget that it was made from.
//!
//! Pods that were marked as a disruption's target and then stay are unmarked after two minutes.

mod plan;
mod scale;

use std::sync::Arc;
use std::time::Duration;

use client::{Change, Context, Gate, Informer, Kind, Next, ObjectKey, Queue, Recorder, key_of, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::api::policy::v1::{PodDisruptionBudget, PodDisruptionBudgetStatus};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{Api, Patch};
use kube::core::Selector;
use serde_json::json;

use crate::error::{Error, Result};
use crate::owner::{matches, selector_of};
use crate::write;
use scale::{Scales, Unknown};

const IDENTITY: &str = "disruption-controller";
/// The event source has another name than the account.
const SOURCE: &str = "controllermanager";
const WORKERS: usize = 4;
/// A budget that could not be calculated is looked at again, even if nothing tells that it now could.
const RETRY: Duration = Duration::from_secs(30);

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let client = context.as_controller(IDENTITY);
    let budgets = context.informers.of::<PodDisruptionBudget>();
    let controller = Arc::new(Controller {
        recorder: Recorder::new(client.clone(), SOURCE, ""),
        gate: Gate::new(budgets.clone()),
        budgets,
        pods: context.informers.of(),
        scales: Scales::new(&context, client.clone()),
        client,
        queue: Queue::default(),
        stale: Queue::default(),
    });
    controller.budgets.synced().await;
    controller.pods.synced().await;
    controller.scales.synced().await;
    controller.clone().watch();
    let (counting, unmarking) = (controller.clone(), controller.clone());
    let count = run_workers(IDENTITY, controller.queue.clone(), WORKERS, context.shutdown.clone(), move |key| {
        let controller = counting.clone();
        async move { controller.reconcile(&key).await }
    });
    let unmark = run_workers(IDENTITY, controller.stale.clone(), 1, context.shutdown, move |key| {
        let controller = unmarking.clone();
        async move { controller.unmark(&key).await }
    });
    tokio::join!(count, unmark);
}

/// A selector of a budget; an absent one selects nothing, an empty one the whole namespace.
fn selector(budget: &PodDisruptionBudget) -> Result<Option<Selector>> {
    budget.spec.as_ref().and_then(|spec| spec.selector.as_ref()).map(selector_of).transpose()
}

fn selects(budget: &PodDisruptionBudget, pod: &Pod) -> bool {
    selector(budget).is_ok_and(|selector| selector.is_some_and(|selector| matches(&selector, &pod.metadata.labels)))
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    budgets: Informer<PodDisruptionBudget>,
    pods: Informer<Pod>,
    scales: Scales,
    gate: Gate<PodDisruptionBudget>,
    queue: Queue<ObjectKey>,
    /// Pods that may have to be unmarked.
    stale: Queue<ObjectKey>,
}

impl Controller {
    fn watch(self: Arc<Self>) {
        let queue = self.queue.clone();
        self.budgets.on_change(move |change| queue.add(key_of(&**change.object())));
        self.watch_owners(&self.scales.sets, |set| set.spec.replicas);
        self.watch_owners(&self.scales.deployments, |deployment| deployment.spec.replicas);
        self.watch_owners(&self.scales.stateful, |set| set.spec.replicas);
        self.watch_owners(&self.scales.controllers, |rc| rc.spec.as_ref().and_then(|spec| spec.replicas));
        let controller = self.clone();
        self.pods.on_change(move |change| controller.pod_changed(&change));
    }

    /// Wakes the budgets of a namespace in which an owner wants another number of pods.
    fn watch_owners<K: Kind>(&self, owners: &Informer<K>, replicas: fn(&K) -> Option<i32>) {
        let (budgets, queue) = (self.budgets.clone(), self.queue.clone());
        owners.on_change(move |change: Change<'_, K>| {
            if let Change::Applied { old, new } = change
                && old.is_none_or(|old| replicas(old) != replicas(new))
            {
                let namespace = new.meta().namespace.as_deref().unwrap_or_default();
                budgets.list_namespace(namespace).iter().for_each(|budget| queue.add(key_of(&**budget)));
            }
        });
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let budgets = self.budgets.list_namespace(pod.metadata.namespace.as_deref().unwrap_or_default());
        let concerns = |budget: &&Arc<PodDisruptionBudget>| {
            selects(budget, pod) || change.old().is_some_and(|old| selects(budget, old))
        };
        budgets.iter().filter(concerns).for_each(|budget| self.queue.add(key_of(&**budget)));
        if let Change::Applied { new, .. } = change
            && let Some(wait) = plan::stale_after(new, Timestamp::now())
        {
            self.stale.add_after(key_of(&***new), wait);
        }
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.gate.opened(key).await?;
        let Some(budget) = self.budgets.get(&key.0, &key.1) else {
            self.gate.forget(key);
            return Ok(Next::Wait);
        };
        match self.calculate(key, &budget).await {
            Ok(next) => Ok(next),
            Err(Unknown::Now(error)) => Err(error),
            Err(Unknown::Never(why)) => {
                if let Some(status) = plan::failed(&budget, &why, Timestamp::now()) {
                    let message = format!("Failed to calculate the number of expected pods: {why}");
                    self.recorder.warning(&*budget, "CalculateExpectedPodCountFailed", message);
                    self.write(key, &budget, status).await?;
                }
                Ok(Next::After(RETRY))
            }
        }
    }

    async fn calculate(&self, key: &ObjectKey, budget: &PodDisruptionBudget) -> Result<Next, Unknown> {
        let selector = selector(budget).map_err(|error| Unknown::Never(error.to_string()))?;
        let mut selected = self.pods.list_namespace(&key.0);
        selected.retain(|pod| selector.as_ref().is_some_and(|selector| matches(selector, &pod.metadata.labels)));
        let owners = match plan::needs_scale(budget) {
            true => self.scales.of(&key.0, &selected).await?,
            false => scale::Owners::default(),
        };
        let expected = plan::expected(budget, owners.scale, selected.len()).map_err(Unknown::Never)?;
        let now = Timestamp::now();
        let unnoticed = plan::unnoticed(budget, &selected, now);
        if let Some(status) = plan::status(budget, &selected, expected, &unnoticed, now) {
            self.tell(key, budget, &selected, owners.unmanaged, &unnoticed.lost);
            self.write(key, budget, status).await?;
        }
        let wait = unnoticed.until.map(|until| Duration::try_from(until.duration_since(now)).unwrap_or_default());
        Ok(wait.map_or(Next::Wait, |wait| Next::After(wait + Duration::from_secs(1))))
    }

    fn tell(
        &self,
        key: &ObjectKey,
        budget: &PodDisruptionBudget,
        selected: &[Arc<Pod>],
        unmanaged: usize,
        lost: &[Arc<Pod>],
    ) {
        if selected.is_empty() {
            self.recorder.normal(budget, "NoPods", "No matching pods found");
        }
        if unmanaged > 0 {
            let message = format!(
                "{unmanaged} of the pods that this budget selects have no controller and are not counted as expected; \
                 a number in .spec.minAvailable takes account of them"
            );
            self.recorder.warning(budget, "UnmanagedPods", message);
        }
        for pod in lost {
            let message = format!("Pod was expected by PDB {}/{} to be deleted but it wasn't", key.0, key.1);
            self.recorder.warning(&**pod, "NotDeleted", message);
        }
    }

    async fn write(
        &self,
        key: &ObjectKey,
        budget: &PodDisruptionBudget,
        status: PodDisruptionBudgetStatus,
    ) -> Result<()> {
        let mut updated = budget.clone();
        updated.status = Some(status);
        let api: Api<PodDisruptionBudget> = Api::namespaced(self.client.clone(), &key.0);
        match api.replace_status(&key.1, &write::post(), &updated).await {
            Ok(written) => self.gate.wrote(key, &written),
            Err(error) if client::is_not_found(&error) => {}
            Err(error) => return Err(Error::from(error)),
        }
        Ok(())
    }

    /// Takes back that a pod is a disruption's target, when it has stayed for too long.
    async fn unmark(&self, key: &ObjectKey) -> Result<Next> {
        let Some(pod) = self.pods.get(&key.0, &key.1) else { return Ok(Next::Wait) };
        let now = Timestamp::now();
        match plan::stale_after(&pod, now) {
            None => return Ok(Next::Wait),
            Some(wait) if !wait.is_zero() => return Ok(Next::After(wait)),
            Some(_) => {}
        }
        let condition = json!({
            "type": "DisruptionTarget", "status": "False", "reason": null, "message": null,
            "observedGeneration": pod.metadata.generation, "lastTransitionTime": Time(now),
        });
        let metadata = json!({ "uid": pod.metadata.uid, "resourceVersion": pod.metadata.resource_version });
        let patch = Patch::Strategic(json!({ "metadata": metadata, "status": { "conditions": [condition] } }));
        let api: Api<Pod> = Api::namespaced(self.client.clone(), &key.0);
        client::found(api.patch_status(&key.1, &write::patch(), &patch).await)?;
        Ok(Next::Wait)
    }
}
