//! Hands tests to processes of the suite: some at a time to each, the longest first.
//!
//! To start the suite costs a second, so a process gets several tests. Upstream's way, a server that all processes ask for the next
//! test, is part of a program that the source package does not build.

use std::collections::{BTreeMap, VecDeque};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

use anyhow::Result;

use super::suite::Suite;
use super::table::Outcome;

/// Tests of one process take about so long together.
const BATCH_SECONDS: f64 = 60.0;
const BATCH_TESTS: usize = 8;
/// For a test that was never run. What upstream calls slow, or is known to wait long where it fails, gets a process of its own.
const USUAL_SECONDS: f64 = 15.0;
const SLOW: [&str; 4] = ["[Slow]", "StatefulSet", "Job", "Probing container"];

/// Tests that one process runs. `expected` has seconds by name, where known.
pub fn batches(tests: &[String], expected: &BTreeMap<String, f64>) -> VecDeque<Vec<String>> {
    let unknown =
        |name: &String| if SLOW.iter().any(|word| name.contains(word)) { BATCH_SECONDS } else { USUAL_SECONDS };
    let seconds = |name: &String| expected.get(name).copied().unwrap_or_else(|| unknown(name));
    let mut sorted: Vec<&String> = tests.iter().collect();
    sorted.sort_by(|a, b| seconds(b).total_cmp(&seconds(a)));
    let mut out: VecDeque<Vec<String>> = VecDeque::new();
    let mut full = f64::INFINITY;
    for name in sorted {
        match out.back_mut() {
            Some(batch) if full + seconds(name) <= BATCH_SECONDS && batch.len() < BATCH_TESTS => {
                batch.push(name.clone());
                full += seconds(name);
            }
            _ => {
                out.push_back(vec![name.clone()]);
                full = seconds(name);
            }
        }
    }
    out
}

/// Runs every batch on one of `workers` processes at a time and tells each outcome as it comes. A test that its process did not
/// reach runs again, alone; alone it has an outcome in any case.
pub fn run(
    suite: &Suite,
    work: VecDeque<Vec<String>>,
    workers: usize,
    turn: &AtomicUsize,
    tell: &(dyn Fn(Outcome) + Sync),
) -> Result<()> {
    let queue = Mutex::new(work);
    let next = || queue.lock().unwrap_or_else(PoisonError::into_inner).pop_front();
    let worker = || -> Result<()> {
        while let Some(batch) = next() {
            let outcomes = suite.run(&batch, turn.fetch_add(1, Ordering::Relaxed))?;
            let missing: Vec<String> =
                batch.into_iter().filter(|name| outcomes.iter().all(|outcome| outcome.name != *name)).collect();
            outcomes.into_iter().for_each(tell);
            queue.lock().unwrap_or_else(PoisonError::into_inner).extend(missing.into_iter().map(|name| vec![name]));
        }
        Ok(())
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..workers.max(1)).map(|_| scope.spawn(worker)).collect();
        threads
            .into_iter()
            .try_for_each(|thread| thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic)))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_come_first_and_short_ones_share_a_process() {
        let names: Vec<String> = ["short", "long", "brief", "new"].map(str::to_owned).to_vec();
        let expected = BTreeMap::from([("short".into(), 5.0), ("long".into(), 300.0), ("brief".into(), 4.0)]);
        let made: Vec<Vec<String>> = batches(&names, &expected).into();
        assert_eq!(made, vec![vec!["long".to_owned()], vec!["new".into(), "short".into(), "brief".into()]]);
    }

    #[test]
    fn a_batch_is_bounded() {
        let names: Vec<String> = (0..20).map(|n| n.to_string()).collect();
        let expected = names.iter().map(|name| (name.clone(), 0.1)).collect();
        let made = batches(&names, &expected);
        assert_eq!(made.iter().map(Vec::len).collect::<Vec<_>>(), [8, 8, 4]);
    }
}
