//! Which pods a daemon set creates and deletes, and its status. Pure.

use std::collections::{BTreeMap, HashMap};
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{DaemonSet, DaemonSetStatus};
use k8s_openapi::api::core::v1::{Node, Pod, PodSpec};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::placement::{self, Placement};
use crate::pods::{self, Availability};

/// Pods created or deleted in one reconcile at most.
const BURST: usize = 250;
pub const HASH_LABEL: &str = "controller-revision-hash";
pub const GENERATION_LABEL: &str = "pod-template-generation";
const GENERATION: &str = "deprecated.daemonset.template.generation";

pub struct Observed<'a> {
    pub set: &'a DaemonSet,
    pub nodes: &'a [Arc<Node>],
    /// All pods of the set, those being deleted too.
    pub pods: &'a [Arc<Pod>],
    /// The hash of the newest revision.
    pub hash: &'a str,
    /// How long a node's failed pod is to be left before it is replaced; none if its time has come.
    pub failure_wait: &'a dyn Fn(&str) -> Option<Duration>,
    pub now: Timestamp,
}

#[derive(Debug, Default)]
pub struct Plan {
    /// Nodes that get a pod.
    pub create: Vec<String>,
    pub delete: Vec<Arc<Pod>>,
    /// Those of `delete` that have ended by themselves, with their node.
    pub ended: Vec<(String, Arc<Pod>)>,
    pub status: DaemonSetStatus,
    pub recheck: Option<Duration>,
}

/// The template's generation, as old clients count it.
pub fn template_generation(set: &DaemonSet) -> Option<String> {
    set.metadata.annotations.as_ref()?.get(GENERATION).cloned()
}

pub fn plan(observed: &Observed<'_>) -> Plan {
    let mut step = Step::new(observed);
    step.manage();
    let rolling = observed.set.spec.update_strategy.as_ref().and_then(|s| s.type_.as_deref()) != Some("OnDelete");
    let settled = step.plan.create.is_empty() && step.plan.delete.is_empty();
    if observed.set.metadata.deletion_timestamp.is_some() {
        step.plan.create.clear();
        step.plan.delete.clear();
        step.plan.ended.clear();
    } else if rolling && settled {
        step.roll();
    }
    step.count();
    step.plan.create.truncate(BURST);
    step.plan.delete.truncate(BURST);
    step.plan
}

struct Step<'a> {
    observed: &'a Observed<'a>,
    placements: BTreeMap<&'a str, Placement>,
    /// Oldest first.
    by_node: HashMap<&'a str, Vec<&'a Arc<Pod>>>,
    max_surge: usize,
    max_unavailable: usize,
    plan: Plan,
}

fn is_deleting(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

impl<'a> Step<'a> {
    fn new(observed: &'a Observed<'a>) -> Self {
        let mut spec: PodSpec = observed.set.spec.template.spec.clone().unwrap_or_default();
        placement::add_tolerations(&mut spec);
        let placements: BTreeMap<&str, Placement> = observed
            .nodes
            .iter()
            .filter_map(|node| Some((node.metadata.name.as_deref()?, placement::placement(&spec, node))))
            .collect();
        let mut by_node: HashMap<&str, Vec<&Arc<Pod>>> = HashMap::new();
        for pod in observed.pods {
            by_node.entry(placement::target(pod).unwrap_or_default()).or_default().push(pod);
        }
        for pods in by_node.values_mut() {
            pods.sort_by_key(|pod| {
                (pods::node_name(pod).is_none(), pod.metadata.creation_timestamp.clone(), pod.metadata.name.clone())
            });
        }
        let desired = placements.values().filter(|placement| **placement == Placement::Run).count();
        let (max_surge, max_unavailable) = limits(observed.set, desired);
        Step { observed, placements, by_node, max_surge, max_unavailable, plan: Plan::default() }
    }

    fn is_updated(&self, pod: &Pod) -> bool {
        let label = |name: &str| pod.metadata.labels.as_ref().and_then(|labels| labels.get(name));
        let generation = template_generation(self.observed.set);
        label(HASH_LABEL).map(String::as_str) == Some(self.observed.hash)
            || (generation.is_some() && label(GENERATION_LABEL) == generation.as_ref())
    }

    fn availability(&self, pod: &Pod) -> Availability {
        pods::availability(pod, self.observed.set.spec.min_ready_seconds.unwrap_or(0), self.observed.now)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        self.availability(pod) == Availability::Available
    }

    fn on(&self, node: &str) -> Vec<&'a Arc<Pod>> {
        self.by_node.get(node).cloned().unwrap_or_default()
    }

    fn recheck(&mut self, wait: Duration) {
        self.plan.recheck = Some(self.plan.recheck.map_or(wait, |sooner| sooner.min(wait)));
    }

    /// Brings pods to nodes that lack them, and removes those that have ended, are too many, or do not belong.
    fn manage(&mut self) {
        let placements: Vec<(&str, Placement)> = self.placements.iter().map(|(node, p)| (*node, *p)).collect();
        for (node, placement) in placements {
            let pods = self.on(node);
            match placement {
                Placement::Leave => {
                    self.plan.delete.extend(pods.into_iter().filter(|pod| !is_deleting(pod)).cloned());
                }
                Placement::Run if pods.is_empty() => self.plan.create.push(node.to_owned()),
                Placement::Run | Placement::Stay => self.tend(node, placement, &pods),
            }
        }
        // Pods of nodes that are gone are the pod collector's, unless they were never bound.
        let unbound = self.observed.pods.iter().filter(|pod| {
            let target = placement::target(pod).unwrap_or_default();
            pods::node_name(pod).is_none() && !is_deleting(pod) && !self.placements.contains_key(target)
        });
        self.plan.delete.extend(unbound.cloned());
    }

    /// A node with pods: one runs, or during a surge the old and the new one.
    fn tend(&mut self, node: &str, placement: Placement, pods: &[&Arc<Pod>]) {
        let mut running: Vec<&Arc<Pod>> = Vec::new();
        for pod in pods.iter().copied().filter(|pod| !is_deleting(pod)) {
            match pods::phase(pod) {
                "Failed" => match (self.observed.failure_wait)(node) {
                    Some(wait) => self.recheck(wait),
                    None => self.end(node, pod),
                },
                "Succeeded" => self.end(node, pod),
                _ => running.push(pod),
            }
        }
        if self.max_surge == 0 {
            self.plan.delete.extend(running.into_iter().skip(1).cloned());
            return;
        }
        if running.is_empty() && placement == Placement::Run && pods.iter().all(|pod| is_deleting(pod)) {
            // A surge need not wait for the old pod's end.
            self.plan.create.push(node.to_owned());
            return;
        }
        let (mut new, mut old): (Vec<&Arc<Pod>>, Vec<&Arc<Pod>>) =
            running.into_iter().partition(|pod| self.is_updated(pod));
        let kept_new = (!new.is_empty()).then(|| new.remove(0));
        let kept_old = (!old.is_empty()).then(|| old.remove(0));
        self.plan.delete.extend(new.into_iter().chain(old).cloned());
        if let (Some(new), Some(old)) = (kept_new, kept_old)
            && (!pods::is_ready(old) || self.is_available(new))
        {
            self.plan.delete.push(old.clone());
        }
    }

    fn end(&mut self, node: &str, pod: &Arc<Pod>) {
        self.plan.delete.push(pod.clone());
        self.plan.ended.push((node.to_owned(), pod.clone()));
    }

    /// Replaces old pods as far as the strategy permits.
    fn roll(&mut self) {
        let mut unavailable = 0;
        let mut surging = 0;
        let mut urgent: Vec<(&str, &Arc<Pod>)> = Vec::new();
        let mut candidates: Vec<(&str, &Arc<Pod>)> = Vec::new();
        let nodes: Vec<&str> =
            self.placements.iter().filter(|(_, p)| **p != Placement::Leave).map(|(node, _)| *node).collect();
        for node in nodes {
            let pods = self.on(node).into_iter().filter(|pod| !is_deleting(pod));
            let (new, old): (Vec<_>, Vec<_>) = pods.partition(|pod| self.is_updated(pod));
            match (&new[..], &old[..]) {
                ([], [old]) if !self.is_available(old) => {
                    unavailable += 1;
                    urgent.push((node, old));
                }
                ([], [old]) => candidates.push((node, old)),
                ([new], []) => unavailable += usize::from(!self.is_available(new)),
                // Between two pods, or with too many: for `manage` to settle.
                _ => {
                    unavailable += 1;
                    surging += 1;
                }
            }
        }
        if self.max_surge == 0 {
            let room = self.max_unavailable.saturating_sub(unavailable);
            let chosen = urgent.into_iter().chain(candidates.into_iter().take(room));
            self.plan.delete.extend(chosen.map(|(_, pod)| pod.clone()));
        } else {
            let room = self.max_surge.saturating_sub(surging);
            let chosen = urgent.into_iter().chain(candidates.into_iter().take(room)).map(|(node, _)| node);
            let run = |node: &&str| self.placements.get(*node) == Some(&Placement::Run);
            let nodes: Vec<String> = chosen.filter(run).map(str::to_owned).collect();
            self.plan.create.extend(nodes);
        }
    }

    fn count(&mut self) {
        let mut status = DaemonSetStatus {
            observed_generation: self.observed.set.metadata.generation,
            collision_count: self.observed.set.status.as_ref().and_then(|status| status.collision_count),
            conditions: self.observed.set.status.as_ref().and_then(|status| status.conditions.clone()),
            ..DaemonSetStatus::default()
        };
        let (mut updated, mut available) = (0, 0);
        let placements: Vec<(&str, Placement)> = self.placements.iter().map(|(node, p)| (*node, *p)).collect();
        for (node, placement) in placements {
            let pods = self.on(node);
            if placement != Placement::Run {
                status.number_misscheduled += i32::from(!pods.is_empty());
                continue;
            }
            status.desired_number_scheduled += 1;
            let Some(pod) = pods.first() else { continue };
            status.current_number_scheduled += 1;
            status.number_ready += i32::from(pods::is_ready(pod));
            updated += i32::from(self.is_updated(pod));
            match self.availability(pod) {
                Availability::Available => available += 1,
                Availability::After(wait) => self.recheck(wait),
                Availability::NotReady => {}
            }
        }
        // Zero is absent in these fields.
        let some = |number: i32| Some(number).filter(|number| *number != 0);
        status.updated_number_scheduled = some(updated);
        status.number_available = some(available);
        status.number_unavailable = some(status.desired_number_scheduled - available);
        self.plan.status = status;
    }
}

/// Surge and unavailability as numbers of nodes, both rounded up; at least one of them moves the rollout.
fn limits(set: &DaemonSet, desired: usize) -> (usize, usize) {
    let rolling =
        set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone()).unwrap_or_default();
    let resolve = |value: Option<&IntOrString>, default: usize| match value {
        None => default,
        Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or(0);
            percent.saturating_mul(desired).div_ceil(100)
        }
    };
    let surge = resolve(rolling.max_surge.as_ref(), 0);
    let unavailable = resolve(rolling.max_unavailable.as_ref(), usize::from(surge == 0));
    if surge == 0 && unavailable == 0 { (0, 1) } else { (surge, unavailable) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{now, yaml};

    fn set(strategy: &str) -> DaemonSet {
        yaml(&format!(
            "{{ metadata: {{ name: d, uid: u }}, spec: {{ selector: {{}}, updateStrategy: {strategy}, template: {{ spec: {{ containers: [] }} }} }} }}"
        ))
    }

    fn nodes(lines: &[&str]) -> Vec<Arc<Node>> {
        lines.iter().map(|line| Arc::new(yaml(line))).collect()
    }

    /// `+created -deleted | desired/current/ready/available/updated/misscheduled`
    fn planned(strategy: &str, nodes: &[Arc<Node>], pods: &str) -> String {
        let pods = crate::fixture::pods(pods);
        let set = set(strategy);
        let observed = Observed { set: &set, nodes, pods: &pods, hash: "new", failure_wait: &|_| None, now: now() };
        let plan = plan(&observed);
        let mut words: Vec<String> = plan.create.iter().map(|node| format!("+{node}")).collect();
        let mut deleted: Vec<String> =
            crate::fixture::names(&plan.delete).iter().map(|name| format!("-{name}")).collect();
        deleted.sort();
        words.extend(deleted);
        let s = plan.status;
        let or0 = |n: Option<i32>| n.unwrap_or(0);
        words.push(format!(
            "| {}/{}/{}/{}/{}/{}",
            s.desired_number_scheduled,
            s.current_number_scheduled,
            s.number_ready,
            or0(s.number_available),
            or0(s.updated_number_scheduled),
            s.number_misscheduled
        ));
        words.join(" ")
    }

    const THREE: [&str; 3] = ["{ metadata: { name: a } }", "{ metadata: { name: b } }", "{ metadata: { name: c } }"];

    #[test]
    fn every_node_gets_one_pod() {
        let nodes = nodes(&THREE);
        assert_eq!(planned("{}", &nodes, ""), "+a +b +c | 3/0/0/0/0/0");
        let pods = "{ name: p1, node: a, ready: 5, labels: { controller-revision-hash: new } }
                    { name: p2, node: a, age: -5, labels: { controller-revision-hash: new } }
                    { name: p3, node: b, phase: Failed, labels: { controller-revision-hash: new } }";
        assert_eq!(planned("{}", &nodes, pods), "+c -p2 -p3 | 3/2/1/1/2/0");
    }

    #[test]
    fn pods_leave_nodes_that_they_do_not_tolerate() {
        let nodes = nodes(&[
            "{ metadata: { name: a }, spec: { taints: [{ key: x, effect: NoExecute }] } }",
            "{ metadata: { name: b }, spec: { taints: [{ key: x, effect: NoSchedule }] } }",
        ]);
        let pods = "{ name: p1, node: a, ready: 5 }
                    { name: p2, node: b, ready: 5, labels: { controller-revision-hash: new } }";
        assert_eq!(planned("{}", &nodes, pods), "-p1 | 0/0/0/0/0/2");
    }

    const OLD: &str = "{ name: p1, node: a, ready: 5 }
                       { name: p2, node: b, ready: 5 }
                       { name: p3, node: c, ready: 5 }";

    #[test]
    fn a_rolling_update_takes_down_no_more_than_permitted() {
        let nodes = nodes(&THREE);
        assert_eq!(planned("{}", &nodes, OLD), "-p1 | 3/3/3/3/0/0");
        assert_eq!(planned("{ type: OnDelete }", &nodes, OLD), "| 3/3/3/3/0/0");
        assert_eq!(planned("{ rollingUpdate: { maxUnavailable: 50% } }", &nodes, OLD), "-p1 -p2 | 3/3/3/3/0/0");
        let unhealthy = OLD.replace("node: b, ready: 5", "node: b");
        assert_eq!(planned("{}", &nodes, &unhealthy), "-p2 | 3/3/2/2/0/0", "what does not serve goes first, alone");
        let waiting = OLD.replace("ready: 5 }", "ready: 5, deleting: true }");
        assert_eq!(planned("{}", &nodes, &waiting), "| 3/3/3/3/0/0");
    }

    #[test]
    fn a_surge_starts_the_new_pod_before_the_old_one_goes() {
        let surge = "{ rollingUpdate: { maxSurge: 1, maxUnavailable: 0 } }";
        let nodes = nodes(&THREE);
        assert_eq!(planned(surge, &nodes, OLD), "+a | 3/3/3/3/0/0");
        let starting = format!("{OLD}\n{{ name: n1, node: a, age: -1, labels: {{ controller-revision-hash: new }} }}");
        assert_eq!(planned(surge, &nodes, &starting), "| 3/3/3/3/0/0");
        let started = starting.replace("age: -1,", "age: -1, ready: 1,");
        assert_eq!(planned(surge, &nodes, &started), "-p1 | 3/3/3/3/0/0");
    }
}
