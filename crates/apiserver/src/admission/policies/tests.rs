use std::sync::Arc;

use apimachinery::Value;
use apimachinery::resource::builtin;
use serde_json::json;

use super::config::{Binding, Policy};
use super::{Configurations, Policies, Table, exempt};
use crate::admission::testing::Cluster;
use crate::admission::webhooks::Phase;

fn policy(name: &str, resources: &[&str]) -> Arc<Policy> {
    let rules = json!([{"operations": ["*"], "apiGroups": ["*"], "apiVersions": ["*"], "resources": resources}]);
    Arc::new(Policy::compile(
        &json!({"metadata": {"name": name}, "spec": {"matchConstraints": {"resourceRules": rules}}}),
    ))
}

fn binding(name: &str, policy: &str) -> Arc<Binding> {
    Arc::new(Binding::new(&json!({"metadata": {"name": name}, "spec": {"policyName": policy}})))
}

fn names(table: &Table, plural: &str) -> Vec<String> {
    let hooks = table.of(plural).map(|hooks| hooks.to_vec()).unwrap_or_default();
    hooks.iter().map(|active| format!("{}:{}", active.policy.name, active.bindings.len())).collect()
}

#[test]
fn policies_are_found_by_the_resource_that_is_written() {
    let mut all = Configurations::default();
    for (name, resources) in [
        ("b", vec!["pods", "pods/exec"]),
        ("a", vec!["pods/*", "services"]),
        ("c", vec!["*/scale"]),
        ("unbound", vec!["nodes"]),
    ] {
        all.policies.insert(name.into(), policy(name, &resources));
    }
    for (name, of) in [("1", "a"), ("2", "b"), ("3", "a"), ("4", "c"), ("5", "missing")] {
        all.bindings.insert(name.into(), binding(name, of));
    }
    all.retable();
    assert_eq!(names(&all.table, "pods"), ["a:2", "b:1", "c:1"]);
    assert_eq!(names(&all.table, "services"), ["a:2", "c:1"]);
    assert_eq!(names(&all.table, "nodes"), ["c:1"]);
    all.bindings.remove("4");
    all.retable();
    assert!(names(&all.table, "nodes").is_empty());
    assert!(!all.table.is_empty());
}

#[test]
fn a_new_status_is_no_new_policy() {
    let object = |generation: i64| json!({"metadata": {"name": "a", "uid": "u", "generation": generation}, "spec": {}});
    let compiled = Policy::compile(&object(2));
    assert!(compiled.is_of(&object(2)) && !compiled.is_of(&object(3)));
    let other: Value = json!({"metadata": {"name": "a", "uid": "v", "generation": 2}});
    assert!(!compiled.is_of(&other));
}

#[test]
fn a_policy_without_constraints_is_looked_at_for_everything() {
    let without = Policy::compile(&json!({"metadata": {"name": "a"}, "spec": {}}));
    assert!(without.criteria.is_none() && without.plurals.is_none());
}

#[test]
fn policies_do_not_decide_about_themselves() {
    let is_exempt = |group: &str, plural: &str| exempt(builtin().preferred(group, plural).unwrap());
    assert!(is_exempt("admissionregistration.k8s.io", "validatingadmissionpolicybindings"));
    assert!(is_exempt("authorization.k8s.io", "subjectaccessreviews"));
    assert!(!is_exempt("admissionregistration.k8s.io", "validatingwebhookconfigurations"));
    assert!(!is_exempt("", "pods"));
}

/// What was configured is known or the question fails: it is never as if there were nothing.
#[test]
fn configuration_is_not_lost_with_the_store() {
    let cluster = Cluster::new();
    let rules = json!([{"operations": ["*"], "apiGroups": [""], "apiVersions": ["v1"], "resources": ["pods"]}]);
    let spec = json!({"matchConstraints": {"resourceRules": rules}, "validations": [{"expression": "false"}]});
    cluster.put("validatingadmissionpolicies", json!({"metadata": {"name": "p"}, "spec": spec}));
    cluster.put("validatingadmissionpolicybindings", json!({"metadata": {"name": "p"}, "spec": {"policyName": "p"}}));
    let policies = Policies::new(cluster.view.clone());
    let pods = builtin().preferred("", "pods").unwrap();
    assert!(policies.of(Phase::Validating, pods).unwrap().is_some());
    assert!(policies.of(Phase::Mutating, pods).unwrap().is_none());
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    runtime.block_on(cluster.view.store().shutdown());
    assert!(!matches!(policies.of(Phase::Validating, pods), Ok(None)));
}
