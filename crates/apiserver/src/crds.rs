//! Custom resources: definitions in the store become rows of the resource table, and go with all their objects.
//!
//! At start all definitions are read, then the store's watch is followed. What follows from a definition and the table is decided by
//! pure functions; status and clean-up are written through the API like anybody's.

use std::collections::HashSet;
use std::sync::Arc;

use apimachinery::resource::{ResourceTable, Verb, custom};
use apimachinery::status::Result;
use apimachinery::{Value, meta};
use serde_json::json;
use store::{Change, Range};

use crate::conversion::Webhook;
use crate::object::Object;
use crate::registry::timestamp;
use crate::server::{ApiServer, now_seconds};
use crate::startup::send;
use crate::view::folder;

const PREFIX: &str = "apiextensions.k8s.io/customresourcedefinitions";
const PATH: &str = "/apis/apiextensions.k8s.io/v1/customresourcedefinitions";
/// The finalizer that keeps a definition while objects of it exist.
pub const CLEANUP: &str = "customresourcecleanup.apiextensions.k8s.io";

/// Serves the definitions that are there, and every one to come until the server stops.
pub async fn start(server: &ApiServer) -> Result<()> {
    let mut follower = Follower { server: server.clone(), ending: HashSet::new() };
    let revision = follower.load().await?;
    server.background.spawn(follower.run(revision));
    Ok(())
}

struct Follower {
    server: ApiServer,
    /// Definitions whose objects are being deleted.
    ending: HashSet<String>,
}

impl Follower {
    /// Takes in all definitions as they are now, and drops the rows of those that are no more.
    async fn load(&mut self) -> Result<store::Revision> {
        let range = Range::prefix(&folder(PREFIX, ""));
        let listing = self.server.view.store().range(&range).map_err(crate::error::from_store)?;
        let definitions: Vec<Value> = listing.entries.iter().map(|entry| entry.value.value()).collect();
        let table = self.server.table();
        let orphans = table
            .rows()
            .filter(|row| row.custom && !definitions.iter().any(|d| resource_of(d) == (&*row.group, &*row.plural)));
        for row in orphans {
            self.server.change_table(|table| table.remove(&row.group, &row.plural));
        }
        for definition in definitions {
            self.put(definition).await;
        }
        Ok(listing.revision)
    }

    async fn run(mut self, mut revision: store::Revision) {
        loop {
            match self.server.view.watch(PREFIX, revision) {
                Ok(watcher) => {
                    if !self.follow(watcher).await {
                        return;
                    }
                }
                Err(error) if error.code == 410 => {}
                Err(_) => return,
            }
            // Fell behind: from the newest state on.
            match self.load().await {
                Ok(newest) => revision = newest,
                Err(_) => return,
            }
        }
    }

    /// Follows a watch to its end. Whether it can be begun anew: it fell behind, and the store is open.
    async fn follow(&mut self, mut watcher: store::Watcher<Object>) -> bool {
        loop {
            match watcher.next().await {
                Ok(events) => {
                    for event in events {
                        match &event.change {
                            Change::Put(entry) => self.put(entry.value.value()).await,
                            Change::Delete(last) => self.gone(&last.value.value()).await,
                        }
                    }
                }
                Err(error) => return matches!(error, store::Error::Compacted { .. }),
            }
        }
    }

    async fn put(&mut self, definition: Value) {
        let table = self.server.table();
        if !meta::is_deleting(&definition)
            && let Some(status) = next_status(&definition, &table, now_seconds())
        {
            // The write comes back as an event, and the rows with it.
            let mut next = definition.clone();
            next["status"] = status;
            let path = format!("{PATH}/{}/status", meta::name(&definition));
            if let Err(error) = send(&self.server, "PUT", &path, Some(&next)).await
                && error.code != 409
                && error.code != 404
            {
                tracing::error!(%error, name = meta::name(&definition), "cannot write the status of a definition");
            }
            return;
        }
        if is_true(&definition, "Established") {
            self.serve(&definition);
        }
        if meta::is_deleting(&definition) && self.ending.insert(meta::name(&definition).to_owned()) {
            self.server.background.spawn(end(self.server.clone(), definition));
        }
    }

    fn serve(&self, definition: &Value) {
        let rows = match custom::rows(definition) {
            Ok(rows) => rows,
            Err(errors) => {
                return tracing::error!(?errors, name = meta::name(definition), "a stored definition cannot be served");
            }
        };
        let deleting = meta::is_deleting(definition);
        let (group, plural) = resource_of(definition);
        self.server.conversions.set(group, plural, Webhook::of(definition));
        self.server.change_table(|table| {
            table.remove(group, plural);
            for mut row in rows {
                if deleting {
                    // Nothing new comes while all that is there goes.
                    row.verbs.retain(|verb| *verb != Verb::Create);
                }
                table.insert(Arc::new(row));
            }
        });
    }

    /// Its rows go, and whoever wanted its names may have them.
    async fn gone(&mut self, definition: &Value) {
        self.ending.remove(meta::name(definition));
        if is_true(definition, "Established") {
            let (group, plural) = resource_of(definition);
            self.server.change_table(|table| table.remove(group, plural));
            self.server.conversions.set(group, plural, None);
        }
        for entry in self.server.view.list(PREFIX, "") {
            let other = entry.value.value();
            if !is_true(&other, "NamesAccepted") {
                self.put(other).await;
            }
        }
    }
}

/// Group and plural.
fn resource_of(definition: &Value) -> (&str, &str) {
    (meta::str_at(definition, &["spec", "group"]), meta::str_at(definition, &["spec", "names", "plural"]))
}

/// Deletes every object of a definition, waits until finalizers have let the last one go, and lets the definition go.
async fn end(server: ApiServer, definition: Value) {
    let ((group, plural), name) = (resource_of(&definition), meta::name(&definition));
    let prefix = format!("{group}/{plural}");
    let versions = definition["spec"]["versions"].as_array().cloned().unwrap_or_default();
    let served = || versions.iter().filter(|v| v["served"] == true);
    // In the version that is stored no webhook need live to let them go.
    let version = served().find(|v| v["storage"] == true).or_else(|| served().next());
    let version = version.map(|v| meta::str_at(v, &["name"])).unwrap_or_default();
    loop {
        let Ok(mut watcher) = server.view.watch(&prefix, server.view.store().revision()) else { return };
        let left = server.view.list(&prefix, "");
        if left.is_empty() || version.is_empty() {
            break;
        }
        for entry in left.iter().filter(|entry| entry.value.meta().deletion_timestamp.is_none()) {
            let object = entry.value.meta();
            let place = match &*object.namespace {
                "" => String::new(),
                namespace => format!("/namespaces/{namespace}"),
            };
            let path = format!("/apis/{group}/{version}{place}/{plural}/{}", object.name);
            if let Err(error) = send(&server, "DELETE", &path, None).await
                && error.code != 404
            {
                tracing::warn!(%error, path, "cannot delete an object of a definition that goes");
            }
        }
        if !server.view.list(&prefix, "").is_empty() && watcher.next().await.is_err() {
            return;
        }
    }
    let path = format!("{PATH}/{name}");
    let Some(newest) = server.view.get(PREFIX, "", name).map(|entry| entry.value.value()) else { return };
    let kept: Vec<&str> = meta::finalizers(&newest).into_iter().filter(|f| *f != CLEANUP).collect();
    let patch = json!({"metadata": {"uid": meta::uid(&definition), "finalizers": kept}});
    if let Err(error) = send(&server, "PATCH", &path, Some(&patch)).await
        && error.code != 404
    {
        tracing::error!(%error, name, "cannot let a definition go");
    }
}

/// A condition as upstream writes it.
pub fn condition(kind: &str, holds: bool, reason: &str, message: &str, since: &str) -> Value {
    json!({
        "type": kind, "status": if holds { "True" } else { "False" }, "reason": reason, "message": message,
        "lastTransitionTime": since,
    })
}

/// Whether the condition of this type holds.
pub fn is_true(definition: &Value, kind: &str) -> bool {
    let conditions = definition["status"]["conditions"].as_array();
    conditions.into_iter().flatten().any(|c| c["type"] == *kind && c["status"] == "True")
}

/// The status that names and table call for; none if it is that already.
fn next_status(definition: &Value, table: &ResourceTable, now: i64) -> Option<Value> {
    let since = timestamp(now);
    let names = &definition["spec"]["names"];
    let (accepted, established) = match conflict(definition, table) {
        None => (
            condition("NamesAccepted", true, "NoConflicts", "no conflicts found", &since),
            condition("Established", true, "InitialNamesAccepted", "the initial names have been accepted", &since),
        ),
        Some((reason, name)) => (
            condition("NamesAccepted", false, reason, &format!("{name:?} is already in use"), &since),
            condition("Established", false, "NotAccepted", "not all names are accepted", &since),
        ),
    };
    let mut status = definition["status"].clone();
    if !status.is_object() {
        status = json!({});
    }
    let fine = accepted["status"] == "True";
    if fine {
        status["acceptedNames"] = names.clone();
    }
    set(&mut status, accepted);
    // What was established stays so: there are objects of it.
    if fine || !is_true(definition, "Established") {
        set(&mut status, established);
    }
    (status != definition["status"]).then_some(status)
}

/// Sets a condition; one that says the same keeps its time.
fn set(status: &mut Value, condition: Value) {
    if !status["conditions"].is_array() {
        status["conditions"] = json!([]);
    }
    let Some(list) = status["conditions"].as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(known) if known["status"] == condition["status"] && known["reason"] == condition["reason"] => {}
        Some(known) => *known = condition,
        None => list.push(condition),
    }
}

/// The first name of a definition that another resource of its group has, and the reason to give.
fn conflict(definition: &Value, table: &ResourceTable) -> Option<(&'static str, String)> {
    let group = meta::str_at(definition, &["spec", "group"]);
    let names = &definition["spec"]["names"];
    let text = |key: &str| meta::str_at(names, &[key]);
    let others = || table.rows().filter(|row| *row.group == *group && *row.plural != *text("plural"));
    let resource = |name: &str| {
        others().any(|row| {
            *row.plural == *name || *row.singular == *name || row.short_names.iter().any(|short| **short == *name)
        })
    };
    let kind = |name: &str| others().any(|row| *row.kind == *name || *row.list_kind == *name);
    let short = meta::strings(names.get("shortNames")).into_iter().find(|name| resource(name));
    let checks = [
        ("PluralConflict", Some(text("plural")).filter(|name| resource(name))),
        ("SingularConflict", Some(text("singular")).filter(|name| resource(name))),
        ("ShortNamesConflict", short),
        ("KindConflict", Some(text("kind")).filter(|name| kind(name))),
        ("ListKindConflict", Some(text("listKind")).filter(|name| kind(name))),
    ];
    checks.into_iter().find_map(|(reason, name)| name.map(|name| (reason, name.to_owned())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use apimachinery::resource::builtin;

    fn definition(group: &str, kind: &str) -> Value {
        let plural = format!("{}s", kind.to_lowercase());
        json!({"metadata": {"name": format!("{plural}.{group}")}, "spec": {"group": group, "names": {
            "plural": plural, "singular": kind.to_lowercase(), "kind": kind, "listKind": format!("{kind}List")}}})
    }

    #[test]
    fn names_are_accepted_unless_taken() {
        let mut fine = definition("example.com", "Deployment");
        fine["status"] = next_status(&fine, builtin(), 0).unwrap();
        assert!(is_true(&fine, "Established") && is_true(&fine, "NamesAccepted"));
        assert_eq!(fine["status"]["acceptedNames"]["kind"], "Deployment");
        assert_eq!(next_status(&fine, builtin(), 100), None);

        let mut taken = definition("apps", "Deployment");
        taken["spec"]["names"]["plural"] = json!("ships");
        let status = next_status(&taken, builtin(), 0).unwrap();
        assert_eq!(status["conditions"][0]["message"], "\"deployment\" is already in use");
        assert_eq!(status["conditions"][1]["reason"], "NotAccepted");
    }
}
