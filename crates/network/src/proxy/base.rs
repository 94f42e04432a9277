//! The part of the proxy's table that does not depend on services: where packets come in, and the maps that lead on.

use ipnet::IpNet;

use super::plan::{MASQUERADE_MARK, PlanConfig, TABLE};
use crate::nft::{
    self, Chain, Family, Field, Hook, HookPoint, Rule, RuleSet, Set, SetKind, Statement, ValueType, Verdict,
};

pub(super) const CLUSTER_IPS: &str = "cluster-ips";
pub(super) const SERVICE_IPS: &str = "service-ips";
pub(super) const SERVICE_NODEPORTS: &str = "service-nodeports";
pub(super) const NO_ENDPOINT_SERVICES: &str = "no-endpoint-services";
pub(super) const NO_ENDPOINT_NODEPORTS: &str = "no-endpoint-nodeports";
pub(super) const HAIRPIN: &str = "hairpin-connections";
pub(super) const REJECT: &str = "reject-chain";
const SERVICES: &str = "services";
const NO_ENDPOINTS: &str = "no-endpoints";
const UNKNOWN: &str = "unknown-cluster-ips";

/// The table of a cluster without services.
pub fn plan_base(config: &PlanConfig) -> RuleSet {
    let mut table = RuleSet::new(config.family, TABLE);
    let endpoint = || vec![ValueType::Address, ValueType::Protocol, ValueType::Port];
    let port = || vec![ValueType::Protocol, ValueType::Port];
    for (name, key, kind) in [
        (CLUSTER_IPS, vec![ValueType::Address], SetKind::Plain),
        (HAIRPIN, vec![ValueType::Address, ValueType::Address], SetKind::Plain),
        (SERVICE_IPS, endpoint(), SetKind::VerdictMap),
        (SERVICE_NODEPORTS, port(), SetKind::VerdictMap),
        (NO_ENDPOINT_SERVICES, endpoint(), SetKind::VerdictMap),
        (NO_ENDPOINT_NODEPORTS, port(), SetKind::VerdictMap),
    ] {
        table.sets.insert(name.to_owned(), Set { key, kind });
    }
    add_services(config, &mut table);
    add_refusals(config, &mut table);
    add_postrouting(&mut table);
    table
}

/// Where the translation of services begins.
fn add_services(config: &PlanConfig, table: &mut RuleSet) {
    let mut services = Vec::new();
    if !config.cluster_cidrs.is_empty() {
        let mut from_outside = vec![in_cluster_ips()];
        let outside =
            |network: &IpNet| Statement::InNetwork { field: Field::SourceAddress, network: *network, not: true };
        from_outside.extend(config.cluster_cidrs.iter().map(outside));
        from_outside.push(Statement::SetMark(MASQUERADE_MARK));
        services.push(from_outside);
    }
    services.push(vec![by_address(SERVICE_IPS)]);
    services.push(by_node_port(config.family, SERVICE_NODEPORTS));
    add_chain(table, SERVICES, None, services);
    for (name, point) in [("nat-prerouting", HookPoint::Prerouting), ("nat-output", HookPoint::Output)] {
        add_chain(table, name, Some(Hook { kind: "nat", point, priority: -100 }), vec![vec![jump(SERVICES)]]);
    }
}

/// Services that nobody serves, and service addresses that no service has.
fn add_refusals(config: &PlanConfig, table: &mut RuleSet) {
    let tcp = Statement::IsProtocol(nft::Protocol::Tcp);
    add_chain(table, REJECT, None, vec![vec![tcp, Statement::Reset], vec![Statement::Reject]]);
    let no_endpoints = vec![vec![by_address(NO_ENDPOINT_SERVICES)], by_node_port(config.family, NO_ENDPOINT_NODEPORTS)];
    add_chain(table, NO_ENDPOINTS, None, no_endpoints);
    let refuse = || Statement::Verdict(Verdict::Goto(REJECT.to_owned()));
    let mut unknown = vec![vec![in_cluster_ips(), refuse()]];
    unknown.extend(config.service_cidrs.iter().map(|network| {
        vec![Statement::InNetwork { field: Field::DestinationAddress, network: *network, not: false }, refuse()]
    }));
    add_chain(table, UNKNOWN, None, unknown);

    let filter = |point, priority| Some(Hook { kind: "filter", point, priority });
    let new = |chain| vec![Statement::IsNew, jump(chain)];
    let mut input = vec![new(NO_ENDPOINTS)];
    if config.family == Family::V4 {
        input.insert(0, protect_loopback());
    }
    add_chain(table, "filter-input", filter(HookPoint::Input, -110), input);
    let both = || vec![new(NO_ENDPOINTS), new(UNKNOWN)];
    let mut forward: Vec<Vec<Statement>> = config.cluster_cidrs.iter().map(drop_invalid).collect();
    forward.extend(both());
    add_chain(table, "filter-forward", filter(HookPoint::Forward, -110), forward);
    // After the translation: what got an endpoint does not look like its service any more.
    add_chain(table, "filter-output", filter(HookPoint::Output, -90), both());
}

/// Node ports answer on 127.0.0.1, for which the kernel must route such addresses (`route_localnet`). Then neighbours could
/// reach what listens on loopback only: all but answers to translated connections is dropped.
fn protect_loopback() -> Vec<Statement> {
    let loopback = |field, not| Statement::InNetwork { field, network: nft::loopback(Family::V4), not };
    vec![
        loopback(Field::DestinationAddress, false),
        loopback(Field::SourceAddress, true),
        Statement::IsUntranslated,
        Statement::Verdict(Verdict::Drop),
    ]
}

/// What a pod sends outside of its connection's window is not translated back: the client would see it come from a
/// stranger, and reset the connection. Upstream drops all such packets; we leave those alone that are not the cluster's.
fn drop_invalid(network: &IpNet) -> Vec<Statement> {
    let from_pod = Statement::InNetwork { field: Field::SourceAddress, network: *network, not: false };
    vec![Statement::IsInvalid, from_pod, Statement::Verdict(Verdict::Drop)]
}

fn add_postrouting(table: &mut RuleSet) {
    let pair = vec![Field::SourceAddress, Field::DestinationAddress];
    let marked =
        vec![Statement::HasMark(MASQUERADE_MARK), Statement::ClearMark(MASQUERADE_MARK), Statement::Masquerade];
    let hairpin = Statement::InSet { fields: pair, set: HAIRPIN.to_owned() };
    let hook = Hook { kind: "nat", point: HookPoint::Postrouting, priority: 100 };
    let rules = vec![marked, vec![Statement::IsTranslated, hairpin, Statement::Masquerade]];
    add_chain(table, "nat-postrouting", Some(hook), rules);
}

fn add_chain(table: &mut RuleSet, name: &str, hook: Option<Hook>, rules: Vec<Vec<Statement>>) {
    table.chains.insert(name.to_owned(), Chain { hook, rules: rules.into_iter().map(Rule).collect() });
}

fn in_cluster_ips() -> Statement {
    Statement::InSet { fields: vec![Field::DestinationAddress], set: CLUSTER_IPS.to_owned() }
}

fn by_address(map: &str) -> Statement {
    let fields = vec![Field::DestinationAddress, Field::Protocol, Field::DestinationPort];
    Statement::ByMap { fields, map: map.to_owned() }
}

fn by_node_port(family: Family, map: &str) -> Vec<Statement> {
    let mut rule = vec![Statement::IsLocal(Field::DestinationAddress)];
    if family == Family::V6 {
        // The kernel cannot route ::1, whatever it is told.
        rule.push(Statement::InNetwork { field: Field::DestinationAddress, network: nft::loopback(family), not: true });
    }
    rule.push(Statement::ByMap { fields: vec![Field::Protocol, Field::DestinationPort], map: map.to_owned() });
    rule
}

fn jump(chain: &str) -> Statement {
    Statement::Verdict(Verdict::Jump(chain.to_owned()))
}
