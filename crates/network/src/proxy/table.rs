//! What the kernel's table holds, kept in memory, and the transactions that bring it to a new plan.
//!
//! The kernel's table is never read back: a listing costs as much as all services, a delta as much as the change.

use std::collections::{BTreeMap, HashMap};

use super::plan::ServiceRules;
use crate::nft::{Change, Data, Family, Key, RuleSet, Transaction};

type ElementKey = (&'static str, Key);
/// Namespace and name.
pub type ServiceName = (String, String);

/// The rules of all services over the base of the table.
pub struct Table {
    base: RuleSet,
    services: HashMap<ServiceName, ServiceRules>,
    /// Who wants which element. Two services may claim one external address and port: the first by name has it, and the other
    /// gets it when the first goes.
    owners: BTreeMap<ElementKey, BTreeMap<ServiceName, Data>>,
}

/// Collects the steps of several services' changes, in an order that the kernel accepts: nothing is deleted while it is
/// referred to, nothing is referred to before it exists.
#[derive(Default)]
struct Delta {
    /// What each touched element was at the start.
    touched: BTreeMap<ElementKey, Option<Data>>,
    added: Vec<Change>,
    rewritten: Vec<Change>,
    emptied: Vec<Change>,
    deleted: Vec<Change>,
}

impl Table {
    pub fn new(base: RuleSet) -> Self {
        Table { base, services: HashMap::new(), owners: BTreeMap::new() }
    }

    pub fn family(&self) -> Family {
        self.base.family
    }

    pub fn rules(&self, service: &ServiceName) -> Option<&ServiceRules> {
        self.services.get(service)
    }

    pub fn services(&self) -> impl Iterator<Item = &ServiceName> {
        self.services.keys()
    }

    /// Takes over new plans of some services (empty rules: the service is gone) and returns the steps from the old ones.
    pub fn apply(&mut self, plans: impl IntoIterator<Item = (ServiceName, ServiceRules)>) -> Transaction {
        let mut delta = Delta::default();
        for (name, new) in plans {
            let old = self.services.remove(&name).unwrap_or_default();
            if old != new {
                self.change_elements(&name, &old, &new, &mut delta);
                delta.change_sets_and_chains(&old, &new);
            }
            if new != ServiceRules::default() {
                self.services.insert(name, new);
            }
        }
        self.finish(delta)
    }

    /// The transaction that writes the whole table anew, whatever the kernel has.
    pub fn replace(&self) -> Transaction {
        let mut whole = self.base.clone();
        for rules in self.services.values() {
            whole.sets.extend(rules.sets.clone());
            for (name, rules) in &rules.chains {
                whole.chains.entry(name.clone()).or_default().rules.clone_from(rules);
            }
        }
        for ((set, key), owners) in &self.owners {
            if let Some(data) = owners.values().next() {
                whole.elements.entry((*set).to_owned()).or_default().insert(key.clone(), data.clone());
            }
        }
        whole.replace()
    }

    fn effective(&self, key: &ElementKey) -> Option<Data> {
        self.owners.get(key).and_then(|owners| owners.values().next()).cloned()
    }

    fn change_elements(&mut self, name: &ServiceName, old: &ServiceRules, new: &ServiceRules, delta: &mut Delta) {
        let changed = old.elements.iter().filter(|(key, data)| new.elements.get(*key) != Some(*data));
        let gone: Vec<ElementKey> = changed.map(|(key, _)| key.clone()).collect();
        for key in gone {
            let before = self.effective(&key);
            delta.touched.entry(key.clone()).or_insert(before);
            if let Some(owners) = self.owners.get_mut(&key) {
                owners.remove(name);
                if owners.is_empty() {
                    self.owners.remove(&key);
                }
            }
        }
        for (key, data) in &new.elements {
            if old.elements.get(key) != Some(data) {
                let before = self.effective(key);
                delta.touched.entry(key.clone()).or_insert(before);
                self.owners.entry(key.clone()).or_default().insert(name.clone(), data.clone());
            }
        }
    }

    fn finish(&self, delta: Delta) -> Transaction {
        let mut deleted: BTreeMap<&'static str, Vec<Key>> = BTreeMap::new();
        let mut added: BTreeMap<&'static str, Vec<(Key, Data)>> = BTreeMap::new();
        for (element, before) in delta.touched {
            let after = self.effective(&element);
            if before == after {
                continue;
            }
            let (set, key) = element;
            if before.is_some() {
                deleted.entry(set).or_default().push(key.clone());
            }
            if let Some(data) = after {
                added.entry(set).or_default().push((key, data));
            }
        }
        let mut transaction = Transaction::new(self.base.family, &self.base.table);
        let elements = deleted.into_iter().map(|(set, keys)| Change::DeleteElements { set: set.to_owned(), keys });
        transaction.changes.extend(elements);
        transaction.changes.extend(delta.added);
        transaction.changes.extend(delta.rewritten);
        let elements = added.into_iter().map(|(set, elements)| Change::AddElements { set: set.to_owned(), elements });
        transaction.changes.extend(elements);
        transaction.changes.extend(delta.emptied);
        transaction.changes.extend(delta.deleted);
        transaction
    }
}

impl Delta {
    fn change_sets_and_chains(&mut self, old: &ServiceRules, new: &ServiceRules) {
        for (name, set) in &new.sets {
            // A set that stays keeps its clients. The kernel cannot edit a timeout, so a changed set is made anew.
            if old.sets.get(name) != Some(set) {
                if old.sets.contains_key(name) {
                    self.replace_set(name, old);
                }
                self.added.push(Change::AddSet { name: name.clone(), set: set.clone() });
            }
        }
        for (name, rules) in &new.chains {
            let renewed = rules.iter().any(|rule| rule.sets().any(|set| old.sets.get(set) != new.sets.get(set)));
            match old.chains.get(name) {
                Some(before) if before == rules && !renewed => continue,
                Some(_) => self.rewritten.push(Change::FlushChain { name: name.clone() }),
                None => self.added.push(Change::AddChain { name: name.clone(), hook: None }),
            }
            let added = rules.iter().map(|rule| Change::AddRule { chain: name.clone(), rule: rule.clone() });
            self.rewritten.extend(added);
        }
        for name in old.chains.keys().filter(|name| !new.chains.contains_key(*name)) {
            self.emptied.push(Change::FlushChain { name: name.clone() });
            self.deleted.push(Change::DeleteChain { name: name.clone() });
        }
        for name in old.sets.keys().filter(|name| !new.sets.contains_key(*name)) {
            self.deleted.push(Change::DeleteSet { name: name.clone() });
        }
    }

    /// Frees a set of the rules that use it, so that another of its name can take its place.
    fn replace_set(&mut self, set: &str, old: &ServiceRules) {
        for (chain, rules) in &old.chains {
            if rules.iter().any(|rule| rule.sets().any(|used| used == set)) {
                self.added.push(Change::FlushChain { name: chain.clone() });
            }
        }
        self.added.push(Change::DeleteSet { name: set.to_owned() });
    }
}
