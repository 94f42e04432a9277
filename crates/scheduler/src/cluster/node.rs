//! A node as the scheduler sees it: what it offers and what is taken.

use std::collections::HashMap;
use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node as ApiNode, Taint};

use crate::pod::{HostPort, PodInfo, normal_image};
use crate::resource::{Amounts, amount};
use crate::selector::Labels;

/// What an update of a node changed.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct NodeChange {
    pub allocatable: bool,
    pub labels: bool,
    pub taints: bool,
    pub unschedulable: bool,
    pub images: bool,
}

impl NodeChange {
    pub fn is_empty(&self) -> bool {
        *self == NodeChange::default()
    }
}

/// What the node object says; replaced as a whole when it changes.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Offer {
    pub labels: Labels,
    pub taints: Vec<Taint>,
    pub unschedulable: bool,
    pub allocatable: Amounts,
    pub allocatable_pods: i64,
    /// Sizes in bytes by name.
    pub images: HashMap<String, i64>,
}

impl Offer {
    pub fn new(node: &ApiNode) -> Self {
        let spec = node.spec.as_ref();
        let status = node.status.as_ref();
        let allocatable = status.and_then(|status| status.allocatable.as_ref());
        let images = status.and_then(|status| status.images.as_ref()).into_iter().flatten();
        let named = images.flat_map(|image| {
            let size = image.size_bytes.unwrap_or(0);
            image.names.iter().flatten().map(move |name| (normal_image(name), size))
        });
        Offer {
            labels: node.metadata.labels.clone().unwrap_or_default(),
            taints: spec.and_then(|spec| spec.taints.clone()).unwrap_or_default(),
            unschedulable: spec.and_then(|spec| spec.unschedulable).unwrap_or(false),
            allocatable: allocatable.map(Amounts::of).unwrap_or_default(),
            allocatable_pods: allocatable.and_then(|list| list.get("pods")).map_or(0, |pods| amount("pods", pods)),
            images: named.collect(),
        }
    }

    pub fn changes(&self, new: &Offer) -> NodeChange {
        let resources = |offer: &Offer| (offer.allocatable.clone(), offer.allocatable_pods);
        NodeChange {
            allocatable: resources(self) != resources(new),
            labels: self.labels != new.labels,
            taints: self.taints != new.taints,
            unschedulable: self.unschedulable != new.unschedulable,
            images: self.images != new.images,
        }
    }
}

/// One row of the cluster's table of nodes.
#[derive(Debug)]
pub struct Node {
    /// Index into the table; used again after the node is gone.
    pub slot: u32,
    /// Changes with the offer; never used again.
    pub generation: u64,
    // What every decision reads, side by side.
    pub requested: Amounts,
    pub scored_cpu: i64,
    pub scored_memory: i64,
    pub pods: Vec<Arc<PodInfo>>,
    pub ports: Vec<HostPort>,
    pub offer: Offer,
    pub name: Arc<str>,
    /// Pods that room is being made for here.
    pub nominated: Vec<Arc<PodInfo>>,
}

impl Node {
    pub fn new(slot: u32, name: Arc<str>, generation: u64, offer: Offer) -> Self {
        Node {
            slot,
            generation,
            requested: Amounts::default(),
            scored_cpu: 0,
            scored_memory: 0,
            pods: Vec::new(),
            ports: Vec::new(),
            offer,
            name,
            nominated: Vec::new(),
        }
    }

    pub(super) fn add(&mut self, pod: &Arc<PodInfo>) {
        let requests = &pod.class.requests;
        self.requested += &requests.amounts;
        self.scored_cpu += requests.scored_cpu;
        self.scored_memory += requests.scored_memory;
        self.ports.extend_from_slice(&pod.class.ports);
        self.pods.push(pod.clone());
    }

    pub(super) fn remove(&mut self, uid: &str) {
        let Some(at) = self.pods.iter().position(|pod| &*pod.uid == uid) else { return };
        let pod = self.pods.swap_remove(at);
        let requests = &pod.class.requests;
        self.requested -= &requests.amounts;
        self.scored_cpu -= requests.scored_cpu;
        self.scored_memory -= requests.scored_memory;
        for port in &pod.class.ports {
            if let Some(at) = self.ports.iter().position(|taken| taken == port) {
                self.ports.swap_remove(at);
            }
        }
    }
}
