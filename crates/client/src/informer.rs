//! Shared informers: one list-and-watch and one cache per kind and selector in a process, however many readers.
//!
//! Handlers are called in the order of changes, on the informer's own task, and must not block: they put keys into a
//! [`crate::Queue`], whose deduplication bounds them. `managedFields` are dropped from what is cached: no reader needs
//! them, they are often half of an object, and the server keeps them when an update comes without.

use std::any::{Any, TypeId};
use std::collections::{HashMap, HashSet};
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;

use crate::cache::Cache;

/// What a type must be to be watched: any `k8s-openapi` kind is.
pub trait Kind: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}
impl<K> Kind for K where K: kube::Resource<DynamicType = ()> + Clone + DeserializeOwned + Debug + Send + Sync + 'static {}

/// A change of one object as a handler sees it.
#[derive(Debug)]
pub enum Change<'a, K> {
    /// Added (`old` is none) or updated.
    Applied {
        old: Option<&'a Arc<K>>,
        new: &'a Arc<K>,
    },
    Deleted {
        old: &'a Arc<K>,
    },
}

impl<K> Change<'_, K> {
    /// The newest object known: the new one, or the last seen of a deleted one.
    pub fn object(&self) -> &Arc<K> {
        match self {
            Change::Applied { new, .. } => new,
            Change::Deleted { old } => old,
        }
    }

    /// What was there before, if anything.
    pub fn old(&self) -> Option<&Arc<K>> {
        match self {
            Change::Applied { old, .. } => *old,
            Change::Deleted { old } => Some(old),
        }
    }
}

/// Namespace (empty for cluster scope) and name.
pub type ObjectKey = (String, String);

type Handler<K> = Box<dyn Fn(Change<'_, K>) + Send + Sync>;

/// How far an informer has come.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Progress {
    /// The highest resourceVersion seen on an object.
    pub revision: u64,
    /// Lists begun and completed. A list begun after a write shows that write or its successor.
    pub lists_begun: u64,
    pub lists_done: u64,
}

struct Shared<K> {
    cache: RwLock<Cache<K>>,
    /// Held while a change is applied and told, so that a new handler's replay and the stream of changes do not interleave.
    handlers: Mutex<Vec<Handler<K>>>,
    progress: watch::Sender<Progress>,
    shutdown: CancellationToken,
}

/// A handle to one shared cache. Cloning shares it.
pub struct Informer<K> {
    shared: Arc<Shared<K>>,
}

impl<K> Clone for Informer<K> {
    fn clone(&self) -> Self {
        Informer { shared: self.shared.clone() }
    }
}

/// Reads one index of an informer's cache.
pub struct Index<K> {
    informer: Informer<K>,
    name: &'static str,
}

impl<K> Clone for Index<K> {
    fn clone(&self) -> Self {
        Index { informer: self.informer.clone(), name: self.name }
    }
}

impl<K> Index<K> {
    /// The objects found under `key`, in no order.
    pub fn get(&self, key: &str) -> Vec<Arc<K>> {
        self.informer.shared.cache.read().indexed(self.name, key)
    }
}

impl<K: Kind> Informer<K> {
    pub(crate) fn new(shutdown: CancellationToken) -> Self {
        let (progress, _) = watch::channel(Progress::default());
        let shared = Shared { cache: RwLock::default(), handlers: Mutex::default(), progress, shutdown };
        Informer { shared: Arc::new(shared) }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared.cache.read().get(namespace, name).cloned()
    }

    /// All objects, in no order.
    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.cache.read().iter().cloned().collect()
    }

    /// The objects of one namespace, in no order. Costs no more than those.
    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.shared.cache.read().namespace(namespace).cloned().collect()
    }

    pub fn len(&self) -> usize {
        self.shared.cache.read().len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// An index over this cache, kept up to date from now on. `name` identifies it among all users of the cache: whoever
    /// asks for the same name gets the same index, so `keys_of` must be the same function. Names are `crate/what`.
    pub fn index(&self, name: &'static str, keys_of: impl Fn(&K) -> Vec<String> + Send + Sync + 'static) -> Index<K> {
        self.shared.cache.write().add_index(name, Box::new(keys_of));
        Index { informer: self.clone(), name }
    }

    /// Calls `handler` for every object now in the cache (as added), then for each change. A handler must not add
    /// handlers to the same informer.
    pub fn on_change(&self, handler: impl Fn(Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.list() {
            handler(Change::Applied { old: None, new: &object });
        }
        handlers.push(Box::new(handler));
    }

    /// Returns once the first list is in the cache, or the process shuts down.
    pub async fn synced(&self) {
        let mut receiver = self.shared.progress.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let listed = receiver.wait_for(|progress| progress.lists_done > 0);
        let _ = self.shared.shutdown.run_until_cancelled(listed).await;
    }

    pub(crate) fn progress(&self) -> watch::Receiver<Progress> {
        self.shared.progress.subscribe()
    }

    pub(crate) fn apply(&self, mut object: K) {
        object.meta_mut().managed_fields = None;
        let revision = revision_of(&object);
        let handlers = self.shared.handlers.lock();
        let new = Arc::new(object);
        let old = self.shared.cache.write().insert(key_of(&*new), new.clone());
        for handler in handlers.iter() {
            handler(Change::Applied { old: old.as_ref(), new: &new });
        }
        self.advance(revision);
    }

    /// `revision` is that of the deletion, where the watch told it.
    pub(crate) fn delete(&self, key: &ObjectKey, revision: u64) {
        let handlers = self.shared.handlers.lock();
        let old = self.shared.cache.write().remove(key);
        if let Some(old) = old {
            for handler in handlers.iter() {
                handler(Change::Deleted { old: &old });
            }
        }
        self.advance(revision);
    }

    fn advance(&self, revision: u64) {
        self.shared.progress.send_modify(|progress| progress.revision = progress.revision.max(revision));
    }

    pub(crate) fn begin_list(&self) {
        self.shared.progress.send_modify(|progress| progress.lists_begun += 1);
    }

    /// `seen` are the keys of the completed list: what is cached beyond them was deleted while nobody watched.
    pub(crate) fn end_list(&self, seen: &HashSet<ObjectKey>) {
        let gone: Vec<ObjectKey> = self.shared.cache.read().keys().filter(|key| !seen.contains(key)).collect();
        for key in gone {
            self.delete(&key, 0);
        }
        self.shared.progress.send_modify(|progress| progress.lists_done = progress.lists_begun);
    }

    async fn run(self, api: kube::Api<K>, config: watcher::Config) {
        let mut events = std::pin::pin!(watcher::watcher(api, config).backoff(WatchBackoff::default()));
        let mut listed: HashSet<ObjectKey> = HashSet::new();
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => {
                    listed.clear();
                    self.begin_list();
                }
                Ok(watcher::Event::InitApply(object)) => {
                    let key = key_of(&object);
                    if !self.holds(&key, &object) {
                        self.apply(object);
                    }
                    listed.insert(key);
                }
                Ok(watcher::Event::InitDone) => {
                    self.end_list(&listed);
                    listed = HashSet::new();
                }
                Ok(watcher::Event::Apply(object)) => self.apply(object),
                Ok(watcher::Event::Delete(object)) => self.delete(&key_of(&object), revision_of(&object)),
                Err(error) => tracing::debug!(kind = std::any::type_name::<K>(), %error, "watch interrupted"),
            }
        }
    }

    fn holds(&self, (namespace, name): &ObjectKey, object: &K) -> bool {
        self.shared
            .cache
            .read()
            .get(namespace, name)
            .is_some_and(|old| old.meta().resource_version == object.meta().resource_version)
    }
}

/// Pauses between attempts to watch: short at first, because a server in the same process is only just starting.
#[derive(Default)]
pub struct WatchBackoff {
    attempt: u32,
}

impl Iterator for WatchBackoff {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        let full = Duration::from_millis(25 << self.attempt.min(9));
        self.attempt = self.attempt.saturating_add(1);
        Some(full.mul_f64(rand::random_range(0.5..1.0)))
    }
}

impl kube::runtime::utils::Backoff for WatchBackoff {
    fn reset(&mut self) {
        self.attempt = 0;
    }
}

/// The cache key of an object.
pub fn key_of<K: kube::Resource>(object: &K) -> ObjectKey {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
}

/// The resourceVersion as a number, which orders the versions of one server; zero if there is none.
pub fn revision_of<K: kube::Resource>(object: &K) -> u64 {
    object.meta().resource_version.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// Which objects of a kind an informer holds. One namespace is the field selector `metadata.namespace=…`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Hash)]
pub struct Selection {
    pub labels: Option<String>,
    pub fields: Option<String>,
}

type InformerTable = HashMap<(TypeId, Selection), Box<dyn Any + Send>>;

/// The informers of one process. Cloning shares them.
#[derive(Clone)]
pub struct Informers {
    client: kube::Client,
    table: Arc<Mutex<InformerTable>>,
    shutdown: CancellationToken,
}

impl Informers {
    pub fn new(client: kube::Client, shutdown: CancellationToken) -> Self {
        Informers { client, table: Arc::default(), shutdown }
    }

    /// The informer of all objects of a kind, started at first use. Must be called within a tokio runtime.
    pub fn of<K: Kind>(&self) -> Informer<K> {
        self.select(Selection::default())
    }

    /// The informer of the objects that `selection` names (a kubelet watches only its node's pods).
    pub fn select<K: Kind>(&self, selection: Selection) -> Informer<K> {
        let mut table = self.table.lock();
        let entry = table.entry((TypeId::of::<K>(), selection.clone())).or_insert_with(|| {
            let informer = Informer::<K>::new(self.shutdown.clone());
            let mut config = watcher::Config::default().streaming_lists();
            config.label_selector = selection.labels.clone();
            config.field_selector = selection.fields.clone();
            let task = informer.clone().run(kube::Api::all(self.client.clone()), config);
            let shutdown = self.shutdown.clone();
            tokio::spawn(async move {
                shutdown.run_until_cancelled(task).await;
            });
            Box::new(informer)
        });
        entry.downcast_ref::<Informer<K>>().expect("the table is keyed by the informer's type").clone()
    }
}

#[cfg(test)]
mod tests {
    use k8s_openapi::api::core::v1::ConfigMap;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::ManagedFieldsEntry;

    use super::*;

    fn config_map(name: &str, revision: u64) -> ConfigMap {
        let mut object = ConfigMap::default();
        object.metadata.namespace = Some("default".into());
        object.metadata.name = Some(name.into());
        object.metadata.resource_version = Some(revision.to_string());
        object.metadata.managed_fields = Some(vec![ManagedFieldsEntry::default()]);
        object
    }

    fn log(informer: &Informer<ConfigMap>) -> Arc<Mutex<Vec<String>>> {
        let lines: Arc<Mutex<Vec<String>>> = Arc::default();
        let writer = lines.clone();
        informer.on_change(move |change| {
            let verb = match change {
                Change::Applied { old: None, .. } => "added",
                Change::Applied { old: Some(_), .. } => "updated",
                Change::Deleted { .. } => "deleted",
            };
            writer.lock().push(format!("{verb} {}@{}", key_of(&**change.object()).1, revision_of(&**change.object())));
        });
        lines
    }

    #[test]
    fn a_late_handler_sees_what_is_there_and_then_each_change() {
        let informer = Informer::new(CancellationToken::new());
        informer.apply(config_map("a", 1));
        let lines = log(&informer);
        informer.apply(config_map("a", 2));
        informer.delete(&("default".into(), "a".into()), 3);
        assert_eq!(*lines.lock(), ["added a@1", "updated a@2", "deleted a@2"]);
        assert_eq!(informer.progress().borrow().revision, 3);
    }

    #[test]
    fn a_relist_tells_what_was_deleted_meanwhile() {
        let informer = Informer::new(CancellationToken::new());
        informer.apply(config_map("kept", 1));
        informer.apply(config_map("lost", 2));
        let lines = log(&informer);
        informer.begin_list();
        informer.end_list(&HashSet::from([("default".to_owned(), "kept".to_owned())]));
        assert!(lines.lock().contains(&"deleted lost@2".to_owned()));
        assert!(informer.get("default", "lost").is_none() && informer.get("default", "kept").is_some());
    }

    #[test]
    fn managed_fields_are_not_cached() {
        let informer = Informer::new(CancellationToken::new());
        informer.apply(config_map("a", 1));
        assert!(informer.get("default", "a").expect("cached").metadata.managed_fields.is_none());
    }
}
