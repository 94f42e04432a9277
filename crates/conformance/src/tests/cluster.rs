//! The groups with few tests: sig-architecture, sig-instrumentation and sig-scheduling.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-architecture] Conformance Tests should have at least two untainted nodes [Conformance]" => two_nodes;
    "[sig-instrumentation] Events should manage the lifecycle of an event [Conformance]" => events;
    "[sig-scheduling] LimitRange should list, patch and delete a LimitRange by collection [Conformance]" => limit_ranges;
    "[sig-scheduling] SchedulerPreemption validates pod disruption condition is added to the preempted pod [Conformance] [Serial]" => preemption;
}

async fn two_nodes(cx: Arc<Cx>) -> Result<()> {
    let nodes = cx.ready_nodes().await?;
    let names: Vec<&str> = nodes.iter().map(name).collect();
    ensure!(nodes.len() >= 2, "ready nodes without taints that keep pods away: {names:?}, expected two at least");
    Ok(())
}

async fn events(cx: Arc<Cx>) -> Result<()> {
    let (api, all) = (cx.api(&kinds::EVENT), cx.cluster_wide(&kinds::EVENT));
    let selector = format!("testevent-constant={}", cx.ns);
    let mine = labelled(&selector);
    let listed = async || -> Result<Vec<Value>> { Ok(items(&all.list(&mine).await?, "/items").to_vec()) };
    let event = json!({
        "metadata": {"name": "subject", "labels": {"testevent-constant": cx.ns}},
        "message": "This is a test event", "reason": "Test", "type": "Normal", "count": 1,
        "involvedObject": {"namespace": cx.ns},
    });
    api.create(&event).await?;
    let found = listed().await?;
    ensure!(found.len() == 1 && name(&found[0]) == "subject", "listed in all namespaces: {found:?}");
    cx.step("patch");
    api.patch("subject", Patch::Strategic, &json!({"message": "This is a test event - patched"})).await?;
    expect(&api.get("subject").await?, "/message", "This is a test event - patched")?;
    cx.step("update");
    expect(&api.get("subject").await?, "/message", "This is a test event - patched")?;
    // The server's own fields are left out of what is sent and of what is compared.
    let bare = |mut event: Value| {
        if let Some(metadata) = event["metadata"].as_object_mut() {
            metadata.remove("resourceVersion");
            metadata.remove("managedFields");
        }
        event
    };
    let mut wanted = bare(api.get("subject").await?);
    wanted["series"] = json!({"count": 100, "lastObservedTime": "2017-09-19T13:49:16.000000Z"});
    api.send("PUT", &["subject"], &[], Some(&wanted)).await?;
    let read = bare(api.get("subject").await?);
    ensure!(read == wanted, "read {read}, written {wanted}");
    cx.step("delete");
    api.delete("subject").await?;
    let left = listed().await?;
    ensure!(left.is_empty(), "listed after its deletion: {left:?}");
    Ok(())
}

async fn limit_ranges(cx: Arc<Cx>) -> Result<()> {
    let other = cx.another_namespace(json!({})).await?;
    let (here, there) = (cx.api(&kinds::LIMIT_RANGE), cx.api_in(&kinds::LIMIT_RANGE, &other));
    let all = cx.cluster_wide(&kinds::LIMIT_RANGE);
    let amounts =
        |cpu: &str, gi: &str| json!({"cpu": cpu, "memory": format!("{gi}Mi"), "ephemeral-storage": format!("{gi}Gi")});
    let limits = json!([{
        "type": "Container", "min": amounts("50m", "100"), "max": amounts("500m", "500"),
        "defaultRequest": amounts("100m", "200"), "default": amounts("500m", "500"),
    }]);
    let labels = json!({"test": cx.ns, "subject": "created"});
    let range = json!({"metadata": {"name": "subject", "labels": labels}, "spec": {"limits": limits}});
    let made = here.create(&range).await?;
    revision(&made)?;
    there.create(&range).await?;
    let selector = format!("test={}", cx.ns);
    let mine = labelled(&selector);
    let list = all.list(&mine).await?;
    ensure!(items(&list, "/items").len() == 2, "{} in all namespaces, expected 2", items(&list, "/items").len());
    cx.step("patch");
    let mut patched_limits = made["spec"]["limits"].clone();
    let min = amounts("9m", "49");
    set(&mut patched_limits, "/0/min", min.clone());
    let created = made["metadata"]["creationTimestamp"].clone();
    let patch = json!({
        "metadata": {"creationTimestamp": created, "labels": {"subject": "patched"}}, "spec": {"limits": patched_limits},
    });
    let patched = here.patch("subject", Patch::Strategic, &patch).await?;
    expect(&patched, "/metadata/labels/subject", "patched")?;
    expect(&patched, "/spec/limits/0/min", min)?;
    newer(&made, &patched)?;
    cx.step("deletecollection");
    let patched = labelled("subject=patched");
    here.delete_collection(&patched).await?;
    here.wait_none(&patched, Duration::from_secs(10)).await?;
    let list = all.list(&mine).await?;
    let left = items(&list, "/items");
    ensure!(left.len() == 1, "{} are left in all namespaces, expected 1", left.len());
    expect(&left[0], "/metadata/namespace", other)
}

/// A resource that nodes do not have but for this test.
const FAKE: &str = "conformance.example.com/fake";
const FAKE_POINTER: &str = "conformance.example.com~1fake";

async fn preemption(cx: Arc<Cx>) -> Result<()> {
    let nodes = cx.ready_nodes().await?;
    let node = name(&nodes[0]);
    let api = cx.cluster_wide(&kinds::NODE);
    let capacity = format!("/status/capacity/{FAKE_POINTER}");
    let add = json!([{"op": "add", "path": capacity, "value": "1"}]);
    api.patch_sub(node, "status", Patch::Json, &add).await?;
    let checked = preempted(&cx, node).await;
    let remove = json!([{"op": "remove", "path": capacity}]);
    api.patch_sub(node, "status", Patch::Json, &remove).await.context("removing the test's resource from the node")?;
    checked
}

async fn preempted(cx: &Cx, node: &str) -> Result<()> {
    cx.step("the node offers the resource");
    let offered = format!("/status/allocatable/{FAKE_POINTER}");
    cx.cluster_wide(&kinds::NODE).wait_one(node, SOON, "resource of the node", |node| is(node, &offered, "1")).await?;
    let mut classes = Vec::new();
    for (prefix, value) in [("low", 1), ("high", 1000)] {
        let class = json!({"metadata": {"name": cx.unique(prefix)}, "value": value});
        classes.push(name(&cx.create_for_test(&kinds::PRIORITY_CLASS, &class).await?).to_owned());
    }
    let contender = |subject: &str, class: &str| {
        let mut pod = pod(subject, idle("main"));
        pod["spec"]["priorityClassName"] = class.into();
        pod["spec"]["containers"][0]["resources"] = json!({"requests": {FAKE: "1"}, "limits": {FAKE: "1"}});
        let term = json!({"matchFields": [{"key": "metadata.name", "operator": "In", "values": [node]}]});
        pod["spec"]["affinity"] = json!({"nodeAffinity": {
            "requiredDuringSchedulingIgnoredDuringExecution": {"nodeSelectorTerms": [term]},
        }});
        pod
    };
    let pods = cx.api(&kinds::POD);
    let mut victim = contender("victim", &classes[0]);
    victim["metadata"]["finalizers"] = json!(["conformance.example.com/finalizer"]);
    cx.start(&victim).await.context("the victim")?;
    cx.step("a pod of higher priority comes");
    let checked = async {
        pods.create(&contender("preemptor", &classes[1])).await?;
        let going = |pod: &Value| {
            when(!at(pod, "/metadata/deletionTimestamp").is_null(), || format!("not being deleted; {}", pod_state(pod)))
        };
        let victim = pods.wait_one("victim", POD, "preempted victim", going).await?;
        let found = condition(&victim, "DisruptionTarget").context("the victim has no condition DisruptionTarget")?;
        expect(found, "/status", "True")?;
        expect(found, "/reason", "PreemptionByScheduler")
    };
    let checked = checked.await;
    pods.patch("victim", Patch::Merge, &json!({"metadata": {"finalizers": null}})).await?;
    checked
}
