//! NodeAffinity: node selectors and required node affinity; preferred node affinity as score.

use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, Pass, Plugin, Rejection, normalise_by_greatest};
use crate::pod::{Class, PodInfo};

pub struct NodeAffinity;

impl Plugin for NodeAffinity {
    fn name(&self) -> &'static str {
        "NodeAffinity"
    }

    fn weight(&self) -> i64 {
        2
    }

    fn is_static(&self) -> bool {
        true
    }

    fn begin<'a>(&self, pod: &'a PodInfo, cluster: &'a Cluster) -> Begin<'a> {
        let class = &pod.class;
        if class.node_selector.is_empty() && class.required_nodes.is_none() && class.preferred_nodes.is_empty() {
            return Begin::Skip;
        }
        Begin::run(Matching { class, cluster })
    }

    fn may_help(&self, event: &Event<'_>, pod: &PodInfo, cluster: &Cluster) -> bool {
        match event {
            Event::NodeAdded(node) => cluster.in_node_affinity(&pod.class, node),
            Event::NodeChanged(node, change) => change.labels && cluster.in_node_affinity(&pod.class, node),
            _ => false,
        }
    }
}

struct Matching<'a> {
    class: &'a Class,
    cluster: &'a Cluster,
}

impl Pass for Matching<'_> {
    fn filters(&self) -> bool {
        !self.class.node_selector.is_empty() || self.class.required_nodes.is_some()
    }

    fn check(&self, node: &Node) -> Result<(), Rejection> {
        match self.cluster.in_node_affinity(self.class, node) {
            true => Ok(()),
            false => Err(Rejection::final_("node(s) didn't match Pod's node affinity/selector")),
        }
    }

    fn scores(&self) -> bool {
        !self.class.preferred_nodes.is_empty()
    }

    fn score(&self, node: &Node) -> i64 {
        let preferred = self.class.preferred_nodes.iter();
        preferred.filter(|(_, term)| term.matches(&node.name, &node.offer.labels)).map(|(weight, _)| weight).sum()
    }

    fn normalise(&self, scores: &mut [i64]) {
        normalise_by_greatest(scores, false);
    }
}

#[cfg(test)]
mod tests {
    use crate::fixture::Fixture;

    #[test]
    fn required_terms_filter_and_preferred_terms_score() {
        let mut fixture = Fixture::new(&[
            "metadata: {name: a, labels: {disk: ssd, zone: one}}",
            "metadata: {name: b, labels: {disk: ssd, zone: two}}",
            "metadata: {name: c, labels: {disk: hdd, zone: two}}",
        ]);
        let affinity = |required: &str, preferred: &str| {
            format!(
                "spec:\n  containers: [{{name: c}}]\n  affinity:\n    nodeAffinity:\n      \
                 requiredDuringSchedulingIgnoredDuringExecution: {{nodeSelectorTerms: [{{matchExpressions: [{required}]}}]}}\n      \
                 preferredDuringSchedulingIgnoredDuringExecution: [{{weight: 10, preference: {{matchExpressions: [{preferred}]}}}}]"
            )
        };
        let two = "{key: zone, operator: In, values: [two]}";
        fixture.schedules(&affinity("{key: disk, operator: In, values: [ssd]}", two), "b");
        fixture.fails(
            &affinity("{key: disk, operator: In, values: [tape]}", two),
            "0/3 nodes are available: 3 node(s) didn't match Pod's node affinity/selector.",
        );
        let by_name = "spec:\n  containers: [{name: c}]\n  affinity: {nodeAffinity: {requiredDuringSchedulingIgnoredDuringExecution: \
                       {nodeSelectorTerms: [{matchFields: [{key: metadata.name, operator: In, values: [c]}]}]}}}";
        fixture.schedules(by_name, "c");
    }
}
