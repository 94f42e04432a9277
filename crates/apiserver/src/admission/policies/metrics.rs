//! Counts and latencies of policies' decisions, under upstream's metric names.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use super::Phase;

const BUCKETS: [f64; 5] = [0.000_000_5, 0.001, 0.01, 0.1, 1.0];

/// What one expression came to. Bounded by the policies and bindings that have been configured.
#[derive(Default)]
pub struct Tally {
    series: Mutex<BTreeMap<(usize, String), Latency>>,
}

#[derive(Default)]
struct Latency {
    counts: [u64; BUCKETS.len()],
    total: u64,
    sum_seconds: f64,
}

/// By the message of a fault, `None` for none.
pub fn error_type(fault: Option<&str>) -> &'static str {
    match fault {
        None => "no_error",
        Some(why) if why.starts_with("compilation") => "compile_error",
        Some(why) if why.starts_with("validation failed due to running out of cost budget") => "out_of_budget",
        Some(_) => "invalid_error",
    }
}

impl Tally {
    /// `action` is what a validating policy's binding makes of it: `allow`, `deny`, `audit`, `warn`.
    pub fn validated(&self, policy: &str, binding: &str, error_type: &str, action: &str, took: Duration) {
        let labels = format!(
            "enforcement_action=\"{action}\",error_type=\"{error_type}\",policy={policy:?},policy_binding={binding:?}"
        );
        self.observe(Phase::Validating, labels, took);
    }

    pub fn mutated(&self, policy: &str, binding: &str, error_type: &str, took: Duration) {
        let labels = format!("error_type=\"{error_type}\",policy={policy:?},policy_binding={binding:?}");
        self.observe(Phase::Mutating, labels, took);
    }

    fn observe(&self, phase: Phase, labels: String, took: Duration) {
        let seconds = took.as_secs_f64();
        let mut all = self.series.lock();
        let series = all.entry((phase as usize, labels)).or_default();
        series.total += 1;
        series.sum_seconds += seconds;
        for (count, bound) in series.counts.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
    }

    /// In Prometheus' text format.
    pub fn render(&self) -> String {
        let mut out = String::new();
        let all = self.series.lock();
        for (phase, system) in ["mutating_admission_policy", "validating_admission_policy"].into_iter().enumerate() {
            let own: Vec<_> = all.iter().filter(|((of, _), _)| *of == phase).collect();
            if own.is_empty() {
                continue;
            }
            let (count, latency) =
                (format!("apiserver_{system}_check_total"), format!("apiserver_{system}_check_duration_seconds"));
            let _ = writeln!(out, "# TYPE {count} counter");
            for ((_, labels), series) in &own {
                let _ = writeln!(out, "{count}{{{labels}}} {}", series.total);
            }
            let _ = writeln!(out, "# TYPE {latency} histogram");
            for ((_, labels), series) in &own {
                for (count, bound) in series.counts.iter().zip(BUCKETS) {
                    let _ = writeln!(out, "{latency}_bucket{{{labels},le=\"{bound}\"}} {count}");
                }
                let _ = writeln!(out, "{latency}_bucket{{{labels},le=\"+Inf\"}} {}", series.total);
                let _ = writeln!(out, "{latency}_sum{{{labels}}} {}", series.sum_seconds);
                let _ = writeln!(out, "{latency}_count{{{labels}}} {}", series.total);
            }
        }
        out
    }
}
