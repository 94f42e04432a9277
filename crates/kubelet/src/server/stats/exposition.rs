//! Metrics in the text format of Prometheus.

use std::fmt::{Display, Write as _};

use cri::operations::Durations;
use jiff::Timestamp;

use super::{ContainerSample, PodSample, Sample};

/// Families of metrics under construction.
#[derive(Default)]
pub(super) struct Exposition(pub(super) String);

pub(super) type Labels<'a> = &'a [(&'a str, &'a str)];

impl Exposition {
    pub(super) fn family(&mut self, name: &str, kind: &str, help: &str) {
        // Writing into a string cannot fail.
        let _ = writeln!(self.0, "# HELP {name} {help}\n# TYPE {name} {kind}");
    }

    pub(super) fn value(&mut self, name: &str, labels: Labels<'_>, value: impl Display, time: Option<Timestamp>) {
        self.0.push_str(name);
        let mut separator = '{';
        for (label, value) in labels {
            let value = value.replace('\\', "\\\\").replace('"', "\\\"").replace('\n', "\\n");
            let _ = write!(self.0, "{separator}{label}=\"{value}\"");
            separator = ',';
        }
        if !labels.is_empty() {
            self.0.push('}');
        }
        let _ = write!(self.0, " {value}");
        if let Some(time) = time {
            let _ = write!(self.0, " {}", time.as_millisecond());
        }
        self.0.push('\n');
    }

    /// The lines of one histogram of the family.
    pub(super) fn durations(&mut self, name: &str, labels: Labels<'_>, durations: &Durations) {
        let (bucket, mut up_to) = (format!("{name}_bucket"), 0);
        for (bound, count) in durations.bounds.iter().zip(&durations.counts) {
            up_to += count;
            let bound = bound.to_string();
            self.value(&bucket, &[labels, &[("le", &bound)]].concat(), up_to, None);
        }
        self.value(&bucket, &[labels, &[("le", "+Inf")]].concat(), durations.count, None);
        self.value(&format!("{name}_sum"), labels, durations.sum_seconds, None);
        self.value(&format!("{name}_count"), labels, durations.count, None);
    }
}

fn cpu_seconds(nanos: u64) -> f64 {
    nanos as f64 / 1e9
}

fn unix_seconds(time: Timestamp) -> f64 {
    time.as_millisecond() as f64 / 1e3
}

fn containers(sample: &Sample) -> impl Iterator<Item = (&PodSample, &ContainerSample)> {
    sample.pods.iter().flat_map(|pod| pod.containers.iter().map(move |container| (pod, container)))
}

/// `/metrics/resource`: what the metrics server reads.
pub fn resource_metrics(sample: &Sample) -> String {
    let mut out = Exposition::default();
    let labels = |pod: &PodSample, container: &ContainerSample| {
        [("container", container.name.clone()), ("namespace", pod.namespace.clone()), ("pod", pod.name.clone())]
    };
    let name = "container_cpu_usage_seconds_total";
    out.family(name, "counter", "[STABLE] Cumulative cpu time consumed by the container in core-seconds");
    for (pod, container) in containers(sample) {
        if let Some(cpu) = container.cpu {
            out.value(name, &borrowed(&labels(pod, container)), cpu_seconds(cpu.core_nanos), Some(cpu.time));
        }
    }
    let name = "container_memory_working_set_bytes";
    out.family(name, "gauge", "[STABLE] Current working set of the container in bytes");
    for (pod, container) in containers(sample) {
        if let Some(bytes) = container.memory.working_set {
            out.value(name, &borrowed(&labels(pod, container)), bytes, Some(sample.time));
        }
    }
    let name = "container_start_time_seconds";
    out.family(name, "gauge", "[STABLE] Start time of the container since unix epoch in seconds");
    for (pod, container) in containers(sample) {
        out.value(name, &borrowed(&labels(pod, container)), unix_seconds(container.started), None);
    }
    let name = "node_cpu_usage_seconds_total";
    out.family(name, "counter", "[STABLE] Cumulative cpu time consumed by the node in core-seconds");
    out.value(name, &[], cpu_seconds(sample.node_cpu.core_nanos), Some(sample.node_cpu.time));
    let name = "node_memory_working_set_bytes";
    out.family(name, "gauge", "[STABLE] Current working set of the node in bytes");
    out.value(name, &[], sample.host.memory.working_set.unwrap_or(0), Some(sample.time));
    let name = "pod_cpu_usage_seconds_total";
    out.family(name, "counter", "[STABLE] Cumulative cpu time consumed by the pod in core-seconds");
    for pod in &sample.pods {
        if let Some(nanos) = pod.sum(|container| container.cpu.map(|cpu| cpu.core_nanos)) {
            out.value(
                name,
                &[("namespace", &pod.namespace), ("pod", &pod.name)],
                cpu_seconds(nanos),
                Some(sample.time),
            );
        }
    }
    let name = "pod_memory_working_set_bytes";
    out.family(name, "gauge", "[STABLE] Current working set of the pod in bytes");
    for pod in &sample.pods {
        if let Some(bytes) = pod.sum(|container| container.memory.working_set) {
            out.value(name, &[("namespace", &pod.namespace), ("pod", &pod.name)], bytes, Some(sample.time));
        }
    }
    let name = "resource_scrape_error";
    out.family(name, "gauge", "[STABLE] 1 if there was an error while getting container metrics, 0 otherwise");
    out.value(name, &[], 0, None);
    out.0
}

/// `/metrics/cadvisor`: the families that dashboards are built on.
pub fn cadvisor_metrics(sample: &Sample) -> String {
    let mut out = Exposition::default();
    let labels = |pod: &PodSample, container: &ContainerSample| {
        [
            ("container", container.name.clone()),
            ("id", container.id.clone()),
            ("image", container.image.clone()),
            ("name", container.id.clone()),
            ("namespace", pod.namespace.clone()),
            ("pod", pod.name.clone()),
        ]
    };
    let mut family = |name: &str, kind: &str, help: &str, of: &dyn Fn(&ContainerSample) -> Option<String>| {
        out.family(name, kind, help);
        for (pod, container) in containers(sample) {
            if let Some(value) = of(container) {
                out.value(name, &borrowed(&labels(pod, container)), value, Some(sample.time));
            }
        }
    };
    family("container_cpu_usage_seconds_total", "counter", "Cumulative cpu time consumed in seconds.", &|c| {
        c.cpu.map(|cpu| cpu_seconds(cpu.core_nanos).to_string())
    });
    family(
        "container_memory_usage_bytes",
        "gauge",
        "Current memory usage in bytes, including all memory regardless of when it was accessed",
        &|c| c.memory.usage.map(|bytes| bytes.to_string()),
    );
    family("container_memory_working_set_bytes", "gauge", "Current working set in bytes.", &|c| {
        c.memory.working_set.map(|bytes| bytes.to_string())
    });
    family("container_memory_rss", "gauge", "Size of RSS in bytes.", &|c| c.memory.rss.map(|bytes| bytes.to_string()));
    family(
        "container_fs_usage_bytes",
        "gauge",
        "Number of bytes that are consumed by the container on this filesystem.",
        &|c| c.writable_bytes.map(|bytes| bytes.to_string()),
    );
    family("container_start_time_seconds", "gauge", "Start time of the container since unix epoch in seconds.", &|c| {
        Some(unix_seconds(c.started).to_string())
    });
    network(&mut out, sample);
    out.family("machine_cpu_cores", "gauge", "Number of logical CPU cores.");
    out.value("machine_cpu_cores", &[], sample.host.cores, None);
    out.family("machine_memory_bytes", "gauge", "Amount of memory installed on the machine.");
    out.value("machine_memory_bytes", &[], sample.host.memory_total, None);
    out.0
}

type Counter = fn(&super::host::Interface) -> u64;

/// Of each pod's own network; the node's is its exporter's to tell.
fn network(out: &mut Exposition, sample: &Sample) {
    let families: [(&str, &str, Counter); 4] = [
        ("container_network_receive_bytes_total", "Cumulative count of bytes received", |i| i.rx_bytes),
        ("container_network_receive_errors_total", "Cumulative count of errors encountered while receiving", |i| {
            i.rx_errors
        }),
        ("container_network_transmit_bytes_total", "Cumulative count of bytes transmitted", |i| i.tx_bytes),
        ("container_network_transmit_errors_total", "Cumulative count of errors encountered while transmitting", |i| {
            i.tx_errors
        }),
    ];
    for (name, help, of) in families {
        out.family(name, "counter", help);
        for pod in &sample.pods {
            for interface in &pod.interfaces {
                let labels = [
                    ("container", ""),
                    ("interface", interface.name.as_str()),
                    ("namespace", &pod.namespace),
                    ("pod", &pod.name),
                ];
                out.value(name, &labels, of(interface), Some(sample.time));
            }
        }
    }
}

fn borrowed<'a, const N: usize>(labels: &'a [(&'a str, String); N]) -> [(&'a str, &'a str); N] {
    std::array::from_fn(|at| (labels[at].0, labels[at].1.as_str()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines() {
        let mut out = Exposition::default();
        out.family("a_total", "counter", "Help.");
        out.value("a_total", &[("x", "q\"\\\n"), ("y", "")], 1.5, Some(Timestamp::from_millisecond(7).unwrap()));
        out.value("b", &[], 3, None);
        assert_eq!(
            out.0,
            "# HELP a_total Help.\n# TYPE a_total counter\na_total{x=\"q\\\"\\\\\\n\",y=\"\"} 1.5 7\nb 3\n"
        );
    }
}
