//! Selectors, compiled once per class of pods: of labels, of nodes, and the terms of pod affinity.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::{NodeSelector, NodeSelectorRequirement, NodeSelectorTerm, PodAffinityTerm};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::{Expression, Selector, SelectorExt as _};

pub type Labels = BTreeMap<String, String>;

/// A label selector. No selector at all matches nothing; an empty one matches everything.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelMatch(Option<Selector>);

impl LabelMatch {
    /// One that cannot be read matches nothing: the API server does not let it in.
    pub fn new(selector: Option<&LabelSelector>) -> Self {
        LabelMatch(selector.and_then(|selector| selector.clone().try_into().ok()))
    }

    pub fn of_labels(labels: &Labels) -> Self {
        LabelMatch(Some(labels.iter().map(|(key, value)| (key.clone(), value.clone())).collect()))
    }

    pub fn is_empty(&self) -> bool {
        self.0.as_ref().is_none_or(Selector::selects_all)
    }

    /// Narrows the selector to pods that have, or have not, the same value as `labels` under each of `keys`.
    pub fn narrow(&mut self, labels: &Labels, keys: Option<&Vec<String>>, same: bool) {
        let Some(selector) = &mut self.0 else { return };
        for key in keys.into_iter().flatten() {
            let Some(value) = labels.get(key) else { continue };
            let values = BTreeSet::from([value.clone()]);
            selector.extend([match same {
                true => Expression::In(key.clone(), values),
                false => Expression::NotIn(key.clone(), values),
            }]);
        }
    }

    pub fn and(&mut self, other: LabelMatch) {
        match (&mut self.0, other.0) {
            (Some(selector), Some(other)) => _ = selector.extend(other),
            (selector, _) => *selector = None,
        }
    }

    pub fn matches(&self, labels: &Labels) -> bool {
        self.0.as_ref().is_some_and(|selector| selector.matches(labels))
    }

    /// The same text for the same selector.
    fn id(&self) -> String {
        self.0.as_ref().map_or_else(|| "-".to_owned(), |selector| format!("({selector})"))
    }
}

/// Which pods are meant: in which namespaces, with which labels.
#[derive(Clone, Debug)]
pub struct PodMatch {
    namespaces: BTreeSet<String>,
    namespace_selector: Option<LabelMatch>,
    labels: LabelMatch,
    id: Arc<str>,
}

impl PodMatch {
    /// The pods of one namespace.
    pub fn in_namespace(namespace: &str, labels: LabelMatch) -> Self {
        Self::new(BTreeSet::from([namespace.to_owned()]), None, labels)
    }

    fn new(namespaces: BTreeSet<String>, namespace_selector: Option<LabelMatch>, labels: LabelMatch) -> Self {
        let selected = namespace_selector.as_ref().map(LabelMatch::id).unwrap_or_default();
        let id = format!("{namespaces:?}{selected}{}", labels.id()).into();
        PodMatch { namespaces, namespace_selector, labels, id }
    }

    pub fn matches(&self, namespace: &str, labels: &Labels, namespaces: &Namespaces) -> bool {
        let inside = self.namespaces.contains(namespace)
            || self.namespace_selector.as_ref().is_some_and(|selector| selector.matches(namespaces.labels(namespace)));
        inside && self.labels.matches(labels)
    }

    /// The one namespace that all of them are in, if there is one.
    pub fn only_namespace(&self) -> Option<&str> {
        let mut namespaces = self.namespaces.iter();
        match (namespaces.next(), namespaces.next(), &self.namespace_selector) {
            (Some(only), None, None) => Some(only),
            _ => None,
        }
    }

    /// Whether the labels of namespaces decide.
    pub fn depends_on_namespaces(&self) -> bool {
        self.namespace_selector.is_some()
    }

    pub fn id(&self) -> &Arc<str> {
        &self.id
    }
}

/// A term of pod affinity or anti-affinity.
#[derive(Clone, Debug)]
pub struct Term {
    pub pods: PodMatch,
    pub topology_key: Arc<str>,
}

impl Term {
    /// `namespace` and `labels` are those of the pod that has the term.
    pub fn new(term: &PodAffinityTerm, namespace: &str, labels: &Labels) -> Self {
        let mut namespaces: BTreeSet<String> = term.namespaces.iter().flatten().cloned().collect();
        let namespace_selector = term.namespace_selector.as_ref().map(|selector| LabelMatch::new(Some(selector)));
        if namespaces.is_empty() && namespace_selector.is_none() {
            namespaces.insert(namespace.to_owned());
        }
        let mut selector = LabelMatch::new(term.label_selector.as_ref());
        selector.narrow(labels, term.match_label_keys.as_ref(), true);
        selector.narrow(labels, term.mismatch_label_keys.as_ref(), false);
        Term {
            pods: PodMatch::new(namespaces, namespace_selector, selector),
            topology_key: term.topology_key.as_str().into(),
        }
    }
}

/// The labels of all namespaces.
#[derive(Debug, Default)]
pub struct Namespaces(BTreeMap<String, Labels>);

impl Namespaces {
    pub fn labels(&self, namespace: &str) -> &Labels {
        static NONE: Labels = Labels::new();
        self.0.get(namespace).unwrap_or(&NONE)
    }

    /// Returns whether anything changed.
    pub fn set(&mut self, namespace: &str, labels: Option<Labels>) -> bool {
        match labels {
            Some(labels) if self.0.get(namespace) == Some(&labels) => false,
            Some(labels) => {
                self.0.insert(namespace.to_owned(), labels);
                true
            }
            None => self.0.remove(namespace).is_some(),
        }
    }
}

/// Which nodes are meant; any of the terms will do.
#[derive(Clone, Debug, Default)]
pub struct NodeMatch {
    terms: Vec<NodeTerm>,
}

impl NodeMatch {
    pub fn new(selector: &NodeSelector) -> Self {
        NodeMatch { terms: selector.node_selector_terms.iter().map(NodeTerm::new).collect() }
    }

    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        self.terms.iter().any(|term| term.matches(name, labels))
    }
}

/// Requirements that all have to hold. A term without any matches no node.
#[derive(Clone, Debug, Default)]
pub struct NodeTerm {
    labels: Vec<NodeSelectorRequirement>,
    fields: Vec<NodeSelectorRequirement>,
}

impl NodeTerm {
    pub fn new(term: &NodeSelectorTerm) -> Self {
        NodeTerm {
            labels: term.match_expressions.clone().unwrap_or_default(),
            fields: term.match_fields.clone().unwrap_or_default(),
        }
    }

    pub fn matches(&self, name: &str, labels: &Labels) -> bool {
        let field = |key: &str| (key == "metadata.name").then_some(name);
        !(self.labels.is_empty() && self.fields.is_empty())
            && self
                .labels
                .iter()
                .all(|requirement| holds(requirement, labels.get(&requirement.key).map(String::as_str)))
            && self.fields.iter().all(|requirement| holds(requirement, field(&requirement.key)))
    }
}

fn holds(requirement: &NodeSelectorRequirement, value: Option<&str>) -> bool {
    let values = requirement.values.as_deref().unwrap_or_default();
    let among = |value: &str| values.iter().any(|candidate| candidate == value);
    let numbers = || Some((value?.parse::<i64>().ok()?, values.first()?.parse::<i64>().ok()?));
    match requirement.operator.as_str() {
        "In" => value.is_some_and(among),
        "NotIn" => !value.is_some_and(among),
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        "Gt" => numbers().is_some_and(|(value, bound)| value > bound),
        "Lt" => numbers().is_some_and(|(value, bound)| value < bound),
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn labels(text: &str) -> Labels {
        let pair = |pair: &str| pair.split_once('=').map(|(key, value)| (key.to_owned(), value.to_owned()));
        text.split_whitespace().filter_map(pair).collect()
    }

    #[test]
    fn node_requirements_hold_as_upstream() {
        let cases = [
            ("In", vec!["a", "b"], Some("a"), true),
            ("In", vec!["a"], None, false),
            ("NotIn", vec!["a"], None, true),
            ("NotIn", vec!["a"], Some("a"), false),
            ("Exists", vec![], Some(""), true),
            ("DoesNotExist", vec![], Some("x"), false),
            ("Gt", vec!["9"], Some("10"), true),
            ("Gt", vec!["9"], Some("x"), false),
            ("Lt", vec!["9"], Some("10"), false),
            ("Near", vec![], Some("x"), false),
        ];
        for (operator, values, value, expected) in cases {
            let requirement = NodeSelectorRequirement {
                key: "key".to_owned(),
                operator: operator.to_owned(),
                values: Some(values.iter().map(|value| value.to_string()).collect()),
            };
            assert_eq!(holds(&requirement, value), expected, "{operator} {values:?} {value:?}");
        }
        assert!(!NodeTerm::default().matches("node", &Labels::new()), "an empty term matches no node");
    }

    #[test]
    fn a_term_means_its_own_namespace_unless_it_says_more() {
        let mut namespaces = Namespaces::default();
        namespaces.set("other", Some(labels("team=a")));
        let everything = Some(LabelSelector::default());
        let own = PodAffinityTerm { label_selector: everything.clone(), ..Default::default() };
        let all = PodAffinityTerm { namespace_selector: everything, ..own.clone() };
        let listed = PodAffinityTerm { namespaces: Some(vec!["other".to_owned()]), ..own.clone() };
        let none = PodAffinityTerm { label_selector: None, ..own.clone() };
        let matches = |term: &PodAffinityTerm, namespace: &str| {
            Term::new(term, "mine", &Labels::new()).pods.matches(namespace, &Labels::new(), &namespaces)
        };
        assert_eq!((matches(&own, "mine"), matches(&own, "other")), (true, false));
        assert_eq!((matches(&all, "mine"), matches(&all, "other")), (true, true));
        assert_eq!((matches(&listed, "mine"), matches(&listed, "other")), (false, true));
        assert!(!matches(&none, "mine"), "no selector matches nothing");
    }

    #[test]
    fn match_label_keys_narrow_to_the_own_value() {
        let mut selector = LabelMatch::new(Some(&LabelSelector::default()));
        let own = labels("hash=1 other=2");
        selector.narrow(&own, Some(&vec!["hash".to_owned(), "absent".to_owned()]), true);
        assert!(selector.matches(&labels("hash=1")) && !selector.matches(&labels("hash=2")));
        selector.narrow(&own, Some(&vec!["other".to_owned()]), false);
        assert!(selector.matches(&labels("hash=1")) && !selector.matches(&own));
    }
}
