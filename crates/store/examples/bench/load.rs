//! The work, the same for both sides.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use tokio::task::JoinSet;

use crate::sample;

pub const OBJECTS: usize = 100_000;
pub const VALUE_BYTES: usize = 1024;
/// Objects of one folder.
const FOLDER: usize = 1000;
const TIME: Duration = Duration::from_millis(1500);
const WATCHERS: usize = 1000;
const CHANGES: usize = 300;

/// A store that is measured. Clones of it are its clients.
pub trait Side: Clone + Send + Sync + 'static {
    /// Durable when it returns.
    fn put(&self, key: String, value: Bytes) -> impl Future<Output = ()> + Send;
    /// Returns how many objects begin with `prefix`, whose values have been read. `one` says that it is a key.
    fn read(&self, prefix: &str, one: bool) -> impl Future<Output = usize> + Send;
    /// Counts the events of keys that begin with `prefix`; tells when it watches.
    fn watch(
        &self,
        number: usize,
        prefix: String,
        count: usize,
        watching: Arc<AtomicU64>,
    ) -> impl Future<Output = ()> + Send;
    /// Taken so far.
    fn cpu(&self) -> Duration;
}

/// Of one row and one side.
pub struct Sample {
    /// Of each operation, ascending.
    pub times: Vec<Duration>,
    pub took: Duration,
    pub cpu: Duration,
}

/// Bytes that do not compress to nothing.
fn value(seed: usize) -> Bytes {
    let mut state = seed as u64 | 1;
    let next = |_| {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        b' ' + (state >> 57) as u8 % 90
    };
    (0..VALUE_BYTES).map(next).collect()
}

fn key(number: usize) -> String {
    format!("/registry/configmaps/folder-{:03}/object-{:04}", number / FOLDER, number % FOLDER)
}

pub async fn writes<S: Side>(side: &S, writers: usize) -> Sample {
    let (start, cpu) = (Instant::now(), side.cpu());
    let mut tasks = JoinSet::new();
    for writer in 0..writers {
        let side = side.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            let value = value(writer);
            while start.elapsed() < TIME {
                let before = Instant::now();
                let key = format!("/registry/configmaps/writer-{writer:03}/object-{:02}", times.len() % 20);
                side.put(key, value.clone()).await;
                times.push(before.elapsed());
            }
            times
        });
    }
    let times = tasks.join_all().await.into_iter().flatten().collect();
    sample(side, times, start.elapsed(), cpu)
}

/// Makes the objects that the reads are of.
pub async fn fill<S: Side>(side: &S) {
    let mut tasks = JoinSet::new();
    for writer in 0..100 {
        let side = side.clone();
        tasks.spawn(async move {
            for number in 0..OBJECTS / 100 {
                let number = writer * (OBJECTS / 100) + number;
                side.put(key(number), value(number)).await;
            }
        });
    }
    tasks.join_all().await;
}

/// Each read is of so many objects.
pub async fn reads<S: Side>(side: &S, objects: usize, readers: usize) -> Sample {
    let (start, cpu) = (Instant::now(), side.cpu());
    let mut tasks = JoinSet::new();
    for reader in 0..readers {
        let side = side.clone();
        tasks.spawn(async move {
            let mut times = Vec::new();
            while start.elapsed() < TIME {
                let before = Instant::now();
                let at = (reader * 7919 + times.len() * 104_729) % OBJECTS;
                let prefix = match objects {
                    1 => key(at),
                    FOLDER => format!("/registry/configmaps/folder-{:03}/", at / FOLDER),
                    _ => "/registry/configmaps/folder-".to_owned(),
                };
                assert_eq!(side.read(&prefix, objects == 1).await, objects);
                times.push(before.elapsed());
                if objects == 1 {
                    // A read from memory never waits, and would keep the others from their turn.
                    tokio::task::coop::consume_budget().await;
                }
            }
            times
        });
    }
    let times = tasks.join_all().await.into_iter().flatten().collect();
    sample(side, times, start.elapsed(), cpu)
}

/// An operation is an event that a watcher has got; its time is that of all.
pub async fn fan_out<S: Side>(side: &S) -> Sample {
    let watching = Arc::new(AtomicU64::new(0));
    let mut watchers = JoinSet::new();
    for number in 0..WATCHERS {
        let (side, watching) = (side.clone(), watching.clone());
        let prefix = "/registry/leases/".to_owned();
        watchers.spawn(async move { side.watch(number, prefix, CHANGES, watching).await });
    }
    while watching.load(Ordering::Relaxed) < WATCHERS as u64 {
        tokio::time::sleep(Duration::from_millis(5)).await;
    }
    let (start, cpu) = (Instant::now(), side.cpu());
    let mut writers = JoinSet::new();
    for writer in 0..8 {
        let side = side.clone();
        writers.spawn(async move {
            for number in (writer..CHANGES).step_by(8) {
                side.put(format!("/registry/leases/lease-{}", number % 50), value(number)).await;
            }
        });
    }
    writers.join_all().await;
    watchers.join_all().await;
    let took = start.elapsed();
    sample(side, vec![took; WATCHERS * CHANGES], took, cpu)
}
