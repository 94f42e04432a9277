//! Random histories with failing disks, killed processes and lost power, checked against what was acknowledged.

use std::collections::BTreeMap;
use std::io::ErrorKind;
use std::sync::Arc;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::sim::SimDisk;
use super::{Text, block_on, commit, delete, put, relaxed, tiny, txn};
use crate::{Durability, Error, Op, Options, Range, Revision, Store, Txn};

pub(super) type Contents = BTreeMap<String, String>;

pub(super) fn contents(store: &Store<Text>) -> Contents {
    let listing = store.range(&Range::prefix("")).unwrap();
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    listing.entries.iter().map(|entry| (entry.key.to_string(), text(&entry.value.bytes))).collect()
}

fn apply(contents: &Contents, ops: &[Op]) -> Contents {
    let mut contents = contents.clone();
    for op in ops {
        match op {
            Op::Put { key, value, .. } => _ = contents.insert(key.clone(), String::from_utf8(value.to_vec()).unwrap()),
            Op::Delete { key } => _ = contents.remove(key),
        }
    }
    contents
}

pub(super) fn random_txn(rng: &mut StdRng) -> Txn {
    let mut ops: Vec<Op> = Vec::new();
    for _ in 0..rng.random_range(1..4) {
        let key = format!("/k/{}", rng.random_range(0..6));
        if ops.iter().any(|op| op.key() == key) {
            continue;
        }
        let filler = "x".repeat(rng.random_range(0..80));
        ops.push(if rng.random_ratio(1, 4) {
            delete(&key)
        } else {
            put(&key, &format!("{}{filler}", rng.random::<u16>()))
        });
    }
    if rng.random_ratio(1, 3) { relaxed(ops) } else { txn(ops) }
}

/// What may be found after a restart.
pub(super) struct Expected {
    /// The contents after each acknowledged transaction since the last sync; the last is the newest.
    acknowledged: Vec<Contents>,
    /// Transactions refused since the newest was acknowledged: the disk may have got one of them nevertheless.
    refused: Vec<Vec<Op>>,
    newest_revision: Revision,
}

impl Expected {
    /// Of an empty store.
    pub(super) fn new() -> Self {
        Expected { acknowledged: vec![Contents::new()], refused: Vec::new(), newest_revision: 1 }
    }

    pub(super) fn newest(&self) -> &Contents {
        self.acknowledged.last().expect("there is at least the first")
    }

    pub(super) fn commit(&mut self, store: &Store<Text>, txn: Txn) {
        let (ops, durability) = (txn.ops.clone(), txn.durability);
        let after = apply(self.acknowledged.last().unwrap(), &ops);
        match commit(store, txn) {
            // Nothing changed, so nothing was written.
            Ok(revision) if revision == self.newest_revision => {}
            Ok(revision) => {
                assert!(revision > self.newest_revision);
                if durability == Durability::Synced {
                    self.acknowledged.clear();
                }
                self.newest_revision = revision;
                self.acknowledged.push(after);
                self.refused.clear();
            }
            Err(Error::Io { .. } | Error::NoSpace { .. }) => {
                // Not acknowledged, so not visible.
                assert_eq!(contents(store), *self.acknowledged.last().unwrap());
                self.refused.push(ops);
            }
            Err(other) => panic!("{other}"),
        }
    }

    pub(super) fn check(&mut self, store: &Store<Text>, power_lost: bool) {
        let found = contents(store);
        let newest = self.acknowledged.last().unwrap();
        let kept = if power_lost { self.acknowledged.contains(&found) } else { found == *newest };
        let refused = self.refused.iter().any(|ops| found == apply(newest, ops));
        assert!(kept || refused, "power lost: {power_lost}, found {found:?}, expected {newest:?}");
        assert!(store.revision() >= self.newest_revision, "the revision went backward");
        self.newest_revision = store.revision();
        self.acknowledged = vec![found];
        self.refused.clear();
    }
}

fn random_faults(rng: &mut StdRng) -> Vec<Option<ErrorKind>> {
    let kind = if rng.random() { ErrorKind::StorageFull } else { ErrorKind::Other };
    let quiet = rng.random_range(0..8);
    let failing = rng.random_range(1..6);
    std::iter::repeat_n(None, quiet).chain(std::iter::repeat_n(Some(kind), failing)).collect()
}

fn run(seed: u64) {
    let mut rng = StdRng::seed_from_u64(seed);
    let mut disk = SimDisk::default();
    let mut expected = Expected::new();
    for _ in 0..6 {
        let store = Store::open_disk(Arc::new(disk.clone()), tiny()).unwrap();
        expected.newest_revision = expected.newest_revision.max(store.revision());
        for _ in 0..rng.random_range(0..40) {
            if rng.random_ratio(1, 15) {
                disk.set_faults(random_faults(&mut rng));
            }
            expected.commit(&store, random_txn(&mut rng));
        }
        let power_lost = match rng.random_range(0..3) {
            0 => {
                disk.set_faults([]);
                block_on(store.shutdown());
                disk = disk.kill();
                false
            }
            1 => {
                disk = disk.kill();
                false
            }
            _ => {
                disk = disk.power_off(&mut rng);
                true
            }
        };
        drop(store);
        let reopened =
            Store::open_disk(Arc::new(disk.clone()), tiny()).unwrap_or_else(|error| panic!("seed {seed}: {error}"));
        expected.check(&reopened, power_lost);
    }
}

#[test]
fn nothing_acknowledged_is_lost() {
    histories::rounds::each("crash: random histories", 300, run);
}

#[test]
fn a_full_disk_refuses_writes_until_there_is_room() {
    let disk = SimDisk::default();
    let store = Store::open_disk(Arc::new(disk.clone()), Options::default()).unwrap();
    commit(&store, txn(vec![put("/a", "one")])).unwrap();
    disk.set_faults(std::iter::repeat_n(Some(ErrorKind::StorageFull), 50));
    for _ in 0..2 {
        assert!(matches!(commit(&store, txn(vec![put("/a", "two")])), Err(Error::NoSpace { .. })));
        assert_eq!(&*store.get("/a").unwrap().value.bytes, b"one");
    }
    disk.set_faults([]);
    commit(&store, txn(vec![put("/b", "three")])).unwrap();
    let reopened = Store::<Text>::open_disk(Arc::new(disk.kill()), Options::default()).unwrap();
    let expected = [("/a", "one"), ("/b", "three")].map(|(key, value)| (key.to_owned(), value.to_owned()));
    assert_eq!(contents(&reopened), Contents::from(expected));
}

#[test]
fn the_revision_survives_the_deletion_of_everything() {
    let disk = SimDisk::default();
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), tiny()).unwrap();
    let mut newest = 1;
    for _ in 0..200 {
        commit(&store, txn(vec![put("/a", &"x".repeat(100))])).unwrap();
        newest = commit(&store, txn(vec![delete("/a")])).unwrap();
    }
    store.compact(newest).unwrap();
    block_on(store.shutdown());
    let reopened = Store::<Text>::open_disk(Arc::new(disk.kill()), tiny()).unwrap();
    assert_eq!(reopened.revision(), newest);
}

#[test]
fn space_is_reclaimed_while_commits_go_on() {
    let disk = SimDisk::default();
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), tiny()).unwrap();
    let mut largest = 0;
    for round in 0..2000 {
        commit(&store, txn(vec![put(&format!("/k/{}", round % 10), &format!("{round:0>100}"))])).unwrap();
        largest = largest.max(disk.total_bytes());
    }
    // 300 kB were written; the live data are 1.5 kB, and the background thread may be some commits late.
    assert!(largest < 60_000, "{largest} bytes");
    let before = contents(&store);
    assert_eq!(contents(&Store::open_disk(Arc::new(disk.kill()), tiny()).unwrap()), before);
}

#[test]
fn relaxed_writes_are_synced_in_time() {
    let disk = SimDisk::default();
    let options = Options { relaxed_flush: Duration::from_millis(30), ..Options::default() };
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), options.clone()).unwrap();
    // The first write after opening is always synced.
    commit(&store, relaxed(vec![put("/a", "zero")])).unwrap();
    let syncs = disk.syncs();
    commit(&store, relaxed(vec![put("/a", "one")])).unwrap();
    commit(&store, relaxed(vec![put("/a", "two")])).unwrap();
    assert_eq!(disk.syncs(), syncs);
    std::thread::sleep(Duration::from_millis(200));
    assert_eq!(disk.syncs(), syncs + 1);
    let mut nothing_unsynced = StdRng::seed_from_u64(1);
    let reopened = Store::<Text>::open_disk(Arc::new(disk.power_off(&mut nothing_unsynced)), options).unwrap();
    assert_eq!(&*reopened.get("/a").unwrap().value.bytes, b"two");
}
