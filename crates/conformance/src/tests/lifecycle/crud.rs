//! Upstream's generic "CRUD Tests": each step is checked by its answer and by what watchers of the namespace and of all
//! namespaces see.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use super::{LABEL, Row, discovered, expect_part, overlay};
use crate::framework::*;

/// A watcher that checks what it sees after every step.
struct Observer {
    watch: Watch,
    /// That of the last event; they must not decrease until the object is deleted.
    revision: u128,
}

/// How long an event may take to its watchers.
const EVENT: Duration = Duration::from_secs(5);

/// What a step lets watchers see.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Step {
    Created,
    Changed,
    Deleted,
}

impl Observer {
    /// Reads events up to the one of the step's result, and checks their order and whom they are about.
    async fn sees(&mut self, step: Step, object: &Value) -> Result<()> {
        let target = revision(object)?;
        let mut first = true;
        loop {
            let event = self.watch.next(EVENT).await.with_context(|| format!("event of revision {target}"))?;
            let event = event.context("the watch ended")?;
            ensure!(
                name(&event.object) == name(object) && uid(&event.object) == uid(object),
                "an event of another object"
            );
            let seen = revision(&event.object)?;
            ensure!(seen >= self.revision, "revision {seen} after {}", self.revision);
            self.revision = seen;
            let fits = match step {
                Step::Created => event.kind == if first { "ADDED" } else { "MODIFIED" },
                Step::Changed => event.kind == "MODIFIED",
                Step::Deleted => event.kind == "DELETED" || event.kind == "MODIFIED",
            };
            ensure!(fits, "a {} event after {}", event.kind, if first { "the step before" } else { "this step" });
            first = false;
            if event.kind == "DELETED" || step != Step::Deleted && seen >= target {
                return Ok(());
            }
        }
    }
}

struct Crud<'a> {
    cx: &'a Cx,
    row: &'a Row,
    api: Api,
    label: String,
    observers: Vec<Observer>,
}

impl Crud<'_> {
    async fn seen(&mut self, step: Step, object: &Value) -> Result<()> {
        for observer in &mut self.observers {
            observer.sees(step, object).await?;
        }
        Ok(())
    }

    async fn create(&mut self) -> Result<Value> {
        let wanted = self.row.make(self.cx, 0, &self.label);
        let made = self.api.create_with(&wanted, &[("fieldValidation", "Strict")]).await?;
        expect(&made, "/metadata/name", name(&wanted))?;
        expect_part(&made, &wanted, "created")?;
        self.seen(Step::Created, &made).await.context("watching after create")?;
        Ok(made)
    }

    async fn delete(&mut self, object: &Value) -> Result<()> {
        self.api.delete(name(object)).await?;
        self.api.wait_gone(name(object), SOON).await?;
        self.seen(Step::Deleted, object).await.context("watching after delete")
    }

    async fn update(&mut self, subject: &str) -> Result<Value> {
        let update = (self.row.update)();
        let updated = self.api.change(subject, |object| overlay(object, &update)).await?;
        expect_part(&updated, &update, "updated")?;
        self.seen(Step::Changed, &updated).await.context("watching after update")?;
        Ok(updated)
    }

    async fn update_status(&mut self, subject: &str, status: &Value) -> Result<()> {
        let updated =
            self.api.change_sub(subject, Some("status"), |object| overlay(object, &json!({"status": status})));
        let updated = updated.await?;
        expect_part(&updated["status"], status, "replaced status")?;
        self.seen(Step::Changed, &updated).await.context("watching after the status was replaced")?;
        let read = self.api.send("GET", &[subject, "status"], &[], None).await?;
        expect_part(&read["status"], status, "status as read")
    }

    /// Starts from a new object and patches it, or its status after an update of the rest.
    async fn patch(&mut self, last: &Value, kind: Patch, status: Option<&Value>) -> Result<Value> {
        self.delete(last).await?;
        let mut object = self.create().await?;
        let subject = name(&object).to_owned();
        let part = match status {
            Some(status) => {
                object = self.update(&subject).await?;
                json!({"status": status})
            }
            None => (self.row.update)(),
        };
        let mut query = vec![("fieldValidation", "Strict")];
        if kind == Patch::Apply {
            query.extend([("fieldManager", "test-apply"), ("force", "true")]);
        }
        let patch = match (kind, status) {
            (Patch::Json, Some(status)) => status_fields(status),
            (Patch::Json, None) => json_patch(&object, &part, ""),
            _ => identified(&object, part.clone()),
        };
        let below: Vec<&str> = [Some(subject.as_str()), status.map(|_| "status")].into_iter().flatten().collect();
        let patched = self.api.patch_with(&below, kind, &patch, &query).await?;
        expect_part(&patched, &part, "patched")?;
        self.seen(Step::Changed, &patched).await.with_context(|| format!("watching after the {kind:?} patch"))?;
        Ok(patched)
    }
}

/// The patch with what says which object it is for.
fn identified(object: &Value, mut patch: Value) -> Value {
    for key in ["name", "namespace", "uid"] {
        if !object["metadata"][key].is_null() {
            patch["metadata"][key] = object["metadata"][key].clone();
        }
    }
    patch["apiVersion"] = object["apiVersion"].clone();
    patch["kind"] = object["kind"].clone();
    patch
}

/// A JSON patch that adds each field of a status. The status itself is there before it has any: a struct of Go's is never left out.
fn status_fields(status: &Value) -> Value {
    let fields = status.as_object().into_iter().flatten();
    fields.map(|(field, value)| json!({"op": "add", "path": format!("/status/{field}"), "value": value})).collect()
}

/// A JSON patch that lays `part` over `object`.
fn json_patch(object: &Value, part: &Value, at: &str) -> Value {
    let mut operations = Vec::new();
    if let (Value::Object(have), Value::Object(want)) = (object, part) {
        for (key, value) in want {
            let path = format!("{at}/{}", key.replace('~', "~0").replace('/', "~1"));
            match have.get(key) {
                Some(existing) if existing.is_object() && value.is_object() => {
                    let below = json_patch(existing, value, &path);
                    operations.extend(below.as_array().cloned().unwrap_or_default());
                }
                _ => operations.push(json!({"op": "add", "path": path, "value": value})),
            }
        }
    }
    Value::Array(operations)
}

/// Create, get, update, update and read the status, every kind of patch of both, list and deletecollection.
///
/// Of the row, `patch` is not used: patches make the same change as the update.
pub async fn crud(cx: Arc<Cx>, row: &Row) -> Result<()> {
    cx.step("discovery");
    discovered(&cx, row.kind, row.status.is_some()).await?;
    let api = cx.api(row.kind);
    let label = cx.unique("crud");
    let selector = format!("{LABEL}={label}");
    let mine = labelled(&selector);
    let mut observers = Vec::new();
    for watched in [api.clone(), cx.cluster_wide(row.kind)] {
        let list = watched.list(&mine).await?;
        ensure!(items(&list, "/items").is_empty(), "the list is not empty at first: {list}");
        observers.push(Observer { watch: watched.watch_since(&list, &mine).await?, revision: 0 });
    }
    let mut test = Crud { cx: &cx, row, api: api.clone(), label, observers };
    cx.step("create, get, update");
    let created = test.create().await?;
    let subject = name(&created).to_owned();
    cx.delete_later(&api, &subject);
    expect(&api.get(&subject).await?, "/metadata/uid", uid(&created))?;
    let updated = test.update(&subject).await?;
    newer(&created, &updated)?;
    if let Some(status) = row.status {
        cx.step("update of the status");
        test.update_status(&subject, &status()).await?;
    }
    let mut last = updated;
    let kinds = [Patch::Strategic, Patch::Apply, Patch::Merge, Patch::Json];
    for kind in kinds {
        cx.step(format!("{kind:?} patch"));
        last = test.patch(&last, kind, None).await.with_context(|| format!("{kind:?} patch"))?;
    }
    if let Some(status) = row.status {
        for kind in kinds {
            cx.step(format!("{kind:?} patch of the status"));
            let patched = test.patch(&last, kind, Some(&status())).await;
            last = patched.with_context(|| format!("{kind:?} patch of the status"))?;
        }
    }
    cx.step("list, deletecollection");
    for listed in [&api, &cx.cluster_wide(row.kind)] {
        let list = listed.list(&mine).await?;
        let found = items(&list, "/items");
        ensure!(found.len() == 1 && uid(&found[0]) == uid(&last), "the list is not the object alone: {list}");
    }
    api.delete_collection(&mine).await?;
    api.wait_gone(&subject, SOON).await?;
    test.seen(Step::Deleted, &last).await.context("watching after deletecollection")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_json_patch_adds_what_is_missing_where_it_is_missing() {
        let object = json!({"metadata": {"labels": {"a": "b"}}});
        let part = json!({"metadata": {"labels": {"x/y": "z"}}, "status": {"c": []}});
        assert_eq!(
            json_patch(&object, &part, ""),
            json!([
                {"op": "add", "path": "/metadata/labels/x~1y", "value": "z"},
                {"op": "add", "path": "/status", "value": {"c": []}},
            ])
        );
    }
}
