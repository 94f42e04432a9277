//! `cargo xtask prove`: the proofs of the store, long. What they are: `crates/store/PROOFS.md`.
//!
//! The tests are those of `cargo test`; two environment variables (`crates/histories/src/rounds.rs`) make them go on until their time is
//! over, each from a seed of its own.

use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

/// Package, target and filter of the tests; what share of the time they get, and how many of them go on for it.
type Proof = (&'static str, &'static [&'static str], &'static str, u32, u32);

const PROOFS: [Proof; 9] = [
    ("store", &["--lib"], "tests::model::", 15, 1),
    ("store", &["--lib"], "tests::crash::", 10, 1),
    ("store", &["--lib"], "tests::faults::", 15, 3),
    ("store", &["--lib"], "tests::linear::", 20, 4),
    ("store", &["--lib"], "tests::damage::", 0, 0),
    ("store", &["--lib"], "tests::robustness::", 0, 0),
    ("store", &["--test", "kill", "--test", "full_disk"], "", 15, 1),
    ("apiserver", &["--test", "api"], "linear::", 0, 0),
    ("coxswain", &["--test", "server"], "linear::", 25, 1),
];
const ETCD: Proof = ("store", &["--test", "etcd"], "linear::", 10, 2);

struct Options {
    minutes: u64,
    seed: u64,
}

fn options(args: &[String]) -> Result<Options> {
    // Another one each time, and told, so that it can be had again.
    let clock = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap_or_default();
    let mut options = Options { minutes: 30, seed: clock.as_secs() * 1000 };
    let mut args = args.iter();
    while let Some(arg) = args.next() {
        let (name, value) = match arg.split_once('=') {
            Some((name, value)) => (name, Some(value.to_owned())),
            None => (arg.as_str(), args.next().cloned()),
        };
        let value = value.and_then(|value| value.parse().ok());
        match (name, value) {
            ("--minutes", Some(minutes)) => options.minutes = minutes,
            ("--seed", Some(seed)) => options.seed = seed,
            _ => bail!("{arg}: there are --minutes N (about so long in all, 30) and --seed N (the first, the clock's)"),
        }
    }
    Ok(options)
}

/// Runs them all, though one fails; tells which did.
pub fn run(args: &[String]) -> Result<()> {
    let options = options(args)?;
    let with_etcd = Command::new("etcd").arg("--version").output().is_ok();
    let proofs: Vec<_> = PROOFS.into_iter().chain(with_etcd.then_some(ETCD)).collect();
    let shares: u32 = proofs.iter().map(|(.., share, _)| share).sum();
    let at_once = std::thread::available_parallelism().map_or(1, |count| count.get() as u32);
    println!("seed {}, {} minutes{}", options.seed, options.minutes, if with_etcd { "" } else { ", without etcd" });
    let mut failed = Vec::new();
    for (package, targets, filter, share, tests) in proofs {
        let name = format!("{package} {} {filter}", targets.join(" "));
        let seconds = Duration::from_secs(options.minutes * 60) * share / shares / tests.div_ceil(at_once).max(1);
        println!("== {name}: {seconds:.0?} for each test");
        let started = Instant::now();
        let mut command = Command::new("cargo");
        command.args(["test", "--quiet", "--package", package]).args(targets).arg(filter).args(["--", "--nocapture"]);
        command.env("PROVE_SECONDS", seconds.as_secs().to_string()).env("PROVE_SEED", options.seed.to_string());
        let status = command.current_dir(crate::root()).status().context("cannot run cargo")?;
        println!("== {name}: {} after {:.0?}", if status.success() { "ok" } else { "FAILED" }, started.elapsed());
        if !status.success() {
            failed.push(name);
        }
    }
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}; the seed was {}", failed.join(", "), options.seed) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn options_are_numbers() {
        let args = |words: &[&str]| options(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let some = args(&["--minutes", "3", "--seed=7"]).unwrap();
        assert_eq!((some.minutes, some.seed), (3, 7));
        assert!(args(&["--minutes"]).is_err() && args(&["--seed=x"]).is_err() && args(&["fast"]).is_err());
    }
}
