//! Deciding what a transaction does: pure, given the visible state and the writes of the batch in hand.

use std::collections::{HashMap, HashSet};
use std::sync::Arc;

use bytes::Bytes;
use parking_lot::RwLock;

use crate::clock::Expiry;
use crate::state::State;
use crate::transform::Sealed;
use crate::{Change, Compare, Entry, Error, Event, Expect, Op, Options, Outcome, Revision, Txn, Value};

/// No transaction may be larger on disk, in bytes: more is a mistake, and recovery holds one in memory.
pub(crate) const MAX_TXN_BYTES: u64 = 256 << 20;

/// The writes of a batch that are decided but not yet visible.
pub(crate) struct Pending<V> {
    /// The revision of the newest decided transaction.
    pub revision: Revision,
    pub events: Vec<Arc<Event<V>>>,
    /// When it is decided, in milliseconds since the Unix epoch.
    now_ms: u64,
    /// What changed keys will be; none is deleted.
    changed: HashMap<Arc<str>, Option<Arc<Entry<V>>>>,
    live_bytes: u64,
}

impl<V: Value> Pending<V> {
    pub(crate) fn after(state: &State<V>, now_ms: u64) -> Self {
        Pending {
            revision: state.revision(),
            events: Vec::new(),
            now_ms,
            changed: HashMap::new(),
            live_bytes: state.live_bytes(),
        }
    }

    /// Decides `txn`. On an error, or where a compare fails, nothing is pending that was not before.
    ///
    /// `sealed` is what is kept of the ops' values, empty where that is the values. The lock is held for the look-ups only: making
    /// values is the caller's code and may take its time.
    pub(crate) fn decide(
        &mut self,
        state: &RwLock<State<V>>,
        txn: Txn,
        sealed: Vec<Option<Bytes>>,
        options: &Options,
    ) -> Result<Outcome<V>, Error> {
        let (current, before) = {
            let state = state.read();
            let lookup = |key: &str| match self.changed.get(key) {
                Some(changed) => changed.clone(),
                None => state.get(key).cloned(),
            };
            let current: Vec<_> = txn.compares.iter().map(|compare| lookup(&compare.key)).collect();
            let before: Vec<_> = txn.ops.iter().map(|op| lookup(op.key())).collect();
            (current, before)
        };
        if !txn.compares.iter().zip(&current).all(|(compare, entry)| holds(compare, entry.as_deref())) {
            return Ok(Outcome::Failed { current });
        }
        check_keys(&txn.ops)?;
        let live_bytes = self.check_size(&txn.ops, &sealed, &before, options)?;

        let revision = self.revision + 1;
        let stamp = Stamp { revision, now_ms: self.now_ms };
        let sealed = sealed.into_iter().chain(std::iter::repeat(None));
        let ops = txn.ops.into_iter().zip(before).zip(sealed);
        let events: Vec<_> =
            ops.map(|((op, previous), sealed)| apply(op, sealed, previous, stamp).map(Arc::new)).collect();
        let entries = events.iter().map(|event| event.as_ref().map(|event| event.entry().clone())).collect();
        for event in events.into_iter().flatten() {
            let entry = match &event.change {
                Change::Put(entry) => Some(entry.clone()),
                Change::Delete(_) => None,
            };
            self.changed.insert(event.entry().key.clone(), entry);
            self.events.push(event);
            self.revision = revision;
        }
        self.live_bytes = live_bytes;
        Ok(Outcome::Committed { revision: self.revision, entries })
    }

    /// The live bytes after the ops, if that is allowed. What shrinks the store is, whatever its size.
    fn check_size(
        &self,
        ops: &[Op],
        sealed: &[Option<Bytes>],
        before: &[Option<Arc<Entry<V>>>],
        options: &Options,
    ) -> Result<u64, Error> {
        let kept = |at: usize| sealed.get(at).and_then(Option::as_ref);
        let added: u64 = ops
            .iter()
            .enumerate()
            .map(|(at, op)| match op {
                Op::Put { key, value, .. } => (key.len() + kept(at).unwrap_or(value).len()) as u64,
                Op::Delete { .. } => 0,
            })
            .sum();
        if added > MAX_TXN_BYTES {
            return Err(Error::TooLarge { size: added, limit: MAX_TXN_BYTES });
        }
        let removed: u64 = before.iter().flatten().map(|entry| entry.size()).sum();
        let size = self.live_bytes + added - removed;
        if added > removed && size > options.quota_bytes {
            return Err(Error::QuotaExceeded { size, quota: options.quota_bytes });
        }
        Ok(size)
    }
}

fn holds<V>(compare: &Compare, entry: Option<&Entry<V>>) -> bool {
    match compare.expect {
        Expect::Absent => entry.is_none(),
        Expect::Exists => entry.is_some(),
        Expect::ModRevision(revision) => entry.is_some_and(|entry| entry.mod_revision == revision),
    }
}

fn check_keys(ops: &[Op]) -> Result<(), Error> {
    let mut seen = HashSet::new();
    match ops.iter().find(|op| !seen.insert(op.key())) {
        Some(twice) => Err(Error::DuplicateKey { key: twice.key().to_owned() }),
        None => Ok(()),
    }
}

/// When a transaction happens, by either clock.
#[derive(Clone, Copy)]
struct Stamp {
    revision: Revision,
    now_ms: u64,
}

fn apply<V: Value>(op: Op, sealed: Option<Bytes>, previous: Option<Arc<Entry<V>>>, stamp: Stamp) -> Option<Event<V>> {
    let change = match op {
        Op::Put { key, value, ttl } => {
            let expiry = ttl.map(|ttl| Box::new(Expiry::new(stamp.now_ms, ttl)));
            Change::Put(Arc::new(Entry { expiry, ..put(&key, value, sealed, previous.as_deref(), stamp.revision) }))
        }
        Op::Delete { .. } => Change::Delete(Arc::new(tombstone(previous.as_deref()?, stamp.revision))),
    };
    Some(Event { revision: stamp.revision, previous, change })
}

fn put<V: Value>(
    key: &str,
    bytes: Bytes,
    sealed: Option<Bytes>,
    previous: Option<&Entry<V>>,
    revision: Revision,
) -> Entry<V> {
    let len = sealed.as_ref().unwrap_or(&bytes).len();
    Entry {
        // All versions of a key share its one allocation.
        key: previous.map_or_else(|| key.into(), |previous| previous.key.clone()),
        len: u32::try_from(len).expect("a transaction is smaller than 4 GiB"),
        value: V::committed(bytes, revision),
        create_revision: previous.map_or(revision, |previous| previous.create_revision),
        mod_revision: revision,
        version: previous.map_or(1, |previous| previous.version + 1),
        expiry: None,
        sealed: sealed.map(|bytes| Box::new(Sealed { bytes, unreadable: None })),
    }
}

pub(crate) fn tombstone<V: Value>(previous: &Entry<V>, revision: Revision) -> Entry<V> {
    Entry {
        key: previous.key.clone(),
        value: previous.value.deleted(revision),
        len: previous.len,
        create_revision: previous.create_revision,
        mod_revision: revision,
        version: previous.version + 1,
        expiry: None,
        sealed: None,
    }
}
