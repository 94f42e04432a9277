//! Amounts of resources, and what a pod asks for.

use std::collections::BTreeMap;
use std::ops::{AddAssign, SubAssign};

use apimachinery::quantity::Quantity as Amount;
use k8s_openapi::api::core::v1::{Container, Pod, PodCondition, PodSpec};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;

type List = BTreeMap<String, Quantity>;

/// What a container without a request counts as when nodes are compared, so that such pods spread: 100 millicores …
const DEFAULT_CPU_MILLI: i64 = 100;
/// … and 200 MiB.
const DEFAULT_MEMORY_BYTES: i64 = 200 << 20;

/// Amounts of each resource. CPU in millicores, the others in their own units (bytes, pieces).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Amounts {
    pub cpu: i64,
    pub memory: i64,
    pub storage: i64,
    /// Extended resources and huge pages, by name, sorted; nearly always empty.
    pub others: Vec<(String, i64)>,
}

impl Amounts {
    pub fn of(list: &List) -> Self {
        let mut amounts = Amounts::default();
        for (name, quantity) in list {
            amounts.set(name, amount(name, quantity));
        }
        amounts
    }

    pub fn other(&self, name: &str) -> i64 {
        self.others.binary_search_by(|(other, _)| other.as_str().cmp(name)).map_or(0, |at| self.others[at].1)
    }

    pub fn is_zero(&self) -> bool {
        (self.cpu, self.memory, self.storage) == (0, 0, 0) && self.others.iter().all(|(_, value)| *value == 0)
    }

    fn set(&mut self, name: &str, value: i64) {
        match name {
            "cpu" => self.cpu = value,
            "memory" => self.memory = value,
            "ephemeral-storage" => self.storage = value,
            // Not a resource that containers ask for.
            "pods" => {}
            _ => *self.slot(name) = value,
        }
    }

    fn slot(&mut self, name: &str) -> &mut i64 {
        let at = match self.others.binary_search_by(|(other, _)| other.as_str().cmp(name)) {
            Ok(at) => at,
            Err(at) => {
                self.others.insert(at, (name.to_owned(), 0));
                at
            }
        };
        &mut self.others[at].1
    }

    /// The larger of the two for each resource.
    fn raise_to(&mut self, other: &Amounts) {
        self.cpu = self.cpu.max(other.cpu);
        self.memory = self.memory.max(other.memory);
        self.storage = self.storage.max(other.storage);
        for (name, value) in &other.others {
            let slot = self.slot(name);
            *slot = (*slot).max(*value);
        }
    }
}

impl AddAssign<&Amounts> for Amounts {
    fn add_assign(&mut self, other: &Amounts) {
        self.cpu = self.cpu.saturating_add(other.cpu);
        self.memory = self.memory.saturating_add(other.memory);
        self.storage = self.storage.saturating_add(other.storage);
        for (name, value) in &other.others {
            let slot = self.slot(name);
            *slot = slot.saturating_add(*value);
        }
    }
}

impl SubAssign<&Amounts> for Amounts {
    fn sub_assign(&mut self, other: &Amounts) {
        self.cpu -= other.cpu;
        self.memory -= other.memory;
        self.storage -= other.storage;
        for (name, value) in &other.others {
            *self.slot(name) -= *value;
        }
    }
}

/// CPU in millicores, everything else as a whole number, both rounded up. What cannot be read counts as nothing: the API
/// server does not let it in.
pub fn amount(name: &str, quantity: &Quantity) -> i64 {
    let Ok(parsed) = Amount::parse(&quantity.0) else { return 0 };
    if name == "cpu" { parsed.milli_value() } else { parsed.value() }
}

/// What a pod asks a node for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Requests {
    pub amounts: Amounts,
    /// CPU and memory with defaults for containers that name none: for comparing nodes only.
    pub scored_cpu: i64,
    pub scored_memory: i64,
}

/// The requests of a pod: the containers together with the sidecars, or what any step of initialisation needs with the
/// sidecars started before it, whichever is more; pod-level requests take precedence; overhead comes on top.
///
/// While a resize is under way the node must hold the larger of what is wanted and what is still allocated.
pub fn requests(pod: &Pod) -> Requests {
    let Some(spec) = &pod.spec else { return Requests::default() };
    let exact = total(pod, spec, false);
    let scored = total(pod, spec, true);
    Requests { amounts: exact, scored_cpu: scored.cpu, scored_memory: scored.memory }
}

fn total(pod: &Pod, spec: &PodSpec, defaults: bool) -> Amounts {
    let of = |container: &Container| {
        let mut amounts = container_requests(pod, container);
        if defaults {
            let named = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            let names = |name: &str| named.is_some_and(|list| list.contains_key(name));
            amounts.cpu = if names("cpu") { amounts.cpu } else { DEFAULT_CPU_MILLI };
            amounts.memory = if names("memory") { amounts.memory } else { DEFAULT_MEMORY_BYTES };
        }
        amounts
    };
    let mut sum = Amounts::default();
    for container in &spec.containers {
        sum += &of(container);
    }
    let mut sidecars = Amounts::default();
    let mut initialising = Amounts::default();
    for container in spec.init_containers.iter().flatten() {
        let mut step = of(container);
        if container.restart_policy.as_deref() == Some("Always") {
            sum += &step;
            sidecars += &step;
            step = sidecars.clone();
        } else {
            step += &sidecars;
        }
        initialising.raise_to(&step);
    }
    sum.raise_to(&initialising);
    if let Some(list) = spec.resources.as_ref().and_then(|resources| resources.requests.as_ref()) {
        for (name, quantity) in list {
            sum.set(name, amount(name, quantity));
        }
    }
    if let Some(overhead) = &spec.overhead {
        sum += &Amounts::of(overhead);
    }
    sum
}

fn container_requests(pod: &Pod, container: &Container) -> Amounts {
    let list = container.resources.as_ref().and_then(|resources| resources.requests.as_ref());
    let mut amounts = list.map(Amounts::of).unwrap_or_default();
    if is_resizing(pod) {
        // What can never be is not wanted of this node.
        let infeasible = resize_conditions(pod).any(|c| c.reason.as_deref() == Some("Infeasible"));
        let status = pod.status.as_ref();
        let statuses = status.and_then(|status| status.container_statuses.as_ref()).into_iter().flatten();
        let init = status.and_then(|status| status.init_container_statuses.as_ref()).into_iter().flatten();
        if let Some(status) = statuses.chain(init).find(|status| status.name == container.name) {
            if infeasible && status.allocated_resources.is_some() {
                (amounts.cpu, amounts.memory) = (0, 0);
            }
            let running = status.resources.as_ref().and_then(|resources| resources.requests.as_ref());
            for held in status.allocated_resources.iter().chain(running) {
                amounts.raise_to(&Amounts::of(held));
            }
        }
    }
    amounts
}

/// Whether the node does not have the pod's resources as its spec wants them yet, as far as is known.
pub fn is_resizing(pod: &Pod) -> bool {
    resize_conditions(pod).next().is_some() || is_unseen(pod)
}

fn resize_conditions(pod: &Pod) -> impl Iterator<Item = &PodCondition> {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_ref());
    conditions.into_iter().flatten().filter(|condition| {
        matches!(condition.type_.as_str(), "PodResizePending" | "PodResizeInProgress") && condition.status == "True"
    })
}

/// The kubelet has told what it allocated, but has not seen the present spec, which may be a smaller one.
fn is_unseen(pod: &Pod) -> bool {
    let Some(status) = &pod.status else { return false };
    status.observed_generation.is_some_and(|seen| pod.metadata.generation.is_some_and(|now| seen < now))
        && status.container_statuses.iter().flatten().any(|status| status.allocated_resources.is_some())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod;

    fn check(yaml: &str, expected: (i64, i64), scored: (i64, i64)) {
        let requests = requests(&pod(yaml));
        assert_eq!((requests.amounts.cpu, requests.amounts.memory), expected, "{yaml}");
        assert_eq!((requests.scored_cpu, requests.scored_memory), scored, "{yaml}");
    }

    #[test]
    fn a_container_without_requests_counts_in_comparisons_only() {
        check("spec: {containers: [{name: a}]}", (0, 0), (100, 200 << 20));
        check(
            "spec: {containers: [{name: a, resources: {requests: {cpu: 250m}}}, {name: b, resources: {requests: {memory: 1Ki}}}]}",
            (250, 1024),
            (350, (200 << 20) + 1024),
        );
    }

    #[test]
    fn initialisation_needs_the_sidecars_started_before_it() {
        let yaml = "
spec:
  initContainers:
  - {name: big-early, resources: {requests: {cpu: 3, memory: 1}}}
  - {name: sidecar, restartPolicy: Always, resources: {requests: {cpu: 1, memory: 1}}}
  - {name: late, resources: {requests: {cpu: 2500m, memory: 1}}}
  containers:
  - {name: main, resources: {requests: {cpu: 500m, memory: 1}}}
";
        // The late step together with the sidecar is the most: 3.5 cores; the containers with the sidecar are 2 bytes.
        check(yaml, (3500, 2), (3500, 2));
    }

    #[test]
    fn pod_level_requests_replace_and_overhead_adds() {
        let yaml = "
spec:
  overhead: {cpu: 10m, memory: 5}
  resources: {requests: {cpu: 1}}
  containers: [{name: a, resources: {requests: {cpu: 250m, memory: 100, example.com/gpu: 2}}}]
";
        check(yaml, (1010, 105), (1010, 105));
        assert_eq!(requests(&pod(yaml)).amounts.other("example.com/gpu"), 2);
    }

    #[test]
    fn a_resize_under_way_counts_with_the_larger() {
        let yaml = "
spec: {containers: [{name: a, resources: {requests: {cpu: 1, memory: 10}}}]}
status:
  conditions: [{type: PodResizeInProgress, status: 'True'}]
  containerStatuses: [{name: a, allocatedResources: {cpu: 2, memory: 5}, image: '', imageID: '', ready: true, restartCount: 0}]
";
        check(yaml, (2000, 10), (2000, 10));
    }

    #[test]
    fn a_smaller_spec_counts_once_the_node_has_seen_it() {
        let of = |seen: u32| {
            format!(
                "
metadata: {{generation: 2}}
spec: {{containers: [{{name: a, resources: {{requests: {{cpu: 1, memory: 10}}}}}}]}}
status:
  observedGeneration: {seen}
  containerStatuses: [{{name: a, allocatedResources: {{cpu: 2, memory: 10}}, image: '', imageID: '', ready: true, restartCount: 0}}]
"
            )
        };
        check(&of(1), (2000, 10), (2000, 10));
        check(&of(2), (1000, 10), (1000, 10));
    }

    #[test]
    fn an_infeasible_resize_counts_with_what_is_allocated() {
        let yaml = "
spec: {containers: [{name: a, resources: {requests: {cpu: 100, memory: 10}}}]}
status:
  conditions: [{type: PodResizePending, status: 'True', reason: Infeasible}]
  containerStatuses: [{name: a, allocatedResources: {cpu: 2, memory: 5}, image: '', imageID: '', ready: true, restartCount: 0}]
";
        check(yaml, (2000, 5), (2000, 5));
    }
}
