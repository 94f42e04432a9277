//! The cluster's names: a pure function of Services, EndpointSlices and Namespaces.
//!
//! Behaves as CoreDNS's `kubernetes` plugin does with `pods insecure`, following the Kubernetes DNS specification 1.1.0.

use std::collections::HashSet;
use std::net::IpAddr;
use std::sync::Arc;

use hickory_proto::op::{Query, ResponseCode};
use hickory_proto::rr::rdata::{A, AAAA, CNAME, NS, PTR, SOA, SRV, TXT};
use hickory_proto::rr::{Name, RData, Record, RecordType};
use ipnet::IpNet;
use k8s_openapi::api::core::v1::{Service, ServiceSpec};
use k8s_openapi::api::discovery::v1::{Endpoint, EndpointSlice};

/// Version of the DNS specification, served as `dns-version.<domain>`.
const SPECIFICATION: &str = "1.1.0";
/// CoreDNS's default for the cluster's records, in seconds: clients see a change soon.
pub const TTL: u32 = 5;
/// CNAMEs within the cluster that are followed before we give up.
const MOST_ALIASES: usize = 8;

/// Where the zone's facts come from.
pub trait Facts {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>>;
    /// The slices of a service.
    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>>;
    fn namespace_exists(&self, name: &str) -> bool;
    /// The service that has this cluster IP.
    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>>;
    /// Slices with an endpoint of this address that has a hostname; others may be among them.
    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>>;
}

/// What the zone is configured with.
#[derive(Debug, Clone)]
pub struct Zone {
    /// `cluster.local.`
    pub domain: Name,
    /// The service address of cluster DNS: what `ns.dns.<domain>` is.
    pub server: IpAddr,
    /// Addresses whose reverse names nobody else can know: pod and service networks.
    pub networks: Vec<IpNet>,
}

/// An answer, but for what copies from the question.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Reply {
    pub code: ResponseCode,
    pub answers: Vec<Record>,
    pub authorities: Vec<Record>,
    pub additionals: Vec<Record>,
    /// The answers end in an alias to this name, which is not the cluster's: whoever can must go on.
    pub continues: Option<Name>,
}

/// One way to reach a service, by which A, AAAA and SRV are answered.
struct Way {
    address: IpAddr,
    port: Option<u16>,
    /// The name that stands for the address alone.
    target: Vec<String>,
}

enum Found {
    /// The name is there. It may have no records.
    Ways(Vec<Way>),
    Alias(Name),
    Missing,
}

const PRESENT: Found = Found::Ways(Vec::new());

impl Zone {
    /// None if the name is not the cluster's.
    pub fn resolve(&self, facts: &dyn Facts, query: &Query) -> Option<Reply> {
        if self.domain.zone_of(query.name()) {
            return Some(self.resolve_forward(facts, query));
        }
        self.resolve_reverse(facts, query)
    }

    fn resolve_forward(&self, facts: &dyn Facts, query: &Query) -> Reply {
        let mut reply = Reply::of(ResponseCode::NoError);
        let mut name = query.name().clone();
        for _ in 0..MOST_ALIASES {
            let labels = self.labels_below(&name);
            let labels: Vec<&str> = labels.iter().map(String::as_str).collect();
            if self.answer_special(&labels, &name, query.query_type(), &mut reply) {
                return self.finish(reply, &self.domain);
            }
            match find(facts, &labels) {
                Found::Missing => {
                    reply.code = ResponseCode::NXDomain;
                    return self.finish(reply, &self.domain);
                }
                Found::Ways(ways) => {
                    self.answer_ways(&ways, &name, query.query_type(), &mut reply);
                    return self.finish(reply, &self.domain);
                }
                Found::Alias(target) => {
                    reply.answers.push(record(&name, RData::CNAME(CNAME(target.clone()))));
                    if query.query_type() == RecordType::CNAME {
                        return reply;
                    }
                    if !self.domain.zone_of(&target) {
                        reply.continues = Some(target);
                        return reply;
                    }
                    name = target;
                }
            }
        }
        Reply::of(ResponseCode::ServFail)
    }

    /// The labels in front of the domain, in lower case.
    fn labels_below(&self, name: &Name) -> Vec<String> {
        let count = usize::from(name.num_labels().saturating_sub(self.domain.num_labels()));
        name.iter().take(count).map(|label| String::from_utf8_lossy(label).to_lowercase()).collect()
    }

    /// The few names that are no object's. Says whether it was one.
    fn answer_special(&self, labels: &[&str], name: &Name, kind: RecordType, reply: &mut Reply) -> bool {
        match labels {
            [] => match kind {
                RecordType::SOA => reply.answers.push(self.soa(&self.domain)),
                RecordType::NS => {
                    let server = self.name(&["ns", "dns"]);
                    reply.additionals.push(record(&server, address_data(self.server)));
                    reply.answers.push(record(name, RData::NS(NS(server))));
                }
                _ => {}
            },
            ["dns-version"] => {
                if kind == RecordType::TXT {
                    reply.answers.push(record(name, RData::TXT(TXT::new(vec![SPECIFICATION.to_owned()]))));
                }
            }
            ["ns", "dns"] => {
                if kind == address_type(self.server) {
                    reply.answers.push(record(name, address_data(self.server)));
                }
            }
            ["dns"] => {}
            _ => return false,
        }
        true
    }

    fn answer_ways(&self, ways: &[Way], name: &Name, kind: RecordType, reply: &mut Reply) {
        match kind {
            RecordType::A | RecordType::AAAA => {
                let mut seen = HashSet::new();
                for way in ways.iter().filter(|way| address_type(way.address) == kind) {
                    if seen.insert(way.address) {
                        reply.answers.push(record(name, address_data(way.address)));
                    }
                }
            }
            RecordType::SRV => {
                let with_port = || ways.iter().filter_map(|way| way.port.map(|port| (port, way)));
                let mut distinct: HashSet<_> = with_port().map(|(port, way)| (port, &way.target)).collect();
                // As CoreDNS: all weigh the same and a hundred together, but never nothing.
                let weight = u16::try_from(100 / distinct.len().max(1)).unwrap_or(1).max(1);
                let mut told = HashSet::new();
                for (port, way) in with_port() {
                    let target = self.name(&way.target);
                    if told.insert((way.address, &way.target)) {
                        reply.additionals.push(record(&target, address_data(way.address)));
                    }
                    if distinct.remove(&(port, &way.target)) {
                        reply.answers.push(record(name, RData::SRV(SRV::new(0, weight, port, target))));
                    }
                }
            }
            _ => {}
        }
    }

    fn resolve_reverse(&self, facts: &dyn Facts, query: &Query) -> Option<Reply> {
        let network = query.name().parse_arpa_name().ok()?;
        let zone = Name::from_ascii(if network.addr().is_ipv4() { "in-addr.arpa." } else { "ip6.arpa." }).ok()?;
        let ours = self.networks.iter().any(|own| own.contains(&network));
        let mut reply = Reply::of(ResponseCode::NoError);
        if network.prefix_len() == network.max_prefix_len() {
            let names = self.reverse_names(facts, network.addr());
            if names.is_empty() {
                reply.code = ResponseCode::NXDomain;
            }
            if query.query_type() == RecordType::PTR {
                let answers = names.into_iter().map(|name| record(query.name(), RData::PTR(PTR(name))));
                reply.answers.extend(answers);
            }
        }
        let known = reply.code == ResponseCode::NoError && network.prefix_len() == network.max_prefix_len();
        // What we do not know may be somebody else's, unless the address cannot be.
        (known || ours).then(|| self.finish(reply, &zone))
    }

    fn reverse_names(&self, facts: &dyn Facts, ip: IpAddr) -> Vec<Name> {
        if let Some(service) = facts.service_by_ip(ip) {
            let (namespace, name) = client::key_of(&*service);
            return vec![self.name(&[name.as_str(), namespace.as_str(), "svc"])];
        }
        let text = ip.to_string();
        let mut names = Vec::new();
        for slice in facts.slices_by_ip(ip) {
            let Some((namespace, service)) = crate::endpoints::service_of(&slice) else { continue };
            let here = slice.endpoints.iter().flatten().filter(|e| e.addresses.contains(&text));
            for hostname in here.filter_map(|e| e.hostname.as_ref()) {
                let name = self.name(&[hostname.as_str(), service.as_str(), namespace.as_str(), "svc"]);
                if !names.contains(&name) {
                    names.push(name);
                }
            }
        }
        names
    }

    /// Adds what tells resolvers how long to remember that there is nothing.
    fn finish(&self, mut reply: Reply, zone: &Name) -> Reply {
        if reply.answers.is_empty() {
            reply.authorities.push(self.soa(zone));
        }
        reply
    }

    fn soa(&self, zone: &Name) -> Record {
        // There are no secondaries that would look at the serial.
        let soa = SOA::new(self.name(&["ns", "dns"]), self.name(&["hostmaster"]), 1, 7200, 1800, 86400, TTL);
        record(zone, RData::SOA(soa))
    }

    /// A name below the domain. Object names always fit into one; what does not is the domain itself.
    fn name(&self, labels: &[impl AsRef<str>]) -> Name {
        let relative = Name::from_labels(labels.iter().map(|label| label.as_ref().as_bytes()));
        relative.and_then(|name| name.append_domain(&self.domain)).unwrap_or_else(|_| self.domain.clone())
    }
}

impl Reply {
    pub fn of(code: ResponseCode) -> Self {
        Reply { code, answers: Vec::new(), authorities: Vec::new(), additionals: Vec::new(), continues: None }
    }
}

fn find(facts: &dyn Facts, labels: &[&str]) -> Found {
    let in_namespace = |namespace: &str| if facts.namespace_exists(namespace) { PRESENT } else { Found::Missing };
    match labels {
        ["svc" | "pod"] => PRESENT,
        [namespace, "svc" | "pod"] => in_namespace(namespace),
        [address, namespace, "pod"] => find_pod(facts, address, namespace),
        [service, namespace, "svc"] => find_service(facts, namespace, service, Part::Whole),
        [endpoint, service, namespace, "svc"] => find_service(facts, namespace, service, Part::Endpoint(endpoint)),
        [port, protocol, service, namespace, "svc"] => {
            let (Some(port), Some(protocol)) = (port.strip_prefix('_'), protocol.strip_prefix('_')) else {
                return Found::Missing;
            };
            find_service(facts, namespace, service, Part::Port { port, protocol })
        }
        _ => Found::Missing,
    }
}

/// Which part of a service a name asks for.
#[derive(Clone, Copy)]
enum Part<'a> {
    Whole,
    /// One endpoint by its hostname or its address with dashes.
    Endpoint(&'a str),
    /// One port by its name.
    Port {
        port: &'a str,
        protocol: &'a str,
    },
}

impl Part<'_> {
    fn has_port(self, name: Option<&str>, protocol: Option<&str>) -> bool {
        match self {
            Part::Port { port, protocol: wanted } => {
                name.is_some_and(|name| name.eq_ignore_ascii_case(port))
                    && protocol.unwrap_or("TCP").eq_ignore_ascii_case(wanted)
            }
            _ => true,
        }
    }
}

fn find_service(facts: &dyn Facts, namespace: &str, name: &str, part: Part<'_>) -> Found {
    let Some(service) = facts.service(namespace, name) else { return Found::Missing };
    let Some(spec) = &service.spec else { return Found::Missing };
    let target = || vec![name.to_owned(), namespace.to_owned(), "svc".to_owned()];
    if spec.type_.as_deref() == Some("ExternalName") {
        let alias = spec.external_name.as_ref().filter(|_| matches!(part, Part::Whole));
        return alias.and_then(|name| external_name(name)).map_or(Found::Missing, Found::Alias);
    }
    let mut ways = Vec::new();
    if is_headless(spec) || matches!(part, Part::Endpoint(_)) {
        let unready_too = spec.publish_not_ready_addresses == Some(true);
        for slice in facts.slices(namespace, name) {
            add_endpoints(&slice, part, unready_too, &target(), &mut ways);
        }
    } else {
        let addresses =
            || spec.cluster_ips.iter().flatten().chain(spec.cluster_ip.iter().filter(|_| spec.cluster_ips.is_none()));
        for port in spec.ports.iter().flatten().filter(|p| part.has_port(p.name.as_deref(), p.protocol.as_deref())) {
            for address in addresses().filter_map(|ip| ip.parse().ok()) {
                ways.push(Way { address, port: u16::try_from(port.port).ok(), target: target() });
            }
        }
    }
    if ways.is_empty() { Found::Missing } else { Found::Ways(ways) }
}

fn is_headless(spec: &ServiceSpec) -> bool {
    spec.cluster_ip.as_deref() == Some("None")
}

fn external_name(name: &str) -> Option<Name> {
    let mut name = Name::from_ascii(name).ok()?;
    name.set_fqdn(true);
    Some(name)
}

fn add_endpoints(slice: &EndpointSlice, part: Part<'_>, unready_too: bool, service: &[String], ways: &mut Vec<Way>) {
    // Without any port the endpoints still have their addresses.
    let all = slice.ports.as_deref().unwrap_or_default();
    let matching = all.iter().filter(|p| part.has_port(p.name.as_deref(), p.protocol.as_deref()));
    let mut ports: Vec<Option<u16>> = matching.map(|p| p.port.and_then(|p| u16::try_from(p).ok())).collect();
    if all.is_empty() && !matches!(part, Part::Port { .. }) {
        ports.push(None);
    }
    for endpoint in slice.endpoints.iter().flatten() {
        let ready = endpoint.conditions.as_ref().and_then(|c| c.ready).unwrap_or(true);
        if !ready && !unready_too {
            continue;
        }
        for address in endpoint.addresses.iter().filter_map(|a| a.parse::<IpAddr>().ok()) {
            let label = endpoint_label(endpoint, address);
            if matches!(part, Part::Endpoint(wanted) if wanted != label) {
                continue;
            }
            for port in &ports {
                let target = std::iter::once(label.clone()).chain(service.iter().cloned()).collect();
                ways.push(Way { address, port: *port, target });
            }
        }
    }
}

fn endpoint_label(endpoint: &Endpoint, address: IpAddr) -> String {
    match endpoint.hostname.as_deref() {
        Some(hostname) if !hostname.is_empty() => hostname.to_owned(),
        _ => address.to_string().replace(['.', ':'], "-"),
    }
}

/// `10-42-0-9.namespace.pod`: the address is taken from the name, whether there is such a pod or not.
fn find_pod(facts: &dyn Facts, address: &str, namespace: &str) -> Found {
    if !facts.namespace_exists(namespace) {
        return Found::Missing;
    }
    let v4 = address.replace('-', ".").parse::<std::net::Ipv4Addr>().ok().map(IpAddr::V4);
    let v6 = || address.replace('-', ":").parse::<std::net::Ipv6Addr>().ok().map(IpAddr::V6);
    match v4.or_else(v6) {
        Some(address) => Found::Ways(vec![Way { address, port: None, target: Vec::new() }]),
        None => Found::Missing,
    }
}

fn record(name: &Name, data: RData) -> Record {
    Record::from_rdata(name.clone(), TTL, data)
}

fn address_data(address: IpAddr) -> RData {
    match address {
        IpAddr::V4(a) => RData::A(A(a)),
        IpAddr::V6(a) => RData::AAAA(AAAA(a)),
    }
}

fn address_type(address: IpAddr) -> RecordType {
    if address.is_ipv4() { RecordType::A } else { RecordType::AAAA }
}
