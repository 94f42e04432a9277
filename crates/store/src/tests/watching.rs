//! Watches and commits under concurrency.

use std::sync::Arc;
use std::time::Duration;

use super::sim::SimDisk;
use super::{Text, put, relaxed, txn};
use crate::{Error, Options, Range, Store};

#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn watchers_see_every_change_once_and_in_order() {
    const WRITERS: usize = 8;
    const WRITES: usize = 200;
    let store = Store::<Text>::in_memory(Options::default());
    let mut watching = tokio::task::JoinSet::new();
    for prefix in ["/w/", "/w/3/", "", "/w/5"].into_iter().cycle().take(40) {
        let expected = if prefix.len() > 3 { WRITES } else { WRITERS * WRITES };
        // Some start in the midst of things.
        let mut watcher = store.watch(prefix, store.revision()).unwrap();
        watching.spawn(async move {
            let (mut seen, mut revision) = (0, 0);
            let mut versions = std::collections::HashMap::new();
            while seen < expected {
                for event in watcher.next().await.unwrap() {
                    assert!(event.revision > revision);
                    revision = event.revision;
                    let version = versions.entry(event.key().to_owned()).or_insert(0);
                    *version += 1;
                    assert_eq!(event.entry().version, *version);
                    seen += 1;
                }
                assert!(watcher.progress() >= revision);
            }
            assert_eq!(seen, expected);
        });
    }
    let mut writing = tokio::task::JoinSet::new();
    for writer in 0..WRITERS {
        let store = store.clone();
        writing.spawn(async move {
            for _ in 0..WRITES {
                store.commit(relaxed(vec![put(&format!("/w/{writer}/key"), "x")])).await.unwrap();
            }
        });
    }
    writing.join_all().await;
    tokio::time::timeout(Duration::from_secs(20), watching.join_all()).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_listing_and_the_watch_after_it_miss_nothing() {
    let store = Store::<Text>::in_memory(Options::default());
    let writer = store.clone();
    let writing = tokio::spawn(async move {
        for number in 0..1000 {
            writer.commit(txn(vec![put(&format!("/n/{number:04}"), "x")])).await.unwrap();
        }
    });
    for _ in 0..50 {
        let listing = store.range(&Range::prefix("/n/")).unwrap();
        let mut watcher = store.watch("/n/", listing.revision).unwrap();
        if listing.entries.len() < 1000 {
            let next = watcher.next().await.unwrap();
            assert_eq!(next[0].key(), format!("/n/{:04}", listing.entries.len()));
        }
        tokio::task::yield_now().await;
    }
    writing.await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn one_sync_serves_many_commits() {
    let disk = SimDisk::default();
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), Options::default()).unwrap();
    disk.set_sync_time(Duration::from_millis(5));
    let before = disk.syncs();
    let mut commits = tokio::task::JoinSet::new();
    for number in 0..200 {
        let store = store.clone();
        commits.spawn(async move { store.commit(txn(vec![put(&format!("/{number}"), "x")])).await.unwrap() });
    }
    commits.join_all().await;
    let syncs = disk.syncs() - before;
    assert!(syncs <= 20, "{syncs} syncs for 200 commits");
}

#[tokio::test]
async fn a_watcher_that_falls_behind_is_told() {
    let options = Options { history_events: 10, ..Options::default() };
    let store = Store::<Text>::in_memory(options);
    let mut slow = store.watch("/", 1).unwrap();
    let mut elsewhere = store.watch("/other/", 1).unwrap();
    for _ in 0..30 {
        store.commit(txn(vec![put("/a", "x")])).await.unwrap();
    }
    // The history is trimmed after the acknowledgement.
    store.commit(txn(vec![])).await.unwrap();
    assert!(matches!(slow.next().await, Err(Error::Compacted { .. })));
    assert!(matches!(store.watch("/", 1), Err(Error::Compacted { .. })));
    // What happened was none of its business.
    store.commit(txn(vec![put("/other/b", "x")])).await.unwrap();
    assert_eq!(elsewhere.next().await.unwrap().len(), 1);
}

#[tokio::test]
async fn shutdown_ends_watches_and_commits_but_not_reads() {
    let store = Store::<Text>::in_memory(Options::default());
    store.commit(txn(vec![put("/a", "x")])).await.unwrap();
    let mut watcher = store.watch_key("/a", 1).unwrap();
    assert_eq!(watcher.next().await.unwrap().len(), 1);
    let waiting = tokio::spawn(async move { watcher.next().await.map(|_| ()) });
    tokio::task::yield_now().await;
    store.shutdown().await;
    assert!(matches!(waiting.await.unwrap(), Err(Error::Closed)));
    assert!(matches!(store.commit(txn(vec![put("/a", "y")])).await, Err(Error::Closed)));
    assert!(store.get("/a").is_some());
}

#[tokio::test]
async fn the_quota_refuses_growth_only() {
    let store = Store::<Text>::in_memory(Options { quota_bytes: 100, ..Options::default() });
    store.commit(txn(vec![put("/a", &"x".repeat(90))])).await.unwrap();
    assert!(matches!(store.commit(txn(vec![put("/b", &"x".repeat(20))])).await, Err(Error::QuotaExceeded { .. })));
    store.commit(txn(vec![put("/a", &"x".repeat(10))])).await.unwrap();
    store.commit(txn(vec![put("/b", &"x".repeat(20))])).await.unwrap();
}
