//! PodTopologySpread: pods that match a selector are spread over the domains of a topology key, as a must (DoNotSchedule) or
//! as a wish (ScheduleAnyway). A pod that asks for nothing is spread by the services and controllers that it belongs to.
//!
//! What counts is kept per node by the cluster; a decision sums it up per domain, over the nodes that count for this pod.

use std::borrow::Cow;

use super::taint_toleration::is_tolerated;
use crate::cluster::tally::Counts;
use crate::cluster::topology::{Column, NO_DOMAIN};
use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, MAX_SCORE, Pass, Plugin, Rejection};
use crate::pod::{PodInfo, Spread};
use crate::selector::PodMatch;

const HOSTNAME: &str = "kubernetes.io/hostname";
const ZONE: &str = "topology.kubernetes.io/zone";
/// The score of a node that cannot be compared, until it is normalised.
const IGNORED: i64 = i64::MIN;

pub struct PodTopologySpread;

impl Plugin for PodTopologySpread {
    fn name(&self) -> &'static str {
        "PodTopologySpread"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn prepare(&self, pod: &PodInfo, cluster: &mut Cluster) {
        for spread in constraints(pod, cluster).iter() {
            cluster.ensure_column(&spread.topology_key);
            cluster.ensure_counted(std::slice::from_ref(&spread.pods), true);
        }
    }

    fn begin<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Begin<'a> {
        let constraints = constraints(pod, cluster);
        if constraints.is_empty() {
            return Begin::Skip;
        }
        let (required, wished): (Vec<_>, Vec<_>) = constraints.iter().cloned().partition(|spread| spread.required);
        let limits = limits(pod, cluster, &required);
        Begin::run(Spreading { pod, cluster, limits, wished, by_default: pod.class.spread.is_empty() })
    }

    fn may_help(&self, event: &Event<'_>, pod: &PodInfo, cluster: &Cluster) -> bool {
        let concerns = |other: &PodInfo| {
            let class = &other.class;
            pod.class
                .spread
                .iter()
                .any(|spread| spread.pods.matches(&class.namespace, &class.labels, &cluster.namespaces))
        };
        match event {
            Event::PodAssigned(other) | Event::PodRemoved(other) => concerns(other),
            Event::NodeAdded(_) | Event::NodeRemoved => true,
            Event::NodeChanged(_, change) => change.labels || change.taints,
            _ => false,
        }
    }
}

fn constraints<'a>(pod: &'a PodInfo, cluster: &Cluster) -> Cow<'a, [Spread]> {
    if !pod.class.spread.is_empty() {
        return Cow::Borrowed(&pod.class.spread);
    }
    let Some(selector) = cluster.workloads.default_selector(&pod.class) else { return Cow::Borrowed(&[]) };
    let pods = PodMatch::in_namespace(pod.namespace(), selector);
    let wish = |key: &str, max_skew| Spread {
        topology_key: key.into(),
        max_skew,
        min_domains: 1,
        required: false,
        pods: pods.clone(),
        honours_affinity: true,
        honours_taints: false,
    };
    Cow::Owned(vec![wish(HOSTNAME, 3), wish(ZONE, 5)])
}

/// Whether what is on the node counts for the constraint.
fn counts(spread: &Spread, pod: &PodInfo, cluster: &Cluster, node: &Node) -> bool {
    (!spread.honours_affinity || cluster.in_node_affinity(&pod.class, node))
        && (!spread.honours_taints || is_tolerated(node, &pod.class.tolerations))
}

/// The matching pods by node.
fn counted<'a>(spread: &Spread, cluster: &'a Cluster) -> Option<&'a Counts> {
    cluster.tally.counts(std::slice::from_ref(&spread.pods), true)
}

/// A required constraint with what is there already.
struct Limit<'a> {
    column: &'a Column,
    max_skew: i64,
    /// By domain.
    sums: Vec<i64>,
    least: i64,
    /// One if the pod itself counts.
    own: i64,
}

fn limits<'a>(pod: &PodInfo, cluster: &'a Cluster, required: &[Spread]) -> Vec<Limit<'a>> {
    let columns: Vec<_> = required.iter().filter_map(|spread| cluster.topology.column(&spread.topology_key)).collect();
    let class = &pod.class;
    let limit = |(spread, column): (&Spread, &&'a Column)| {
        let mut sums = vec![0; column.domain_count()];
        let mut eligible = vec![false; column.domain_count()];
        let on_nodes = counted(spread, cluster);
        for node in cluster.nodes() {
            // Only nodes that are in a domain of every constraint count for any.
            if columns.iter().any(|column| column.domain(node.slot) == NO_DOMAIN) || !counts(spread, pod, cluster, node)
            {
                continue;
            }
            let domain = column.domain(node.slot) as usize;
            eligible[domain] = true;
            sums[domain] += on_nodes.map_or(0, |counts| counts.at(node.slot));
        }
        let present = sums.iter().zip(&eligible).filter(|(_, eligible)| **eligible).map(|(sum, _)| *sum);
        let domains = eligible.iter().filter(|eligible| **eligible).count() as i64;
        let least = if domains < spread.min_domains { 0 } else { present.min().unwrap_or(0) };
        let own = spread.pods.matches(&class.namespace, &class.labels, &cluster.namespaces).into();
        Limit { column, max_skew: spread.max_skew, sums, least, own }
    };
    required.iter().zip(&columns).map(limit).collect()
}

struct Spreading<'a> {
    pod: &'a PodInfo,
    cluster: &'a Cluster,
    limits: Vec<Limit<'a>>,
    wished: Vec<Spread>,
    by_default: bool,
}

impl Pass for Spreading<'_> {
    fn filters(&self) -> bool {
        !self.limits.is_empty()
    }

    fn check(&self, node: &Node) -> Result<(), Rejection> {
        for limit in &self.limits {
            let domain = limit.column.domain(node.slot);
            if domain == NO_DOMAIN {
                return Err(Rejection::final_(
                    "node(s) didn't match pod topology spread constraints (missing required label)",
                ));
            }
            if limit.sums[domain as usize] + limit.own - limit.least > limit.max_skew {
                return Err(Rejection::resolvable("node(s) didn't match pod topology spread constraints"));
            }
        }
        Ok(())
    }

    fn scores(&self) -> bool {
        !self.wished.is_empty()
    }

    /// The more matching pods in the node's domains, the higher; a domain counts for more the more domains there are.
    fn score_all(&self, cluster: &Cluster, nodes: &[u32]) -> Vec<i64> {
        let columns: Vec<_> =
            self.wished.iter().filter_map(|spread| cluster.topology.column(&spread.topology_key)).collect();
        let complete = |slot: u32| columns.iter().all(|column| column.domain(slot) != NO_DOMAIN);
        // The default wishes take nodes as they are.
        let compared = |slot: u32| self.by_default || complete(slot);
        let mut totals = vec![0.0; nodes.len()];
        for (spread, column) in self.wished.iter().zip(&columns) {
            let per_node = &*spread.topology_key == HOSTNAME;
            let sums = if per_node { Vec::new() } else { self.sums(spread, column, &compared) };
            let candidates = nodes.iter().filter(|slot| compared(**slot));
            let domains = if per_node { candidates.count() } else { distinct(column, candidates) };
            let weight = ((domains + 2) as f64).ln();
            let on_nodes = counted(spread, cluster);
            let here = |slot| on_nodes.map_or(0, |counts| counts.at(slot));
            for (total, slot) in totals.iter_mut().zip(nodes) {
                let domain = column.domain(*slot);
                if domain != NO_DOMAIN {
                    let count = if per_node { here(*slot) } else { sums[domain as usize] };
                    *total += count as f64 * weight + (spread.max_skew - 1) as f64;
                }
            }
        }
        let score = |(total, slot): (f64, &u32)| if compared(*slot) { total.round() as i64 } else { IGNORED };
        totals.into_iter().zip(nodes).map(score).collect()
    }

    /// The fewest pods are best.
    fn normalise(&self, scores: &mut [i64]) {
        let compared = scores.iter().copied().filter(|score| *score != IGNORED);
        let (least, most) = (compared.clone().min().unwrap_or(0), compared.max().unwrap_or(0));
        for score in scores {
            *score = match *score {
                IGNORED => 0,
                _ if most == 0 => MAX_SCORE,
                score => MAX_SCORE * (most + least - score) / most,
            };
        }
    }
}

impl Spreading<'_> {
    fn sums(&self, spread: &Spread, column: &Column, compared: &impl Fn(u32) -> bool) -> Vec<i64> {
        let nodes =
            self.cluster.nodes().filter(|node| compared(node.slot) && counts(spread, self.pod, self.cluster, node));
        let on_nodes = counted(spread, self.cluster);
        column.sum(nodes.map(|node| node.slot), |slot| on_nodes.map_or(0, |counts| counts.at(slot)))
    }
}

fn distinct<'a>(column: &Column, slots: impl Iterator<Item = &'a u32>) -> usize {
    let mut seen = vec![false; column.domain_count()];
    slots
        .map(|slot| column.domain(*slot))
        .filter(|domain| *domain != NO_DOMAIN && !std::mem::replace(&mut seen[*domain as usize], true))
        .count()
}

#[cfg(test)]
mod tests {
    use crate::fixture::Fixture;

    fn zones() -> Fixture {
        Fixture::new(&[
            "metadata: {name: a1, labels: {zone: a}}",
            "metadata: {name: a2, labels: {zone: a}}",
            "metadata: {name: b1, labels: {zone: b}}",
            "metadata: {name: none}",
        ])
    }

    fn pod(constraint: &str) -> String {
        format!(
            "metadata: {{labels: {{app: x}}}}\nspec:\n  containers: [{{name: c}}]\n  \
             topologySpreadConstraints: [{{topologyKey: zone, labelSelector: {{matchLabels: {{app: x}}}}, {constraint}}}]"
        )
    }

    #[test]
    fn a_required_skew_is_kept() {
        let mut fixture = zones();
        let pod = pod("maxSkew: 1, whenUnsatisfiable: DoNotSchedule");
        let mut in_b = 0;
        for _ in 0..4 {
            in_b += usize::from(fixture.places(&pod) == "b1");
        }
        assert_eq!(in_b, 2);
        fixture.run("metadata: {name: extra, namespace: default, labels: {app: x}}\nspec: {nodeName: b1, containers: [{name: c}]}");
        fixture.cordon("a1");
        fixture.cordon("a2");
        fixture.fails(
            &pod,
            "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints, \
             1 node(s) didn't match pod topology spread constraints (missing required label), 2 node(s) were unschedulable.",
        );
    }

    #[test]
    fn too_few_domains_count_as_an_empty_one() {
        let mut fixture = zones();
        let pod = pod("maxSkew: 1, minDomains: 3, whenUnsatisfiable: DoNotSchedule");
        fixture.places(&pod);
        fixture.places(&pod);
        fixture.fails(
            &pod,
            "0/4 nodes are available: 1 node(s) didn't match pod topology spread constraints (missing required label), \
             3 node(s) didn't match pod topology spread constraints.",
        );
    }

    #[test]
    fn a_wished_spread_only_prefers() {
        let mut fixture = zones();
        let pod = pod("maxSkew: 1, whenUnsatisfiable: ScheduleAnyway");
        fixture.run("metadata: {name: one, namespace: default, labels: {app: x}}\nspec: {nodeName: a1, containers: [{name: c}]}");
        fixture.schedules(&pod, "b1");
        fixture.cordon("a1");
        fixture.cordon("a2");
        fixture.cordon("none");
        fixture.schedules(&pod, "b1");
    }

    #[test]
    fn pods_of_a_service_spread_over_nodes_by_default() {
        let mut fixture = Fixture::new(&["metadata: {name: a}", "metadata: {name: b}", "metadata: {name: c}"]);
        fixture.service("default", "web", &[("app", "x")]);
        let pod = "metadata: {labels: {app: x}}\nspec: {containers: [{name: c}]}";
        let mut nodes: Vec<_> = (0..3).map(|_| fixture.places(pod)).collect();
        nodes.sort();
        assert_eq!(nodes, ["a", "b", "c"]);
    }

    #[test]
    fn pods_that_are_going_away_do_not_count() {
        let mut fixture = zones();
        fixture.run(
            "metadata: {name: going, namespace: default, labels: {app: x}, deletionTimestamp: '2026-01-01T00:00:00Z'}\n\
             spec: {nodeName: a1, containers: [{name: c}]}",
        );
        fixture.cordon("b1");
        let node = fixture.places(&pod("maxSkew: 1, whenUnsatisfiable: DoNotSchedule"));
        assert!(node.starts_with('a'), "{node}");
    }
}
