//! Request counts and latencies, under upstream's names, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use crate::request::RequestInfo;

/// Upper bounds in seconds of upstream's `apiserver_request_duration_seconds`, thinned.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0];

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Label {
    verb: String,
    group: String,
    version: String,
    resource: String,
    subresource: String,
}

#[derive(Default)]
struct Latency {
    counts: [u64; BUCKETS.len()],
    total: u64,
    sum_seconds: f64,
}

#[derive(Default)]
struct State {
    requests: BTreeMap<(Label, u16), u64>,
    latency: BTreeMap<Label, Latency>,
}

/// One process's counters. Bounded: labels come from served resources only.
#[derive(Default)]
pub struct Metrics {
    state: Mutex<State>,
}

impl Metrics {
    pub fn label(&self, info: &RequestInfo) -> Option<Label> {
        info.is_resource.then(|| Label {
            verb: info.verb.to_ascii_uppercase(),
            group: info.group.clone(),
            version: info.version.clone(),
            resource: info.resource.clone(),
            subresource: info.subresource.clone(),
        })
    }

    pub fn observe(&self, label: Option<Label>, code: u16, took: Duration) {
        // An unknown path is 404 before any label could be trusted: clients must not be able to grow the table.
        let Some(label) = label.filter(|_| code != 404) else { return };
        let mut state = self.state.lock();
        if label.verb != "WATCH" {
            let seconds = took.as_secs_f64();
            let latency = state.latency.entry(label.clone()).or_default();
            latency.total += 1;
            latency.sum_seconds += seconds;
            for (count, bound) in latency.counts.iter_mut().zip(BUCKETS) {
                *count += u64::from(seconds <= bound);
            }
        }
        *state.requests.entry((label, code)).or_default() += 1;
    }

    pub fn render(&self) -> String {
        let state = self.state.lock();
        let mut out = String::new();
        out.push_str("# HELP apiserver_request_total Requests by verb, resource and code.\n# TYPE apiserver_request_total counter\n");
        for ((label, code), count) in &state.requests {
            let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{}}} {count}", labels(label));
        }
        out.push_str("# HELP apiserver_request_duration_seconds Latency of requests.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (label, latency) in &state.latency {
            let labels = labels(label);
            let name = "apiserver_request_duration_seconds";
            for (count, bound) in latency.counts.iter().zip(BUCKETS) {
                let _ = writeln!(out, "{name}_bucket{{{labels},le=\"{bound}\"}} {count}");
            }
            let _ = writeln!(out, "{name}_bucket{{{labels},le=\"+Inf\"}} {}", latency.total);
            let _ = writeln!(out, "{name}_sum{{{labels}}} {}", latency.sum_seconds);
            let _ = writeln!(out, "{name}_count{{{labels}}} {}", latency.total);
        }
        out
    }
}

fn labels(label: &Label) -> String {
    format!(
        "group={:?},resource={:?},subresource={:?},verb={:?},version={:?}",
        label.group, label.resource, label.subresource, label.verb, label.version
    )
}
