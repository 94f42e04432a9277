//! The scheduler without I/O: changes of objects go in, decisions come out. Pure, with time and randomness from outside.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Instant;

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::rngs::StdRng;

use crate::budget::Budgets;
use crate::cluster::{Cluster, NodeChange};
use crate::decide::{Decider, Decision};
use crate::diagnosis::Diagnosis;
use crate::framework::Event;
use crate::pod::{Classes, PodInfo};
use crate::preempt;
use crate::queue::Queue;

/// What is to be done next.
#[derive(Debug)]
pub enum Next {
    /// Nothing, until something changes or this moment comes.
    Idle(Option<Instant>),
    Bind {
        pod: Arc<PodInfo>,
        node: Arc<str>,
    },
    Report(Failure),
}

/// A pod could not be scheduled.
#[derive(Debug)]
pub struct Failure {
    pub pod: Arc<PodInfo>,
    pub message: String,
    /// Where room is to be made, by removing the victims.
    pub nominated: Option<Arc<str>>,
    pub victims: Vec<Arc<PodInfo>>,
}

/// How a class of pods last failed; the same again while nothing has changed.
struct Remembered {
    version: u64,
    plugins: u32,
    message: String,
}

pub struct Core {
    pub cluster: Cluster,
    pub budgets: Budgets,
    queue: Queue,
    classes: Classes,
    decider: Decider,
    failures: HashMap<(u64, i32), Remembered>,
    scheduler_name: String,
    rng: StdRng,
}

impl Core {
    pub fn new(scheduler_name: &str, rng: StdRng) -> Self {
        Core {
            cluster: Cluster::default(),
            budgets: Budgets::default(),
            queue: Queue::default(),
            classes: Classes::default(),
            decider: Decider::new(crate::plugin::all()),
            failures: HashMap::new(),
            scheduler_name: scheduler_name.to_owned(),
            rng,
        }
    }

    pub fn next(&mut self, now: Instant) -> Next {
        self.queue.advance(now);
        let Some(pod) = self.queue.pop() else { return Next::Idle(self.queue.deadline()) };
        if let Some(failure) = self.failed_before(&pod, now) {
            return Next::Report(failure);
        }
        match self.decider.decide(&mut self.cluster, &pod, &mut self.rng) {
            Decision::Node(slot) => {
                let node = self.cluster.node(slot).name.clone();
                self.cluster.assume(&pod, &node);
                self.queue.placed(&pod, now);
                Next::Bind { pod, node }
            }
            Decision::Nowhere(diagnosis) => Next::Report(self.fail(pod, &diagnosis, now)),
        }
    }

    fn failed_before(&mut self, pod: &Arc<PodInfo>, now: Instant) -> Option<Failure> {
        let remembered = self.failures.get(&(pod.class.id, pod.priority))?;
        if remembered.version != self.cluster.version() || !pod.is_like_its_class() {
            return None;
        }
        let message = remembered.message.clone();
        self.queue.park(&pod.uid, remembered.plugins, now);
        Some(Failure { pod: pod.clone(), message, nominated: None, victims: Vec::new() })
    }

    fn fail(&mut self, pod: Arc<PodInfo>, diagnosis: &Diagnosis, now: Instant) -> Failure {
        self.queue.park(&pod.uid, diagnosis.plugins, now);
        let mut message = diagnosis.message();
        let plugins = self.decider.plugin_names(diagnosis.plugins);
        tracing::debug!(namespace = pod.namespace(), pod = pod.name(), ?plugins, message, "no node for a pod");
        if diagnosis.nodes == 0 {
            return Failure { pod, message, nominated: None, victims: Vec::new() };
        }
        let Core { decider, cluster, budgets, rng, .. } = self;
        match preempt::plan(decider, cluster, &pod, diagnosis, budgets, rng) {
            Ok(plan) => {
                let node = cluster.node(plan.slot).name.clone();
                cluster.nominate(&pod, &node);
                Failure { pod, message, nominated: Some(node), victims: plan.victims }
            }
            Err(why) => {
                message = format!("{message} {why}");
                self.remember(&pod, diagnosis.plugins, &message);
                Failure { pod, message, nominated: None, victims: Vec::new() }
            }
        }
    }

    fn remember(&mut self, pod: &PodInfo, plugins: u32, message: &str) {
        if !pod.is_like_its_class() {
            return;
        }
        let version = self.cluster.version();
        self.failures.retain(|_, remembered| remembered.version == version);
        let remembered = Remembered { version, plugins, message: message.to_owned() };
        self.failures.insert((pod.class.id, pod.priority), remembered);
    }

    /// A decision could not be carried out.
    pub fn binding_failed(&mut self, pod: &PodInfo, now: Instant) {
        let Some(pod) = self.cluster.forget(&pod.uid) else { return };
        if let Some(node) = pod.nominated_node() {
            self.cluster.nominate(&pod, node);
        }
        self.queue.retry(&pod.uid, now);
        self.wake(&Event::PodRemoved(&pod), now);
    }

    pub fn pod_applied(&mut self, old: Option<&Arc<Pod>>, new: &Arc<Pod>, now: Instant) {
        let uid = new.metadata.uid.as_deref().unwrap_or_default();
        if let Some(old) = old.filter(|old| old.metadata.uid != new.metadata.uid) {
            self.pod_deleted(old, now);
        }
        if is_finished(new) {
            self.pod_gone(uid, now);
            return;
        }
        let info = self.classes.info(new);
        match info.node_name() {
            Some(node) => self.pod_placed(&info, node, now),
            None => self.pod_waits(info.clone(), old, now),
        }
    }

    fn pod_placed(&mut self, info: &Arc<PodInfo>, node: &str, now: Instant) {
        self.queue.remove(&info.uid, now);
        let before = (!self.cluster.is_assumed(&info.uid)).then(|| self.cluster.pod(&info.uid).cloned()).flatten();
        let nominated = self.cluster.withdraw(&info.uid);
        self.cluster.place(info, node);
        let same_class = before.as_ref().is_some_and(|before| Arc::ptr_eq(&before.class, &info.class));
        if !same_class {
            self.wake(&Event::PodAssigned(info), now);
        }
        let less = before.is_some_and(|before| !same_class || before.terminating != info.terminating);
        if less || nominated.is_some_and(|pod| pod.nominated_node() != Some(node)) {
            self.wake(&Event::PodRemoved(info), now);
        }
    }

    fn pod_waits(&mut self, info: Arc<PodInfo>, old: Option<&Arc<Pod>>, now: Instant) {
        // Its binding is under way; what comes of it will be heard.
        if self.cluster.is_assumed(&info.uid) {
            return;
        }
        let spec = info.pod.spec.as_ref();
        let name = spec.and_then(|spec| spec.scheduler_name.as_deref()).unwrap_or(&self.scheduler_name);
        if name != self.scheduler_name || info.terminating {
            self.pod_gone(&info.uid, now);
            return;
        }
        match info.nominated_node() {
            Some(node) => self.cluster.nominate(&info, node),
            // The nomination may be younger than this version of the pod, unless the pod had one.
            None if old.is_some_and(|old| has_nomination(old)) => _ = self.cluster.withdraw(&info.uid),
            None => {}
        }
        let relevant = old.is_none_or(|old| {
            (&old.spec, &old.metadata.labels, &old.metadata.annotations)
                != (&info.pod.spec, &info.pod.metadata.labels, &info.pod.metadata.annotations)
        });
        self.queue.set(info, relevant, now);
    }

    pub fn pod_deleted(&mut self, pod: &Pod, now: Instant) {
        self.pod_gone(pod.metadata.uid.as_deref().unwrap_or_default(), now);
    }

    fn pod_gone(&mut self, uid: &str, now: Instant) {
        self.queue.remove(uid, now);
        let nominated = self.cluster.withdraw(uid);
        for pod in nominated.into_iter().chain(self.cluster.remove_pod(uid)) {
            self.wake(&Event::PodRemoved(&pod), now);
        }
    }

    pub fn node_applied(&mut self, node: &Node, now: Instant) {
        let change = self.cluster.set_node(node);
        if change.as_ref().is_some_and(NodeChange::is_empty) {
            return;
        }
        let Core { cluster, queue, decider, .. } = self;
        let Some(slot) = cluster.slot_of(node.metadata.name.as_deref().unwrap_or_default()) else { return };
        let node = cluster.node(slot);
        let event = change.map_or(Event::NodeAdded(node), |change| Event::NodeChanged(node, change));
        wake(queue, decider, cluster, &event, now);
    }

    pub fn node_deleted(&mut self, node: &Node, now: Instant) {
        self.cluster.remove_node(node.metadata.name.as_deref().unwrap_or_default());
        self.wake(&Event::NodeRemoved, now);
    }

    /// Something changed that plugins look up in the cluster; `event` says what.
    pub fn changed(&mut self, event: &Event<'_>, now: Instant) {
        self.cluster.touch();
        self.wake(event, now);
    }

    fn wake(&mut self, event: &Event<'_>, now: Instant) {
        let Core { cluster, queue, decider, .. } = self;
        wake(queue, decider, cluster, event, now);
    }
}

fn wake(queue: &mut Queue, decider: &Decider, cluster: &Cluster, event: &Event<'_>, now: Instant) {
    if queue.has_parked() {
        // Without nodes no plugin was asked, so none can tell: the first node helps.
        let any = matches!(event, Event::NodeAdded(_));
        queue.wake(now, |pod, plugins| if plugins == 0 { any } else { decider.may_help(event, pod, plugins, cluster) });
    }
}

fn has_nomination(pod: &Pod) -> bool {
    pod.status.as_ref().is_some_and(|status| status.nominated_node_name.is_some())
}

fn is_finished(pod: &Pod) -> bool {
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    matches!(phase, Some("Succeeded" | "Failed"))
}
