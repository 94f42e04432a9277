//! What the rules for a service should be: a pure function of the service, its endpoints and the node.
//!
//! The shape follows upstream's nftables mode. A packet's destination is looked up in a verdict map, which leads to the
//! chains of one service port; so the cost of a packet does not grow with the number of services, and a change of one
//! service touches only its own chains and map elements.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt;
use std::net::IpAddr;
use std::sync::Arc;

use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServicePort, ServiceSpec};
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::base::{
    CLUSTER_IPS, HAIRPIN, NO_ENDPOINT_NODEPORTS, NO_ENDPOINT_SERVICES, REJECT, SERVICE_IPS, SERVICE_NODEPORTS,
};
use super::selection::{Place, Selected, Target, select};
use crate::nft::{Data, Family, Field, Key, Protocol, Rule, Set, SetKind, Statement, Value, ValueType, Verdict};

pub const TABLE: &str = "coxswain";
/// Upstream's default masquerade bit (14). Packets that carry it get the node's address as source.
pub const MASQUERADE_MARK: u32 = 0x4000;
/// Endpoints up to which they are told apart by a rule each.
const MOST_RULES: usize = 16;
const DEFAULT_AFFINITY_SECONDS: u32 = 10800;

/// What planning needs to know of the node and the cluster, for one address family.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PlanConfig {
    pub family: Family,
    pub place: Place,
    /// Pod networks of this family. What comes from elsewhere gets the node's address when it uses a cluster IP.
    pub cluster_cidrs: Vec<IpNet>,
    /// Service networks of this family: addresses in them that no service has are refused, not routed out.
    pub service_cidrs: Vec<IpNet>,
}

/// How clients reach a UDP service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Frontend {
    Address(IpAddr, u16),
    NodePort(u16),
}

/// The rules of one service. The chains and sets are its own; the elements live in maps shared with others.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct ServiceRules {
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Vec<Rule>>,
    pub elements: BTreeMap<(&'static str, Key), Data>,
    /// Who may answer on each UDP frontend: tracked flows to anybody else are stale.
    pub udp: BTreeMap<Frontend, BTreeSet<IpAddr>>,
    /// Where load balancers ask whether this node has endpoints, if they should.
    pub health_check: Option<HealthCheck>,
}

/// What `healthCheckNodePort` answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct HealthCheck {
    pub port: u16,
    pub local_endpoints: BTreeSet<IpAddr>,
}

/// The rules of one service; none if the proxy has nothing to do for it (headless, ExternalName, somebody else's).
pub fn plan_service(config: &PlanConfig, service: &Service, slices: &[Arc<EndpointSlice>]) -> ServiceRules {
    let mut rules = ServiceRules::default();
    let Some(spec) = &service.spec else { return rules };
    let labels = service.metadata.labels.as_ref();
    let others = labels.is_some_and(|l| l.contains_key("service.kubernetes.io/service-proxy-name"));
    let Some(cluster_ip) = cluster_ip(spec, config.family) else { return rules };
    if others || spec.type_.as_deref() == Some("ExternalName") {
        return rules;
    }
    rules.elements.insert((CLUSTER_IPS, Key::address(cluster_ip)), Data::Nothing);
    rules.health_check = health_check_port(spec).map(|port| HealthCheck { port, local_endpoints: BTreeSet::new() });
    for port in spec.ports.iter().flatten() {
        let Some(protocol) = Protocol::from_api(port.protocol.as_deref().unwrap_or("TCP")) else { continue };
        let Ok(number) = u16::try_from(port.port) else { continue };
        let name = format!(
            "{}/{}/{protocol}/{}",
            service.metadata.namespace.as_deref().unwrap_or_default(),
            service.metadata.name.as_deref().unwrap_or_default(),
            port.name.as_deref().unwrap_or_default(),
        );
        let selected = select(&config.place, config.family, port, protocol, slices);
        let planner = PortPlanner { config, service, spec, port, protocol, number, name, cluster_ip, selected };
        planner.plan(&mut rules);
    }
    rules
}

/// Only where the client's address is kept does it matter which node a load balancer chooses.
fn health_check_port(spec: &ServiceSpec) -> Option<u16> {
    let wanted =
        spec.type_.as_deref() == Some("LoadBalancer") && spec.external_traffic_policy.as_deref() == Some("Local");
    spec.health_check_node_port.filter(|port| wanted && *port != 0).and_then(|port| u16::try_from(port).ok())
}

fn cluster_ip(spec: &ServiceSpec, family: Family) -> Option<IpAddr> {
    let all = spec.cluster_ips.iter().flatten().chain(&spec.cluster_ip);
    all.filter_map(|ip| ip.parse::<IpAddr>().ok()).find(|ip| Family::of(*ip) == family)
}

/// Plans one port of one service.
struct PortPlanner<'a> {
    config: &'a PlanConfig,
    service: &'a Service,
    spec: &'a ServiceSpec,
    port: &'a ServicePort,
    protocol: Protocol,
    number: u16,
    /// `namespace/service/protocol/port`, part of every chain's name.
    name: String,
    cluster_ip: IpAddr,
    selected: Selected,
}

impl PortPlanner<'_> {
    fn plan(&self, rules: &mut ServiceRules) {
        let internal_local = self.spec.internal_traffic_policy.as_deref() == Some("Local");
        let external_local = self.spec.external_traffic_policy.as_deref() == Some("Local");
        let external = self.external_addresses();
        let node_port = self.node_port();
        let reachable_outside = !external.is_empty() || node_port.is_some();

        if !self.selected.cluster.is_empty() && (!internal_local || reachable_outside) {
            self.add_balancer(rules, "cluster", &self.selected.cluster);
        }
        if !self.selected.local.is_empty() && (internal_local || (external_local && reachable_outside)) {
            self.add_balancer(rules, "local", &self.selected.local);
        }
        self.add_internal(rules, internal_local);
        if reachable_outside {
            self.add_external(rules, external_local, &external, node_port);
        }
        for (address, _) in &self.selected.local {
            let pair = Key(vec![Value::Address(*address), Value::Address(*address)]);
            rules.elements.insert((HAIRPIN, pair), Data::Nothing);
        }
        if let Some(check) = &mut rules.health_check {
            check.local_endpoints.extend(self.selected.local.iter().map(|(address, _)| *address));
        }
        if self.protocol == Protocol::Udp {
            self.add_udp_frontends(rules, internal_local, external_local, &external, node_port);
        }
    }

    /// Traffic to the cluster IP.
    fn add_internal(&self, rules: &mut ServiceRules, local: bool) {
        let key = Key::endpoint(self.cluster_ip, self.protocol, self.number);
        let (chain, targets) = self.balancer(local);
        if targets.is_empty() {
            rules.elements.insert((NO_ENDPOINT_SERVICES, key), self.refusal());
        } else {
            rules.elements.insert((SERVICE_IPS, key), goto(chain));
        }
    }

    /// Traffic to node ports, load balancer addresses and external IPs.
    fn add_external(&self, rules: &mut ServiceRules, local: bool, addresses: &[IpAddr], node_port: Option<u16>) {
        let (_, targets) = self.balancer(local);
        if targets.is_empty() {
            for address in addresses {
                let key = Key::endpoint(*address, self.protocol, self.number);
                rules.elements.insert((NO_ENDPOINT_SERVICES, key), self.refusal());
            }
            if let Some(node_port) = node_port {
                let key = Key::port(self.protocol, node_port);
                rules.elements.insert((NO_ENDPOINT_NODEPORTS, key), self.refusal());
            }
        }
        if !self.selected.any() {
            return;
        }
        let entry = format!("external/{}", self.name);
        rules.chains.insert(entry.clone(), self.external_chain(local));
        let balanced = self.load_balancer_addresses();
        let guarded = self.add_firewall(rules, &entry);
        for address in addresses {
            let key = Key::endpoint(*address, self.protocol, self.number);
            let chain = guarded.as_ref().filter(|_| balanced.contains(address)).unwrap_or(&entry);
            rules.elements.insert((SERVICE_IPS, key), goto(chain.clone()));
        }
        if let Some(node_port) = node_port {
            rules.elements.insert((SERVICE_NODEPORTS, Key::port(self.protocol, node_port)), goto(entry));
        }
    }

    /// With the policy `Cluster` the answer must come back through this node, hence the masquerade. With `Local` the client's
    /// address is kept; pods and the node itself are let through to all endpoints, as they are not "external".
    fn external_chain(&self, local: bool) -> Vec<Rule> {
        let to_cluster = || Statement::Verdict(Verdict::Goto(format!("cluster/{}", self.name)));
        if !local {
            return vec![vec![Statement::SetMark(MASQUERADE_MARK)].into(), vec![to_cluster()].into()];
        }
        let mut rules: Vec<Rule> = Vec::new();
        if !self.selected.cluster.is_empty() {
            for network in &self.config.cluster_cidrs {
                let from_pod = Statement::InNetwork { field: Field::SourceAddress, network: *network, not: false };
                rules.push(vec![from_pod, to_cluster()].into());
            }
            let from_host = Statement::IsLocal(Field::SourceAddress);
            rules.push(vec![from_host, Statement::SetMark(MASQUERADE_MARK), to_cluster()].into());
        }
        if !self.selected.local.is_empty() {
            rules.push(vec![Statement::Verdict(Verdict::Goto(format!("local/{}", self.name)))].into());
        }
        rules
    }

    /// The chain that admits only `loadBalancerSourceRanges`, if there are any.
    fn add_firewall(&self, rules: &mut ServiceRules, entry: &str) -> Option<String> {
        let ranges = self.spec.load_balancer_source_ranges.as_ref().filter(|r| !r.is_empty())?;
        let mut guards: Vec<Rule> = Vec::new();
        for range in ranges.iter().filter_map(|r| r.trim().parse::<IpNet>().ok()) {
            if Family::of(range.addr()) == self.config.family {
                let admitted = Statement::InNetwork { field: Field::SourceAddress, network: range, not: false };
                guards.push(vec![admitted, Statement::Verdict(Verdict::Goto(entry.to_owned()))].into());
            }
        }
        guards.push(vec![Statement::Verdict(Verdict::Drop)].into());
        let name = format!("firewall/{}", self.name);
        rules.chains.insert(name.clone(), guards);
        Some(name)
    }

    /// The chain that spreads over `targets`, and for session affinity a chain and a client set for each target.
    fn add_balancer(&self, rules: &mut ServiceRules, kind: &str, targets: &[Target]) {
        let is_protocol = Statement::IsProtocol(self.protocol);
        let Some(timeout_seconds) = self.affinity_seconds() else {
            let wide = || Statement::TranslateByChance(targets.to_vec());
            let each = targets.iter().map(|(address, port)| Statement::TranslateTo { address: *address, port: *port });
            let spread = spread(each, wide).into_iter().map(|mut rule| {
                rule.insert(0, is_protocol.clone());
                rule.into()
            });
            rules.chains.insert(format!("{kind}/{}", self.name), spread.collect());
            return;
        };
        let mut balancer: Vec<Rule> = Vec::new();
        let mut chains = Vec::new();
        for (address, port) in targets {
            // Colons are no part of a name in nft's language.
            let name = format!("{}/{}/{port}", self.name, address.to_string().replace(':', "-"));
            let (set, chain) = (format!("affinity/{name}"), format!("endpoint/{name}"));
            let kind = SetKind::Dynamic { timeout_seconds };
            rules.sets.insert(set.clone(), Set { key: vec![ValueType::Address], kind });
            let known = Statement::InSet { fields: vec![Field::SourceAddress], set: set.clone() };
            balancer.push(vec![known, Statement::Verdict(Verdict::Goto(chain.clone()))].into());
            let translate = Statement::TranslateTo { address: *address, port: *port };
            rules.chains.insert(
                chain.clone(),
                vec![vec![Statement::Remember { set }].into(), vec![is_protocol.clone(), translate].into()],
            );
            chains.push(chain);
        }
        let each = chains.iter().map(|chain| Statement::Verdict(Verdict::Goto(chain.clone())));
        balancer.extend(spread(each, || Statement::ByChance(chains.clone())).into_iter().map(Rule));
        rules.chains.insert(format!("{kind}/{}", self.name), balancer);
    }

    fn add_udp_frontends(
        &self,
        rules: &mut ServiceRules,
        internal_local: bool,
        external_local: bool,
        external: &[IpAddr],
        node_port: Option<u16>,
    ) {
        let addresses = |targets: &[Target]| targets.iter().map(|(address, _)| *address).collect::<BTreeSet<_>>();
        let internal = addresses(self.balancer(internal_local).1);
        // With the policy `Local`, pods and the node itself reach the other endpoints too.
        let mut outside = addresses(&self.selected.cluster);
        if external_local {
            outside.extend(addresses(&self.selected.local));
        }
        rules.udp.insert(Frontend::Address(self.cluster_ip, self.number), internal);
        for address in external {
            rules.udp.insert(Frontend::Address(*address, self.number), outside.clone());
        }
        if let Some(node_port) = node_port {
            rules.udp.insert(Frontend::NodePort(node_port), outside);
        }
    }

    /// The balancing chain of a traffic policy, and whom it leads to.
    fn balancer(&self, local: bool) -> (String, &[Target]) {
        if local {
            (format!("local/{}", self.name), &self.selected.local)
        } else {
            (format!("cluster/{}", self.name), &self.selected.cluster)
        }
    }

    /// A service without any endpoint refuses at once. One that merely has none here stays silent, so that load balancers
    /// and clients try another node.
    fn refusal(&self) -> Data {
        Data::Verdict(if self.selected.any() { Verdict::Drop } else { Verdict::Goto(REJECT.to_owned()) })
    }

    fn affinity_seconds(&self) -> Option<u32> {
        (self.spec.session_affinity.as_deref() == Some("ClientIP")).then(|| {
            let config = self.spec.session_affinity_config.as_ref();
            let seconds = config.and_then(|c| c.client_ip.as_ref()).and_then(|c| c.timeout_seconds);
            seconds.and_then(|s| u32::try_from(s).ok()).unwrap_or(DEFAULT_AFFINITY_SECONDS)
        })
    }

    fn node_port(&self) -> Option<u16> {
        let exposed = matches!(self.spec.type_.as_deref(), Some("NodePort" | "LoadBalancer"));
        self.port.node_port.filter(|_| exposed).and_then(|p| u16::try_from(p).ok()).filter(|p| *p != 0)
    }

    fn load_balancer_addresses(&self) -> Vec<IpAddr> {
        if self.spec.type_.as_deref() != Some("LoadBalancer") {
            return Vec::new();
        }
        let status = self.service.status.as_ref().and_then(|s| s.load_balancer.as_ref());
        let ingress = status.and_then(|l| l.ingress.as_ref()).into_iter().flatten();
        let ours =
            ingress.filter(|i| i.ip_mode.as_deref() != Some("Proxy")).filter_map(|i| i.ip.as_ref()?.parse().ok());
        ours.filter(|ip| Family::of(*ip) == self.config.family).collect()
    }

    /// Every address but the cluster IP under which the service is reached on this port.
    fn external_addresses(&self) -> Vec<IpAddr> {
        let declared = self.spec.external_ips.iter().flatten().filter_map(|ip| ip.parse().ok());
        let mut addresses: Vec<IpAddr> = declared.filter(|ip| Family::of(*ip) == self.config.family).collect();
        addresses.extend(self.load_balancer_addresses());
        addresses
    }
}

/// Rules that choose one of the actions with equal chances: the first once in n times, the next once in n-1, and so on.
///
/// Beyond some actions a map (`wide`) is quicker for packets. It is not for few: a map is a set object of its own, the
/// kernel walks the list of all sets to name or find one, and ten thousand of them take seconds to load.
fn spread(each: impl ExactSizeIterator<Item = Statement>, wide: impl FnOnce() -> Statement) -> Vec<Vec<Statement>> {
    let count = each.len();
    if count > MOST_RULES {
        return vec![vec![wide()]];
    }
    let with_chance = |(position, action)| match u32::try_from(count - position) {
        Ok(remaining) if remaining > 1 => vec![Statement::OneIn(remaining), action],
        _ => vec![action],
    };
    each.enumerate().map(with_chance).collect()
}

fn goto(chain: String) -> Data {
    Data::Verdict(Verdict::Goto(chain))
}

/// One line per set, element and rule; for fixtures.
impl fmt::Display for ServiceRules {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (name, set) in &self.sets {
            writeln!(f, "{set} {name}")?;
        }
        for ((set, key), data) in &self.elements {
            writeln!(f, "{set}: {key}{data}")?;
        }
        for (chain, rules) in &self.chains {
            writeln!(f, "chain {chain}")?;
            rules.iter().try_for_each(|rule| writeln!(f, "  {rule}"))?;
        }
        for (frontend, endpoints) in &self.udp {
            let endpoints: Vec<String> = endpoints.iter().map(IpAddr::to_string).collect();
            match frontend {
                Frontend::Address(address, port) => writeln!(f, "udp {address}:{port} <- {}", endpoints.join(" "))?,
                Frontend::NodePort(port) => writeln!(f, "udp *:{port} <- {}", endpoints.join(" "))?,
            }
        }
        if let Some(check) = &self.health_check {
            writeln!(f, "health check *:{} of {} endpoints", check.port, check.local_endpoints.len())?;
        }
        Ok(())
    }
}
