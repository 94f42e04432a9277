//! The table `coxswain-pods`: host ports, and masquerade of what pods send out of the cluster.
//!
//! It is a table of its own because the plugin writes to it while kube-proxy replaces its own at will. What should be in
//! it follows from the configuration and the records alone, so that it can be rebuilt at any time.

use ipnet::IpNet;
use nix::errno::Errno;

use super::ipam::{Pool, PortMapping, Record};
use crate::Result;
use crate::netlink::conntrack;
use crate::nft::{
    self, Chain, Change, Data, Family, Field, Hook, HookPoint, Key, Rule, RuleSet, Set, SetKind, Statement,
    Transaction, Value, ValueType, Verdict,
};

pub const TABLE: &str = "coxswain-pods";
const PORTS: &str = "host-ports";
const PORTS_AT: &str = "host-ports-at";
const PORTS_CHAIN: &str = "host-ports-chain";
const HAIRPIN: &str = "hairpin-connections";

/// The networks that decide whose traffic keeps its address.
#[derive(Debug, Clone, Copy)]
pub struct Networks<'a> {
    /// This node's pods.
    pub pods: &'a [IpNet],
    /// All pods of the cluster.
    pub cluster: &'a [IpNet],
}

impl Networks<'_> {
    fn families(self) -> impl Iterator<Item = Family> + use<> {
        let present = |family| self.pods.iter().any(|network| Family::of(network.addr()) == family);
        let wanted = [(Family::V4, present(Family::V4)), (Family::V6, present(Family::V6))];
        wanted.into_iter().filter(|(_, present)| *present).map(|(family, _)| family)
    }
}

/// Makes the pod's host ports lead to it.
pub fn publish(networks: Networks<'_>, pool: &Pool, record: &Record) -> Result<()> {
    if record.ports.is_empty() {
        return Ok(());
    }
    let transactions: Vec<Transaction> = networks.families().map(|family| additions(family, record)).collect();
    match nft::commit(&transactions) {
        // Somebody flushed the ruleset or wrote into it: make it anew, from all records (this one is among them).
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EEXIST)) => {
            write_table(networks, &pool.records()?)
        }
        other => other,
    }
}

/// Takes the pod's host ports back, and ends the UDP flows that used them.
pub fn withdraw(networks: Networks<'_>, record: &Record) -> Result<()> {
    if record.ports.is_empty() {
        return Ok(());
    }
    let udp = record.ports.iter().any(|port| port.protocol == nft::Protocol::Udp);
    for family in networks.families() {
        for (set, key, _) in elements(family, record) {
            // Each by itself: one that is missing must not keep the others.
            let mut transaction = Transaction::new(family, TABLE);
            transaction.push(Change::DeleteElements { set: set.to_owned(), keys: vec![key] });
            match nft::commit(&[transaction]) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                other => other?,
            }
        }
        if udp {
            let of_pod = |flow: &conntrack::Flow| record.addresses.contains(&flow.answering);
            conntrack::delete_flows(family == Family::V6, nft::Protocol::Udp.number(), of_pod)?;
        }
    }
    Ok(())
}

/// Writes the whole table anew, in one step.
pub fn write_table(networks: Networks<'_>, records: &[Record]) -> Result<()> {
    let tables: Vec<Transaction> =
        networks.families().map(|family| plan(family, networks, records).replace()).collect();
    nft::commit(&tables)
}

fn additions(family: Family, record: &Record) -> Transaction {
    let mut transaction = Transaction::new(family, TABLE);
    for (set, key, data) in elements(family, record) {
        transaction.push(Change::AddElements { set: set.to_owned(), elements: vec![(key, data)] });
    }
    transaction
}

fn elements(family: Family, record: &Record) -> Vec<(&'static str, Key, Data)> {
    let Some(address) = record.addresses.iter().copied().find(|a| Family::of(*a) == family) else { return Vec::new() };
    let mut elements = Vec::new();
    for PortMapping { protocol, host_port, container_port, host_ip } in &record.ports {
        let target = Data::Values(Key(vec![Value::Address(address), Value::Port(*container_port)]));
        match host_ip {
            None => elements.push((PORTS, Key::port(*protocol, *host_port), target)),
            Some(ip) if Family::of(*ip) == family => {
                elements.push((PORTS_AT, Key::endpoint(*ip, *protocol, *host_port), target));
            }
            Some(_) => {}
        }
    }
    if !elements.is_empty() {
        elements.push((HAIRPIN, Key(vec![Value::Address(address), Value::Address(address)]), Data::Nothing));
    }
    elements
}

/// The table as it should be.
pub fn plan(family: Family, networks: Networks<'_>, records: &[Record]) -> RuleSet {
    let mut table = RuleSet::new(family, TABLE);
    let target = SetKind::Map(vec![ValueType::Address, ValueType::Port]);
    let port = vec![ValueType::Protocol, ValueType::Port];
    let port_at = vec![ValueType::Address, ValueType::Protocol, ValueType::Port];
    let pair = vec![ValueType::Address, ValueType::Address];
    table.sets.insert(PORTS.to_owned(), Set { key: port, kind: target.clone() });
    table.sets.insert(PORTS_AT.to_owned(), Set { key: port_at, kind: target });
    table.sets.insert(HAIRPIN.to_owned(), Set { key: pair, kind: SetKind::Plain });

    table.chains.insert(PORTS_CHAIN.to_owned(), Chain { hook: None, rules: host_port_rules(family) });
    for (name, point) in [("prerouting", HookPoint::Prerouting), ("output", HookPoint::Output)] {
        // Before kube-proxy's: a host port is the more particular wish.
        let hook = Some(Hook { kind: "nat", point, priority: -101 });
        let jump = Statement::Verdict(Verdict::Jump(PORTS_CHAIN.to_owned()));
        table.chains.insert(name.to_owned(), Chain { hook, rules: vec![vec![jump].into()] });
    }
    let hook = Some(Hook { kind: "nat", point: HookPoint::Postrouting, priority: 100 });
    table.chains.insert("postrouting".to_owned(), Chain { hook, rules: masquerade_rules(family, networks) });

    for record in records {
        for (set, key, data) in elements(family, record) {
            table.elements.entry(set.to_owned()).or_default().insert(key, data);
        }
    }
    table
}

fn host_port_rules(family: Family) -> Vec<Rule> {
    let by = |fields: &[Field], map: &str| Statement::TranslateByMap { fields: fields.to_vec(), map: map.to_owned() };
    let particular = by(&[Field::DestinationAddress, Field::Protocol, Field::DestinationPort], PORTS_AT);
    let mut any_address = vec![Statement::IsLocal(Field::DestinationAddress)];
    if family == Family::V6 {
        // The kernel cannot route ::1, whatever it is told.
        let network = nft::loopback(family);
        any_address.push(Statement::InNetwork { field: Field::DestinationAddress, network, not: true });
    }
    any_address.push(by(&[Field::Protocol, Field::DestinationPort], PORTS));
    vec![vec![particular].into(), any_address.into()]
}

/// Who cannot be answered under its own address: a pod that came to itself through the host, the host's loopback, and pods
/// outside of the cluster.
fn masquerade_rules(family: Family, networks: Networks<'_>) -> Vec<Rule> {
    let of_family = |all: &[IpNet]| all.iter().copied().filter(|n| Family::of(n.addr()) == family).collect::<Vec<_>>();
    let pair = vec![Field::SourceAddress, Field::DestinationAddress];
    let itself = Statement::InSet { fields: pair, set: HAIRPIN.to_owned() };
    let loopback = Statement::InNetwork { field: Field::SourceAddress, network: nft::loopback(family), not: false };
    let mut rules: Vec<Rule> = vec![
        vec![Statement::IsTranslated, itself, Statement::Masquerade].into(),
        vec![Statement::IsTranslated, loopback, Statement::Masquerade].into(),
    ];
    for network in of_family(networks.pods) {
        let mut rule = vec![Statement::InNetwork { field: Field::SourceAddress, network, not: false }];
        let inside = of_family(networks.cluster).into_iter().chain(std::iter::once(multicast(family)));
        rule.extend(inside.map(|network| Statement::InNetwork {
            field: Field::DestinationAddress,
            network,
            not: true,
        }));
        rule.push(Statement::Masquerade);
        rules.push(rule.into());
    }
    rules
}

fn multicast(family: Family) -> IpNet {
    let network = match family {
        Family::V4 => IpNet::new([224, 0, 0, 0].into(), 4),
        Family::V6 => IpNet::new(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    };
    network.expect("a constant with a valid prefix length")
}
