//! Values that are kept otherwise than they are read: what reaches the files, keys that change, and keys that are missing.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so best by ending")]

use std::path::Path;
use std::sync::Arc;
use std::sync::Mutex;

use bytes::Bytes;
use store::{Compare, Error, Expect, Op, Options, Outcome, Range, Store, Transformer, Txn};

/// `<key>:` and the bytes, each changed by the key and by where it is kept. Seals below `/secret/` only.
#[derive(Debug, Default)]
struct Keys(Mutex<Vec<u8>>);

impl Keys {
    fn of(keys: &[u8]) -> Arc<Self> {
        Arc::new(Keys(Mutex::new(keys.to_vec())))
    }
}

fn mix(path: &str, key: u8, bytes: &[u8]) -> Vec<u8> {
    let at = path.bytes().fold(key, |sum, byte| sum.wrapping_mul(31).wrapping_add(byte));
    bytes.iter().map(|byte| byte ^ at ^ 0x80).collect()
}

impl Transformer for Keys {
    fn seal(&self, path: &str, value: &Bytes) -> Result<Option<Bytes>, String> {
        if !path.starts_with("/secret/") {
            return Ok(None);
        }
        let key = *self.0.lock().unwrap().first().ok_or("there is no key")?;
        Ok(Some([&[key, b':'], &*mix(path, key, value)].concat().into()))
    }

    fn open(&self, path: &str, kept: &Bytes) -> Result<Option<Bytes>, String> {
        match kept.as_ref() {
            [key, b':', rest @ ..] if self.0.lock().unwrap().contains(key) => Ok(Some(mix(path, *key, rest).into())),
            [_, b':', ..] => Err("no matching key".to_owned()),
            _ => Ok(None),
        }
    }

    fn is_stale(&self, path: &str, kept: Option<&[u8]>) -> bool {
        let keys = self.0.lock().unwrap();
        path.starts_with("/secret/") && kept.and_then(<[u8]>::first) != keys.first()
    }

    fn waits(&self) -> bool {
        false
    }
}

const PLAIN: &str = "the plain text of a secret";

fn open(dir: &Path, keys: &Arc<Keys>) -> Store<Bytes> {
    let transformer: Arc<dyn Transformer> = keys.clone();
    // Small, so that checkpoints are written.
    let options =
        Options { transformer: Some(transformer), segment_bytes: 400, garbage_bytes: 800, ..Options::default() };
    Store::open(dir, options).unwrap()
}

async fn put(store: &Store<Bytes>, key: &str, value: &str) -> Result<(), Error> {
    let op = Op::Put { key: key.to_owned(), value: Bytes::copy_from_slice(value.as_bytes()), ttl: None };
    store.commit(Txn { ops: vec![op], ..Txn::default() }).await.map(|_| ())
}

fn text(store: &Store<Bytes>, key: &str) -> String {
    String::from_utf8(store.get(key).unwrap().value.to_vec()).unwrap()
}

/// Whether any file below `dir` has `needle`.
fn on_disk(dir: &Path, needle: &str) -> bool {
    std::fs::read_dir(dir).unwrap().any(|file| {
        let bytes = std::fs::read(file.unwrap().path()).unwrap();
        bytes.windows(needle.len()).any(|window| window == needle.as_bytes())
    })
}

#[tokio::test]
async fn no_file_has_the_plain_text() {
    let folder = tempfile::tempdir().unwrap();
    let (db, copy) = (folder.path().join("db"), folder.path().join("copies"));
    std::fs::create_dir(&copy).unwrap();
    let keys = Keys::of(b"A");
    let store = open(&db, &keys);
    for round in 0..40 {
        put(&store, &format!("/secret/{}", round % 5), PLAIN).await.unwrap();
        put(&store, "/config/a", "what everybody may know").await.unwrap();
    }
    assert_eq!(text(&store, "/secret/3"), PLAIN, "in memory it is itself");
    let kept = store.get("/secret/3").unwrap().key.len() + PLAIN.len() + 2;
    assert!(kept > PLAIN.len());
    store.snapshot(&copy.join("one")).await.unwrap();
    store.shutdown().await;
    drop(store);
    let names: Vec<_> =
        std::fs::read_dir(&db).unwrap().map(|f| f.unwrap().file_name().into_string().unwrap()).collect();
    assert!(names.iter().any(|name| name.ends_with(".checkpoint")), "a checkpoint was to be written: {names:?}");
    for dir in [&db, &copy] {
        assert!(!on_disk(dir, PLAIN), "{}", dir.display());
        assert!(on_disk(dir, "what everybody may know"), "{}", dir.display());
    }
    let store = open(&db, &keys);
    assert_eq!(text(&store, "/secret/3"), PLAIN);
    assert!(store.get("/secret/3").unwrap().unreadable().is_none());
    store.shutdown().await;
    drop(store);
    // What knows no key carries what is sealed, and it can be opened where it arrives.
    let restored = folder.path().join("restored");
    store::snapshot::restore(&copy.join("one"), &restored, 10).unwrap();
    assert!(!on_disk(&restored, PLAIN));
    assert_eq!(text(&open(&restored, &keys), "/secret/3"), PLAIN);
    let raw = Store::<Bytes>::open(&db, Options::default()).unwrap();
    assert_eq!(&raw.get("/secret/3").unwrap().value[..2], b"A:");
    raw.snapshot(&copy.join("two")).await.unwrap();
    assert!(!on_disk(&copy, PLAIN));
}

#[tokio::test]
async fn a_new_key_is_used_for_writes_and_the_old_one_still_reads() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &Keys::of(b"A"));
    put(&store, "/secret/a", "one").await.unwrap();
    put(&store, "/config/a", "plain").await.unwrap();
    assert!(!store.is_stale(&store.get("/secret/a").unwrap()));
    store.shutdown().await;
    drop(store);
    let keys = Keys::of(b"BA");
    let store = open(folder.path(), &keys);
    assert_eq!(text(&store, "/secret/a"), "one");
    assert!(store.is_stale(&store.get("/secret/a").unwrap()), "to be written again");
    assert!(!store.is_stale(&store.get("/config/a").unwrap()));
    put(&store, "/secret/a", "one").await.unwrap();
    assert!(!store.is_stale(&store.get("/secret/a").unwrap()));
    store.shutdown().await;
    drop(store);
    let store = open(folder.path(), &Keys::of(b"B"));
    assert_eq!(text(&store, "/secret/a"), "one", "the old key is not needed any more");
}

#[tokio::test]
async fn what_cannot_be_opened_is_kept_and_told() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &Keys::of(b"A"));
    put(&store, "/secret/a", "one").await.unwrap();
    put(&store, "/secret/b", "two").await.unwrap();
    store.shutdown().await;
    drop(store);

    let keys = Keys::of(b"C");
    let store = open(folder.path(), &keys);
    let listing = store.range(&Range::prefix("/secret/")).unwrap();
    let told: Vec<_> = listing.entries.iter().map(|entry| (entry.unreadable(), entry.value.len())).collect();
    assert_eq!(told, [(Some("no matching key"), 0); 2], "listed, with an error in the place of a value");
    let version = store.get("/secret/a").unwrap().mod_revision;
    // Through checkpoints, and another start without the key.
    for _ in 0..40 {
        put(&store, "/secret/c", "three").await.unwrap();
    }
    store.shutdown().await;
    drop(store);
    let store = open(folder.path(), &keys);
    assert_eq!(store.get("/secret/a").unwrap().unreadable(), Some("no matching key"));
    assert_eq!(store.get("/secret/a").unwrap().mod_revision, version);
    // It can be deleted by who knows which version it is.
    let compares = vec![Compare {
        key: "/secret/b".to_owned(),
        expect: Expect::ModRevision(store.get("/secret/b").unwrap().mod_revision),
    }];
    let ops = vec![Op::Delete { key: "/secret/b".to_owned() }];
    let gone = store.commit(Txn { compares, ops, ..Txn::default() }).await.unwrap();
    assert!(matches!(gone, Outcome::Committed { .. }));

    let mut watcher = store.watch("/secret/", store.revision()).unwrap();
    let mut other = store.watch("/config/", store.revision()).unwrap();
    assert_eq!(store.reopen(), (0, 1), "nothing has changed");
    assert!(watcher.take().unwrap().is_empty());
    *keys.0.lock().unwrap() = b"CA".to_vec();
    assert_eq!(store.reopen(), (1, 0));
    assert_eq!(text(&store, "/secret/a"), "one");
    assert_eq!(store.get("/secret/a").unwrap().mod_revision, version, "it is the same version");
    assert!(matches!(watcher.take(), Err(Error::Compacted { .. })), "there was no event: to be listed again");
    assert!(other.take().unwrap().is_empty(), "others are not concerned");
    assert_eq!(store.reopen(), (0, 0));
    assert!(store.watch("/secret/", store.revision()).unwrap().take().unwrap().is_empty());
}

#[tokio::test]
async fn what_cannot_be_sealed_is_refused_and_nothing_is_written() {
    let folder = tempfile::tempdir().unwrap();
    let store = open(folder.path(), &Keys::of(b""));
    let refused = put(&store, "/secret/a", PLAIN).await.unwrap_err();
    assert_eq!(refused.to_string(), r#"unable to transform key "/secret/a": there is no key"#);
    assert!(store.get("/secret/a").is_none());
    put(&store, "/config/a", "plain").await.unwrap();
    store.shutdown().await;
    assert!(!on_disk(folder.path(), PLAIN));
}
