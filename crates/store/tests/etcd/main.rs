//! The store on a real etcd: Debian's `etcd-server`, on loopback, with TLS and client certificates.

#![allow(clippy::unwrap_used)]

mod cluster;
mod faults;
mod linear;
mod members;
mod same;
mod several;

use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use store::etcd::Config;
use store::{Change, Compare, Event, Expect, Op, Options, Outcome, Revision, Store, Txn, Value, Watcher};

#[derive(Debug)]
pub struct Text {
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
        [&self.bytes, &[]]
    }
}

impl Text {
    pub fn text(&self) -> &str {
        std::str::from_utf8(&self.bytes).unwrap()
    }
}

pub type TextStore = Store<Text>;

pub async fn open(config: Config) -> TextStore {
    Store::open_etcd(config, Options::default()).await.unwrap()
}

pub fn put(key: &str, value: &str) -> Op {
    Op::Put { key: key.to_owned(), value: Bytes::copy_from_slice(value.as_bytes()), ttl: None }
}

pub fn txn(compares: &[(&str, Expect)], ops: Vec<Op>) -> Txn {
    let compares = compares.iter().map(|(key, expect)| Compare { key: key.to_string(), expect: *expect }).collect();
    Txn { compares, ops, ..Txn::default() }
}

/// The revision of a transaction that has to be committed.
pub async fn commit(store: &TextStore, ops: Vec<Op>) -> Revision {
    match store.commit(txn(&[], ops)).await.unwrap() {
        Outcome::Committed { revision, .. } => revision,
        Outcome::Failed { .. } => panic!("nothing is compared"),
    }
}

pub fn value(store: &TextStore, key: &str) -> Option<String> {
    store.get(key).map(|entry| entry.value.text().to_owned())
}

/// `revision key=value` or `revision key gone`.
pub fn told(event: &Event<Text>) -> String {
    match &event.change {
        Change::Put(entry) => format!("{} {}={}", event.revision, entry.key, entry.value.text()),
        Change::Delete(entry) => format!("{} {} gone", event.revision, entry.key),
    }
}

/// The next `count` events.
pub async fn next(watcher: &mut Watcher<Text>, count: usize) -> Vec<Arc<Event<Text>>> {
    let mut events = Vec::new();
    while events.len() < count {
        let more = tokio::time::timeout(Duration::from_secs(20), watcher.next()).await;
        events.extend(more.unwrap_or_else(|_| panic!("{} of {count} events came", events.len())).unwrap());
    }
    events
}
