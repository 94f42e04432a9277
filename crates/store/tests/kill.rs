//! A writing process is killed at random moments; nothing that it reported as committed may be missing.

use std::io::{BufRead as _, BufReader, Write as _};
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use bytes::Bytes;
use store::{Durability, Error, Op, Options, Range, Store, Txn};

const DIRECTORY: &str = "STORE_KILL_TEST_DIRECTORY";
/// In CI; `cargo xtask prove` goes on as long as it is told.
const KILLS: u64 = 30;

fn options() -> Options {
    Options { segment_bytes: 1 << 16, garbage_bytes: 1 << 18, ..Options::default() }
}

/// Not a test of its own: what the killed process does.
#[test]
fn child() {
    let Ok(directory) = std::env::var(DIRECTORY) else { return };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).build().unwrap();
    runtime.block_on(async {
        let store = Store::<Bytes>::open(Path::new(&directory), options()).unwrap();
        let mut writers = tokio::task::JoinSet::new();
        for writer in 0..8 {
            let store = store.clone();
            writers.spawn(async move {
                for number in 0.. {
                    let durability = if number % 3 == 0 { Durability::Relaxed } else { Durability::Synced };
                    let value = Bytes::from(format!("{number}:{}", "x".repeat(200)));
                    let put = |key: String| Op::Put { key, value: value.clone(), ttl: None };
                    let mut ops = vec![put(format!("/{writer}")), put(format!("/twin/{writer}"))];
                    // Comes and goes.
                    let sometimes = format!("/sometimes/{writer}");
                    ops.push(if number % 2 == 0 { put(sometimes) } else { Op::Delete { key: sometimes } });
                    store.commit(Txn { ops, durability, ..Txn::default() }).await.unwrap();
                    writeln!(std::io::stdout(), "committed {writer} {number} {}", store.revision()).unwrap();
                }
            });
        }
        writers.join_all().await;
    });
}

#[test]
fn nothing_acknowledged_is_lost_to_kill_9() {
    let directory = tempfile::tempdir().unwrap();
    let mut revision = 0;
    let (mut kills, mut checkpoints) = (0, 0);
    for round in histories::rounds::seeds(KILLS) {
        kills += 1;
        let mut child = Command::new(std::env::current_exe().unwrap())
            .args(["--exact", "child", "--nocapture"])
            .env(DIRECTORY, directory.path())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let output = BufReader::new(child.stdout.take().unwrap());
        let reader = std::thread::spawn(move || {
            let mut newest = [None; 8];
            let mut revision = 0;
            for line in output.lines().map_while(Result::ok) {
                // The last line may have been cut.
                let words: Vec<_> = line.split(' ').collect();
                if let ["committed", writer, number, at] = words[..] {
                    newest[writer.parse::<usize>().unwrap()] = number.parse::<u64>().ok();
                    revision = at.parse().unwrap_or(revision).max(revision);
                }
            }
            (newest, revision)
        });
        std::thread::sleep(Duration::from_millis(30 + round * 37 % 110));
        child.kill().unwrap();
        child.wait().unwrap();
        let (newest, seen_revision) = reader.join().unwrap();

        let store = Store::<Bytes>::open(directory.path(), options()).unwrap();
        revision = seen_revision.max(revision);
        assert!(store.revision() >= revision, "the revision went backward");
        for (writer, number) in newest.into_iter().enumerate() {
            let Some(number) = number else { continue };
            let entry = store.get(&format!("/{writer}")).expect("a committed key exists");
            let found: u64 = std::str::from_utf8(&entry.value).unwrap().split(':').next().unwrap().parse().unwrap();
            // One more may have been committed than was reported.
            assert!(found == number || found == number + 1, "writer {writer}: found {found}, committed {number}");
            // Transactions are whole.
            assert!(store.get(&format!("/twin/{writer}")).expect("a committed key exists").value == entry.value);
            assert_eq!(store.get(&format!("/sometimes/{writer}")).is_some(), found.is_multiple_of(2));
        }
        let names = std::fs::read_dir(directory.path()).unwrap().map(|entry| entry.unwrap().file_name());
        checkpoints += names.filter(|name| name.to_string_lossy().ends_with(".checkpoint")).count();
    }
    println!("kill: {kills} kills, {checkpoints} of them with a checkpoint in place");
    assert!(checkpoints > 0);
}

#[test]
fn a_second_opener_is_refused() {
    let directory = tempfile::tempdir().unwrap();
    let first = Store::<Bytes>::open(directory.path(), options()).unwrap();
    let second = Store::<Bytes>::open(directory.path(), options()).map(|_| ());
    assert!(matches!(second, Err(Error::Locked { .. })));
    drop(first);
    // A child that the other test is just starting may have inherited the lock, until it becomes another program.
    let again = (0..100).find_map(|_| {
        std::thread::sleep(Duration::from_millis(10));
        Store::<Bytes>::open(directory.path(), options()).ok()
    });
    let again = again.expect("the lock has been let go");
    assert!(again.range(&Range::prefix("")).unwrap().entries.is_empty());
}
