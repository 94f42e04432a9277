//! Kinds that keep pods running: their scale and status subresources, and operations on collections of them.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-apps] Daemon set should list and delete a collection of DaemonSets [Conformance] [Serial]" => collection, &kinds::DAEMON_SET, 0;
    "[sig-apps] Daemon set should verify changes to a daemon set status [Conformance] [Serial]" => status, &kinds::DAEMON_SET, 0;
    "[sig-apps] Deployment Deployment should have a working scale subresource [Conformance]" => scale, &kinds::DEPLOYMENT;
    "[sig-apps] Deployment should validate Deployment Status endpoints [Conformance]" => status, &kinds::DEPLOYMENT, 1;
    "[sig-apps] ReplicaSet Replace and Patch tests [Conformance]" => replace_and_patch;
    "[sig-apps] ReplicaSet Replicaset should have a working scale subresource [Conformance]" => scale, &kinds::REPLICA_SET;
    "[sig-apps] ReplicaSet should list and delete a collection of ReplicaSets [Conformance]" => collection, &kinds::REPLICA_SET, 3;
    "[sig-apps] ReplicaSet should validate Replicaset Status endpoints [Conformance]" => status, &kinds::REPLICA_SET, 1;
    "[sig-apps] ReplicationController should get and update a ReplicationController scale [Conformance]" => scale, &kinds::REPLICATION_CONTROLLER;
    "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should list, patch and delete a collection of StatefulSets [Conformance]" => patched_collection;
    "[sig-apps] StatefulSet Basic StatefulSet functionality [StatefulSetBasic] should validate Statefulset Status endpoints [Conformance]" => status, &kinds::STATEFUL_SET, 1;
}

/// An object of a workload kind whose pods idle. Replicas do not count for a daemon set.
pub fn workload(cx: &Cx, kind: &Kind, name: &str, replicas: i64) -> Value {
    // The label is the test's own, so that lists across namespaces find nothing of others.
    let labels = json!({"app": name, "test": cx.ns});
    let mut spec = json!({"template": template(&labels), "selector": {"matchLabels": labels}, "replicas": replicas});
    match kind.kind.as_ref() {
        "DaemonSet" => spec["replicas"] = Value::Null,
        "ReplicationController" => spec["selector"] = labels.clone(),
        "StatefulSet" => spec["serviceName"] = name.into(),
        _ => {}
    }
    json!({"metadata": {"name": name, "labels": labels}, "spec": spec})
}

/// "Not yet" unless every pod that should run is ready, and the controller has seen the spec.
pub fn ready(object: &Value) -> Result<(), String> {
    let status = at(object, "/status");
    let (wanted, have) = if at(object, "/spec/replicas").is_null() {
        (number(status, "/desiredNumberScheduled").max(1), number(status, "/numberReady"))
    } else {
        (number(object, "/spec/replicas"), number(status, "/readyReplicas"))
    };
    let seen = number(status, "/observedGeneration") >= number(object, "/metadata/generation");
    when(seen && wanted == have, || format!("{wanted} wanted, status {status}"))
}

/// Creates a workload and waits until it is ready.
pub async fn run(cx: &Cx, kind: &Kind, name: &str, replicas: i64) -> Result<Value> {
    let api = cx.api(kind);
    api.create(&workload(cx, kind, name, replicas)).await?;
    cx.step(format!("{} {name} ready", kind.kind));
    api.wait_one(name, POD, "ready workload", ready).await
}

async fn scale(cx: Arc<Cx>, kind: &'static Kind) -> Result<()> {
    let api = cx.api(kind);
    run(&cx, kind, "subject", 1).await?;
    cx.step("get the scale");
    let scale = api.send("GET", &["subject", "scale"], &[], None).await?;
    expect(&scale, "/kind", "Scale")?;
    expect(&scale, "/spec/replicas", 1)?;
    expect(&scale, "/status/replicas", 1)?;
    cx.step("update the scale");
    let mut unconditional = scale.clone();
    unconditional["metadata"]["resourceVersion"] = Value::Null;
    unconditional["spec"]["replicas"] = 2.into();
    let updated = api.update_sub("scale", &unconditional).await?;
    expect(&updated, "/spec/replicas", 2)?;
    expect(&api.get("subject").await?, "/spec/replicas", 2)?;
    api.wait_one("subject", POD, "two replicas", ready).await?;
    cx.step("patch the scale");
    // With what typed clients send beside it.
    let patch = json!({"metadata": {"creationTimestamp": null}, "spec": {"replicas": 4}, "status": {"replicas": 0}});
    let patched = api.patch_sub("subject", "scale", Patch::Strategic, &patch).await?;
    expect(&patched, "/spec/replicas", 4)?;
    expect(&api.get("subject").await?, "/spec/replicas", 4)
}

async fn status(cx: Arc<Cx>, kind: &'static Kind, replicas: i64) -> Result<()> {
    let api = cx.api(kind);
    run(&cx, kind, "subject", replicas).await?;
    let selector = format!("test={}", cx.ns);
    let mine = labelled(&selector);
    let list = cx.cluster_wide(kind).list(&mine).await?;
    ensure!(items(&list, "/items").len() == 1, "{} found by label", items(&list, "/items").len());
    let mut watch = api.watch_since(&list, &mine).await?;
    cx.step("get the status");
    let read = api.send("GET", &["subject", "status"], &[], None).await?;
    ensure!(read["status"].is_object(), "status {}", read["status"]);
    cx.step("update the status");
    let written =
        |kind: &str| json!({"type": kind, "status": "True", "reason": "Conformance", "message": "set by a test"});
    let updated = api.change_sub("subject", Some("status"), |object| {
        let added = written("StatusUpdate");
        match object["status"]["conditions"].as_array_mut() {
            Some(conditions) => conditions.push(added),
            None => object["status"]["conditions"] = json!([added]),
        }
    });
    let has = |object: &Value, kind: &str| {
        condition(object, kind).is_some_and(|c| {
            text(c, "/status") == "True"
                && text(c, "/reason") == "Conformance"
                && text(c, "/message") == "set by a test"
        })
    };
    ensure!(has(&updated.await?, "StatusUpdate"), "the answer lacks the condition");
    watch.expect("MODIFIED", "the updated status", SOON, |object| has(object, "StatusUpdate")).await?;
    cx.step("patch the status");
    let patch = json!({"status": {"conditions": [written("StatusPatched")]}});
    let patched = api.patch_sub("subject", "status", Patch::Merge, &patch).await?;
    ensure!(has(&patched, "StatusPatched"), "the answer lacks the condition: {}", patched["status"]);
    watch.expect("MODIFIED", "the patched status", SOON, |object| has(object, "StatusPatched")).await?;
    Ok(())
}

async fn collection(cx: Arc<Cx>, kind: &'static Kind, replicas: i64) -> Result<()> {
    let api = cx.api(kind);
    run(&cx, kind, "subject", replicas).await?;
    delete_by_label(&cx, &api).await
}

/// The one object is found by its label in all namespaces, and deleted by it; its pods go as well.
async fn delete_by_label(cx: &Cx, api: &Api) -> Result<()> {
    let selector = format!("test={}", cx.ns);
    let mine = labelled(&selector);
    let list = cx.cluster_wide(&api.kind).list(&mine).await?;
    ensure!(items(&list, "/items").len() == 1, "{} found by label, expected 1", items(&list, "/items").len());
    cx.step("deletecollection");
    api.delete_collection(&mine).await?;
    api.wait_none(&mine, SOON).await?;
    cx.step("pods gone");
    cx.api(&kinds::POD).wait_none(&mine, POD).await
}

async fn patched_collection(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::STATEFUL_SET);
    run(&cx, &kinds::STATEFUL_SET, "subject", 1).await?;
    cx.step("patch");
    // Of another name, so it is added, and comes first.
    let container = json!({"name": "added", "image": WEB});
    let patch = json!({
        "metadata": {"labels": {"patched": "true"}},
        "spec": {"replicas": 2, "template": {"spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}},
    });
    let patched = api.patch("subject", Patch::Strategic, &patch).await?;
    expect(&patched, "/metadata/labels/patched", "true")?;
    expect(&patched, "/spec/replicas", 2)?;
    expect(&patched, "/spec/template/spec/containers/0/image", WEB)?;
    let done = |set: &Value| {
        is(set, "/status/updatedReplicas", 2)?;
        is(set, "/status/readyReplicas", 2)?;
        is(set, "/status/currentRevision", text(set, "/status/updateRevision"))
    };
    api.wait_one("subject", POD, "rolled out patch", done).await?;
    delete_by_label(&cx, &api).await
}

async fn replace_and_patch(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::REPLICA_SET);
    run(&cx, &kinds::REPLICA_SET, "subject", 1).await?;
    cx.step("replace");
    let replaced = api.change("subject", |set| set["spec"]["replicas"] = 2.into()).await?;
    expect(&replaced, "/spec/replicas", 2)?;
    let scaled = api.wait_one("subject", POD, "two replicas", ready).await?;
    cx.step("patch");
    let mut watch = api.watch_since(&scaled, &[("fieldSelector", "metadata.name=subject")]).await?;
    // Of another name, so it is added, and comes first.
    let container = json!({"name": "added", "image": WEB});
    let patch = json!({
        "metadata": {"labels": {"test-rs": "patched"}},
        "spec": {"replicas": 3, "template": {"spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}},
    });
    api.patch("subject", Patch::Strategic, &patch).await?;
    let seen = watch.expect("MODIFIED", "the patched replica set with its pods ready", POD, |set| {
        text(set, "/metadata/labels/test-rs") == "patched"
            && number(set, "/status/readyReplicas") == 3
            && number(set, "/status/availableReplicas") == 3
    });
    let seen = seen.await.context("after the patch")?;
    expect(&seen, "/spec/template/spec/containers/0/image", WEB)?;
    expect(&seen, "/spec/template/spec/terminationGracePeriodSeconds", 0)
}
