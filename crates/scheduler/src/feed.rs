//! From the informers into the core: one handler per kind, each telling the core what changed and waking the loop.

use std::sync::Arc;
use std::time::Instant;

use client::{Change, Informer, Informers, Kind};
use k8s_openapi::api::apps::v1::{ReplicaSet, StatefulSet};
use k8s_openapi::api::core::v1::{
    Namespace, Node, PersistentVolume, PersistentVolumeClaim, Pod, ReplicationController, Service,
};
use k8s_openapi::api::policy::v1::PodDisruptionBudget;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta};
use parking_lot::Mutex;
use tokio::sync::Notify;

use crate::core::Core;
use crate::framework::Event;

/// The core, and the bell that says that it has something new.
#[derive(Clone)]
pub struct Feed {
    pub core: Arc<Mutex<Core>>,
    pub bell: Arc<Notify>,
}

impl Feed {
    /// Returns once everything that decisions depend on has been heard of.
    pub async fn start(&self, informers: &Informers) {
        let nodes = self.of(informers, |core: &mut Core, change: Change<'_, Node>, now| match change {
            Change::Applied { new, .. } => core.node_applied(new, now),
            Change::Deleted { old } => core.node_deleted(old, now),
        });
        let namespaces = self.of(informers, namespace);
        let services = self.of(informers, service);
        let replica_sets = self.of(informers, |core: &mut Core, change: Change<'_, ReplicaSet>, now| {
            let selector = |object: &ReplicaSet| Some(object.spec.selector.clone());
            controller(core, "ReplicaSet", &change, selector, now);
        });
        let stateful_sets = self.of(informers, |core: &mut Core, change: Change<'_, StatefulSet>, now| {
            let selector = |object: &StatefulSet| Some(object.spec.selector.clone());
            controller(core, "StatefulSet", &change, selector, now);
        });
        let replication_controllers =
            self.of(informers, |core: &mut Core, change: Change<'_, ReplicationController>, now| {
                controller(core, "ReplicationController", &change, replication_selector, now);
            });
        let claims = self.of(informers, claim);
        let volumes = self.of(informers, volume);
        let budgets = self.of(informers, |core: &mut Core, change: Change<'_, PodDisruptionBudget>, _| {
            let (namespace, name) = names(&change.object().metadata);
            core.budgets.set(namespace, name, present(&change));
        });
        tokio::join!(nodes.synced(), namespaces.synced(), services.synced(), claims.synced(), volumes.synced());
        tokio::join!(replica_sets.synced(), stateful_sets.synced(), replication_controllers.synced(), budgets.synced());
        // Last, so that no pod is judged by half of the facts.
        let pods = self.of(informers, |core: &mut Core, change: Change<'_, Pod>, now| match change {
            Change::Applied { old, new } => core.pod_applied(old, new, now),
            Change::Deleted { old } => core.pod_deleted(old, now),
        });
        pods.synced().await;
    }

    fn of<K: Kind>(
        &self,
        informers: &Informers,
        apply: impl Fn(&mut Core, Change<'_, K>, Instant) + Send + Sync + 'static,
    ) -> Informer<K> {
        let informer = informers.of::<K>();
        let feed = self.clone();
        informer.on_change(move |change| {
            apply(&mut feed.core.lock(), change, Instant::now());
            feed.bell.notify_one();
        });
        informer
    }
}

fn names(meta: &ObjectMeta) -> (&str, &str) {
    (meta.namespace.as_deref().unwrap_or_default(), meta.name.as_deref().unwrap_or_default())
}

fn present<'a, K>(change: &Change<'a, K>) -> Option<&'a K> {
    match change {
        Change::Applied { new, .. } => Some(new),
        Change::Deleted { .. } => None,
    }
}

fn namespace(core: &mut Core, change: Change<'_, Namespace>, now: Instant) {
    let (_, name) = names(&change.object().metadata);
    let labels = present(&change).map(|namespace| namespace.metadata.labels.clone().unwrap_or_default());
    core.cluster.set_namespace(name, labels);
    core.changed(&Event::NamespaceChanged, now);
}

fn service(core: &mut Core, change: Change<'_, Service>, now: Instant) {
    let (namespace, name) = names(&change.object().metadata);
    let selector = |service: &Service| service.spec.as_ref().and_then(|spec| spec.selector.clone());
    let new = present(&change).and_then(selector);
    if change.old().is_none_or(|old| selector(old) != new) {
        core.cluster.workloads.set_service(namespace, name, new);
        core.changed(&Event::WorkloadChanged, now);
    }
}

/// Most changes of a controller are of its status: they say nothing new.
fn controller<K: Kind>(
    core: &mut Core,
    kind: &'static str,
    change: &Change<'_, K>,
    selector: impl Fn(&K) -> Option<LabelSelector>,
    now: Instant,
) {
    let (namespace, name) = names(change.object().meta());
    let new = present(change).and_then(&selector);
    if change.old().is_none_or(|old| selector(old) != new) {
        core.cluster.workloads.set_controller(kind, namespace, name, new.as_ref());
        core.changed(&Event::WorkloadChanged, now);
    }
}

fn replication_selector(object: &ReplicationController) -> Option<LabelSelector> {
    let labels = object.spec.as_ref()?.selector.clone()?;
    Some(LabelSelector { match_labels: Some(labels), match_expressions: None })
}

fn claim(core: &mut Core, change: Change<'_, PersistentVolumeClaim>, now: Instant) {
    let (namespace, name) = names(&change.object().metadata);
    core.cluster.storage.set_claim(namespace, name, present(&change));
    core.changed(&Event::ClaimChanged { namespace, name }, now);
}

fn volume(core: &mut Core, change: Change<'_, PersistentVolume>, now: Instant) {
    let (_, name) = names(&change.object().metadata);
    core.cluster.storage.set_volume(name, present(&change));
    core.changed(&Event::VolumeChanged, now);
}
