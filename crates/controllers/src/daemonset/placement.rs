//! On which nodes a daemon's pods run. Pure.

use k8s_openapi::api::core::v1::{
    Affinity, Node, NodeAffinity, NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, Pod, PodSpec, Toleration,
};

use crate::node::{NO_EXECUTE, NO_SCHEDULE, taints_of, tolerates};

const NAME_FIELD: &str = "metadata.name";

/// Taints that daemons live with: they run on nodes that are in trouble, or closed to others.
const TOLERATED: [(&str, &str); 6] = [
    ("node.kubernetes.io/not-ready", NO_EXECUTE),
    ("node.kubernetes.io/unreachable", NO_EXECUTE),
    ("node.kubernetes.io/disk-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/memory-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/pid-pressure", NO_SCHEDULE),
    ("node.kubernetes.io/unschedulable", NO_SCHEDULE),
];
const NETWORK_UNAVAILABLE: &str = "node.kubernetes.io/network-unavailable";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Placement {
    /// A pod belongs here.
    Run,
    /// None is started, one that is there stays.
    Stay,
    /// None may be here.
    Leave,
}

/// `spec` is that of the template, with [`tolerations`] added.
pub fn placement(spec: &PodSpec, node: &Node) -> Placement {
    let name = node.metadata.name.as_deref().unwrap_or_default();
    if spec.node_name.as_deref().is_some_and(|wanted| !wanted.is_empty() && wanted != name)
        || !fits_affinity(spec, node)
    {
        return Placement::Leave;
    }
    let tolerated = spec.tolerations.as_deref().unwrap_or_default();
    let untolerated = |effect: &str| {
        let mut taints = taints_of(node).iter().filter(|taint| taint.effect == effect);
        taints.any(|taint| !tolerated.iter().any(|toleration| tolerates(toleration, taint)))
    };
    match (untolerated(NO_EXECUTE), untolerated(NO_SCHEDULE)) {
        (true, _) => Placement::Leave,
        (false, true) => Placement::Stay,
        (false, false) => Placement::Run,
    }
}

fn fits_affinity(spec: &PodSpec, node: &Node) -> bool {
    let label = |name: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
    let selected = spec.node_selector.iter().flatten().all(|(name, value)| label(name) == Some(value));
    let required = required_terms(spec);
    selected && required.is_none_or(|terms| terms.iter().any(|term| matches_term(term, node)))
}

fn required_terms(spec: &PodSpec) -> Option<&Vec<NodeSelectorTerm>> {
    let affinity = spec.affinity.as_ref()?.node_affinity.as_ref()?;
    Some(&affinity.required_during_scheduling_ignored_during_execution.as_ref()?.node_selector_terms)
}

/// A term without requirements matches nothing.
fn matches_term(term: &NodeSelectorTerm, node: &Node) -> bool {
    let expressions = term.match_expressions.as_deref().unwrap_or_default();
    let fields = term.match_fields.as_deref().unwrap_or_default();
    if expressions.is_empty() && fields.is_empty() {
        return false;
    }
    let label = |name: &str| node.metadata.labels.as_ref().and_then(|labels| labels.get(name)).map(String::as_str);
    expressions.iter().all(|requirement| meets(requirement, label(&requirement.key)))
        && fields.iter().all(|field| field.key == NAME_FIELD && meets(field, node.metadata.name.as_deref()))
}

fn meets(requirement: &NodeSelectorRequirement, actual: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = || actual.is_some_and(|actual| values.iter().any(|value| value == actual));
    let compared = || {
        let bound = values.first().and_then(|value| value.parse::<i64>().ok())?;
        Some(actual?.parse::<i64>().ok()?.cmp(&bound))
    };
    match requirement.operator.as_str() {
        "In" => among(),
        "NotIn" => !among(),
        "Exists" => actual.is_some(),
        "DoesNotExist" => actual.is_none(),
        "Gt" => compared() == Some(std::cmp::Ordering::Greater),
        "Lt" => compared() == Some(std::cmp::Ordering::Less),
        _ => false,
    }
}

/// Adds what every daemon tolerates.
pub fn add_tolerations(spec: &mut PodSpec) {
    let host_network = spec.host_network == Some(true);
    let network = host_network.then_some((NETWORK_UNAVAILABLE, NO_SCHEDULE));
    let tolerations = spec.tolerations.get_or_insert_default();
    for (key, effect) in TOLERATED.into_iter().chain(network) {
        let added = Toleration {
            key: Some(key.to_owned()),
            operator: Some("Exists".to_owned()),
            effect: Some(effect.to_owned()),
            ..Toleration::default()
        };
        if !tolerations.contains(&added) {
            tolerations.push(added);
        }
    }
}

/// Pins a pod to a node in the way that leaves the binding to the scheduler.
pub fn pin(spec: &mut PodSpec, node: &str) {
    let field = NodeSelectorRequirement {
        key: NAME_FIELD.to_owned(),
        operator: "In".to_owned(),
        values: Some(vec![node.to_owned()]),
    };
    let affinity: &mut NodeAffinity =
        spec.affinity.get_or_insert_with(Affinity::default).node_affinity.get_or_insert_default();
    let required: &mut NodeSelector =
        affinity.required_during_scheduling_ignored_during_execution.get_or_insert_default();
    if required.node_selector_terms.is_empty() {
        required.node_selector_terms.push(NodeSelectorTerm::default());
    }
    // Terms are alternatives, so each is pinned.
    for term in &mut required.node_selector_terms {
        term.match_fields = Some(vec![field.clone()]);
    }
}

/// The node that a pod is on, or that it is pinned to.
pub fn target(pod: &Pod) -> Option<&str> {
    let spec = pod.spec.as_ref()?;
    if let Some(name) = crate::pods::node_name(pod) {
        return Some(name);
    }
    let fields = required_terms(spec)?.iter().filter_map(|term| term.match_fields.as_ref()).flatten();
    let field = fields.into_iter().find(|field| field.key == NAME_FIELD && field.operator == "In")?;
    field.values.as_ref()?.first().map(String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    fn placed(spec: &str, node: &str) -> Placement {
        let mut spec: PodSpec = yaml(&format!("{{ containers: [], {spec} }}"));
        add_tolerations(&mut spec);
        placement(
            &spec,
            &yaml(&format!(
                "{{ metadata: {{ name: n, labels: {{ disk: ssd, size: '5' }} }}, spec: {{ taints: {node} }} }}"
            )),
        )
    }

    #[test]
    fn taints_keep_out_or_drive_out() {
        assert_eq!(placed("", "[]"), Placement::Run);
        assert_eq!(
            placed(
                "",
                "[{ key: node.kubernetes.io/not-ready, effect: NoExecute }, { key: node.kubernetes.io/unschedulable, effect: NoSchedule }]"
            ),
            Placement::Run
        );
        assert_eq!(placed("", "[{ key: x, effect: NoSchedule }]"), Placement::Stay);
        assert_eq!(placed("", "[{ key: x, effect: NoExecute }]"), Placement::Leave);
        assert_eq!(placed("", "[{ key: x, effect: PreferNoSchedule }]"), Placement::Run);
        let network = "[{ key: node.kubernetes.io/network-unavailable, effect: NoSchedule }]";
        assert_eq!((placed("", network), placed("hostNetwork: true", network)), (Placement::Stay, Placement::Run));
    }

    #[test]
    fn selectors_and_affinity_choose_nodes() {
        let affinity = |terms: &str| {
            placed(
                &format!(
                    "affinity: {{ nodeAffinity: {{ requiredDuringSchedulingIgnoredDuringExecution: {{ nodeSelectorTerms: {terms} }} }} }}"
                ),
                "[]",
            )
        };
        assert_eq!(placed("nodeSelector: { disk: ssd }", "[]"), Placement::Run);
        assert_eq!(placed("nodeSelector: { disk: hdd }", "[]"), Placement::Leave);
        assert_eq!(placed("nodeName: other", "[]"), Placement::Leave);
        assert_eq!(
            affinity(
                "[{ matchExpressions: [{ key: disk, operator: NotIn, values: [hdd] }, { key: size, operator: Gt, values: ['4'] }] }]"
            ),
            Placement::Run
        );
        assert_eq!(
            affinity(
                "[{ matchExpressions: [{ key: none, operator: Exists }] }, { matchFields: [{ key: metadata.name, operator: In, values: [n] }] }]"
            ),
            Placement::Run
        );
        assert_eq!(affinity("[{}]"), Placement::Leave);
    }

    #[test]
    fn a_pinned_pod_targets_its_node_in_every_alternative() {
        let mut pod = Pod {
            spec: Some(yaml(
                "{ containers: [], affinity: { nodeAffinity: { requiredDuringSchedulingIgnoredDuringExecution: { nodeSelectorTerms: [{ matchExpressions: [{ key: a, operator: Exists }] }, { matchExpressions: [{ key: b, operator: Exists }] }] } } } }",
            )),
            ..Pod::default()
        };
        pin(pod.spec.as_mut().expect("a spec"), "n7");
        assert_eq!(target(&pod), Some("n7"));
        let terms = required_terms(pod.spec.as_ref().expect("a spec")).expect("terms");
        assert!(terms.iter().all(|term| term.match_fields.is_some() && term.match_expressions.is_some()));
    }
}
