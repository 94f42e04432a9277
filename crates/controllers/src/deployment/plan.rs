//! What a deployment does next: one step of its rollout, from what is observed. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{Deployment, DeploymentCondition, DeploymentStatus, ReplicaSet, ReplicaSetSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;

use super::revision::{self, REVISION};
use super::size::{self, Share, Size, Wish};
use super::status;
use crate::template;

/// What a step depends on.
pub struct Observed<'a> {
    pub deployment: &'a Deployment,
    /// The sets that the deployment controls.
    pub sets: &'a [Arc<ReplicaSet>],
    /// Whether a set has pods that have not finished; asked only for a deployment that recreates.
    pub has_pods: &'a dyn Fn(&ReplicaSet) -> bool,
    pub now: Timestamp,
}

/// A change of an existing set.
#[derive(Debug)]
pub struct SetUpdate {
    pub wanted: ReplicaSet,
    /// Sizes before and after, where the size changes.
    pub scaled: Option<(i32, i32)>,
}

#[derive(Debug)]
pub struct Plan {
    /// The new set, if it is to be made now.
    pub create: Option<ReplicaSet>,
    pub updates: Vec<SetUpdate>,
    /// Old sets beyond the history limit.
    pub delete: Vec<Arc<ReplicaSet>>,
    /// The revision that the deployment is to be annotated with, if it is not already.
    pub revision: Option<String>,
    pub status: DeploymentStatus,
    pub recheck: Option<Duration>,
}

pub fn plan(observed: &Observed<'_>) -> Plan {
    let mut step = Step::new(observed);
    let deployment = observed.deployment;
    if deployment.metadata.deletion_timestamp.is_some() {
        return step.finish(false);
    }
    status::note_pause(deployment, &mut step.conditions, observed.now);
    step.sync_new_set();
    let paused = deployment.spec.paused == Some(true);
    if paused || step.is_scaling() {
        step.scale();
        if paused {
            step.clean_up();
        }
        return step.finish(false);
    }
    if step.wish.rolling {
        step.roll()
    } else {
        step.recreate()
    }
    step.finish(true)
}

struct Slot {
    seen: Arc<ReplicaSet>,
    wanted: ReplicaSet,
}

struct Step<'a> {
    observed: &'a Observed<'a>,
    wish: Wish,
    /// Oldest first.
    slots: Vec<Slot>,
    /// The position of the set that has the deployment's template: the oldest such.
    new: Option<usize>,
    create: Option<ReplicaSet>,
    delete: Vec<Arc<ReplicaSet>>,
    conditions: Vec<DeploymentCondition>,
}

fn replicas_of(set: &ReplicaSet) -> i32 {
    set.spec.replicas.unwrap_or(1)
}

impl<'a> Step<'a> {
    fn new(observed: &'a Observed<'a>) -> Self {
        let mut slots: Vec<Slot> =
            observed.sets.iter().map(|set| Slot { seen: set.clone(), wanted: (**set).clone() }).collect();
        slots.sort_by(|a, b| {
            let age = |slot: &Slot| (slot.seen.metadata.creation_timestamp.clone(), slot.seen.metadata.name.clone());
            age(a).cmp(&age(b))
        });
        let wanted = &observed.deployment.spec.template;
        let new = slots
            .iter()
            .position(|slot| slot.seen.spec.template.as_ref().is_some_and(|seen| template::same(seen, wanted)));
        let conditions = observed.deployment.status.as_ref().and_then(|status| status.conditions.clone());
        Step {
            observed,
            wish: Wish::of(observed.deployment),
            slots,
            new,
            create: None,
            delete: Vec::new(),
            conditions: conditions.unwrap_or_default(),
        }
    }

    fn deployment(&self) -> &'a Deployment {
        self.observed.deployment
    }

    fn old(&self) -> impl DoubleEndedIterator<Item = usize> + use<> {
        let new = self.new;
        (0..self.slots.len()).filter(move |index| Some(*index) != new)
    }

    fn replicas(&self, index: usize) -> i32 {
        replicas_of(&self.slots[index].wanted)
    }

    fn total(&self) -> i64 {
        (0..self.slots.len()).map(|index| i64::from(self.replicas(index))).sum()
    }

    fn next_revision(&self) -> i64 {
        self.old().map(|index| revision::revision_of(&self.slots[index].seen)).max().unwrap_or(0).saturating_add(1)
    }

    /// Annotations and readiness time of the set that has the template already.
    fn sync_new_set(&mut self) {
        let Some(new) = self.new else { return };
        let revision = self.next_revision();
        let deployment = self.deployment();
        let wanted = &mut self.slots[new].wanted;
        revision::sync_annotations(wanted, deployment, revision);
        if wanted.spec.min_ready_seconds.unwrap_or(0) != deployment.spec.min_ready_seconds.unwrap_or(0) {
            wanted.spec.min_ready_seconds = deployment.spec.min_ready_seconds;
        }
        let noted = status::find(&self.conditions, status::PROGRESSING).is_some();
        if status::progress_deadline(deployment).is_some() && !noted {
            let message = format!("Found new replica set \"{}\"", self.name(new));
            self.note_progress(status::NEW_SET_FOUND, &message);
        }
    }

    fn name(&self, index: usize) -> &str {
        self.slots[index].seen.metadata.name.as_deref().unwrap_or_default()
    }

    fn note_progress(&mut self, reason: &str, message: &str) {
        let noted = status::condition(status::PROGRESSING, "True", reason, message, self.observed.now);
        status::set(&mut self.conditions, noted);
    }

    /// The deployment's size has changed since an active set was last scaled. Where pods are recreated and two sets are
    /// active, the rollout itself settles their sizes.
    fn is_scaling(&self) -> bool {
        let mut active = self.slots.iter().filter(|slot| replicas_of(&slot.seen) > 0);
        let stale = |slot: &Slot| revision::desired_of(&slot.seen).is_some_and(|desired| desired != self.wish.replicas);
        if self.wish.rolling || active.clone().count() < 2 { active.any(stale) } else { false }
    }

    fn resize(&mut self, index: usize, replicas: i32) {
        let (desired, max) = (self.wish.replicas, self.wish.max_total());
        let wanted = &mut self.slots[index].wanted;
        wanted.spec.replicas = Some(replicas);
        if revision::sizes_differ(wanted, desired, max) {
            revision::set_sizes(wanted, desired, max);
        }
    }

    /// Follows a change of the deployment's size without rolling further (upstream's `scale`).
    fn scale(&mut self) {
        let active: Vec<usize> = (0..self.slots.len()).filter(|index| self.replicas(*index) > 0).collect();
        let newest = self.new.or_else(|| self.slots.len().checked_sub(1));
        let only = match active[..] {
            [] => newest,
            [one] => Some(one),
            _ => None,
        };
        if let Some(only) = only {
            return self.resize(only, self.wish.replicas);
        }
        if self.is_saturated() {
            self.old().filter(|index| active.contains(index)).for_each(|index| self.resize(index, 0));
            return;
        }
        if !self.wish.rolling {
            return;
        }
        let growing = i64::from(self.wish.max_total()) > self.total() && self.wish.replicas > 0;
        let mut order = active;
        // Positions are ages: of equals the newest first when growing, the oldest when shrinking.
        if growing {
            order.reverse();
        }
        order.sort_by_key(|index| std::cmp::Reverse(self.replicas(*index)));
        let shares: Vec<Share> = order
            .iter()
            .map(|index| Share {
                replicas: self.replicas(*index),
                max_before: revision::max_of(&self.slots[*index].seen),
            })
            .collect();
        let status_replicas = self.deployment().status.as_ref().and_then(|status| status.replicas).unwrap_or(0);
        let sizes = size::proportional(&self.wish, &shares, status_replicas);
        order.into_iter().zip(sizes).for_each(|(index, replicas)| self.resize(index, replicas));
    }

    /// The new set has all the pods there should be, and all serve.
    fn is_saturated(&self) -> bool {
        self.new.is_some_and(|new| {
            let set = &self.slots[new].seen;
            replicas_of(set) == self.wish.replicas
                && revision::desired_of(set) == Some(self.wish.replicas)
                && status::available_of(set) == self.wish.replicas
        })
    }

    fn roll(&mut self) {
        let Some(new) = self.new else { return self.create_new_set() };
        let wanted = size::new_set(&self.wish, self.replicas(new), self.total());
        if wanted != self.replicas(new) {
            return self.resize(new, wanted);
        }
        let size_of =
            |slot: &Slot| Size { replicas: replicas_of(&slot.wanted), available: status::available_of(&slot.seen) };
        let old: Vec<Size> = self.old().map(|index| size_of(&self.slots[index])).collect();
        let after = size::old_sets(&self.wish, size_of(&self.slots[new]), &old);
        let changes: Vec<(usize, i32)> =
            self.old().zip(after).filter(|(index, after)| *after != self.replicas(*index)).collect();
        changes.iter().for_each(|(index, after)| self.resize(*index, *after));
        if changes.is_empty() {
            self.clean_up_if_complete();
        }
    }

    fn recreate(&mut self) {
        let running: Vec<usize> = self.old().filter(|index| self.replicas(*index) > 0).collect();
        if !running.is_empty() {
            return running.into_iter().for_each(|index| self.resize(index, 0));
        }
        let lingering = self.old().any(|index| {
            let set = &self.slots[index].seen;
            set.status.as_ref().is_some_and(|status| status.replicas > 0) || (self.observed.has_pods)(set)
        });
        if lingering {
            return;
        }
        let Some(new) = self.new else { return self.create_new_set() };
        if self.replicas(new) != self.wish.replicas {
            return self.resize(new, self.wish.replicas);
        }
        self.clean_up_if_complete();
    }

    fn create_new_set(&mut self) {
        let deployment = self.deployment();
        let collisions = deployment.status.as_ref().and_then(|status| status.collision_count);
        let hash = template::hash(&deployment.spec.template, collisions);
        let name = format!("{}-{hash}", deployment.metadata.name.as_deref().unwrap_or_default());

        let mut template = deployment.spec.template.clone();
        let labels = template.metadata.get_or_insert_default().labels.get_or_insert_default();
        labels.insert(template::HASH_LABEL.to_owned(), hash.clone());
        let mut set = ReplicaSet::default();
        set.metadata.name = Some(name.clone());
        set.metadata.namespace = deployment.metadata.namespace.clone();
        set.metadata.labels = Some(labels.clone());
        set.metadata.owner_references = Some(vec![crate::owner::reference_to(deployment)]);
        set.spec = ReplicaSetSpec {
            replicas: Some(size::new_set(&self.wish, 0, self.total())),
            min_ready_seconds: deployment.spec.min_ready_seconds,
            selector: with_hash(&deployment.spec.selector, &hash),
            template: Some(template),
        };
        revision::sync_annotations(&mut set, deployment, self.next_revision());
        revision::set_sizes(&mut set, self.wish.replicas, self.wish.max_total());
        if status::progress_deadline(deployment).is_some() {
            self.note_progress(status::NEW_SET_CREATED, &format!("Created new replica set \"{name}\""));
        }
        self.create = Some(set);
    }

    fn clean_up_if_complete(&mut self) {
        if status::is_complete(self.deployment(), &self.counted()) {
            self.clean_up();
        }
    }

    /// Deletes the oldest revisions beyond the history limit, as far as they are empty and have settled.
    fn clean_up(&mut self) {
        let limit = self.deployment().spec.revision_history_limit.filter(|limit| *limit != i32::MAX);
        let Some(limit) = limit.and_then(|limit| usize::try_from(limit).ok()) else { return };
        let mut old: Vec<&Arc<ReplicaSet>> = self.old().map(|index| &self.slots[index].seen).collect();
        old.retain(|set| set.metadata.deletion_timestamp.is_none());
        old.sort_by_key(|set| revision::revision_of(set));
        let excess = old.len().saturating_sub(limit);
        let empty = |set: &&&Arc<ReplicaSet>| {
            let (replicas, observed) =
                set.status.as_ref().map_or((0, None), |status| (status.replicas, status.observed_generation));
            replicas == 0 && replicas_of(set) == 0 && set.metadata.generation <= observed
        };
        self.delete = old.iter().take(excess).filter(empty).map(|set| Arc::clone(set)).collect();
    }

    fn counted(&self) -> DeploymentStatus {
        let sets: Vec<&ReplicaSet> = self.slots.iter().map(|slot| &slot.wanted).collect();
        let new = self.new.map(|index| &self.slots[index].wanted);
        status::counted(self.deployment(), &sets, new, self.conditions.clone(), self.observed.now)
    }

    fn finish(self, rolling_out: bool) -> Plan {
        let deployment = self.deployment();
        let mut status = self.counted();
        if rolling_out {
            let sets: Vec<&ReplicaSet> = self.slots.iter().map(|slot| &slot.wanted).collect();
            let new = self.new.map(|index| &self.slots[index].wanted).or(self.create.as_ref());
            status = status::rollout(deployment, &sets, new, status, self.observed.now);
        }
        let newest = self.new.map(|index| &self.slots[index].wanted).or(self.create.as_ref());
        let noted = deployment.metadata.annotations.as_ref().and_then(|all| all.get(REVISION)).map(String::as_str);
        let revision = newest.and_then(revision::revision_text).filter(|text| Some(*text) != noted).map(str::to_owned);
        let recheck = status::deadline_check(deployment, &status, self.observed.now);
        let updates = self.slots.into_iter().filter(|slot| slot.wanted != *slot.seen).map(|slot| {
            let (before, after) = (replicas_of(&slot.seen), replicas_of(&slot.wanted));
            SetUpdate { wanted: slot.wanted, scaled: (before != after).then_some((before, after)) }
        });
        Plan { create: self.create, updates: updates.collect(), delete: self.delete, revision, status, recheck }
    }
}

fn with_hash(selector: &LabelSelector, hash: &str) -> LabelSelector {
    let mut selector = selector.clone();
    selector.match_labels.get_or_insert_default().insert(template::HASH_LABEL.to_owned(), hash.to_owned());
    selector
}
