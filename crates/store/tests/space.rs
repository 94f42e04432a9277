//! Running out of the quota, and giving space back without holding anybody up.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so best by ending")]

use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::{Error, Op, Options, Range, Store, Txn};

fn put(key: String, bytes: usize) -> Op {
    Op::Put { key, value: Bytes::from(vec![b'x'; bytes]), ttl: None }
}

async fn commit(store: &Store<Bytes>, ops: Vec<Op>) -> Result<(), Error> {
    store.commit(Txn { ops, ..Txn::default() }).await.map(|_| ())
}

#[tokio::test]
async fn a_full_store_says_so_and_stays_of_use() {
    let directory = tempfile::tempdir().unwrap();
    let options = Options { quota_bytes: 10_000, ..Options::default() };
    let store = Store::<Bytes>::open(directory.path(), options.clone()).unwrap();
    let mut stored = 0;
    let refused = loop {
        match commit(&store, vec![put(format!("/{stored}"), 1000)]).await {
            Ok(()) => stored += 1,
            Err(error) => break error,
        }
    };
    assert!(matches!(refused, Error::QuotaExceeded { quota: 10_000, .. }), "{refused}");
    assert_eq!(refused.to_string(), "store is full: 10020 bytes would exceed the quota of 10000 bytes");
    assert_eq!((stored, store.range(&Range::prefix("")).unwrap().entries.len()), (9, 9));
    let mut watcher = store.watch("/", store.revision()).unwrap();

    // After a restart with an even smaller one it opens, and what makes it smaller is taken.
    store.shutdown().await;
    assert!(watcher.next().await.is_err());
    drop((store, watcher));
    let store = Store::<Bytes>::open(directory.path(), Options { quota_bytes: 5_000, ..options }).unwrap();
    assert_eq!(store.range(&Range::prefix("")).unwrap().entries.len(), 9);
    let mut watcher = store.watch("/", store.revision()).unwrap();
    assert!(matches!(commit(&store, vec![put("/0".to_owned(), 1001)]).await, Err(Error::QuotaExceeded { .. })));
    commit(&store, vec![put("/0".to_owned(), 999)]).await.unwrap();
    for number in 1..6 {
        commit(&store, vec![Op::Delete { key: format!("/{number}") }]).await.unwrap();
    }
    commit(&store, vec![put("/new".to_owned(), 500)]).await.unwrap();
    let mut seen = 0;
    while seen < 7 {
        seen += watcher.next().await.unwrap().len();
    }
}

fn has(directory: &Path, suffix: &str) -> bool {
    let files = std::fs::read_dir(directory).unwrap().flatten();
    files.filter_map(|file| file.file_name().into_string().ok()).any(|name| name.ends_with(suffix))
}

fn size(directory: &Path) -> u64 {
    std::fs::read_dir(directory).unwrap().flatten().filter_map(|file| file.metadata().ok()).map(|file| file.len()).sum()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn commits_do_not_wait_for_the_reclaim_of_space() {
    const KEYS: usize = 20_000;
    let directory = tempfile::tempdir().unwrap();
    let options = Options { garbage_bytes: 1 << 20, segment_bytes: 8 << 20, ..Options::default() };
    let store = Store::<Bytes>::open(directory.path(), options).unwrap();
    let (mut written, mut during, mut largest) = (0_u64, Vec::new(), 0);
    let start = Instant::now();
    // Until enough commits have met a checkpoint that is being written.
    for round in 0.. {
        for chunk in 0..KEYS / 500 {
            let ops = (0..500).map(|at| put(format!("/k/{:05}", chunk * 500 + at), 2000)).collect();
            commit(&store, ops).await.unwrap();
            written += 500 * 2000;
            while has(directory.path(), ".checkpoint.tmp") && during.len() < 200 {
                let before = Instant::now();
                commit(&store, vec![put("/one".to_owned(), 100)]).await.unwrap();
                during.push(before.elapsed());
            }
            largest = largest.max(size(directory.path()));
        }
        if round > 2 && during.len() >= 50 {
            break;
        }
        assert!(start.elapsed() < Duration::from_secs(120), "{} commits beside checkpoints", during.len());
    }
    during.sort_unstable();
    let (median, slowest) = (during[during.len() / 2], during[during.len() - 1]);
    // Writing all of it takes longer than that, and a commit that waited for it would, too.
    assert!(median < Duration::from_millis(100) && slowest < Duration::from_secs(2), "{median:?} {slowest:?}");
    // 40 MB are live; twice that and a checkpoint in the making may be there at once.
    assert!(written > 150_000_000 && largest < 200_000_000, "{written} written, {largest} at most on disk");
}
