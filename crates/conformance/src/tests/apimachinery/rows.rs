//! Kinds of this group whose API operations are tested.

use serde_json::{Value, json};

use crate::framework::*;
use crate::tests::lifecycle::{Row, crud, operations};

tests! {
    "[sig-api-machinery] API priority and fairness should support FlowSchema API operations [Conformance]" => operations, &FLOW_SCHEMAS;
    "[sig-api-machinery] API priority and fairness should support PriorityLevelConfiguration API operations [Conformance]" => operations, &PRIORITY_LEVELS;
    "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should support MutatingAdmissionPolicy API operations [Conformance]" => operations, &MUTATING_POLICIES;
    "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should support MutatingAdmissionPolicyBinding API operations [Conformance]" => operations, &MUTATING_BINDINGS;
    "[sig-api-machinery] StorageVersionMigration CRUD Tests storagemigration.k8s.io/v1 StorageVersionMigration [Conformance]" => crud, &STORAGE_VERSION_MIGRATIONS;
    "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should support ValidatingAdmissionPolicy API operations [Conformance]" => operations, &VALIDATING_POLICIES;
    "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should support ValidatingAdmissionPolicyBinding API operations [Conformance]" => operations, &VALIDATING_BINDINGS;
}

/// Some seconds ago, as conditions say it.
fn condition(kind: &str) -> Value {
    json!([{
        "type": kind, "status": "True", "reason": "Tested", "message": "by a test", "lastTransitionTime": "2026-01-01T00:00:00Z",
    }])
}

static FLOW_SCHEMAS: Row = Row {
    kind: &kinds::FLOW_SCHEMA,
    object: |_, _| {
        json!({"metadata": {}, "spec": {
            "matchingPrecedence": 10000,
            "priorityLevelConfiguration": {"name": "global-default"},
            "distinguisherMethod": {"type": "ByUser"},
            "rules": [{
                "subjects": [{"kind": "User", "user": {"name": "example-conformance-user"}}],
                "nonResourceRules": [{"verbs": ["*"], "nonResourceURLs": ["*"]}],
            }],
        }})
    },
    patch: || json!({"spec": {"matchingPrecedence": 9999}}),
    update: || json!({"spec": {"matchingPrecedence": 9000}}),
    status: Some(|| json!({"conditions": [{"type": "PatchStatusFailed", "status": "False", "reason": "Tested"}]})),
};

static PRIORITY_LEVELS: Row = Row {
    kind: &kinds::PRIORITY_LEVEL,
    object: |_, _| {
        json!({"metadata": {}, "spec": {
            "type": "Limited",
            "limited": {"nominalConcurrencyShares": 2, "limitResponse": {"type": "Reject"}},
        }})
    },
    patch: || json!({"spec": {"limited": {"nominalConcurrencyShares": 4}}}),
    update: || json!({"spec": {"limited": {"nominalConcurrencyShares": 6}}}),
    status: Some(|| json!({"conditions": [{"type": "PatchStatusFailed", "status": "False", "reason": "Tested"}]})),
};

/// Deployments: what the policies of these rows match.
fn deployments() -> Value {
    json!({"resourceRules": [{
        "operations": ["CREATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"],
    }]})
}

static VALIDATING_POLICIES: Row = Row {
    kind: &kinds::VALIDATING_POLICY,
    object: |_, _| {
        json!({"metadata": {}, "spec": {
            "validations": [{"expression": "object.spec.replicas <= 100"}], "matchConstraints": deployments(),
        }})
    },
    patch: || json!({"spec": {"failurePolicy": "Ignore"}}),
    update: || json!({"spec": {"failurePolicy": "Fail"}}),
    status: Some(|| json!({"conditions": condition("PatchStatusFailed")})),
};

static VALIDATING_BINDINGS: Row = Row {
    kind: &kinds::VALIDATING_POLICY_BINDING,
    object: |_, _| json!({"metadata": {}, "spec": {"policyName": "replicalimit-policy.example.com", "validationActions": ["Deny"]}}),
    patch: || json!({"spec": {"validationActions": ["Warn"]}}),
    update: || json!({"spec": {"validationActions": ["Deny"]}}),
    status: None,
};

static MUTATING_POLICIES: Row = Row {
    kind: &kinds::MUTATING_POLICY,
    object: |_, _| {
        let mutation = "Object{spec: Object.spec{replicas: 100}}";
        json!({"metadata": {}, "spec": {
            "reinvocationPolicy": "Never",
            "mutations": [{"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": mutation}}],
            "matchConstraints": deployments(),
        }})
    },
    patch: || json!({"spec": {"reinvocationPolicy": "IfNeeded"}}),
    update: || json!({"spec": {"reinvocationPolicy": "Never"}}),
    status: None,
};

static MUTATING_BINDINGS: Row = Row {
    kind: &kinds::MUTATING_POLICY_BINDING,
    object: |_, _| json!({"metadata": {}, "spec": {"policyName": "replicalimit-policy.example.com"}}),
    patch: || json!({"spec": {"policyName": "new-policy.example.com"}}),
    update: || json!({"spec": {"policyName": "replicalimit-policy.example.com"}}),
    status: None,
};

/// The spec cannot be changed, so the update is of a label.
static STORAGE_VERSION_MIGRATIONS: Row = Row {
    kind: &kinds::STORAGE_VERSION_MIGRATION,
    object: |cx, _| json!({"metadata": {"name": format!("test-{}", cx.ns)}, "spec": {"resource": {"group": "", "resource": "foo"}}}),
    patch: || json!({}),
    update: || json!({"metadata": {"labels": {"test.storagemigration.example.com": "test"}}}),
    status: Some(|| json!({"conditions": condition("TestCondition")})),
};
