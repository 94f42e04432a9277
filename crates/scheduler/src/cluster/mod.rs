//! The cluster as far as scheduling goes: nodes, the pods on them (those just decided included), and the few facts about
//! other objects that plugins ask for. A change costs what the changed object costs.
//!
//! Must not know: plugins, queues, the API.

pub mod node;
pub mod storage;
pub mod tally;
pub mod topology;
pub mod workloads;

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::Node as ApiNode;

use crate::pod::{Class, PodInfo};
use crate::selector::{Labels, Namespaces, PodMatch};
pub use node::{Node, NodeChange, Offer};
use storage::Storage;
use tally::Tally;
use topology::Topology;
use workloads::Workloads;

struct Placed {
    info: Arc<PodInfo>,
    node: Arc<str>,
    /// None while the node is not known.
    slot: Option<u32>,
    /// Decided here, not yet seen from the API server.
    assumed: bool,
}

#[derive(Default)]
pub struct Cluster {
    /// By slot. Free slots hold what was there last.
    table: Vec<Node>,
    /// The slots in use.
    slots: Vec<u32>,
    free: Vec<u32>,
    by_name: HashMap<Arc<str>, u32>,
    pods: HashMap<Arc<str>, Placed>,
    nominations: HashMap<Arc<str>, Arc<str>>,
    /// On how many nodes each image is.
    images: HashMap<String, u32>,
    pub topology: Topology,
    pub tally: Tally,
    pub namespaces: Namespaces,
    pub workloads: Workloads,
    pub storage: Storage,
    generation: u64,
    /// Grows with every change that a decision may depend on.
    version: u64,
}

impl Cluster {
    pub fn version(&self) -> u64 {
        self.version
    }

    /// Something changed that is not kept in the table itself.
    pub fn touch(&mut self) {
        self.version += 1;
    }

    /// Everything that was pretended since `version` has been undone.
    pub fn restore_version(&mut self, version: u64) {
        self.version = version;
    }

    pub fn node_count(&self) -> usize {
        self.slots.len()
    }

    /// The slots of all nodes.
    pub fn slots(&self) -> &[u32] {
        &self.slots
    }

    pub fn node(&self, slot: u32) -> &Node {
        &self.table[slot as usize]
    }

    pub fn nodes(&self) -> impl Iterator<Item = &Node> {
        self.slots.iter().map(|slot| self.node(*slot))
    }

    pub fn slot_of(&self, name: &str) -> Option<u32> {
        self.by_name.get(name).copied()
    }

    pub fn image_nodes(&self, image: &str) -> u32 {
        self.images.get(image).copied().unwrap_or(0)
    }

    /// None if the node is new, else what changed.
    pub fn set_node(&mut self, object: &ApiNode) -> Option<NodeChange> {
        let name = object.metadata.name.as_deref().unwrap_or_default();
        let offer = Offer::new(object);
        let Some(slot) = self.slot_of(name) else {
            self.insert_node(name, offer);
            return None;
        };
        let change = self.node(slot).offer.changes(&offer);
        if change.is_empty() {
            return Some(change);
        }
        self.version += 1;
        self.generation += 1;
        if change.labels {
            self.topology.set_node(slot, &offer.labels);
        }
        if change.images {
            self.count_images(slot, false);
        }
        let generation = self.generation;
        let node = &mut self.table[slot as usize];
        node.offer = offer;
        node.generation = generation;
        if change.images {
            self.count_images(slot, true);
        }
        Some(change)
    }

    fn insert_node(&mut self, name: &str, offer: Offer) {
        self.version += 1;
        self.generation += 1;
        let slot = self.free.pop().unwrap_or(self.table.len() as u32);
        let name: Arc<str> = name.into();
        self.topology.set_node(slot, &offer.labels);
        let node = Node::new(slot, name.clone(), self.generation, offer);
        match self.table.get_mut(slot as usize) {
            Some(row) => *row = node,
            None => self.table.push(node),
        }
        self.slots.push(slot);
        self.by_name.insert(name.clone(), slot);
        self.count_images(slot, true);
        // Pods may be heard of before their node.
        let waiting: Vec<_> = self.pods.values_mut().filter(|placed| placed.node == name).collect();
        for placed in waiting {
            placed.slot = Some(slot);
            self.table[slot as usize].add(&placed.info);
            self.tally.add(&placed.info, slot, &self.namespaces);
        }
    }

    pub fn remove_node(&mut self, name: &str) {
        let Some(slot) = self.by_name.remove(name) else { return };
        self.version += 1;
        for pod in std::mem::take(&mut self.table[slot as usize].pods) {
            self.tally.remove(&pod, slot, &self.namespaces);
            if let Some(placed) = self.pods.get_mut(&pod.uid) {
                placed.slot = None;
            }
        }
        self.count_images(slot, false);
        self.topology.clear_node(slot);
        self.slots.retain(|other| *other != slot);
        self.free.push(slot);
    }

    fn count_images(&mut self, slot: u32, add: bool) {
        for image in self.table[slot as usize].offer.images.keys() {
            match self.images.get_mut(image) {
                Some(count) if add => *count += 1,
                Some(count) if *count > 1 => *count -= 1,
                Some(_) => _ = self.images.remove(image),
                None if add => _ = self.images.insert(image.clone(), 1),
                None => {}
            }
        }
    }

    pub fn pod(&self, uid: &str) -> Option<&Arc<PodInfo>> {
        self.pods.get(uid).map(|placed| &placed.info)
    }

    pub fn is_assumed(&self, uid: &str) -> bool {
        self.pods.get(uid).is_some_and(|placed| placed.assumed)
    }

    /// A pod is on `node`, as the API server says.
    pub fn place(&mut self, info: &Arc<PodInfo>, node: &str) {
        self.put(info, node, false);
    }

    /// A pod is going to be on `node`, as was decided here.
    pub fn assume(&mut self, info: &Arc<PodInfo>, node: &str) {
        self.put(info, node, true);
    }

    fn put(&mut self, info: &Arc<PodInfo>, node: &str, assumed: bool) {
        if let Some(placed) = self.pods.get_mut(&info.uid)
            && &*placed.node == node
            && placed.info.terminating == info.terminating
            && Arc::ptr_eq(&placed.info.class, &info.class)
        {
            // A status was written: nothing that counts has changed.
            placed.assumed &= assumed;
            let slot = placed.slot;
            placed.info = info.clone();
            if let Some(slot) = slot
                && let Some(pod) = self.table[slot as usize].pods.iter_mut().find(|pod| pod.uid == info.uid)
            {
                *pod = info.clone();
            }
            return;
        }
        self.remove_pod(&info.uid);
        self.withdraw(&info.uid);
        let slot = self.slot_of(node);
        if let Some(slot) = slot {
            self.attach(info, slot);
        }
        self.pods.insert(info.uid.clone(), Placed { info: info.clone(), node: node.into(), slot, assumed });
    }

    /// The decision about a pod came to nothing. Returns the pod, unless the API server has confirmed it meanwhile.
    pub fn forget(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        if !self.is_assumed(uid) {
            return None;
        }
        self.remove_pod(uid)
    }

    pub fn remove_pod(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let placed = self.pods.remove(uid)?;
        if let Some(slot) = placed.slot {
            self.detach(&placed.info, slot);
        }
        Some(placed.info)
    }

    /// Counts a pod on a node without keeping it: to see what would be. Undone by [`Cluster::detach`].
    pub fn attach(&mut self, info: &Arc<PodInfo>, slot: u32) {
        self.version += 1;
        self.table[slot as usize].add(info);
        self.tally.add(info, slot, &self.namespaces);
    }

    /// The reverse of [`Cluster::attach`].
    pub fn detach(&mut self, info: &PodInfo, slot: u32) {
        self.version += 1;
        self.table[slot as usize].remove(&info.uid);
        self.tally.remove(info, slot, &self.namespaces);
    }

    /// Room is being made for a pod on `node`; its requests count there for pods of no more priority.
    pub fn nominate(&mut self, info: &Arc<PodInfo>, node: &str) {
        self.withdraw(&info.uid);
        let Some(slot) = self.slot_of(node) else { return };
        self.version += 1;
        self.table[slot as usize].nominated.push(info.clone());
        self.nominations.insert(info.uid.clone(), self.table[slot as usize].name.clone());
    }

    /// Returns the pod if room was being made for it.
    pub fn withdraw(&mut self, uid: &str) -> Option<Arc<PodInfo>> {
        let node = self.nominations.remove(uid)?;
        self.version += 1;
        let slot = self.slot_of(&node)?;
        let nominated = &mut self.table[slot as usize].nominated;
        let at = nominated.iter().position(|pod| &*pod.uid == uid)?;
        Some(nominated.swap_remove(at))
    }

    pub fn has_nominations(&self) -> bool {
        !self.nominations.is_empty()
    }

    pub fn set_namespace(&mut self, name: &str, labels: Option<Labels>) {
        if self.namespaces.labels(name) == labels.as_ref().unwrap_or(&Labels::new()) {
            return;
        }
        self.version += 1;
        self.tally.forget_namespace_dependent();
        self.namespaces.set(name, labels);
    }

    /// Sees to it that `all` are counted.
    pub fn ensure_counted(&mut self, all: &[PodMatch], skip_terminating: bool) {
        let Cluster { tally, table, slots, namespaces, .. } = self;
        let pods = slots.iter().flat_map(|slot| table[*slot as usize].pods.iter().map(|pod| (*slot, pod)));
        tally.ensure(all, skip_terminating, pods, namespaces);
    }

    /// Sees to it that `key` has its column.
    pub fn ensure_column(&mut self, key: &Arc<str>) {
        let Cluster { topology, table, slots, .. } = self;
        topology.ensure(key, slots.iter().map(|slot| (*slot, &table[*slot as usize].offer.labels)));
    }

    /// Sees to it that every topology key of a carried term has its column.
    pub fn ensure_carried_columns(&mut self) {
        let missing: Vec<_> =
            self.tally.topology_keys().filter(|key| self.topology.column(key).is_none()).cloned().collect();
        for key in missing {
            self.ensure_column(&key);
        }
    }

    /// Whether the node has what the class's node selector and node affinity require.
    pub fn in_node_affinity(&self, class: &Class, node: &Node) -> bool {
        let labels = &node.offer.labels;
        class.node_selector.iter().all(|(key, value)| labels.get(key) == Some(value))
            && class.required_nodes.as_ref().is_none_or(|nodes| nodes.matches(&node.name, labels))
    }
}
