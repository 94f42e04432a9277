//! A file system that is really full. Needs root, for a small file system in a mount namespace of its own.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so best by ending")]

use std::path::Path;

use bytes::Bytes;
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use store::{Error, Op, Options, Outcome, Range, Store, Txn};

const DISK_BYTES: u64 = 2 << 20;

fn options() -> Options {
    Options { segment_bytes: 256 << 10, garbage_bytes: 256 << 10, ..Options::default() }
}

fn small_disk(path: &Path) {
    unshare(CloneFlags::CLONE_NEWNS).expect("this test needs root");
    mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
    let size = format!("size={DISK_BYTES}");
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), Some(size.as_str())).unwrap();
}

fn put(key: String) -> Txn {
    Txn { ops: vec![Op::Put { key, value: Bytes::from(vec![b'x'; 10_000]), ttl: None }], ..Txn::default() }
}

fn keys(store: &Store<Bytes>) -> Vec<String> {
    store.range(&Range::prefix("")).unwrap().entries.iter().map(|entry| entry.key.to_string()).collect()
}

#[test]
fn a_full_file_system_refuses_writes_serves_reads_and_recovers() {
    let directory = tempfile::tempdir().unwrap();
    small_disk(directory.path());
    let data = directory.path().join("data");
    let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
    let store = Store::<Bytes>::open(&data, options()).unwrap();
    let commit = |store: &Store<Bytes>, txn: Txn| match runtime.block_on(store.commit(txn))? {
        Outcome::Committed { revision, .. } => Ok(revision),
        Outcome::Failed { .. } => unreachable!("nothing was compared"),
    };
    let mut acknowledged = Vec::new();
    let mut newest = 0;
    let refusal = loop {
        let key = format!("/{:04}", acknowledged.len());
        match commit(&store, put(key.clone())) {
            Ok(revision) => (newest, _) = (revision, acknowledged.push(key)),
            Err(error) => break error,
        }
        assert!((acknowledged.len() as u64) < DISK_BYTES / 10_000, "the disk is not that large");
    };
    assert!(matches!(refusal, Error::NoSpace { .. }), "{refusal}");
    for number in 0..5 {
        assert!(matches!(commit(&store, put(format!("/refused/{number}"))), Err(Error::NoSpace { .. })));
        assert_eq!((keys(&store), store.revision()), (acknowledged.clone(), newest));
    }
    // Killed while full, as far as its files can tell.
    let copy = tempfile::tempdir().unwrap();
    for file in std::fs::read_dir(&data).unwrap().map(Result::unwrap) {
        std::fs::copy(file.path(), copy.path().join(file.file_name())).unwrap();
    }
    let recovered = Store::<Bytes>::open(copy.path(), options()).unwrap();
    assert_eq!(keys(&recovered), acknowledged);
    assert!(recovered.revision() >= newest);
    drop(recovered);
    // Room is made, and writing goes on without a restart.
    let flags = MsFlags::MS_REMOUNT;
    mount(None::<&str>, directory.path(), None::<&str>, flags, Some("size=8m")).unwrap();
    let revision = commit(&store, put("/after".to_owned())).unwrap();
    assert!(revision > newest);
    acknowledged.push("/after".to_owned());
    acknowledged.sort();
    runtime.block_on(store.shutdown());
    drop(store);
    let store = Store::<Bytes>::open(&data, options()).unwrap();
    assert_eq!((keys(&store), store.revision()), (acknowledged, revision));
}
