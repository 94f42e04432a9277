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
    let count = async |wanted: usize, what: &str| {
        cx.step(format!("{wanted} revisions {what}"));
        let there = |revisions: &Objects| {
            when(revisions.len() == wanted, || format!("{:?}", revisions.keys().collect::<Vec<_>>()))
        };
        revisions.wait(&mine, SOON, &format!("{wanted} revisions {what}"), there).await
    };
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
    count(2, "after a client made one").await?;
    revisions.delete(name(&first)).await?;
    let left = count(1, "after the first was deleted").await?;
    let left = left.values().next().context("none is left")?;
    cx.step("update");
    let updated = revisions.change(name(left), |r| set_label(r, "updated")).await?;
    expect(&updated, "/metadata/labels/updated", "true")?;
    let change = json!({"spec": {"template": {"spec": {"terminationGracePeriodSeconds": 0}}}});
    sets.patch("subject", Patch::Strategic, &change).await?;
    count(2, "after a change of the set").await?;
    cx.step("deletecollection by the label of the update");
    revisions.delete_collection(&labelled("updated=true")).await?;
    let left = count(1, "after deletecollection").await?;
    expect(left.values().next().context("none is left")?, "/revision", 3)
}

fn set_label(object: &mut Value, label: &str) {
    set(object, &format!("/metadata/labels/{label}"), "true");
}
