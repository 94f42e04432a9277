//! Keys that go away by themselves.

use std::sync::Arc;
use std::time::{Duration, Instant};

use super::sim::SimDisk;
use super::{Text, block_on, commit, put, txn};
use crate::clock::{Clock, Expiry};
use crate::{Change, Durability, Op, Options, Store, Txn};

fn quick() -> Options {
    Options { expiry_slack: Duration::from_millis(20), ..Options::default() }
}

fn put_for(key: &str, ttl: Duration) -> Op {
    let Op::Put { key, value, .. } = put(key, "x") else { unreachable!() };
    Op::Put { key, value, ttl: Some(ttl) }
}

fn wait_until_gone(store: &Store<Text>, key: &str) {
    let start = Instant::now();
    while store.get(key).is_some() {
        assert!(start.elapsed() < Duration::from_secs(10), "{key} does not expire");
        std::thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn a_key_expires_in_time_and_watchers_see_it() {
    let store = Store::<Text>::in_memory(quick());
    let start = Instant::now();
    commit(&store, txn(vec![put_for("/a", Duration::from_millis(100)), put("/b", "x")])).unwrap();
    let mut watcher = store.watch("/", store.revision()).unwrap();
    let events = block_on(watcher.next()).unwrap();
    assert!(start.elapsed() >= Duration::from_millis(100), "too early");
    assert_eq!(events.len(), 1);
    assert!(
        matches!(&events[0].change, Change::Delete(tombstone) if &*tombstone.key == "/a" && tombstone.value.deleted)
    );
    assert_eq!((events[0].revision, store.revision()), (3, 3));
    assert!(store.get("/b").is_some());
}

#[test]
fn a_later_put_sets_the_time_anew() {
    let store = Store::<Text>::in_memory(quick());
    let short = Duration::from_millis(80);
    commit(&store, txn(vec![put_for("/kept", short), put_for("/longer", short), put_for("/gone", short)])).unwrap();
    commit(&store, txn(vec![put("/kept", "y"), put_for("/longer", Duration::from_secs(3600))])).unwrap();
    wait_until_gone(&store, "/gone");
    std::thread::sleep(short);
    assert!(store.get("/kept").unwrap().expires().is_none());
    assert!(store.get("/longer").unwrap().expires().is_some());
}

#[test]
fn many_go_in_few_writes_a_revision_each() {
    let disk = SimDisk::default();
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), quick()).unwrap();
    // The first write after opening is synced.
    commit(&store, txn(vec![put("/first", "x")])).unwrap();
    let ops = (0..1000).map(|number| put_for(&format!("/{number}"), Duration::from_millis(150))).collect();
    let before = commit(&store, txn(ops)).unwrap();
    let mut watcher = store.watch("/", before).unwrap();
    let (mut revision, mut seen) = (before, 0);
    let syncs = disk.syncs();
    while seen < 1000 {
        for event in block_on(watcher.next()).unwrap() {
            assert_eq!(event.revision, revision + 1, "one revision per key");
            revision = event.revision;
            seen += 1;
        }
    }
    assert!(disk.syncs() - syncs <= 1, "deletions need not be synced");
    assert_eq!(store.revision(), before + 1000);
}

#[test]
fn expiry_survives_reopening_and_checkpoints() {
    let disk = SimDisk::default();
    let options = Options { segment_bytes: 600, garbage_bytes: 1200, ..quick() };
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), options.clone()).unwrap();
    commit(
        &store,
        txn(vec![put_for("/soon", Duration::from_millis(400)), put_for("/late", Duration::from_secs(3600))]),
    )
    .unwrap();
    let expires = store.get("/late").unwrap().expires();
    // Enough garbage for checkpoints.
    for round in 0..300 {
        commit(&store, txn(vec![put("/garbage", &format!("{round:0>100}"))])).unwrap();
    }
    block_on(store.shutdown());
    let disk = disk.kill();
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), options.clone()).unwrap();
    assert_eq!(store.get("/late").unwrap().expires(), expires);
    wait_until_gone(&store, "/soon");
    block_on(store.shutdown());
    let store = Store::<Text>::open_disk(Arc::new(disk.kill()), options).unwrap();
    assert!(store.get("/soon").is_none() && store.get("/late").is_some());
}

#[test]
fn a_clock_that_was_set_back_prolongs_no_life() {
    const YEAR_MS: u64 = 365 * 86_400_000;
    let now_ms = crate::clock::system_ms();
    let disk = SimDisk::default();
    let store = Store::<Text>::open_disk_at(Arc::new(disk.clone()), quick(), now_ms + YEAR_MS).unwrap();
    commit(&store, txn(vec![put_for("/a", Duration::from_millis(300))])).unwrap();
    block_on(store.shutdown());
    let store = Store::<Text>::open_disk_at(Arc::new(disk.kill()), quick(), now_ms).unwrap();
    assert!(store.get("/a").is_some());
    wait_until_gone(&store, "/a");
}

#[test]
fn a_board_without_a_clock_goes_on_from_the_newest_moment_that_is_known() {
    let written = Expiry::new(1_700_000_000_000, Duration::from_secs(3600));
    let clock = Clock::starting(0, written.written_ms());
    let left = clock.instant_of(written.at_ms).unwrap().duration_since(Instant::now());
    assert!(left <= Duration::from_secs(3600) && left > Duration::from_secs(3590), "{left:?}");
    // And no time is too long to be said.
    assert_eq!(Expiry::new(1_700_000_000_000, Duration::MAX).at_ms, u64::MAX);
    let _ = Expiry::new(0, Duration::MAX).at();
}

#[test]
fn a_full_disk_delays_expiry_only() {
    let disk = SimDisk::default();
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), quick()).unwrap();
    commit(&store, txn(vec![put_for("/a", Duration::from_millis(50))])).unwrap();
    disk.set_faults(std::iter::repeat_n(Some(std::io::ErrorKind::StorageFull), 1000));
    std::thread::sleep(Duration::from_millis(200));
    assert!(store.get("/a").is_some(), "what could not be written must not be visible");
    disk.set_faults([]);
    wait_until_gone(&store, "/a");
}

#[test]
fn an_expired_key_can_be_deleted_by_hand_first() {
    let store = Store::<Text>::in_memory(quick());
    commit(&store, txn(vec![put_for("/a", Duration::from_millis(60))])).unwrap();
    let gone = Txn { ops: vec![super::delete("/a")], durability: Durability::Relaxed, ..Txn::default() };
    let revision = commit(&store, gone).unwrap();
    std::thread::sleep(Duration::from_millis(150));
    assert_eq!(store.revision(), revision, "nothing is left to expire");
}
