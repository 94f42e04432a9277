//! The shapes that callers hand in and get back. Plain data.

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use bytes::Bytes;

use crate::clock::Expiry;
use crate::transform::Sealed;
use crate::{Revision, Transformer};

/// One committed version of a key. Immutable and shared by the index, the history and every reader.
pub struct Entry<V> {
    pub key: Arc<str>,
    /// The caller's form of what was committed, made once. For a tombstone: of the last bytes before the deletion.
    pub value: V,
    /// Length in bytes of what is kept.
    pub(crate) len: u32,
    /// Revision that made the key come into being.
    pub create_revision: Revision,
    /// Revision of this version.
    pub mod_revision: Revision,
    /// Number of writes since the key came into being, starting at 1.
    pub version: u64,
    /// Boxed, since few keys have one.
    pub(crate) expiry: Option<Box<Expiry>>,
    /// What is kept of the value where that is not what was committed. Boxed for the same reason.
    pub(crate) sealed: Option<Box<Sealed>>,
}

impl<V> Entry<V> {
    /// When the key goes away by itself, by the clock of the wall.
    pub fn expires(&self) -> Option<SystemTime> {
        self.expiry.as_ref().map(|expiry| expiry.at())
    }

    /// The same version of the same key in another form. For readers; never to be compared with what the store has.
    #[must_use]
    pub fn with_value(&self, value: V) -> Self {
        Entry {
            key: self.key.clone(),
            value,
            len: self.len,
            create_revision: self.create_revision,
            mod_revision: self.mod_revision,
            version: self.version,
            expiry: self.expiry.clone(),
            sealed: self.sealed.clone(),
        }
    }

    /// What the entry counts towards the quota, in bytes.
    pub(crate) fn size(&self) -> u64 {
        self.key.len() as u64 + u64::from(self.len)
    }
}

impl<V> fmt::Debug for Entry<V> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Entry")
            .field("key", &self.key)
            .field("len", &self.len)
            .field("create_revision", &self.create_revision)
            .field("mod_revision", &self.mod_revision)
            .field("version", &self.version)
            .finish()
    }
}

/// Which keys to read, and as of when.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Range {
    /// First key, inclusive.
    pub start: String,
    /// Exclusive. See [`Range::prefix`].
    pub end: String,
    /// At most this many entries; 0 is all.
    pub limit: usize,
    /// The state as of this revision; none is the newest.
    pub revision: Option<Revision>,
}

impl Range {
    /// All keys that start with `prefix`, newest state, no limit.
    pub fn prefix(prefix: &str) -> Range {
        Range { start: prefix.to_owned(), end: prefix_end(prefix), limit: 0, revision: None }
    }
}

/// The smallest string greater than every string that starts with `prefix`. The empty prefix and one made of the
/// greatest character only have none: [`char::MAX`] repeated stands for it, which no sensible key reaches.
pub fn prefix_end(prefix: &str) -> String {
    let mut end: Vec<char> = prefix.chars().collect();
    while let Some(last) = end.pop() {
        let next = match last as u32 {
            0xD7FF => Some('\u{E000}'),
            code => char::from_u32(code + 1),
        };
        if let Some(next) = next {
            end.push(next);
            return end.into_iter().collect();
        }
    }
    char::MAX.to_string().repeat(64)
}

/// The entries of a [`Range`], in key order.
#[derive(Debug)]
pub struct Listing<V> {
    pub entries: Vec<Arc<Entry<V>>>,
    /// Whether the limit cut the listing short.
    pub more: bool,
    /// Number of entries after the last returned one.
    pub remaining: usize,
    /// The revision that the listing shows: the asked one, or the newest.
    pub revision: Revision,
}

/// What a key must be for a transaction to go ahead.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Expect {
    Absent,
    Exists,
    /// The key exists and this is its `mod_revision`.
    ModRevision(Revision),
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Compare {
    pub key: String,
    pub expect: Expect,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Op {
    Put {
        key: String,
        value: Bytes,
        /// How long until the key is deleted by itself, give or take [`Options::expiry_slack`]; none is for ever. Each put sets it
        /// anew.
        ttl: Option<Duration>,
    },
    /// Deleting an absent key is no change.
    Delete { key: String },
}

impl Op {
    pub fn key(&self) -> &str {
        match self {
            Op::Put { key, .. } | Op::Delete { key } => key,
        }
    }
}

/// When a transaction is acknowledged and becomes visible.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Durability {
    /// After `fdatasync`: survives loss of power.
    #[default]
    Synced,
    /// After the bytes are in the kernel's page cache: survives the death of this process at any moment. Loss of power
    /// may take the newest relaxed transactions, back to the last sync: at most [`Options::relaxed_flush`] of them in
    /// time, always a suffix of the order of commits, never one that a later synced transaction was built on.
    Relaxed,
}

/// All compares hold, then all ops happen, at one revision; or nothing happens.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Txn {
    pub compares: Vec<Compare>,
    /// No key twice.
    pub ops: Vec<Op>,
    pub durability: Durability,
}

#[derive(Debug)]
pub enum Outcome<V> {
    Committed {
        /// The transaction's revision; the newest one if the transaction changed nothing.
        revision: Revision,
        /// One per op: the new entry of a put, the tombstone of a delete, none for a delete of an absent key.
        entries: Vec<Option<Arc<Entry<V>>>>,
    },
    Failed {
        /// One per compare: what the key is now.
        current: Vec<Option<Arc<Entry<V>>>>,
    },
}

/// One change of one key.
#[derive(Debug)]
pub struct Event<V> {
    pub revision: Revision,
    /// What the key was before; none if it did not exist.
    pub previous: Option<Arc<Entry<V>>>,
    pub change: Change<V>,
}

#[derive(Debug)]
pub enum Change<V> {
    Put(Arc<Entry<V>>),
    /// The tombstone: made by [`crate::Value::deleted`], `mod_revision` is the deletion's.
    Delete(Arc<Entry<V>>),
}

impl<V> Event<V> {
    /// The new entry, or the tombstone.
    pub fn entry(&self) -> &Arc<Entry<V>> {
        match &self.change {
            Change::Put(entry) | Change::Delete(entry) => entry,
        }
    }

    pub fn key(&self) -> &str {
        &self.entry().key
    }
}

/// Bounds. The defaults suit a server with a few gigabytes of memory.
#[derive(Clone, Debug)]
pub struct Options {
    /// Live keys and values together, in bytes; a transaction that would grow them beyond is refused.
    pub quota_bytes: u64,
    /// How long a relaxed transaction may stay unsynced.
    pub relaxed_flush: Duration,
    /// How long history is kept for watches and reads in the past …
    pub history_age: Duration,
    /// … at most this many events …
    pub history_events: usize,
    /// … and at most this many bytes of superseded values.
    pub history_bytes: u64,
    /// How late keys may be deleted whose time is over, so that many of them go in one write.
    pub expiry_slack: Duration,
    /// Transactions that wait for the commit thread; more wait in [`crate::Store::commit`].
    pub queue: usize,
    /// A log segment is closed beyond this size, in bytes.
    pub segment_bytes: u64,
    /// Space is reclaimed when the files exceed twice the live data plus this, in bytes.
    pub garbage_bytes: u64,
    /// In what form values are kept; none is as they are.
    pub transformer: Option<Arc<dyn Transformer>>,
}

impl Default for Options {
    fn default() -> Self {
        Options {
            quota_bytes: 2 << 30,
            relaxed_flush: Duration::from_secs(5),
            history_age: Duration::from_secs(300),
            history_events: 100_000,
            history_bytes: 64 << 20,
            expiry_slack: Duration::from_millis(500),
            queue: 4096,
            segment_bytes: 64 << 20,
            garbage_bytes: 16 << 20,
            transformer: None,
        }
    }
}
