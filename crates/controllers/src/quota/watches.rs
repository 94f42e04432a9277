//! Which resources there are, and watches on those that quotas name: what goes from a namespace wakes its quotas.

use std::collections::{BTreeSet, HashMap};
use std::sync::Arc;
use std::time::Duration;

use apimachinery::quota;
use client::informer::WatchBackoff;
use client::{Change, Context, Informer, ObjectKey, Queue, key_of};
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::ResourceQuota;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Api, DynamicObject};
use kube::core::PartialObjectMeta;
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::RwLock;
use tokio::sync::Notify;
use tokio_util::sync::CancellationToken;

use super::names_of;
use crate::discovery::{Discovered, Resource, discover};
use crate::error::Result;

/// Pauses before discovery is asked again for what it did not know: it may lag behind a definition.
const RETRY_FIRST: Duration = Duration::from_millis(100);
const RETRY_MAX: Duration = Duration::from_secs(30);

/// Group and plural.
type Kind = (String, String);

/// What discovery knows. Cloning shares it.
#[derive(Clone)]
pub struct Watches {
    client: kube::Client,
    discovered: Arc<RwLock<Arc<Discovered>>>,
}

impl Watches {
    /// As [`Watches::resource`]; what is not known is asked for once more, so that a quota is not left uncounted for no reason.
    pub async fn find(&self, group: &str, plural: &str) -> Result<Option<Arc<Resource>>> {
        if let Some(resource) = self.resource(group, plural) {
            return Ok(Some(resource));
        }
        self.ask().await?;
        Ok(self.resource(group, plural))
    }

    async fn ask(&self) -> Result<()> {
        let discovered = discover(&self.client).await?;
        *self.discovered.write() = Arc::new(discovered);
        Ok(())
    }

    /// A namespaced resource whose objects can be counted.
    pub fn resource(&self, group: &str, plural: &str) -> Option<Arc<Resource>> {
        let discovered = self.discovered.read().clone();
        let fits = |resource: &&Arc<Resource>| {
            let countable = resource.namespaced && resource.can(&["create", "delete", "list", "watch"]);
            resource.api.group == group && resource.api.plural == plural && countable
        };
        discovered.preferred.iter().find(fits).cloned()
    }
}

/// The kinds that quotas name, pods excepted, which have an informer.
fn wanted(quotas: &[Arc<ResourceQuota>]) -> BTreeSet<Kind> {
    let names = quotas.iter().flat_map(|quota| names_of(quota));
    let kinds = names.filter_map(quota::kind_of).filter(|kind| *kind != ("", "pods"));
    kinds.map(|(group, plural)| (group.to_owned(), plural.to_owned())).collect()
}

/// Returns the register, and the work that keeps it until shutdown. Quotas that named something unknown are put into `queue` when
/// it becomes known.
pub fn start(
    context: &Context,
    client: kube::Client,
    quotas: Informer<ResourceQuota>,
    queue: Queue<ObjectKey>,
) -> (Watches, impl Future<Output = ()> + use<>) {
    let changed = Arc::new(Notify::new());
    let (on_quota, on_definition) = (changed.clone(), changed.clone());
    quotas.on_change(move |change: Change<'_, ResourceQuota>| {
        let names = |quota: &Arc<ResourceQuota>| names_of(quota).map(str::to_owned).collect::<BTreeSet<_>>();
        if change.old().map(names) != Some(names(change.object())) {
            on_quota.notify_one();
        }
    });
    let definitions = context.informers.of::<CustomResourceDefinition>();
    definitions.on_change(move |_| on_definition.notify_one());
    let watches = Watches { client, discovered: Arc::default() };
    let keeper = Keeper { quotas, queue, watches: watches.clone(), running: HashMap::new() };
    (watches, keeper.keep(changed, context.shutdown.clone()))
}

struct Keeper {
    quotas: Informer<ResourceQuota>,
    queue: Queue<ObjectKey>,
    watches: Watches,
    running: HashMap<Kind, CancellationToken>,
}

impl Keeper {
    async fn keep(mut self, changed: Arc<Notify>, shutdown: CancellationToken) {
        let mut retry = RETRY_FIRST;
        loop {
            let complete = self.step(&shutdown).await;
            if complete {
                retry = RETRY_FIRST;
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
                () = shutdown.cancelled() => return,
            }
        }
    }

    /// Whether everything that quotas name is known and watched.
    async fn step(&mut self, shutdown: &CancellationToken) -> bool {
        let quotas = self.quotas.list();
        if quotas.is_empty() {
            self.running.drain().for_each(|(_, stop)| stop.cancel());
            return true;
        }
        if let Err(error) = self.watches.ask().await {
            tracing::debug!(%error, "discovery failed, will retry");
            return false;
        }
        let wanted = wanted(&quotas);
        self.running.retain(|kind, stop| {
            let keep = wanted.contains(kind) && self.watches.resource(&kind.0, &kind.1).is_some();
            if !keep {
                stop.cancel();
            }
            keep
        });
        let mut complete = true;
        for kind in wanted {
            match self.watches.resource(&kind.0, &kind.1) {
                Some(_) if self.running.contains_key(&kind) => {}
                Some(resource) => self.start(kind, resource, shutdown),
                None => complete = false,
            }
        }
        // Who came before discovery was left uncounted.
        quotas.iter().filter(|quota| is_uncounted(quota)).for_each(|quota| self.queue.add(key_of(&**quota)));
        complete
    }

    fn start(&mut self, kind: Kind, resource: Arc<Resource>, shutdown: &CancellationToken) {
        let stop = shutdown.child_token();
        let work = follow(self.watches.client.clone(), resource, self.quotas.clone(), self.queue.clone());
        let until = stop.clone();
        tokio::spawn(async move { until.run_until_cancelled(work).await });
        self.running.insert(kind, stop);
    }
}

fn is_uncounted(quota: &ResourceQuota) -> bool {
    let used = quota.status.as_ref().and_then(|status| status.used.as_ref());
    names_of(quota).any(|name| quota::kind_of(name).is_some() && used.is_none_or(|used| !used.contains_key(name)))
}

/// Wakes quotas when objects of the resource go, and where it matters what is in them, when they change.
async fn follow(
    client: kube::Client,
    resource: Arc<Resource>,
    quotas: Informer<ResourceQuota>,
    queue: Queue<ObjectKey>,
) {
    let (group, plural) = (resource.api.group.as_str(), resource.api.plural.as_str());
    let wake = |quotas: Vec<Arc<ResourceQuota>>| {
        for quota in quotas {
            if names_of(&quota).any(|name| quota::concerns(group, plural, name)) {
                queue.add(key_of(&*quota));
            }
        }
    };
    let api: Api<PartialObjectMeta<DynamicObject>> = Api::all_with(client, &resource.api);
    let config = watcher::Config::default().streaming_lists();
    let mut events = std::pin::pin!(watcher(api, config).backoff(WatchBackoff::default()));
    let at_home = |object: &PartialObjectMeta<DynamicObject>| {
        quotas.list_namespace(object.metadata.namespace.as_deref().unwrap_or_default())
    };
    while let Some(event) = events.next().await {
        match event {
            Ok(watcher::Event::Delete(object)) => wake(at_home(&object)),
            Ok(watcher::Event::Apply(object)) if quota::needs_content(group, plural) => wake(at_home(&object)),
            // What went before the watch, or while it was interrupted, was not told.
            Ok(watcher::Event::InitDone) => wake(quotas.list()),
            Ok(_) => {}
            Err(error) => tracing::debug!(resource = resource.name(), %error, "metadata watch interrupted"),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    #[test]
    fn only_what_quotas_name_is_watched() {
        let quota: ResourceQuota = yaml(
            "{ spec: { hard: { pods: '1', requests.cpu: '1', secrets: '1', count/secrets: '2', count/widgets.example.com: '1' } },
               status: { hard: { services.nodeports: '1' }, used: { services.nodeports: '0' } } }",
        );
        let kinds = wanted(&[Arc::new(quota.clone())]);
        let shown: Vec<String> = kinds.iter().map(|(group, plural)| format!("{plural}.{group}")).collect();
        assert_eq!(shown, ["secrets.", "services.", "widgets.example.com"]);
        assert!(is_uncounted(&quota));
    }
}
