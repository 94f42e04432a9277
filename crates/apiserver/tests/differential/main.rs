//! The differential check: requests of `corpus/*.txt`, sent to a server, and its answers held against those that are checked in, or
//! against those of another server. `README.md` has the format; `cargo xtask differential` runs it against upstream.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod answer;
mod corpus;
#[path = "../api/harness.rs"]
#[allow(dead_code, unused_imports, unused_macros)]
mod harness;
mod run;
mod target;
mod versions;

use std::fs;
use std::path::{Path, PathBuf};

use corpus::Corpus;
use run::Outcome;
use target::Target;
use versions::Versions;

/// Write the answers of our server down instead of holding them against what is written.
const RECORD: &str = "DIFFERENTIAL_RECORD";
/// Names of corpus files, with commas; all where unset.
const KINDS: &str = "DIFFERENTIAL_KINDS";
/// The other server.
const KUBECONFIG: &str = "DIFFERENTIAL_KUBECONFIG";
/// The other server is upstream's of an older version: its answers are held against ours, request by request.
const UPSTREAM: &str = "DIFFERENTIAL_UPSTREAM";

fn folder() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/differential/corpus")
}

fn setting(name: &str) -> Option<String> {
    std::env::var(name).ok().filter(|value| !value.is_empty())
}

/// The corpus files that are asked for, in the order of their names.
fn files() -> Vec<Corpus> {
    let wanted = setting(KINDS);
    let asked = |name: &str| wanted.as_deref().is_none_or(|all| all.split(',').any(|one| one == name));
    let entries = fs::read_dir(folder()).unwrap().map(|entry| entry.unwrap().path());
    let mut paths: Vec<PathBuf> = entries.filter(|path| path.extension().is_some_and(|e| e == "txt")).collect();
    paths.sort();
    let name = |path: &Path| path.file_stem().unwrap().to_str().unwrap().to_owned();
    let paths = paths.iter().filter(|path| asked(&name(path)));
    let all: Vec<Corpus> = paths.map(|path| Corpus::parse(&name(path), &fs::read_to_string(path).unwrap())).collect();
    assert!(!all.is_empty(), "no corpus file is named {wanted:?}");
    all
}

fn golden(corpus: &Corpus) -> PathBuf {
    folder().join(format!("{}.golden", corpus.name))
}

/// Every answer of our server is the one that is checked in.
#[tokio::test]
async fn answers_are_the_golden_ones() {
    let mut wrong = String::new();
    for corpus in files() {
        let mut server = Target::in_process().await;
        let text = run::golden(&corpus, &mut server).await;
        let path = golden(&corpus);
        if setting(RECORD).is_some() {
            fs::write(&path, text).unwrap();
            continue;
        }
        let known = fs::read_to_string(&path).unwrap_or_default();
        wrong += &run::difference(&corpus.name, &known, &text);
    }
    assert!(wrong.is_empty(), "answers have changed (if they are right: cargo xtask differential --record):\n{wrong}");
}

/// The same of the server of a kubeconfig: ours by the golden answers, upstream's by ours.
#[tokio::test]
#[ignore = "needs DIFFERENTIAL_KUBECONFIG: run by `cargo xtask differential --kubeconfig=FILE` and `--upstream`"]
async fn answers_of_another_server() {
    let kubeconfig = setting(KUBECONFIG).expect(KUBECONFIG);
    let mut foreign = Target::of_kubeconfig(Path::new(&kubeconfig)).await;
    let versions = Versions::parse(&fs::read_to_string(folder().join("versions")).unwrap());
    let mut wrong = String::new();
    let mut total = Outcome::default();
    println!("{:32} {:>8} {:>8} {:>8} {:>8} {:>8}", "", "requests", "equal", "newer", "gaps", "unlike");
    for corpus in files() {
        if setting(UPSTREAM).is_none() {
            let text = run::golden(&corpus, &mut foreign).await;
            wrong += &run::difference(&corpus.name, &fs::read_to_string(golden(&corpus)).unwrap_or_default(), &text);
            continue;
        }
        let mut ours = Target::in_process().await;
        let outcome = run::beside(&corpus, &versions, &mut ours, &mut foreign).await;
        println!("{}", outcome.row(&corpus.name));
        wrong += &outcome.told;
        total.add(&outcome);
    }
    if setting(UPSTREAM).is_some() {
        println!("{}", total.row("all"));
    }
    assert!(wrong.is_empty(), "answers differ:\n{wrong}");
}
