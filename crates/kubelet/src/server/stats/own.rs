//! `/metrics` and `/metrics/probes`: the kubelet's own work.

use std::collections::HashMap;
use std::sync::Arc;

use cri::operations::Operation;

use super::VolumeSample;
use super::exposition::Exposition;
use super::host::Filesystem;
use crate::metrics::Counts;
use crate::pods::{PodRecord, RunState};

pub struct Own<'a> {
    pub node_name: &'a str,
    pub pods: &'a [Arc<PodRecord>],
    pub counts: &'a Counts,
    pub operations: &'a [(&'static str, Operation)],
    /// By the pod's UID.
    pub volumes: &'a HashMap<String, Vec<VolumeSample>>,
}

pub fn own_metrics(own: &Own<'_>) -> String {
    let mut out = Exposition::default();
    out.family("kubelet_node_name", "gauge", "[ALPHA] The node's name. The count is always 1.");
    out.value("kubelet_node_name", &[("node", own.node_name)], 1, None);
    running(&mut out, own.pods);
    let name = "kubelet_pod_start_duration_seconds";
    out.family(name, "histogram", "[ALPHA] Seconds from the first sight of a pod until it runs");
    out.durations(name, &[], &own.counts.pod_start);
    let name = "kubelet_pod_worker_duration_seconds";
    out.family(name, "histogram", "[ALPHA] Seconds of one round of a pod's worker, by operation");
    for (what, durations) in &own.counts.pod_worker {
        out.durations(name, &[("operation_type", what)], durations);
    }
    operations(&mut out, own.operations);
    volumes(&mut out, own);
    out.0
}

fn running(out: &mut Exposition, pods: &[Arc<PodRecord>]) {
    let containers = |state: RunState| {
        pods.iter().flat_map(|record| &record.containers).filter(|container| container.state == state).count()
    };
    let running = |record: &&Arc<PodRecord>| record.sandbox_id.is_some();
    out.family("kubelet_running_pods", "gauge", "[ALPHA] Number of pods that have a running pod sandbox");
    out.value("kubelet_running_pods", &[], pods.iter().filter(running).count(), None);
    out.family("kubelet_running_containers", "gauge", "[ALPHA] Number of containers currently running");
    for (state, name) in [
        (RunState::Created, "created"),
        (RunState::Exited, "exited"),
        (RunState::Running, "running"),
        (RunState::Unknown, "unknown"),
    ] {
        out.value("kubelet_running_containers", &[("container_state", name)], containers(state), None);
    }
}

fn operations(out: &mut Exposition, operations: &[(&'static str, Operation)]) {
    let names: Vec<String> = operations.iter().map(|(method, _)| operation_name(method)).collect();
    let each = || names.iter().zip(operations).map(|(name, (_, operation))| (name.as_str(), operation));
    let name = "kubelet_runtime_operations_total";
    out.family(name, "counter", "[ALPHA] Calls of the container runtime, by operation");
    for (kind, operation) in each() {
        out.value(name, &[("operation_type", kind)], operation.durations.count, None);
    }
    let name = "kubelet_runtime_operations_errors_total";
    out.family(name, "counter", "[ALPHA] Failed calls of the container runtime, by operation");
    for (kind, operation) in each() {
        out.value(name, &[("operation_type", kind)], operation.errors, None);
    }
    let name = "kubelet_runtime_operations_duration_seconds";
    out.family(name, "histogram", "[ALPHA] Seconds of calls of the container runtime, by operation");
    for (kind, operation) in each() {
        out.durations(name, &[("operation_type", kind)], &operation.durations);
    }
}

/// Upstream's name of a call: its method in lower case, with `podsandbox` as one word.
fn operation_name(method: &str) -> String {
    let method = method.rsplit('/').next().unwrap_or_default();
    let mut name = String::new();
    for letter in method.chars() {
        if letter.is_ascii_uppercase() && !name.is_empty() {
            name.push('_');
        }
        name.push(letter.to_ascii_lowercase());
    }
    name.replace("pod_sandbox", "podsandbox")
}

type Amount = fn(&Filesystem) -> u64;

/// Of volumes that are claims, as upstream.
fn volumes(out: &mut Exposition, own: &Own<'_>) {
    let families: [(&str, &str, Amount); 6] = [
        ("kubelet_volume_stats_capacity_bytes", "[ALPHA] Capacity in bytes of the volume", |fs| fs.capacity),
        ("kubelet_volume_stats_available_bytes", "[ALPHA] Number of available bytes in the volume", |fs| fs.available),
        ("kubelet_volume_stats_used_bytes", "[ALPHA] Number of used bytes in the volume", |fs| fs.used),
        ("kubelet_volume_stats_inodes", "[ALPHA] Maximum number of inodes in the volume", |fs| fs.inodes),
        ("kubelet_volume_stats_inodes_free", "[ALPHA] Number of free inodes in the volume", |fs| fs.inodes_free),
        ("kubelet_volume_stats_inodes_used", "[ALPHA] Number of used inodes in the volume", |fs| fs.inodes_used),
    ];
    for (name, help, of) in families {
        out.family(name, "gauge", help);
        // Two pods may have the same claim.
        let mut told = std::collections::HashSet::new();
        for pod in own.pods {
            let namespace = pod.pod.metadata.namespace.as_deref().unwrap_or_default();
            for volume in own.volumes.get(pod.uid()).into_iter().flatten() {
                let Some(claim) = volume.claim.as_deref().filter(|claim| told.insert((namespace, *claim))) else {
                    continue;
                };
                let labels = [("namespace", namespace), ("persistentvolumeclaim", claim)];
                out.value(name, &labels, of(&volume.filesystem), None);
            }
        }
    }
}

pub fn probe_metrics(counts: &Counts) -> String {
    let mut out = Exposition::default();
    let name = "prober_probe_total";
    out.family(name, "counter", "[BETA] Cumulative number of a probe of a container by result");
    for (key, count) in &counts.probes {
        let labels = [
            ("container", key.container.as_str()),
            ("namespace", &key.namespace),
            ("pod", &key.pod),
            ("pod_uid", &key.uid),
            ("probe_type", key.kind),
            ("result", key.result),
        ];
        out.value(name, &labels, count, None);
    }
    out.0
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::metrics::{Metrics, ProbeKey};

    #[test]
    fn calls_have_upstreams_names() {
        let names =
            ["/runtime.v1.RuntimeService/ListPodSandbox", "/runtime.v1.ImageService/PullImage"].map(operation_name);
        assert_eq!(names, ["list_podsandbox", "pull_image"]);
    }

    #[test]
    fn what_is_counted_is_shown() {
        let metrics = Metrics::default();
        metrics.pod_started(Duration::from_millis(1500));
        metrics.worked("sync", Duration::from_millis(7));
        let key = ProbeKey {
            namespace: "ns".to_owned(),
            pod: "p".to_owned(),
            uid: "u".to_owned(),
            container: "c".to_owned(),
            kind: "Liveness",
            result: "failed",
        };
        metrics.probed(key.clone());
        metrics.probed(key);
        let (counts, volumes) = (metrics.all(), HashMap::new());
        let own = Own { node_name: "n1", pods: &[], counts: &counts, operations: &[], volumes: &volumes };
        let text = own_metrics(&own);
        for line in [
            "kubelet_node_name{node=\"n1\"} 1\n",
            "kubelet_pod_start_duration_seconds_bucket{le=\"1\"} 0\n",
            "kubelet_pod_start_duration_seconds_bucket{le=\"2\"} 1\n",
            "kubelet_pod_start_duration_seconds_sum 1.5\n",
            "kubelet_pod_worker_duration_seconds_count{operation_type=\"sync\"} 1\n",
        ] {
            assert!(text.contains(line), "{line} not in {text}");
        }
        let line = "prober_probe_total{container=\"c\",namespace=\"ns\",pod=\"p\",pod_uid=\"u\",probe_type=\"Liveness\",result=\"failed\"} 2\n";
        assert!(probe_metrics(&counts).contains(line));
        metrics.forget("u");
        assert!(!probe_metrics(&metrics.all()).contains(line));
    }
}
