//! Counts of pods per node, kept as pods come and go: how many match a selector that somebody asks about, and how many
//! carry an affinity term that others have to heed. Deciding then adds up numbers per node instead of looking at pods.

use std::collections::HashMap;
use std::sync::Arc;

use crate::pod::PodInfo;
use crate::selector::{Namespaces, PodMatch, Term};

/// Selectors counted at once; the one that was not asked about for longest gives way to a new one.
const MAX_GROUPS: usize = 512;

/// A count for each slot of the node table, and their sum.
#[derive(Debug, Default)]
pub struct Counts {
    by_slot: Vec<u32>,
    total: u64,
}

impl Counts {
    pub fn at(&self, slot: u32) -> i64 {
        self.by_slot.get(slot as usize).copied().unwrap_or(0).into()
    }

    pub fn total(&self) -> u64 {
        self.total
    }

    fn add(&mut self, slot: u32) {
        let slot = slot as usize;
        if self.by_slot.len() <= slot {
            self.by_slot.resize(slot + 1, 0);
        }
        self.by_slot[slot] += 1;
        self.total += 1;
    }

    fn remove(&mut self, slot: u32) {
        let Some(count) = self.by_slot.get_mut(slot as usize) else { return };
        debug_assert!(*count > 0, "a pod is removed from where it was added");
        *count = count.saturating_sub(1);
        self.total = self.total.saturating_sub(1);
    }
}

/// The pods that match all of `all`.
#[derive(Debug)]
struct Group {
    all: Vec<PodMatch>,
    /// Spreading does not count pods that are going away; affinity does.
    skip_terminating: bool,
    counts: Counts,
    used: u64,
}

impl Group {
    fn counts(&self, pod: &PodInfo, namespaces: &Namespaces) -> bool {
        let class = &pod.class;
        !(self.skip_terminating && pod.terminating)
            && self.all.iter().all(|pods| pods.matches(&class.namespace, &class.labels, namespaces))
    }
}

#[derive(Clone, Debug, PartialEq, Eq, Hash)]
struct GroupKey {
    all: Vec<Arc<str>>,
    skip_terminating: bool,
}

impl GroupKey {
    fn new<'a>(all: impl IntoIterator<Item = &'a PodMatch>, skip_terminating: bool) -> Self {
        GroupKey { all: all.into_iter().map(|pods| pods.id().clone()).collect(), skip_terminating }
    }
}

/// How others have to heed a term.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Heed {
    /// They must stay away.
    Away,
    /// The carrier needs them near; one more is welcome.
    Needs,
    /// They are wanted near by this weight; away, if it is negative.
    Weight(i64),
}

/// A term, and on which nodes there are pods that carry it.
#[derive(Debug)]
pub struct Carried {
    pub heed: Heed,
    pub term: Term,
    pub counts: Counts,
}

type CarriedKey = (Heed, Arc<str>, Arc<str>);

/// What is about the pods of one namespace; or of several, or any.
#[derive(Debug, Default)]
struct Shelf {
    groups: HashMap<GroupKey, Group>,
    carried: HashMap<CarriedKey, Carried>,
}

#[derive(Debug, Default)]
pub struct Tally {
    by_namespace: HashMap<String, Shelf>,
    general: Shelf,
    groups: usize,
    clock: u64,
}

impl Tally {
    /// Counts the pods that match all of `all` from now on, unless they are counted already. `pods` are all placed pods.
    pub fn ensure<'a>(
        &mut self,
        all: &[PodMatch],
        skip_terminating: bool,
        pods: impl Iterator<Item = (u32, &'a Arc<PodInfo>)>,
        namespaces: &Namespaces,
    ) {
        self.clock += 1;
        let clock = self.clock;
        let key = GroupKey::new(all, skip_terminating);
        if let Some(group) = self.shelf_mut(all.first()).groups.get_mut(&key) {
            group.used = clock;
            return;
        }
        if self.groups >= MAX_GROUPS {
            self.drop_oldest_group();
        }
        let mut group = Group { all: all.to_vec(), skip_terminating, counts: Counts::default(), used: clock };
        for (slot, pod) in pods {
            if group.counts(pod, namespaces) {
                group.counts.add(slot);
            }
        }
        self.groups += 1;
        self.shelf_mut(all.first()).groups.insert(key, group);
    }

    fn drop_oldest_group(&mut self) {
        let shelves = self.by_namespace.values_mut().chain([&mut self.general]);
        let oldest_of = |shelf: &Shelf| {
            shelf.groups.iter().min_by_key(|(_, group)| group.used).map(|(key, group)| (group.used, key.clone()))
        };
        let oldest = shelves
            .filter_map(|shelf| oldest_of(shelf).map(|(used, key)| (used, key, shelf)))
            .min_by_key(|(used, _, _)| *used);
        if let Some((_, key, shelf)) = oldest {
            shelf.groups.remove(&key);
            self.groups -= 1;
        }
    }

    /// What [`Tally::ensure`] counts.
    pub fn counts(&self, all: &[PodMatch], skip_terminating: bool) -> Option<&Counts> {
        let shelf = match all.first().and_then(PodMatch::only_namespace) {
            Some(namespace) => self.by_namespace.get(namespace)?,
            None => &self.general,
        };
        shelf.groups.get(&GroupKey::new(all, skip_terminating)).map(|group| &group.counts)
    }

    /// The carried terms that mean `pod`.
    pub fn heeded<'a>(&'a self, pod: &'a PodInfo, namespaces: &'a Namespaces) -> impl Iterator<Item = &'a Carried> {
        let class = &pod.class;
        let shelves = self.by_namespace.get(&class.namespace).into_iter().chain([&self.general]);
        shelves
            .flat_map(|shelf| shelf.carried.values())
            .filter(|carried| carried.term.pods.matches(&class.namespace, &class.labels, namespaces))
    }

    pub fn topology_keys(&self) -> impl Iterator<Item = &Arc<str>> {
        let shelves = self.by_namespace.values().chain([&self.general]);
        shelves.flat_map(|shelf| shelf.carried.keys().map(|(_, _, key)| key))
    }

    pub fn add(&mut self, pod: &PodInfo, slot: u32, namespaces: &Namespaces) {
        self.count(pod, namespaces, |counts| counts.add(slot));
        for (heed, term) in terms(pod) {
            let fresh = || Carried { heed, term: term.clone(), counts: Counts::default() };
            let carried = &mut self.shelf_mut(Some(&term.pods)).carried;
            carried.entry(carried_key(heed, term)).or_insert_with(fresh).counts.add(slot);
        }
    }

    pub fn remove(&mut self, pod: &PodInfo, slot: u32, namespaces: &Namespaces) {
        self.count(pod, namespaces, |counts| counts.remove(slot));
        for (heed, term) in terms(pod) {
            let key = carried_key(heed, term);
            let all = &mut self.shelf_mut(Some(&term.pods)).carried;
            let Some(carried) = all.get_mut(&key) else { continue };
            carried.counts.remove(slot);
            if carried.counts.total == 0 {
                all.remove(&key);
            }
        }
    }

    fn count(&mut self, pod: &PodInfo, namespaces: &Namespaces, change: impl Fn(&mut Counts)) {
        let shelves = self.by_namespace.get_mut(&pod.class.namespace).into_iter().chain([&mut self.general]);
        for group in shelves.flat_map(|shelf| shelf.groups.values_mut()) {
            if group.counts(pod, namespaces) {
                change(&mut group.counts);
            }
        }
    }

    fn shelf_mut(&mut self, pods: Option<&PodMatch>) -> &mut Shelf {
        match pods.and_then(PodMatch::only_namespace) {
            Some(namespace) => self.by_namespace.entry(namespace.to_owned()).or_default(),
            None => &mut self.general,
        }
    }

    /// The labels of a namespace are about to change: what depends on them is counted anew when next asked for.
    pub fn forget_namespace_dependent(&mut self) {
        let mut groups = 0;
        for shelf in self.by_namespace.values_mut().chain([&mut self.general]) {
            shelf.groups.retain(|_, group| !group.all.iter().any(PodMatch::depends_on_namespaces));
            groups += shelf.groups.len();
        }
        self.groups = groups;
        self.by_namespace.retain(|_, shelf| !(shelf.groups.is_empty() && shelf.carried.is_empty()));
    }
}

fn carried_key(heed: Heed, term: &Term) -> CarriedKey {
    (heed, term.pods.id().clone(), term.topology_key.clone())
}

fn terms(pod: &PodInfo) -> impl Iterator<Item = (Heed, &Term)> {
    let class = &pod.class;
    let away = class.anti_affinity.iter().map(|term| (Heed::Away, term));
    let needs = class.affinity.iter().map(|term| (Heed::Needs, term));
    let near = class.preferred_affinity.iter().map(|(weight, term)| (Heed::Weight(*weight), term));
    let apart = class.preferred_anti_affinity.iter().map(|(weight, term)| (Heed::Weight(-*weight), term));
    away.chain(needs).chain(near).chain(apart)
}
