//! What a stateful set does next, and its status. Pure.
//!
//! In order (`OrderedReady`) one thing happens at a time, and only while all that comes before it is available; in parallel
//! whatever can happen does. Pods are never replaced while they still exist: their names are theirs alone.

use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use k8s_openapi::api::apps::v1::{ControllerRevision, StatefulSet, StatefulSetStatus};
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use super::claims;
use super::identity::{self, is_wanted, new_pod, ordinal_of, pod_name, replicas_of, revision_of, start_of};
use crate::history::{name_of, template_of};
use crate::pods::{self, Availability};

pub struct Observed<'a> {
    pub set: &'a StatefulSet,
    /// The pods that the set owns.
    pub pods: &'a [Arc<Pod>],
    /// The revision that the set comes from, and the one of its present template.
    pub current: &'a ControllerRevision,
    pub update: &'a ControllerRevision,
    /// Finds a claim by its name.
    pub claim: &'a dyn Fn(&str) -> Option<Arc<PersistentVolumeClaim>>,
    pub now: Timestamp,
}

#[derive(Debug)]
pub enum Step {
    /// Creates the claims that are missing, then the pod.
    Create {
        pod: Box<Pod>,
        claims: Vec<PersistentVolumeClaim>,
    },
    /// The same for a pod that exists and waits for its claims.
    CreateClaims {
        pod: Arc<Pod>,
        claims: Vec<PersistentVolumeClaim>,
    },
    /// The pod cannot be created while this claim is being deleted.
    Blocked {
        pod: String,
        claim: String,
    },
    Correct(Box<Pod>),
    CorrectClaim(Box<PersistentVolumeClaim>),
    Delete(Arc<Pod>),
}

#[derive(Debug, Default)]
pub struct Plan {
    pub steps: Vec<Step>,
    pub status: StatefulSetStatus,
    /// When a pod becomes available by the passing of time.
    pub recheck: Option<Duration>,
}

pub fn is_parallel(set: &StatefulSet) -> bool {
    set.spec.pod_management_policy.as_deref() == Some("Parallel")
}

pub fn plan(observed: &Observed<'_>) -> Plan {
    let mut planner = Planner::new(observed);
    planner.count();
    if observed.set.metadata.deletion_timestamp.is_none() {
        // Scaling goes before updating.
        let settled = planner.tend_replicas() && planner.remove_surplus();
        if settled && !is_on_delete(observed.set) {
            planner.roll();
        }
    }
    planner.finish()
}

fn is_on_delete(set: &StatefulSet) -> bool {
    set.spec.update_strategy.as_ref().and_then(|strategy| strategy.type_.as_deref()) == Some("OnDelete")
}

/// The place of an ordinal that the set asks for.
#[derive(Clone)]
struct Slot {
    ordinal: i32,
    pod: Option<Arc<Pod>>,
}

struct Planner<'a> {
    observed: &'a Observed<'a>,
    ordered: bool,
    slots: Vec<Slot>,
    /// Pods that the set does not ask for, highest ordinal first.
    surplus: Vec<Arc<Pod>>,
    plan: Plan,
}

fn is_terminating(pod: &Pod) -> bool {
    pod.metadata.deletion_timestamp.is_some()
}

impl<'a> Planner<'a> {
    fn new(observed: &'a Observed<'a>) -> Self {
        let set = observed.set;
        let mut slots: Vec<Slot> = (0..replicas_of(set))
            .map(|place| Slot { ordinal: start_of(set).saturating_add(place), pod: None })
            .collect();
        let mut surplus: Vec<(i32, Arc<Pod>)> = Vec::new();
        for pod in observed.pods {
            let Some(ordinal) = ordinal_of(set, pod) else { continue };
            let place = usize::try_from(ordinal - start_of(set)).ok().filter(|_| is_wanted(set, ordinal));
            match place.and_then(|place| slots.get_mut(place)) {
                Some(slot) => slot.pod = Some(pod.clone()),
                None => surplus.push((ordinal, pod.clone())),
            }
        }
        surplus.sort_by_key(|(ordinal, _)| -ordinal);
        Planner {
            observed,
            ordered: !is_parallel(set),
            slots,
            surplus: surplus.into_iter().map(|(_, pod)| pod).collect(),
            plan: Plan::default(),
        }
    }

    fn is_running(&self, pod: &Pod) -> bool {
        pods::phase(pod) == "Running" && pods::is_ready(pod)
    }

    fn availability(&self, pod: &Pod) -> Availability {
        if !self.is_running(pod) {
            return Availability::NotReady;
        }
        pods::availability(pod, self.observed.set.spec.min_ready_seconds.unwrap_or(0), self.observed.now)
    }

    fn is_available(&self, pod: &Pod) -> bool {
        self.availability(pod) == Availability::Available
    }

    /// Unavailable, or about to be.
    fn is_lacking(&self, pod: Option<&Arc<Pod>>) -> bool {
        pod.is_none_or(|pod| !self.is_available(pod) || is_terminating(pod))
    }

    /// The status as the pods are.
    fn count(&mut self) {
        let observed = self.observed;
        let (current, update) = (name_of(observed.current), name_of(observed.update));
        let (mut ready, mut available, mut of_current, mut of_update, mut recheck) = (0, 0, 0, 0, None::<Duration>);
        let known = observed.pods.iter().filter(|pod| ordinal_of(observed.set, pod).is_some());
        let mut replicas = 0;
        for pod in known {
            replicas += 1;
            ready += i32::from(self.is_running(pod));
            match self.availability(pod) {
                Availability::Available => available += 1,
                Availability::After(wait) => recheck = Some(recheck.map_or(wait, |sooner| sooner.min(wait))),
                Availability::NotReady => {}
            }
            if !is_terminating(pod) {
                of_current += i32::from(revision_of(pod) == current);
                of_update += i32::from(revision_of(pod) == update);
            }
        }
        let old = observed.set.status.clone().unwrap_or_default();
        self.plan.recheck = recheck;
        self.plan.status = StatefulSetStatus {
            replicas,
            ready_replicas: Some(ready),
            available_replicas: Some(available),
            current_replicas: Some(of_current),
            updated_replicas: Some(of_update),
            current_revision: Some(current.to_owned()),
            update_revision: Some(update.to_owned()),
            observed_generation: observed.set.metadata.generation,
            collision_count: Some(old.collision_count.unwrap_or(0)),
            conditions: old.conditions,
        };
    }

    /// Brings every wanted pod into being; false if something has to be waited for.
    fn tend_replicas(&mut self) -> bool {
        for slot in self.slots.clone() {
            let go_on = match &slot.pod {
                None => self.create(slot.ordinal),
                Some(pod) => self.tend(slot.ordinal, pod),
            };
            if !go_on && self.ordered {
                return false;
            }
        }
        true
    }

    /// Always false: what comes after waits for the new pod.
    fn create(&mut self, ordinal: i32) -> bool {
        let set = self.observed.set;
        let name = pod_name(set, ordinal);
        let existing = |claim: &PersistentVolumeClaim| (self.observed.claim)(claim.metadata.name.as_deref()?);
        let found: Vec<Arc<PersistentVolumeClaim>> =
            identity::claims(set, ordinal).iter().filter_map(|(_, claim)| existing(claim)).collect();
        if found.iter().any(|claim| claims::is_stale(set, &name, claim)) {
            return false;
        }
        if let Some(going) = found.iter().find(|claim| claim.metadata.deletion_timestamp.is_some()) {
            let claim = going.metadata.name.clone().unwrap_or_default();
            self.plan.steps.push(Step::Blocked { pod: name, claim });
            return false;
        }
        let revision = if self.keeps_current(ordinal) { self.observed.current } else { self.observed.update };
        let template = template_of(revision).unwrap_or_else(|| set.spec.template.clone());
        let pod = new_pod(set, &template, name_of(revision), ordinal);
        let corrections: Vec<PersistentVolumeClaim> =
            found.iter().filter_map(|claim| claims::corrected(set, &pod, claim)).collect();
        let claims = self.missing_claims(&pod, ordinal);
        self.plan.steps.push(Step::Create { pod: Box::new(pod), claims });
        self.plan.steps.extend(corrections.into_iter().map(|claim| Step::CorrectClaim(Box::new(claim))));
        false
    }

    /// Whether a new pod with this ordinal is one that the partition keeps from the update.
    fn keeps_current(&self, ordinal: i32) -> bool {
        let set = self.observed.set;
        let kept = match set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.as_ref()) {
            Some(rolling) => rolling.partition.unwrap_or(0),
            None if is_on_delete(set) => 0,
            None => set.status.as_ref().and_then(|status| status.current_replicas).unwrap_or(0),
        };
        ordinal < start_of(set).saturating_add(kept)
    }

    /// The claims of a pod that do not exist, owned as they should be.
    fn missing_claims(&self, pod: &Pod, ordinal: i32) -> Vec<PersistentVolumeClaim> {
        let set = self.observed.set;
        let missing = identity::claims(set, ordinal).into_iter().map(|(_, claim)| claim);
        let missing =
            missing.filter(|claim| (self.observed.claim)(claim.metadata.name.as_deref().unwrap_or_default()).is_none());
        missing.map(|claim| claims::corrected(set, pod, &claim).unwrap_or(claim)).collect()
    }

    /// Looks after a pod that exists; false if what comes after has to wait for it.
    fn tend(&mut self, ordinal: i32, pod: &Arc<Pod>) -> bool {
        if pods::is_finished(pod) {
            // Whatever its containers ended with: they should run. The next one is made when this one is gone.
            if !is_terminating(pod) {
                self.plan.steps.push(Step::Delete(pod.clone()));
            }
            return false;
        }
        if pods::phase(pod) == "Pending" {
            let claims = self.missing_claims(pod, ordinal);
            if !claims.is_empty() {
                self.plan.steps.push(Step::CreateClaims { pod: pod.clone(), claims });
            }
        }
        if self.ordered && self.is_lacking(Some(pod)) {
            return false;
        }
        self.correct_claims(ordinal, pod);
        let set = self.observed.set;
        if !identity::identity_matches(pod, ordinal) || !identity::storage_matches(set, pod, ordinal) {
            let claims = self.missing_claims(pod, ordinal);
            if !claims.is_empty() {
                self.plan.steps.push(Step::CreateClaims { pod: pod.clone(), claims });
            }
            self.plan.steps.push(Step::Correct(Box::new(identity::corrected(set, pod, ordinal))));
        }
        true
    }

    fn correct_claims(&mut self, ordinal: i32, pod: &Pod) {
        let set = self.observed.set;
        for (_, claim) in identity::claims(set, ordinal) {
            let existing = (self.observed.claim)(claim.metadata.name.as_deref().unwrap_or_default());
            let wrong = existing.and_then(|claim| claims::corrected(set, pod, &claim));
            self.plan.steps.extend(wrong.map(|claim| Step::CorrectClaim(Box::new(claim))));
        }
    }

    /// Deletes pods that are not asked for, highest ordinal first; false if something has to be waited for.
    fn remove_surplus(&mut self) -> bool {
        for pod in self.surplus.clone() {
            if let Some(ordinal) = ordinal_of(self.observed.set, &pod) {
                self.correct_claims(ordinal, &pod);
            }
        }
        let wanted = self.slots.iter().filter_map(|slot| slot.pod.as_ref());
        let first_lacking = wanted.chain(self.surplus.iter().rev()).find(|pod| self.is_lacking(Some(pod))).cloned();
        for pod in self.surplus.clone() {
            if is_terminating(&pod) {
                if self.ordered {
                    return false;
                }
                continue;
            }
            let is_first = first_lacking.as_ref().is_some_and(|first| Arc::ptr_eq(first, &pod));
            // A pod that has ended will never be well: to wait for it, as upstream does, would be for ever.
            let waits = self.ordered && !self.is_available(&pod) && !is_first && !pods::is_finished(&pod);
            if !waits {
                self.plan.steps.push(Step::Delete(pod));
            }
            if self.ordered {
                return false;
            }
        }
        true
    }

    /// Deletes pods of old revisions, from the highest ordinal down to the partition, as far as availability permits.
    fn roll(&mut self) {
        let set = self.observed.set;
        let rolling = set.spec.update_strategy.as_ref().and_then(|strategy| strategy.rolling_update.clone());
        let rolling = rolling.unwrap_or_default();
        let partition = usize::try_from(rolling.partition.unwrap_or(0)).unwrap_or(0);
        let limit = max_unavailable(rolling.max_unavailable.as_ref(), self.slots.len());
        let lacking = self.slots.iter().filter(|slot| self.is_lacking(slot.pod.as_ref())).count();
        let update = name_of(self.observed.update);
        let old: Vec<Arc<Pod>> = self.slots.iter().skip(partition).rev().filter_map(|slot| slot.pod.clone()).collect();
        let old = old.into_iter().filter(|pod| revision_of(pod) != update && !is_terminating(pod));
        let (available, broken): (Vec<_>, Vec<_>) = old.partition(|pod| self.is_available(pod));
        let room = limit.saturating_sub(lacking);
        // In parallel, pods that do not serve anyway go at once: they may never come to serve.
        let broken = if self.ordered { vec![] } else { broken };
        for pod in broken.into_iter().chain(available.into_iter().take(room)) {
            if pods::is_finished(&pod) {
                continue;
            }
            if let Some(count) = self.plan.status.current_replicas.as_mut() {
                *count = (*count - 1).max(0);
            }
            self.plan.steps.push(Step::Delete(pod));
        }
    }

    /// Ends a rollout whose every pod is new and ready.
    fn finish(mut self) -> Plan {
        let (set, status) = (self.observed.set, &mut self.plan.status);
        let all = replicas_of(set);
        let done = [Some(status.replicas), status.updated_replicas, status.ready_replicas] == [Some(all); 3];
        if done && !is_on_delete(set) {
            status.current_replicas = status.updated_replicas;
            status.current_revision = status.update_revision.clone();
        }
        // Zero is absent in these fields.
        for count in [&mut status.ready_replicas, &mut status.current_replicas, &mut status.updated_replicas] {
            *count = count.filter(|count| *count != 0);
        }
        self.plan
    }
}

/// Pods that may be unavailable during an update, at least one; percentages are rounded down.
fn max_unavailable(value: Option<&IntOrString>, replicas: usize) -> usize {
    let number = match value {
        None => 1,
        Some(IntOrString::Int(number)) => usize::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => {
            let percent: usize = text.strip_suffix('%').and_then(|digits| digits.parse().ok()).unwrap_or(0);
            percent.saturating_mul(replicas) / 100
        }
    };
    number.max(1)
}
