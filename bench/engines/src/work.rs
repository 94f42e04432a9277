//! What is measured.

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::mpsc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::{Op, Options, Range, Store, Txn};
use tokio::sync::oneshot;

use crate::engine::{Engine, Kind, Row};

const VALUE_BYTES: usize = 1024;
/// Keys that there are before, and that are written again and again.
const KEYS: u64 = 20_000;
const TIME: Duration = Duration::from_secs(8);
/// Rows that one commit of a batching thread takes at most, as in the store.
const BATCH: usize = 1024;
const LARGE_OBJECTS: u64 = 100_000;
const LARGE_BYTES: usize = 3000;

/// Something that commits one row, durably.
#[derive(Clone)]
enum Target {
    Ours(Store<Bytes>),
    /// A thread that takes whatever is queued into one commit.
    Batched(mpsc::Sender<(Row, oneshot::Sender<()>)>),
}

impl Target {
    fn open(kind: Kind, directory: &Path) -> Self {
        if kind == Kind::Ours {
            return Target::Ours(Store::open(directory, Options::default()).expect("the store opens"));
        }
        let engine = kind.open(directory);
        let (sender, receiver) = mpsc::channel();
        std::thread::spawn(move || batch(engine, receiver));
        Target::Batched(sender)
    }

    async fn put(&self, (key, value): Row) {
        match self {
            Target::Ours(store) => {
                let ops = vec![Op::Put { key, value: value.into(), ttl: None }];
                store.commit(Txn { ops, ..Txn::default() }).await.expect("the store commits");
            }
            Target::Batched(thread) => {
                let (reply, done) = oneshot::channel();
                thread.send(((key, value), reply)).expect("the thread is there");
                done.await.expect("the thread answers");
            }
        }
    }

    async fn put_many(&self, rows: Vec<Row>) {
        if let Target::Ours(store) = self {
            let put = |(key, value): Row| Op::Put { key, value: value.into(), ttl: None };
            let ops = rows.into_iter().map(put).collect();
            store.commit(Txn { ops, ..Txn::default() }).await.expect("the store commits");
            return;
        }
        let mut puts = tokio::task::JoinSet::new();
        for row in rows {
            let target = self.clone();
            puts.spawn(async move { target.put(row).await });
        }
        puts.join_all().await;
    }
}

fn batch(mut engine: Box<dyn Engine>, receiver: mpsc::Receiver<(Row, oneshot::Sender<()>)>) {
    while let Ok(first) = receiver.recv() {
        let (rows, replies): (Vec<_>, Vec<_>) =
            std::iter::once(first).chain(receiver.try_iter().take(BATCH - 1)).unzip();
        engine.put(&rows);
        for reply in replies {
            // A writer that has gone away does not want to know.
            let _ = reply.send(());
        }
    }
}

/// The same bytes for the same seed, which no compression makes smaller.
fn noise(mut seed: u64, len: usize) -> Vec<u8> {
    seed = seed.wrapping_mul(0x9E37_79B9_7F4A_7C15) | 1;
    let mut bytes = Vec::with_capacity(len + 8);
    while bytes.len() < len {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        bytes.extend(seed.to_le_bytes());
    }
    bytes.truncate(len);
    bytes
}

fn key(number: u64) -> String {
    format!("/registry/configmaps/namespace-{}/object-{number:06}", number % 97)
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().expect("tokio starts")
}

pub fn write(kind: Kind, directory: &Path, writers: usize) {
    runtime().block_on(async {
        let target = Target::open(kind, directory);
        for chunk in (0..KEYS).collect::<Vec<_>>().chunks(1000) {
            target.put_many(chunk.iter().map(|number| (key(*number), noise(*number, VALUE_BYTES))).collect()).await;
        }
        let (written, cpu) = (written_bytes(), cpu_ms());
        let start = Instant::now();
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..writers as u64 {
            let target = target.clone();
            tasks.spawn(async move {
                let mut times = Vec::new();
                let mut number = writer.wrapping_mul(7919);
                while start.elapsed() < TIME {
                    number = number.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
                    let row = (key((number >> 33) % KEYS), noise(number, VALUE_BYTES));
                    let before = Instant::now();
                    target.put(row).await;
                    times.push(before.elapsed());
                }
                times
            });
        }
        let mut times: Vec<_> = tasks.join_all().await.into_iter().flatten().collect();
        let took = start.elapsed();
        times.sort_unstable();
        let at = |share: usize| times[times.len() * share / 100].as_secs_f64() * 1e3;
        let committed = times.len() as u64 * (VALUE_BYTES + key(0).len()) as u64;
        let thousands = times.len() as f64 / 1e3;
        println!(
            "| {} | {writers} | {:.0} | {:.2} | {:.2} | {:.2} | {:.0} |",
            kind.name(),
            times.len() as f64 / took.as_secs_f64(),
            at(50),
            at(99),
            (written_bytes() - written) as f64 / committed as f64,
            (cpu_ms() - cpu) / thousands,
        );
    });
}

pub fn fill(kind: Kind, directory: &Path) {
    runtime().block_on(async {
        let target = Target::open(kind, directory);
        for chunk in (0..LARGE_OBJECTS).collect::<Vec<_>>().chunks(1000) {
            target.put_many(chunk.iter().map(|number| (key(*number), noise(*number, LARGE_BYTES))).collect()).await;
        }
        if let Target::Ours(store) = &target {
            store.shutdown().await;
        }
    });
}

pub fn open(kind: Kind, directory: &Path) {
    let start = Instant::now();
    // Ours has everything in memory, in order, when it is open; for the others that is what is read into a map.
    let (entries, _held): (usize, Box<dyn std::any::Any>) = if kind == Kind::Ours {
        let store = Store::<Bytes>::open(directory, Options::default()).expect("the store opens");
        (store.range(&Range::prefix("")).expect("readable").entries.len(), Box::new(store))
    } else {
        let engine = kind.open(directory);
        let mut index: BTreeMap<Arc<str>, Bytes> = BTreeMap::new();
        engine.each(&mut |key, value| _ = index.insert(key.into(), Bytes::copy_from_slice(value)));
        (index.len(), Box::new((index, Keep(engine))))
    };
    let took = start.elapsed();
    assert_eq!(entries as u64, LARGE_OBJECTS);
    let anonymous = status_kib("RssAnon:") / 1000;
    let files: u64 = files(directory) / 1_000_000;
    println!("| {} | {:.2} s | {anonymous} MB | {files} MB |", kind.name(), took.as_secs_f64());
}

/// How long commits of ours take while a checkpoint of 300 MB is written, and while none is.
pub fn stall(directory: &Path) {
    let options = Options { garbage_bytes: 1 << 20, ..Options::default() };
    let writing = || {
        let files = std::fs::read_dir(directory).expect("our folder").flatten();
        files.filter_map(|file| file.file_name().into_string().ok()).any(|name| name.ends_with(".checkpoint.tmp"))
    };
    runtime().block_on(async {
        let store = Store::<Bytes>::open(directory, options).expect("the store opens");
        // As much garbage as there is live data starts a checkpoint; that is a little more than 100,000 puts of the same size.
        for chunk in (0..2 * LARGE_OBJECTS).collect::<Vec<_>>().chunks(1000) {
            if writing() {
                break;
            }
            let target = Target::Ours(store.clone());
            target
                .put_many(
                    chunk
                        .iter()
                        .map(|number| (key(*number % LARGE_OBJECTS), noise(*number + 1, LARGE_BYTES)))
                        .collect(),
                )
                .await;
        }
        let (during, after) = (commits(&store, &writing, true).await, commits(&store, &writing, false).await);
        for (name, mut times) in [("while a checkpoint is written", during), ("while none is", after)] {
            times.sort_unstable();
            let at =
                |share: usize| times.get(times.len() * share / 100).map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
            let longest = times.last().map_or(f64::NAN, |time| time.as_secs_f64() * 1e3);
            println!("| {name} | {} | {:.2} | {:.2} | {longest:.2} |", times.len(), at(50), at(99));
        }
    });
}

/// Commits of 32 writers until there is a checkpoint being written, or none, no longer; at most two seconds.
async fn commits(store: &Store<Bytes>, writing: &impl Fn() -> bool, wanted: bool) -> Vec<Duration> {
    let start = Instant::now();
    let mut all = Vec::new();
    while writing() == wanted && start.elapsed() < Duration::from_secs(2) {
        let mut tasks = tokio::task::JoinSet::new();
        for writer in 0..32 {
            let target = Target::Ours(store.clone());
            tasks.spawn(async move {
                let mut times = Vec::new();
                for number in 0..8 {
                    let before = Instant::now();
                    target.put((key(writer * 100 + number), noise(number, VALUE_BYTES))).await;
                    times.push(before.elapsed());
                }
                times
            });
        }
        all.extend(tasks.join_all().await.into_iter().flatten());
    }
    all
}

/// Lets an engine be kept among others.
struct Keep(#[expect(dead_code, reason = "kept, not used")] Box<dyn Engine>);

/// Bytes on disk, without the holes.
fn files(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let mut bytes = 0;
    for entry in std::fs::read_dir(directory).expect("our folder") {
        let path = entry.expect("our folder").path();
        let metadata = std::fs::metadata(&path).expect("our file");
        bytes += if metadata.is_dir() { files(&path) } else { metadata.blocks() * 512 };
    }
    bytes
}

/// What this process has caused to be written to the device.
fn written_bytes() -> u64 {
    number("/proc/self/io", "write_bytes:")
}

fn status_kib(field: &str) -> u64 {
    number("/proc/self/status", field)
}

fn number(file: &str, field: &str) -> u64 {
    let text = std::fs::read_to_string(file).expect("the kernel tells");
    let line = text.lines().find_map(|line| line.strip_prefix(field)).expect("the field is there");
    line.split_whitespace().next().and_then(|word| word.parse().ok()).expect("a number")
}

/// Processor time of this process, all threads.
fn cpu_ms() -> f64 {
    let text = std::fs::read_to_string("/proc/self/stat").expect("the kernel tells");
    let fields: Vec<&str> = text.rsplit(')').next().expect("a name in brackets").split_whitespace().collect();
    // User and system, in ticks of 10 ms.
    let ticks = |at: usize| fields[at].parse::<f64>().expect("ticks");
    (ticks(11) + ticks(12)) * 10.0
}
