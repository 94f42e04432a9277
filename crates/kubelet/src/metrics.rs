//! What the kubelet counts of its own work. Written by workers and probes, read by the HTTP server.

use std::collections::BTreeMap;
use std::time::Duration;

use cri::operations::Durations;
use parking_lot::Mutex;

/// Upstream's buckets, in seconds.
const START_BOUNDS: [f64; 25] = [
    0.5, 1.0, 2.0, 3.0, 4.0, 5.0, 6.0, 8.0, 10.0, 20.0, 30.0, 45.0, 60.0, 120.0, 180.0, 240.0, 300.0, 360.0, 480.0,
    600.0, 900.0, 1200.0, 1800.0, 2700.0, 3600.0,
];
const WORK_BOUNDS: [f64; 11] = [0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.5, 5.0, 10.0];

/// One container's probe and how it came out: `successful`, `failed` or `unknown`.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct ProbeKey {
    pub namespace: String,
    pub pod: String,
    pub uid: String,
    pub container: String,
    /// `Liveness`, `Readiness` or `Startup`.
    pub kind: &'static str,
    pub result: &'static str,
}

#[derive(Clone, Debug)]
pub struct Counts {
    /// From the first sight of a pod until it was seen to run.
    pub pod_start: Durations,
    /// Of one round of a pod's worker, by what it did (`create`, `sync`).
    pub pod_worker: BTreeMap<&'static str, Durations>,
    pub probes: BTreeMap<ProbeKey, u64>,
}

/// Shared by all.
#[derive(Debug)]
pub struct Metrics(Mutex<Counts>);

impl Default for Metrics {
    fn default() -> Self {
        let pod_start = Durations::new(&START_BOUNDS);
        Metrics(Mutex::new(Counts { pod_start, pod_worker: BTreeMap::new(), probes: BTreeMap::new() }))
    }
}

impl Metrics {
    pub fn pod_started(&self, took: Duration) {
        self.0.lock().pod_start.observe(took);
    }

    pub fn worked(&self, what: &'static str, took: Duration) {
        let mut counts = self.0.lock();
        counts.pod_worker.entry(what).or_insert_with(|| Durations::new(&WORK_BOUNDS)).observe(took);
    }

    pub fn probed(&self, key: ProbeKey) {
        *self.0.lock().probes.entry(key).or_default() += 1;
    }

    /// The pod is gone, and its counters with it.
    pub fn forget(&self, uid: &str) {
        self.0.lock().probes.retain(|key, _| key.uid != uid);
    }

    pub fn all(&self) -> Counts {
        self.0.lock().clone()
    }
}
