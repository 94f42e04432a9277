//! Ephemeral containers.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-node] Ephemeral Containers should update the ephemeral containers in an existing pod [Conformance] [NodeConformance]" => update;
    "[sig-node] Ephemeral Containers will start an ephemeral container in an existing pod [Conformance] [NodeConformance]" => start;
}

const SUBJECT: &str = "subject";
const DEBUGGER: &str = "debugger";

/// A pod with an ephemeral container that runs, talks and can be talked to.
async fn with_debugger(cx: &Cx) -> Result<()> {
    let pods = cx.api(&kinds::POD);
    cx.start(&pod(SUBJECT, idle("main"))).await?;
    let mut debugger = shell(DEBUGGER, "while true; do echo polo; sleep 2; done");
    debugger["stdin"] = true.into();
    debugger["tty"] = true.into();
    let patch = json!({"spec": {"ephemeralContainers": [debugger]}});
    pods.patch_sub(SUBJECT, "ephemeralcontainers", Patch::Strategic, &patch).await?;
    cx.step("the ephemeral container runs");
    let runs = |pod: &Value| {
        let statuses = items(pod, "/status/ephemeralContainerStatuses");
        let status = statuses.iter().find(|status| text(status, "/name") == DEBUGGER);
        when(status.is_some_and(|s| !at(s, "/state/running").is_null()), || format!("statuses {statuses:?}"))
    };
    pods.wait_one(SUBJECT, SOON, "running ephemeral container", runs).await?;
    let said = cx.exec(SUBJECT, DEBUGGER, "echo marco").await?;
    ensure!(said.contains("marco"), "the ephemeral container answered {said:?}");
    retry(SOON, "log of the ephemeral container", async || {
        let log = cx.log(SUBJECT, DEBUGGER).await?;
        ensure!(log.contains("polo"), "it says {log:?}");
        Ok(())
    })
    .await
}

async fn start(cx: Arc<Cx>) -> Result<()> {
    with_debugger(&cx).await
}

async fn update(cx: Arc<Cx>) -> Result<()> {
    with_debugger(&cx).await?;
    let pods = cx.api(&kinds::POD);
    let count = async || -> Result<usize> {
        let read = pods.send("GET", &[SUBJECT, "ephemeralcontainers"], &[], None).await?;
        Ok(items(&read, "/spec/ephemeralContainers").len())
    };
    ensure!(count().await? == 1, "{} ephemeral containers, expected 1", count().await?);
    cx.step("another by an update");
    let mut second = idle("debugger2");
    second["terminationMessagePolicy"] = "File".into();
    let mut read = pods.get(SUBJECT).await?;
    read["spec"]["ephemeralContainers"].as_array_mut().context("no ephemeral containers")?.push(second);
    // Nothing else of the pod is written by this subresource, so a newer status is no conflict.
    read["metadata"]["resourceVersion"] = Value::Null;
    pods.update_sub("ephemeralcontainers", &read).await?;
    ensure!(count().await? == 2, "{} ephemeral containers, expected 2", count().await?);
    Ok(())
}
