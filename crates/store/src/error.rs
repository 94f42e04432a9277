//! What can go wrong.

use std::io;
use std::path::PathBuf;
use std::sync::Arc;

use crate::Revision;

/// Cloneable, since one failed write fails every transaction of its batch.
#[derive(Clone, Debug, thiserror::Error)]
pub enum Error {
    #[error("revision {requested} has been compacted, the oldest readable is {compacted}")]
    Compacted { requested: Revision, compacted: Revision },
    #[error("revision {requested} is in the future, the newest is {current}")]
    FutureRevision { requested: Revision, current: Revision },
    #[error("key {key:?} occurs twice in one transaction")]
    DuplicateKey { key: String },
    #[error("transaction of {size} bytes is larger than the limit of {limit} bytes")]
    TooLarge { size: u64, limit: u64 },
    #[error("store is full: {size} bytes would exceed the quota of {quota} bytes")]
    QuotaExceeded { size: u64, quota: u64 },
    /// The transaction is not acknowledged and not visible. The store stays readable; later commits try to write again.
    #[error("no space left on the device that holds {}: {source}", path.display())]
    NoSpace { path: PathBuf, source: Arc<io::Error> },
    /// As [`Error::NoSpace`], for any other failure of the disk.
    #[error("cannot {action} {}: {source}", path.display())]
    Io { action: &'static str, path: PathBuf, source: Arc<io::Error> },
    #[error("{} is in use by another process", path.display())]
    Locked { path: PathBuf },
    #[error("{} is damaged at byte {offset}: {reason}", path.display())]
    Damaged { path: PathBuf, offset: u64, reason: String },
    /// Written by a later version of the store: only that one, or a newer one, can read it.
    #[error("{} has format {found}, written by a newer version; this one reads formats up to {newest}", path.display())]
    NewerFormat { path: PathBuf, found: u32, newest: u32 },
    /// The caller's [`crate::Transformer`] could not seal a value: the transaction did not happen.
    #[error("unable to transform key {key:?}: {reason}")]
    Transform { key: String, reason: String },
    #[error("the store is closed")]
    Closed,
    /// What the caller gave cannot be used.
    #[error("{reason}")]
    Configuration { reason: String },
    /// Of a transaction: it did not happen.
    #[error("the data store cannot be reached: {reason}")]
    Unavailable { reason: String },
    /// Of a transaction: it may have happened, or may still.
    #[error("the data store did not say whether the transaction happened: {reason}")]
    Uncertain { reason: String },
    /// The cluster takes no writes until it has been given space; reads go on.
    #[error("the data store is full: {reason}")]
    DatastoreFull { reason: String },
    /// More bytes or operations than the cluster takes in one transaction.
    #[error("the data store does not take so much at once: {reason}")]
    RequestTooLarge { reason: String },
    /// Any other answer that a repetition would not change.
    #[error("the data store answered: {reason}")]
    Datastore { reason: String },
    /// The cluster is not the one that it was. Only a new start helps.
    #[error("the data store is refused: {reason}")]
    Refused { reason: String },
}

impl Error {
    pub(crate) fn io(action: &'static str, path: impl Into<PathBuf>, source: io::Error) -> Error {
        let (path, source) = (path.into(), Arc::new(source));
        match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => Error::NoSpace { path, source },
            _ => Error::Io { action, path, source },
        }
    }
}
