//! Request counts and latencies, under upstream's names, in Prometheus' text format.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::time::Duration;

use parking_lot::Mutex;

use crate::request::RequestInfo;

/// Upper bounds in seconds of upstream's `apiserver_request_duration_seconds`, thinned.
const BUCKETS: [f64; 12] = [0.005, 0.025, 0.05, 0.1, 0.2, 0.4, 0.6, 1.0, 2.0, 5.0, 15.0, 60.0];

/// Verb, group, version, resource and subresource in one text, so that counting a request allocates once.
pub struct Label(String);

const SEPARATOR: char = '\n';

#[derive(Default)]
struct Series {
    codes: Vec<(u16, u64)>,
    latency: Latency,
}

#[derive(Default)]
struct Latency {
    counts: [u64; BUCKETS.len()],
    total: u64,
    sum_seconds: f64,
}

/// One process's counters. Bounded: labels come from served resources only.
#[derive(Default)]
pub struct Metrics {
    series: Mutex<BTreeMap<Box<str>, Series>>,
}

impl Metrics {
    pub fn label(&self, info: &RequestInfo) -> Option<Label> {
        if !info.is_resource {
            return None;
        }
        let parts = [&info.verb, &info.group, &info.version, &info.resource, &info.subresource];
        let mut text = String::with_capacity(parts.iter().map(|part| part.len() + 1).sum());
        for part in parts {
            text.push_str(part);
            text.push(SEPARATOR);
        }
        Some(Label(text))
    }

    pub fn observe(&self, label: Option<Label>, code: u16, took: Duration) {
        // An unknown path is 404 before any label could be trusted: clients must not be able to grow the table.
        let Some(Label(label)) = label.filter(|_| code != 404) else { return };
        let mut all = self.series.lock();
        if !all.contains_key(&*label) {
            all.insert(label.as_str().into(), Series::default());
        }
        let series = all.get_mut(&*label).expect("it has just been put in");
        match series.codes.iter_mut().find(|(known, _)| *known == code) {
            Some((_, count)) => *count += 1,
            None => series.codes.push((code, 1)),
        }
        if !label.starts_with("watch\n") {
            series.latency.add(took.as_secs_f64());
        }
    }

    pub fn render(&self) -> String {
        let all = self.series.lock();
        let mut out = String::new();
        out.push_str("# HELP apiserver_request_total Requests by verb, resource and code.\n# TYPE apiserver_request_total counter\n");
        for (label, series) in &*all {
            let labels = labels(label);
            for (code, count) in &series.codes {
                let _ = writeln!(out, "apiserver_request_total{{code=\"{code}\",{labels}}} {count}");
            }
        }
        out.push_str("# HELP apiserver_request_duration_seconds Latency of requests.\n# TYPE apiserver_request_duration_seconds histogram\n");
        for (label, Series { latency, .. }) in all.iter().filter(|(_, series)| series.latency.total > 0) {
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

impl Latency {
    fn add(&mut self, seconds: f64) {
        self.total += 1;
        self.sum_seconds += seconds;
        for (count, bound) in self.counts.iter_mut().zip(BUCKETS) {
            *count += u64::from(seconds <= bound);
        }
    }
}

fn labels(label: &str) -> String {
    let mut parts = label.split(SEPARATOR);
    let mut part = || parts.next().unwrap_or_default();
    let (verb, group, version, resource, subresource) = (part(), part(), part(), part(), part());
    let verb = verb.to_ascii_uppercase();
    format!("group={group:?},resource={resource:?},subresource={subresource:?},verb={verb:?},version={version:?}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_series_has_upstreams_labels_and_unknown_paths_have_none() {
        let info = RequestInfo {
            is_resource: true,
            verb: "get".to_owned(),
            version: "v1".to_owned(),
            resource: "pods".to_owned(),
            ..RequestInfo::default()
        };
        let metrics = Metrics::default();
        for code in [200, 404, 200] {
            metrics.observe(metrics.label(&info), code, Duration::from_millis(30));
        }
        let text = metrics.render();
        let labels = "group=\"\",resource=\"pods\",subresource=\"\",verb=\"GET\",version=\"v1\"";
        assert!(text.contains(&format!("apiserver_request_total{{code=\"200\",{labels}}} 2\n")), "{text}");
        assert!(text.contains(&format!("_bucket{{{labels},le=\"0.05\"}} 2\n")), "{text}");
        assert!(!text.contains("404"), "{text}");
    }
}
