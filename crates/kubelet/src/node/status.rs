//! The node's status: a pure function of the machine, the runtime and what was said before.

use std::collections::BTreeMap;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{
    ContainerImage, DaemonEndpoint, NodeAddress, NodeCondition, NodeDaemonEndpoints, NodeRuntimeHandler, NodeStatus,
    NodeSystemInfo,
};
use k8s_openapi::apimachinery::pkg::api::resource::Quantity;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use super::machine::{Machine, Pressure};
use crate::config::Config;
use crate::thresholds::Signal;

const MAX_IMAGES: usize = 50;
const MAX_NAMES_PER_IMAGE: usize = 5;

/// What the container runtime says of itself.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RuntimeState {
    /// `containerd://1.7.24`
    pub version: String,
    /// Why the node cannot run pods; empty if it can.
    pub errors: Vec<String>,
    pub images: Vec<(Vec<String>, i64)>,
}

pub type Resources = BTreeMap<String, Quantity>;

pub struct Inputs<'a> {
    pub config: &'a Config,
    pub machine: &'a Machine,
    pub pressure: Pressure,
    pub runtime: &'a RuntimeState,
    /// Capacity that others have told of this node; see [`extended`].
    pub extended: &'a Resources,
    pub previous: &'a NodeStatus,
    pub now: Timestamp,
}

pub fn build(inputs: &Inputs<'_>) -> NodeStatus {
    let Inputs { config, machine, runtime, previous, .. } = *inputs;
    let mut resources = resources(config, machine);
    resources.extend(inputs.extended.clone());
    let mut allocatable = resources.clone();
    // The node keeps its eviction thresholds for itself.
    let memory = machine.memory_bytes - config.eviction_hard.reserved(Signal::Memory, machine.memory_bytes);
    allocatable.insert("memory".to_owned(), kibi(memory));
    let storage = machine.storage_bytes - config.eviction_hard.reserved(Signal::NodeFs, machine.storage_bytes);
    allocatable.insert("ephemeral-storage".to_owned(), Quantity(storage.to_string()));
    NodeStatus {
        capacity: Some(resources),
        allocatable: Some(allocatable),
        addresses: Some(addresses(config)),
        conditions: Some(conditions(inputs)),
        daemon_endpoints: Some(NodeDaemonEndpoints {
            kubelet_endpoint: Some(DaemonEndpoint { port: i32::from(config.port) }),
        }),
        images: Some(images(&runtime.images)),
        node_info: Some(NodeSystemInfo {
            architecture: machine.architecture.clone(),
            boot_id: machine.boot_id.clone(),
            container_runtime_version: runtime.version.clone(),
            kernel_version: machine.kernel_version.clone(),
            kubelet_version: config.version.clone(),
            machine_id: machine.machine_id.clone(),
            operating_system: "linux".to_owned(),
            os_image: machine.os_image.clone(),
            system_uuid: machine.system_uuid.clone(),
            ..NodeSystemInfo::default()
        }),
        runtime_handlers: Some(vec![NodeRuntimeHandler { name: Some("runc".to_owned()), features: None }]),
        ..previous.clone()
    }
}

/// What the Node's capacity names that the kubelet does not measure: extended resources, put there by whoever knows of them. They
/// are kept, and all of them may be given out.
pub fn extended(config: &Config, machine: &Machine, told: Option<&Resources>) -> Resources {
    let own = resources(config, machine);
    let others = told.into_iter().flatten().filter(|(name, _)| !own.contains_key(*name));
    others.map(|(name, amount)| (name.clone(), amount.clone())).collect()
}

fn resources(config: &Config, machine: &Machine) -> Resources {
    let mut resources = BTreeMap::from([
        ("cpu".to_owned(), Quantity(machine.cpu_count.to_string())),
        ("memory".to_owned(), kibi(machine.memory_bytes)),
        ("ephemeral-storage".to_owned(), kibi(machine.storage_bytes)),
        ("pods".to_owned(), Quantity(config.max_pods.to_string())),
    ]);
    for (size, bytes) in &machine.huge_pages {
        let unit = if size % (1 << 30) == 0 { format!("{}Gi", size >> 30) } else { format!("{}Mi", size >> 20) };
        resources.insert(format!("hugepages-{unit}"), Quantity(bytes.to_string()));
    }
    resources
}

fn kibi(bytes: i64) -> Quantity {
    Quantity(format!("{}Ki", bytes / 1024))
}

fn addresses(config: &Config) -> Vec<NodeAddress> {
    let address = |kind: &str, address: String| NodeAddress { type_: kind.to_owned(), address };
    let ips = config.node_ips.iter().map(|ip| address("InternalIP", ip.to_string()));
    ips.chain([address("Hostname", config.node_name.clone())]).collect()
}

fn conditions(inputs: &Inputs<'_>) -> Vec<NodeCondition> {
    let Pressure { memory, node_fs, image_fs, pids } = inputs.pressure;
    let crossed = |signal, level| inputs.config.eviction_hard.crossed(signal, level);
    let pressed = |kind: &'static str, bad: bool, words: [&'static str; 4]| {
        let [bad_reason, bad_message, good_reason, good_message] = words;
        let (reason, message) = if bad { (bad_reason, bad_message) } else { (good_reason, good_message) };
        condition(inputs, kind, bad, reason, message.to_owned())
    };
    let ready = inputs.runtime.errors.is_empty();
    let (reason, message) = if ready {
        ("KubeletReady", "kubelet is posting ready status".to_owned())
    } else {
        ("KubeletNotReady", inputs.runtime.errors.join(", "))
    };
    vec![
        pressed(
            "MemoryPressure",
            crossed(Signal::Memory, memory),
            [
                "KubeletHasInsufficientMemory",
                "kubelet has insufficient memory available",
                "KubeletHasSufficientMemory",
                "kubelet has sufficient memory available",
            ],
        ),
        pressed(
            "DiskPressure",
            crossed(Signal::NodeFs, node_fs) || crossed(Signal::ImageFs, image_fs),
            [
                "KubeletHasDiskPressure",
                "kubelet has disk pressure",
                "KubeletHasNoDiskPressure",
                "kubelet has no disk pressure",
            ],
        ),
        pressed(
            "PIDPressure",
            crossed(Signal::Pid, pids),
            [
                "KubeletHasInsufficientPID",
                "kubelet has insufficient PID available",
                "KubeletHasSufficientPID",
                "kubelet has sufficient PID available",
            ],
        ),
        condition(inputs, "Ready", ready, reason, message),
    ]
}

fn condition(inputs: &Inputs<'_>, kind: &str, value: bool, reason: &str, message: String) -> NodeCondition {
    let status = if value { "True" } else { "False" };
    let before = inputs.previous.conditions.iter().flatten().find(|condition| condition.type_ == kind);
    let unchanged = before.filter(|before| before.status == status);
    NodeCondition {
        type_: kind.to_owned(),
        status: status.to_owned(),
        reason: Some(reason.to_owned()),
        message: Some(message),
        last_heartbeat_time: Some(Time(inputs.now)),
        last_transition_time: unchanged
            .and_then(|before| before.last_transition_time.clone())
            .or(Some(Time(inputs.now))),
    }
}

/// The largest first, as many as upstream shows.
fn images(images: &[(Vec<String>, i64)]) -> Vec<ContainerImage> {
    let mut images: Vec<_> = images.iter().filter(|(names, _)| !names.is_empty()).collect();
    images.sort_by(|a, b| b.1.cmp(&a.1).then_with(|| a.0.cmp(&b.0)));
    let shown = images.into_iter().take(MAX_IMAGES);
    shown
        .map(|(names, size)| ContainerImage {
            names: Some(names.iter().take(MAX_NAMES_PER_IMAGE).cloned().collect()),
            size_bytes: Some(*size),
        })
        .collect()
}

/// The status without what changes by itself: equal statuses need no write.
pub fn without_heartbeats(status: &NodeStatus) -> NodeStatus {
    let mut status = status.clone();
    for condition in status.conditions.iter_mut().flatten() {
        condition.last_heartbeat_time = None;
    }
    status
}

#[cfg(test)]
mod tests {
    use serde_json::{Value, json};

    use super::*;
    use crate::thresholds::Level;

    fn built(runtime: &RuntimeState, previous: &NodeStatus, second: i64) -> NodeStatus {
        built_with(runtime, previous, second, &json!({}))
    }

    /// `told` is the capacity that the API has of the node.
    fn built_with(runtime: &RuntimeState, previous: &NodeStatus, second: i64, told: &Value) -> NodeStatus {
        let config = Config::new("n1", vec!["192.0.2.7".parse().unwrap()], std::path::Path::new("/d"), "unix:///s");
        let machine = Machine {
            cpu_count: 2,
            memory_bytes: 1 << 30,
            storage_bytes: 100 << 30,
            huge_pages: vec![(2 << 20, 0), (1 << 30, 1 << 30)],
            ..Machine::default()
        };
        let level = |available| Level { available, capacity: 1 << 30 };
        let pressure = Pressure {
            memory: level(1 << 29),
            node_fs: level(1 << 29),
            image_fs: level(1 << 20),
            pids: level(1 << 29),
        };
        let now = Timestamp::from_second(second).unwrap();
        let told: Resources = serde_json::from_value(told.clone()).unwrap();
        let extended = &extended(&config, &machine, Some(&told));
        build(&Inputs { config: &config, machine: &machine, pressure, runtime, extended, previous, now })
    }

    #[test]
    fn conditions_move_only_when_their_status_does() {
        let broken = RuntimeState { errors: vec!["container runtime is down".to_owned()], ..RuntimeState::default() };
        let first = built(&broken, &NodeStatus::default(), 1);
        let second = built(&RuntimeState::default(), &first, 2);
        let text = |status: &NodeStatus| {
            let word = |c: &NodeCondition| {
                let since = c.last_transition_time.as_ref().unwrap().0.as_second();
                format!("{}={}@{since}/{}", c.type_, c.status, c.reason.as_deref().unwrap())
            };
            status.conditions.as_ref().unwrap().iter().map(word).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            text(&first),
            "MemoryPressure=False@1/KubeletHasSufficientMemory DiskPressure=True@1/KubeletHasDiskPressure \
             PIDPressure=False@1/KubeletHasSufficientPID Ready=False@1/KubeletNotReady"
        );
        assert!(
            text(&second).ends_with("Ready=True@2/KubeletReady") && text(&second).starts_with("MemoryPressure=False@1")
        );
        let third = built(&RuntimeState::default(), &second, 3);
        assert!(second != third && without_heartbeats(&second) == without_heartbeats(&third));
    }

    #[test]
    fn resources_that_others_tell_of_are_kept_and_given_out() {
        let told = json!({"example.com/dongle": "3", "cpu": "99"});
        let status = built_with(&RuntimeState::default(), &NodeStatus::default(), 1, &told);
        for list in [status.capacity, status.allocatable] {
            let list = list.unwrap();
            assert_eq!((list["example.com/dongle"].0.as_str(), list["cpu"].0.as_str()), ("3", "2"));
        }
        let later = built(&RuntimeState::default(), &NodeStatus::default(), 1);
        assert!(!later.allocatable.unwrap().contains_key("example.com/dongle"), "taken back");
    }

    #[test]
    fn resources_are_told_in_upstreams_units() {
        let status = built(&RuntimeState::default(), &NodeStatus::default(), 1);
        let text = |list: &Option<BTreeMap<String, Quantity>>| {
            list.iter().flatten().map(|(name, quantity)| format!("{name}={}", quantity.0)).collect::<Vec<_>>().join(" ")
        };
        assert_eq!(
            text(&status.capacity),
            "cpu=2 ephemeral-storage=104857600Ki hugepages-1Gi=1073741824 hugepages-2Mi=0 memory=1048576Ki pods=110"
        );
        assert!(text(&status.allocatable).contains("memory=946176Ki"));
    }
}
