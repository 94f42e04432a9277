//! TaintToleration: NoSchedule and NoExecute taints keep pods away that do not tolerate them; PreferNoSchedule taints
//! make a node less welcome.

use k8s_openapi::api::core::v1::{Taint, Toleration};

use crate::cluster::{Cluster, Node};
use crate::framework::{Begin, Event, Pass, Plugin, Rejection, normalise_by_greatest};
use crate::pod::PodInfo;

pub struct TaintToleration;

impl Plugin for TaintToleration {
    fn name(&self) -> &'static str {
        "TaintToleration"
    }

    fn weight(&self) -> i64 {
        3
    }

    fn is_static(&self) -> bool {
        true
    }

    fn begin<'a>(&self, pod: &'a PodInfo, _cluster: &'a Cluster) -> Begin<'a> {
        Begin::run(Tolerated(&pod.class.tolerations))
    }

    fn may_help(&self, event: &Event<'_>, pod: &PodInfo, _cluster: &Cluster) -> bool {
        match event {
            Event::NodeAdded(node) => is_tolerated(node, &pod.class.tolerations),
            Event::NodeChanged(node, change) => change.taints && is_tolerated(node, &pod.class.tolerations),
            _ => false,
        }
    }
}

/// Whether no taint of the node keeps a pod with these tolerations away.
pub fn is_tolerated(node: &Node, tolerations: &[Toleration]) -> bool {
    node.offer
        .taints
        .iter()
        .filter(|taint| matches!(taint.effect.as_str(), "NoSchedule" | "NoExecute"))
        .all(|taint| tolerates(tolerations, taint))
}

pub fn tolerates(tolerations: &[Toleration], taint: &Taint) -> bool {
    tolerations.iter().any(|toleration| {
        let (effect, key, value) = (text(&toleration.effect), text(&toleration.key), text(&toleration.value));
        let taint_value = text(&taint.value);
        (effect.is_empty() || effect == taint.effect)
            && (key.is_empty() || key == taint.key)
            && match text(&toleration.operator) {
                "" | "Equal" => value == taint_value,
                "Exists" => true,
                operator => compares(operator, taint_value, value),
            }
    })
}

fn text(field: &Option<String>) -> &str {
    field.as_deref().unwrap_or_default()
}

/// The numeric operators: the taint's value against the toleration's.
fn compares(operator: &str, taint: &str, toleration: &str) -> bool {
    match (operator, taint.parse::<i64>(), toleration.parse::<i64>()) {
        ("Gt", Ok(taint), Ok(bound)) => taint > bound,
        ("Lt", Ok(taint), Ok(bound)) => taint < bound,
        _ => false,
    }
}

struct Tolerated<'a>(&'a [Toleration]);

impl Pass for Tolerated<'_> {
    fn filters(&self) -> bool {
        true
    }

    fn check(&self, node: &Node) -> Result<(), Rejection> {
        match is_tolerated(node, self.0) {
            true => Ok(()),
            false => Err(Rejection::final_("node(s) had untolerated taint(s)")),
        }
    }

    fn scores(&self) -> bool {
        true
    }

    /// The number of taints that count against the node.
    fn score(&self, node: &Node) -> i64 {
        let unwelcome = |taint: &&Taint| taint.effect == "PreferNoSchedule" && !tolerates(self.0, taint);
        node.offer.taints.iter().filter(unwelcome).count() as i64
    }

    fn normalise(&self, scores: &mut [i64]) {
        normalise_by_greatest(scores, true);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::Fixture;

    #[test]
    fn tolerations_match_taints_as_upstream() {
        let taint = Taint {
            key: "k".to_owned(),
            value: Some("5".to_owned()),
            effect: "NoSchedule".to_owned(),
            time_added: None,
        };
        let cases = [
            ("{key: k, operator: Equal, value: '5', effect: NoSchedule}", true),
            ("{key: k, value: '5'}", true),
            ("{key: k, value: '6'}", false),
            ("{key: k, operator: Exists}", true),
            ("{operator: Exists}", true),
            ("{key: other, operator: Exists}", false),
            ("{key: k, operator: Exists, effect: NoExecute}", false),
            ("{key: k, operator: Gt, value: '4'}", true),
            ("{key: k, operator: Lt, value: '4'}", false),
        ];
        for (yaml, expected) in cases {
            let toleration: Toleration = serde_saphyr::from_str(yaml).unwrap();
            assert_eq!(tolerates(&[toleration], &taint), expected, "{yaml}");
        }
    }

    #[test]
    fn taints_keep_away_or_put_off() {
        let mut fixture = Fixture::new(&[
            "metadata: {name: tainted}\nspec: {taints: [{key: k, effect: NoSchedule}]}",
            "metadata: {name: unwelcome}\nspec: {taints: [{key: k, effect: PreferNoSchedule}]}",
            "metadata: {name: plain}",
        ]);
        fixture.schedules("spec: {containers: [{name: c}]}", "plain");
        fixture.schedules(
            "spec: {nodeSelector: {kubernetes.io/hostname: unwelcome}, containers: [{name: c}]}",
            "unwelcome",
        );
        fixture.fails(
            "spec: {nodeSelector: {kubernetes.io/hostname: tainted}, containers: [{name: c}]}",
            "0/3 nodes are available: 1 node(s) had untolerated taint(s), 2 node(s) didn't match Pod's node affinity/selector.",
        );
    }
}
