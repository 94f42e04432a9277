//! The table `coxswain-pods`: host ports, and masquerade of what pods send out of the cluster.
//!
//! It is a table of its own because the plugin writes to it while kube-proxy replaces its own at will. What should be in
//! it follows from the configuration and the records alone, so that it can be rebuilt at any time.

use ipnet::IpNet;
use nix::errno::Errno;

use super::config::NetworkConfig;
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
const HAIRPIN: &str = "hairpin-connections";

/// Makes the pod's host ports lead to it.
pub fn publish(config: &NetworkConfig, pool: &Pool, record: &Record) -> Result<()> {
    if record.ports.is_empty() {
        return Ok(());
    }
    let transactions: Vec<Transaction> = families(config).map(|family| additions(family, record)).collect();
    match nft::commit(&transactions) {
        // Somebody flushed the ruleset or wrote into it: make it anew, from all records (this one is among them).
        Err(error) if matches!(error.errno(), Some(Errno::ENOENT | Errno::EEXIST)) => {
            write_table(&config.pod_cidrs, &config.cluster_cidrs, &pool.records()?)
        }
        other => other,
    }
}

/// Takes the pod's host ports back, and ends the UDP flows that used them.
pub fn withdraw(config: &NetworkConfig, record: &Record) -> Result<()> {
    if record.ports.is_empty() {
        return Ok(());
    }
    for family in families(config) {
        for (set, key, _) in elements(family, record) {
            // Each by itself: one that is missing must not keep the others.
            let mut transaction = Transaction::new(family, TABLE);
            transaction.push(Change::DeleteElements { set: set.to_owned(), keys: vec![key] });
            match nft::commit(&[transaction]) {
                Err(error) if error.errno() == Some(Errno::ENOENT) => {}
                other => other?,
            }
        }
        let of_pod = |flow: &conntrack::Flow| record.addresses.contains(&flow.answering);
        if record.ports.iter().any(|port| port.protocol == nft::Protocol::Udp) {
            conntrack::delete_flows(family == Family::V6, nft::Protocol::Udp.number(), of_pod)?;
        }
    }
    Ok(())
}

/// Writes the whole table anew, in one step.
pub fn write_table(pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet], records: &[Record]) -> Result<()> {
    let families = families_of(pod_cidrs);
    let tables: Vec<Transaction> =
        families.map(|family| plan(family, pod_cidrs, cluster_cidrs, records).replace()).collect();
    nft::commit(&tables)
}

fn families(config: &NetworkConfig) -> impl Iterator<Item = Family> {
    families_of(&config.pod_cidrs)
}

fn families_of(pod_cidrs: &[IpNet]) -> impl Iterator<Item = Family> + use<> {
    let present = |family| pod_cidrs.iter().any(|network| Family::of(network.addr()) == family);
    let wanted = [(Family::V4, present(Family::V4)), (Family::V6, present(Family::V6))];
    wanted.into_iter().filter(|(_, present)| *present).map(|(family, _)| family)
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
pub fn plan(family: Family, pod_cidrs: &[IpNet], cluster_cidrs: &[IpNet], records: &[Record]) -> RuleSet {
    use Field::{DestinationAddress, DestinationPort, Protocol, SourceAddress};
    let mut table = RuleSet::new(family, TABLE);
    let target = SetKind::Map(vec![ValueType::Address, ValueType::Port]);
    let port_key = vec![ValueType::Protocol, ValueType::Port];
    let at_key = vec![ValueType::Address, ValueType::Protocol, ValueType::Port];
    table.sets.insert(PORTS.to_owned(), Set { key: port_key, kind: target.clone() });
    table.sets.insert(PORTS_AT.to_owned(), Set { key: at_key, kind: target });
    let pair = Set { key: vec![ValueType::Address, ValueType::Address], kind: SetKind::Plain };
    table.sets.insert(HAIRPIN.to_owned(), pair);

    let mut translate_local = vec![Statement::IsLocal(DestinationAddress)];
    if family == Family::V6 {
        // The kernel cannot route ::1, whatever it is told.
        let network = nft::loopback(family);
        translate_local.push(Statement::InNetwork { field: DestinationAddress, network, not: true });
    }
    translate_local.push(Statement::TranslateByMap { fields: vec![Protocol, DestinationPort], map: PORTS.to_owned() });
    let translate = vec![
        Rule(vec![Statement::TranslateByMap {
            fields: vec![DestinationAddress, Protocol, DestinationPort],
            map: PORTS_AT.to_owned(),
        }]),
        Rule(translate_local),
    ];
    // Before kube-proxy's: a host port is the more particular wish.
    let before_services = |point| Some(Hook { kind: "nat", point, priority: -101 });
    let jump = || vec![Rule(vec![Statement::Verdict(Verdict::Jump("host-ports-chain".to_owned()))])];
    table.chains.insert("host-ports-chain".to_owned(), Chain { hook: None, rules: translate });
    table.chains.insert("prerouting".to_owned(), Chain { hook: before_services(HookPoint::Prerouting), rules: jump() });
    table.chains.insert("output".to_owned(), Chain { hook: before_services(HookPoint::Output), rules: jump() });

    let of_family = |networks: &[IpNet]| -> Vec<IpNet> {
        networks.iter().copied().filter(|n| Family::of(n.addr()) == family).collect()
    };
    let mut leaving = vec![Rule(vec![
        Statement::IsTranslated,
        Statement::InSet { fields: vec![SourceAddress, DestinationAddress], set: HAIRPIN.to_owned() },
        Statement::Masquerade,
    ])];
    // Nobody could answer to a loopback address.
    let from_loopback = Statement::InNetwork { field: SourceAddress, network: nft::loopback(family), not: false };
    leaving.push(Rule(vec![Statement::IsTranslated, from_loopback, Statement::Masquerade]));
    for pod_cidr in of_family(pod_cidrs) {
        let mut rule = vec![Statement::InNetwork { field: SourceAddress, network: pod_cidr, not: false }];
        let inside = of_family(cluster_cidrs).into_iter().chain(std::iter::once(multicast(family)));
        rule.extend(inside.map(|network| Statement::InNetwork { field: DestinationAddress, network, not: true }));
        rule.push(Statement::Masquerade);
        leaving.push(Rule(rule));
    }
    let hook = Some(Hook { kind: "nat", point: HookPoint::Postrouting, priority: 100 });
    table.chains.insert("postrouting".to_owned(), Chain { hook, rules: leaving });

    for record in records {
        for (set, key, data) in elements(family, record) {
            table.elements.entry(set.to_owned()).or_default().insert(key, data);
        }
    }
    table
}

fn multicast(family: Family) -> IpNet {
    let network = match family {
        Family::V4 => IpNet::new([224, 0, 0, 0].into(), 4),
        Family::V6 => IpNet::new(std::net::Ipv6Addr::new(0xff00, 0, 0, 0, 0, 0, 0, 0).into(), 8),
    };
    network.expect("a constant with a valid prefix length")
}
