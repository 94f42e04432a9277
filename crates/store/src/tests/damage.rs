//! Every byte of a small log cut off or flipped.

use std::collections::BTreeMap;
use std::sync::Arc;

use super::sim::SimDisk;
use super::{Text, commit, delete, put, tiny, txn};
use crate::recovery::{Recovered, recover};
use crate::{Error, Options, Store};

type Contents = BTreeMap<String, String>;

fn contents(recovered: &Recovered) -> Contents {
    let text = |bytes: &[u8]| String::from_utf8(bytes.to_vec()).unwrap();
    recovered.entries.iter().map(|(key, loaded)| (key.to_string(), text(&loaded.bytes))).collect()
}

struct Sample {
    name: String,
    bytes: Vec<u8>,
    /// The contents and the file's length after each record, starting with the bare header.
    states: Vec<(usize, Contents)>,
}

impl Sample {
    fn new() -> Self {
        let disk = SimDisk::default();
        let store = Store::<Text>::open_disk(Arc::new(disk.clone()), Options::default()).unwrap();
        let name = disk.files().into_keys().next().unwrap();
        let mut states = Vec::new();
        let mut note = |disk: &SimDisk| {
            let recovered = recover(&SimDisk::with_files(disk.files())).unwrap();
            states.push((disk.files()[&name].len(), contents(&recovered)));
        };
        note(&disk);
        let ops = [
            vec![put("/a", "one")],
            vec![put("/a", "two"), put("/b", "three")],
            vec![delete("/a")],
            vec![put("/c", "")],
        ];
        for ops in ops {
            commit(&store, txn(ops)).unwrap();
            note(&disk);
        }
        let bytes = disk.files().remove(&name).unwrap();
        Sample { name, bytes, states }
    }

    fn recover(&self, bytes: Vec<u8>) -> Result<Recovered, Error> {
        recover(&SimDisk::with_files([(self.name.clone(), bytes)].into()))
    }

    /// The newest state whose records all lie before `len`.
    fn state_at(&self, len: usize) -> &(usize, Contents) {
        self.states.iter().rev().find(|(end, _)| *end <= len).unwrap()
    }
}

#[test]
fn a_log_cut_anywhere_opens_with_what_was_whole() {
    let sample = Sample::new();
    for len in 0..=sample.bytes.len() {
        let result = sample.recover(sample.bytes[..len].to_vec());
        if len < sample.states[0].0 {
            assert!(matches!(result, Err(Error::Damaged { offset: 0, .. })), "cut to {len}");
            continue;
        }
        let (end, expected) = sample.state_at(len);
        let recovered = result.unwrap_or_else(|error| panic!("cut to {len}: {error}"));
        assert_eq!(
            (contents(&recovered), recovered.tail.unwrap().len),
            (expected.clone(), *end as u64),
            "cut to {len}"
        );
    }
}

#[test]
fn a_flipped_bit_is_refused_or_cut_never_believed() {
    let sample = Sample::new();
    let last = sample.states[sample.states.len() - 2].0;
    for at in 0..sample.bytes.len() {
        for bit in 0..8 {
            let mut bytes = sample.bytes.clone();
            bytes[at] ^= 1 << bit;
            let start = if at < sample.states[0].0 { 0 } else { sample.state_at(at).0 };
            match sample.recover(bytes) {
                // Only the last record cannot be told from one that was being written.
                Ok(recovered) => {
                    assert!(at >= last, "byte {at} bit {bit} went unnoticed");
                    assert_eq!(contents(&recovered), sample.states[sample.states.len() - 2].1);
                }
                Err(Error::Damaged { path, offset, .. }) => {
                    assert_eq!((path.file_name().unwrap().to_str().unwrap(), offset), (&*sample.name, start as u64));
                }
                Err(other) => panic!("byte {at} bit {bit}: {other}"),
            }
        }
    }
}

#[test]
fn garbage_after_a_crash_is_not_damage_though_whole_records_follow() {
    // Two relaxed transactions whose pages reached the disk in the wrong order.
    let disk = SimDisk::default();
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), Options::default()).unwrap();
    commit(&store, txn(vec![put("/a", "one")])).unwrap();
    let (name, durable) = disk.files().into_iter().next().unwrap();
    commit(&store, super::relaxed(vec![put("/b", "two")])).unwrap();
    commit(&store, super::relaxed(vec![put("/c", "three")])).unwrap();
    let mut bytes = disk.files().remove(&name).unwrap();
    bytes[durable.len() + 20] ^= 1;
    let recovered = recover(&SimDisk::with_files([(name, bytes)].into())).unwrap();
    assert_eq!(contents(&recovered), Contents::from([("/a".to_owned(), "one".to_owned())]));
    assert_eq!(recovered.tail.unwrap().len, durable.len() as u64);
}

#[test]
fn a_missing_segment_is_named() {
    let disk = SimDisk::default();
    let options = Options { segment_bytes: 64, ..Options::default() };
    let store = Store::<Text>::open_disk(Arc::new(disk.clone()), options).unwrap();
    for _ in 0..3 {
        commit(&store, txn(vec![put("/a", "one")])).unwrap();
    }
    let mut files = disk.files();
    let second = files.keys().nth(1).unwrap().clone();
    files.remove(&second);
    match recover(&SimDisk::with_files(files)).map(|_| ()) {
        Err(Error::Damaged { path, .. }) => assert!(path.ends_with(second)),
        other => panic!("{other:?}"),
    }
}

/// A directory with a checkpoint and some segments, as a killed process leaves it, and what is in it.
fn checkpointed() -> (BTreeMap<String, Vec<u8>>, Contents) {
    for round in 0..100 {
        let disk = SimDisk::default();
        let store = Store::<Text>::open_disk(Arc::new(disk.clone()), tiny()).unwrap();
        for number in 0..60 + round {
            commit(&store, txn(vec![put(&format!("/k/{}", number % 4), &format!("{number:0>60}"))])).unwrap();
        }
        let left = disk.kill();
        // Only what is used: a file that is about to be removed or replaced may well be damaged.
        let obsolete = recover(&left).unwrap().obsolete;
        let files: BTreeMap<_, _> = left.files().into_iter().filter(|(name, _)| !obsolete.contains(name)).collect();
        let recovered = recover(&SimDisk::with_files(files.clone())).unwrap();
        if recovered.checkpoint.is_some() && !recovered.closed.is_empty() && recovered.tail.as_ref().unwrap().len > 200
        {
            return (files, contents(&recovered));
        }
    }
    panic!("no round ended with a checkpoint and two segments");
}

/// Recovers what is left when `name` has become `bytes`. It has to be refused, naming that file, unless it is the `tail`.
fn refused_or_cut(files: &BTreeMap<String, Vec<u8>>, name: &str, bytes: Vec<u8>, what: &str) -> Option<Recovered> {
    let tail = files.keys().rfind(|name| name.ends_with(".log")).unwrap();
    let mut files = files.clone();
    files.insert(name.to_owned(), bytes);
    match recover(&SimDisk::with_files(files)) {
        Ok(recovered) if name == tail => Some(recovered),
        Ok(_) => panic!("{what} went unnoticed"),
        Err(Error::Damaged { path, .. }) => {
            // A segment that ends early is noticed there, or where the next one says how long it should be.
            assert!(path.ends_with(name), "{what}, but {} is said to be damaged", path.display());
            None
        }
        Err(other) => panic!("{what}: {other}"),
    }
}

#[test]
fn no_damage_of_a_checkpoint_or_a_closed_segment_goes_unnoticed() {
    let (files, _) = checkpointed();
    let tail = files.keys().rfind(|name| name.ends_with(".log")).unwrap();
    assert!(files.len() >= 3);
    for (name, bytes) in files.iter().filter(|(name, _)| *name != tail) {
        for at in 0..bytes.len() {
            refused_or_cut(&files, name, bytes[..at].to_vec(), &format!("{name} cut to {at}"));
            for bit in 0..8 {
                let mut bytes = bytes.clone();
                bytes[at] ^= 1 << bit;
                refused_or_cut(&files, name, bytes, &format!("{name}, byte {at}, bit {bit}"));
            }
        }
        // Sectors that read as zeros, or as another file's.
        for at in (0..bytes.len()).step_by(64) {
            let end = (at + 64).min(bytes.len());
            let mut zeros = bytes.clone();
            zeros[at..end].fill(0);
            refused_or_cut(&files, name, zeros, &format!("{name}, zeros from {at}"));
            let mut foreign = bytes.clone();
            let other = &files[tail];
            foreign[at..end].iter_mut().zip(other.iter()).for_each(|(byte, other)| *byte = *other);
            if foreign != *bytes {
                refused_or_cut(&files, name, foreign, &format!("{name}, another file's bytes from {at}"));
            }
        }
    }
}

#[test]
fn what_was_cut_off_stays_cut_off() {
    let (files, _) = checkpointed();
    let tail = files.keys().rfind(|name| name.ends_with(".log")).unwrap();
    let header = crate::record::HEADER_LEN;
    for len in header..=files[tail].len() {
        let mut files = files.clone();
        files.get_mut(tail).unwrap().truncate(len);
        let disk = SimDisk::with_files(files);
        let before = contents(&recover(&disk).unwrap());
        let store = Store::<Text>::open_disk(Arc::new(disk.clone()), tiny()).unwrap();
        commit(&store, txn(vec![put("/new", "x")])).unwrap();
        let mut after = before;
        after.insert("/new".to_owned(), "x".to_owned());
        assert_eq!(contents(&recover(&disk.kill()).unwrap()), after, "cut to {len}");
    }
}

#[test]
fn garbage_behind_the_end_is_cut_off() {
    let (files, expected) = checkpointed();
    let tail = files.keys().rfind(|name| name.ends_with(".log")).unwrap();
    let whole = &files[tail];
    for len in 1..200 {
        for garbage in [vec![0; len], vec![0xff; len], whole[whole.len() - len..].to_vec()] {
            let bytes = [whole.as_slice(), &garbage].concat();
            // A copy of the last record has an old revision; it was whole, so it is refused and not cut.
            match refused_or_cut(&files, tail, bytes, &format!("{len} bytes of garbage")) {
                Some(recovered) => assert_eq!(contents(&recovered), expected),
                None => assert!(garbage.ends_with(&whole[whole.len() - len..])),
            }
        }
    }
}
