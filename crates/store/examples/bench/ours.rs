//! The store, as a library in this process.

use std::io::{BufRead as _, BufReader, Read as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use bytes::Bytes;
use store::{Op, Options, Range, Store, Txn};

use crate::load::Side;

#[derive(Clone)]
pub struct Ours(Store<Bytes>);

impl Ours {
    pub fn open(directory: &Path) -> Self {
        Ours(Store::open(directory, Options::default()).unwrap())
    }

    pub async fn close(&self) {
        self.0.shutdown().await;
    }
}

impl Side for Ours {
    async fn put(&self, key: String, value: Bytes) {
        self.0.commit(Txn { ops: vec![Op::Put { key, value, ttl: None }], ..Txn::default() }).await.unwrap();
    }

    async fn read(&self, prefix: &str, one: bool) -> usize {
        if one {
            return self.0.get(prefix).map_or(0, |entry| sum(&entry.value).min(1));
        }
        let listing = self.0.range(&Range::prefix(prefix)).unwrap();
        listing.entries.iter().filter(|entry| sum(&entry.value) > 0).count()
    }

    async fn watch(&self, _: usize, prefix: String, count: usize, watching: Arc<AtomicU64>) {
        let mut watcher = self.0.watch(&prefix, self.0.revision()).unwrap();
        watching.fetch_add(1, Ordering::Relaxed);
        let mut seen = 0;
        while seen < count {
            seen += watcher.next().await.unwrap().iter().filter(|event| sum(&event.entry().value) > 0).count();
        }
    }

    fn cpu(&self) -> Duration {
        cpu("self")
    }
}

/// Reads every byte, as who sends them would.
pub fn sum(bytes: &[u8]) -> usize {
    bytes.iter().map(|byte| usize::from(*byte)).sum()
}

/// User and system time of a process.
pub fn cpu(pid: &str) -> Duration {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap();
    let after_name = stat.rsplit_once(')').unwrap().1;
    let ticks: u64 = after_name.split_whitespace().skip(11).take(2).map(|field| field.parse::<u64>().unwrap()).sum();
    Duration::from_millis(ticks * 10)
}

pub fn resident_bytes(pid: &str) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
    line.split_whitespace().nth(1).unwrap().parse::<u64>().unwrap() * 1024
}

/// Blocks of a directory's files, those of its folders too.
pub fn disk_bytes(directory: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt as _;
    let entries = std::fs::read_dir(directory).unwrap().map(Result::unwrap);
    let size = |entry: std::fs::DirEntry| match entry.metadata().unwrap() {
        meta if meta.is_dir() => disk_bytes(&entry.path()),
        meta => meta.blocks() * 512,
    };
    entries.map(size).sum()
}

/// In a process of its own: creates the objects, tells what memory it then has.
pub fn fill(directory: &Path) {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let ours = Ours::open(directory);
    runtime.block_on(crate::load::fill(&ours));
    println!("{}", resident_bytes("self"));
}

pub fn filled(directory: &Path) -> u64 {
    let output = Command::new(std::env::current_exe().unwrap()).arg(directory).arg("fill").output().unwrap();
    String::from_utf8(output.stdout).unwrap().trim().parse().unwrap()
}

/// In a process of its own: opens the store, tells how long that took, and waits.
pub fn hold(directory: &Path) {
    let start = Instant::now();
    let ours = Ours::open(directory);
    assert!(ours.0.get("/registry/configmaps/folder-000/object-0000").is_some());
    println!("{}", start.elapsed().as_nanos());
    let _ = std::io::stdin().read(&mut [0]);
}

/// Returns how long such a process takes to open the store, and what memory it then has.
pub fn start(directory: &Path) -> (Duration, u64) {
    let mut command = Command::new(std::env::current_exe().unwrap());
    let mut child = command.arg(directory).arg("hold").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let memory = resident_bytes(&child.id().to_string());
    drop(child.stdin.take());
    child.wait().unwrap();
    (Duration::from_nanos(line.trim().parse().unwrap()), memory)
}
