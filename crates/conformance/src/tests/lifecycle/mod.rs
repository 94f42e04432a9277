//! What every kind can: one test function for the API operations of a kind, a row per kind.
//!
//! [`operations`] covers upstream's tests "should support X API operations", [`crud`] its generic "CRUD Tests", [`cycle`] the
//! tests "should run through the lifecycle of an X" of kinds that nothing acts on.

mod crud;

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::framework::*;

pub use crud::crud;

/// A kind and what to do with objects of it.
pub struct Row {
    pub kind: &'static Kind,
    /// An object; the number distinguishes those of a test. Labels are added; a name where it has none.
    pub object: fn(&Cx, usize) -> Value,
    /// What a merge patch changes.
    pub patch: fn() -> Value,
    /// What an update (PUT) changes after that, laid over the object.
    pub update: fn() -> Value,
    /// What a status written by a client is to contain, where the kind has a status.
    pub status: Option<fn() -> Value>,
}

const LABEL: &str = "conformance.example.com/run";

/// Lays a partial object over an object: maps are merged, all else is replaced.
pub fn overlay(object: &mut Value, part: &Value) {
    match (object, part) {
        (Value::Object(object), Value::Object(part)) => {
            for (key, value) in part {
                overlay(object.entry(key.clone()).or_insert(Value::Null), value);
            }
        }
        (object, part) => *object = part.clone(),
    }
}

/// An annotation as a partial object.
pub fn annotated(key: &str) -> Value {
    json!({"metadata": {"annotations": {key: "true"}}})
}

impl Row {
    /// The object of a number with the label by which the test finds its own.
    fn make(&self, cx: &Cx, number: usize, label: &str) -> Value {
        let mut object = (self.object)(cx, number);
        object["metadata"]["labels"][LABEL] = label.into();
        if object["metadata"]["name"].is_null() {
            object["metadata"]["generateName"] = "conformance-example-".into();
        }
        object
    }
}

/// `object` must have every field of `part`.
fn expect_part(object: &Value, part: &Value, what: &str) -> Result<()> {
    ensure!(contains(object, part), "{what}: {object} lacks something of {part}");
    Ok(())
}

/// The kind is in the three discovery documents that lead to it, with every verb.
pub async fn discovered(cx: &Cx, kind: &Kind, status: bool) -> Result<()> {
    let fetch = async |path: &str| -> Result<Value> {
        Ok(cx.client.request(http::Request::get(path).body(Vec::new())?).await?)
    };
    let version =
        |versions: &Value| items(versions, "/versions").iter().any(|version| text(version, "/version") == kind.version);
    if !kind.group.is_empty() {
        let groups = fetch("/apis").await?;
        let group = items(&groups, "/groups").iter().find(|group| text(group, "/name") == kind.group);
        ensure!(group.is_some_and(version), "/apis does not have {}", kind.api_version());
        let group = fetch(&format!("/apis/{}", kind.group)).await?;
        ensure!(version(&group), "/apis/{} does not have version {}: {group}", kind.group, kind.version);
    }
    let resources = fetch(&kind.root()).await?;
    let resource = |name: &str| items(&resources, "/resources").iter().find(|r| text(r, "/name") == name);
    let Some(found) = resource(&kind.plural) else { anyhow::bail!("{} does not have {}", kind.root(), kind.plural) };
    for verb in ["create", "delete", "deletecollection", "get", "list", "patch", "update", "watch"] {
        ensure!(items(found, "/verbs").iter().any(|v| *v == verb), "{} cannot be {verb}: {found}", kind.plural);
    }
    let sub = format!("{}/status", kind.plural);
    ensure!(!status || resource(&sub).is_some(), "{} does not have {sub}", kind.root());
    Ok(())
}

/// Items that nothing holds back from going.
fn free(list: &Value) -> Vec<&Value> {
    let held = |item: &&Value| {
        !at(item, "/metadata/deletionTimestamp").is_null() && !items(item, "/metadata/finalizers").is_empty()
    };
    items(list, "/items").iter().filter(|item| !held(item)).collect()
}

/// Create, get, list, watch, patch, update, status, delete and deletecollection of a kind, and its discovery.
pub async fn operations(cx: Arc<Cx>, row: &Row) -> Result<()> {
    cx.step("discovery");
    discovered(&cx, row.kind, row.status.is_some()).await?;
    let label = cx.unique("ops");
    let selector = format!("{LABEL}={label}");
    let mine = labelled(&selector);
    let (api, all) = (cx.api(row.kind), cx.cluster_wide(row.kind));
    cx.step("create");
    let mut made = Vec::new();
    for number in 0..3 {
        let object = row.make(&cx, number, &label);
        let created = api.create(&object).await?;
        cx.delete_later(&api, name(&created));
        if !name(&object).is_empty() {
            expect_failure(api.create(&object).await, 409, "the same object again")?;
        }
        made.push(created);
    }
    let subject = name(&made[2]).to_owned();
    cx.step("get, list, watch");
    expect(&api.get(&subject).await?, "/metadata/uid", uid(&made[2]))?;
    let list = api.list(&mine).await?;
    ensure!(
        items(&list, "/items").len() == 3,
        "listed {} objects with the label, expected 3",
        items(&list, "/items").len()
    );
    let everywhere = all.list(&mine).await?;
    ensure!(items(&everywhere, "/items").len() == 3, "the list of all namespaces has {everywhere}");
    let mut watches = vec![api.watch_since(&list, &mine).await?];
    if row.kind.namespaced {
        watches.push(all.watch_since(&list, &mine).await?);
    }
    for watched in [&api, &all] {
        // From no revision: what there is comes first.
        let mut watch = watched.watch(&mine).await?;
        for _ in 0..3 {
            watch.expect("ADDED", "an object that is there", SOON, |_| true).await?;
        }
        watches.push(watch);
    }
    cx.step("patch, update");
    let mut patch = annotated("patched");
    overlay(&mut patch, &(row.patch)());
    let patched = api.patch(&subject, Patch::Merge, &patch).await?;
    expect_part(&patched, &patch, "patched")?;
    newer(&made[2], &patched)?;
    let mut update = annotated("updated");
    overlay(&mut update, &(row.update)());
    expect_part(&api.change(&subject, |object| overlay(object, &update)).await?, &update, "updated")?;
    cx.step("watch events");
    for watch in &mut watches {
        for annotation in ["patched", "updated"] {
            let pointer = format!("/metadata/annotations/{annotation}");
            loop {
                let event = watch.next(SOON).await?;
                let Some(event) = event else { anyhow::bail!("the watch ended before the object was {annotation}") };
                ensure!(event.kind == "MODIFIED", "a {} event, expected MODIFIED", event.kind);
                if name(&event.object) == subject && text(&event.object, &pointer) == "true" {
                    break;
                }
            }
        }
    }
    if let Some(status) = row.status {
        cx.step("status");
        status_of(&api, &subject, &status()).await?;
    }
    cx.step("delete");
    api.delete(&subject).await?;
    if let Some(object) = api.find(&subject).await? {
        let held =
            !at(&object, "/metadata/deletionTimestamp").is_null() && !items(&object, "/metadata/finalizers").is_empty();
        ensure!(held, "deleted, but still there without a finalizer: {object}");
    }
    let left = api.list(&mine).await?;
    ensure!(free(&left).len() == 2, "after one of three was deleted, {} are left", free(&left).len());
    cx.step("deletecollection");
    api.delete_collection(&mine).await?;
    let left = api.list(&mine).await?;
    ensure!(free(&left).is_empty(), "after deletecollection there are {:?}", free(&left));
    api.wait_none(&mine, SOON).await
}

/// Adds to the conditions of a status what an update adds, and lays the rest of `status` over it, with times a second later.
fn advance(object: &mut Value, status: &Value) {
    for (field, value) in status.as_object().into_iter().flatten() {
        let slot = &mut object["status"][field];
        match (value.as_array().and_then(|conditions| conditions.first()), value.as_str()) {
            (Some(condition), _) => {
                let mut added = condition.clone();
                added["type"] = "StatusUpdateFailed".into();
                added["message"] = "set by an update".into();
                match slot.as_array_mut() {
                    Some(conditions) => conditions.push(added),
                    None => *slot = json!([added]),
                }
            }
            (None, Some(time)) => *slot = time.replace("00Z", "01Z").into(),
            (None, None) => *slot = value.clone(),
        }
    }
}

/// Reads, patches and replaces a status, and leaves the rest of the object alone.
pub async fn status_of(api: &Api, name: &str, status: &Value) -> Result<()> {
    let read = api.send("GET", &[name, "status"], &[], None).await?;
    expect(&read, "/kind", api.kind.kind.as_ref())?;
    expect(&read, "/apiVersion", api.kind.api_version())?;
    expect(&read, "/metadata/uid", uid(&api.get(name).await?))?;
    let mut patch = annotated("patched-status");
    patch["status"] = status.clone();
    let patched = api.patch_sub(name, "status", Patch::Merge, &patch).await?;
    expect_part(&patched["status"], status, "patched status")?;
    expect(&patched, "/metadata/annotations/patched-status", "true")?;
    let read = api.send("GET", &[name, "status"], &[], None).await?;
    expect_part(&read["status"], status, "status as read")?;
    expect(&read, "/metadata/uid", uid(&patched))?;
    let updated = api.change_sub(name, Some("status"), |object| {
        overlay(object, &annotated("updated-status"));
        advance(object, status);
    });
    let updated = updated.await?;
    expect(&updated, "/metadata/annotations/updated-status", "true")?;
    let mut wanted = json!({});
    advance(&mut wanted, status);
    for (field, value) in wanted["status"].as_object().into_iter().flatten() {
        match value.as_array().and_then(|conditions| conditions.first()) {
            Some(condition) => {
                let there = items(&updated, &format!("/status/{field}")).iter().any(|have| contains(have, condition));
                ensure!(there, "the replaced status lacks {condition}: {}", updated["status"]);
            }
            None => expect(&updated, &format!("/status/{field}"), value.clone())?,
        }
    }
    Ok(())
}

/// How long upstream waits for a deletion of objects that nothing holds back.
const GONE: Duration = Duration::from_secs(30);

/// Create two, get, patch, update, list, delete, create another, give both another label, deletecollection by it.
pub async fn cycle(cx: Arc<Cx>, row: &Row) -> Result<()> {
    let api = cx.api(row.kind);
    let label = cx.unique("cycle");
    let of_test = format!("{LABEL}={label}");
    cx.step("create");
    let mut made = Vec::new();
    for number in 0..2 {
        let object = row.make(&cx, number, &label);
        let created = api.create(&object).await?;
        cx.delete_later(&api, name(&created));
        if !name(&object).is_empty() {
            expect(&created, "/metadata/name", name(&object))?;
            expect_failure(api.create(&object).await, 409, "the same object again")?;
        }
        ensure!(uid(&created) != uid(&object), "the client chose the UID");
        made.push(created);
    }
    let subject = name(&made[0]);
    cx.step("get");
    for object in &made {
        expect(&api.get(name(object)).await?, "/metadata/uid", uid(object))?;
    }
    cx.step("patch");
    for (kind, value) in [(Patch::Strategic, "patched"), (Patch::Merge, "patched-again")] {
        let mut patch = json!({"metadata": {"labels": {subject: value}}});
        overlay(&mut patch, &(row.patch)());
        let patched = api.patch(subject, kind, &patch).await?;
        expect_part(&patched, &patch, "patched")?;
        newer(&made[0], &patched)?;
    }
    cx.step("update");
    let mut update = json!({"metadata": {"labels": {subject: "updated"}}});
    overlay(&mut update, &(row.update)());
    expect_part(&api.change(subject, |object| overlay(object, &update)).await?, &update, "updated")?;
    cx.step("list");
    let selector = format!("{subject}=updated");
    for list in [api.list(&labelled(&selector)).await?, cx.cluster_wide(row.kind).list(&labelled(&selector)).await?] {
        let found = items(&list, "/items");
        ensure!(found.len() == 1 && name(&found[0]) == subject, "listed by the updated label: {list}");
    }
    let list = api.list(&labelled(&of_test)).await?;
    ensure!(
        items(&list, "/items").len() == 2,
        "{} objects by the test's label, expected 2",
        items(&list, "/items").len()
    );
    cx.step("delete");
    api.delete(subject).await?;
    if let Some(left) = api.find(subject).await? {
        ensure!(!at(&left, "/metadata/deletionTimestamp").is_null(), "deleted, but still there: {left}");
    }
    api.wait_none(&labelled(&selector), GONE).await?;
    cx.step("create another, other labels for both");
    let another = api.create(&row.make(&cx, 2, &label)).await?;
    cx.delete_later(&api, name(&another));
    let doomed = format!("{DOOMED}={label}");
    for object in [name(&made[1]), name(&another)] {
        let labels = json!({DOOMED: label});
        let updated = api.change(object, |object| object["metadata"]["labels"] = labels.clone()).await?;
        expect(&updated, "/metadata/labels", labels)?;
    }
    cx.step("deletecollection");
    let list = api.list(&labelled(&doomed)).await?;
    ensure!(items(&list, "/items").len() == 2, "listed by the other label: {list}");
    api.delete_collection(&labelled(&doomed)).await?;
    api.wait_none(&labelled(&doomed), GONE).await
}

/// The label of objects that are deleted together.
const DOOMED: &str = "conformance.example.com/doomed";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlay_merges_maps_and_replaces_lists() {
        let mut object = json!({"a": {"b": 1, "c": [1, 2]}});
        overlay(&mut object, &json!({"a": {"c": [3], "d": {"e": 4}}}));
        assert_eq!(object, json!({"a": {"b": 1, "c": [3], "d": {"e": 4}}}));
    }
}
