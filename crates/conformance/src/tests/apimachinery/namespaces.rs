//! Namespaces: their status, finalizers and end.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::framework::*;

tests! {
    "[sig-api-machinery] Namespaces should apply changes to a namespace status [Conformance] [Serial]" => status;
    "[sig-api-machinery] Namespaces should apply a finalizer to a Namespace [Conformance] [Serial]" => finalizer;
    "[sig-api-machinery] Namespaces should apply an update to a Namespace [Conformance] [Serial]" => update;
    "[sig-api-machinery] OrderedNamespaceDeletion namespace deletion should delete pod first [Conformance]" => pods_first;
}

async fn status(cx: Arc<Cx>) -> Result<()> {
    let namespaces = cx.api(&kinds::NAMESPACE);
    let read = namespaces.send("GET", &[&cx.ns, "status"], &[], None).await?;
    expect(&read, "/status/phase", "Active")?;
    let condition = |kind: &str, message: &str| json!({"type": kind, "status": "True", "reason": "Conformance", "message": message, "lastTransitionTime": null});
    let patch = json!({
        "metadata": {"annotations": {"patched-status": cx.ns}},
        "status": {"conditions": [condition("StatusPatch", "patched by a test")]},
    });
    let patched = namespaces.patch_sub(&cx.ns, "status", Patch::Merge, &patch).await?;
    expect(&patched, "/metadata/annotations/patched-status", cx.ns.as_str())?;
    let last = items(&patched, "/status/conditions").last().cloned().unwrap_or_default();
    expect(&last, "/reason", "Conformance")?;
    expect(&last, "/message", "patched by a test")?;
    let updated = namespaces.change_sub(&cx.ns, Some("status"), |namespace| {
        if let Some(conditions) = namespace["status"]["conditions"].as_array_mut() {
            conditions.push(condition("StatusUpdate", "updated by a test"));
        }
    });
    let updated = updated.await?;
    let conditions = items(&updated, "/status/conditions");
    ensure!(conditions.len() == 2, "the update left conditions {conditions:?}");
    expect(&conditions[1], "/type", "StatusUpdate")?;
    expect(&conditions[1], "/message", "updated by a test")
}

async fn update(cx: Arc<Cx>) -> Result<()> {
    let namespaces = cx.api(&kinds::NAMESPACE);
    let updated = namespaces.change(&cx.ns, |namespace| set(namespace, "/metadata/labels/updated-label", "updated"));
    expect(&updated.await?, "/metadata/labels/updated-label", "updated")?;
    expect(&namespaces.get(&cx.ns).await?, "/metadata/labels/updated-label", "updated")
}

async fn finalizer(cx: Arc<Cx>) -> Result<()> {
    const OURS: &str = "conformance.example.com/finalizer";
    let namespaces = cx.api(&kinds::NAMESPACE);
    let subject = cx.another_namespace(json!({})).await?;
    let finalizers = async |with_ours: bool| -> Result<bool> {
        let changed = namespaces.change_sub(&subject, None, |_| {}).await?;
        let mut namespace = changed;
        let mut list: Vec<_> = items(&namespace, "/spec/finalizers").iter().filter(|f| *f != OURS).cloned().collect();
        if with_ours {
            list.push(OURS.into());
        }
        set(&mut namespace, "/spec/finalizers", list);
        let answer = namespaces.update_sub("finalize", &namespace).await?;
        ensure!(
            items(&answer, "/spec/finalizers").iter().any(|f| f == "kubernetes"),
            "its own finalizer is lost: {answer}"
        );
        Ok(items(&answer, "/spec/finalizers").iter().any(|f| f == OURS))
    };
    ensure!(finalizers(true).await?, "the finalizer that was added is not there");
    ensure!(!finalizers(false).await?, "the finalizer that was removed is there");
    Ok(())
}

async fn pods_first(cx: Arc<Cx>) -> Result<()> {
    let namespaces = cx.api(&kinds::NAMESPACE);
    let subject = cx.another_namespace(json!({})).await?;
    let (pods, config_maps) = (cx.api_in(&kinds::POD, &subject), cx.api_in(&kinds::CONFIG_MAP, &subject));
    let mut held = pod("held", idle("main"));
    held["metadata"]["finalizers"] = json!(["conformance.example.com/finalizer"]);
    pods.create(&held).await?;
    pods.wait_one("held", POD, "running pod", |pod| is(pod, "/status/phase", "Running").map_err(|_| pod_state(pod)))
        .await?;
    config_maps.create(&json!({"metadata": {"name": "kept"}, "data": {"key": "value"}})).await?;
    namespaces.delete(&subject).await?;
    cx.step("the namespace reports the pod that holds it up");
    let processed = namespaces.wait_one(&subject, SOON, "namespace that is held up", |namespace| {
        is(namespace, "/status/phase", "Terminating")?;
        when(condition(namespace, "NamespaceDeletionContentFailure").is_some(), || {
            format!("no condition NamespaceDeletionContentFailure: {}", at(namespace, "/status"))
        })
    });
    let outcome = processed.await;
    cx.step("the pod is being deleted, the config map is not");
    let checked = async {
        outcome?;
        pods.wait_one("held", SOON, "deletion of the pod", |pod| {
            when(!at(pod, "/metadata/deletionTimestamp").is_null(), || "it is not being deleted".to_owned())
        })
        .await?;
        let kept = config_maps.get("kept").await?;
        ensure!(at(&kept, "/metadata/deletionTimestamp").is_null(), "the config map is deleted while a pod is there");
        Ok(())
    };
    let checked = checked.await;
    pods.patch("held", Patch::Merge, &json!({"metadata": {"finalizers": null}})).await?;
    checked?;
    cx.step("the namespace goes once the pod can");
    namespaces.wait_gone(&subject, POD).await
}
