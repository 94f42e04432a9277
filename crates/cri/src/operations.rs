//! How often each call was made, how long it took and how often it failed, for whoever shows metrics.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;

/// Upstream's buckets of runtime operations: 5 ms, and 2.5 times as much each, in seconds.
pub const BOUNDS_SECONDS: [f64; 14] = [
    0.005,
    0.0125,
    0.03125,
    0.078125,
    0.1953125,
    0.48828125,
    1.220703125,
    3.0517578125,
    7.62939453125,
    19.073486328125,
    47.6837158203125,
    119.20928955078125,
    298.0232238769531,
    745.0580596923828,
];

/// A histogram of durations over some bounds, in seconds and ascending.
#[derive(Clone, Debug, PartialEq)]
pub struct Durations {
    pub bounds: &'static [f64],
    /// Of each bound how many were above the bound before it and not above it.
    pub counts: Vec<u64>,
    /// Of all, those above the last bound included.
    pub count: u64,
    pub sum_seconds: f64,
}

impl Durations {
    pub fn new(bounds: &'static [f64]) -> Self {
        Durations { bounds, counts: vec![0; bounds.len()], count: 0, sum_seconds: 0.0 }
    }

    pub fn observe(&mut self, duration: Duration) {
        let seconds = duration.as_secs_f64();
        if let Some(at) = self.bounds.iter().position(|bound| seconds <= *bound) {
            self.counts[at] += 1;
        }
        self.count += 1;
        self.sum_seconds += seconds;
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct Operation {
    pub durations: Durations,
    pub errors: u64,
}

/// By the path of the call: `/runtime.v1.RuntimeService/Version`.
#[derive(Debug, Default)]
pub(crate) struct Operations(Mutex<BTreeMap<&'static str, Operation>>);

impl Operations {
    pub(crate) fn note(&self, method: &'static str, took: Duration, failed: bool) {
        let mut known = self.0.lock();
        let fresh = || Operation { durations: Durations::new(&BOUNDS_SECONDS), errors: 0 };
        let operation = known.entry(method).or_insert_with(fresh);
        operation.durations.observe(took);
        operation.errors += u64::from(failed);
    }

    pub(crate) fn all(&self) -> Vec<(&'static str, Operation)> {
        self.0.lock().iter().map(|(method, operation)| (*method, operation.clone())).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn calls_are_counted_by_their_method() {
        let operations = Operations::default();
        operations.note("/a/B", Duration::from_millis(5), false);
        operations.note("/a/B", Duration::from_secs(1000), true);
        let [(method, operation)] = <[_; 1]>::try_from(operations.all()).unwrap();
        assert_eq!((method, operation.errors, operation.durations.count), ("/a/B", 1, 2));
        assert_eq!((operation.durations.counts[0], operation.durations.counts.iter().sum::<u64>()), (1, 1));
    }
}
