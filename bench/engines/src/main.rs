//! The same work done by candidates for the embedded engine: `cargo run --release [-- DIRECTORY]` prints the tables of README.md.
//!
//! What counts is what the state store asks of its disk: durable commits of small values from many writers at once, bytes written for
//! them, and having all of it in memory, in order, after a start. Each measurement is a process of its own, so that what
//! the kernel says about it is about nothing else.

mod engine;
mod work;

use std::path::{Path, PathBuf};
use std::process::Command;

use engine::Kind;

const WRITERS: [usize; 3] = [1, 32, 256];

fn main() {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    let words: Vec<&str> = arguments.iter().map(String::as_str).collect();
    match words[..] {
        ["write", engine, directory, writers] => {
            work::write(kind(engine), Path::new(directory), writers.parse().expect("a number of writers"));
        }
        ["fill", engine, directory] => work::fill(kind(engine), Path::new(directory)),
        ["open", engine, directory] => work::open(kind(engine), Path::new(directory)),
        ["stall", directory] => work::stall(Path::new(directory)),
        [] => all(&std::env::temp_dir()),
        [directory] => all(Path::new(directory)),
        _ => panic!("what is {words:?}?"),
    }
}

fn kind(name: &str) -> Kind {
    Kind::ALL.into_iter().find(|kind| kind.name() == name).expect("one of ours, redb, fjall, heed")
}

fn all(directory: &Path) {
    println!("| engine | writers | commits/s | p50 ms | p99 ms | written per byte committed | CPU ms per 1000 |");
    println!("|---|---|---|---|---|---|---|");
    for writers in WRITERS {
        for kind in Kind::ALL {
            let place = fresh(directory, kind);
            child(&["write", kind.name(), &place.to_string_lossy(), &writers.to_string()]);
        }
    }
    println!("\n| engine | open and read 100,000 objects, 300 MB | memory then | on disk |");
    println!("|---|---|---|---|");
    let mut stalls = Vec::new();
    for kind in Kind::ALL {
        let place = fresh(directory, kind);
        child(&["fill", kind.name(), &place.to_string_lossy()]);
        child(&["open", kind.name(), &place.to_string_lossy()]);
        if kind == Kind::Ours {
            stalls.push(place);
        } else {
            std::fs::remove_dir_all(&place).expect("our own folder can be removed");
        }
    }
    println!("\n| commits of ours, 32 writers, 300 MB live | number | p50 ms | p99 ms | longest ms |");
    println!("|---|---|---|---|---|");
    for place in stalls {
        child(&["stall", &place.to_string_lossy()]);
        std::fs::remove_dir_all(&place).expect("our own folder can be removed");
    }
}

/// An empty folder of this engine.
fn fresh(directory: &Path, kind: Kind) -> PathBuf {
    let place = directory.join(format!("engines-{}", kind.name()));
    // Left over from the measurement before.
    let _ = std::fs::remove_dir_all(&place);
    std::fs::create_dir_all(&place).expect("the directory is writable");
    place
}

fn child(words: &[&str]) {
    let program = std::env::current_exe().expect("the path of this program");
    let status = Command::new(program).args(words).status().expect("this program can be run");
    assert!(status.success(), "{words:?} failed");
}
