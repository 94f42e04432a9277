//! Admission policies at work.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment [Conformance]" => mutates, &["Object{metadata: Object.metadata{annotations: {\"mutated-by\": \"admission-policy\"}}}"], &[("mutated-by", "admission-policy")];
    "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment with annotations [Conformance]" => mutates_annotated;
    "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should allow expressions to refer variables. [Conformance]" => variables;
    "[sig-api-machinery] ValidatingAdmissionPolicy [Privileged:ClusterAdmin] should validate against a Deployment [Conformance]" => validates;
}

/// The namespaces in which the policies of a test apply: those with the test's own name as a label.
fn own_namespace(cx: &Cx) -> Value {
    json!({"matchLabels": {"kubernetes.io/metadata.name": cx.ns}})
}

fn deployments(cx: &Cx) -> Value {
    json!({
        "namespaceSelector": own_namespace(cx),
        "resourceRules": [{
            "operations": ["CREATE", "UPDATE"], "apiGroups": ["apps"], "apiVersions": ["v1"], "resources": ["deployments"],
        }],
    })
}

/// A deployment whose pods are never meant to run.
fn deployment(name: &str, replicas: i64) -> Value {
    let labels = json!({"app": "test"});
    json!({
        "metadata": {"name": name},
        "spec": {"replicas": replicas, "selector": {"matchLabels": labels}, "template": template(&labels)},
    })
}

/// Creates a policy, a binding for the test's namespace, and waits until `applied` succeeds on a dry run: that it is in force.
async fn bind(cx: &Cx, kinds: (&Kind, &Kind), spec: &Value, binding: &Value) -> Result<()> {
    let subject = format!("{}.policy.example.com", cx.ns);
    cx.step("creating the policy");
    cx.create_for_test(kinds.0, &json!({"metadata": {"name": subject}, "spec": spec})).await?;
    let mut binding = binding.clone();
    binding["policyName"] = subject.into();
    binding["matchResources"] = json!({"namespaceSelector": own_namespace(cx)});
    let object = json!({"metadata": {"name": format!("{}.binding.example.com", cx.ns)}, "spec": binding});
    cx.create_for_test(kinds.1, &object).await?;
    Ok(())
}

const DRY_RUN: [(&str, &str); 1] = [("dryRun", "All")];

async fn mutates(
    cx: Arc<Cx>,
    expressions: &'static [&'static str],
    annotations: &'static [(&'static str, &'static str)],
) -> Result<()> {
    mutated(&cx, expressions, json!({}), annotations).await
}

/// The annotations that the object came with stay, beside those of the policy.
async fn mutates_annotated(cx: Arc<Cx>) -> Result<()> {
    let expressions = [
        "Object{metadata: Object.metadata{annotations: {\"my-foo-annotation\": \"myAnnotationValue\"}}}",
        "Object{metadata: Object.metadata{annotations: {\"second\": object.metadata.name}}}",
    ];
    let own = json!({"existing": "kept"});
    let expected = [("my-foo-annotation", "myAnnotationValue"), ("second", "subject"), ("existing", "kept")];
    mutated(&cx, &expressions, own, &expected).await
}

async fn mutated(cx: &Cx, expressions: &[&str], own: Value, expected: &[(&str, &str)]) -> Result<()> {
    let mutation = |expression: &&str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}});
    let mutations: Vec<Value> = expressions.iter().map(mutation).collect();
    let spec = json!({"matchConstraints": deployments(cx), "mutations": mutations, "reinvocationPolicy": "Never"});
    bind(cx, (&kinds::MUTATING_POLICY, &kinds::MUTATING_POLICY_BINDING), &spec, &json!({})).await?;
    let api = cx.api(&kinds::DEPLOYMENT);
    let mut object = deployment("subject", 1);
    object["metadata"]["annotations"] = own;
    cx.step("waiting until the policy is in force");
    retry(SOON, "policy in force", async || {
        let tried = api.create_with(&object, &DRY_RUN).await?;
        expect(&tried, &format!("/metadata/annotations/{}", expected[0].0), expected[0].1)
    })
    .await?;
    let made = api.create(&object).await?;
    for (key, value) in expected {
        expect(&made, &format!("/metadata/annotations/{key}"), *value)?;
    }
    Ok(())
}

/// The policy is checked for types against the kinds that it names: once that is seen the status has the generation.
async fn type_checked(cx: &Cx) -> Result<Value> {
    let subject = format!("{}.policy.example.com", cx.ns);
    let policies = cx.api(&kinds::VALIDATING_POLICY);
    let checked = |policy: &Value| {
        when(!at(policy, "/status/typeChecking").is_null(), || format!("status {}", at(policy, "/status")))
    };
    policies.wait_one(&subject, SOON, "type check of the policy", checked).await
}

async fn validates(cx: Arc<Cx>) -> Result<()> {
    let message = "object.spec.replicas should be greater than 1";
    let spec = json!({
        "matchConstraints": deployments(&cx),
        "validations": [{"expression": "object.spec.replicas > 1", "message": message}],
    });
    let kinds = (&kinds::VALIDATING_POLICY, &kinds::VALIDATING_POLICY_BINDING);
    bind(&cx, kinds, &spec, &json!({"validationActions": ["Deny"]})).await?;
    let policy = type_checked(&cx).await?;
    let warnings = items(&policy, "/status/typeChecking/expressionWarnings");
    ensure!(warnings.is_empty(), "warnings about a sound expression: {warnings:?}");
    let api = cx.api(&kinds::DEPLOYMENT);
    cx.step("waiting until a marker is refused");
    retry(SOON, "policy in force", async || {
        expect_failure(api.create_with(&deployment("marker", 0), &DRY_RUN).await, 422, "a marker of no replicas")?;
        Ok(())
    })
    .await?;
    cx.step("deployments of two and of one");
    api.create(&deployment("replicated", 2)).await.context("a deployment that the policy allows")?;
    let status = expect_failure(api.create(&deployment("single", 1)).await, 422, "a deployment of one replica")?;
    ensure!(status.message.contains(message), "refused with {:?}, expected {message:?} in it", status.message);
    ensure!(status.reason == "Invalid", "refused for {:?}", status.reason);
    let changed = api.patch("replicated", Patch::Merge, &json!({"spec": {"replicas": 1}})).await;
    expect_failure(changed, 422, "an update to one replica")?;
    Ok(())
}

async fn variables(cx: Arc<Cx>) -> Result<()> {
    let spec = json!({
        "matchConstraints": deployments(&cx),
        "variables": [
            {"name": "replicas", "expression": "object.spec.replicas"},
            {"name": "oddReplicas", "expression": "variables.replicas % 2 == 1"},
        ],
        "validations": [
            {"expression": "variables.replicas > 1"},
            {"expression": "variables.oddReplicas"},
        ],
    });
    let kinds = (&kinds::VALIDATING_POLICY, &kinds::VALIDATING_POLICY_BINDING);
    bind(&cx, kinds, &spec, &json!({"validationActions": ["Deny"]})).await?;
    let api = cx.api(&kinds::DEPLOYMENT);
    cx.step("waiting until a marker is refused");
    retry(SOON, "policy in force", async || {
        expect_failure(api.create_with(&deployment("marker", 0), &DRY_RUN).await, 422, "a marker of no replicas")?;
        Ok(())
    })
    .await?;
    cx.step("deployments of three, two and one");
    api.create(&deployment("three", 3)).await.context("a deployment that the policy allows")?;
    let even = expect_failure(api.create(&deployment("two", 2)).await, 422, "an even deployment")?;
    let failed = "failed expression: variables.oddReplicas";
    ensure!(even.message.contains(failed), "refused with {:?}, expected {failed:?} in it", even.message);
    let few = expect_failure(api.create(&deployment("one", 1)).await, 422, "a deployment of one replica")?;
    let failed = "failed expression: variables.replicas > 1";
    ensure!(few.message.contains(failed), "refused with {:?}, expected {failed:?} in it", few.message);
    Ok(())
}
