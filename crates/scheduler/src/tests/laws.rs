//! Whatever happened before, a decision is the one that a cluster built from scratch would make: all that is counted and
//! remembered along the way is only faster, never different.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use crate::cluster::Cluster;
use crate::decide::Decider;
use crate::fixture::{node, pod};
use crate::pod::{Classes, PodInfo};

#[derive(Clone, Debug)]
enum Step {
    Node { name: usize, shape: usize },
    NodeGone { name: usize },
    Pod { name: usize, shape: usize, node: usize, terminating: bool },
    PodGone { name: usize },
    Namespace { labelled: bool },
    Decide { shape: usize },
}

const NODES: [&str; 4] = [
    "labels: {zone: a}}\nspec: {",
    "labels: {zone: b}}\nspec: {",
    "labels: {zone: a, disk: ssd}}\nspec: {taints: [{key: k, effect: NoSchedule}]",
    "labels: {disk: ssd}}\nspec: {unschedulable: true",
];

const PODS: [&str; 8] = [
    "labels: {app: x}}\nspec: {containers: [{name: c, resources: {requests: {cpu: 2}}}]",
    "labels: {app: y}}\nspec: {containers: [{name: c, ports: [{containerPort: 1, hostPort: 1}]}], tolerations: [{operator: Exists}]",
    "labels: {app: x}}\nspec: {containers: [], affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {matchLabels: {app: x}}}]}}",
    "labels: {app: y}}\nspec: {containers: [], affinity: {podAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: zone, labelSelector: {matchLabels: {app: x}}}]}}",
    "labels: {app: x}}\nspec: {containers: [], topologySpreadConstraints: [{topologyKey: zone, maxSkew: 1, whenUnsatisfiable: DoNotSchedule, labelSelector: {matchLabels: {app: x}}}]",
    "labels: {app: y}}\nspec: {containers: [], nodeSelector: {disk: ssd}, topologySpreadConstraints: [{topologyKey: kubernetes.io/hostname, maxSkew: 1, whenUnsatisfiable: ScheduleAnyway, labelSelector: {matchLabels: {app: y}}}]",
    "labels: {app: z}}\nspec: {containers: [], affinity: {podAntiAffinity: {preferredDuringSchedulingIgnoredDuringExecution: [{weight: 5, podAffinityTerm: {topologyKey: zone, namespaceSelector: {matchLabels: {team: t}}, labelSelector: {}}}]}}",
    "labels: {app: z}}\nspec: {containers: [], affinity: {podAntiAffinity: {requiredDuringSchedulingIgnoredDuringExecution: [{topologyKey: kubernetes.io/hostname, namespaceSelector: {matchLabels: {team: t}}, labelSelector: {matchLabels: {app: z}}}]}}",
];

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        3 => (0..5usize, 0..NODES.len()).prop_map(|(name, shape)| Step::Node { name, shape }),
        1 => (0..5usize).prop_map(|name| Step::NodeGone { name }),
        5 => (0..12usize, 0..PODS.len(), 0..5usize, prop::bool::weighted(0.2))
            .prop_map(|(name, shape, node, terminating)| Step::Pod { name, shape, node, terminating }),
        2 => (0..12usize).prop_map(|name| Step::PodGone { name }),
        1 => any::<bool>().prop_map(|labelled| Step::Namespace { labelled }),
        5 => (0..PODS.len()).prop_map(|shape| Step::Decide { shape }),
    ]
}

#[derive(Default)]
struct World {
    nodes: BTreeMap<usize, usize>,
    pods: BTreeMap<usize, (Arc<PodInfo>, String)>,
    labelled: bool,
}

fn info(classes: &mut Classes, name: &str, shape: usize, terminating: bool) -> Arc<PodInfo> {
    let deletion = if terminating { "deletionTimestamp: '2026-01-01T00:00:00Z', " } else { "" };
    let yaml = format!("metadata: {{name: {name}, uid: {name}, namespace: default, {deletion}{}}}", PODS[shape]);
    classes.info(&Arc::new(pod(&yaml)))
}

fn set_node(cluster: &mut Cluster, name: usize, shape: usize) {
    let yaml = format!(
        "metadata: {{name: n{name}, {}}}\nstatus: {{allocatable: {{cpu: 4, memory: 1Gi, pods: 4}}}}",
        NODES[shape]
    );
    cluster.set_node(&node(&yaml));
}

fn set_namespace(cluster: &mut Cluster, labelled: bool) {
    let labels = labelled.then(|| ("team".to_owned(), "t".to_owned())).into_iter().collect();
    cluster.set_namespace("default", Some(labels));
}

impl World {
    fn rebuilt(&self) -> Cluster {
        let mut cluster = Cluster::default();
        set_namespace(&mut cluster, self.labelled);
        for (name, shape) in &self.nodes {
            set_node(&mut cluster, *name, *shape);
        }
        for (info, node) in self.pods.values() {
            cluster.place(info, node);
        }
        cluster
    }
}

/// The nodes that suit the pod best, or why there is none.
fn outcome(decider: &mut Decider, cluster: &mut Cluster, pod: &PodInfo) -> Result<Vec<String>, String> {
    let favourites = decider.favourites(cluster, pod).map_err(|diagnosis| diagnosis.message())?;
    let mut names: Vec<_> = favourites.iter().map(|slot| cluster.node(*slot).name.to_string()).collect();
    names.sort();
    Ok(names)
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, ..ProptestConfig::default() })]

    #[test]
    fn what_is_kept_along_the_way_changes_no_decision(steps in prop::collection::vec(step(), 1..60)) {
        let mut classes = Classes::default();
        let (mut world, mut cluster) = (World::default(), Cluster::default());
        let mut decider = Decider::new(crate::plugin::all());
        for step in steps {
            match step {
                Step::Node { name, shape } => {
                    world.nodes.insert(name, shape);
                    set_node(&mut cluster, name, shape);
                }
                Step::NodeGone { name } => {
                    world.nodes.remove(&name);
                    cluster.remove_node(&format!("n{name}"));
                }
                Step::Pod { name, shape, node, terminating } => {
                    let info = info(&mut classes, &format!("p{name}"), shape, terminating);
                    cluster.place(&info, &format!("n{node}"));
                    world.pods.insert(name, (info, format!("n{node}")));
                }
                Step::PodGone { name } => {
                    world.pods.remove(&name);
                    cluster.remove_pod(&format!("p{name}"));
                }
                Step::Namespace { labelled } => {
                    world.labelled = labelled;
                    set_namespace(&mut cluster, labelled);
                }
                Step::Decide { shape } => {
                    let new = info(&mut classes, "new", shape, false);
                    let found = outcome(&mut decider, &mut cluster, &new);
                    let expected = outcome(&mut Decider::new(crate::plugin::all()), &mut world.rebuilt(), &new);
                    prop_assert_eq!(found, expected);
                }
            }
        }
    }
}
