//! Controller revisions.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::workloads::run;
use crate::framework::*;

tests! {
    "[sig-apps] ControllerRevision should manage the lifecycle of a ControllerRevision [Conformance] [Serial]" => lifecycle;
}

async fn lifecycle(cx: Arc<Cx>) -> Result<()> {
    let set = run(&cx, &kinds::DAEMON_SET, "subject", 0).await?;
    let (sets, revisions) = (cx.api(&kinds::DAEMON_SET), cx.api(&kinds::CONTROLLER_REVISION));
    let selector = format!("test={}", cx.ns);
    let mine = labelled(&selector);
    let list = async || -> Result<Vec<Value>> { Ok(items(&revisions.list(&mine).await?, "/items").to_vec()) };
    cx.step("the set's first revision");
    let everywhere = cx.cluster_wide(&kinds::CONTROLLER_REVISION).list(&mine).await?;
    ensure!(items(&everywhere, "/items").len() == 1, "revisions of a new set: {}", items(&everywhere, "/items").len());
    let first = items(&everywhere, "/items")[0].clone();
    expect(&first, "/metadata/ownerReferences/0/uid", uid(&set))?;
    let read = revisions.get(name(&first)).await?;
    expect(&read, "/revision", 1)?;
    cx.step("patch");
    let patch = json!({"metadata": {"labels": {"patched": "true"}}});
    let patched = revisions.patch(name(&first), Patch::Strategic, &patch).await?;
    expect(&patched, "/metadata/labels/patched", "true")?;
    cx.step("a second, made by a client");
    let second = json!({
        "metadata": {
            "name": format!("{}-copy", name(&first)), "labels": first["metadata"]["labels"],
            "ownerReferences": first["metadata"]["ownerReferences"],
        },
        "data": first["data"], "revision": 2,
    });
    let second = revisions.create(&second).await?;
    expect(&second, "/revision", 2)?;
    ensure!(list().await?.len() == 2, "there are {} revisions, expected 2", list().await?.len());
    cx.step("the first is deleted");
    revisions.delete(name(&first)).await?;
    revisions.wait_gone(name(&first), SOON).await?;
    cx.step("update");
    // The controller may have removed the copy as a duplicate meanwhile, or made the deleted one again.
    let left =
        revisions.wait(&mine, SOON, "a revision", |objects| when(!objects.is_empty(), || "none is left".to_owned()));
    let left = left.await?.into_values().next().context("none is left")?;
    let updated = revisions.change(name(&left), |r| set_label(r, "updated")).await?;
    expect(&updated, "/metadata/labels/updated", "true")?;
    cx.step("a change of the set makes another");
    let before = list().await?.iter().map(|r| number(r, "/revision")).max().unwrap_or(0);
    let change = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 0}}}});
    sets.patch("subject", Patch::Strategic, &change).await?;
    let another = revisions.wait(&mine, SOON, "another revision", |objects| {
        let newest = objects.values().map(|r| number(r, "/revision")).max().unwrap_or(0);
        when(newest > before, || format!("the newest is {newest}, before it was {before}"))
    });
    another.await?;
    cx.step("deletecollection by the label of the update");
    let updated = labelled("updated=true");
    revisions.delete_collection(&updated).await?;
    revisions.wait_none(&updated, SOON).await?;
    ensure!(!list().await?.is_empty(), "the newest revision went with the collection");
    Ok(())
}

fn set_label(object: &mut Value, label: &str) {
    set(object, &format!("/metadata/labels/{label}"), "true");
}
