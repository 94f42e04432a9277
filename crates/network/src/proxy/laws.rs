//! Laws of the deltas, against a model of the kernel's table that is as strict as the kernel.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use proptest::prelude::*;
use proptest::sample::subsequence;
use serde_json::json;

use super::base::plan_base;
use super::plan::{PlanConfig, ServiceRules, plan_service};
use super::selection::Place;
use super::table::Table;
use crate::nft::{Change, Data, Family, Key, Rule, Set, Statement, Transaction, Verdict};

#[derive(Debug, Default, PartialEq, Eq)]
struct Kernel {
    sets: BTreeMap<String, String>,
    chains: BTreeMap<String, Vec<Rule>>,
    elements: BTreeMap<String, BTreeMap<Key, Data>>,
}

fn used_by(rule: &Rule) -> (Vec<&str>, Vec<&str>) {
    let (mut sets, mut chains) = (Vec::new(), Vec::new());
    for statement in &rule.0 {
        match statement {
            Statement::InSet { set, .. } | Statement::Remember { set } => sets.push(set.as_str()),
            Statement::ByMap { map, .. } | Statement::TranslateByMap { map, .. } => sets.push(map.as_str()),
            Statement::ByChance(all) => chains.extend(all.iter().map(String::as_str)),
            Statement::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) => chains.push(chain.as_str()),
            _ => {}
        }
    }
    (sets, chains)
}

impl Kernel {
    fn used(&self) -> (BTreeSet<&str>, BTreeSet<&str>) {
        let (mut sets, mut chains) = (BTreeSet::new(), BTreeSet::new());
        for rule in self.chains.values().flatten() {
            let (more_sets, more_chains) = used_by(rule);
            sets.extend(more_sets);
            chains.extend(more_chains);
        }
        for data in self.elements.values().flat_map(BTreeMap::values) {
            if let Data::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) = data {
                chains.insert(chain);
            }
        }
        (sets, chains)
    }

    /// Carries a transaction out; panics where the kernel would refuse.
    fn commit(&mut self, transaction: &Transaction) {
        for change in &transaction.changes {
            self.carry_out(change);
        }
    }

    fn carry_out(&mut self, change: &Change) {
        match change {
            Change::AddTable => {}
            Change::DeleteTable => *self = Kernel::default(),
            Change::AddSet { name, set } => {
                let set: &Set = set;
                assert!(self.sets.insert(name.clone(), set.to_string()).is_none(), "{change}: there is one");
            }
            Change::DeleteSet { name } => {
                assert!(!self.used().0.contains(name.as_str()), "{change}: busy");
                assert!(self.sets.remove(name).is_some(), "{change}: there is none");
                self.elements.remove(name);
            }
            Change::AddChain { name, .. } => {
                assert!(self.chains.insert(name.clone(), Vec::new()).is_none(), "{change}: there is one");
            }
            Change::FlushChain { name } => self.chains.get_mut(name).expect("a chain to flush").clear(),
            Change::DeleteChain { name } => {
                assert!(!self.used().1.contains(name.as_str()), "{change}: busy");
                let rules = self.chains.remove(name).expect("a chain to delete");
                assert!(rules.is_empty(), "{change}: not empty");
            }
            Change::AddRule { chain, rule } => {
                let (sets, chains) = used_by(rule);
                assert!(sets.iter().all(|set| self.sets.contains_key(*set)), "{change}: no such set");
                assert!(chains.iter().all(|chain| self.chains.contains_key(*chain)), "{change}: no such chain");
                self.chains.get_mut(chain).expect("a chain to add to").push(rule.clone());
            }
            Change::AddElements { set, elements } => {
                assert!(self.sets.contains_key(set), "{change}: no such set");
                for (key, data) in elements {
                    if let Data::Verdict(Verdict::Goto(chain) | Verdict::Jump(chain)) = data {
                        assert!(self.chains.contains_key(chain), "{change}: no such chain");
                    }
                    let present = self.elements.entry(set.clone()).or_default().insert(key.clone(), data.clone());
                    assert!(present.is_none(), "{change}: there is one");
                }
            }
            Change::DeleteElements { set, keys } => {
                let elements = self.elements.get_mut(set).expect("elements to delete");
                keys.iter().for_each(|key| assert!(elements.remove(key).is_some(), "{change}: there is none"));
                if elements.is_empty() {
                    self.elements.remove(set);
                }
            }
        }
    }
}

fn config() -> PlanConfig {
    PlanConfig {
        family: Family::V4,
        place: Place { node: "here".into(), zone: None },
        cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        service_cidrs: vec!["10.43.0.0/16".parse().unwrap()],
    }
}

/// One of four services in some state, or gone. They quarrel over addresses and node ports.
fn any_plan() -> impl Strategy<Value = ((String, String), ServiceRules)> {
    let traffic = (prop_oneof![Just(None), Just(Some(60)), Just(Some(90))], any::<bool>(), any::<bool>());
    let reach = (subsequence(vec![1u8, 2], 0..=2), prop_oneof![Just(0u16), Just(30001), Just(30002)], any::<bool>());
    let endpoints = prop_oneof![3 => subsequence((0..4u8).collect::<Vec<_>>(), 0..=4), 1 => Just((0..18u8).collect())];
    (0..4u8, any::<bool>(), traffic, reach, endpoints).prop_map(|(number, gone, traffic, reach, endpoints)| {
        let name = ("default".to_owned(), format!("s{number}"));
        if gone {
            return (name, ServiceRules::default());
        }
        let ((affinity, internal_local, external_local), (external, node_port, guarded)) = (traffic, reach);
        let policy = |local| if local { "Local" } else { "Cluster" };
        let external: Vec<String> = external.iter().map(|n| format!("203.0.113.{n}")).collect();
        let service: Service = serde_json::from_value(json!({
            "metadata": { "namespace": "default", "name": name.1 },
            "spec": {
                "type": "LoadBalancer",
                "clusterIP": format!("10.43.0.{number}"),
                "externalIPs": external,
                "loadBalancerSourceRanges": if guarded { json!(["198.51.100.0/24"]) } else { json!(null) },
                "internalTrafficPolicy": policy(internal_local),
                "externalTrafficPolicy": policy(external_local),
                "sessionAffinity": if affinity.is_some() { "ClientIP" } else { "None" },
                "sessionAffinityConfig": { "clientIP": { "timeoutSeconds": affinity } },
                "ports": [{ "name": "a", "port": 80, "nodePort": node_port }, { "name": "b", "port": 81 }],
            },
            "status": { "loadBalancer": { "ingress": [{ "ip": "203.0.113.9" }] } },
        }))
        .unwrap();
        let endpoints: Vec<_> = endpoints
            .iter()
            .map(|e| json!({ "addresses": [format!("10.42.0.{e}")], "nodeName": if e % 2 == 0 { "here" } else { "there" } }))
            .collect();
        let slice = serde_json::from_value(json!({
            "addressType": "IPv4",
            "ports": [{ "name": "a", "port": 8080 }, { "name": "b", "port": 8081 }],
            "endpoints": endpoints,
        }));
        (name, plan_service(&config(), &service, &[Arc::new(slice.unwrap())]))
    })
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(128))]

    /// Whatever happens to the services: the kernel accepts each delta, all deltas together lead where writing the table anew
    /// leads, and a table of no services is the base again.
    #[test]
    fn deltas_lead_where_a_new_table_leads(
        batches in proptest::collection::vec(proptest::collection::vec(any_plan(), 1..4), 1..10)
    ) {
        let mut table = Table::new(plan_base(&config()));
        let mut kernel = Kernel::default();
        kernel.commit(&table.replace());
        let mut names = BTreeSet::new();
        for batch in batches {
            // In a batch each service comes once.
            let batch: BTreeMap<_, _> = batch.into_iter().collect();
            names.extend(batch.keys().cloned());
            kernel.commit(&table.apply(batch));
            let mut anew = Kernel::default();
            anew.commit(&table.replace());
            prop_assert_eq!(&kernel, &anew);
        }
        kernel.commit(&table.apply(names.into_iter().map(|name| (name, ServiceRules::default()))));
        let mut base = Kernel::default();
        base.commit(&Table::new(plan_base(&config())).replace());
        prop_assert_eq!(kernel, base);
    }
}
