//! Kinds that keep pods running: their scale and status subresources, and operations on collections of them.

use std::collections::BTreeSet;
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

/// Creates a workload and waits until it is ready: a daemon set on every node that takes ordinary pods, a deployment with
/// everything of its first revision.
pub async fn run(cx: &Cx, kind: &Kind, name: &str, replicas: i64) -> Result<Value> {
    run_as(cx, &workload(cx, kind, name, replicas), kind).await
}

async fn run_as(cx: &Cx, object: &Value, kind: &Kind) -> Result<Value> {
    let api = cx.api(kind);
    let subject = name(object);
    api.create(object).await?;
    cx.step(format!("{} {subject} ready", kind.kind));
    let made = api.wait_one(subject, POD, "ready workload", ready).await?;
    match kind.kind.as_ref() {
        "DaemonSet" => on_every_node(cx, &made).await?,
        "Deployment" => first_revision(cx, &made).await?,
        _ => {}
    }
    Ok(made)
}

/// A ready pod of the set is on every node that takes ordinary pods, and on no other; the status says the same.
async fn on_every_node(cx: &Cx, set: &Value) -> Result<()> {
    let nodes = cx.ready_nodes().await?;
    let wanted: BTreeSet<&str> = nodes.iter().map(name).collect();
    let pods = cx.api(&kinds::POD).list(&[]).await?;
    let of_set = items(&pods, "/items").iter().filter(|pod| text(pod, "/metadata/ownerReferences/0/uid") == uid(set));
    let ready: Vec<&str> = of_set.filter(|pod| holds(pod, "Ready")).map(|pod| text(pod, "/spec/nodeName")).collect();
    ensure!(
        ready.len() == wanted.len() && ready.iter().all(|node| wanted.contains(node)),
        "pods on {ready:?}, nodes {wanted:?}"
    );
    for field in ["desiredNumberScheduled", "currentNumberScheduled", "numberReady"] {
        expect(set, &format!("/status/{field}"), wanted.len())?;
    }
    Ok(())
}

/// The deployment and its replica set say that they are of revision 1, and the deployment is complete.
async fn first_revision(cx: &Cx, deployment: &Value) -> Result<()> {
    const REVISION: &str = "/metadata/annotations/deployment.kubernetes.io~1revision";
    let wanted = number(deployment, "/spec/replicas");
    let complete = |deployment: &Value| {
        is(deployment, REVISION, "1")?;
        ["replicas", "updatedReplicas", "availableReplicas"]
            .iter()
            .try_for_each(|field| is(deployment, &format!("/status/{field}"), wanted))
    };
    cx.api(&kinds::DEPLOYMENT).wait_one(name(deployment), POD, "complete deployment", complete).await?;
    let sets = cx.api(&kinds::REPLICA_SET).list(&[]).await?;
    let of_deployment = |set: &&Value| text(set, "/metadata/ownerReferences/0/uid") == uid(deployment);
    let set = items(&sets, "/items").iter().find(of_deployment).context("the deployment has no replica set")?;
    expect(set, REVISION, "1")?;
    let image = "/spec/template/spec/containers/0/image";
    expect(set, image, at(deployment, image).clone())
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

/// A label that every object gets after it was made, for the kind whose test does so.
const LATER: &str = "conformance.example.com/later";

/// The patch of a status as upstream sends it: for daemon sets a whole object of Go's, with its empty spec.
fn status_patch(kind: &Kind) -> Value {
    let mut patch = json!({"status": {"conditions": [{"type": "StatusPatched", "status": "True"}]}});
    if kind.kind == "DaemonSet" {
        patch["metadata"] = json!({"creationTimestamp": null});
        patch["spec"] = json!({
            "selector": null, "updateStrategy": {},
            "template": {"metadata": {"creationTimestamp": null}, "spec": {"containers": null}},
        });
        for field in ["currentNumberScheduled", "numberMisscheduled", "desiredNumberScheduled", "numberReady"] {
            patch["status"][field] = 0.into();
        }
        patch["status"]["conditions"][0]["lastTransitionTime"] = Value::Null;
    }
    patch
}

async fn status(cx: Arc<Cx>, kind: &'static Kind, replicas: i64) -> Result<()> {
    let api = cx.api(kind);
    // Stateful sets are watched by a label that they are given later: they come into view with it.
    let later = kind.kind == "StatefulSet";
    let selector = format!("{}={}", if later { LATER } else { "test" }, cx.ns);
    let mine = labelled(&selector);
    let before = cx.cluster_wide(kind).list(&mine).await?;
    ensure!(items(&before, "/items").is_empty(), "found by label at first: {before}");
    let made = run(&cx, kind, "subject", replicas).await?;
    if later {
        api.patch("subject", Patch::Strategic, &json!({"metadata": {"labels": {LATER: cx.ns}}})).await?;
    }
    cx.step("get the status");
    let read = api.send("GET", &["subject", "status"], &[], None).await?;
    expect(&read, "/metadata/uid", uid(&made))?;
    ensure!(read["status"].is_object(), "status {}", read["status"]);
    cx.step("update the status");
    let updated = api.change_sub("subject", Some("status"), |object| {
        let added =
            json!({"type": "StatusUpdate", "status": "True", "reason": "Conformance", "message": "set by a test"});
        match object["status"]["conditions"].as_array_mut() {
            Some(conditions) => conditions.push(added),
            None => object["status"]["conditions"] = json!([added]),
        }
    });
    let has_update = |object: &Value| {
        condition(object, "StatusUpdate").is_some_and(|c| {
            text(c, "/status") == "True"
                && text(c, "/reason") == "Conformance"
                && text(c, "/message") == "set by a test"
        })
    };
    ensure!(has_update(&updated.await?), "the answer lacks the condition");
    // All that happened since before the object was made is told again to each watcher.
    let mut watch = api.watch_since(&before, &mine).await?;
    watch.expect("MODIFIED", "the updated status", SOON, has_update).await?;
    cx.step("patch the status");
    let patched = api.patch_sub("subject", "status", Patch::Merge, &status_patch(kind)).await?;
    ensure!(holds(&patched, "StatusPatched"), "the answer lacks the condition: {}", patched["status"]);
    expect(&patched, "/spec", made["spec"].clone())?;
    let mut watch = api.watch_since(&before, &mine).await?;
    watch.expect("MODIFIED", "the patched status", SOON, |object| holds(object, "StatusPatched")).await?;
    Ok(())
}

async fn collection(cx: Arc<Cx>, kind: &'static Kind, replicas: i64) -> Result<()> {
    let api = cx.api(kind);
    run(&cx, kind, "subject", replicas).await?;
    delete_by_label(&cx, &api, &format!("test={}", cx.ns)).await
}

/// The one object is found by a label in all namespaces, and deleted by it at once; its pods go as well.
async fn delete_by_label(cx: &Cx, api: &Api, selector: &str) -> Result<()> {
    let mine = labelled(selector);
    let everywhere = cx.cluster_wide(&api.kind);
    let list = everywhere.list(&mine).await?;
    ensure!(items(&list, "/items").len() == 1, "{} found by label, expected 1", items(&list, "/items").len());
    cx.step("deletecollection");
    api.delete_collection_with(&mine, &json!({"gracePeriodSeconds": 1})).await?;
    let left = everywhere.list(&mine).await?;
    ensure!(items(&left, "/items").is_empty(), "still there after deletecollection: {left}");
    cx.step("pods gone");
    cx.api(&kinds::POD).wait_none(&[], POD).await
}

async fn patched_collection(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::STATEFUL_SET);
    run(&cx, &kinds::STATEFUL_SET, "subject", 1).await?;
    cx.step("patch");
    // Of another name, so it is added, and comes first. What is no field is let pass, as it is for typed clients.
    let container = json!({"name": "added", "image": WEB});
    let patch = json!({
        "metadata": {"labels": {LATER: cx.ns}},
        "spec": {"replicas": 2, "template": {"spec": {"TerminationGracePeriodSeconds": 1, "containers": [container]}}},
    });
    api.patch("subject", Patch::Strategic, &patch).await?;
    let patched = api.get("subject").await?;
    expect(&patched, "/spec/replicas", 2)?;
    expect(&patched, "/spec/template/spec/containers/0/image", WEB)?;
    let done = |set: &Value| {
        ready(set)?;
        is(set, "/status/updatedReplicas", 2)?;
        is(set, "/status/readyReplicas", 2)?;
        is(set, "/status/currentRevision", text(set, "/status/updateRevision"))
    };
    api.wait_one("subject", POD, "rolled out patch", done).await?;
    delete_by_label(&cx, &api, &format!("{LATER}={}", cx.ns)).await
}

async fn replace_and_patch(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::REPLICA_SET);
    let selector = format!("{LATER}={}", cx.ns);
    let mine = labelled(&selector);
    let before = cx.cluster_wide(&kinds::REPLICA_SET).list(&mine).await?;
    run(&cx, &kinds::REPLICA_SET, "subject", 1).await?;
    cx.step("replace, and patch at once");
    let replaced = api.change("subject", |set| set["spec"]["replicas"] = 2.into()).await?;
    expect(&replaced, "/spec/replicas", 2)?;
    // Of another name, so it is added, and comes first.
    let container = json!({"name": "added", "image": WEB});
    let patch = json!({
        "metadata": {"labels": {LATER: cx.ns}},
        "spec": {"replicas": 3, "template": {"spec": {"terminationGracePeriodSeconds": 0, "containers": [container]}}},
    });
    api.patch("subject", Patch::Strategic, &patch).await?;
    let mut watch = api.watch_since(&before, &mine).await?;
    let seen = watch.expect("MODIFIED", "the patched replica set with its pods ready", POD, |set| {
        number(set, "/status/readyReplicas") == 3 && number(set, "/status/availableReplicas") == 3
    });
    let seen = seen.await.context("after the patch")?;
    expect(&seen, "/spec/template/spec/containers/0/image", WEB)?;
    expect(&seen, "/spec/template/spec/terminationGracePeriodSeconds", 0)
}
