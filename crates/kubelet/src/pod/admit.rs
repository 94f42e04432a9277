//! Whether this node takes a pod on: the last check, for pods that did not come through a scheduler or came too late. Pure.

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::{Container, ContainerPort, Pod};

use crate::config::Config;
use crate::node::machine::Machine;
use crate::podutil;
use crate::thresholds::Signal;

/// Sysctls that are kept apart by namespaces, so that a pod cannot disturb others with them (upstream's safe set).
const SAFE_SYSCTLS: [&str; 12] = [
    "kernel.shm_rmid_forced",
    "net.ipv4.ip_local_port_range",
    "net.ipv4.tcp_syncookies",
    "net.ipv4.ping_group_range",
    "net.ipv4.ip_unprivileged_port_start",
    "net.ipv4.ip_local_reserved_ports",
    "net.ipv4.tcp_keepalive_time",
    "net.ipv4.tcp_fin_timeout",
    "net.ipv4.tcp_keepalive_intvl",
    "net.ipv4.tcp_keepalive_probes",
    "net.ipv4.tcp_rmem",
    "net.ipv4.tcp_wmem",
];

#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejection {
    pub reason: &'static str,
    pub message: String,
}

/// What the node has to give.
#[derive(Clone, Copy, Debug)]
pub struct Room {
    pub cpu_milli: i64,
    pub memory_bytes: i64,
    pub pods: i64,
}

impl Room {
    pub fn of(machine: &Machine, config: &Config) -> Self {
        Room {
            cpu_milli: machine.cpu_count.saturating_mul(1000),
            memory_bytes: machine.memory_bytes - config.eviction_hard.reserved(Signal::Memory, machine.memory_bytes),
            pods: i64::from(config.max_pods),
        }
    }
}

/// `others` are the node's pods; those that have ended, and `pod` itself, do not count.
pub fn admit<'a>(pod: &Pod, others: impl Iterator<Item = &'a Pod> + Clone, room: &Room) -> Result<(), Rejection> {
    let spec = podutil::spec(pod);
    let sysctls = spec.security_context.as_ref().and_then(|context| context.sysctls.as_ref());
    for sysctl in sysctls.into_iter().flatten() {
        if !SAFE_SYSCTLS.contains(&sysctl.name.replace('/', ".").as_str()) {
            let message = format!("forbidden sysctl: \"{}\" not allowlisted", sysctl.name);
            return Err(Rejection { reason: "SysctlForbidden", message });
        }
    }
    let wanted = host_ports(pod);
    if others
        .clone()
        .filter(|other| counts(pod, other))
        .flat_map(host_ports)
        .any(|taken| wanted.iter().any(|port| port.conflicts(&taken)))
    {
        let message = "Predicate NodePorts failed: node(s) didn't have free ports for the requested pod ports";
        return Err(Rejection { reason: "NodePorts", message: message.to_owned() });
    }
    resources_fit(pod, others, room)
}

/// Whether the node has room for the pod beside `others`, of which those that have ended, and `pod` itself, do not count.
pub fn resources_fit<'a>(
    pod: &Pod,
    others: impl Iterator<Item = &'a Pod> + Clone,
    room: &Room,
) -> Result<(), Rejection> {
    let others = others.filter(|other| counts(pod, other));
    let asked = |pod: &Pod, name: &'static str| podutil::pod_total(pod, |r| podutil::request(r, name), name);
    let used = |name: &'static str| others.clone().fold(Quantity::ZERO, |sum, other| sum + asked(other, name));
    let pods = i64::try_from(others.clone().count()).unwrap_or(i64::MAX);
    fits("OutOfpods", "pods", 1, pods, room.pods)?;
    let cpu = asked(pod, "cpu").milli_value();
    fits("OutOfcpu", "cpu", cpu, used("cpu").milli_value(), room.cpu_milli)?;
    let memory = asked(pod, "memory").value();
    fits("OutOfmemory", "memory", memory, used("memory").value(), room.memory_bytes)
}

fn counts(pod: &Pod, other: &Pod) -> bool {
    podutil::uid(other) != podutil::uid(pod) && !podutil::is_terminal_phase(podutil::phase(other))
}

/// A port of the node that a pod takes.
struct HostPort<'a> {
    number: i32,
    protocol: &'a str,
    /// None: all addresses.
    ip: Option<&'a str>,
}

impl HostPort<'_> {
    fn conflicts(&self, other: &HostPort<'_>) -> bool {
        let same_ip = self.ip.is_none() || other.ip.is_none() || self.ip == other.ip;
        self.number == other.number && self.protocol == other.protocol && same_ip
    }
}

fn host_ports(pod: &Pod) -> Vec<HostPort<'_>> {
    let restarts = |c: &&Container| c.restart_policy.as_deref() == Some("Always");
    let containers = podutil::spec(pod).containers.iter().chain(podutil::init_containers(pod).iter().filter(restarts));
    let ports = containers.flat_map(|container| container.ports.iter().flatten());
    let taken = |port: &'_ ContainerPort| port.host_port.filter(|number| *number > 0);
    ports
        .filter_map(|port| {
            let ip = port.host_ip.as_deref().filter(|ip| !matches!(*ip, "" | "0.0.0.0" | "::"));
            Some(HostPort { number: taken(port)?, protocol: port.protocol.as_deref().unwrap_or("TCP"), ip })
        })
        .collect()
}

fn fits(reason: &'static str, resource: &str, requested: i64, used: i64, capacity: i64) -> Result<(), Rejection> {
    if requested == 0 || used.saturating_add(requested) <= capacity {
        return Ok(());
    }
    let message = format!(
        "Node didn't have enough resource: {resource}, requested: {requested}, used: {used}, capacity: {capacity}"
    );
    Err(Rejection { reason, message })
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn pod(uid: &str, phase: &str, cpu: &str, sysctl: Option<&str>) -> Pod {
        let sysctls: Vec<_> = sysctl.iter().map(|name| json!({"name": name, "value": "1"})).collect();
        serde_json::from_value(json!({"metadata": {"name": uid, "uid": uid}, "status": {"phase": phase},
            "spec": {"securityContext": {"sysctls": sysctls},
                "containers": [{"name": "c", "resources": {"requests": {"cpu": cpu}}}]}}))
        .unwrap()
    }

    #[test]
    fn ports_of_the_node_are_given_once() {
        let room = Room { cpu_milli: 1000, memory_bytes: 1 << 30, pods: 10 };
        let with = |uid: &str, phase: &str, port: serde_json::Value| -> Pod {
            serde_json::from_value(json!({"metadata": {"uid": uid}, "status": {"phase": phase},
                "spec": {"containers": [{"name": "c", "ports": [port]}]}}))
            .unwrap()
        };
        let port = |number: i32, protocol: &str, ip: &str| json!({"containerPort": 80, "hostPort": number, "protocol": protocol, "hostIP": ip});
        let taken = [
            with("a", "Running", port(21017, "TCP", "10.0.0.1")),
            with("b", "Failed", port(21018, "TCP", "")),
            with("c", "Running", json!({"containerPort": 21019})),
        ];
        let reason = |port| admit(&with("new", "Pending", port), taken.iter(), &room).err().map(|r| r.reason);
        assert_eq!(reason(port(21017, "TCP", "")), Some("NodePorts"));
        assert_eq!(reason(port(21017, "TCP", "10.0.0.1")), Some("NodePorts"));
        for free in
            [port(21017, "TCP", "10.0.0.2"), port(21017, "UDP", ""), port(21018, "TCP", ""), port(21019, "TCP", "")]
        {
            assert_eq!(reason(free.clone()), None, "{free}");
        }
    }

    #[test]
    fn what_does_not_fit_is_rejected_in_upstreams_words() {
        let room = Room { cpu_milli: 1200, memory_bytes: 1 << 30, pods: 3 };
        let others =
            [pod("a", "Running", "500m", None), pod("b", "Succeeded", "1", None), pod("new", "Pending", "1", None)];
        let check = |pod: &Pod| match admit(pod, others.iter(), &room) {
            Ok(()) => "ok".to_owned(),
            Err(rejection) => format!("{} {}", rejection.reason, rejection.message),
        };
        assert_eq!(check(&pod("new", "Pending", "700m", None)), "ok");
        assert_eq!(
            check(&pod("new", "Pending", "1", None)),
            "OutOfcpu Node didn't have enough resource: cpu, requested: 1000, used: 500, capacity: 1200"
        );
        assert_eq!(
            check(&pod("new", "Pending", "0", Some("kernel.msgmax"))),
            "SysctlForbidden forbidden sysctl: \"kernel.msgmax\" not allowlisted"
        );
        assert_eq!(check(&pod("new", "Pending", "0", Some("net/ipv4/tcp_syncookies"))), "ok");
        let full = Room { pods: 1, ..room };
        assert!(admit(&pod("new", "Pending", "0", None), others.iter(), &full).unwrap_err().reason == "OutOfpods");
    }
}
