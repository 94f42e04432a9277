//! What the scheduler knows of a pod, worked out once.
//!
//! Pods made from one template differ in name only, so nearly all of it belongs to a [`Class`] that they share: working it
//! out, and what is remembered about a class and a node, is paid once per template and not once per pod.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::sync::{Arc, Weak};

use k8s_openapi::api::core::v1::{
    Container, ContainerPort, Pod, PodAffinityTerm, PodSpec, Toleration, TopologySpreadConstraint,
    WeightedPodAffinityTerm,
};

use crate::resource::{Requests, is_resizing, requests};
use crate::selector::{LabelMatch, Labels, NodeMatch, NodeTerm, PodMatch, Term};

/// A port of the node that a pod wants for itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct HostPort {
    /// `0.0.0.0` is every address.
    pub ip: String,
    pub protocol: String,
    pub port: i32,
}

impl HostPort {
    pub fn conflicts(&self, other: &HostPort) -> bool {
        const ANY: &str = "0.0.0.0";
        (self.port, &self.protocol) == (other.port, &other.protocol)
            && (self.ip == other.ip || self.ip == ANY || other.ip == ANY)
    }
}

/// How evenly pods are to be spread over the domains of a topology key.
#[derive(Clone, Debug)]
pub struct Spread {
    pub topology_key: Arc<str>,
    pub max_skew: i64,
    pub min_domains: i64,
    /// DoNotSchedule, rather than ScheduleAnyway.
    pub required: bool,
    pub pods: PodMatch,
    /// Whether nodes outside the pod's node affinity do not count, and whether those with untolerated taints do not.
    pub honours_affinity: bool,
    pub honours_taints: bool,
}

impl Spread {
    fn new(constraint: &TopologySpreadConstraint, namespace: &str, labels: &Labels) -> Self {
        let mut pods = LabelMatch::new(constraint.label_selector.as_ref());
        pods.narrow(labels, constraint.match_label_keys.as_ref(), true);
        Spread {
            topology_key: constraint.topology_key.as_str().into(),
            max_skew: constraint.max_skew.into(),
            min_domains: constraint.min_domains.unwrap_or(1).into(),
            required: constraint.when_unsatisfiable == "DoNotSchedule",
            pods: PodMatch::in_namespace(namespace, pods),
            honours_affinity: constraint.node_affinity_policy.as_deref() != Some("Ignore"),
            honours_taints: constraint.node_taints_policy.as_deref() == Some("Honor"),
        }
    }
}

/// The controller that made a pod.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Owner {
    pub kind: String,
    pub name: String,
}

/// What pods of one template have in common, as far as scheduling goes.
#[derive(Debug)]
pub struct Class {
    /// Never used again.
    pub id: u64,
    pub namespace: String,
    pub labels: Labels,
    pub owner: Option<Owner>,
    pub requests: Requests,
    pub ports: Vec<HostPort>,
    pub tolerations: Vec<Toleration>,
    pub node_selector: Labels,
    pub required_nodes: Option<NodeMatch>,
    pub preferred_nodes: Vec<(i64, NodeTerm)>,
    pub affinity: Vec<Term>,
    pub anti_affinity: Vec<Term>,
    pub preferred_affinity: Vec<(i64, Term)>,
    pub preferred_anti_affinity: Vec<(i64, Term)>,
    pub spread: Vec<Spread>,
    pub images: Vec<String>,
    /// The pod that the class was made of, to compare others with.
    exemplar: Arc<Pod>,
}

/// A claim on storage that a pod makes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Claim {
    pub name: String,
    /// Made for this pod by the ephemeral volume controller.
    pub ephemeral: bool,
}

#[derive(Debug)]
pub struct PodInfo {
    pub pod: Arc<Pod>,
    pub class: Arc<Class>,
    pub uid: Arc<str>,
    pub priority: i32,
    pub terminating: bool,
    pub claims: Vec<Claim>,
}

impl PodInfo {
    pub fn name(&self) -> &str {
        self.pod.metadata.name.as_deref().unwrap_or_default()
    }

    pub fn namespace(&self) -> &str {
        &self.class.namespace
    }

    /// The node that the pod runs on, or is to run on.
    pub fn node_name(&self) -> Option<&str> {
        self.pod.spec.as_ref()?.node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// The node that room is being made on for the pod.
    pub fn nominated_node(&self) -> Option<&str> {
        self.pod.status.as_ref()?.nominated_node_name.as_deref().filter(|name| !name.is_empty())
    }

    /// Whether nothing but its class decides where the pod can go: another of its class and priority would fare the same.
    pub fn is_like_its_class(&self) -> bool {
        self.claims.is_empty() && self.nominated_node().is_none()
    }

    pub fn is_gated(&self) -> bool {
        let gates = self.pod.spec.as_ref().and_then(|spec| spec.scheduling_gates.as_ref());
        gates.is_some_and(|gates| !gates.is_empty())
    }
}

/// Makes [`PodInfo`]s, finding the class of each.
#[derive(Default)]
pub struct Classes {
    table: HashMap<u64, Vec<Weak<Class>>>,
    made: u64,
    /// Buckets at which dead classes are swept out.
    sweep_at: usize,
}

impl Classes {
    pub fn info(&mut self, pod: &Arc<Pod>) -> Arc<PodInfo> {
        let meta = &pod.metadata;
        Arc::new(PodInfo {
            class: self.class(pod),
            uid: meta.uid.as_deref().unwrap_or_default().into(),
            priority: pod.spec.as_ref().and_then(|spec| spec.priority).unwrap_or(0),
            terminating: meta.deletion_timestamp.is_some(),
            claims: claims(pod),
            pod: pod.clone(),
        })
    }

    fn class(&mut self, pod: &Arc<Pod>) -> Arc<Class> {
        let hash = rough_hash(pod);
        let bucket = self.table.entry(hash).or_default();
        if let Some(class) = bucket.iter().filter_map(Weak::upgrade).find(|class| same_class(&class.exemplar, pod)) {
            return class;
        }
        self.made += 1;
        let class = Arc::new(compile(pod, self.made));
        bucket.retain(|class| class.strong_count() > 0);
        bucket.push(Arc::downgrade(&class));
        self.sweep();
        class
    }

    fn sweep(&mut self) {
        if self.table.len() <= self.sweep_at.max(64) {
            return;
        }
        self.table.retain(|_, bucket| bucket.iter().any(|class| class.strong_count() > 0));
        self.sweep_at = 2 * self.table.len();
    }
}

/// Equal for pods of one class; cheap.
fn rough_hash(pod: &Pod) -> u64 {
    let mut hasher = DefaultHasher::new();
    pod.metadata.namespace.hash(&mut hasher);
    pod.metadata.labels.hash(&mut hasher);
    owner(pod).hash(&mut hasher);
    for container in pod.spec.iter().flat_map(|spec| &spec.containers) {
        container.image.hash(&mut hasher);
    }
    hasher.finish()
}

fn owner(pod: &Pod) -> Option<(&str, &str)> {
    let owners = pod.metadata.owner_references.as_ref()?;
    owners.iter().find(|owner| owner.controller == Some(true)).map(|owner| (owner.kind.as_str(), owner.name.as_str()))
}

/// Compares all that [`compile`] reads.
fn same_class(a: &Pod, b: &Pod) -> bool {
    let (Some(spec), Some(other)) = (&a.spec, &b.spec) else { return a.spec.is_none() && b.spec.is_none() };
    let same_containers = |a: &[Container], b: &[Container]| {
        a.len() == b.len()
            && a.iter().zip(b).all(|(a, b)| {
                (&a.image, &a.ports, &a.resources, &a.restart_policy)
                    == (&b.image, &b.ports, &b.resources, &b.restart_policy)
            })
    };
    (a.metadata.namespace.as_ref(), a.metadata.labels.as_ref(), owner(a))
        == (b.metadata.namespace.as_ref(), b.metadata.labels.as_ref(), owner(b))
        && (&spec.affinity, &spec.node_selector, &spec.tolerations, &spec.topology_spread_constraints)
            == (&other.affinity, &other.node_selector, &other.tolerations, &other.topology_spread_constraints)
        && (&spec.overhead, &spec.resources, spec.host_network) == (&other.overhead, &other.resources, other.host_network)
        && same_containers(&spec.containers, &other.containers)
        && same_containers(init_containers(spec), init_containers(other))
        // The requests of a pod that is being resized depend on its status.
        && !is_resizing(a)
        && !is_resizing(b)
}

fn init_containers(spec: &PodSpec) -> &[Container] {
    spec.init_containers.as_deref().unwrap_or_default()
}

fn compile(pod: &Arc<Pod>, id: u64) -> Class {
    let namespace = pod.metadata.namespace.clone().unwrap_or_default();
    let labels = pod.metadata.labels.clone().unwrap_or_default();
    let empty = PodSpec::default();
    let spec = pod.spec.as_ref().unwrap_or(&empty);
    let affinity = spec.affinity.as_ref();
    let nodes = affinity.and_then(|affinity| affinity.node_affinity.as_ref());
    let near = affinity.and_then(|affinity| affinity.pod_affinity.as_ref());
    let apart = affinity.and_then(|affinity| affinity.pod_anti_affinity.as_ref());
    let term = |term: &PodAffinityTerm| Term::new(term, &namespace, &labels);
    let weighted = |list: Option<&Vec<WeightedPodAffinityTerm>>| {
        let terms = list.into_iter().flatten();
        terms.map(|preferred| (i64::from(preferred.weight), term(&preferred.pod_affinity_term))).collect()
    };
    let required = |list: Option<&Vec<PodAffinityTerm>>| list.into_iter().flatten().map(term).collect();
    Class {
        id,
        owner: owner(pod).map(|(kind, name)| Owner { kind: kind.to_owned(), name: name.to_owned() }),
        requests: requests(pod),
        ports: host_ports(spec),
        tolerations: spec.tolerations.clone().unwrap_or_default(),
        node_selector: spec.node_selector.clone().unwrap_or_default(),
        required_nodes: nodes
            .and_then(|nodes| nodes.required_during_scheduling_ignored_during_execution.as_ref())
            .map(NodeMatch::new),
        preferred_nodes: nodes
            .and_then(|nodes| nodes.preferred_during_scheduling_ignored_during_execution.as_ref())
            .into_iter()
            .flatten()
            .map(|preferred| (i64::from(preferred.weight), NodeTerm::new(&preferred.preference)))
            .collect(),
        affinity: required(near.and_then(|near| near.required_during_scheduling_ignored_during_execution.as_ref())),
        anti_affinity: required(
            apart.and_then(|apart| apart.required_during_scheduling_ignored_during_execution.as_ref()),
        ),
        preferred_affinity: weighted(
            near.and_then(|near| near.preferred_during_scheduling_ignored_during_execution.as_ref()),
        ),
        preferred_anti_affinity: weighted(
            apart.and_then(|apart| apart.preferred_during_scheduling_ignored_during_execution.as_ref()),
        ),
        spread: spec
            .topology_spread_constraints
            .iter()
            .flatten()
            .map(|spread| Spread::new(spread, &namespace, &labels))
            .collect(),
        images: spec
            .init_containers
            .iter()
            .flatten()
            .chain(&spec.containers)
            .filter_map(|container| container.image.as_deref())
            .map(normal_image)
            .collect(),
        namespace,
        labels,
        exemplar: pod.clone(),
    }
}

fn host_ports(spec: &PodSpec) -> Vec<HostPort> {
    let sidecars =
        spec.init_containers.iter().flatten().filter(|container| container.restart_policy.as_deref() == Some("Always"));
    let ports = spec.containers.iter().chain(sidecars).flat_map(|container| container.ports.iter().flatten());
    let wanted = |port: &ContainerPort| {
        let number = port.host_port.or(spec.host_network.unwrap_or(false).then_some(port.container_port));
        Some(HostPort {
            ip: port.host_ip.clone().filter(|ip| !ip.is_empty()).unwrap_or_else(|| "0.0.0.0".to_owned()),
            protocol: port.protocol.clone().unwrap_or_else(|| "TCP".to_owned()),
            port: number.filter(|number| *number > 0)?,
        })
    };
    ports.filter_map(wanted).collect()
}

/// With the tag that an image without one means, as nodes report it.
pub fn normal_image(name: &str) -> String {
    let last = name.rsplit('/').next().unwrap_or(name);
    if last.contains([':', '@']) { name.to_owned() } else { format!("{name}:latest") }
}

fn claims(pod: &Pod) -> Vec<Claim> {
    let name = pod.metadata.name.as_deref().unwrap_or_default();
    let volumes = pod.spec.iter().flat_map(|spec| spec.volumes.iter().flatten());
    volumes
        .filter_map(|volume| match (&volume.persistent_volume_claim, &volume.ephemeral) {
            (Some(claim), _) => Some(Claim { name: claim.claim_name.clone(), ephemeral: false }),
            (None, Some(_)) => Some(Claim { name: format!("{name}-{}", volume.name), ephemeral: true }),
            (None, None) => None,
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod;

    #[test]
    fn pods_of_one_template_share_a_class() {
        let mut classes = Classes::default();
        let yaml = |name: &str, cpu: &str| {
            format!(
                "metadata: {{name: {name}, namespace: default, labels: {{app: a}}}}\n\
                 spec: {{containers: [{{name: c, image: i, resources: {{requests: {{cpu: {cpu}}}}}}}]}}"
            )
        };
        let one = classes.info(&Arc::new(pod(&yaml("one", "1"))));
        let two = classes.info(&Arc::new(pod(&yaml("two", "1"))));
        let large = classes.info(&Arc::new(pod(&yaml("three", "2"))));
        assert!(Arc::ptr_eq(&one.class, &two.class));
        assert!(!Arc::ptr_eq(&one.class, &large.class));
    }

    #[test]
    fn host_ports_conflict_on_the_same_or_every_address() {
        let port = |ip: &str, protocol: &str, port| HostPort { ip: ip.into(), protocol: protocol.into(), port };
        let taken = port("10.0.0.1", "TCP", 80);
        assert!(taken.conflicts(&port("10.0.0.1", "TCP", 80)));
        assert!(taken.conflicts(&port("0.0.0.0", "TCP", 80)));
        assert!(!taken.conflicts(&port("10.0.0.2", "TCP", 80)));
        assert!(!taken.conflicts(&port("10.0.0.1", "UDP", 80)));
        assert!(!taken.conflicts(&port("10.0.0.1", "TCP", 81)));
    }

    #[test]
    fn an_image_without_a_tag_is_the_latest() {
        assert_eq!(normal_image("host:5000/app"), "host:5000/app:latest");
        assert_eq!(normal_image("app:1"), "app:1");
        assert_eq!(normal_image("app@sha256:00"), "app@sha256:00");
    }
}
