//! InterPodAffinity: pods near or far from other pods, by required and preferred terms of their own, and of those others.
//!
//! Both the pods that match a term and the pods that carry one are counted per node by the cluster; a decision sums them up per
//! domain, so its cost does not depend on how many pods there are.

use std::collections::HashMap;

use crate::cluster::Cluster;
use crate::cluster::Node;
use crate::cluster::tally::{Counts, Heed};
use crate::cluster::topology::{Column, NO_DOMAIN};
use crate::framework::{Begin, Event, MAX_SCORE, Pass, Plugin, Rejection};
use crate::pod::PodInfo;
use crate::selector::{PodMatch, Term};

/// What a required affinity term of a pod on a node counts as a wish for a new pod.
const REQUIRED_WEIGHT: i64 = 1;

pub struct InterPodAffinity;

impl Plugin for InterPodAffinity {
    fn name(&self) -> &'static str {
        "InterPodAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn prepare(&self, pod: &PodInfo, cluster: &mut Cluster) {
        let class = &pod.class;
        let preferred = class.preferred_affinity.iter().chain(&class.preferred_anti_affinity).map(|(_, term)| term);
        for term in class.affinity.iter().chain(&class.anti_affinity).chain(preferred.clone()) {
            cluster.ensure_column(&term.topology_key);
        }
        for term in class.anti_affinity.iter().chain(preferred) {
            cluster.ensure_counted(std::slice::from_ref(&term.pods), false);
        }
        if !class.affinity.is_empty() {
            cluster.ensure_counted(&all_of(&class.affinity), false);
        }
        cluster.ensure_carried_columns();
    }

    fn begin<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Begin<'a> {
        let near = near(pod, cluster);
        let apart = pod.class.anti_affinity.iter().filter_map(|term| Domains::matching(cluster, term)).collect();
        let mut forbidden = Vec::new();
        let mut wishes = Wishes::default();
        for carried in cluster.tally.heeded(pod, &cluster.namespaces) {
            let Some(column) = cluster.topology.column(&carried.term.topology_key) else { continue };
            match carried.heed {
                Heed::Away => forbidden.push(Domains::of(cluster, column, &carried.counts)),
                Heed::Needs => wishes.add(cluster, &carried.term, column, &carried.counts, REQUIRED_WEIGHT),
                Heed::Weight(weight) => wishes.add(cluster, &carried.term, column, &carried.counts, weight),
            }
        }
        let wanted = pod.class.preferred_affinity.iter().map(|(weight, term)| (*weight, term));
        let unwanted = pod.class.preferred_anti_affinity.iter().map(|(weight, term)| (-*weight, term));
        for (weight, term) in wanted.chain(unwanted) {
            let column = cluster.topology.column(&term.topology_key);
            if let Some((column, counts)) = column.zip(matching(cluster, std::slice::from_ref(&term.pods))) {
                wishes.add(cluster, term, column, counts, weight);
            }
        }
        let wishes: Vec<_> = wishes.0.into_values().collect();
        let affinity = Affinity { near, apart, forbidden, wishes };
        if affinity.filters() || affinity.scores() { Begin::run(affinity) } else { Begin::Skip }
    }

    fn may_help(&self, event: &Event<'_>, pod: &PodInfo, cluster: &Cluster) -> bool {
        let matches = |terms: &[Term], other: &PodInfo| {
            let class = &other.class;
            terms.iter().any(|term| term.pods.matches(&class.namespace, &class.labels, &cluster.namespaces))
        };
        match event {
            Event::PodAssigned(other) => matches(&pod.class.affinity, other),
            Event::PodRemoved(other) => {
                matches(&pod.class.anti_affinity, other) || matches(&other.class.anti_affinity, pod)
            }
            Event::NodeAdded(_) | Event::NamespaceChanged => true,
            Event::NodeChanged(_, change) => change.labels,
            _ => false,
        }
    }
}

fn all_of(terms: &[Term]) -> Vec<PodMatch> {
    terms.iter().map(|term| term.pods.clone()).collect()
}

fn matching<'a>(cluster: &'a Cluster, all: &[PodMatch]) -> Option<&'a Counts> {
    cluster.tally.counts(all, false)
}

/// A number for each domain of a topology key.
struct Domains<'a> {
    column: &'a Column,
    sums: Vec<i64>,
}

impl<'a> Domains<'a> {
    fn of(cluster: &Cluster, column: &'a Column, counts: &Counts) -> Self {
        Domains { column, sums: column.sum(cluster.slots().iter().copied(), |slot| counts.at(slot)) }
    }

    fn matching(cluster: &'a Cluster, term: &Term) -> Option<Self> {
        let column = cluster.topology.column(&term.topology_key)?;
        Some(Domains::of(cluster, column, matching(cluster, std::slice::from_ref(&term.pods))?))
    }

    /// None if the node is in no domain.
    fn at(&self, node: &Node) -> Option<i64> {
        let domain = self.column.domain(node.slot);
        (domain != NO_DOMAIN).then(|| self.sums[domain as usize])
    }
}

/// What the wishes for a topology key add up to in each of its domains.
#[derive(Default)]
struct Wishes<'a>(HashMap<&'a str, Domains<'a>>);

impl<'a> Wishes<'a> {
    fn add(&mut self, cluster: &Cluster, term: &'a Term, column: &'a Column, counts: &Counts, weight: i64) {
        if counts.total() == 0 || weight == 0 {
            return;
        }
        let fresh = || Domains { column, sums: vec![0; column.domain_count()] };
        let wishes = self.0.entry(&term.topology_key).or_insert_with(fresh);
        let added = Domains::of(cluster, column, counts);
        for (sum, count) in wishes.sums.iter_mut().zip(added.sums) {
            *sum += weight * count;
        }
    }
}

/// The required affinity terms.
struct Near<'a> {
    /// By term: the pods that match all terms.
    terms: Vec<Domains<'a>>,
    /// There is no such pod yet, and the pod itself is one: the first of its kind may go anywhere.
    first: bool,
}

fn near<'a>(pod: &PodInfo, cluster: &'a Cluster) -> Option<Near<'a>> {
    let class = &pod.class;
    if class.affinity.is_empty() {
        return None;
    }
    let counts = matching(cluster, &all_of(&class.affinity))?;
    let domains = |term: &Term| Some(Domains::of(cluster, cluster.topology.column(&term.topology_key)?, counts));
    let terms: Vec<_> = class.affinity.iter().filter_map(domains).collect();
    let none = terms.iter().all(|domains| domains.sums.iter().all(|sum| *sum == 0));
    let matches = |term: &Term| term.pods.matches(&class.namespace, &class.labels, &cluster.namespaces);
    Some(Near { first: none && class.affinity.iter().all(matches), terms })
}

struct Affinity<'a> {
    near: Option<Near<'a>>,
    apart: Vec<Domains<'a>>,
    /// Where there are pods that will not have this one near.
    forbidden: Vec<Domains<'a>>,
    wishes: Vec<Domains<'a>>,
}

impl Pass for Affinity<'_> {
    fn filters(&self) -> bool {
        self.near.is_some() || !self.apart.is_empty() || !self.forbidden.is_empty()
    }

    fn check(&self, node: &Node) -> Result<(), Rejection> {
        if let Some(near) = &self.near {
            let found = near.terms.iter().all(|domains| domains.at(node).is_some_and(|count| count > 0 || near.first));
            if !found {
                return Err(Rejection::final_("node(s) didn't match pod affinity rules"));
            }
        }
        let occupied = |domains: &Domains<'_>| domains.at(node).is_some_and(|count| count > 0);
        if self.apart.iter().any(occupied) {
            return Err(Rejection::resolvable("node(s) didn't match pod anti-affinity rules"));
        }
        if self.forbidden.iter().any(occupied) {
            return Err(Rejection::resolvable("node(s) didn't satisfy existing pods anti-affinity rules"));
        }
        Ok(())
    }

    fn scores(&self) -> bool {
        !self.wishes.is_empty()
    }

    fn score(&self, node: &Node) -> i64 {
        self.wishes.iter().filter_map(|domains| domains.at(node)).sum()
    }

    fn normalise(&self, scores: &mut [i64]) {
        let least = scores.iter().copied().min().unwrap_or(0);
        let range = scores.iter().copied().max().unwrap_or(0) - least;
        for score in scores {
            *score = if range == 0 { 0 } else { (MAX_SCORE as f64 * ((*score - least) as f64 / range as f64)) as i64 };
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::Fixture;

    fn nodes() -> Fixture {
        Fixture::new(&[
            "metadata: {name: a1, labels: {zone: a}}",
            "metadata: {name: a2, labels: {zone: a}}",
            "metadata: {name: b1, labels: {zone: b}}",
        ])
    }

    fn pod(labels: &str, kind: &str, key: &str) -> String {
        format!(
            "metadata: {{labels: {{{labels}}}}}\nspec:\n  containers: [{{name: c}}]\n  affinity: {{{kind}: \
             {{requiredDuringSchedulingIgnoredDuringExecution: [{{topologyKey: {key}, labelSelector: {{matchLabels: {{app: x}}}}}}]}}}}"
        )
    }

    fn running(name: &str, node: &str) -> String {
        format!(
            "metadata: {{name: {name}, namespace: default, labels: {{app: x}}}}\nspec: {{nodeName: {node}, containers: [{{name: c}}]}}"
        )
    }

    #[test]
    fn affinity_follows_and_the_first_of_its_kind_goes_anywhere() {
        let mut fixture = nodes();
        let stranger = pod("app: y", "podAffinity", "zone");
        fixture.fails(&stranger, "0/3 nodes are available: 3 node(s) didn't match pod affinity rules.");
        let first = fixture.places(&pod("app: x", "podAffinity", "kubernetes.io/hostname"));
        fixture.schedules(&pod("app: x", "podAffinity", "kubernetes.io/hostname"), &first);
        let followed = fixture.places(&stranger);
        assert_eq!(followed.starts_with('a'), first.starts_with('a'));
    }

    #[test]
    fn anti_affinity_works_both_ways() {
        let mut fixture = nodes();
        fixture.run(&running("one", "a1"));
        fixture.schedules(&pod("app: y", "podAntiAffinity", "zone"), "b1");
        // The pod on b1 will not have one labelled x in its zone.
        fixture.cordon("a2");
        fixture.cordon("a1");
        fixture.fails(
            "metadata: {labels: {app: x}}\nspec: {containers: [{name: c}]}",
            "0/3 nodes are available: 1 node(s) didn't satisfy existing pods anti-affinity rules, 2 node(s) were unschedulable.",
        );
    }

    #[test]
    fn one_per_node_fills_all_nodes_and_no_more() {
        let mut fixture = nodes();
        let pod = pod("app: x", "podAntiAffinity", "kubernetes.io/hostname");
        let mut nodes: Vec<_> = (0..3).map(|_| fixture.places(&pod)).collect();
        nodes.sort();
        assert_eq!(nodes, ["a1", "a2", "b1"]);
        fixture.fails(&pod, "0/3 nodes are available: 3 node(s) didn't match pod anti-affinity rules.");
    }

    #[test]
    fn preferred_terms_attract_and_repel() {
        let wish = |kind: &str| {
            format!(
                "spec:\n  containers: [{{name: c}}]\n  affinity: {{{kind}: {{preferredDuringSchedulingIgnoredDuringExecution: \
                 [{{weight: 100, podAffinityTerm: {{topologyKey: zone, labelSelector: {{matchLabels: {{app: x}}}}}}}}]}}}}"
            )
        };
        let mut fixture = nodes();
        fixture.run(&running("one", "b1"));
        fixture.schedules(&wish("podAffinity"), "b1");
        assert!(fixture.places(&wish("podAntiAffinity")).starts_with('a'));
    }
}
