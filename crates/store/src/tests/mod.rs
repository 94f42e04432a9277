//! Tests that need a disk that fails, crashes or counts.

mod crash;
mod damage;
mod expiry;
mod faults;
mod linear;
mod model;
mod robustness;
mod sim;
mod watching;

use bytes::Bytes;

use crate::{Compare, Durability, Error, Op, Options, Outcome, Revision, Store, Txn, Value};

/// A value that remembers how it was made.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Text {
    pub bytes: Bytes,
    pub revision: Revision,
    pub deleted: bool,
}

impl Value for Text {
    fn committed(bytes: Bytes, revision: Revision) -> Self {
        Text { bytes, revision, deleted: false }
    }

    fn deleted(&self, revision: Revision) -> Self {
        Text { bytes: self.bytes.clone(), revision, deleted: true }
    }

    fn stored(&self) -> [&[u8]; 2] {
        // Cut somewhere: the store has to put it together again.
        let (head, tail) = self.bytes.split_at(self.bytes.len() / 2);
        [head, tail]
    }
}

pub(crate) fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned(), value: Bytes::copy_from_slice(value.as_bytes()), ttl: None }
}

pub(crate) fn delete(key: &str) -> Op {
    Op::Delete { key: key.to_owned() }
}

pub(crate) fn txn(ops: Vec<Op>) -> Txn {
    Txn { compares: Vec::new(), ops, durability: Durability::Synced }
}

pub(crate) fn relaxed(ops: Vec<Op>) -> Txn {
    Txn { durability: Durability::Relaxed, ..txn(ops) }
}

pub(crate) fn guarded(compares: Vec<Compare>, ops: Vec<Op>) -> Txn {
    Txn { compares, ..txn(ops) }
}

pub(crate) fn block_on<T>(future: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(future)
}

/// Commits and returns the revision.
pub(crate) fn commit(store: &Store<Text>, txn: Txn) -> Result<Revision, Error> {
    match block_on(store.commit(txn))? {
        Outcome::Committed { revision, .. } => Ok(revision),
        Outcome::Failed { .. } => panic!("no compare was expected to fail"),
    }
}

/// Bounds so small that every path is taken.
pub(crate) fn tiny() -> Options {
    Options { segment_bytes: 600, garbage_bytes: 1200, ..Options::default() }
}
