//! The store and Debian's etcd under the same work, on the same disk, in turn: `cargo xtask bench store`.
//!
//! The store is called as a library, which is how the API server uses it. etcd is called as it can be: over gRPC on loopback, without
//! TLS, by a client that does nothing but encode and decode. So a row compares what an API server waits for at either; what of
//! etcd's time is the wire's, the column of its CPU tells: that is etcd's process alone, ours is the whole of this one, with the load.

#![allow(clippy::unwrap_used, reason = "a measurement that cannot go on says so best by ending")]

mod etcd;
mod load;
mod ours;
mod report;

use std::path::PathBuf;
use std::time::Duration;

use load::{OBJECTS, Sample, Side, writes};
use report::{Row, Table};

/// Of each side for each row, in turn; medians are shown, and of the ratios of each round too.
const ROUNDS: usize = 3;
/// Of writes, which meet other users of the disk.
const WRITE_ROUNDS: usize = 7;
const WRITERS: [usize; 3] = [1, 32, 256];

fn main() {
    let mut args = std::env::args().skip(1);
    let directory = args.next().map_or_else(|| std::env::temp_dir().join("store-bench"), PathBuf::from);
    match args.next().as_deref() {
        Some("hold") => return ours::hold(&directory),
        Some("fill") => return ours::fill(&directory),
        _ => {}
    }
    // Left over from a run that was stopped.
    let _ = std::fs::remove_dir_all(&directory);
    std::fs::create_dir_all(&directory).unwrap();
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
    let table = runtime.block_on(measure(&directory));
    println!("{}", table.markdown());
    std::fs::remove_dir_all(&directory).unwrap();
}

async fn measure(directory: &std::path::Path) -> Table {
    let mut table = Table::start();
    durable_writes(directory, &mut table).await;
    let ours = ours::Ours::open(&directory.join("ours"));
    let mut etcd = etcd::Etcd::start(&directory.join("etcd")).await;
    load::fill(&ours).await;
    load::fill(&etcd).await;
    let filled = etcd.resident_bytes();
    table.add(Row::bytes(
        "memory per object of 1 KB, after creating 100,000",
        [ours::filled(&directory.join("filled")), filled],
    ));
    reads(&ours, &etcd, &mut table).await;
    fan_out(&ours, &etcd, &mut table).await;
    ours.close().await;
    etcd.stop();
    let disk = [ours::disk_bytes(&directory.join("ours")), ours::disk_bytes(&directory.join("etcd"))];
    start(directory, &mut table);
    table.add(Row::bytes("bytes on disk per object", disk));
    table
}

async fn durable_writes(directory: &std::path::Path, table: &mut Table) {
    for writers in WRITERS {
        let (mut ours, mut theirs) = (Vec::new(), Vec::new());
        for round in 0..WRITE_ROUNDS {
            let directory = directory.join(format!("writes-{writers}-{round}"));
            let store = ours::Ours::open(&directory.join("ours"));
            ours.push(writes(&store, writers).await);
            store.close().await;
            let etcd = etcd::Etcd::start(&directory.join("etcd")).await;
            theirs.push(writes(&etcd, writers).await);
            drop(etcd);
            std::fs::remove_dir_all(&directory).unwrap();
        }
        table.add(Row::rates(&format!("durable writes of 1 KB, {writers} writers"), ours, theirs));
    }
}

async fn reads(ours: &ours::Ours, etcd: &etcd::Etcd, table: &mut Table) {
    let all = format!("list all {OBJECTS}");
    let kinds = [("get one, 32 readers", 1, 32), ("list 1,000, 4 readers", 1_000, 4), (all.as_str(), OBJECTS, 1)];
    for (name, objects, readers) in kinds {
        let (mut here, mut there) = (Vec::new(), Vec::new());
        for _ in 0..ROUNDS {
            here.push(load::reads(ours, objects, readers).await);
            there.push(load::reads(etcd, objects, readers).await);
        }
        table.add(Row::rates(name, here, there));
    }
}

async fn fan_out(ours: &ours::Ours, etcd: &etcd::Etcd, table: &mut Table) {
    let (mut here, mut there) = (Vec::new(), Vec::new());
    for _ in 0..ROUNDS {
        here.push(load::fan_out(ours).await);
        there.push(load::fan_out(etcd).await);
    }
    table.add(Row::rates("events to 1,000 watchers, 8 writers", here, there));
}

/// In a fresh process each, on what `fill` and the work after it have left.
fn start(directory: &std::path::Path, table: &mut Table) {
    let mut times = [Vec::new(), Vec::new()];
    let mut memory = [Vec::new(), Vec::new()];
    for _ in 0..ROUNDS {
        let (time, bytes) = ours::start(&directory.join("ours"));
        times[0].push(time);
        memory[0].push(bytes);
        let (time, bytes) = etcd::start(&directory.join("etcd"));
        times[1].push(time);
        memory[1].push(bytes);
    }
    let median = |times: &mut Vec<Duration>| {
        times.sort_unstable();
        times[times.len() / 2]
    };
    let [ours, etcd] = &mut times;
    table.add(Row::times("start with 100,000 objects, to the first read", [median(ours), median(etcd)]));
    let middle = |bytes: &mut Vec<u64>| {
        bytes.sort_unstable();
        bytes[bytes.len() / 2]
    };
    let [ours, etcd] = &mut memory;
    table.add(Row::bytes("memory per object, of a process just started", [middle(ours), middle(etcd)]));
}

/// What a side took of the processors.
fn cpu<S: Side>(side: &S, before: Duration) -> Duration {
    side.cpu().saturating_sub(before)
}

/// Times of single operations, and what they took together.
fn sample<S: Side>(side: &S, mut times: Vec<Duration>, took: Duration, cpu_before: Duration) -> Sample {
    times.sort_unstable();
    Sample { cpu: cpu(side, cpu_before), took, times }
}
