//! One metadata-only watch for each resource that can be collected, started and stopped as resources come and go.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;
use std::time::Duration;

use client::informer::WatchBackoff;
use client::{Change, Context};
use futures::StreamExt as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::kube_aggregator::pkg::apis::apiregistration::v1::APIService;
use kube::api::{Api, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use tokio::sync::{Notify, watch};
use tokio_util::sync::CancellationToken;

use super::Shared;
use super::graph::{Identity, Uid};
use crate::discovery::{Discovered, Resource, discover};

/// Resources whose objects own nothing and are owned by nothing that matters (upstream's ignored resources).
const IGNORED: [(&str, &str); 2] = [("", "events"), ("events.k8s.io", "events")];
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

struct Monitor {
    stop: CancellationToken,
    synced: watch::Receiver<bool>,
}

/// Keeps the monitors in step with discovery until shutdown. `ready` is set once all first lists are in the graph.
pub async fn keep(context: Context, client: kube::Client, shared: Arc<Shared>, ready: watch::Sender<bool>) {
    let changed = Arc::new(Notify::new());
    let definitions = context.informers.of::<CustomResourceDefinition>();
    let services = context.informers.of::<APIService>();
    let (on_definition, on_service) = (changed.clone(), changed.clone());
    definitions.on_change(move |change: Change<'_, CustomResourceDefinition>| {
        if is_news(&change) {
            on_definition.notify_one();
        }
    });
    services.on_change(move |_| on_service.notify_one());

    let mut monitors: HashMap<(String, String), (Resource, Monitor)> = HashMap::new();
    let mut retry = RETRY_FIRST;
    loop {
        let complete = match discover(&client).await {
            Ok(discovered) => {
                let expected = definitions.list();
                let complete = discovered.stale.is_empty() && expected.iter().all(|d| is_discovered(d, &discovered));
                update(&mut monitors, &discovered, &client, &shared, &context.shutdown);
                *shared.discovered.write() = Arc::new(discovered);
                complete
            }
            Err(error) => {
                tracing::debug!(%error, "discovery failed, will retry");
                false
            }
        };
        if complete {
            retry = RETRY_FIRST;
            let synced = async {
                for (_, monitor) in monitors.values() {
                    // A stopped monitor has dropped its sender, and has nothing more to list.
                    let _ = monitor.synced.clone().wait_for(|done| *done).await;
                }
            };
            tokio::select! {
                () = synced => { ready.send_replace(true); }
                () = context.shutdown.cancelled() => return,
                // One resource that cannot be listed must not hold up the others for ever.
                () = tokio::time::sleep(RETRY_MAX) => { ready.send_replace(true); }
            }
        }
        let pause = async {
            match complete {
                true => std::future::pending().await,
                false => tokio::time::sleep(retry).await,
            }
        };
        tokio::select! {
            () = changed.notified() => {}
            () = pause => retry = (retry * 2).min(RETRY_MAX),
            () = context.shutdown.cancelled() => return,
        }
    }
}

/// Served versions and names tell which resources there are; other changes of a definition do not.
fn is_news(change: &Change<'_, CustomResourceDefinition>) -> bool {
    let Change::Applied { old: Some(old), new } = change else { return true };
    old.spec.versions != new.spec.versions || is_established(old) != is_established(new)
}

fn is_established(definition: &CustomResourceDefinition) -> bool {
    let conditions = definition.status.iter().flat_map(|status| status.conditions.iter().flatten());
    conditions.into_iter().any(|condition| condition.type_ == "Established" && condition.status == "True")
}

/// Discovery may lag behind a definition that has just been established.
fn is_discovered(definition: &CustomResourceDefinition, discovered: &Discovered) -> bool {
    let spec = &definition.spec;
    let found = || discovered.preferred.iter().any(|r| r.api.group == spec.group && r.api.plural == spec.names.plural);
    !is_established(definition) || definition.metadata.deletion_timestamp.is_some() || found()
}

fn update(
    monitors: &mut HashMap<(String, String), (Resource, Monitor)>,
    discovered: &Discovered,
    client: &kube::Client,
    shared: &Arc<Shared>,
    shutdown: &CancellationToken,
) {
    let name = |resource: &Resource| (resource.api.group.clone(), resource.api.plural.clone());
    let wanted: HashMap<(String, String), &Arc<Resource>> = discovered
        .preferred
        .iter()
        .filter(|resource| resource.can(&["delete", "list", "watch"]))
        .filter(|resource| !IGNORED.contains(&(&*resource.api.group, &*resource.api.plural)))
        .map(|resource| (name(resource), resource))
        .collect();
    // The resources of a group whose server is away stay as they were.
    let away = |group: &str| discovered.stale.iter().any(|stale| stale.split('/').next() == Some(group));
    monitors.retain(|key, (resource, monitor)| {
        let keep = wanted.get(key).is_some_and(|wanted| wanted.api == resource.api) || away(&key.0);
        if !keep {
            monitor.stop.cancel();
        }
        keep
    });
    for (key, resource) in wanted {
        monitors.entry(key).or_insert_with(|| {
            let stop = shutdown.child_token();
            let (sender, synced) = watch::channel(false);
            let work = monitor(client.clone(), resource.clone(), shared.clone(), sender);
            let until = stop.clone();
            tokio::spawn(async move { until.run_until_cancelled(work).await });
            ((**resource).clone(), Monitor { stop, synced })
        });
    }
}

/// Feeds one resource's objects into the graph.
async fn monitor(client: kube::Client, resource: Arc<Resource>, shared: Arc<Shared>, synced: watch::Sender<bool>) {
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource.api);
    let config = watcher::Config::default().streaming_lists();
    let mut events = std::pin::pin!(watcher(api, config).backoff(WatchBackoff::default()));
    let api_version: Arc<str> = Arc::from(&*resource.api.api_version);
    let kind: Arc<str> = Arc::from(&*resource.api.kind);
    let identity = |meta: &ObjectMeta| Identity {
        api_version: api_version.clone(),
        kind: kind.clone(),
        namespace: meta.namespace.clone().unwrap_or_default(),
        name: meta.name.clone().unwrap_or_default(),
    };
    let mut known: HashSet<Uid> = HashSet::new();
    let mut listed: HashSet<Uid> = HashSet::new();
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Init) => listed.clear(),
            Ok(watcher::Event::InitApply(object)) => {
                listed.extend(object.metadata.uid.as_deref().map(Uid::from));
                shared.observe(identity(&object.metadata), &object.metadata);
            }
            Ok(watcher::Event::InitDone) => {
                known.difference(&listed).for_each(|gone| shared.vanish(gone));
                known = std::mem::take(&mut listed);
                synced.send_replace(true);
            }
            Ok(watcher::Event::Apply(object)) => {
                known.extend(object.metadata.uid.as_deref().map(Uid::from));
                shared.observe(identity(&object.metadata), &object.metadata);
            }
            Ok(watcher::Event::Delete(object)) => {
                if let Some(uid) = object.metadata.uid.as_deref() {
                    known.remove(uid);
                    shared.vanish(uid);
                }
            }
            Err(error) => tracing::debug!(resource = resource.name(), %error, "metadata watch interrupted"),
        }
    }
}
