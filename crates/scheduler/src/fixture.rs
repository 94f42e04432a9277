//! Clusters for tests, written as YAML.

use std::sync::Arc;

use k8s_openapi::api::core::v1::{Node, Pod};
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use serde::de::DeserializeOwned;

use crate::budget::Budgets;
use crate::cluster::Cluster;
use crate::decide::{Decider, Decision};
use crate::pod::{Classes, PodInfo};
use crate::preempt;

pub fn parse<T: DeserializeOwned>(yaml: &str) -> T {
    serde_saphyr::from_str(yaml).unwrap_or_else(|error| panic!("{error} in\n{yaml}"))
}

pub fn pod(yaml: &str) -> Pod {
    parse(yaml)
}

/// A node with room for 110 pods and a host name label, unless the text says otherwise.
pub fn node(yaml: &str) -> Node {
    let mut node: Node = parse(yaml);
    let name = node.metadata.name.clone().unwrap_or_default();
    let labels = node.metadata.labels.get_or_insert_default();
    labels.entry("kubernetes.io/hostname".to_owned()).or_insert(name);
    let allocatable = node.status.get_or_insert_default().allocatable.get_or_insert_default();
    for (resource, amount) in [("pods", "110"), ("cpu", "8"), ("memory", "16Gi")] {
        allocatable
            .entry(resource.to_owned())
            .or_insert_with(|| k8s_openapi::apimachinery::pkg::api::resource::Quantity(amount.to_owned()));
    }
    node
}

pub struct Fixture {
    cluster: Cluster,
    decider: Decider,
    classes: Classes,
    budgets: Budgets,
    rng: StdRng,
    made: usize,
}

impl Fixture {
    pub fn new(nodes: &[&str]) -> Self {
        let mut cluster = Cluster::default();
        for yaml in nodes {
            cluster.set_node(&node(yaml));
        }
        Fixture {
            cluster,
            decider: Decider::new(crate::plugin::all()),
            classes: Classes::default(),
            budgets: Budgets::default(),
            rng: StdRng::seed_from_u64(7),
            made: 0,
        }
    }

    fn info(&mut self, yaml: &str) -> Arc<PodInfo> {
        let mut pod = pod(yaml);
        self.made += 1;
        let name = format!("pod-{}", self.made);
        pod.metadata.name.get_or_insert(name.clone());
        pod.metadata.namespace.get_or_insert("default".to_owned());
        pod.metadata.uid.get_or_insert(name);
        self.classes.info(&Arc::new(pod))
    }

    fn decide(&mut self, yaml: &str) -> (Arc<PodInfo>, Decision) {
        let info = self.info(yaml);
        let decision = self.decider.decide(&mut self.cluster, &info, &mut self.rng);
        (info, decision)
    }

    /// The pod is put on a node; returns which.
    pub fn places(&mut self, yaml: &str) -> String {
        match self.decide(yaml) {
            (info, Decision::Node(slot)) => {
                let node = self.cluster.node(slot).name.clone();
                self.cluster.assume(&info, &node);
                node.to_string()
            }
            (_, Decision::Nowhere(diagnosis)) => panic!("{}", diagnosis.message()),
        }
    }

    pub fn schedules(&mut self, yaml: &str, expected: &str) {
        assert_eq!(self.places(yaml), expected, "{yaml}");
    }

    pub fn fails(&mut self, yaml: &str, expected: &str) {
        match self.decide(yaml).1 {
            Decision::Node(slot) => panic!("scheduled on {}", self.cluster.node(slot).name),
            Decision::Nowhere(diagnosis) => assert_eq!(diagnosis.message(), expected),
        }
    }

    /// Node and victims, or why not.
    pub fn preempts(&mut self, yaml: &str) -> Result<(String, Vec<String>), String> {
        let (info, Decision::Nowhere(diagnosis)) = self.decide(yaml) else { panic!("there is room") };
        let Fixture { decider, cluster, budgets, rng, .. } = self;
        let plan = preempt::plan(decider, cluster, &info, &diagnosis, budgets, rng)?;
        let victims = plan.victims.iter().map(|victim| victim.name().to_owned()).collect();
        Ok((self.cluster.node(plan.slot).name.to_string(), victims))
    }

    /// A pod that has its node already.
    pub fn run(&mut self, yaml: &str) {
        let info = self.info(yaml);
        self.cluster.place(&info, info.node_name().expect("the pod names its node"));
    }

    pub fn cordon(&mut self, name: &str) {
        let slot = self.cluster.slot_of(name).expect("the node exists");
        let labels = serde_json::to_string(&self.cluster.node(slot).offer.labels).expect("labels are plain");
        self.cluster
            .set_node(&node(&format!("metadata: {{name: {name}, labels: {labels}}}\nspec: {{unschedulable: true}}")));
    }

    pub fn claim(&mut self, yaml: &str) {
        let claim: k8s_openapi::api::core::v1::PersistentVolumeClaim = parse(yaml);
        let name = claim.metadata.name.clone().unwrap_or_default();
        self.cluster.storage.set_claim("default", &name, Some(&claim));
    }

    pub fn volume(&mut self, yaml: &str) {
        let volume: k8s_openapi::api::core::v1::PersistentVolume = parse(yaml);
        let name = volume.metadata.name.clone().unwrap_or_default();
        self.cluster.storage.set_volume(&name, Some(&volume));
    }

    pub fn service(&mut self, namespace: &str, name: &str, selector: &[(&str, &str)]) {
        let selector = selector.iter().map(|(key, value)| (key.to_string(), value.to_string())).collect();
        self.cluster.workloads.set_service(namespace, name, Some(selector));
    }

    pub fn budget(&mut self, yaml: &str) {
        let budget: k8s_openapi::api::policy::v1::PodDisruptionBudget = parse(yaml);
        let name = budget.metadata.name.clone().unwrap_or_default();
        self.budgets.set("default", &name, Some(&budget));
    }
}
