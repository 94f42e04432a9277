//! The commit thread: takes whatever is queued, decides it, appends it, syncs once, makes it visible, acknowledges.
//!
//! While one batch is being synced the next one queues up: that is the group commit, no timer takes part. All changes of
//! the index are made here, so a decision cannot be overtaken. A batch whose append fails was decided for nothing:
//! all of it is refused, even failed compares, since they may have been made against writes that did not happen.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use bytes::Bytes;
use parking_lot::RwLock;
use tokio::sync::oneshot;

use crate::checkpoint::Checkpoint;
use crate::clock::Clock;
use crate::disk::Disk;
use crate::inbox::{Inbox, Received};
use crate::log::{Entry as LogEntry, Log};
use crate::plan::Pending;
use crate::state::{State, Visible};
use crate::{Durability, Error, Options, Outcome, Txn, Value};

/// A batch is cut off beyond this many bytes of values, so that no caller waits for all of a flood to be written.
const BATCH_BYTES: usize = 8 << 20;
/// And beyond this many transactions.
const BATCH_TXNS: usize = 1024;
/// Bytes that an entry takes on disk besides its key and value.
const ENTRY_OVERHEAD: u64 = 40;
/// How long the disk is left alone after a sync that nobody waits for has failed.
const RETRY: Duration = Duration::from_secs(5);
/// Keys that expire in one go, so that no caller waits for a flood of them.
const EXPIRE_STEP: usize = 256;

type Answer<V> = Result<Outcome<V>, Error>;
type Reply<V> = oneshot::Sender<Answer<V>>;
type Queued<V> = (Txn, Vec<Option<Bytes>>, Reply<V>);

pub(crate) enum Request<V> {
    Commit {
        txn: Txn,
        /// What is kept of the ops' values; empty where that is the values.
        sealed: Vec<Option<Bytes>>,
        reply: Reply<V>,
    },
    /// Answered when all that is visible is durable.
    Sync {
        reply: std::sync::mpsc::Sender<Result<(), Error>>,
    },
    Checkpointed {
        number: u64,
        result: Result<u64, Error>,
    },
}

pub(crate) struct Engine<V: Value> {
    state: Arc<RwLock<State<V>>>,
    inbox: Arc<Inbox<Request<V>>>,
    options: Options,
    disk: Option<OnDisk>,
    clock: Clock,
    /// After a failure of the disk: when to delete expired keys again.
    expire_after: Option<Instant>,
}

struct OnDisk {
    disk: Arc<dyn Disk>,
    log: Log,
    /// When unsynced bytes have to be synced at the latest.
    flush_at: Option<Instant>,
    checkpoint: Option<JoinHandle<()>>,
    stop: Arc<AtomicBool>,
    /// After a failed checkpoint: the size of the files at which to try again.
    retry_bytes: u64,
}

/// A decided batch.
struct Batch<V> {
    pending: Pending<V>,
    replies: Vec<(Reply<V>, Answer<V>)>,
    sync: bool,
}

impl<V: Value> Engine<V> {
    pub(crate) fn new(
        state: Arc<RwLock<State<V>>>,
        inbox: Arc<Inbox<Request<V>>>,
        options: Options,
        disk: Option<(Arc<dyn Disk>, Log)>,
        clock: Clock,
    ) -> Self {
        let disk = disk.map(|(disk, log)| OnDisk {
            disk,
            log,
            flush_at: None,
            checkpoint: None,
            stop: Arc::default(),
            retry_bytes: 0,
        });
        Engine { state, inbox, options, disk, clock, expire_after: None }
    }

    /// Works until the inbox is closed and empty.
    pub(crate) fn run(mut self) {
        self.reclaim_space();
        loop {
            match self.inbox.receive(self.next_deadline()) {
                Received::Items(requests) => self.handle(requests),
                Received::TimedOut => {}
                Received::Closed => break,
            }
            self.expire_keys();
            self.flush_if_due();
            self.forget_history();
            self.reclaim_space();
        }
        self.finish();
    }

    /// When there will be something to do though nobody asks.
    fn next_deadline(&self) -> Option<Instant> {
        let (history, key) = {
            let state = self.state.read();
            (state.next_expiry(&self.options), state.next_key_expiry())
        };
        let key = key.and_then(|at_ms| self.clock.instant_of(at_ms)).map(|at| at + self.options.expiry_slack);
        let key = key.map(|at| self.expire_after.map_or(at, |after| at.max(after)));
        let flush = self.disk.as_ref().and_then(|on_disk| on_disk.flush_at);
        [history, key, flush].into_iter().flatten().min()
    }

    fn handle(&mut self, requests: Vec<Request<V>>) {
        let mut txns = Vec::new();
        let mut bytes = 0;
        for request in requests {
            match request {
                Request::Commit { txn, sealed, reply } => {
                    bytes += txn.ops.iter().map(value_len).sum::<usize>();
                    txns.push((txn, sealed, reply));
                    if txns.len() >= BATCH_TXNS || bytes >= BATCH_BYTES {
                        self.commit(std::mem::take(&mut txns));
                        bytes = 0;
                    }
                }
                Request::Sync { reply } => {
                    let synced = self.disk.as_mut().map_or(Ok(()), |on_disk| on_disk.log.sync());
                    // One that has gone away does not want to know.
                    let _ = reply.send(synced);
                }
                Request::Checkpointed { number, result } => self.checkpointed(number, result),
            }
        }
        if !txns.is_empty() {
            self.commit(txns);
        }
    }

    fn commit(&mut self, txns: Vec<Queued<V>>) {
        let batch = self.decide(txns);
        match self.append(&batch) {
            Ok(()) => self.publish(batch),
            Err(error) => {
                tracing::warn!(%error, transactions = batch.replies.len(), "transactions refused");
                for (reply, _) in batch.replies {
                    let _ = reply.send(Err(error.clone()));
                }
            }
        }
    }

    fn decide(&mut self, txns: Vec<Queued<V>>) -> Batch<V> {
        let mut pending = Pending::after(&self.state.read(), self.clock.ms_at(Instant::now()));
        let mut replies = Vec::with_capacity(txns.len());
        let mut sync = false;
        for (txn, sealed, reply) in txns {
            let durability = txn.durability;
            let before = pending.revision;
            replies.push((reply, pending.decide(&self.state, txn, sealed, &self.options)));
            sync |= durability == Durability::Synced && pending.revision > before;
        }
        Batch { pending, replies, sync }
    }

    fn append(&mut self, batch: &Batch<V>) -> Result<(), Error> {
        let Some(on_disk) = &mut self.disk else { return Ok(()) };
        let transactions: Vec<_> = batch
            .pending
            .events
            .chunk_by(|a, b| a.revision == b.revision)
            .map(|events| LogEntry { revision: events[0].revision, events })
            .collect();
        on_disk.log.append(&transactions, batch.sync)?;
        on_disk.arm(self.options.relaxed_flush);
        Ok(())
    }

    fn publish(&mut self, batch: Batch<V>) {
        let visible = Visible { events: batch.pending.events, revision: batch.pending.revision };
        let wake = self.state.write().publish(visible, Instant::now());
        for feed in wake {
            feed.wake();
        }
        for (reply, outcome) in batch.replies {
            // A caller that went away does not undo its transaction.
            let _ = reply.send(outcome);
        }
    }

    /// Deletes some keys whose time is over: a transaction each, all in one write. What is lost of that with the power is done
    /// again after the next start.
    fn expire_keys(&mut self) {
        let now = Instant::now();
        let (now_ms, slack_ms) = (self.clock.ms_at(now), self.options.expiry_slack.as_millis() as u64);
        let due = {
            let state = self.state.read();
            // The same test as that of the timer, which must not go off for nothing.
            let first = state.next_key_expiry().is_some_and(|at_ms| at_ms.saturating_add(slack_ms) <= now_ms);
            if !first || self.expire_after.is_some_and(|after| after > now) {
                return;
            }
            state.expired_keys(now_ms, EXPIRE_STEP)
        };
        self.expire_after = None;
        let mut pending = Pending::after(&self.state.read(), now_ms);
        for key in due {
            let txn = Txn { ops: vec![crate::Op::Delete { key: key.to_string() }], ..Txn::default() };
            let decided = pending.decide(&self.state, txn, Vec::new(), &self.options);
            decided.expect("the deletion of one key is always allowed");
        }
        let batch = Batch { pending, replies: Vec::new(), sync: false };
        match self.append(&batch) {
            Ok(()) => self.publish(batch),
            Err(error) => {
                tracing::warn!(%error, "expired keys cannot be deleted yet");
                self.expire_after = Some(now + RETRY);
            }
        }
    }

    fn flush_if_due(&mut self) {
        let Some(on_disk) = &mut self.disk else { return };
        if on_disk.flush_at.is_none_or(|at| at > Instant::now()) {
            return;
        }
        on_disk.flush_at = None;
        match on_disk.log.sync() {
            Ok(()) => {}
            Err(error) => {
                tracing::warn!(%error, "relaxed transactions are not durable yet");
                on_disk.flush_at = Some(Instant::now() + RETRY);
            }
        }
    }

    fn forget_history(&mut self) {
        loop {
            let dropped = self.state.write().compact_step(&self.options, Instant::now());
            if dropped.is_empty() {
                return;
            }
        }
    }

    /// Starts a checkpoint when there is more garbage than live data, or a file of an older format.
    fn reclaim_space(&mut self) {
        let Some(on_disk) = &mut self.disk else { return };
        let total = on_disk.log.total_bytes();
        let outdated = on_disk.log.is_outdated();
        if on_disk.checkpoint.is_some() || total < on_disk.retry_bytes {
            return;
        }
        if !outdated && total <= self.options.garbage_bytes {
            return;
        }
        let (live, revision) = {
            let state = self.state.read();
            (state.live_bytes() + state.len() as u64 * ENTRY_OVERHEAD, state.revision())
        };
        if !outdated && total <= 2 * live + self.options.garbage_bytes {
            return;
        }
        match on_disk.log.rotate() {
            Ok(number) => {
                let checkpoint = Checkpoint {
                    disk: on_disk.disk.clone(),
                    state: self.state.clone(),
                    number,
                    revision,
                    replaces: on_disk.log.replaced_by(number),
                    stop: on_disk.stop.clone(),
                };
                on_disk.checkpoint = Some(spawn_checkpoint(checkpoint, self.inbox.clone()));
            }
            Err(error) => {
                tracing::warn!(%error, "cannot start to reclaim space");
                on_disk.retry_bytes = total + self.options.garbage_bytes;
            }
        }
    }

    fn checkpointed(&mut self, number: u64, result: Result<u64, Error>) {
        let Some(on_disk) = &mut self.disk else { return };
        on_disk.join_checkpoint();
        match result {
            Ok(len) => {
                on_disk.log.checkpointed(number, len);
                on_disk.retry_bytes = 0;
            }
            Err(error) => {
                tracing::warn!(%error, "cannot reclaim space");
                on_disk.retry_bytes = on_disk.log.total_bytes() + self.options.garbage_bytes;
            }
        }
    }

    fn finish(&mut self) {
        let Some(on_disk) = &mut self.disk else { return };
        on_disk.stop.store(true, Ordering::Relaxed);
        on_disk.join_checkpoint();
        if let Err(error) = on_disk.log.finish() {
            tracing::warn!(%error, "the store was not shut down cleanly");
        }
    }
}

impl OnDisk {
    fn arm(&mut self, delay: Duration) {
        self.flush_at = match (self.log.has_unsynced(), self.flush_at) {
            (false, _) => None,
            (true, armed) => Some(armed.unwrap_or_else(|| Instant::now() + delay)),
        };
    }

    fn join_checkpoint(&mut self) {
        if self.checkpoint.take().is_some_and(|thread| thread.join().is_err()) {
            tracing::error!("the thread that reclaims space panicked");
        }
    }
}

fn spawn_checkpoint<V: Value>(checkpoint: Checkpoint<V>, inbox: Arc<Inbox<Request<V>>>) -> JoinHandle<()> {
    let number = checkpoint.number;
    let sync_inbox = inbox.clone();
    let sync_log = move || {
        let (reply, synced) = std::sync::mpsc::channel();
        sync_inbox.send_urgent(Request::Sync { reply })?;
        // Without an answer the engine is gone.
        synced.recv().map_err(|_| Error::Closed)?
    };
    let work = move || {
        let result = checkpoint.run(sync_log);
        // Nobody is left to be told when the store has closed meanwhile.
        let _ = inbox.send_urgent(Request::Checkpointed { number, result });
    };
    std::thread::Builder::new().name("store-checkpoint".to_owned()).spawn(work).expect("the process can start a thread")
}

fn value_len(op: &crate::Op) -> usize {
    match op {
        crate::Op::Put { value, .. } => value.len(),
        crate::Op::Delete { .. } => 0,
    }
}

impl<V: Value> Drop for Engine<V> {
    /// However the thread ends, nobody waits for it any more.
    fn drop(&mut self) {
        self.inbox.abandon();
        self.state.write().close();
    }
}
