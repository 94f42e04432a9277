//! The store on an etcd cluster: the same index in memory, fed by etcd's watch instead of a log.
//!
//! ```text
//! commit() ──Txn──▶ etcd ──watch of all keys──▶ feed ──▶ state (index, history, feeds) ──▶ get, range, watch
//!    ▲                                            │
//!    └──────── answered when `applied` ◀──────────┘
//! barrier() ──newest revision, from a majority──▶ answered when `applied`
//! ```
//!
//! A commit is etcd's transaction: a compare of `mod_revision` or `create_revision` for each of ours, a put or delete for each op, and
//! in the else branch a read of each compared key. It is answered when the index shows its revision, so whoever wrote reads what it
//! wrote. What others wrote is seen when etcd's watch has brought it; [`barrier`] waits for what they had written when it was called.
//!
//! # One watch of the whole key space
//!
//! Only keys below [`Config::prefix`] are kept, but the watch is of everything. So each revision of etcd brings at least one event, and
//! revisions come without gap: the index is as new as the newest event, no progress notification is needed to know how new it is
//! (etcd's before 3.4.25 and 3.5.8 may run ahead of the events that they speak of), and a lost event is noticed by the gap that it
//! leaves. The price is that an etcd shared with others sends their changes here too. An etcd user restricted to the prefix cannot be
//! used.
//!
//! # When the watch breaks
//!
//! It is resumed, at another member if need be, after the newest revision that the index shows. Where etcd has compacted that, the
//! index is loaded anew and all of our own watchers are told that they have fallen behind ([`Error::Compacted`]; the API's 410), as
//! after a relist of upstream's watch cache. To make up events from the difference would tell of states that never were: several changes
//! of a key as one, deletions at revisions that are not theirs, transactions in parts.
//!
//! # What is refused
//!
//! A cluster whose newest revision, asked of a majority, is below what the index shows was restored from an old backup: revisions would
//! come to mean something else. From then on every commit and barrier fails, and watches end; what is in memory can still be read.
//! Started anew, the server takes the cluster as it is: who restores a backup does so with the servers stopped.
//!
//! # Writes whose outcome is unknown
//!
//! When the connection breaks after a transaction was sent, it may have happened, or may still. It is sent again only if it writes a key
//! under the condition that the key has some `mod_revision`: that holds once in a key's life, so at most one of both can happen. If the
//! repetition finds the condition broken, then perhaps by the first sending. In this case, and for all other transactions,
//! the caller is told that the outcome is unknown ([`Error::Uncertain`]).
//!
//! # Invariants
//!
//! 1. The index shows transactions whole and in order of revision, none twice, none left out (`feed.rs`).
//! 2. A commit is acknowledged after a majority has it, and after the index shows it (`commit.rs`).
//! 3. The revision never goes back (`feed.rs`, `barrier.rs`).
//!
//! `tests/etcd.rs` holds a real etcd to them, of one member and of three.

mod applied;
mod barrier;
mod client;
mod commit;
mod compact;
mod connect;
mod feed;
mod lease;
mod load;
mod raw;
mod wire;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::{Mutex, RwLock};
use tokio::task::JoinSet;

pub use raw::{Keys, RawEntry};

use crate::state::State;
use crate::transform::Transform;
use crate::{Error, Options, Outcome, Revision, Txn, Value};
use applied::Applied;
use barrier::Barrier;
use client::Client;
use connect::Credentials;
use lease::Leases;

/// Transactions under way at a time; more wait.
const COMMITS_AT_ONCE: usize = 256;

/// How a cluster is reached, and what of it is ours.
#[derive(Clone, Debug)]
pub struct Config {
    /// `https://host:port`, `http://host:port` or `unix:///path`, of one cluster.
    pub endpoints: Vec<String>,
    /// PEM of the authorities that sign the members' certificates; none is those that the system trusts.
    pub ca_file: Option<PathBuf>,
    /// Client certificate with its key, PEM; both or none.
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
    /// Keys below it are the store's, others are not seen.
    pub prefix: String,
    /// etcd's history is compacted to what it was so long ago; none leaves that to others.
    pub compaction_interval: Option<Duration>,
}

impl Default for Config {
    fn default() -> Self {
        Config {
            endpoints: Vec::new(),
            ca_file: None,
            cert_file: None,
            key_file: None,
            prefix: String::new(),
            // Upstream's `--etcd-compaction-interval`.
            compaction_interval: Some(Duration::from_secs(300)),
        }
    }
}

impl Config {
    fn client(&self) -> Result<Client, Error> {
        let credentials = Credentials {
            ca_file: self.ca_file.clone(),
            cert_file: self.cert_file.clone(),
            key_file: self.key_file.clone(),
        };
        Client::new(&self.endpoints, credentials)
    }
}

/// What the tasks of one store share.
pub(crate) struct Core<V> {
    client: Client,
    state: Arc<RwLock<State<V>>>,
    applied: Applied,
    prefix: String,
    options: Options,
}

impl<V> Core<V> {
    fn transform(&self) -> &Transform {
        &self.options.transformer
    }

    /// Ends it for good: see the module's *What is refused*.
    fn refuse(&self, error: Error) -> Error {
        let error = self.client.refuse(error);
        self.state.write().close();
        self.applied.fail(&error);
        error
    }

    /// `revision` was told by a majority after the index showed `shown`.
    fn check_revision(&self, shown: Revision, revision: Revision) -> Result<(), Error> {
        if revision >= shown {
            return Ok(());
        }
        let reason = format!(
            "its revision went back from {shown} to {revision}, it was restored from an older backup; \
             start this server anew to go on from there"
        );
        Err(self.refuse(Error::Refused { reason }))
    }
}

/// One store on etcd: the tasks that feed it, and the way to write.
pub(crate) struct Etcd<V: Value> {
    core: Arc<Core<V>>,
    barrier: Barrier,
    leases: Leases,
    permits: tokio::sync::Semaphore,
    tasks: Mutex<JoinSet<()>>,
}

impl<V: Value> Etcd<V> {
    /// Loads what the cluster has and follows it from there.
    pub(crate) async fn open(config: Config, options: Options) -> Result<Self, Error> {
        let client = config.client()?;
        let loaded = load::load::<V>(&client, &config.prefix, &options.transformer).await?;
        let core = Arc::new(Core {
            client,
            applied: Applied::new(loaded.revision),
            state: Arc::new(RwLock::new(State::new(loaded.entries, loaded.revision))),
            prefix: config.prefix,
            options,
        });
        let mut tasks = JoinSet::new();
        tasks.spawn(feed::run(core.clone()));
        tasks.spawn(feed::forget_history(core.clone()));
        if let Some(interval) = config.compaction_interval {
            tasks.spawn(compact::run(core.clone(), interval));
        }
        let barrier = Barrier::start(core.clone(), &mut tasks);
        let permits = tokio::sync::Semaphore::new(COMMITS_AT_ONCE);
        Ok(Etcd { core, barrier, leases: Leases::default(), permits, tasks: Mutex::new(tasks) })
    }

    pub(crate) fn state(&self) -> &Arc<RwLock<State<V>>> {
        &self.core.state
    }

    pub(crate) async fn commit(&self, txn: Txn, sealed: Vec<Option<bytes::Bytes>>) -> Result<Outcome<V>, Error> {
        let _permit = self.permits.acquire().await.map_err(|_| Error::Closed)?;
        commit::commit(&self.core, &self.leases, txn, sealed).await
    }

    /// Waits until the index shows all that had been acknowledged anywhere when this was called.
    pub(crate) async fn barrier(&self) -> Result<(), Error> {
        self.barrier.pass(&self.core).await
    }

    pub(crate) async fn shutdown(&self) {
        self.permits.close();
        // What was sent is waited for, not thrown away: somebody waits for the answer.
        let _ = tokio::time::timeout(SHUTDOWN_WITHIN, self.idle()).await;
        self.stop();
    }

    /// Returns when no transaction is under way.
    async fn idle(&self) {
        while self.permits.available_permits() < COMMITS_AT_ONCE {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    fn stop(&self) {
        self.tasks.lock().abort_all();
        self.core.state.write().close();
        self.core.applied.fail(&Error::Closed);
    }
}

const SHUTDOWN_WITHIN: Duration = Duration::from_secs(3);

impl<V: Value> Drop for Etcd<V> {
    fn drop(&mut self) {
        self.stop();
    }
}
