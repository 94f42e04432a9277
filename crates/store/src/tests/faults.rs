//! The same work again and again, with the disk failing, or the machine dying, at each of its operations in turn.

use std::io::ErrorKind;
use std::sync::Arc;

use histories::rounds;
use rand::SeedableRng as _;
use rand::rngs::StdRng;

use super::crash::{Expected, contents, random_txn};
use super::sim::SimDisk;
use super::{Text, tiny};
use crate::{Error, Store};

const TRANSACTIONS: usize = 25;

/// Random transactions, some relaxed, through some segments and checkpoints. Returns what may be found afterwards.
fn work(disk: &SimDisk, seed: u64) -> Option<Expected> {
    let mut expected = Expected::new();
    let store = match Store::<Text>::open_disk(Arc::new(disk.clone()), tiny()) {
        Ok(store) => store,
        Err(Error::Io { .. } | Error::NoSpace { .. }) => return None,
        Err(other) => panic!("{other}"),
    };
    let mut rng = StdRng::seed_from_u64(seed);
    for _ in 0..TRANSACTIONS {
        expected.commit(&store, random_txn(&mut rng));
    }
    // Reads are served to the end, whatever the disk does.
    assert_eq!(&contents(&store), expected.newest());
    Some(expected)
}

/// How many operations of the disk that takes.
fn operations(seed: u64) -> usize {
    let disk = SimDisk::default();
    work(&disk, seed).unwrap();
    disk.operations()
}

fn reopened(disk: &SimDisk, expected: Option<Expected>, power_lost: bool, what: &str) {
    let store =
        Store::<Text>::open_disk(Arc::new(disk.clone()), tiny()).unwrap_or_else(|error| panic!("{what}: {error}"));
    expected.unwrap_or_else(Expected::new).check(&store, power_lost);
}

/// Some operations are those of the thread that reclaims space, so that two runs are not quite the same.
#[test]
fn the_machine_dies_at_every_operation() {
    rounds::each("faults: death at every operation", 3, |seed| {
        for at in 0..operations(seed) {
            let disk = SimDisk::default();
            disk.crash_after(at);
            let expected = work(&disk, seed);
            reopened(&disk.kill(), expected, false, &format!("killed at operation {at}"));
            let disk = SimDisk::default();
            disk.crash_after(at);
            let expected = work(&disk, seed);
            let mut rng = StdRng::seed_from_u64(seed + at as u64);
            reopened(&disk.power_off(&mut rng), expected, true, &format!("power off at operation {at}"));
        }
    });
}

#[test]
fn every_operation_fails_once() {
    rounds::each("faults: every operation fails once", 3, |seed| {
        for at in 0..operations(seed) {
            for kind in [ErrorKind::StorageFull, ErrorKind::Other] {
                let disk = SimDisk::default();
                disk.set_faults(std::iter::repeat_n(None, at).chain([Some(kind)]));
                let expected = work(&disk, seed);
                let mut rng = StdRng::seed_from_u64(seed + at as u64);
                let power_lost = kind == ErrorKind::Other;
                let left = if power_lost { disk.power_off(&mut rng) } else { disk.kill() };
                reopened(&left, expected, power_lost, &format!("{kind} at operation {at}"));
            }
        }
    });
}

#[test]
fn every_operation_fails_from_some_point_on() {
    rounds::each("faults: every later operation fails", 2, |seed| {
        for at in 0..operations(seed) {
            let disk = SimDisk::default();
            disk.set_faults(std::iter::repeat_n(None, at).chain(std::iter::repeat_n(Some(ErrorKind::Other), 500)));
            let expected = work(&disk, seed);
            reopened(&disk.kill(), expected, false, &format!("failing from operation {at} on"));
        }
    });
}

/// A disk that cannot be read is an error, and no reason to begin anew.
#[test]
fn a_read_that_fails_is_told_and_changes_nothing() {
    let disk = SimDisk::default();
    let expected = work(&disk, 1);
    let disk = disk.kill();
    let before = disk.files();
    let mut opened = false;
    for at in 0..100 {
        disk.set_read_faults(std::iter::repeat_n(None, at).chain([Some(ErrorKind::Other)]));
        match Store::<Text>::open_disk(Arc::new(disk.clone()), tiny()).map(|_| ()) {
            Err(Error::Io { action, .. }) => assert!(["read", "list"].contains(&action), "{action}"),
            Ok(()) => opened = true,
            Err(other) => panic!("{other}"),
        }
        if opened {
            break;
        }
        assert!(disk.files() == before, "a failed open has changed something");
    }
    assert!(opened, "there are not that many reads");
    disk.set_read_faults([]);
    reopened(&disk.kill(), expected, false, "after failed reads");
}
