//! The objects of the load: a pod as a Deployment's controller would make it, and a small config map.

use bytes::Bytes;
use serde_json::{Value, json};

pub const NAMESPACE: &str = "bench";

/// A scheduler that nobody is, so that the pods stay as they are.
const NO_SCHEDULER: &str = "bench-leaves-these-alone";

pub fn pod_name(index: usize) -> String {
    format!("web-7d4b9c6f5d-{index:05}")
}

pub fn pods() -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods")
}

pub fn pod_path(index: usize) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/pods/{}", pod_name(index))
}

/// About 3.6 KB as stored: a container with environment, resources and a probe, labels, annotations, the volume of its token.
pub fn pod(index: usize) -> Bytes {
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {
            "name": pod_name(index), "namespace": NAMESPACE,
            "labels": {
                "app.kubernetes.io/name": "web", "app.kubernetes.io/part-of": "shop", "pod-template-hash": "7d4b9c6f5d",
                "shard": format!("s{}", index % 16),
            },
            "annotations": {
                "prometheus.io/scrape": "true", "prometheus.io/port": "9102",
                "checksum/config": "9f86d081884c7d659a2feaa0c55ad015a3bf4f1b2b0b822cd15d6c15b0f00a08",
            },
        },
        "spec": {
            "schedulerName": NO_SCHEDULER,
            "serviceAccountName": "default",
            "containers": [web()],
        },
    })
    .to_string()
    .into()
}

fn web() -> Value {
    json!({
        "name": "web", "image": "registry.example.com/shop/web:1.24.3",
        "ports": [{"name": "http", "containerPort": 8080}],
        "env": [
            {"name": "LOG_LEVEL", "value": "info"},
            {"name": "POD_IP", "valueFrom": {"fieldRef": {"fieldPath": "status.podIP"}}},
        ],
        "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}, "limits": {"memory": "256Mi"}},
        "readinessProbe": {"httpGet": {"path": "/ready", "port": "http"}, "periodSeconds": 5},
    })
}

fn short_lived_name(index: usize) -> String {
    format!("short-lived-{index:03}")
}

pub fn short_lived_path(index: usize) -> String {
    format!("{}/{}", pods(), short_lived_name(index))
}

/// A pod that runs until it is told to end, and then ends at once. Its image has to be on the node.
pub fn short_lived(index: usize) -> Bytes {
    let script = "trap 'exit 0' TERM; sleep 1000000 & wait";
    json!({
        "apiVersion": "v1", "kind": "Pod",
        "metadata": {"name": short_lived_name(index), "namespace": NAMESPACE},
        "spec": {"containers": [{
            "name": "main", "image": "docker.io/library/busybox:1", "imagePullPolicy": "IfNotPresent",
            "command": ["sh", "-c", script],
        }]},
    })
    .to_string()
    .into()
}

/// How pods of the scheduling rows want to be placed.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Shape {
    Plain,
    /// Evenly over hosts, strictly.
    Spread,
    /// No two on one host.
    Repelling,
}

impl Shape {
    pub fn title(self, count: usize) -> String {
        match self {
            Shape::Plain => format!("{count} pods"),
            Shape::Spread => format!("{count} pods with spread"),
            Shape::Repelling => format!("{count} pods with anti-affinity"),
        }
    }
}

pub fn small_name(shape: Shape, index: usize) -> String {
    format!("{shape:?}-{index:05}").to_lowercase()
}

/// A pod for the scheduler: one container that asks for a little.
pub fn small(shape: Shape, index: usize) -> Bytes {
    let group = format!("{shape:?}").to_lowercase();
    let selector = json!({"matchLabels": {"group": group}});
    let mut spec = json!({
        "containers": [{"name": "main", "image": "docker.io/library/busybox:1",
            "resources": {"requests": {"cpu": "100m", "memory": "128Mi"}}}],
    });
    match shape {
        Shape::Plain => {}
        Shape::Spread => {
            spec["topologySpreadConstraints"] = json!([{
                "maxSkew": 1, "topologyKey": "kubernetes.io/hostname", "whenUnsatisfiable": "DoNotSchedule",
                "labelSelector": selector,
            }]);
        }
        Shape::Repelling => {
            spec["affinity"] = json!({"podAntiAffinity": {"requiredDuringSchedulingIgnoredDuringExecution": [{
                "topologyKey": "kubernetes.io/hostname", "labelSelector": selector,
            }]}});
        }
    }
    json!({
        "apiVersion": "v1", "kind": "Pod", "spec": spec,
        "metadata": {"name": small_name(shape, index), "namespace": NAMESPACE, "labels": {"group": group}},
    })
    .to_string()
    .into()
}

/// Changes one annotation, so that no two states of a pod are the same.
pub fn pod_patch(round: usize) -> String {
    json!({"metadata": {"annotations": {"bench/round": round.to_string()}}}).to_string()
}

pub fn config_map_path(index: usize) -> String {
    format!("/api/v1/namespaces/{NAMESPACE}/configmaps/settings-{index}?fieldManager=bench&force=true")
}

pub fn config_map(index: usize, round: usize) -> String {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": format!("settings-{index}"), "labels": {"app.kubernetes.io/name": "web"}},
        "data": {"level": "info", "endpoint": "https://example.com/api", "round": round.to_string()},
    })
    .to_string()
}
