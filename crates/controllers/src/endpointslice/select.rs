//! Which services select which pods, by indexes: a pod's change costs its labels, a service's change its pods.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use client::{Change, Index, Informer, Informers, ObjectKey, Queue, key_of};
use k8s_openapi::api::core::v1::{Node, Pod, Service};

use crate::pods;

pub const ZONE: &str = "topology.kubernetes.io/zone";

type Labels = BTreeMap<String, String>;

/// The pods and nodes behind services.
#[derive(Clone)]
pub struct Backends {
    pub services: Informer<Service>,
    pub pods: Informer<Pod>,
    pub nodes: Informer<Node>,
    /// Services by one pair of their selector, pods by every label.
    services_by_pair: Index<Service>,
    pods_by_label: Index<Pod>,
    pods_by_node: Index<Pod>,
}

fn index_key(namespace: &str, (name, value): (&String, &String)) -> String {
    format!("{namespace}/{name}={value}")
}

/// A service's selector, if it selects anything that this process is to follow.
pub fn selector(service: &Service) -> Option<&Labels> {
    service.spec.as_ref()?.selector.as_ref().filter(|selector| !selector.is_empty())
}

fn selects(service: &Service, labels: &Labels) -> bool {
    selector(service).is_some_and(|selector| selector.iter().all(|(name, value)| labels.get(name) == Some(value)))
}

impl Backends {
    pub fn new(informers: &Informers) -> Self {
        let (services, pods, nodes) = (informers.of::<Service>(), informers.of::<Pod>(), informers.of::<Node>());
        let services_by_pair = services.index("controllers/selector-pair", |service: &Service| {
            let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
            let pair = selector(service).and_then(|selector| selector.iter().next());
            pair.map(|pair| index_key(namespace, pair)).into_iter().collect()
        });
        let pods_by_label = pods.index("controllers/label", |pod: &Pod| {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            pod.metadata.labels.iter().flatten().map(|pair| index_key(namespace, pair)).collect()
        });
        let pods_by_node = crate::pods::by_node(&pods);
        Backends { services, pods, nodes, services_by_pair, pods_by_label, pods_by_node }
    }

    pub async fn synced(&self) {
        self.services.synced().await;
        self.pods.synced().await;
        self.nodes.synced().await;
    }

    /// The pods that `service` selects, by name.
    pub fn pods_of(&self, service: &Service) -> Vec<Arc<Pod>> {
        let namespace = service.metadata.namespace.as_deref().unwrap_or_default();
        let Some(pair) = selector(service).and_then(|selector| selector.iter().next()) else { return vec![] };
        let mut pods = self.pods_by_label.get(&index_key(namespace, pair));
        let blank = Labels::new();
        pods.retain(|pod| selects(service, pod.metadata.labels.as_ref().unwrap_or(&blank)));
        pods.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
        pods
    }

    fn services_of(&self, pod: &Pod) -> impl Iterator<Item = ObjectKey> {
        let namespace = pod.metadata.namespace.clone().unwrap_or_default();
        let labels = pod.metadata.labels.clone().unwrap_or_default();
        let candidates: Vec<Arc<Service>> =
            labels.iter().flat_map(|pair| self.services_by_pair.get(&index_key(&namespace, pair))).collect();
        candidates.into_iter().filter(move |service| selects(service, &labels)).map(|service| key_of(&*service))
    }

    /// Puts every service into `queue` whose endpoints a change may touch.
    pub fn watch(&self, queue: &Queue<ObjectKey>) {
        let services = queue.clone();
        self.services.on_change(move |change| services.add(key_of(&**change.object())));
        let (backends, pods) = (self.clone(), queue.clone());
        self.pods.on_change(move |change| {
            for key in backends.services_touched(&change) {
                pods.add(key);
            }
        });
        let (backends, nodes) = (self.clone(), queue.clone());
        self.nodes.on_change(move |change| {
            let zone = |node: &Node| node.metadata.labels.as_ref().and_then(|labels| labels.get(ZONE)).cloned();
            let moved = match &change {
                Change::Applied { old, new } => old.is_none_or(|old| zone(old) != zone(new)),
                Change::Deleted { .. } => true,
            };
            if moved {
                let name = change.object().metadata.name.as_deref().unwrap_or_default();
                let pods = backends.pods_by_node.get(name);
                pods.iter().flat_map(|pod| backends.services_of(pod)).for_each(|key| nodes.add(key));
            }
        });
    }

    fn services_touched(&self, change: &Change<'_, Pod>) -> BTreeSet<ObjectKey> {
        if let Change::Applied { old: Some(old), new } = change
            && old.metadata.labels == new.metadata.labels
            && same_endpoint(old, new)
        {
            return BTreeSet::new();
        }
        change.old().into_iter().chain([change.object()]).flat_map(|pod| self.services_of(pod)).collect()
    }
}

/// Nothing that an endpoint shows has changed.
fn same_endpoint(a: &Pod, b: &Pod) -> bool {
    let shown = |pod: &Pod| {
        let spec = pod.spec.as_ref();
        (
            pod.metadata.deletion_timestamp.is_some(),
            pods::is_ready(pod),
            pods::is_finished(pod),
            pod.status.as_ref().and_then(|status| status.pod_ips.clone()),
            spec.and_then(|spec| spec.node_name.clone()),
            spec.and_then(|spec| spec.hostname.clone()),
            spec.and_then(|spec| spec.subdomain.clone()),
        )
    };
    a.metadata.uid == b.metadata.uid && shown(a) == shown(b)
}
