//! Resource quotas.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-api-machinery] ResourceQuota should manage the lifecycle of a ResourceQuota [Conformance]" => lifecycle;
    "[sig-api-machinery] ResourceQuota should apply changes to a resourcequota status [Conformance]" => status;
}

/// The label by which a test finds its quota.
const RUN: &str = "conformance-rq";

async fn lifecycle(cx: Arc<Cx>) -> Result<()> {
    let quotas = cx.api(&kinds::RESOURCE_QUOTA);
    let subject = cx.unique("quota");
    let labels = json!({RUN: subject});
    let quota =
        json!({"metadata": {"name": subject, "labels": labels}, "spec": {"hard": {"cpu": "1", "memory": "500Mi"}}});
    quotas.create(&quota).await?;
    let read = quotas.get(&subject).await?;
    expect(&read, "/spec/hard/cpu", "1")?;
    expect(&read, "/spec/hard/memory", "500Mi")?;
    let created = format!("{RUN}={subject}");
    let list = cx.cluster_wide(&kinds::RESOURCE_QUOTA).list(&labelled(&created)).await?;
    ensure!(items(&list, "/items").len() == 1, "the list by label is {list}");
    let patch = json!({"metadata": {"labels": {&subject: "patched"}}, "spec": {"hard": {"memory": "750Mi"}}});
    let patched = quotas.patch(&subject, Patch::Strategic, &patch).await?;
    expect(&patched, &format!("/metadata/labels/{subject}"), "patched")?;
    expect(&patched, "/spec/hard", json!({"cpu": "1", "memory": "750Mi"}))?;
    quotas.delete_collection(&labelled(&created)).await?;
    ensure!(quotas.find(&subject).await?.is_none(), "still there after deletecollection");
    Ok(())
}

/// Upstream's controller does not look at quotas whose status changed, so it may take until its next full look, every five minutes; upstream waits for six.
const RESTORED: Duration = Duration::from_secs(360);

async fn status(cx: Arc<Cx>) -> Result<()> {
    cx.may_take(RESTORED + Duration::from_secs(180));
    let quotas = cx.api(&kinds::RESOURCE_QUOTA);
    let subject = cx.unique("quota");
    let selector = format!("{RUN}={subject}");
    let mine = labelled(&selector);
    let list = cx.cluster_wide(&kinds::RESOURCE_QUOTA).list(&mine).await?;
    let mut watch = quotas.watch_since(&list, &mine).await?;
    let hard = json!({"cpu": "500m", "memory": "500Mi"});
    let metadata = json!({"name": subject, "labels": {RUN: subject}});
    quotas.create(&json!({"metadata": metadata, "spec": {"hard": hard}})).await?;
    expect(&quotas.get(&subject).await?, "/spec/hard", hard.clone())?;
    cx.step("update the status");
    let updated = quotas.change_sub(&subject, Some("status"), |quota| quota["status"] = json!({"hard": hard})).await?;
    expect(&updated, "/status/hard", hard.clone())?;
    watch.expect("MODIFIED", "the updated status", SOON, |quota| *at(quota, "/status/hard") == hard).await?;
    cx.step("patch the spec, and the status accordingly");
    let hard = json!({"cpu": "1", "memory": "1Gi"});
    let patched = quotas.patch(&subject, Patch::Strategic, &json!({"spec": {"hard": hard}})).await?;
    expect(&patched, "/spec/hard", hard.clone())?;
    let patch = json!({"status": {"hard": hard}});
    expect(&quotas.patch_sub(&subject, "status", Patch::Strategic, &patch).await?, "/status/hard", hard.clone())?;
    watch.expect("MODIFIED", "the patched status", SOON, |quota| *at(quota, "/status/hard") == hard).await?;
    let read = quotas.send("GET", &[&subject, "status"], &[], None).await?;
    expect(&read, "/status/hard", hard.clone())?;
    cx.step("patch the status to something else");
    let other = json!({"cpu": "2", "memory": "2Gi"});
    let patch = json!({"status": {"hard": other}});
    let patched = quotas.patch_sub(&subject, "status", Patch::Strategic, &patch).await?;
    expect(&patched, "/status/hard", other.clone())?;
    expect(&patched, "/spec/hard", hard.clone()).context("the spec changed with the status")?;
    watch.expect("MODIFIED", "the other status", SOON, |quota| *at(quota, "/status/hard") == other).await?;
    cx.step("the controller writes what the spec says");
    let restored = |quota: &Value| is(quota, "/status/hard", hard.clone());
    let quota = quotas.wait_one(&subject, RESTORED, "status of the spec", restored).await?;
    expect(&quota, "/spec/hard", hard)
}
