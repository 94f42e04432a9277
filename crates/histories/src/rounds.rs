//! How long a test with random seeds goes on.
//!
//! By itself it is bounded by a number of rounds. `cargo xtask prove` sets [`SECONDS`], and then every such test goes on for that
//! long, at least once through its bound.

use std::time::{Duration, Instant};

/// How long each test goes on at least.
pub const SECONDS: &str = "PROVE_SECONDS";
/// The first seed; the next ones follow it.
pub const SEED: &str = "PROVE_SEED";

fn number(name: &str) -> Option<u64> {
    std::env::var(name).ok()?.parse().ok()
}

/// Whether this is the long form.
pub fn long() -> bool {
    number(SECONDS).is_some()
}

/// The seeds of a test that has `bounded` rounds in CI.
pub fn seeds(bounded: u64) -> impl Iterator<Item = u64> {
    let first = number(SEED).unwrap_or(0);
    let until = number(SECONDS).map(|seconds| Instant::now() + Duration::from_secs(seconds));
    (0..)
        .take_while(move |round| *round < bounded || until.is_some_and(|until| Instant::now() < until))
        .map(move |round| first.wrapping_add(round))
}

/// Runs a test for each seed; tells the seed that it failed with, and how many there were.
pub fn each(name: &str, bounded: u64, run: impl Fn(u64) + std::panic::RefUnwindSafe) {
    let mut rounds = 0;
    for seed in seeds(bounded) {
        if let Err(panic) = std::panic::catch_unwind(|| run(seed)) {
            eprintln!("{name}: seed {seed} (again with {SEED}={seed})");
            std::panic::resume_unwind(panic);
        }
        rounds += 1;
    }
    println!("{name}: {rounds} rounds");
}
