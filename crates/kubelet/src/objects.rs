//! The ConfigMaps and Secrets that this node's pods refer to: each watched by name, as the Node authoriser demands, for as long
//! as a pod holds it.

use std::collections::HashMap;
use std::sync::{Arc, Weak};
use std::time::Duration;

use client::Kind;
use client::informer::WatchBackoff;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use kube::Api;
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::Mutex;
use tokio::sync::{Notify, watch};

use crate::error::{Error, Result};

/// How long a reader waits for the first word of the API server.
const FIRST_ANSWER: Duration = Duration::from_secs(10);

/// None: not known yet. Some(None): does not exist.
type Known<K> = Option<Option<Arc<K>>>;

struct Watched<K> {
    known: watch::Receiver<Known<K>>,
    listeners: Arc<Mutex<Vec<Weak<Notify>>>>,
    task: tokio::task::JoinHandle<()>,
}

impl<K> Drop for Watched<K> {
    fn drop(&mut self) {
        self.task.abort();
    }
}

/// One object held by one pod; the watch ends with its last holder.
pub struct Held<K> {
    watched: Arc<Watched<K>>,
}

impl<K: Clone> Held<K> {
    /// The object as the API server last told it; none if there is none.
    ///
    /// # Errors
    /// If the API server does not answer in time.
    pub async fn get(&self) -> Result<Option<Arc<K>>> {
        let mut known = self.watched.known.clone();
        let first = tokio::time::timeout(FIRST_ANSWER, known.wait_for(Option::is_some)).await;
        match first {
            Ok(Ok(value)) => Ok(value.clone().flatten()),
            _ => Err(Error::Timeout("the API server's answer".to_owned())),
        }
    }
}

type Table<K> = Mutex<HashMap<(String, String), Weak<Watched<K>>>>;

struct Cache<K> {
    api: kube::Client,
    table: Table<K>,
}

impl<K> Cache<K>
where
    K: Kind + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
{
    fn new(api: kube::Client) -> Self {
        Cache { api, table: Mutex::default() }
    }

    /// `changed` is notified at each change after this call, for as long as it is alive.
    fn hold(&self, namespace: &str, name: &str, changed: &Arc<Notify>) -> Held<K> {
        let key = (namespace.to_owned(), name.to_owned());
        let mut table = self.table.lock();
        let watched = match table.get(&key).and_then(Weak::upgrade) {
            Some(watched) => watched,
            None => {
                table.retain(|_, watched| watched.strong_count() > 0);
                let watched = Arc::new(watch_one(Api::namespaced(self.api.clone(), namespace), name));
                table.insert(key, Arc::downgrade(&watched));
                watched
            }
        };
        drop(table);
        let mut listeners = watched.listeners.lock();
        listeners.retain(|listener| listener.strong_count() > 0);
        listeners.push(Arc::downgrade(changed));
        drop(listeners);
        Held { watched }
    }
}

fn watch_one<K: Kind>(api: Api<K>, name: &str) -> Watched<K> {
    let (sender, known) = watch::channel(None);
    let listeners: Arc<Mutex<Vec<Weak<Notify>>>> = Arc::default();
    let told = listeners.clone();
    let config = watcher::Config::default().streaming_lists().fields(&format!("metadata.name={name}"));
    let task = tokio::spawn(async move {
        let mut events = std::pin::pin!(watcher::watcher(api, config).backoff(WatchBackoff::default()));
        let mut listed = None;
        while let Some(event) = events.next().await {
            let value = match event {
                Ok(watcher::Event::Init) => {
                    listed = None;
                    continue;
                }
                Ok(watcher::Event::InitApply(object)) => {
                    listed = Some(Arc::new(object));
                    continue;
                }
                Ok(watcher::Event::InitDone) => listed.take(),
                Ok(watcher::Event::Apply(object)) => Some(Arc::new(object)),
                Ok(watcher::Event::Delete(_)) => None,
                Err(error) => {
                    tracing::debug!(kind = std::any::type_name::<K>(), %error, "watch interrupted");
                    continue;
                }
            };
            sender.send_replace(Some(value));
            for listener in told.lock().iter().filter_map(Weak::upgrade) {
                listener.notify_one();
            }
        }
    });
    Watched { known, listeners, task }
}

/// Both kinds. Cloning shares the watches.
#[derive(Clone)]
pub struct Objects {
    config_maps: Arc<Cache<ConfigMap>>,
    secrets: Arc<Cache<Secret>>,
}

impl Objects {
    pub fn new(api: kube::Client) -> Self {
        Objects { config_maps: Arc::new(Cache::new(api.clone())), secrets: Arc::new(Cache::new(api)) }
    }

    pub fn holder(&self, namespace: &str, changed: Arc<Notify>) -> Holder {
        Holder {
            objects: self.clone(),
            namespace: namespace.to_owned(),
            changed,
            config_maps: Mutex::default(),
            secrets: Mutex::default(),
        }
    }
}

/// What one pod holds. An object is held from the first time it is asked for.
pub struct Holder {
    objects: Objects,
    namespace: String,
    changed: Arc<Notify>,
    config_maps: Mutex<HashMap<String, Arc<Held<ConfigMap>>>>,
    secrets: Mutex<HashMap<String, Arc<Held<Secret>>>>,
}

impl Holder {
    pub async fn config_map(&self, name: &str) -> Result<Option<Arc<ConfigMap>>> {
        let hold = || Arc::new(self.objects.config_maps.hold(&self.namespace, name, &self.changed));
        let held = self.config_maps.lock().entry(name.to_owned()).or_insert_with(hold).clone();
        held.get().await
    }

    pub async fn secret(&self, name: &str) -> Result<Option<Arc<Secret>>> {
        let hold = || Arc::new(self.objects.secrets.hold(&self.namespace, name, &self.changed));
        let held = self.secrets.lock().entry(name.to_owned()).or_insert_with(hold).clone();
        held.get().await
    }
}
