//! One test for each class of fault that the robustness tests of etcd, a store with the same promises, have found in it.
//!
//! The histories of `linear.rs` would show most of them by chance; here each is provoked.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use rand::rngs::StdRng;
use rand::{Rng as _, SeedableRng as _};

use super::sim::SimDisk;
use super::{Text, block_on, commit, delete, put, relaxed, tiny, txn};
use crate::{Change, Error, Event, Op, Options, Outcome, Range, Revision, Store, Txn, Watcher};

/// Revision, key, and the value unless it is deleted.
type Seen = (Revision, String, Option<String>);

fn seen(event: &Arc<Event<Text>>) -> Seen {
    let value = match &event.change {
        Change::Put(entry) => Some(String::from_utf8(entry.value.bytes.to_vec()).unwrap()),
        Change::Delete(_) => None,
    };
    (event.revision, event.key().to_owned(), value)
}

/// All that there is now.
fn take_all(watcher: &mut Watcher<Text>) -> Result<Vec<Seen>, Error> {
    let mut all = Vec::new();
    loop {
        let events = watcher.take()?;
        if events.is_empty() {
            return Ok(all);
        }
        all.extend(events.iter().map(seen));
    }
}

/// Commits `count` random transactions over a few keys and returns the events that they are.
fn fill(store: &Store<Text>, rng: &mut StdRng, count: usize) -> Vec<Seen> {
    let mut events = Vec::new();
    let mut there = std::collections::BTreeSet::new();
    for number in 0..count {
        let mut ops: Vec<Op> = Vec::new();
        for key in ["/a/x", "/a/y", "/b"] {
            match rng.random_range(0..4) {
                0 => ops.push(put(key, &number.to_string())),
                1 if there.contains(key) => ops.push(delete(key)),
                _ => {}
            }
        }
        if ops.is_empty() {
            continue;
        }
        let revision = commit(store, relaxed(ops.clone())).unwrap();
        for op in ops {
            let key = op.key().to_owned();
            let value = matches!(op, Op::Put { .. }).then(|| number.to_string());
            if value.is_some() {
                there.insert(key.clone())
            } else {
                there.remove(&key)
            };
            events.push((revision, key, value));
        }
    }
    events
}

/// Class: a watch opened at the revision of a compaction misses events, of deletions above all.
#[test]
fn a_watch_from_the_compacted_revision_misses_nothing() {
    let store = Store::<Text>::in_memory(Options::default());
    let events = fill(&store, &mut StdRng::seed_from_u64(1), 120);
    for compacted in 1..=store.revision() {
        store.compact(compacted).unwrap();
        let after: Vec<Seen> = events.iter().filter(|(revision, ..)| *revision > compacted).cloned().collect();
        assert_eq!(take_all(&mut store.watch("", compacted).unwrap()).unwrap(), after);
        assert_eq!(
            take_all(&mut store.watch_key("/b", compacted).unwrap()).unwrap(),
            after.into_iter().filter(|(_, key, _)| key == "/b").collect::<Vec<_>>()
        );
        if compacted > 1 {
            assert!(matches!(store.watch("", compacted - 1), Err(Error::Compacted { .. })));
        }
    }
}

/// Class: a watcher that is behind loses events to a compaction without being told.
#[test]
fn a_watcher_behind_a_compaction_is_told_or_misses_nothing() {
    let mut rng = StdRng::seed_from_u64(2);
    let mut told = 0;
    for round in 0..200 {
        let store = Store::<Text>::in_memory(Options { history_events: 40, ..Options::default() });
        let prefix = ["", "/a/", "/b", "/a/x"][round % 4];
        let mut watcher = store.watch(prefix, 1).unwrap();
        let mut events = fill(&store, &mut rng, 10);
        let mut found = take_all(&mut watcher).unwrap();
        events.extend(fill(&store, &mut rng, 20 + round % 40));
        if round % 3 == 0 {
            store.compact(rng.random_range(store.revision() - 5..=store.revision())).unwrap();
        }
        let expected: Vec<Seen> = events.into_iter().filter(|(_, key, _)| key.starts_with(prefix)).collect();
        match take_all(&mut watcher) {
            Ok(rest) => {
                found.extend(rest);
                assert_eq!(found, expected);
            }
            Err(Error::Compacted { .. }) => {
                told += 1;
                assert_eq!(found, expected[..found.len()]);
            }
            Err(other) => panic!("{other}"),
        }
    }
    assert!((20..180).contains(&told), "{told} of 200 were behind");
}

/// Class: duplicate, missing or old events after a watch is resumed.
#[test]
fn a_watch_resumed_at_any_revision_goes_on_where_it_was() {
    let store = Store::<Text>::in_memory(Options::default());
    let events = fill(&store, &mut StdRng::seed_from_u64(3), 100);
    for cut in 1..=store.revision() {
        let mut first = store.watch("", 1).unwrap();
        let mut found = Vec::new();
        // A client that has seen the events up to the cut, not one more.
        found.extend(take_all(&mut first).unwrap().into_iter().filter(|(revision, ..)| *revision <= cut));
        drop(first);
        found.extend(take_all(&mut store.watch("", cut).unwrap()).unwrap());
        assert_eq!(found, events, "resumed after {cut}");
    }
}

/// Class: a watch from a revision that is not there yet returns older events.
#[test]
fn a_watch_from_the_future_is_refused() {
    let store = Store::<Text>::in_memory(Options::default());
    let newest = commit(&store, txn(vec![put("/a", "1")])).unwrap();
    for ahead in [1, 2, 100, u64::MAX - newest] {
        assert!(matches!(store.watch("", newest + ahead), Err(Error::FutureRevision { .. })));
        assert!(matches!(store.watch_key("/a", newest + ahead), Err(Error::FutureRevision { .. })));
        let query = Range { revision: Some(newest + ahead), ..Range::prefix("") };
        assert!(matches!(store.range(&query), Err(Error::FutureRevision { .. })));
    }
}

/// Class: after a reconnection a watch travels back in time.
#[test]
fn a_watch_resumed_over_a_restart_never_goes_back() {
    let mut disk = SimDisk::default();
    let mut rng = StdRng::seed_from_u64(4);
    let mut bookmark = 1;
    for round in 0..40 {
        let store = Store::<Text>::open_disk(Arc::new(disk.clone()), tiny()).unwrap();
        match store.watch("", bookmark) {
            Ok(mut watcher) => assert_eq!(take_all(&mut watcher).unwrap(), [], "nothing has happened since"),
            Err(Error::Compacted { requested, compacted }) => assert!(requested == bookmark && compacted > bookmark),
            Err(other) => panic!("{other}"),
        }
        let mut watcher = store.watch("", store.revision()).unwrap();
        let events = fill(&store, &mut rng, 15);
        assert!(events.iter().all(|(revision, ..)| *revision > bookmark));
        assert_eq!(take_all(&mut watcher).unwrap(), events);
        bookmark = watcher.progress();
        if round % 2 == 0 {
            block_on(store.shutdown());
        }
        disk = disk.kill();
    }
}

/// Class: a progress notification is ahead of events that come after it.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn progress_is_never_ahead_of_events() {
    let store = Store::<Text>::in_memory(Options::default());
    let done = Arc::new(AtomicBool::new(false));
    let mut watching = tokio::task::JoinSet::new();
    for (number, prefix) in ["", "/w/", "/w/1", "/quiet/"].into_iter().cycle().take(16).enumerate() {
        let mut watcher = store.watch(prefix, 1).unwrap();
        let (done, store) = (done.clone(), store.clone());
        watching.spawn(async move {
            let mut rng = StdRng::seed_from_u64(number as u64);
            let (mut told, mut events) = (1, 0);
            while !done.load(Ordering::Relaxed) || told < store.revision() {
                for event in watcher.take().unwrap() {
                    assert!(event.revision > told, "event at {} after progress {told}", event.revision);
                    events += 1;
                }
                if rng.random() {
                    let progress = watcher.progress();
                    assert!(progress >= told, "progress went from {told} to {progress}");
                    told = progress;
                }
                tokio::task::yield_now().await;
            }
            (prefix, events)
        });
    }
    for number in 0..3000 {
        store.commit(relaxed(vec![put(&format!("/w/{}", number % 4), "x")])).await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    for (prefix, events) in watching.join_all().await {
        assert_eq!(events, BTreeMap::from([("", 3000), ("/w/", 3000), ("/w/1", 750), ("/quiet/", 0)])[prefix]);
    }
}

/// Class: watchers starve: slow ones hold up fast ones, or the writers.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_waits_for_a_watcher_that_does_not_read() {
    const WRITES: usize = 20_000;
    let store = Store::<Text>::in_memory(Options { history_events: 15_000, ..Options::default() });
    let mut idle: Vec<_> = (0..1000).map(|_| store.watch("/w/", 1).unwrap()).collect();
    let mut fast = store.watch("/w/", 1).unwrap();
    let reading = tokio::spawn(async move {
        let mut events = 0;
        while events < WRITES {
            events += fast.next().await.unwrap().len();
        }
    });
    let started = Instant::now();
    for number in 0..WRITES {
        store.commit(relaxed(vec![put(&format!("/w/{}", number % 10), "x")])).await.unwrap();
    }
    tokio::time::timeout(Duration::from_secs(60), reading).await.unwrap().unwrap();
    assert!(started.elapsed() < Duration::from_secs(60));
    // What they would have to be told is not kept for them.
    assert!(idle.iter_mut().all(|watcher| matches!(watcher.take(), Err(Error::Compacted { .. }))));
}

/// Class: a transaction is seen in part, by a read or by a watcher.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_transaction_is_seen_whole_or_not_at_all() {
    let store = Store::<Text>::in_memory(Options::default());
    let done = Arc::new(AtomicBool::new(false));
    let mut readers = tokio::task::JoinSet::new();
    for reader in 0..4 {
        let (store, done) = (store.clone(), done.clone());
        readers.spawn(async move {
            let mut watcher = store.watch("/pair/", 1).unwrap();
            while !done.load(Ordering::Relaxed) {
                let back = if reader % 2 == 0 { None } else { Some(store.revision().saturating_sub(20).max(1)) };
                let query = Range { revision: back, ..Range::prefix("/pair/") };
                let values: Vec<_> =
                    store.range(&query).unwrap().entries.iter().map(|e| e.value.bytes.clone()).collect();
                assert!(values.is_empty() || values.len() == 3 && values.iter().all(|value| *value == values[0]));
                for pair in watcher.take().unwrap().chunk_by(|a, b| a.revision == b.revision) {
                    assert_eq!(pair.len(), 3, "events of one revision come together");
                }
                tokio::task::yield_now().await;
            }
        });
    }
    for number in 0..3000 {
        let ops = ["/pair/a", "/pair/b", "/pair/c"].map(|key| match number % 7 {
            6 => delete(key),
            _ => put(key, &number.to_string()),
        });
        store.commit(relaxed(ops.into())).await.unwrap();
    }
    done.store(true, Ordering::Relaxed);
    readers.join_all().await;
}

/// Class: reads at an old revision while that is being compacted return something in between.
#[test]
fn a_read_beside_a_compaction_is_exact_or_refused() {
    let store = Store::<Text>::in_memory(Options::default());
    let events = fill(&store, &mut StdRng::seed_from_u64(5), 400);
    let mut states: BTreeMap<Revision, BTreeMap<String, String>> = BTreeMap::from([(1, BTreeMap::new())]);
    for batch in events.chunk_by(|a, b| a.0 == b.0) {
        let mut state = states.last_key_value().unwrap().1.clone();
        for (_, key, value) in batch {
            match value {
                Some(value) => _ = state.insert(key.clone(), value.clone()),
                None => _ = state.remove(key),
            }
        }
        states.insert(batch[0].0, state);
    }
    let newest = store.revision();
    std::thread::scope(|scope| {
        for seed in 0..3 {
            let (store, states) = (&store, &states);
            scope.spawn(move || {
                let mut rng = StdRng::seed_from_u64(seed);
                for _ in 0..2000 {
                    let revision = rng.random_range(1..=newest);
                    let query = Range { revision: Some(revision), ..Range::prefix("") };
                    let listing = match store.range(&query) {
                        Ok(listing) => listing,
                        Err(Error::Compacted { .. }) => continue,
                        Err(other) => panic!("{other}"),
                    };
                    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
                    let found: BTreeMap<String, String> =
                        listing.entries.iter().map(|e| (e.key.to_string(), text(&e.value.bytes))).collect();
                    assert_eq!(found, states[&revision]);
                }
            });
        }
        for revision in 1..=newest {
            store.compact(revision).unwrap();
            std::thread::sleep(Duration::from_micros(50));
        }
    });
}

/// Class: a slow disk lets reads see what is not durable, or stalls them.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_slow_disk_delays_writers_and_nobody_else() {
    let disk = SimDisk::default();
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), Options::default()).unwrap();
    store.commit(txn(vec![put("/a", "old")])).await.unwrap();
    disk.set_sync_time(Duration::from_millis(400));
    let mut watcher = store.watch("", store.revision()).unwrap();
    let writer = store.clone();
    let started = Instant::now();
    let writing = tokio::spawn(async move { writer.commit(txn(vec![put("/a", "new")])).await });
    tokio::time::sleep(Duration::from_millis(100)).await;
    let before = Instant::now();
    for _ in 0..100 {
        assert_eq!(&*store.get("/a").unwrap().value.bytes, b"old");
        assert_eq!(store.range(&Range::prefix("")).unwrap().entries.len(), 1);
        assert!(watcher.take().unwrap().is_empty());
        assert_eq!(watcher.progress(), store.revision());
    }
    assert!(before.elapsed() < Duration::from_millis(200), "reads waited {:?}", before.elapsed());
    assert!(!writing.is_finished());
    writing.await.unwrap().unwrap();
    assert!(started.elapsed() >= Duration::from_millis(400));
    assert_eq!(&*store.get("/a").unwrap().value.bytes, b"new");
}

/// Class: the revision goes backward when the process dies while space is being reclaimed.
#[test]
fn the_revision_never_goes_back_over_a_kill_while_space_is_reclaimed() {
    let mut disk = SimDisk::default();
    let (mut newest, mut checkpoints) = (1, 0);
    for round in 0..60u64 {
        let store = Store::<Text>::open_disk(Arc::new(disk.clone()), tiny()).unwrap();
        assert!(store.revision() >= newest, "{} after {newest}", store.revision());
        for number in 0..40 + round % 7 {
            let key = format!("/k/{}", number % 3);
            // Deletions leave nothing behind that would tell the revision.
            let op = if number % 2 == 0 { put(&key, &"x".repeat(80)) } else { delete(&key) };
            newest = newest.max(commit(&store, Txn { ops: vec![op], ..Txn::default() }).unwrap());
        }
        checkpoints += disk.files().keys().filter(|name| name.contains("checkpoint")).count();
        disk = disk.kill();
    }
    assert!(checkpoints > 10, "{checkpoints} were caught with a checkpoint");
}

/// Class: what a client was refused happened nevertheless, or happened twice.
#[test]
fn a_refused_transaction_changes_nothing() {
    let store = Store::<Text>::in_memory(Options::default());
    commit(&store, txn(vec![put("/a", "1"), put("/b", "1")])).unwrap();
    let mut watcher = store.watch("", store.revision()).unwrap();
    let before = store.revision();
    let compares = vec![
        crate::Compare { key: "/a".to_owned(), expect: crate::Expect::Exists },
        crate::Compare { key: "/b".to_owned(), expect: crate::Expect::Absent },
    ];
    let outcome = block_on(store.commit(super::guarded(compares, vec![put("/a", "2"), delete("/b")]))).unwrap();
    assert!(matches!(outcome, Outcome::Failed { current } if current.iter().all(Option::is_some)));
    assert_eq!((store.revision(), take_all(&mut watcher).unwrap()), (before, Vec::new()));
}
