//! Revisioned, ordered key-value bytes: transactions, ranges at a revision, watch, compaction.
//!
//! Must not know: Kubernetes. A value is bytes plus whatever the caller's [`Value`] makes of them.
//!
//! # Why an engine of our own
//!
//! All live data has to be in memory anyway, since the index is the watch cache that every read is served from. What is
//! left for the disk is to remember the order of writes: an append-only log does that with one sequential write and one
//! `fdatasync` per batch, where a B-tree engine (redb, heed) rewrites pages up to the root, and an LSM
//! engine (fjall, rocksdb) writes its log and then everything again, to serve reads from disk that never come. On flash the
//! log costs the bytes themselves, plus one more copy whenever more than half of it has become garbage. Opening reads
//! sequentially. `bench/engines/README.md` has all of them measured at the same work, `bench/store.md` the store beside etcd.
//!
//! # How a commit goes
//!
//! ```text
//! commit() ──bounded queue──▶ commit thread: decide (plan) ▶ append (log) ▶ sync once ▶ publish (state, feeds) ▶ acknowledge
//! get, range, watch ────────▶ state, under a lock held for microseconds
//! ```
//!
//! # Files
//!
//! ```text
//! lock                  held with flock by the one process that uses the directory
//! <number>.log          segments, numbered without gap; only the last one grows
//! <number>.checkpoint   all live entries; replaces the segments before <number>
//! *.tmp                 being written; of no use after a crash
//! ```
//!
//! `record.rs` has their bytes, and how older versions of them are read. A segment or checkpoint is written under a temporary name and gets its own when it is
//! durable, so a bad header is damage and never a crash.
//!
//! # Invariants
//!
//! Of the log, with the tests that hold it to them; `PROOFS.md` has all that is done to them:
//!
//! 1. Nothing is visible or acknowledged before it is as durable as it asked to be (`tests/crash.rs`).
//! 2. Nothing acknowledged is lost: not to a killed process; and to a power cut only relaxed transactions newer than the
//!    last sync, newest first (`tests/crash.rs`, `tests/kill.rs`).
//! 3. A broken record is cut off if it may have been in flight, and is refused as damage if not. Each record says how much
//!    of its file was durable when it was written: a broken record below that mark was whole once (`tests/damage.rs`).
//! 4. After a failed write or sync nothing is written to that segment any more (`log.rs`, `tests/crash.rs`).
//! 5. Revisions never go backward or come to mean something else: a start that was not preceded by a clean shutdown
//!    skips as many as relaxed transactions can have been lost (`tests/crash.rs`).
//! 6. Replaying a record twice, or over a newer checkpoint, ends in the same state (`checkpoint.rs`, `tests/crash.rs`).
//!
//! Of memory:
//!
//! 7. The index is exactly the live keys at the newest visible revision, and the history undoes it step by step down to
//!    the compacted revision (`state.rs`, `tests/model.rs`).
//! 8. A watcher gets every event of its prefix after its start once, in order, transactions whole; or is told that it
//!    cannot (`feed.rs`, `tests/model.rs`, `tests/watching.rs`, `tests/robustness.rs`).
//!
//! Of time and of files that outlive a version:
//!
//! 9. A key with a time to live is deleted by a transaction like any other, soon after that time has passed. Nothing that is done to
//!    the system's clock while the store is open changes that; a clock that was set back before lets no key live longer than its
//!    time from the opening on; one that was set forward ends lives early (`clock.rs`, `tests/expiry.rs`).
//! 10. A snapshot is the state at one revision, taken while commits go on; no damage to it goes unnoticed, and a store made of
//!     it goes on with revisions that nobody has seen (`snapshot.rs`, `tests/snapshots.rs` of the crate).
//! 11. Files of every older format are read and replaced by the newest, those of newer ones are refused (`tests/format.rs` of the
//!     crate).
//! 12. With a [`Transformer`], no byte of a value that it seals reaches a file or etcd otherwise than sealed, and what cannot be opened
//!     is never lost (`transform.rs`, `tests/transform.rs`).

mod checkpoint;
mod clock;
mod disk;
mod engine;
mod error;
pub mod etcd;
mod feed;
mod frames;
mod import;
mod inbox;
mod log;
mod plan;
mod record;
mod recovery;
pub mod snapshot;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod transform;
mod types;

pub use error::Error;
pub use feed::Watcher;
pub use import::import;
pub use store::Store;
pub use transform::Transformer;
pub use types::{
    Change, Compare, Durability, Entry, Event, Expect, Listing, Op, Options, Outcome, Range, Txn, prefix_end,
};

/// The store's clock: one step per committed transaction, starting at 1 for the empty store.
pub type Revision = u64;

/// The in-memory form of a stored value, made once per commit (and once per key at load) and shared by every reader.
pub trait Value: Send + Sync + 'static {
    /// Builds the shared form of `bytes`, committed at `revision`.
    fn committed(bytes: bytes::Bytes, revision: Revision) -> Self;
    /// The form that watchers see of a value deleted at `revision`.
    fn deleted(&self, revision: Revision) -> Self;
    /// What was committed, byte for byte, as pieces that are put together; so the store need not keep it a second time.
    fn stored(&self) -> [&[u8]; 2];
}

/// For whoever wants nothing but the bytes.
impl Value for bytes::Bytes {
    fn committed(bytes: bytes::Bytes, _: Revision) -> Self {
        bytes
    }

    fn deleted(&self, _: Revision) -> Self {
        self.clone()
    }

    fn stored(&self) -> [&[u8]; 2] {
        [self, &[]]
    }
}
