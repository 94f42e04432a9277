//! Revisioned, ordered key-value bytes: transactions, ranges at a revision, watch, compaction.
//!
//! Must not know: Kubernetes. A value is bytes plus whatever the caller's [`Value`] makes of them.

mod checkpoint;
mod disk;
mod engine;
mod error;
mod feed;
mod frames;
mod inbox;
mod log;
mod plan;
mod record;
mod recovery;
mod state;
mod store;
#[cfg(test)]
mod tests;
mod types;

pub use error::Error;
pub use feed::Watcher;
pub use store::Store;
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
}
