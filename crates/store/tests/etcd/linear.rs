//! Histories of clients of two stores on one cluster, as of two API servers, judged by the checker of `histories`.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use histories::check::assert_correct;
use histories::drive::{Events, Items, Load, Opened, Subject, run};
use histories::{Answer, Change as Changed, Note, Op as Call, rounds};
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};
use store::{Change, Compare, Entry, Error, Expect, Op, Options, Outcome, Range, Revision, Store, Txn, Watcher};

use crate::Text;
use crate::cluster::Cluster;

/// Each call goes to the next store.
#[derive(Clone)]
struct Site {
    stores: Arc<[Store<Text>; 2]>,
    next: Arc<AtomicUsize>,
}

impl Site {
    async fn open(cluster: &Cluster) -> Self {
        let open = async || Store::open_etcd(cluster.config(), Options::default()).await.unwrap();
        Site { stores: Arc::new([open().await, open().await]), next: Arc::default() }
    }

    fn store(&self) -> &Store<Text> {
        &self.stores[self.next.fetch_add(1, Ordering::Relaxed) % self.stores.len()]
    }
}

fn found(entry: &Entry<Text>) -> (u64, Revision) {
    (entry.value.text().parse().unwrap(), entry.mod_revision)
}

fn txn(key: &str, call: Call) -> Txn {
    let put = |value: u64| Op::Put { key: key.to_owned(), value: value.to_string().into(), ttl: None };
    let delete = Op::Delete { key: key.to_owned() };
    let (expect, op) = match call {
        Call::Create(value) => (Some(Expect::Absent), put(value)),
        Call::Put(value) => (None, put(value)),
        Call::Update(value, revision) => (Some(Expect::ModRevision(revision)), put(value)),
        Call::Delete(Some(revision)) => (Some(Expect::ModRevision(revision)), delete),
        Call::Delete(None) => (Some(Expect::Exists), delete),
        Call::Get => unreachable!("a get is not a transaction"),
    };
    let compares = expect.map(|expect| Compare { key: key.to_owned(), expect }).into_iter().collect();
    Txn { compares, ops: vec![op], ..Txn::default() }
}

impl Subject for Site {
    type Events = Stream;

    async fn call(&self, key: &str, call: Call) -> Answer {
        let store = self.store();
        if call == Call::Get {
            // What others wrote, too.
            return match store.barrier().await {
                Ok(()) => store.get(key).map_or(Answer::Absent, |entry| {
                    let (value, revision) = found(&entry);
                    Answer::Found(value, revision)
                }),
                Err(_) => Answer::Unknown,
            };
        }
        match store.commit(txn(key, call)).await {
            Ok(Outcome::Committed { revision, .. }) => Answer::Written(Some(revision)),
            Ok(Outcome::Failed { current }) if current[0].is_some() => Answer::Refused,
            Ok(Outcome::Failed { .. }) => Answer::Absent,
            Err(Error::Unavailable { .. }) => Answer::NotDone,
            Err(Error::Uncertain { .. }) => Answer::Unknown,
            Err(other) => panic!("{other}"),
        }
    }

    async fn list(&self, at: Option<Revision>) -> Option<Items> {
        let store = self.store();
        store.barrier().await.ok()?;
        let listing = match store.range(&Range { revision: at, ..Range::prefix("") }) {
            Ok(listing) => listing,
            Err(Error::Compacted { .. }) => return None,
            Err(other) => panic!("{other}"),
        };
        let items: BTreeMap<_, _> = listing.entries.iter().map(|entry| (entry.key.to_string(), found(entry))).collect();
        Some((listing.revision, items))
    }

    async fn watch(&self, after: Revision) -> Opened<Stream> {
        match self.store().watch("", after) {
            Ok(watcher) => Opened::Stream(Stream(watcher)),
            Err(Error::Compacted { .. }) => Opened::Compacted,
            // The other store was ahead.
            Err(Error::FutureRevision { .. }) => Opened::Unreachable,
            Err(other) => panic!("{other}"),
        }
    }
}

struct Stream(Watcher<Text>);

impl Events for Stream {
    async fn next(&mut self) -> Vec<Note> {
        let Ok(events) = tokio::time::timeout(Duration::from_millis(5), self.0.next()).await else {
            return vec![Note::Bookmark(self.0.progress())];
        };
        let Ok(events) = events else { return Vec::new() };
        let note = |event: &Arc<store::Event<Text>>| {
            let change = match &event.change {
                Change::Put(entry) => Changed::Put { value: found(entry).0, created: event.previous.is_none() },
                Change::Delete(_) => Changed::Delete,
            };
            Note::Event { revision: event.revision, key: event.key().to_owned(), change }
        };
        let mut notes: Vec<Note> = events.iter().map(note).collect();
        notes.push(Note::Bookmark(self.0.progress()));
        notes
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap()
}

#[test]
fn histories_of_two_stores_are_linearizable() {
    rounds::each("linear on etcd: no faults", 1, |seed| {
        let cluster = Cluster::start(1, &[]);
        let load = Load { seed, calls: 60, ..Load::default() };
        let history = runtime().block_on(async { run(Site::open(&cluster).await, load, async {}).await });
        assert_correct(&history);
    });
}

#[test]
fn histories_over_kills_of_members_are_linearizable() {
    rounds::each("linear on etcd: members killed", 1, |seed| {
        let mut cluster = Cluster::start(3, &[]);
        let load = Load { seed, calls: 60, patience: Duration::from_secs(30), ..Load::default() };
        let history = runtime().block_on(async {
            let site = Site::open(&cluster).await;
            let faults = async {
                let mut rng = StdRng::seed_from_u64(seed);
                for round in 0..4 {
                    // The leader every other time: then an election is part of it.
                    let member = if round % 2 == 0 { cluster.leader() } else { rng.random_range(0..3) };
                    cluster.kill(member);
                    tokio::time::sleep(Duration::from_millis(rng.random_range(100..900))).await;
                    cluster.launch(member);
                    cluster.wait_healthy(member);
                    tokio::time::sleep(Duration::from_millis(rng.random_range(0..300))).await;
                }
            };
            run(site, load, faults).await
        });
        assert_correct(&history);
    });
}
