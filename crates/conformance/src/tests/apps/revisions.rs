//! Controller revisions.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use super::workloads::{run, workload};
use crate::framework::*;

tests! {
    "[sig-apps] ControllerRevision should manage the lifecycle of a ControllerRevision [Conformance] [Serial]" => lifecycle;
}

const SUBJECT: &str = "subject";
const HASH: &str = "/metadata/labels/controller-revision-hash";

/// The change of the template that makes another revision.
const GRACE: i64 = 2;

/// What the controller calls the set's revision of another template: as it does for a set that has that template from the start.
async fn later_name(cx: &Cx) -> Result<(String, String)> {
    cx.step("the name of a later revision");
    let (sets, revisions, pods) =
        (cx.api(&kinds::DAEMON_SET), cx.api(&kinds::CONTROLLER_REVISION), cx.api(&kinds::POD));
    let mut set = workload(cx, &kinds::DAEMON_SET, SUBJECT, 0);
    set["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] = GRACE.into();
    sets.create(&set).await?;
    let one = |revisions: &Objects| when(revisions.len() == 1, || format!("{} revisions", revisions.len()));
    let found = revisions.wait(&[], SOON, "the revision of another set", one).await?;
    let found = found.values().next().context("there is none")?;
    sets.delete(SUBJECT).await?;
    revisions.wait_none(&[], SOON).await?;
    pods.wait_none(&[], POD).await?;
    Ok((name(found).to_owned(), text(found, HASH).to_owned()))
}

async fn lifecycle(cx: Arc<Cx>) -> Result<()> {
    let (taken, hash) = later_name(&cx).await?;
    ensure!(taken == format!("{SUBJECT}-{hash}"), "revision {taken} of hash {hash:?}");
    let subject = run(&cx, &kinds::DAEMON_SET, SUBJECT, 0).await?;
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
    let everywhere = cx.cluster_wide(&kinds::DAEMON_SET).list(&mine).await?;
    ensure!(items(&everywhere, "/items").len() == 1, "sets by label: {}", items(&everywhere, "/items").len());
    let everywhere = cx.cluster_wide(&kinds::CONTROLLER_REVISION).list(&mine).await?;
    ensure!(items(&everywhere, "/items").len() == 1, "revisions of a new set: {}", items(&everywhere, "/items").len());
    let first = items(&everywhere, "/items")[0].clone();
    expect(&first, "/metadata/ownerReferences/0/uid", uid(&subject))?;
    expect(&first, "/metadata/ownerReferences/0/kind", "DaemonSet")?;
    let read = revisions.get(name(&first)).await?;
    expect(&read, "/revision", 1)?;
    cx.step("patch");
    // The label is of the revision's name, which is what later finds it.
    let patch = json!({"metadata": {"labels": {name(&first): "patched"}}});
    let patched = revisions.patch(name(&first), Patch::Strategic, &patch).await?;
    expect(&patched, &format!("/metadata/labels/{}", name(&first)), "patched")?;
    cx.step("a second, made by a client under the name of a revision to come");
    let mut labels = subject["spec"]["template"]["metadata"]["labels"].clone();
    labels["controller-revision-hash"] = hash.into();
    let owner = json!({
        "apiVersion": "apps/v1", "kind": "DaemonSet", "name": SUBJECT, "uid": uid(&subject),
        "controller": true, "blockOwnerDeletion": true,
    });
    let second = json!({
        "metadata": {
            "name": taken, "labels": labels, "ownerReferences": [owner],
            "annotations": subject["metadata"]["annotations"],
        },
        "data": read["data"], "revision": 2,
    });
    let second = revisions.create(&second).await?;
    expect(&second, "/revision", 2)?;
    count(2, "after a client made one").await?;
    revisions.delete(name(&first)).await?;
    count(1, "after the first was deleted").await?;
    let left = revisions.list(&[]).await?;
    let left = items(&left, "/items").first().context("none is left")?;
    cx.step("update");
    let label = format!("/metadata/labels/{}", name(left));
    let updated = revisions.change(name(left), |revision| set(revision, &label, "updated")).await?;
    expect(&updated, &label, "updated")?;
    // A field that the kind does not have, at the root, does no harm.
    let change = json!({
        "spec": {"template": {"spec": {"terminationGracePeriodSeconds": GRACE}}}, "updateStrategy": {"type": "RollingUpdate"},
    });
    sets.patch(SUBJECT, Patch::Strategic, &change).await?;
    count(2, "after a change of the set").await?;
    cx.step("deletecollection by the label of the update");
    revisions.delete_collection(&labelled(&format!("{}=updated", name(left)))).await?;
    count(1, "after deletecollection").await?;
    let left = revisions.list(&[]).await?;
    ensure!(items(&left, "/items").len() == 1, "{} revisions are left", items(&left, "/items").len());
    expect(&items(&left, "/items")[0], "/revision", 3)
}
