//! Snapshots of stores in use and at rest, what is wrong with a damaged one, and stores made of them.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so best by ending")]

use std::os::unix::fs::PermissionsExt as _;
use std::path::Path;
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::{Error, Op, Options, Range, Revision, Store, Txn, snapshot};

type Rows = Vec<(String, Bytes, [u64; 3], Option<std::time::SystemTime>)>;

fn rows(store: &Store<Bytes>, revision: Option<Revision>) -> Rows {
    let query = Range { revision, ..Range::prefix("") };
    let row = |entry: &std::sync::Arc<store::Entry<Bytes>>| {
        let numbers = [entry.create_revision, entry.mod_revision, entry.version];
        (entry.key.to_string(), entry.value.clone(), numbers, entry.expires())
    };
    store.range(&query).unwrap().entries.iter().map(row).collect()
}

fn put(key: String, value: String) -> Op {
    Op::Put { key, value: Bytes::from(value), ttl: None }
}

async fn commit(store: &Store<Bytes>, ops: Vec<Op>) {
    store.commit(Txn { ops, ..Txn::default() }).await.unwrap();
}

async fn filled(dir: &Path) -> Store<Bytes> {
    let store = Store::<Bytes>::open(dir, Options::default()).unwrap();
    for number in 0..700 {
        commit(&store, vec![put(format!("/k/{number:04}"), format!("value {number}"))]).await;
    }
    let hour = Some(Duration::from_secs(3600));
    commit(&store, vec![Op::Put { key: "/expires".to_owned(), value: Bytes::from_static(b"x"), ttl: hour }]).await;
    commit(&store, vec![Op::Delete { key: "/k/0003".to_owned() }]).await;
    store
}

#[tokio::test]
async fn a_store_restored_from_a_snapshot_has_all_that_it_says_and_later_revisions() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, file) = (folder.path().join("db"), folder.path().join("one.snapshot"));
    let store = filled(&dir).await;
    let taken = store.snapshot(&file).await.unwrap();
    let expected = rows(&store, None);
    assert_eq!((taken.revision, taken.keys), (store.revision(), 700));
    assert_eq!(taken.file_bytes, std::fs::metadata(&file).unwrap().len());
    assert_eq!(snapshot::verify(&file).unwrap(), taken);
    assert_eq!(std::fs::metadata(&file).unwrap().permissions().mode() & 0o777, 0o600);

    // What clients see after the snapshot is gone after the restore, and its revisions are not used again.
    commit(&store, vec![put("/later".to_owned(), "x".to_owned())]).await;
    let seen = store.revision();
    assert!(matches!(snapshot::restore(&file, &dir, 1000), Err(Error::Locked { .. })), "a store in use");
    store.shutdown().await;
    drop(store);
    let restored = snapshot::restore(&file, &dir, 1000).unwrap();
    assert!(restored.revision >= seen + 1000);
    assert_eq!(restored.snapshot, taken);
    let store = Store::<Bytes>::open(&dir, Options::default()).unwrap();
    assert_eq!(rows(&store, None), expected);
    assert!(store.revision() >= restored.revision);
    assert!(matches!(store.watch("/", seen), Err(Error::Compacted { .. })), "watchers have to list again");
    commit(&store, vec![put("/new".to_owned(), "x".to_owned())]).await;
    assert!(store.get("/new").unwrap().mod_revision > restored.revision);
    assert_eq!(std::fs::metadata(&dir).unwrap().permissions().mode() & 0o777, 0o700);

    // The old store is where it was said to be.
    let kept = Store::<Bytes>::open(&restored.kept.unwrap(), Options::default()).unwrap();
    assert!(kept.get("/later").is_some() && kept.revision() == seen);
}

#[tokio::test]
async fn a_restore_needs_no_old_store_and_survives_its_own_interruption() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, file) = (folder.path().join("db"), folder.path().join("one.snapshot"));
    let store = filled(&dir).await;
    store.snapshot(&file).await.unwrap();
    let elsewhere = folder.path().join("other");
    // Left by one that was interrupted.
    std::fs::create_dir(folder.path().join("other.restoring")).unwrap();
    std::fs::write(folder.path().join("other.restoring/0000000000000002.checkpoint"), "half").unwrap();
    let restored = snapshot::restore(&file, &elsewhere, 1_000_000_000).unwrap();
    assert_eq!((restored.kept, restored.revision), (None, store.revision() + 1_000_000_000));
    let other = Store::<Bytes>::open(&elsewhere, Options::default()).unwrap();
    assert_eq!(rows(&other, None), rows(&store, None));
}

#[tokio::test]
async fn a_damaged_old_store_can_be_replaced() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, file) = (folder.path().join("db"), folder.path().join("one.snapshot"));
    let store = filled(&dir).await;
    store.snapshot(&file).await.unwrap();
    let expected = rows(&store, None);
    store.shutdown().await;
    drop(store);
    let log = dir.join("0000000000000001.log");
    let mut bytes = std::fs::read(&log).unwrap();
    bytes[200] ^= 1;
    std::fs::write(&log, bytes).unwrap();
    assert!(matches!(Store::<Bytes>::open(&dir, Options::default()), Err(Error::Damaged { .. })));
    snapshot::restore(&file, &dir, 1000).unwrap();
    assert_eq!(rows(&Store::<Bytes>::open(&dir, Options::default()).unwrap(), None), expected);
}

#[tokio::test]
async fn a_snapshot_of_a_store_at_rest_is_the_same() {
    let folder = tempfile::tempdir().unwrap();
    let (dir, file) = (folder.path().join("db"), folder.path().join("one.snapshot"));
    let store = filled(&dir).await;
    let expected = rows(&store, None);
    assert!(matches!(snapshot::save(&dir, &file), Err(Error::Locked { .. })));
    store.shutdown().await;
    drop(store);
    let taken = snapshot::save(&dir, &file).unwrap();
    assert_eq!(snapshot::verify(&file).unwrap(), taken);
    snapshot::restore(&file, &folder.path().join("other"), 1).unwrap();
    let other = Store::<Bytes>::open(&folder.path().join("other"), Options::default()).unwrap();
    assert_eq!(rows(&other, None), expected);
    assert!(snapshot::save(&folder.path().join("none"), &file).is_err(), "no store, no snapshot");
    assert!(!folder.path().join("none").exists());
}

#[tokio::test]
async fn no_damage_to_a_snapshot_goes_unnoticed() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("one.snapshot");
    let store = Store::<Bytes>::in_memory(Options::default());
    for number in 0..5 {
        commit(&store, vec![put(format!("/{number}"), format!("value {number}"))]).await;
    }
    store.snapshot(&file).await.unwrap();
    let whole = std::fs::read(&file).unwrap();
    for len in 0..whole.len() {
        std::fs::write(&file, &whole[..len]).unwrap();
        assert!(matches!(snapshot::verify(&file), Err(Error::Damaged { .. })), "cut to {len}");
    }
    for at in 0..whole.len() {
        let mut bytes = whole.clone();
        bytes[at] ^= 1 << (at % 8);
        std::fs::write(&file, bytes).unwrap();
        assert!(matches!(snapshot::verify(&file), Err(Error::Damaged { .. })), "byte {at} flipped");
    }
    let refused = snapshot::restore(&file, &folder.path().join("db"), 1);
    assert!(matches!(refused, Err(Error::Damaged { .. })) && !folder.path().join("db").exists());
}

/// Each transaction writes the same number to two keys far apart, so a snapshot torn between transactions shows; and none of the
/// writers may have to wait while it is taken.
#[tokio::test(flavor = "multi_thread", worker_threads = 4)]
async fn a_snapshot_under_load_is_of_one_revision_and_holds_nobody_up() {
    let folder = tempfile::tempdir().unwrap();
    // What the snapshots are compared with has to be readable for that long.
    let hour = Duration::from_secs(3600);
    let kept = Options { history_age: hour, history_events: usize::MAX, history_bytes: u64::MAX, ..Options::default() };
    let store = Store::<Bytes>::in_memory(kept);
    for chunk in 0..200 {
        let ops = (0..250).map(|at| put(format!("/m/{chunk:03}/{at:03}"), "x".repeat(200))).collect();
        commit(&store, ops).await;
    }
    let stop = std::sync::Arc::new(std::sync::atomic::AtomicBool::new(false));
    let writer = {
        let (store, stop) = (store.clone(), stop.clone());
        tokio::spawn(async move {
            let (mut number, mut slowest) = (0_u64, Duration::ZERO);
            while !stop.load(std::sync::atomic::Ordering::Relaxed) {
                let (start, text) = (Instant::now(), number.to_string());
                commit(&store, vec![put("/a".to_owned(), text.clone()), put("/z".to_owned(), text)]).await;
                slowest = slowest.max(start.elapsed());
                number += 1;
            }
            (number, slowest)
        })
    };
    let mut revisions = Vec::new();
    let mut took = Duration::ZERO;
    for number in 0..5 {
        let file = folder.path().join(format!("{number}.snapshot"));
        let start = Instant::now();
        let taken = store.snapshot(&file).await.unwrap();
        took = took.max(start.elapsed());
        revisions.push(taken.revision);
        let dir = folder.path().join(format!("db-{number}"));
        snapshot::restore(&file, &dir, 1).unwrap();
        let copy = Store::<Bytes>::open(&dir, Options::default()).unwrap();
        assert_eq!(rows(&copy, None).len(), 50_002);
        let of = |key: &str| copy.get(key).map(|entry| (entry.value.clone(), entry.mod_revision));
        assert_eq!(of("/a"), of("/z"), "torn between transactions");
        // All that was committed until its revision is in it.
        assert_eq!(rows(&store, Some(taken.revision)), rows(&copy, None));
    }
    stop.store(true, std::sync::atomic::Ordering::Relaxed);
    let (commits, slowest) = writer.await.unwrap();
    assert!(revisions.is_sorted() && commits > 100, "{revisions:?} {commits}");
    // With all processors of a busy machine to share, this is far from what a stall would take.
    assert!(slowest < Duration::from_millis(500).max(took / 2), "{slowest:?} of {took:?}");
}
