//! Pod disruption budgets.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::{Value, json};

use super::workloads::run;
use crate::framework::*;

tests! {
    "[sig-apps] DisruptionController Listing PodDisruptionBudgets for all namespaces should list and delete a collection of PodDisruptionBudgets [Conformance]" => collection;
    "[sig-apps] DisruptionController should block an eviction until the PDB is updated to allow it [Conformance]" => blocks_eviction;
    "[sig-apps] DisruptionController should create a PodDisruptionBudget [Conformance]" => create;
    "[sig-apps] DisruptionController should observe PodDisruptionBudget status updated [Conformance]" => status_follows;
    "[sig-apps] DisruptionController should update/patch PodDisruptionBudget status [Conformance]" => status_written;
}

const NAME: &str = "budget";

fn budget(cx: &Cx, name: &str, min_available: Value) -> Value {
    let labels = json!({"test": cx.ns});
    json!({
        "metadata": {"name": name, "labels": labels},
        "spec": {"selector": {"matchLabels": labels}, "minAvailable": min_available},
    })
}

/// "Not yet" unless the controller has seen the spec.
fn processed(budget: &Value) -> Result<(), String> {
    let (seen, written) = (number(budget, "/status/observedGeneration"), number(budget, "/metadata/generation"));
    when(seen >= written && written > 0, || format!("generation {written}, observed {seen}"))
}

async fn new_budget(cx: &Cx, min_available: impl Into<Value>) -> Result<()> {
    let budgets = cx.api(&kinds::POD_DISRUPTION_BUDGET);
    budgets.create(&budget(cx, NAME, min_available.into())).await?;
    cx.step("the controller sees the budget");
    budgets.wait_one(NAME, SOON, "processed budget", processed).await?;
    Ok(())
}

/// Pods that the budget counts.
async fn pods(cx: &Cx, count: usize) -> Result<()> {
    let api = cx.api(&kinds::POD);
    for number in 0..count {
        let mut pod = pod(&format!("pod-{number}"), idle("main"));
        pod["metadata"]["labels"]["test"] = cx.ns.as_str().into();
        api.create(&pod).await?;
    }
    cx.step(format!("{count} pods ready"));
    let selector = format!("test={}", cx.ns);
    api.wait(&labelled(&selector), POD, "ready pods", |pods| {
        let unready = pods.values().find_map(|pod| pod_ready(pod).err());
        unready.map_or_else(|| when(pods.len() == count, || format!("{} pods", pods.len())), Err)
    })
    .await?;
    Ok(())
}

async fn create(cx: Arc<Cx>) -> Result<()> {
    let budgets = cx.api(&kinds::POD_DISRUPTION_BUDGET);
    new_budget(&cx, "1%").await?;
    cx.step("update");
    let updated = budgets.change(NAME, |budget| budget["spec"]["minAvailable"] = "2%".into()).await?;
    expect(&updated, "/spec/minAvailable", "2%")?;
    budgets.wait_one(NAME, SOON, "processed update", processed).await?;
    cx.step("patch");
    let patched = budgets.patch(NAME, Patch::Merge, &json!({"spec": {"minAvailable": "3%"}})).await?;
    expect(&patched, "/spec/minAvailable", "3%")?;
    budgets.wait_one(NAME, SOON, "processed patch", processed).await?;
    budgets.delete(NAME).await?;
    budgets.wait_gone(NAME, SOON).await
}

async fn collection(cx: Arc<Cx>) -> Result<()> {
    let other = cx.another_namespace(json!({})).await?;
    let (here, there) = (cx.api(&kinds::POD_DISRUPTION_BUDGET), cx.api_in(&kinds::POD_DISRUPTION_BUDGET, &other));
    let budgets: [(&Api, &str, Value); 3] =
        [(&here, "first", 2.into()), (&here, "second", "1%".into()), (&there, "third", 2.into())];
    for (api, name, min_available) in budgets {
        api.create(&budget(&cx, name, min_available)).await?;
        api.wait_one(name, SOON, "processed budget", processed).await?;
    }
    let selector = format!("test={}", cx.ns);
    let mine = labelled(&selector);
    let listed = async |api: &Api| -> Result<BTreeSet<String>> {
        Ok(items(&api.list(&mine).await?, "/items").iter().map(|budget| name(budget).to_owned()).collect())
    };
    let everywhere = listed(&cx.cluster_wide(&kinds::POD_DISRUPTION_BUDGET)).await?;
    ensure!(everywhere.iter().eq(["first", "second", "third"]), "in all namespaces {everywhere:?}");
    let in_one = listed(&here).await?;
    ensure!(in_one.iter().eq(["first", "second"]), "in the namespace {in_one:?}");
    here.delete_collection(&[]).await?;
    here.wait_none(&[], SOON).await?;
    ensure!(listed(&there).await?.len() == 1, "the budget of the other namespace is gone as well");
    Ok(())
}

async fn status_follows(cx: Arc<Cx>) -> Result<()> {
    new_budget(&cx, 1).await?;
    pods(&cx, 3).await?;
    cx.step("the status follows the pods");
    let budgets = cx.api(&kinds::POD_DISRUPTION_BUDGET);
    let seen = |budget: &Value| {
        is(budget, "/status/currentHealthy", 3)?;
        is(budget, "/status/disruptionsAllowed", 2)
    };
    let budget = budgets.wait_one(NAME, SOON, "disruptions allowed", seen).await?;
    expect(&budget, "/status/expectedPods", 3)?;
    expect(&budget, "/status/desiredHealthy", 1)
}

async fn status_written(cx: Arc<Cx>) -> Result<()> {
    let budgets = cx.api(&kinds::POD_DISRUPTION_BUDGET);
    new_budget(&cx, 1).await?;
    pods(&cx, 1).await?;
    cx.step("update the status");
    // The pod exists: the controller forgets others.
    let now = jiff::Timestamp::now().as_second();
    let now = jiff::Timestamp::from_second(now)?.to_string();
    let written = budgets.change_sub(NAME, Some("status"), |budget| {
        budget["status"]["disruptedPods"] = json!({"pod-0": now});
    });
    expect(&written.await?, "/status/disruptedPods/pod-0", now.as_str())?;
    budgets.wait_one(NAME, SOON, "processed status", processed).await?;
    let read = budgets.send("GET", &[NAME, "status"], &[], None).await?;
    expect(&read, "/status/disruptedPods/pod-0", now.as_str()).context("read back")?;
    cx.step("patch the status");
    // The whole map, as a comparison of typed objects has it.
    let patch = json!({"status": {"disruptedPods": null}});
    let patched = budgets.patch_sub(NAME, "status", Patch::Merge, &patch).await?;
    ensure!(
        at(&patched, "/status/disruptedPods").as_object().is_none_or(serde_json::Map::is_empty),
        "disrupted pods after the patch: {}",
        patched["status"]
    );
    Ok(())
}

/// Asks for the eviction of a pod, and says whether it was granted.
async fn evict(cx: &Cx, pod: &str) -> Result<bool> {
    let eviction =
        json!({"apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": pod, "namespace": cx.ns}});
    let asked = cx.api(&kinds::POD).send("POST", &[pod, "eviction"], &[], Some(&eviction)).await;
    let error = match asked {
        Ok(_) => return Ok(true),
        Err(error) => error,
    };
    let Some(status) = failure(&error) else { return Err(error) };
    let causes = status.details.as_ref().map(|details| details.causes.as_slice()).unwrap_or_default();
    let by_budget = causes.iter().any(|cause| cause.reason == "DisruptionBudget");
    if status.code != 429 || !by_budget {
        bail!("refused with {} {} {causes:?}, expected 429 for DisruptionBudget", status.code, status.message);
    }
    Ok(false)
}

/// The budget is all that stands between the pods and their eviction: whoever asks right after a change that was processed
/// gets the answer of the changed budget.
async fn blocks_eviction(cx: Arc<Cx>) -> Result<()> {
    let (budgets, pods) = (cx.api(&kinds::POD_DISRUPTION_BUDGET), cx.api(&kinds::POD));
    new_budget(&cx, 3).await?;
    run(&cx, &kinds::REPLICA_SET, "set", 3).await?;
    let selector = format!("test={}", cx.ns);
    let mine = labelled(&selector);
    // A pod that runs and was not told to go, once there are three.
    let a_pod = async || -> Result<String> {
        let stays = |pod: &&Value| pod_ready(pod).is_ok() && at(pod, "/metadata/deletionTimestamp").is_null();
        let running = pods.wait(&mine, POD, "three ready pods", |pods| {
            let ready = pods.values().filter(stays).count();
            when(ready >= 3, || format!("{ready} are ready"))
        });
        let running = running.await?;
        Ok(name(running.values().find(stays).context("all are going")?).to_owned())
    };
    let first = a_pod().await?;
    cx.step("evicting while all are needed");
    ensure!(!evict(&cx, &first).await?, "evicted though the budget needs all three pods");
    cx.step("evicting after an update");
    budgets.change(NAME, |budget| budget["spec"]["minAvailable"] = 2.into()).await?;
    budgets.wait_one(NAME, SOON, "processed update", processed).await?;
    a_pod().await?;
    let healthy = |budget: &Value| {
        is(budget, "/status/currentHealthy", 3)?;
        is(budget, "/status/desiredHealthy", 2)
    };
    budgets.wait_one(NAME, Duration::from_secs(30), "all pods healthy", healthy).await?;
    ensure!(evict(&cx, &first).await?, "not evicted though the budget allows it");
    cx.step("evicting after a patch back");
    let patch = json!({"spec": {"minAvailable": null, "maxUnavailable": 0}});
    budgets.patch(NAME, Patch::Merge, &patch).await?;
    budgets.wait_one(NAME, SOON, "processed patch", processed).await?;
    let second = a_pod().await?;
    ensure!(!evict(&cx, &second).await?, "evicted though the patched budget lets no pod go");
    cx.step("evicting without a budget");
    budgets.delete(NAME).await?;
    budgets.wait_gone(NAME, SOON).await?;
    a_pod().await?;
    ensure!(evict(&cx, &second).await?, "not evicted though there is no budget");
    Ok(())
}
