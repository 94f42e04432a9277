//! Shared informers: one list-and-watch and one cache per kind and selector in a process, however many readers.
//!
//! Handlers are called in the order of changes, on the informer's own task, and must not block: they put keys into a
//! [`crate::Queue`], whose deduplication bounds them.

use std::any::{Any, TypeId};
use std::collections::HashMap;
use std::fmt::Debug;
use std::hash::Hash;
use std::sync::Arc;

use futures::StreamExt as _;
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::{Mutex, RwLock};
use serde::de::DeserializeOwned;
use tokio::sync::watch;

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
}

/// Namespace (empty for cluster scope) and name.
pub type ObjectKey = (String, String);

type Handler<K> = Box<dyn Fn(Change<'_, K>) + Send + Sync>;

struct Shared<K> {
    objects: RwLock<HashMap<ObjectKey, Arc<K>>>,
    /// Held while a change is applied and told, so that a new handler's replay and the stream of changes do not interleave.
    handlers: Mutex<Vec<Handler<K>>>,
    synced: watch::Sender<bool>,
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

impl<K: Kind> Informer<K> {
    fn new() -> Self {
        let (synced, _) = watch::channel(false);
        Informer { shared: Arc::new(Shared { objects: RwLock::default(), handlers: Mutex::default(), synced }) }
    }

    pub fn get(&self, namespace: &str, name: &str) -> Option<Arc<K>> {
        self.shared.objects.read().get(&(namespace.to_owned(), name.to_owned())).cloned()
    }

    pub fn list(&self) -> Vec<Arc<K>> {
        self.shared.objects.read().values().cloned().collect()
    }

    pub fn list_namespace(&self, namespace: &str) -> Vec<Arc<K>> {
        self.shared.objects.read().iter().filter(|((ns, _), _)| ns == namespace).map(|(_, o)| o.clone()).collect()
    }

    /// Calls `handler` for every object now in the cache (as added), then for each change.
    pub fn on_change(&self, handler: impl Fn(Change<'_, K>) + Send + Sync + 'static) {
        let mut handlers = self.shared.handlers.lock();
        for object in self.list() {
            handler(Change::Applied { old: None, new: &object });
        }
        handlers.push(Box::new(handler));
    }

    /// Returns once the first list is in the cache.
    pub async fn synced(&self) {
        let mut receiver = self.shared.synced.subscribe();
        // The sender lives as long as `self`, so waiting cannot fail.
        let _ = receiver.wait_for(|done| *done).await;
    }

    fn apply(&self, object: K) {
        let handlers = self.shared.handlers.lock();
        let new = Arc::new(object);
        let old = self.shared.objects.write().insert(key_of(&*new), new.clone());
        for handler in handlers.iter() {
            handler(Change::Applied { old: old.as_ref(), new: &new });
        }
    }

    fn delete(&self, key: &ObjectKey) {
        let handlers = self.shared.handlers.lock();
        let old = self.shared.objects.write().remove(key);
        if let Some(old) = old {
            for handler in handlers.iter() {
                handler(Change::Deleted { old: &old });
            }
        }
    }

    async fn run(self, api: kube::Api<K>, config: watcher::Config) {
        let mut events = std::pin::pin!(watcher::watcher(api, config).default_backoff());
        let mut relisted: Option<std::collections::HashSet<ObjectKey>> = None;
        while let Some(event) = events.next().await {
            match event {
                Ok(watcher::Event::Init) => relisted = Some(std::collections::HashSet::new()),
                Ok(watcher::Event::InitApply(object)) => {
                    let key = key_of(&object);
                    let same = self
                        .shared
                        .objects
                        .read()
                        .get(&key)
                        .is_some_and(|old| old.meta().resource_version == object.meta().resource_version);
                    if !same {
                        self.apply(object);
                    }
                    if let Some(seen) = relisted.as_mut() {
                        seen.insert(key);
                    }
                }
                Ok(watcher::Event::InitDone) => {
                    if let Some(seen) = relisted.take() {
                        let gone: Vec<ObjectKey> =
                            self.shared.objects.read().keys().filter(|k| !seen.contains(*k)).cloned().collect();
                        for key in gone {
                            self.delete(&key);
                        }
                    }
                    self.shared.synced.send_replace(true);
                }
                Ok(watcher::Event::Apply(object)) => self.apply(object),
                Ok(watcher::Event::Delete(object)) => self.delete(&key_of(&object)),
                Err(error) => tracing::debug!(kind = std::any::type_name::<K>(), %error, "watch interrupted"),
            }
        }
    }
}

/// The cache key of an object.
pub fn key_of<K: kube::Resource>(object: &K) -> ObjectKey {
    let meta = object.meta();
    (meta.namespace.clone().unwrap_or_default(), meta.name.clone().unwrap_or_default())
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
    shutdown: tokio_util::sync::CancellationToken,
}

impl Informers {
    pub fn new(client: kube::Client, shutdown: tokio_util::sync::CancellationToken) -> Self {
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
            let informer = Informer::<K>::new();
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
