//! The authoriser over a store: what is written is what counts, from the next question on.

use std::time::{Duration, Instant};

use serde_json::{Value, json};

use super::escalation::{check_binding_write, check_role_write};
use super::reviews::{local_access_review, self_access_review, self_rules_review, subject_access_review};
use super::*;
use crate::admission::testing::Cluster;

fn ask(verb: &str, resource: &str, namespace: &str, name: &str) -> RequestInfo {
    let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
    let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
    RequestInfo {
        is_resource: true,
        verb: verb.into(),
        group: group.into(),
        version: "v1".into(),
        resource: resource.into(),
        subresource: subresource.into(),
        namespace: namespace.into(),
        name: name.into(),
        ..RequestInfo::default()
    }
}

/// A cluster with all default roles and bindings.
fn bootstrapped() -> (Cluster, Arc<Authorizer>) {
    let cluster = Cluster::new();
    for object in crate::bootstrap::objects(&crate::bootstrap::Settings::default()) {
        let prefix = match object["kind"].as_str() {
            Some("ClusterRole") => "clusterroles",
            Some("Role") => "roles",
            Some("ClusterRoleBinding") => "clusterrolebindings",
            Some("RoleBinding") => "rolebindings",
            _ => continue,
        };
        cluster.put(prefix, object);
    }
    let authorizer = Authorizer::new(cluster.view.clone());
    (cluster, authorizer)
}

fn binding(namespace: &str, name: &str, role: &str, user: &str) -> Value {
    json!({
        "metadata": {"name": name, "namespace": namespace},
        "roleRef": {"apiGroup": "rbac.authorization.k8s.io", "kind": "ClusterRole", "name": role},
        "subjects": [{"apiGroup": "rbac.authorization.k8s.io", "kind": "User", "name": user}],
    })
}

#[test]
fn the_default_roles_allow_what_upstream_allows() {
    let (cluster, authorizer) = bootstrapped();
    cluster.put("rolebindings", binding("ns", "ann-edits", "edit", "ann"));
    cluster.put("rolebindings", binding("ns", "vic-views", "view", "vic"));
    cluster.put("rolebindings", binding("ns", "adam-admins", "admin", "adam"));
    let table = [
        ("ann", ask("create", "apps:deployments", "ns", ""), true),
        ("ann", ask("create", "apps:deployments", "other", ""), false),
        ("ann", ask("create", "pods/exec", "ns", "p"), true),
        ("ann", ask("list", "pods", "ns", ""), true),
        ("ann", ask("get", "pods/log", "ns", "p"), true),
        ("ann", ask("create", "rbac.authorization.k8s.io:roles", "ns", ""), false),
        ("adam", ask("create", "rbac.authorization.k8s.io:roles", "ns", ""), true),
        ("adam", ask("patch", "apps:deployments/scale", "ns", "d"), true),
        ("adam", ask("get", "secrets", "ns", "s"), true),
        ("vic", ask("get", "secrets", "ns", "s"), false),
        ("vic", ask("watch", "configmaps", "ns", ""), true),
        ("vic", ask("delete", "pods", "ns", "p"), false),
        ("system:kube-scheduler", ask("create", "pods/binding", "ns", "p"), true),
        ("system:kube-scheduler", ask("update", "coordination.k8s.io:leases", "kube-system", "kube-scheduler"), true),
        ("system:kube-scheduler", ask("update", "coordination.k8s.io:leases", "kube-system", "other"), false),
        ("system:kube-controller-manager", ask("list", "any.group:things", "", ""), true),
        ("system:serviceaccount:kube-system:namespace-controller", ask("deletecollection", "x.y:z", "ns", ""), true),
        ("system:serviceaccount:kube-system:deployment-controller", ask("create", "apps:replicasets", "ns", ""), true),
        ("system:serviceaccount:default:deployment-controller", ask("create", "apps:replicasets", "ns", ""), false),
        (
            "system:serviceaccount:kube-system:horizontal-pod-autoscaler",
            ask("update", "apps:deployments/scale", "ns", "d"),
            true,
        ),
        ("system:kube-proxy", ask("watch", "discovery.k8s.io:endpointslices", "", ""), true),
        ("system:kube-dns", ask("update", "discovery.k8s.io:endpointslices", "kube-system", "kube-dns-n1"), true),
        ("system:kube-dns", ask("update", "discovery.k8s.io:endpointslices", "default", "x"), false),
    ];
    for (user, info, expected) in table {
        let decision = authorizer.authorize(&UserInfo::new(user, &["system:authenticated"]), &info);
        assert_eq!(decision.is_allowed(), expected, "{user} {info:?}: {decision:?}");
    }
    let root = UserInfo::new("root", &["system:masters"]);
    assert!(authorizer.allows(&root, &ask("delete", "nodes", "", "n1")));
}

#[test]
fn anybody_may_ask_for_health_and_only_known_users_for_discovery() {
    let (_cluster, authorizer) = bootstrapped();
    let path = |path: &str| RequestInfo { verb: "get".into(), path: path.into(), ..RequestInfo::default() };
    let anonymous = UserInfo::new("system:anonymous", &["system:unauthenticated"]);
    let known = UserInfo::new("ann", &["system:authenticated"]);
    for (asked, for_anonymous, for_known) in
        [("/healthz", true, true), ("/version", true, true), ("/apis/apps/v1", false, true), ("/metrics", false, false)]
    {
        assert_eq!(authorizer.allows(&anonymous, &path(asked)), for_anonymous, "{asked}");
        assert_eq!(authorizer.allows(&known, &path(asked)), for_known, "{asked}");
    }
    assert!(authorizer.allows(&known, &ask("create", "authorization.k8s.io:selfsubjectaccessreviews", "", "")));
}

#[test]
fn a_write_counts_from_the_next_question_on() {
    let (cluster, authorizer) = bootstrapped();
    let ann = UserInfo::new("ann", &[]);
    let info = ask("get", "pods", "ns", "p");
    for _ in 0..3 {
        assert!(!authorizer.allows(&ann, &info));
        cluster.put("rolebindings", binding("ns", "b", "view", "ann"));
        let Decision::Allow { reason } = authorizer.authorize(&ann, &info) else { panic!("not allowed") };
        assert_eq!(reason, r#"RBAC: allowed by RoleBinding "b/ns" of ClusterRole "view" to User "ann""#);
        cluster.delete("rolebindings", "ns", "b");
    }
    cluster.put("rolebindings", binding("ns", "b", "view", "ann"));
    cluster.delete("clusterroles", "", "view");
    let Decision::NoOpinion { reason } = authorizer.authorize(&ann, &info) else { panic!("allowed") };
    assert_eq!(reason, r#"RBAC: clusterrole.rbac.authorization.k8s.io "view" not found"#);
}

#[test]
fn an_index_that_fell_behind_is_built_anew() {
    let (cluster, authorizer) = bootstrapped();
    let ann = UserInfo::new("ann", &[]);
    let info = ask("get", "pods", "ns", "p");
    assert!(!authorizer.allows(&ann, &info));
    cluster.put("rolebindings", binding("ns", "b", "view", "ann"));
    cluster.view.store().compact(cluster.view.store().revision()).unwrap();
    assert!(authorizer.allows(&ann, &info));
}

#[test]
fn refusals_are_worded_as_upstream() {
    let x = UserInfo::new("x", &[]);
    let table = [
        (
            ask("list", "pods", "default", ""),
            r#"pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default""#,
        ),
        (
            ask("get", "apps:deployments/scale", "ns", "d"),
            r#"deployments.apps "d" is forbidden: User "x" cannot get resource "deployments/scale" in API group "apps" in the namespace "ns""#,
        ),
        (
            ask("list", "nodes", "", ""),
            r#"nodes is forbidden: User "x" cannot list resource "nodes" in API group "" at the cluster scope"#,
        ),
        (
            RequestInfo { verb: "get".into(), path: "/metrics".into(), ..RequestInfo::default() },
            r#"forbidden: User "x" cannot get path "/metrics""#,
        ),
    ];
    for (info, expected) in table {
        let error = forbidden(&x, &info, "");
        assert_eq!((error.message.as_str(), error.code), (expected, 403));
        assert_eq!(forbidden(&x, &info, "why").message, format!("{expected}: why"));
    }
}

#[test]
fn nodes_are_known_by_group_and_name() {
    let (cluster, authorizer) = bootstrapped();
    cluster.put(
        "pods",
        json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": {
        "nodeName": "n1", "volumes": [{"name": "v", "secret": {"secretName": "s"}}]}}),
    );
    let node = |name: &str| UserInfo::new(&format!("system:node:{name}"), &["system:nodes", "system:authenticated"]);
    let secret = ask("get", "secrets", "ns", "s");
    assert!(authorizer.allows(&node("n1"), &secret));
    let Decision::NoOpinion { reason } = authorizer.authorize(&node("n2"), &secret) else { panic!("allowed") };
    assert_eq!(reason, "no relationship found between node 'n2' and this object");
    assert!(!authorizer.allows(&UserInfo::new("system:node:n1", &[]), &secret));
    let stray = authorizer.authorize(&UserInfo::new("ann", &["system:nodes"]), &secret);
    assert_eq!(stray, Decision::NoOpinion { reason: r#"unknown node for user "ann""#.into() });
    cluster.delete("pods", "ns", "p");
    assert!(!authorizer.allows(&node("n1"), &secret));
}

#[test]
fn nobody_grants_more_than_they_hold() {
    let (cluster, authorizer) = bootstrapped();
    cluster.put("rolebindings", binding("ns", "adam", "admin", "adam"));
    let adam = UserInfo::new("adam", &["system:authenticated"]);
    let role = |verbs: &[&str], resource: &str| {
        json!({"metadata": {"name": "r", "namespace": "ns"},
            "rules": [{"verbs": verbs, "apiGroups": [""], "resources": [resource]}]})
    };
    assert!(check_role_write(&authorizer, &adam, "ns", &role(&["get"], "pods"), None).is_ok());
    let error = check_role_write(&authorizer, &adam, "ns", &role(&["get", "list"], "nodes"), None).unwrap_err();
    assert_eq!(
        error.message,
        "roles.rbac.authorization.k8s.io \"r\" is forbidden: user \"adam\" (groups=[\"system:authenticated\"]) is attempting to grant RBAC permissions not currently held:\n{APIGroups:[\"\"], Resources:[\"nodes\"], Verbs:[\"get\" \"list\"]}"
    );
    let mut collected = role(&["get", "list"], "nodes");
    collected["metadata"]["finalizers"] = json!(["x"]);
    let old = role(&["get", "list"], "nodes");
    assert!(check_role_write(&authorizer, &adam, "ns", &collected, Some(&old)).is_ok());

    assert!(check_binding_write(&authorizer, &adam, "ns", &binding("ns", "b", "view", "bob"), None).is_ok());
    let error = check_binding_write(&authorizer, &adam, "ns", &binding("ns", "b", "cluster-admin", "bob"), None);
    assert!(
        error
            .unwrap_err()
            .message
            .starts_with(r#"rolebindings.rbac.authorization.k8s.io "b" is forbidden: user "adam""#)
    );
    let error = check_binding_write(&authorizer, &adam, "ns", &binding("ns", "b", "gone", "bob"), None).unwrap_err();
    assert_eq!(
        (error.code, error.message.as_str()),
        (404, r#"clusterroles.rbac.authorization.k8s.io "gone" not found"#)
    );

    cluster.put("clusterroles", json!({"metadata": {"name": "binder"}, "rules": [{
        "verbs": ["bind"], "apiGroups": ["rbac.authorization.k8s.io"], "resources": ["clusterroles"], "resourceNames": ["cluster-admin"]}]}));
    cluster.put("rolebindings", binding("ns", "adam-binds", "binder", "adam"));
    assert!(check_binding_write(&authorizer, &adam, "ns", &binding("ns", "b", "cluster-admin", "bob"), None).is_ok());

    let aggregated = json!({"metadata": {"name": "c"}, "aggregationRule": {"clusterRoleSelectors": []}});
    let error = check_role_write(&authorizer, &adam, "", &aggregated, None).unwrap_err();
    assert!(error.message.ends_with("must have cluster-admin privileges to use the aggregationRule"));
}

#[test]
fn thousands_of_bindings_cost_nothing() {
    let (cluster, authorizer) = bootstrapped();
    for n in 0..5000 {
        cluster.put("rolebindings", binding(&format!("ns{}", n % 100), &format!("b{n}"), "view", &format!("user{n}")));
    }
    let user = UserInfo::new("user7", &["system:authenticated", "a", "b"]);
    assert!(authorizer.allows(&user, &ask("get", "pods", "ns7", "p")));
    let started = Instant::now();
    for _ in 0..1000 {
        assert!(!authorizer.allows(&user, &ask("delete", "pods", "ns7", "p")));
    }
    // Generous for a busy machine and a build without optimisation; visiting all bindings would take seconds.
    assert!(started.elapsed() < Duration::from_millis(500), "{:?} for 1000 decisions", started.elapsed());
}

#[test]
fn reviews_answer_for_others_and_for_oneself() {
    let (cluster, authorizer) = bootstrapped();
    cluster.put("rolebindings", binding("ns", "b", "view", "ann"));
    let attributes = json!({"verb": "list", "resource": "pods", "namespace": "ns"});
    let review =
        |spec: Value| subject_access_review(&authorizer, &json!({"kind": "SubjectAccessReview", "spec": spec}));
    let answer = review(json!({"user": "ann", "resourceAttributes": attributes})).unwrap();
    assert_eq!(answer["status"]["allowed"], true);
    assert_eq!(answer["spec"]["user"], "ann");
    let answer = review(json!({"user": "bob", "resourceAttributes": attributes})).unwrap();
    assert_eq!(answer["status"], json!({"allowed": false}));
    let error = review(json!({"resourceAttributes": attributes})).unwrap_err();
    assert_eq!(
        error.message,
        r#"SubjectAccessReview.authorization.k8s.io "" is invalid: spec.user: Invalid value: "": at least one of user or group must be specified"#
    );
    assert_eq!(review(json!({"user": "ann"})).unwrap_err().code, 422);
    let ann = UserInfo::new("ann", &[]);
    let own = self_access_review(
        &authorizer,
        &ann,
        &json!({"spec": {"nonResourceAttributes": {"verb": "get", "path": "/x"}}}),
    );
    assert_eq!(own.unwrap()["status"]["allowed"], false);
    let elsewhere = json!({"spec": {"user": "ann", "resourceAttributes": attributes}});
    assert_eq!(local_access_review(&authorizer, "other", &elsewhere).unwrap_err().code, 400);
    let rules = self_rules_review(&authorizer, &ann, &json!({"spec": {"namespace": "ns"}})).unwrap();
    assert!(rules["status"]["resourceRules"].as_array().unwrap().len() > 5);
    assert_eq!(rules["status"]["incomplete"], false);
}
