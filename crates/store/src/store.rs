//! The handle that callers hold.

use std::collections::HashMap;
use std::path::Path;
use std::sync::Arc;
use std::thread::JoinHandle;

use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;

use crate::clock::{self, Clock};
use crate::disk::{Directory, Disk};
use crate::engine::{Engine, Request};
use crate::etcd::{self, Etcd};
use crate::inbox::Inbox;
use crate::log::Log;
use crate::recovery::{Loaded, recover};
use crate::state::State;
use crate::transform::{self, Transform};
use crate::{Entry, Error, Listing, Options, Outcome, Range, Revision, Transformer, Txn, Value, Watcher};

/// An ordered, revisioned key-value store. Cloning shares it; the last clone's end closes it.
pub struct Store<V: Value> {
    handle: Arc<Handle<V>>,
}

impl<V: Value> Clone for Store<V> {
    fn clone(&self) -> Self {
        Store { handle: self.handle.clone() }
    }
}

struct Handle<V: Value> {
    state: Arc<RwLock<State<V>>>,
    backend: Backend<V>,
    transform: Transform,
}

/// Where transactions go; what they did comes back into the state.
enum Backend<V: Value> {
    Embedded(Embedded<V>),
    Etcd(Etcd<V>),
}

struct Embedded<V: Value> {
    inbox: Arc<Inbox<Request<V>>>,
    thread: Mutex<Option<JoinHandle<()>>>,
}

impl<V: Value> Store<V> {
    /// Opens the store in a directory, which is made if it does not exist, and locks it against other processes.
    ///
    /// What a crash left half-written is cut off; what was damaged later is refused with [`Error::Damaged`].
    pub fn open(dir: &Path, options: Options) -> Result<Self, Error> {
        Self::open_disk(Arc::new(Directory::lock(dir)?), options)
    }

    pub(crate) fn open_disk(disk: Arc<dyn Disk>, options: Options) -> Result<Self, Error> {
        Self::open_disk_at(disk, options, clock::system_ms())
    }

    /// With what the system's clock says, in milliseconds since the Unix epoch.
    pub(crate) fn open_disk_at(disk: Arc<dyn Disk>, options: Options, system_ms: u64) -> Result<Self, Error> {
        let mut recovered = recover(&*disk)?;
        let (log, revision) = Log::open(disk.clone(), &recovered, &options)?;
        let entries = entries(std::mem::take(&mut recovered.entries), options.transformer.as_deref());
        Ok(Self::start(State::new(entries, revision), options, Some((disk, log)), system_ms))
    }

    /// A store that is gone with its last handle.
    pub fn in_memory(options: Options) -> Self {
        Self::start(State::new(Vec::new(), 1), options, None, clock::system_ms())
    }

    fn start(state: State<V>, options: Options, disk: Option<(Arc<dyn Disk>, Log)>, system_ms: u64) -> Self {
        let clock = Clock::starting(system_ms, state.newest_ms());
        let state = Arc::new(RwLock::new(state));
        let inbox = Arc::new(Inbox::new(options.queue));
        let transform = options.transformer.clone();
        let engine = Engine::new(state.clone(), inbox.clone(), options, disk, clock);
        let thread = std::thread::Builder::new()
            .name("store-commit".to_owned())
            .spawn(move || engine.run())
            .expect("the process can start a thread");
        let backend = Backend::Embedded(Embedded { inbox, thread: Mutex::new(Some(thread)) });
        Store { handle: Arc::new(Handle { state, backend, transform }) }
    }

    /// Opens the store on an etcd cluster: loads what is below the configured prefix, and follows it. The tasks that do so run on the
    /// caller's tokio runtime, until the last handle is gone.
    pub async fn open_etcd(config: etcd::Config, options: Options) -> Result<Self, Error> {
        let transform = options.transformer.clone();
        let etcd = Etcd::open(config, options).await?;
        let (state, backend) = (etcd.state().clone(), Backend::Etcd(etcd));
        Ok(Store { handle: Arc::new(Handle { state, backend, transform }) })
    }

    /// Returns when what was acknowledged to anybody, in whatever process, before this was called, is visible here. At once where this
    /// process is the only one that writes.
    ///
    /// Fails with [`Error::Unavailable`] if no majority of the cluster can be reached in time.
    pub async fn barrier(&self) -> Result<(), Error> {
        match &self.handle.backend {
            Backend::Embedded(_) => Ok(()),
            Backend::Etcd(etcd) => etcd.barrier().await,
        }
    }

    pub(crate) fn state(&self) -> &Arc<RwLock<State<V>>> {
        &self.handle.state
    }

    /// The newest visible revision.
    pub fn revision(&self) -> Revision {
        self.handle.state.read().revision()
    }

    /// The newest version of a key.
    pub fn get(&self, key: &str) -> Option<Arc<Entry<V>>> {
        self.handle.state.read().get(key).cloned()
    }

    /// Entries in key order. Fails with [`Error::Compacted`] or [`Error::FutureRevision`] for a revision out of reach.
    pub fn range(&self, query: &Range) -> Result<Listing<V>, Error> {
        self.handle.state.read().range(query)
    }

    /// Commits a transaction; returns once it is as durable as it asks for, and visible.
    ///
    /// One revision per transaction that changes anything. If the future is dropped, the transaction happens or not; a
    /// failure of the disk likewise leaves open whether a restart will show it, but until then it is not visible.
    ///
    /// On etcd every transaction is as durable as a majority of its members; [`Error::Uncertain`] says that it is not known whether it
    /// happened, all other errors that it did not.
    pub async fn commit(&self, txn: Txn) -> Result<Outcome<V>, Error> {
        let sealed = transform::seal(&self.handle.transform, &txn.ops)?;
        let embedded = match &self.handle.backend {
            Backend::Embedded(embedded) => embedded,
            Backend::Etcd(etcd) => return etcd.commit(txn, sealed).await,
        };
        let (reply, outcome) = oneshot::channel();
        embedded.inbox.send(Request::Commit { txn, sealed, reply }).await?;
        outcome.await.map_err(|_| Error::Closed)?
    }

    /// Events with a revision greater than `after` of keys that start with `prefix`.
    ///
    /// Fails with [`Error::Compacted`] if they are not all retained. Cheapest for prefixes that end in `/`; for a single
    /// key use [`Store::watch_key`].
    pub fn watch(&self, prefix: &str, after: Revision) -> Result<Watcher<V>, Error> {
        Watcher::of_prefix(&self.handle.state, prefix, after)
    }

    /// As [`Store::watch`], of one key: writes to its neighbours cost nothing.
    pub fn watch_key(&self, key: &str, after: Revision) -> Result<Watcher<V>, Error> {
        Watcher::of_key(&self.handle.state, key, after)
    }

    /// Forgets the history up to and with `revision`: older reads and watches fail from now on. Space on disk is
    /// reclaimed by itself. On etcd this is the history in this process.
    pub fn compact(&self, revision: Revision) -> Result<(), Error> {
        let dropped = self.handle.state.write().compact_to(revision)?;
        drop(dropped);
        Ok(())
    }

    /// Whether the value would be kept otherwise if it were written now: then it is to be, though nothing changes.
    pub fn is_stale(&self, entry: &Entry<V>) -> bool {
        let Some(transformer) = &self.handle.transform else { return false };
        transformer.is_stale(&entry.key, entry.sealed.as_ref().map(|sealed| &*sealed.bytes))
    }

    /// Tries again to open what could not be opened. Returns how many values can be had now, and how many still cannot.
    ///
    /// Who watches any of the former is told that it has fallen behind, as they come into being without an event. Blocks.
    pub fn reopen(&self) -> (usize, usize) {
        let Some(transformer) = &self.handle.transform else { return (0, 0) };
        let stuck = self.handle.state.read().unreadable();
        let total = stuck.len();
        let opened: Vec<_> = stuck.iter().filter_map(|entry| Some((entry, reopened(&**transformer, entry)?))).collect();
        let count = opened.len();
        if count > 0 {
            self.handle.state.write().replace(opened);
        }
        (count, total - count)
    }

    /// Finishes what is queued, syncs it, ends all watches and releases the directory. Later commits fail with
    /// [`Error::Closed`]; reads still work.
    pub async fn shutdown(&self) {
        let handle = self.handle.clone();
        if let Backend::Etcd(etcd) = &handle.backend {
            return etcd.shutdown().await;
        }
        // The join blocks for the time of one sync.
        let _ = tokio::task::spawn_blocking(move || handle.close()).await;
    }
}

impl<V: Value> Handle<V> {
    fn close(&self) {
        // The other ends with its own value.
        let Backend::Embedded(embedded) = &self.backend else { return };
        embedded.inbox.close();
        if let Some(thread) = embedded.thread.lock().take()
            && thread.join().is_err()
        {
            tracing::error!("the store's commit thread panicked");
        }
    }
}

impl<V: Value> Drop for Handle<V> {
    fn drop(&mut self) {
        self.close();
    }
}

/// `entry` with its value, if that can be had now.
fn reopened<V: Value>(transformer: &dyn Transformer, entry: &Arc<Entry<V>>) -> Option<Arc<Entry<V>>> {
    let kept = entry.sealed.as_ref()?.bytes.clone();
    let (value, sealed) = transform::open(Some(transformer), &entry.key, kept, entry.mod_revision);
    let next = Entry { sealed, ..entry.with_value(value) };
    next.unreadable().is_none().then(|| Arc::new(next))
}

/// Makes the values of what was loaded, on all processors.
pub(crate) fn entries<V: Value>(
    loaded: HashMap<Box<str>, Loaded>,
    transformer: Option<&dyn Transformer>,
) -> Vec<Arc<Entry<V>>> {
    let mut loaded: Vec<_> = loaded.into_iter().collect();
    // In key order, the index is built without searching.
    loaded.sort_unstable_by(|(a, _), (b, _)| a.cmp(b));
    let workers = std::thread::available_parallelism().map_or(1, |count| count.get());
    let share = loaded.len().div_ceil(workers).max(1024);
    let make = |(key, loaded): &(Box<str>, Loaded)| {
        let (value, sealed) = transform::open(transformer, key, loaded.bytes.clone(), loaded.mod_revision);
        Arc::new(Entry {
            key: Arc::from(&**key),
            value,
            len: u32::try_from(loaded.bytes.len()).expect("a transaction is smaller than 4 GiB"),
            create_revision: loaded.create_revision,
            mod_revision: loaded.mod_revision,
            version: loaded.version,
            expiry: loaded.expiry.map(Box::new),
            sealed,
        })
    };
    std::thread::scope(|scope| {
        let parts: Vec<_> =
            loaded.chunks(share).map(|part| scope.spawn(move || part.iter().map(make).collect::<Vec<_>>())).collect();
        parts
            .into_iter()
            .flat_map(|part| part.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
            .collect()
    })
}
