//! A hollow node as an API object: what is read of it, and what is written of it. Pure.

use std::borrow::Cow;
use std::net::Ipv4Addr;

use jiff::Timestamp;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use serde::{Deserialize, Deserializer};
use serde_json::{Value, json};

use super::Config;

pub const LEASES: &str = "/apis/coordination.k8s.io/v1/namespaces/kube-node-lease/leases";
pub const NODES: &str = "/api/v1/nodes";

/// First of the addresses that nodes report, of a network that is set aside for benchmarks and leads nowhere.
const FIRST_ADDRESS: Ipv4Addr = Ipv4Addr::new(198, 18, 0, 0);

/// What is read of a Node.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeView {
    #[serde(deserialize_with = "slim_metadata")]
    pub metadata: ObjectMeta,
    pub spec: NodeSpecView,
    pub status: NodeStatusView,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeSpecView {
    #[serde(rename = "podCIDR")]
    pub pod_cidr: String,
}

#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct NodeStatusView {
    pub conditions: Vec<ConditionView>,
}

/// Type and status of a condition.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(default)]
pub struct ConditionView {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
}

impl NodeView {
    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
    }
}

/// The few fields of metadata that matter here. Others would be parsed and dropped for every event.
pub fn slim_metadata<'de, D: Deserializer<'de>>(deserializer: D) -> Result<ObjectMeta, D::Error> {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Slim {
        name: Option<String>,
        namespace: Option<String>,
        uid: Option<String>,
        resource_version: Option<String>,
        generation: Option<i64>,
        deletion_timestamp: Option<k8s_openapi::apimachinery::pkg::apis::meta::v1::Time>,
        deletion_grace_period_seconds: Option<i64>,
        finalizers: Option<Vec<String>>,
    }
    let slim = Slim::deserialize(deserializer)?;
    Ok(ObjectMeta {
        name: slim.name,
        namespace: slim.namespace,
        uid: slim.uid,
        resource_version: slim.resource_version,
        generation: slim.generation,
        deletion_timestamp: slim.deletion_timestamp,
        deletion_grace_period_seconds: slim.deletion_grace_period_seconds,
        finalizers: slim.finalizers,
        ..ObjectMeta::default()
    })
}

impl kube::Resource for NodeView {
    type DynamicType = ();
    type Scope = k8s_openapi::ClusterResourceScope;

    fn kind((): &()) -> Cow<'_, str> {
        "Node".into()
    }
    fn group((): &()) -> Cow<'_, str> {
        "".into()
    }
    fn version((): &()) -> Cow<'_, str> {
        "v1".into()
    }
    fn plural((): &()) -> Cow<'_, str> {
        "nodes".into()
    }
    fn meta(&self) -> &ObjectMeta {
        &self.metadata
    }
    fn meta_mut(&mut self) -> &mut ObjectMeta {
        &mut self.metadata
    }
}

impl Config {
    pub fn node_name(&self, index: u32) -> String {
        format!("{}{index}", self.prefix)
    }

    /// Which of our nodes has this name, if one has.
    pub fn node_index(&self, name: &str) -> Option<u32> {
        let index: u32 = name.strip_prefix(&self.prefix)?.parse().ok()?;
        (index < self.nodes && self.node_name(index) == name).then_some(index)
    }

    /// What a node reports as its address, and pods on the host's network as theirs.
    pub fn node_address(&self, index: u32) -> Ipv4Addr {
        u32::from(FIRST_ADDRESS).wrapping_add(index).wrapping_add(1).into()
    }
}

/// The Node that registers.
pub fn object(config: &Config, index: u32, now: Timestamp) -> Value {
    let name = config.node_name(index);
    let mut labels = json!({
        "kubernetes.io/hostname": name, "kubernetes.io/os": "linux", "kubernetes.io/arch": architecture(), "type": "hollow",
    });
    if config.zones > 0 {
        labels["topology.kubernetes.io/zone"] = format!("zone-{}", index % config.zones).into();
    }
    let mut spec = json!({});
    if let Some(part) = config.pod_network.and_then(|network| network.part(index)) {
        spec = json!({"podCIDR": part.to_string(), "podCIDRs": [part.to_string()]});
    }
    json!({
        "apiVersion": "v1", "kind": "Node", "metadata": {"name": name, "labels": labels}, "spec": spec,
        "status": status(config, index, now, now),
    })
}

/// The whole status of a node that has been ready `since`.
pub fn status(config: &Config, index: u32, since: Timestamp, now: Timestamp) -> Value {
    let resources = json!({"cpu": config.cpu, "memory": config.memory, "pods": config.pods.to_string()});
    let condition = |kind: &str, status: &str, reason: &str, message: &str| {
        json!({
            "type": kind, "status": status, "reason": reason, "message": message,
            "lastHeartbeatTime": seconds(now), "lastTransitionTime": seconds(since),
        })
    };
    json!({
        "capacity": resources, "allocatable": resources,
        "addresses": [
            {"type": "InternalIP", "address": config.node_address(index).to_string()},
            {"type": "Hostname", "address": config.node_name(index)},
        ],
        "conditions": [
            condition("MemoryPressure", "False", "KubeletHasSufficientMemory", "kubelet has sufficient memory available"),
            condition("DiskPressure", "False", "KubeletHasNoDiskPressure", "kubelet has no disk pressure"),
            condition("PIDPressure", "False", "KubeletHasSufficientPID", "kubelet has sufficient PID available"),
            condition("Ready", "True", "KubeletReady", "kubelet is posting ready status"),
        ],
        "nodeInfo": {
            "architecture": architecture(), "operatingSystem": "linux", "kubeletVersion": config.version,
            "kubeProxyVersion": config.version, "containerRuntimeVersion": "hollow://0", "osImage": "hollow",
            "bootID": "", "kernelVersion": "", "machineID": "", "systemUUID": "",
        },
    })
}

/// The lease of a node whose object has `uid`. With a version it replaces that version, without one it is to be patched in.
pub fn lease(config: &Config, index: u32, uid: &str, version: Option<&str>, now: Timestamp) -> Value {
    let name = config.node_name(index);
    let mut metadata = json!({
        "name": name,
        "ownerReferences": [{"apiVersion": "v1", "kind": "Node", "name": name, "uid": uid}],
    });
    if let Some(version) = version {
        metadata["resourceVersion"] = version.into();
    }
    json!({
        "apiVersion": "coordination.k8s.io/v1", "kind": "Lease", "metadata": metadata,
        "spec": {
            "holderIdentity": name, "leaseDurationSeconds": config.lease_duration.as_secs(),
            "renewTime": now.strftime("%Y-%m-%dT%H:%M:%S.%6fZ").to_string(),
        },
    })
}

/// A time as most of the API writes it.
pub fn seconds(time: Timestamp) -> String {
    time.strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

fn architecture() -> &'static str {
    if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_to_nodes_and_back() {
        let config = Config::new(20);
        assert_eq!(config.node_index(&config.node_name(19)), Some(19));
        for foreign in ["hollow-20", "hollow-01", "hollow-", "node-1", "hollow-+1"] {
            assert_eq!(config.node_index(foreign), None, "{foreign}");
        }
        assert_eq!(config.node_address(255).to_string(), "198.18.1.0");
    }

    #[test]
    fn a_node_registers_ready_with_what_it_has() {
        let config = Config { zones: 3, pod_network: "10.64.0.0/11".parse().ok(), ..Config::new(20) };
        let now: Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        let node = object(&config, 4, now);
        assert_eq!(node["metadata"]["labels"]["topology.kubernetes.io/zone"], "zone-1");
        assert_eq!(node["spec"]["podCIDR"], "10.64.4.0/24");
        assert_eq!(node["status"]["allocatable"]["pods"], "110");
        let read: NodeView = serde_json::from_value(node).unwrap();
        assert!(read.is_ready());
        assert_eq!(read.spec.pod_cidr, "10.64.4.0/24");
        let typed: k8s_openapi::api::core::v1::Node = serde_json::from_value(object(&Config::new(1), 0, now)).unwrap();
        assert_eq!(typed.spec.unwrap().pod_cidr, None);
    }

    #[test]
    fn leases_belong_to_their_node() {
        let now: Timestamp = "2026-01-02T03:04:05.678901Z".parse().unwrap();
        let lease = lease(&Config::new(1), 0, "u-1", Some("7"), now);
        let typed: k8s_openapi::api::coordination::v1::Lease = serde_json::from_value(lease).unwrap();
        let spec = typed.spec.unwrap();
        assert_eq!(spec.lease_duration_seconds, Some(40));
        assert_eq!(spec.renew_time.unwrap().0, now);
        assert_eq!(typed.metadata.resource_version.as_deref(), Some("7"));
        assert_eq!(typed.metadata.owner_references.unwrap()[0].uid, "u-1");
    }
}
