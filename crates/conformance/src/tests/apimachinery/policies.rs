//! Admission policies at work.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-api-machinery] MutatingAdmissionPolicy [Privileged:ClusterAdmin] should mutate a Deployment [Conformance]" => mutates_spec;
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

/// A deployment, or what a replica set has in common with one.
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

async fn mutates_spec(cx: Arc<Cx>) -> Result<()> {
    let replicas = [("/spec/replicas", json!(1337))];
    mutated(&cx, &["Object{spec: Object.spec{replicas: 1337}}"], &replicas).await
}

/// The annotations that the object came with stay, beside those of the policy.
async fn mutates_annotated(cx: Arc<Cx>) -> Result<()> {
    let expressions = [
        "Object{metadata: Object.metadata{annotations: {\"mutated-by\": \"admission-policy\"}}}",
        "Object{metadata: Object.metadata{annotations: {\"second\": object.metadata.name}}}",
    ];
    let annotations = [
        ("/metadata/annotations/mutated-by", json!("admission-policy")),
        ("/metadata/annotations/second", json!("subject")),
        ("/metadata/annotations/existing", json!("kept")),
    ];
    mutated(&cx, &expressions, &annotations).await
}

async fn mutated(cx: &Cx, expressions: &[&str], expected: &[(&str, Value)]) -> Result<()> {
    let mutation = |expression: &&str| json!({"patchType": "ApplyConfiguration", "applyConfiguration": {"expression": expression}});
    let mutations: Vec<Value> = expressions.iter().map(mutation).collect();
    let spec = json!({
        "matchConstraints": deployments(cx), "mutations": mutations, "reinvocationPolicy": "Never", "failurePolicy": "Fail",
    });
    bind(cx, (&kinds::MUTATING_POLICY, &kinds::MUTATING_POLICY_BINDING), &spec, &json!({})).await?;
    let api = cx.api(&kinds::DEPLOYMENT);
    let mut object = deployment("subject", 1);
    object["metadata"]["annotations"] = json!({"existing": "kept"});
    // However many replicas the policy wants, none is to run.
    object["spec"]["paused"] = true.into();
    cx.step("waiting until the policy is in force");
    retry(SOON, "policy in force", async || {
        let tried = api.create_with(&object, &DRY_RUN).await?;
        expect(&tried, expected[0].0, expected[0].1.clone())
    })
    .await?;
    let made = api.create(&object).await?;
    for (pointer, value) in expected {
        expect(&made, pointer, value.clone())?;
    }
    expect(&api.get("subject").await?, expected[0].0, expected[0].1.clone())
}

async fn validates(cx: Arc<Cx>) -> Result<()> {
    // The message cannot be made, since text and numbers do not add up: the expression itself is said instead.
    let spec = json!({
        "matchConstraints": deployments(&cx),
        "validations": [
            {
                "expression": "object.spec.replicas > 1",
                "messageExpression": "'wants replicas > 1, got ' + object.spec.replicas",
            },
            {"expression": format!("namespaceObject.metadata.name == '{}'", cx.ns), "message": "of another namespace"},
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
    cx.step("deployments of two and of one");
    api.create(&deployment("replicated", 2)).await.context("a deployment that the policy allows")?;
    let status = expect_failure(api.create(&deployment("single", 1)).await, 422, "a deployment of one replica")?;
    let failed = "failed expression: object.spec.replicas > 1";
    ensure!(status.message.contains(failed), "refused with {:?}, expected {failed:?} in it", status.message);
    ensure!(status.reason == "Invalid", "refused for {:?}", status.reason);
    let changed = api.patch("replicated", Patch::Merge, &json!({"spec": {"replicas": 1}})).await;
    expect_failure(changed, 422, "an update to one replica")?;
    unmatched(&cx).await
}

/// A replica set of one is no deployment: the policies of deployments let it pass.
async fn unmatched(cx: &Cx) -> Result<()> {
    cx.step("a replica set of one, which the policy does not match");
    let set = cx.api(&kinds::REPLICA_SET).create(&deployment("set", 1)).await;
    set.context("a replica set that the policy does not match")?;
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
    unmatched(&cx).await
}
