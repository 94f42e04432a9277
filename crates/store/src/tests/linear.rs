//! Histories of concurrent clients of the store as a library, with and without faults, judged by the checker of `histories`.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use histories::drive::{Events, Items, Load, Opened, Subject, run};
use histories::{Answer, Change as Changed, Note, Op as Call, check::assert_correct, rounds};
use parking_lot::RwLock;
use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::sim::SimDisk;
use super::{Text, delete, guarded, put, tiny};
use crate::{Change, Compare, Entry, Error, Event, Expect, Options, Outcome, Range, Revision, Store, Watcher};

/// The store that runs now. A fault replaces it.
struct Live {
    store: Store<Text>,
    disk: SimDisk,
    /// How many there have been before.
    generation: u64,
}

#[derive(Clone)]
struct Site(Arc<RwLock<Live>>);

impl Site {
    fn new() -> Self {
        let disk = SimDisk::default();
        Site(Arc::new(RwLock::new(Live { store: open(&disk), disk, generation: 0 })))
    }

    /// Ends this process's store as `end` does with its disk, and starts one on what is left.
    fn restart(&self, end: impl FnOnce(&Live) -> SimDisk) {
        let old = {
            let mut live = self.0.write();
            let disk = end(&live);
            let next = Live { store: open(&disk), disk, generation: live.generation + 1 };
            std::mem::replace(&mut *live, next)
        };
        drop(old);
    }

    fn disk(&self) -> SimDisk {
        self.0.read().disk.clone()
    }

    async fn stop_and_start(&self) {
        let store = self.0.read().store.clone();
        store.shutdown().await;
        self.restart(|live| live.disk.kill());
    }
}

fn options() -> Options {
    Options { history_events: 20_000, ..tiny() }
}

fn open(disk: &SimDisk) -> Store<Text> {
    Store::open_disk(Arc::new(disk.clone()), options()).unwrap()
}

fn found(entry: &Entry<Text>) -> (u64, Revision) {
    let value = std::str::from_utf8(&entry.value.bytes).unwrap().parse().unwrap();
    assert_eq!(entry.value.revision, entry.mod_revision);
    (value, entry.mod_revision)
}

fn txn_of(key: &str, call: Call) -> crate::Txn {
    let when = |expect| vec![Compare { key: key.to_owned(), expect }];
    match call {
        Call::Create(value) => guarded(when(Expect::Absent), vec![put(key, &value.to_string())]),
        Call::Put(value) => guarded(Vec::new(), vec![put(key, &value.to_string())]),
        Call::Update(value, revision) => {
            guarded(when(Expect::ModRevision(revision)), vec![put(key, &value.to_string())])
        }
        Call::Delete(Some(revision)) => guarded(when(Expect::ModRevision(revision)), vec![delete(key)]),
        Call::Delete(None) => guarded(when(Expect::Exists), vec![delete(key)]),
        Call::Get => unreachable!("a get is not a transaction"),
    }
}

fn answer(outcome: Result<Outcome<Text>, Error>) -> Answer {
    match outcome {
        Ok(Outcome::Committed { revision, .. }) => Answer::Written(Some(revision)),
        Ok(Outcome::Failed { current }) if current[0].is_some() => Answer::Refused,
        Ok(Outcome::Failed { .. }) => Answer::Absent,
        // Not visible, but the next start may find it.
        Err(Error::Io { .. } | Error::NoSpace { .. } | Error::Closed) => Answer::Unknown,
        Err(other) => panic!("{other}"),
    }
}

impl Subject for Site {
    type Events = Stream;

    async fn call(&self, key: &str, call: Call) -> Answer {
        let (store, generation) = {
            let live = self.0.read();
            if call == Call::Get {
                return live.store.get(key).map_or(Answer::Absent, |entry| {
                    let (value, revision) = found(&entry);
                    Answer::Found(value, revision)
                });
            }
            (live.store.clone(), live.generation)
        };
        let answer = match (answer(store.commit(txn_of(key, call)).await), call) {
            (Answer::Absent, Call::Create(_)) => unreachable!("a creation does not ask for a key"),
            (answer, _) => answer,
        };
        // A killed process refuses nothing; what it has written is written.
        let killed = self.0.read().generation > generation;
        if killed && matches!(answer, Answer::Refused | Answer::Absent) { Answer::Unknown } else { answer }
    }

    async fn list(&self, at: Option<Revision>) -> Option<Items> {
        let live = self.0.read();
        let listing = live.store.range(&Range { revision: at, ..Range::prefix("") }).ok()?;
        let items: BTreeMap<_, _> = listing.entries.iter().map(|entry| (entry.key.to_string(), found(entry))).collect();
        Some((listing.revision, items))
    }

    async fn watch(&self, after: Revision) -> Opened<Stream> {
        match self.0.read().store.watch("", after) {
            Ok(watcher) => Opened::Stream(Stream(watcher)),
            Err(Error::Compacted { .. }) => Opened::Compacted,
            Err(Error::Closed) => Opened::Unreachable,
            Err(other) => panic!("{other}"),
        }
    }
}

struct Stream(Watcher<Text>);

fn note(event: &Arc<Event<Text>>) -> Note {
    let change = match &event.change {
        Change::Put(entry) => Changed::Put { value: found(entry).0, created: event.previous.is_none() },
        Change::Delete(_) => Changed::Delete,
    };
    Note::Event { revision: event.revision, key: event.key().to_owned(), change }
}

impl Events for Stream {
    async fn next(&mut self) -> Vec<Note> {
        match tokio::time::timeout(Duration::from_millis(2), self.0.next()).await {
            Ok(Ok(events)) => {
                let mut notes: Vec<Note> = events.iter().map(note).collect();
                notes.push(Note::Bookmark(self.0.progress()));
                notes
            }
            Ok(Err(_)) => Vec::new(),
            Err(_) => vec![Note::Bookmark(self.0.progress())],
        }
    }
}

fn history(seed: u64, faults: impl AsyncFnOnce(Site, StdRng)) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(3).enable_time().build().unwrap();
    let site = Site::new();
    let load = Load { seed, ..Load::default() };
    let history = runtime.block_on(run(site.clone(), load, faults(site, StdRng::seed_from_u64(seed))));
    assert!(history.calls.len() >= load.clients * load.calls);
    assert_correct(&history);
}

async fn pause(rng: &mut StdRng) {
    let time = Duration::from_micros(rng.random_range(500..15_000));
    tokio::time::sleep(time).await;
}

#[test]
fn histories_without_faults_are_linearizable() {
    rounds::each("linear: no faults", 10, |seed| history(seed, async |_, _| {}));
}

#[test]
fn histories_over_kills_and_power_cuts_are_linearizable() {
    let faults = async |site: Site, mut rng: StdRng| {
        for _ in 0..6 {
            pause(&mut rng).await;
            let which = rng.random_range(0..3);
            match which {
                0 => site.stop_and_start().await,
                1 => site.restart(|live| live.disk.kill()),
                _ => site.restart(|live| live.disk.power_off(&mut rng)),
            }
        }
        pause(&mut rng).await;
    };
    rounds::each("linear: kills and power cuts", 10, |seed| history(seed, faults));
}

#[test]
fn histories_over_failing_and_slow_disks_are_linearizable() {
    let faults = async |site: Site, mut rng: StdRng| {
        for round in 0..8 {
            pause(&mut rng).await;
            let disk = site.disk();
            let kind = if round % 2 == 0 { ErrorKind::StorageFull } else { ErrorKind::Other };
            let (quiet, failing) = (rng.random_range(0..6), rng.random_range(1..8));
            disk.set_faults(std::iter::repeat_n(None, quiet).chain(std::iter::repeat_n(Some(kind), failing)));
            disk.set_sync_time(Duration::from_millis(if round % 3 == 0 { 4 } else { 0 }));
            if round == 5 {
                site.restart(|live| live.disk.kill());
            }
        }
        site.disk().set_faults([]);
        pause(&mut rng).await;
    };
    rounds::each("linear: failing and slow disks", 10, |seed| history(seed, faults));
}

#[test]
fn histories_over_compactions_are_linearizable() {
    let faults = async |site: Site, mut rng: StdRng| {
        for _ in 0..20 {
            pause(&mut rng).await;
            let store = site.0.read().store.clone();
            // All of the past, so that slow watchers have to list again and listings in the past are refused.
            store.compact(store.revision()).unwrap();
        }
    };
    rounds::each("linear: compactions", 10, |seed| history(seed, faults));
}
