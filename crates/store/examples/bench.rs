//! Measures the store alone: `cargo run --release -p store --example bench [directory]`.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::{Durability, Op, Options, Range, Revision, Store, Txn, Value};

/// What an API server does at the least: keep the bytes.
struct Plain(Bytes);

impl Value for Plain {
    fn committed(bytes: Bytes, _: Revision) -> Self {
        Plain(bytes)
    }

    fn deleted(&self, _: Revision) -> Self {
        Plain(self.0.clone())
    }

    fn stored(&self) -> [&[u8]; 2] {
        [&self.0, &[]]
    }
}

const VALUE_BYTES: usize = 3600;
const TIME: Duration = Duration::from_secs(2);

fn put(key: String, durability: Durability) -> Txn {
    let value = Bytes::from(vec![b'x'; VALUE_BYTES]);
    Txn { ops: vec![Op::Put { key, value, ttl: None }], durability, ..Txn::default() }
}

async fn commits(store: &Store<Plain>, writers: usize, durability: Durability) {
    let start = Instant::now();
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..writers {
        let store = store.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < TIME {
                let before = Instant::now();
                let key = format!("/registry/pods/default/pod-{writer}-{}", times.len() % 20);
                store.commit(put(key, durability)).await.expect("the disk has room");
                times.push(before.elapsed());
            }
            times
        });
    }
    let mut times: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
    let took = start.elapsed();
    times.sort_unstable();
    let (p50, p99) = (times[times.len() / 2], times[times.len() * 99 / 100]);
    let rate = times.len() as f64 / took.as_secs_f64();
    println!("{durability:?} commits, {writers:>3} writers: {rate:>8.0}/s  p50 {p50:>9.1?}  p99 {p99:>9.1?}");
}

async fn ranges(store: &Store<Plain>) {
    for number in 0..5000 {
        store
            .commit(put(format!("/registry/nodes/{number:05}"), Durability::Relaxed))
            .await
            .expect("the disk has room");
    }
    let query = Range::prefix("/registry/nodes/");
    let start = Instant::now();
    for _ in 0..200 {
        assert_eq!(store.range(&query).expect("readable").entries.len(), 5000);
    }
    println!("list of 5,000: {:.1?}", start.elapsed() / 200);
    let past = Range { revision: Some(store.revision() - 2000), limit: 500, ..query };
    let start = Instant::now();
    for _ in 0..200 {
        store.range(&past).expect("readable");
    }
    println!("page of 500 as of 2,000 revisions ago: {:.1?}", start.elapsed() / 200);
}

async fn watchers(store: &Store<Plain>) {
    const WATCHERS: usize = 200;
    const CHANGES: usize = 2000;
    let seen = Arc::new(AtomicU64::new(0));
    let mut tasks = tokio::task::JoinSet::new();
    let _idle: Vec<_> = (0..5000)
        .map(|number| store.watch(&format!("/registry/secrets/{number}/"), store.revision()).expect("readable"))
        .collect();
    for _ in 0..WATCHERS {
        let mut watcher = store.watch("/registry/leases/", store.revision()).expect("readable");
        let seen = seen.clone();
        tasks.spawn(async move {
            let mut count = 0;
            while count < CHANGES {
                let events = watcher.next().await.expect("not behind");
                count += events.len();
                seen.fetch_add(events.len() as u64, Ordering::Relaxed);
            }
        });
    }
    let start = Instant::now();
    for number in 0..CHANGES {
        let key = format!("/registry/leases/{}", number % 50);
        store.commit(put(key, Durability::Relaxed)).await.expect("the disk has room");
    }
    tasks.join_all().await;
    let rate = seen.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64();
    println!("{WATCHERS} watchers (and 5,000 idle): {rate:.0} events/s");
}

async fn start_up(directory: &Path) {
    let directory = directory.join("large");
    let store = Store::<Plain>::open(&directory, Options::default()).expect("the directory is usable");
    let mut tasks = tokio::task::JoinSet::new();
    for writer in 0..100 {
        let store = store.clone();
        tasks.spawn(async move {
            for number in 0..1000 {
                let key = format!("/registry/pods/ns-{writer}/pod-{number}");
                store.commit(put(key, Durability::Relaxed)).await.expect("the disk has room");
            }
        });
    }
    tasks.join_all().await;
    store.shutdown().await;
    drop(store);
    let start = Instant::now();
    let store = Store::<Plain>::open(&directory, Options::default()).expect("the directory is usable");
    let entries = store.range(&Range::prefix("")).expect("readable").entries.len();
    println!("open {entries} objects of {VALUE_BYTES} bytes: {:.1?}", start.elapsed());
}

#[tokio::main]
async fn main() {
    let directory = std::env::args().nth(1).map_or_else(std::env::temp_dir, PathBuf::from).join("store-bench");
    // Left over from a run that was stopped.
    let _ = std::fs::remove_dir_all(&directory);
    let store = Store::<Plain>::open(&directory, Options::default()).expect("the directory is usable");
    for writers in [1, 32, 256] {
        commits(&store, writers, Durability::Synced).await;
    }
    commits(&store, 32, Durability::Relaxed).await;
    ranges(&store).await;
    watchers(&store).await;
    drop(store);
    start_up(&directory).await;
    std::fs::remove_dir_all(&directory).expect("our own directory can be removed");
}
