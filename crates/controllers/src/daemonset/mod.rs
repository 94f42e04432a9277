//! Daemon sets: one pod on each node that fits, updated node by node.

mod placement;
mod plan;

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use client::{Change, Context, Gate, Informer, Next, ObjectKey, Queue, Recorder, key_of, run_workers};
use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod};
use kube::api::Api;
use parking_lot::Mutex;
use tokio::time::Instant;

use plan::{GENERATION_LABEL, HASH_LABEL, Observed, Plan, plan};

use crate::error::Result;
use crate::history::{self, Found, Keeper};
use crate::owner::{Claimer, Owned, claim, controller_of, matches, selector_of};
use crate::pod_control::{PodControl, pod_from};
use crate::{pods, write};

const IDENTITY: &str = "daemon-set-controller";
const SOURCE: &str = "daemonset-controller";
const WORKERS: usize = 2;
const FAILURE_WAIT_FIRST: Duration = Duration::from_secs(1);
const FAILURE_WAIT_MAX: Duration = Duration::from_secs(15 * 60);

/// Runs the controller until shutdown.
pub async fn run(context: Context) {
    let controller = Arc::new(Controller::new(&context));
    controller.sets.synced().await;
    controller.pods.synced().await;
    controller.nodes.synced().await;
    controller.revisions.synced().await;
    controller.clone().watch();
    let queue = controller.queue.clone();
    run_workers(IDENTITY, queue, WORKERS, context.shutdown, move |key| {
        let controller = controller.clone();
        async move { controller.reconcile(&key).await }
    })
    .await;
}

struct Failure {
    at: Instant,
    wait: Duration,
}

struct Controller {
    client: kube::Client,
    recorder: Recorder,
    control: PodControl,
    sets: Informer<DaemonSet>,
    pods: Informer<Pod>,
    nodes: Informer<Node>,
    revisions: Informer<ControllerRevision>,
    owned_pods: Owned<Pod>,
    owned_revisions: Owned<ControllerRevision>,
    set_gate: Gate<DaemonSet>,
    revision_gate: Gate<ControllerRevision>,
    /// Failures of each set's pods by node, so that a pod that cannot run is not replaced over and over.
    failures: Mutex<HashMap<(ObjectKey, String), Failure>>,
    queue: Queue<ObjectKey>,
}

impl Controller {
    fn new(context: &Context) -> Self {
        let client = context.as_controller(IDENTITY);
        let recorder = Recorder::new(client.clone(), SOURCE, "");
        let sets = context.informers.of::<DaemonSet>();
        let pods = context.informers.of::<Pod>();
        let revisions = context.informers.of::<ControllerRevision>();
        Controller {
            control: PodControl::new(client.clone(), recorder.clone(), &pods),
            recorder,
            client,
            nodes: context.informers.of::<Node>(),
            owned_pods: Owned::new(&pods),
            owned_revisions: Owned::new(&revisions),
            set_gate: Gate::new(sets.clone()),
            revision_gate: Gate::new(revisions.clone()),
            sets,
            pods,
            revisions,
            failures: Mutex::default(),
            queue: Queue::default(),
        }
    }

    fn watch(self: Arc<Self>) {
        let queue = self.queue.clone();
        self.sets.on_change(move |change| queue.add(key_of(&**change.object())));
        let controller = self.clone();
        self.pods.on_change(move |change| controller.pod_changed(&change));
        let controller = self.clone();
        self.nodes.on_change(move |change| controller.node_changed(&change));
    }

    fn pod_changed(&self, change: &Change<'_, Pod>) {
        let pod = change.object();
        let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
        for seen in change.old().into_iter().chain([pod]) {
            if let Some(reference) = controller_of(&seen.metadata).filter(|reference| reference.kind == "DaemonSet") {
                self.queue.add((namespace.to_owned(), reference.name.clone()));
            }
        }
        let news = change.old().is_none_or(|old| old.metadata.labels != pod.metadata.labels);
        if controller_of(&pod.metadata).is_none() && news && matches!(change, Change::Applied { .. }) {
            for set in self.sets.list_namespace(namespace) {
                if selector_of(&set.spec.selector).is_ok_and(|selector| matches(&selector, &pod.metadata.labels)) {
                    self.queue.add(key_of(&*set));
                }
            }
        }
    }

    /// Labels, taints and names decide where daemons run; a node's status does not.
    fn node_changed(&self, change: &Change<'_, Node>) {
        if let Change::Applied { old: Some(old), new } = change
            && old.metadata.labels == new.metadata.labels
            && crate::node::taints_of(old) == crate::node::taints_of(new)
        {
            return;
        }
        self.sets.list().iter().for_each(|set| self.queue.add(key_of(&**set)));
    }

    async fn reconcile(&self, key: &ObjectKey) -> Result<Next> {
        self.set_gate.opened(key).await?;
        self.control.gate.opened(key).await?;
        self.revision_gate.opened(key).await?;
        let Some(set) = self.sets.get(&key.0, &key.1) else {
            self.set_gate.forget(key);
            self.control.gate.forget(key);
            self.revision_gate.forget(key);
            self.failures.lock().retain(|(of, _), _| of != key);
            return Ok(Next::Wait);
        };
        let selector = selector_of(&set.spec.selector)?;
        if selector.selects_all() {
            let message = "This daemon set is selecting all pods. A non-empty selector is required.";
            self.recorder.warning(&*set, "SelectingAll", message);
            return Ok(Next::Wait);
        }
        let uid = set.metadata.uid.as_deref().unwrap_or_default();
        let candidates = self.owned_pods.by(uid).into_iter().chain(self.owned_pods.orphans(&key.0)).collect();
        let claimer = Claimer { client: &self.client, owner: &*set, gate: &self.control.gate, key };
        let pods = claimer.carry_out(claim(&set.metadata, &selector, candidates)).await?;
        let candidates = self.owned_revisions.by(uid).into_iter().chain(self.owned_revisions.orphans(&key.0)).collect();
        let claimer = Claimer { client: &self.client, owner: &*set, gate: &self.revision_gate, key };
        let revisions = claimer.carry_out(claim(&set.metadata, &selector, candidates)).await?;
        if set.metadata.deletion_timestamp.is_some() {
            return Ok(Next::Wait);
        }
        let Some(hash) = self.newest_revision(key, &set, &revisions).await? else { return Ok(Next::Wait) };
        let plan = self.plan(key, &set, &pods, &hash);
        let recheck = plan.recheck;
        let status = plan.status.clone();
        let done = self.carry_out(key, &set, plan, &hash).await;
        self.write_status(key, &set, status).await?;
        done?;
        self.clean_up(key, &set, &pods, &revisions, &hash).await?;
        Ok(recheck.map_or(Next::Wait, Next::After))
    }

    fn plan(&self, key: &ObjectKey, set: &DaemonSet, pods: &[Arc<Pod>], hash: &str) -> Plan {
        let nodes = self.nodes.list();
        let failure_wait = |node: &str| {
            let failures = self.failures.lock();
            let failure = failures.get(&(key.clone(), node.to_owned()))?;
            failure.wait.checked_sub(failure.at.elapsed()).filter(|left| !left.is_zero())
        };
        let now = Timestamp::now();
        plan(&Observed { set, nodes: &nodes, pods, hash, failure_wait: &failure_wait, now })
    }

    /// The hash of the template's revision, which exists afterwards; none if this reconcile ends here.
    async fn newest_revision(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        revisions: &[Arc<ControllerRevision>],
    ) -> Result<Option<String>> {
        let keeper = Keeper { client: &self.client, set, gate: &self.revision_gate, key };
        match keeper.ensure(revisions).await? {
            Found::Revision(revision) => return Ok(Some(history::hash_of::<DaemonSet>(&revision).to_owned())),
            Found::Ended => return Ok(None),
            Found::Late => {}
            Found::Taken => {
                let mut status = set.status.clone().unwrap_or_default();
                status.collision_count = Some(status.collision_count.unwrap_or(0).saturating_add(1));
                self.write_status(key, set, status).await?;
            }
        }
        self.queue.add(key.clone());
        Ok(None)
    }

    async fn carry_out(&self, key: &ObjectKey, set: &DaemonSet, plan: Plan, hash: &str) -> Result<()> {
        for (node, pod) in &plan.ended {
            let name = format!("{}/{}", key.0, pod.metadata.name.as_deref().unwrap_or_default());
            if pods::phase(pod) == "Failed" {
                let message = format!("Found failed daemon pod {name} on node {node}, will try to kill it");
                self.recorder.warning(set, "FailedDaemonPod", message);
                self.note_failure(key, node);
            } else {
                let message = format!("Found succeeded daemon pod {name} on node {node}, will try to delete it");
                self.recorder.normal(set, "SucceededDaemonPod", message);
            }
        }
        self.control.delete(key, set, plan.delete).await?;
        let template = {
            let mut pod = pod_from(set, &set.spec.template);
            placement::add_tolerations(pod.spec.get_or_insert_default());
            let labels = pod.metadata.labels.get_or_insert_default();
            labels.insert(HASH_LABEL.to_owned(), hash.to_owned());
            if let Some(generation) = plan::template_generation(set) {
                labels.insert(GENERATION_LABEL.to_owned(), generation);
            }
            pod
        };
        let pod_for = |index: usize| {
            let mut pod = template.clone();
            placement::pin(pod.spec.get_or_insert_default(), &plan.create[index]);
            pod
        };
        self.control.create(key, set, plan.create.len(), pod_for).await?;
        Ok(())
    }

    fn note_failure(&self, key: &ObjectKey, node: &str) {
        let mut failures = self.failures.lock();
        let failure = failures
            .entry((key.clone(), node.to_owned()))
            .or_insert(Failure { at: Instant::now(), wait: Duration::ZERO });
        // A long time without failure forgives the earlier ones.
        let calm = failure.at.elapsed() > FAILURE_WAIT_MAX * 2;
        let next = if calm { FAILURE_WAIT_FIRST } else { failure.wait * 2 };
        *failure = Failure { at: Instant::now(), wait: next.clamp(FAILURE_WAIT_FIRST, FAILURE_WAIT_MAX) };
    }

    async fn clean_up(
        &self,
        key: &ObjectKey,
        set: &DaemonSet,
        pods: &[Arc<Pod>],
        revisions: &[Arc<ControllerRevision>],
        hash: &str,
    ) -> Result<()> {
        let label = |pod: &Pod| pod.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).cloned();
        let live: std::collections::HashSet<String> = pods.iter().filter_map(|pod| label(pod)).collect();
        let is_live = |revision: &ControllerRevision| {
            let of = history::hash_of::<DaemonSet>(revision);
            of == hash || live.contains(of)
        };
        let keeper = Keeper { client: &self.client, set, gate: &self.revision_gate, key };
        keeper.delete(&history::expired(set, revisions, &is_live)).await
    }

    async fn write_status(&self, key: &ObjectKey, set: &DaemonSet, status: DaemonSetStatus) -> Result<()> {
        if set.status.as_ref() == Some(&status) {
            return Ok(());
        }
        let updated = DaemonSet { status: Some(status), ..set.clone() };
        let api: Api<DaemonSet> = Api::namespaced(self.client.clone(), &key.0);
        match api.replace_status(&key.1, &write::post(), &updated).await {
            Ok(written) => self.set_gate.wrote(key, &written),
            Err(error) if client::is_not_found(&error) => {}
            Err(error) => return Err(error.into()),
        }
        Ok(())
    }
}
