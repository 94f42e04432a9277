//! The revision gate: a controller never acts on a cache older than its own last write.
//!
//! Own writes are recorded under the key of the object that is reconciled; before the next reconcile of that key the
//! controller waits until the informer has passed them. This takes the place of upstream's expectations, which guess
//! what the watch will bring: here the server's reply says it.

use std::collections::HashMap;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use crate::informer::{Informer, Kind, ObjectKey, Progress, key_of, revision_of};

/// How long a reconcile waits for its own writes before it gives its worker back and is retried.
const PATIENCE: Duration = Duration::from_secs(5);

/// The cache has not shown an own write in time.
#[derive(Debug, thiserror::Error)]
#[error("the cache is still older than the last write for this key")]
pub struct Stale;

/// What the informer has yet to show for one key.
#[derive(Default)]
struct Pending {
    revision: u64,
    /// Deleted objects, by UID: gone, or marked as being deleted.
    deleted: Vec<(ObjectKey, Option<String>)>,
    /// A list begun after the write settles everything.
    lists_begun: u64,
}

/// Own writes to objects of kind `K`, by the key `T` of what was reconciled. The informer must select the objects that
/// are written. Cloning shares the gate.
pub struct Gate<K, T = ObjectKey> {
    informer: Informer<K>,
    pending: Arc<Mutex<HashMap<T, Pending>>>,
}

impl<K, T> Clone for Gate<K, T> {
    fn clone(&self) -> Self {
        Gate { informer: self.informer.clone(), pending: self.pending.clone() }
    }
}

impl<K: Kind, T: Eq + Hash + Clone> Gate<K, T> {
    pub fn new(informer: Informer<K>) -> Self {
        Gate { informer, pending: Arc::default() }
    }

    /// Records a create, update or patch of `reply`, the object that the server returned.
    pub fn wrote(&self, key: &T, reply: &K) {
        let revision = revision_of(reply);
        self.record(key, |pending| pending.revision = pending.revision.max(revision));
    }

    /// Records the accepted deletion of `object`, as it was seen before.
    pub fn deleted(&self, key: &T, object: &K) {
        let entry = (key_of(object), object.meta().uid.clone());
        self.record(key, |pending| pending.deleted.push(entry));
    }

    fn record(&self, key: &T, change: impl FnOnce(&mut Pending)) {
        let lists_begun = self.informer.progress().borrow().lists_begun;
        let mut table = self.pending.lock();
        let pending = table.entry(key.clone()).or_default();
        pending.lists_begun = lists_begun;
        change(pending);
    }

    /// Whether the cache shows all own writes for `key`.
    pub fn is_open(&self, key: &T) -> bool {
        let progress = *self.informer.progress().borrow();
        let mut table = self.pending.lock();
        let Some(pending) = table.get(key) else { return true };
        let open = self.passed(pending, progress);
        if open {
            table.remove(key);
        }
        open
    }

    fn passed(&self, pending: &Pending, progress: Progress) -> bool {
        progress.lists_done > pending.lists_begun
            || (progress.revision >= pending.revision && pending.deleted.iter().all(|entry| self.is_deleted(entry)))
    }

    fn is_deleted(&self, ((namespace, name), uid): &(ObjectKey, Option<String>)) -> bool {
        self.informer.get(namespace, name).is_none_or(|cached| {
            cached.meta().uid.as_ref() != uid.as_ref() || cached.meta().deletion_timestamp.is_some()
        })
    }

    /// Returns once the cache shows all own writes for `key`. Cancellation safe.
    pub async fn opened(&self, key: &T) -> Result<(), Stale> {
        if self.is_open(key) {
            return Ok(());
        }
        let mut progress = self.informer.progress();
        let wait = async {
            while !self.is_open(key) {
                // The sender lives as long as `self.informer`.
                let _ = progress.changed().await;
            }
        };
        tokio::time::timeout(PATIENCE, wait).await.map_err(|_| Stale)
    }

    /// Drops what is recorded for a key that no longer exists.
    pub fn forget(&self, key: &T) {
        self.pending.lock().remove(key);
    }
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use k8s_openapi::api::core::v1::Pod;
    use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

    use super::*;

    fn pod(name: &str, uid: &str, revision: u64) -> Pod {
        let mut pod = Pod::default();
        pod.metadata.namespace = Some("ns".into());
        pod.metadata.name = Some(name.into());
        pod.metadata.uid = Some(uid.into());
        pod.metadata.resource_version = Some(revision.to_string());
        pod
    }

    fn gate() -> (Informer<Pod>, Gate<Pod, &'static str>) {
        let informer = Informer::new(tokio_util::sync::CancellationToken::new());
        (informer.clone(), Gate::new(informer))
    }

    #[test]
    fn a_write_closes_the_gate_of_its_key_until_the_informer_has_passed_it() {
        let (informer, gate) = gate();
        gate.wrote(&"rs", &pod("a", "1", 7));
        gate.wrote(&"rs", &pod("b", "2", 9));
        assert!(gate.is_open(&"other") && !gate.is_open(&"rs"));
        informer.apply(pod("a", "1", 7));
        assert!(!gate.is_open(&"rs"));
        informer.apply(pod("unrelated", "3", 10));
        assert!(gate.is_open(&"rs"), "revisions of one kind arrive in order");
    }

    #[test]
    fn a_deletion_is_seen_as_absence_or_as_a_mark_or_as_another_uid() {
        let (informer, gate) = gate();
        for name in ["gone", "marked", "replaced"] {
            informer.apply(pod(name, "1", 1));
            gate.deleted(&"rs", &pod(name, "1", 1));
        }
        informer.delete(&("ns".into(), "gone".into()), 2);
        let mut marked = pod("marked", "1", 3);
        marked.metadata.deletion_timestamp = Some(Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH));
        informer.apply(marked);
        assert!(!gate.is_open(&"rs"));
        informer.apply(pod("replaced", "2", 4));
        assert!(gate.is_open(&"rs"));
    }

    #[test]
    fn a_list_begun_after_the_write_opens_the_gate() {
        let (informer, gate) = gate();
        informer.begin_list();
        gate.wrote(&"rs", &pod("deleted-by-another", "1", 50));
        informer.end_list(&HashSet::new());
        assert!(!gate.is_open(&"rs"), "this list may be older than the write");
        informer.begin_list();
        informer.end_list(&HashSet::new());
        assert!(gate.is_open(&"rs"));
    }

    #[tokio::test(start_paused = true)]
    async fn waiting_ends_with_the_event_or_with_patience() {
        let (informer, gate) = gate();
        gate.wrote(&"rs", &pod("a", "1", 7));
        assert!(gate.opened(&"rs").await.is_err());
        let waiting = tokio::spawn({
            let gate = gate.clone();
            async move { gate.opened(&"rs").await }
        });
        tokio::task::yield_now().await;
        informer.apply(pod("a", "1", 7));
        assert!(waiting.await.expect("no panic").is_ok());
    }
}
