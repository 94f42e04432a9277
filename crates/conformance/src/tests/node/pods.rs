//! Pods, templates and nodes as objects.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-node] Node Lifecycle should run through the lifecycle of a node [Conformance]" => node_lifecycle;
    "[sig-node] PodTemplates should replace a pod template [Conformance]" => replace_template;
    "[sig-node] Pods Extended (pod generation) Pod Generation custom-set generation on new pods and graceful delete [Conformance]" => generation_and_deletion;
    "[sig-node] Pods Extended (pod generation) Pod Generation issue 500 podspec updates and verify generation and observedGeneration eventually converge [MinimumKubeletVersion:1.34] [Conformance]" => many_updates;
    "[sig-node] Pods Extended (pod generation) Pod Generation pod generation should start at 1 and increment per update [MinimumKubeletVersion:1.34] [Conformance]" => generation_per_update;
    "[sig-node] Pods should patch a pod status [Conformance]" => patch_status;
}

async fn replace_template(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::POD_TEMPLATE);
    let made = json!({"metadata": {"name": "subject"}, "template": template(&json!({"app": "subject"}))});
    api.create(&made).await?;
    cx.step("replace");
    let replaced = api.change("subject", |object| set(object, "/metadata/annotations/updated", "true")).await?;
    expect(&replaced, "/metadata/annotations/updated", "true")?;
    let read = api.get("subject").await?;
    expect(&read, "/metadata/annotations/updated", "true")?;
    expect(&read, "/template/metadata/labels/app", "subject")
}

async fn patch_status(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::POD);
    cx.start(&pod("subject", idle("main"))).await?;
    let patch = json!({
        "metadata": {"annotations": {"patchedstatus": "true"}},
        "status": {"message": "Patched by a test", "reason": "Conformance"},
    });
    let patched = api.patch_sub("subject", "status", Patch::Merge, &patch).await?;
    expect(&patched, "/metadata/annotations/patchedstatus", "true")?;
    expect(&patched, "/status/message", "Patched by a test")?;
    expect(&patched, "/status/reason", "Conformance")?;
    expect(&patched, "/status/phase", "Running")
}

async fn node_lifecycle(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::NODE);
    let subject = cx.unique("fake-node");
    let ready = json!({"type": "Ready", "status": "True", "reason": "Conformance", "message": "set by a test"});
    let node = json!({
        "metadata": {"name": subject}, "spec": {"unschedulable": true},
        "status": {"phase": "Running", "conditions": [ready]},
    });
    let made = cx.create_for_test(&kinds::NODE, &node).await?;
    expect(&made, "/metadata/name", subject.as_str())?;
    revision(&made)?;
    expect(&api.get(&subject).await?, "/metadata/uid", uid(&made))?;
    let patch = json!({"metadata": {"labels": {&subject: "patched"}}});
    let patched = api.patch(&subject, Patch::Strategic, &patch).await?;
    expect(&patched, &format!("/metadata/labels/{subject}"), "patched")?;
    newer(&made, &patched)?;
    let selector = format!("{subject}=patched");
    let list = api.list(&labelled(&selector)).await?;
    ensure!(items(&list, "/items").len() == 1, "{} nodes by the label", items(&list, "/items").len());
    let pointer = format!("/metadata/labels/{subject}");
    let updated = api.change(&subject, |node| set(node, &pointer, "updated")).await?;
    expect(&updated, &pointer, "updated")?;
    api.delete(&subject).await?;
    api.wait_gone(&subject, SOON).await
}

/// Waits until the node has acted on a generation of a pod.
async fn observed(cx: &Cx, pod: &str, generation: i64, limit: Duration) -> Result<()> {
    let what = format!("generation {generation} observed");
    let seen = |pod: &Value| is(pod, "/status/observedGeneration", generation);
    cx.api(&kinds::POD).wait_one(pod, limit, &what, seen).await?;
    Ok(())
}

async fn generation_per_update(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::POD);
    let mut subject = pod("subject", idle("main"));
    subject["spec"]["initContainers"] = json!([shell("init", "true")]);
    expect(&cx.start(&subject).await?, "/metadata/generation", 1)?;
    type Change = fn(&mut Value);
    let updates: [(&str, Change, bool); 7] = [
        ("nothing", |_| {}, false),
        (
            "tolerations",
            // Alone: those that admission gave the pod at its creation are given to it again.
            |pod| {
                let new = json!({"key": "foo", "operator": "Equal", "value": "bar", "effect": "NoSchedule"});
                pod["spec"]["tolerations"] = json!([new]);
            },
            true,
        ),
        ("activeDeadlineSeconds", |pod| pod["spec"]["activeDeadlineSeconds"] = 5000.into(), true),
        ("a container's image", |pod| set(pod, "/spec/containers/0/image", TOOLS), true),
        ("an init container's image", |pod| set(pod, "/spec/initContainers/0/image", TOOLS), true),
        ("metadata", |pod| pod["metadata"]["annotations"] = json!({"key": "value"}), false),
        ("the generation itself", |pod| pod["metadata"]["generation"] = 1.into(), false),
    ];
    let mut generation = 1;
    for (what, change, counts) in updates {
        cx.step(format!("update of {what}"));
        api.change("subject", change).await?;
        generation += i64::from(counts);
        let read = api.get("subject").await?;
        let now = number(&read, "/metadata/generation");
        ensure!(now == generation, "after an update of {what} the generation is {now}, expected {generation}");
        observed(&cx, "subject", generation, Duration::from_secs(20)).await?;
    }
    Ok(())
}

async fn generation_and_deletion(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::POD);
    // It does not end when it is told to, so that it can be looked at.
    let mut subject =
        pod("subject", container("main", BUSYBOX, &["sh", "-c", "trap '' TERM; sleep 100000 & wait; wait"]));
    subject["metadata"]["generation"] = 100.into();
    expect(&cx.start(&subject).await?, "/metadata/generation", 1)?;
    cx.step("graceful deletion");
    api.send("DELETE", &["subject"], &[("gracePeriodSeconds", "60")], None).await?;
    let going = api.get("subject").await?;
    expect(&going, "/metadata/generation", 2)?;
    api.delete_with("subject", &json!({"gracePeriodSeconds": 0})).await?;
    Ok(())
}

async fn many_updates(cx: Arc<Cx>) -> Result<()> {
    const UPDATES: i64 = 499;
    let api = cx.api(&kinds::POD);
    let mut subject = pod("subject", idle("main"));
    subject["spec"]["activeDeadlineSeconds"] = 5000.into();
    cx.start(&subject).await?;
    for update in 1..=UPDATES {
        cx.step(format!("update {update}"));
        api.change("subject", |pod| {
            let deadline = number(pod, "/spec/activeDeadlineSeconds");
            pod["spec"]["activeDeadlineSeconds"] = (deadline - 1).into();
        })
        .await?;
    }
    observed(&cx, "subject", UPDATES + 1, POD).await?;
    let read = api.get("subject").await?;
    expect(&read, "/metadata/generation", UPDATES + 1)?;
    expect(&read, "/spec/activeDeadlineSeconds", 5000 - UPDATES)
}
