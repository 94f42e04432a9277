//! Resource quotas.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::framework::*;

tests! {
    "[sig-api-machinery] ResourceQuota should manage the lifecycle of a ResourceQuota [Conformance]" => lifecycle;
    "[sig-api-machinery] ResourceQuota should apply changes to a resourcequota status [Conformance]" => status;
}

async fn lifecycle(cx: Arc<Cx>) -> Result<()> {
    let quotas = cx.api(&kinds::RESOURCE_QUOTA);
    let subject = cx.unique("quota");
    let labels = json!({&subject: "created"});
    let quota =
        json!({"metadata": {"name": subject, "labels": labels}, "spec": {"hard": {"cpu": "1", "memory": "500Mi"}}});
    quotas.create(&quota).await?;
    let read = quotas.get(&subject).await?;
    expect(&read, "/spec/hard/cpu", "1")?;
    expect(&read, "/spec/hard/memory", "500Mi")?;
    let updated = quotas.change(&subject, |quota| quota["spec"]["hard"]["memory"] = "750Mi".into()).await?;
    expect(&updated, "/spec/hard/memory", "750Mi")?;
    let patch = json!({"metadata": {"labels": {&subject: "patched"}}, "spec": {"hard": {"memory": "1Gi"}}});
    let patched = quotas.patch(&subject, Patch::Strategic, &patch).await?;
    expect(&patched, "/spec/hard/memory", "1Gi")?;
    let selector = format!("{subject}=patched");
    let list = cx.cluster_wide(&kinds::RESOURCE_QUOTA).list(&labelled(&selector)).await?;
    ensure!(items(&list, "/items").len() == 1, "the list by the patched label is {list}");
    quotas.delete_collection(&labelled(&selector)).await?;
    quotas.wait_none(&labelled(&selector), SOON).await
}

async fn status(cx: Arc<Cx>) -> Result<()> {
    let quotas = cx.api(&kinds::RESOURCE_QUOTA);
    let subject = cx.unique("quota");
    let labels = json!({"conformance-rq": "status"});
    let hard = json!({"cpu": "500m", "memory": "500Mi"});
    cx.step("the controller writes the status");
    quotas.create(&json!({"metadata": {"name": subject, "labels": labels}, "spec": {"hard": hard}})).await?;
    let counted = |cpu: &'static str, memory: &'static str| {
        move |quota: &serde_json::Value| {
            is(quota, "/status/hard/cpu", cpu)?;
            is(quota, "/status/hard/memory", memory)
        }
    };
    quotas.wait_one(&subject, SOON, "status of the quota", counted("500m", "500Mi")).await?;
    let updated = quotas.change(&subject, |quota| quota["spec"]["hard"] = json!({"cpu": "1", "memory": "1Gi"})).await?;
    expect(&updated, "/spec/hard/cpu", "1")?;
    quotas.wait_one(&subject, SOON, "status after the update", counted("1", "1Gi")).await?;

    cx.step("a client writes the status, and the controller writes it back");
    let list = quotas.list(&labelled("conformance-rq=status")).await?;
    let mut watch = quotas.watch_since(&list, &labelled("conformance-rq=status")).await?;
    let written = quotas.change_sub(&subject, Some("status"), |quota| {
        set(quota, "/metadata/annotations/updated-status", "true");
        quota["status"]["hard"] = json!({"cpu": "2", "memory": "2Gi"});
    });
    let written = written.await?;
    expect(&written, "/status/hard/cpu", "2")?;
    watch.expect("MODIFIED", "the written status", SOON, |q| text(q, "/status/hard/cpu") == "2").await?;
    let back = watch.expect("MODIFIED", "the status of the spec", SOON, |q| text(q, "/status/hard/cpu") == "1").await;
    back.context("the controller does not restore a status that a client wrote")?;

    cx.step("a client patches the status");
    let payload = json!({"metadata": {"annotations": {"patched-status": "true"}}, "status": {"hard": {"cpu": "3", "memory": "3Gi"}}});
    let patched = quotas.patch_sub(&subject, "status", Patch::Merge, &payload).await?;
    expect(&patched, "/status/hard/cpu", "3")?;
    expect(&patched, "/metadata/annotations/patched-status", "true")?;
    watch.expect("MODIFIED", "the patched status", SOON, |q| text(q, "/status/hard/cpu") == "3").await?;
    let read = quotas.send("GET", &[&subject, "status"], &[], None).await?;
    expect(&read, "/spec/hard/cpu", "1")?;
    quotas.wait_one(&subject, SOON, "status after the patch", counted("1", "1Gi")).await?;
    Ok(())
}
