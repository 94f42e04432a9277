//! From a pod behind a service to what is published of it. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::{Container, Node, ObjectReference, Pod, Service, ServicePort};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointConditions, EndpointHints, EndpointPort, ForNode, ForZone};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::select::ZONE;
use crate::pods;

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    IPv4,
    IPv6,
}

impl Family {
    pub fn name(self) -> &'static str {
        match self {
            Family::IPv4 => "IPv4",
            Family::IPv6 => "IPv6",
        }
    }

    pub fn of(address: &str) -> Option<Family> {
        match address.parse().ok()? {
            IpAddr::V4(_) => Some(Family::IPv4),
            IpAddr::V6(_) => Some(Family::IPv6),
        }
    }
}

/// The families that a service publishes: as its spec says, else by its cluster address, else IPv4.
pub fn families(service: &Service) -> Vec<Family> {
    let spec = service.spec.as_ref();
    let named = spec.and_then(|spec| spec.ip_families.as_ref()).into_iter().flatten();
    let families: Vec<Family> = named
        .filter_map(|name| match name.as_str() {
            "IPv4" => Some(Family::IPv4),
            "IPv6" => Some(Family::IPv6),
            _ => None,
        })
        .collect();
    if !families.is_empty() {
        return families;
    }
    vec![spec.and_then(|spec| Family::of(spec.cluster_ip.as_deref()?)).unwrap_or(Family::IPv4)]
}

pub fn is_headless(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.cluster_ip.as_deref()) == Some("None")
}

pub fn is_external_name(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.type_.as_deref()) == Some("ExternalName")
}

pub fn publishes_unready(service: &Service) -> bool {
    service.spec.as_ref().and_then(|spec| spec.publish_not_ready_addresses) == Some(true)
}

/// Whether a pod stands behind services at all: it has an address and may still run containers.
pub fn belongs(pod: &Pod, with_terminating: bool) -> bool {
    let addressed = pod.status.as_ref().is_some_and(|status| {
        status.pod_ip.as_deref().is_some_and(|ip| !ip.is_empty())
            || status.pod_ips.as_ref().is_some_and(|ips| !ips.is_empty())
    });
    addressed && !pods::is_finished(pod) && (with_terminating || pod.metadata.deletion_timestamp.is_none())
}

/// The pod's addresses of one family.
pub fn addresses(pod: &Pod, family: Family) -> Vec<String> {
    let Some(status) = &pod.status else { return vec![] };
    let all = status.pod_ips.iter().flatten().map(|ip| &ip.ip);
    let of_family = all.filter(|ip| Family::of(ip) == Some(family)).cloned();
    of_family.collect()
}

/// The number that a service's port has on this pod; none if the pod has no port of that name.
fn port_on(pod: &Pod, port: &ServicePort) -> Option<i32> {
    let name = match &port.target_port {
        None => return Some(port.port),
        Some(IntOrString::Int(number)) => return Some(*number),
        Some(IntOrString::String(name)) => name,
    };
    let spec = pod.spec.as_ref()?;
    let sidecars = spec.init_containers.iter().flatten().filter(|c| c.restart_policy.as_deref() == Some("Always"));
    let protocol = |given: &Option<String>| given.clone().unwrap_or_else(|| "TCP".to_owned());
    let find = |container: &Container| {
        container
            .ports
            .iter()
            .flatten()
            .find(|candidate| {
                candidate.name.as_ref() == Some(name) && protocol(&candidate.protocol) == protocol(&port.protocol)
            })
            .map(|found| found.container_port)
    };
    spec.containers.iter().chain(sidecars).find_map(find)
}

/// The ports that a service has on this pod. Those that the pod does not name are left out.
pub fn ports_on(pod: &Pod, service: &Service) -> Vec<EndpointPort> {
    let ports = service.spec.as_ref().and_then(|spec| spec.ports.as_ref());
    let on_pod = ports.into_iter().flatten().filter_map(|port| {
        Some(EndpointPort {
            name: Some(port.name.clone().unwrap_or_default()),
            port: Some(port_on(pod, port)?),
            protocol: Some(port.protocol.clone().unwrap_or_else(|| "TCP".to_owned())),
            app_protocol: port.app_protocol.clone(),
        })
    });
    on_pod.collect()
}

/// The name under which DNS knows the pod within the service.
pub fn hostname(pod: &Pod, service: &Service) -> Option<String> {
    let spec = pod.spec.as_ref()?;
    let hostname = spec.hostname.as_ref().filter(|name| !name.is_empty())?;
    let within = spec.subdomain == service.metadata.name && pod.metadata.namespace == service.metadata.namespace;
    within.then(|| hostname.clone())
}

pub fn target(pod: &Pod) -> ObjectReference {
    ObjectReference {
        kind: Some("Pod".to_owned()),
        namespace: pod.metadata.namespace.clone(),
        name: pod.metadata.name.clone(),
        uid: pod.metadata.uid.clone(),
        ..ObjectReference::default()
    }
}

/// The endpoint that `pod` is for `service`; none without an address of the family.
pub fn endpoint(pod: &Pod, node: Option<&Node>, service: &Service, family: Family) -> Option<Endpoint> {
    let addresses = addresses(pod, family);
    if addresses.is_empty() {
        return None;
    }
    let serving = pods::is_ready(pod);
    let terminating = pod.metadata.deletion_timestamp.is_some();
    let ready = publishes_unready(service) || (serving && !terminating);
    let zone = node.and_then(|node| node.metadata.labels.as_ref()?.get(ZONE)).cloned();
    let node_name = pods::node_name(pod).map(str::to_owned);
    Some(Endpoint {
        addresses,
        conditions: Some(EndpointConditions {
            ready: Some(ready),
            serving: Some(serving),
            terminating: Some(terminating),
        }),
        hints: hints(service, ready, zone.as_deref(), node_name.as_deref()),
        hostname: hostname(pod, service),
        target_ref: Some(target(pod)),
        node_name,
        zone,
        deprecated_topology: None,
    })
}

/// Where traffic to this endpoint should come from, as `spec.trafficDistribution` asks.
fn hints(service: &Service, ready: bool, zone: Option<&str>, node: Option<&str>) -> Option<EndpointHints> {
    let distribution = service.spec.as_ref()?.traffic_distribution.as_deref()?;
    let same_node = match distribution {
        "PreferClose" | "PreferSameZone" => false,
        "PreferSameNode" => true,
        _ => return None,
    };
    let for_zones = zone.map(|zone| vec![ForZone { name: zone.to_owned() }]);
    let for_nodes = node.filter(|_| same_node).map(|node| vec![ForNode { name: node.to_owned() }]);
    (ready && (for_zones.is_some() || for_nodes.is_some())).then_some(EndpointHints { for_zones, for_nodes })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{pod, yaml};

    fn shown(pod_line: &str, service: &str) -> String {
        let service: Service = yaml(&format!("{{ metadata: {{ name: web, namespace: ns }}, spec: {service} }}"));
        let node: Node = yaml("{ metadata: { name: n, labels: { topology.kubernetes.io/zone: z } } }");
        let pod = pod(pod_line);
        if !belongs(&pod, true) {
            return "absent".into();
        }
        let Some(endpoint) = endpoint(&pod, Some(&node), &service, families(&service)[0]) else { return "none".into() };
        let conditions = endpoint.conditions.expect("set");
        let mark = |condition: Option<bool>, letter: &'static str| if condition == Some(true) { letter } else { "-" };
        format!(
            "{} {}{}{} {}",
            endpoint.addresses.join(","),
            mark(conditions.ready, "r"),
            mark(conditions.serving, "s"),
            mark(conditions.terminating, "t"),
            endpoint.zone.unwrap_or_default()
        )
    }

    #[test]
    fn conditions_follow_readiness_and_termination() {
        assert_eq!(shown("{ name: a, ip: 10.0.0.1, ready: 5, node: n }", "{}"), "10.0.0.1 rs- z");
        assert_eq!(shown("{ name: a, ip: 10.0.0.1, node: n }", "{}"), "10.0.0.1 --- z");
        assert_eq!(shown("{ name: a, ip: 10.0.0.1, ready: 5, deleting: true }", "{}"), "10.0.0.1 -st z");
        assert_eq!(shown("{ name: a, ip: 10.0.0.1 }", "{ publishNotReadyAddresses: true }"), "10.0.0.1 r-- z");
        assert_eq!(shown("{ name: a, ip: 10.0.0.1, phase: Failed }", "{}"), "absent");
        assert_eq!(shown("{ name: a }", "{}"), "absent");
        assert_eq!(shown("{ name: a, ip: 10.0.0.1 }", "{ ipFamilies: [IPv6] }"), "none");
    }

    #[test]
    fn named_target_ports_are_found_by_name_and_protocol() {
        let mut target = pod("{ name: a, ip: 10.0.0.1 }");
        target.spec = Some(yaml(
            "{ containers: [{ name: c, ports: [{ name: dns, protocol: UDP, containerPort: 53 }, { name: http, containerPort: 8080 }] }],
               initContainers: [{ name: once, ports: [{ name: metrics, containerPort: 1 }] }, { name: side, restartPolicy: Always, ports: [{ name: metrics, containerPort: 9090 }] }] }",
        ));
        let service: Service = yaml(
            "{ spec: { ports: [{ name: a, port: 80, targetPort: http }, { name: b, port: 53, targetPort: dns }, { name: c, port: 53, protocol: UDP, targetPort: dns }, { name: d, port: 1, targetPort: metrics }, { name: e, port: 7 }] } }",
        );
        let ports: Vec<String> = ports_on(&target, &service)
            .iter()
            .map(|port| format!("{}={}", port.name.as_deref().unwrap_or_default(), port.port.unwrap_or(0)))
            .collect();
        assert_eq!(ports, ["a=8080", "c=53", "d=9090", "e=7"]);
    }

    #[test]
    fn a_hostname_needs_the_services_subdomain() {
        let service: Service = yaml("{ metadata: { name: db, namespace: ns } }");
        let mut member = pod("{ name: db-0 }");
        member.spec = Some(yaml("{ containers: [], hostname: db-0, subdomain: db }"));
        assert_eq!(hostname(&member, &service).as_deref(), Some("db-0"));
        member.spec = Some(yaml("{ containers: [], hostname: db-0, subdomain: other }"));
        assert_eq!(hostname(&member, &service), None);
    }
}
