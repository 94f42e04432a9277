//! Files of earlier versions of the format are read, and carried forward; those of later ones are refused.
//!
//! `fixtures/format-<n>/` were written by the last version of the store that wrote that format, with [`write_fixtures`], and
//! are never written again.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so best by ending")]

use std::path::{Path, PathBuf};

use bytes::Bytes;
use store::{Durability, Op, Options, Range, Store, Txn};

/// So small that there are a checkpoint and several segments.
fn options() -> Options {
    Options { segment_bytes: 2000, garbage_bytes: 4000, ..Options::default() }
}

/// What was done to the stores of the fixtures.
async fn workload(store: &Store<Bytes>) {
    for number in 0..100_u32 {
        let put = |key: String| Op::Put { key, value: Bytes::from(format!("{number:0>60}")), ttl: None };
        let mut ops = vec![put(format!("/a/{}", number % 7)), put(format!("/b/{number}"))];
        if let Some(gone) = number.checked_sub(5).filter(|gone| gone % 4 != 0) {
            ops.push(Op::Delete { key: format!("/b/{gone}") });
        }
        let durability = if number % 3 == 0 { Durability::Relaxed } else { Durability::Synced };
        store.commit(Txn { ops, durability, ..Txn::default() }).await.unwrap();
    }
}

fn fixtures() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures")
}

fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for file in std::fs::read_dir(from).unwrap().map(Result::unwrap).filter(|file| file.file_name() != "lock") {
        std::fs::copy(file.path(), to.join(file.file_name())).unwrap();
    }
}

/// Run by hand before the format changes: `cargo test -p store --test format -- --ignored write_fixtures`.
#[tokio::test]
#[ignore = "writes what is checked in"]
async fn write_fixtures() {
    let directory = tempfile::tempdir().unwrap();
    let store = Store::<Bytes>::open(directory.path(), options()).unwrap();
    workload(&store).await;
    // The checkpoint is written beside the commits.
    tokio::time::sleep(std::time::Duration::from_millis(500)).await;
    copy(directory.path(), &fixtures().join("format-1/crashed"));
    store.shutdown().await;
    copy(directory.path(), &fixtures().join("format-1/clean"));
}

/// Everything about every key, and the revision.
fn everything(store: &Store<Bytes>) -> Vec<(String, Bytes, [u64; 3])> {
    let entries = store.range(&Range::prefix("")).unwrap().entries;
    let row = |entry: &std::sync::Arc<store::Entry<Bytes>>| {
        let numbers = [entry.create_revision, entry.mod_revision, entry.version];
        (entry.key.to_string(), entry.value.clone(), numbers)
    };
    entries.iter().map(row).collect()
}

/// The formats of the files, by their headers.
fn formats(directory: &Path) -> Vec<u32> {
    let files = std::fs::read_dir(directory).unwrap().map(Result::unwrap).filter(|file| file.file_name() != "lock");
    // One that goes away meanwhile, or is just being made, has none.
    let bytes = files.filter_map(|file| std::fs::read(file.path()).ok()).filter(|bytes| bytes.len() >= 12);
    bytes.map(|bytes| u32::from_le_bytes(bytes[8..12].try_into().unwrap())).collect()
}

#[tokio::test]
async fn stores_of_the_first_format_are_read_whole_and_carried_forward() {
    let expected = Store::<Bytes>::in_memory(Options::default());
    workload(&expected).await;
    for state in ["clean", "crashed"] {
        let directory = tempfile::tempdir().unwrap();
        copy(&fixtures().join("format-1").join(state), directory.path());
        assert!(formats(directory.path()).iter().all(|format| *format == 1));
        let store = Store::<Bytes>::open(directory.path(), options()).unwrap();
        assert_eq!(everything(&store), everything(&expected), "{state}");
        // After a crash some revisions are skipped.
        assert!(
            store.revision() == expected.revision() || (state == "crashed" && store.revision() > expected.revision())
        );
        let start = std::time::Instant::now();
        while formats(directory.path()).contains(&1) {
            assert!(start.elapsed().as_secs() < 10, "{state}: {:?}", formats(directory.path()));
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
        let put = Op::Put { key: "/new".to_owned(), value: Bytes::from_static(b"x"), ttl: None };
        store.commit(Txn { ops: vec![put], ..Txn::default() }).await.unwrap();
        let before = (everything(&store), store.revision());
        store.shutdown().await;
        drop(store);
        let again = Store::<Bytes>::open(directory.path(), options()).unwrap();
        assert_eq!((everything(&again), again.revision()), before, "{state}");
    }
}

#[test]
fn a_newer_format_is_refused_by_name_and_left_alone() {
    let directory = tempfile::tempdir().unwrap();
    copy(&fixtures().join("format-1/clean"), directory.path());
    let newest = directory.path().join("000000000000000b.log");
    let mut bytes = std::fs::read(&newest).unwrap();
    bytes[8] = 77;
    let checksum = crc32c::crc32c(&bytes[..44]).to_le_bytes();
    bytes[44..48].copy_from_slice(&checksum);
    std::fs::write(&newest, &bytes).unwrap();
    let refused = Store::<Bytes>::open(directory.path(), options()).map(|_| ()).unwrap_err();
    assert!(matches!(&refused, store::Error::NewerFormat { path, found: 77, .. } if *path == newest), "{refused}");
    assert!(refused.to_string().contains("newer version"), "{refused}");
    assert_eq!(std::fs::read(&newest).unwrap(), bytes);
    // A flipped bit is not a newer format.
    bytes[8] = 33;
    std::fs::write(&newest, &bytes).unwrap();
    let refused = Store::<Bytes>::open(directory.path(), options()).map(|_| ()).unwrap_err();
    assert!(matches!(refused, store::Error::Damaged { .. }), "{refused}");
}
