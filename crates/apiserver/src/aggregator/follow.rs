//! The task that keeps `APIService` objects: lists what this server serves, and says which other servers are available.

use std::collections::HashSet;
use std::time::Duration;

use apimachinery::status::Result;
use apimachinery::{Value, meta};
use futures::future::join_all;
use serde_json::json;

use super::local::{AUTOMANAGED, wanted};
use super::{Remote, Remotes, status};
use crate::object::Object;
use crate::registry::timestamp;
use crate::server::{ApiServer, now_seconds};
use crate::startup::send;

const PREFIX: &str = "apiregistration.k8s.io/apiservices";
const PATH: &str = "/apis/apiregistration.k8s.io/v1/apiservices";
/// What the availability of a remote server depends on.
const OTHERS: [&str; 2] = ["services/specs", "endpointslices"];

/// Upstream looks again so often at servers that are there …
const RECHECK: Duration = Duration::from_secs(30);
/// … and soon at those that are not.
const RETRY: Duration = Duration::from_secs(1);

/// Follows until the server stops.
pub fn start(server: &ApiServer) {
    let own = server.clone();
    server.background.spawn(async move {
        while let Err(error) = run(&own).await {
            // What was looked at is history that is gone already (410): from now on, then.
            if error.code != 410 {
                return tracing::debug!(%error, "aggregation ends");
            }
            tokio::time::sleep(RETRY).await;
        }
    });
}

async fn run(server: &ApiServer) -> Result<()> {
    loop {
        let revision = server.view.store().revision();
        let mut objects = server.view.watch(PREFIX, revision)?;
        let changed = server.aggregator.table_changed.notified();
        list_local(server).await;
        let all_fine = look(server).await;
        let remotes = server.aggregator.remotes();
        if remotes.is_empty() {
            tokio::select! {
                () = other(&mut objects, |_| true) => {}
                () = changed => {}
            }
        } else {
            let mut services = server.view.watch(OTHERS[0], revision)?;
            let mut slices = server.view.watch(OTHERS[1], revision)?;
            let concerns = |object: &Object, of: &str| {
                let meta = object.meta();
                remotes.values().any(|r| *r.namespace == *meta.namespace && r.service == of)
            };
            tokio::select! {
                () = other(&mut objects, |_| true) => {}
                () = changed => {}
                () = other(&mut services, |object| concerns(object, &object.meta().name)) => {}
                () = other(&mut slices, |object| {
                    concerns(object, object.meta().label("kubernetes.io/service-name").unwrap_or_default())
                }) => {}
                () = tokio::time::sleep(if all_fine { RECHECK } else { RETRY }) => {}
            }
        }
    }
}

/// Returns when something changed that matters, or what changed is not known any more.
async fn other(watcher: &mut store::Watcher<Object>, matters: impl Fn(&Object) -> bool) {
    while let Ok(events) = watcher.next().await {
        if events.iter().any(|event| matters(&event.entry().value)) {
            return;
        }
    }
}

/// Makes the objects of local group-versions that are missing, and removes those of custom ones that are no more.
async fn list_local(server: &ApiServer) {
    let wanted = wanted(&server.table());
    let listed = server.view.list(PREFIX, "");
    let known: HashSet<&str> = listed.iter().map(|entry| &*entry.value.meta().name).collect();
    let missing = wanted.iter().filter(|object| !known.contains(meta::name(object)));
    let made = missing.map(|object| send(server, "POST", PATH, Some(object)));
    let names: HashSet<&str> = wanted.iter().map(meta::name).collect();
    let gone = listed.iter().filter(|entry| {
        entry.value.meta().label(AUTOMANAGED) == Some("true") && !names.contains(&*entry.value.meta().name)
    });
    let paths: Vec<String> = gone.map(|entry| format!("{PATH}/{}", entry.value.meta().name)).collect();
    let removed = paths.iter().map(|path| send(server, "DELETE", path, None));
    for outcome in join_all(made).await.into_iter().chain(join_all(removed).await) {
        if let Err(error) = outcome
            && !matches!(error.code, 404 | 409)
        {
            tracing::warn!(%error, "cannot keep the list of APIServices");
        }
    }
}

/// Checks every remote server and publishes what was found. Whether all are available.
async fn look(server: &ApiServer) -> bool {
    let before = server.aggregator.remotes();
    let objects: Vec<Value> = server.view.list(PREFIX, "").iter().map(|entry| entry.value.value()).collect();
    let mut remotes = Remotes::new();
    for object in &objects {
        let key = (
            meta::str_at(object, &["spec", "group"]).to_owned(),
            meta::str_at(object, &["spec", "version"]).to_owned(),
        );
        if let Some(remote) = Remote::of(object, before.get(&key).map(|known| &**known)) {
            remotes.insert(key, remote.into());
        }
    }
    if remotes.is_empty() && before.is_empty() {
        return true;
    }
    let checks = remotes.values().map(|remote| status::check(&server.aggregator, remote));
    let found = join_all(checks).await;
    let keys: Vec<(String, String)> = remotes.keys().cloned().collect();
    let mut all_fine = true;
    let mut news = Vec::new();
    for (key, found) in keys.into_iter().zip(found) {
        let name = format!("{}.{}", key.1, key.0);
        let Some(object) = objects.iter().find(|object| meta::name(object) == name) else { continue };
        let available = found.condition["status"] == "True";
        all_fine &= available;
        if let Some(remote) = Remote::of(object, None) {
            let known = remotes[&key].resources.clone();
            let resources = found.resources.map_or(known, Into::into);
            remotes.insert(key, Remote { available, resources, ..remote }.into());
        }
        news.push((object, found.condition));
    }
    // Before it is told: whoever reads that a server is available asks it next.
    server.aggregator.set(remotes);
    for (object, condition) in news {
        tell(server, object, condition).await;
    }
    all_fine
}

/// Writes the condition, if it says anything new.
async fn tell(server: &ApiServer, object: &Value, mut condition: Value) {
    let conditions = object["status"]["conditions"].as_array().cloned().unwrap_or_default();
    let known = conditions.iter().find(|known| known["type"] == "Available");
    let same = |key: &str| known.is_some_and(|known| known[key] == condition[key]);
    if same("status") && same("reason") && same("message") {
        return;
    }
    let since = if same("status") { known.map(|known| known["lastTransitionTime"].clone()) } else { None };
    condition["lastTransitionTime"] = since.unwrap_or_else(|| json!(timestamp(now_seconds())));
    let mut next = object.clone();
    let others = conditions.into_iter().filter(|other| other["type"] != "Available");
    next["status"]["conditions"] = others.chain([condition]).collect::<Vec<_>>().into();
    let path = format!("{PATH}/{}/status", meta::name(object));
    if let Err(error) = send(server, "PUT", &path, Some(&next)).await
        && !matches!(error.code, 404 | 409)
    {
        tracing::warn!(%error, name = meta::name(object), "cannot write the status of an APIService");
    }
}
