//! The pods that wait for a node. Pure: time comes in as an argument.
//!
//! A pod is in one of these places:
//! * active: to be tried, the highest priority first, then whoever became active first;
//! * backing off: to be tried once its back-off (1 s, doubled with each failure, at most 10 s) has passed, or sooner if nothing
//!   is active and it was not an error that sent it here;
//! * parked: no node could take it; an event that may help wakes it, or else [`PARKED_AT_MOST`] does;
//! * gated: its scheduling gates have to go first;
//! * in hand: being bound.
//!
//! Parked pods that are alike are woken one at a time: if the first finds a node the next follows, and if it does not, none
//! of the others would. So an event costs one attempt for each kind of parked pod, not one for each pod.

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::sync::Arc;
use std::time::{Duration, Instant};

use crate::pod::PodInfo;

const FIRST_BACKOFF: Duration = Duration::from_secs(1);
const MAX_BACKOFF: Duration = Duration::from_secs(10);
/// As upstream: nothing is parked for good, should an event be misjudged.
const PARKED_AT_MOST: Duration = Duration::from_secs(300);

/// How many of those that are alike are looked at for one that has rested.
const FOREMOST: usize = 16;

type Rank = (Reverse<i32>, u64);

/// What pods have in common that fare the same: class and priority; or else the pod itself.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Kin {
    Class(u64, i32),
    Pod(Arc<str>),
}

impl Kin {
    fn of(pod: &PodInfo) -> Self {
        match pod.is_like_its_class() {
            true => Kin::Class(pod.class.id, pod.priority),
            false => Kin::Pod(pod.uid.clone()),
        }
    }
}

/// Parked pods that are alike.
#[derive(Default)]
struct Family {
    /// All that rejected any of them.
    plugins: u32,
    /// By turn.
    members: BTreeMap<u64, Arc<str>>,
}

#[derive(Debug)]
enum Place {
    Active(Rank),
    BackingOff {
        until: Instant,
        error: bool,
    },
    /// `turn` is the place among those that are alike.
    Parked {
        since: Instant,
        turn: u64,
    },
    Gated,
    InHand,
}

struct Waiting {
    info: Arc<PodInfo>,
    kin: Kin,
    place: Place,
    failures: u32,
    failed_at: Option<Instant>,
}

#[derive(Default)]
pub struct Queue {
    pods: HashMap<Arc<str>, Waiting>,
    active: BTreeMap<Rank, Arc<str>>,
    backing_off: BTreeSet<(Instant, Arc<str>)>,
    parked: BTreeSet<(Instant, Arc<str>)>,
    families: HashMap<Kin, Family>,
    /// Grows with each pod that becomes active or is parked.
    turn: u64,
}

impl Queue {
    /// A pod is new, or was changed; `relevant` says that the change was more than one of its status.
    pub fn set(&mut self, info: Arc<PodInfo>, relevant: bool, now: Instant) {
        let gated = info.is_gated();
        let uid = info.uid.clone();
        let Some(waiting) = self.pods.get_mut(&uid) else {
            let waiting = Waiting { kin: Kin::of(&info), info, place: Place::Gated, failures: 0, failed_at: None };
            self.pods.insert(uid.clone(), waiting);
            if !gated {
                self.activate(&uid);
            }
            return;
        };
        let promoted = waiting.info.priority != info.priority;
        let kin = Kin::of(&info);
        let moved = kin != waiting.kin;
        waiting.info = info;
        match &waiting.place {
            Place::Gated if !gated => self.activate(&uid),
            Place::Parked { .. } if relevant || moved => self.wake_one(&uid, now),
            Place::Active(_) if promoted => self.activate(&uid),
            _ => {}
        }
        // Only now: a parked pod has to be found among its old kin to leave it.
        if let Some(waiting) = self.pods.get_mut(&uid) {
            waiting.kin = kin;
        }
    }

    pub fn remove(&mut self, uid: &str, now: Instant) {
        let Some(waiting) = self.pods.remove(uid) else { return };
        self.leave(&waiting.info.uid, &waiting.kin, &waiting.place);
        // It may have been the one to try for all of them.
        if matches!(waiting.place, Place::Active(_) | Place::BackingOff { .. }) {
            self.wake_kin(&waiting.kin, now);
        }
    }

    /// The next pod to try; it is in hand until one of the methods below says what came of it.
    pub fn pop(&mut self) -> Option<Arc<PodInfo>> {
        let uid = match self.active.first_key_value() {
            Some((_, uid)) => uid.clone(),
            None => self.early()?,
        };
        self.put(&uid, Place::InHand);
        self.pods.get(&uid).map(|waiting| waiting.info.clone())
    }

    /// A pod that backs off though nothing went wrong: with nothing else to do there is no reason to let it wait.
    fn early(&self) -> Option<Arc<str>> {
        let ready = |uid: &Arc<str>| {
            matches!(self.pods.get(uid).map(|waiting| &waiting.place), Some(Place::BackingOff { error: false, .. }))
        };
        self.backing_off.iter().map(|(_, uid)| uid).find(|uid| ready(uid)).cloned()
    }

    /// No node could take it, because of `plugins`.
    pub fn park(&mut self, uid: &str, plugins: u32, now: Instant) {
        self.turn += 1;
        let turn = self.turn;
        self.failed(uid, now, |_| Place::Parked { since: now, turn });
        if let Some(family) = self.pods.get(uid).and_then(|waiting| self.families.get_mut(&waiting.kin)) {
            family.plugins |= plugins;
        }
    }

    /// A node was found for a pod in hand: its like may find one too.
    pub fn placed(&mut self, pod: &PodInfo, now: Instant) {
        self.wake_kin(&Kin::of(pod), now);
    }

    /// Something went wrong that may not go wrong the next time.
    pub fn retry(&mut self, uid: &str, now: Instant) {
        self.failed(uid, now, |failures| Place::BackingOff { until: now + backoff(failures), error: true });
    }

    fn failed(&mut self, uid: &str, now: Instant, place: impl FnOnce(u32) -> Place) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        waiting.failures += 1;
        waiting.failed_at = Some(now);
        let (uid, place) = (waiting.info.uid.clone(), place(waiting.failures));
        self.put(&uid, place);
    }

    /// Wakes the parked pods that `may_help` (pod, rejecting plugins) is true of; of those that are alike, the first.
    pub fn wake(&mut self, now: Instant, may_help: impl Fn(&PodInfo, u32) -> bool) {
        let first = |family: &Family| family.members.values().next().and_then(|uid| self.pods.get(uid));
        let helped = |family: &Family| first(family).is_some_and(|waiting| may_help(&waiting.info, family.plugins));
        let woken: Vec<_> =
            self.families.iter().filter(|(_, family)| helped(family)).map(|(kin, _)| kin.clone()).collect();
        for kin in woken {
            self.wake_kin(&kin, now);
        }
    }

    fn wake_kin(&mut self, kin: &Kin, now: Instant) {
        let Some(family) = self.families.get(kin) else { return };
        let rested = |uid: &&Arc<str>| self.pods.get(*uid).is_some_and(|waiting| waiting.rests_until() <= Some(now));
        let mut foremost = family.members.values().take(FOREMOST);
        let chosen = foremost.clone().find(rested).or(foremost.next()).cloned();
        if let Some(uid) = chosen {
            self.wake_one(&uid, now);
        }
    }

    pub fn has_parked(&self) -> bool {
        !self.parked.is_empty()
    }

    fn wake_one(&mut self, uid: &Arc<str>, now: Instant) {
        let Some(waiting) = self.pods.get(uid) else { return };
        match waiting.rests_until().filter(|until| *until > now) {
            Some(until) => self.put(uid, Place::BackingOff { until, error: false }),
            None => self.activate(uid),
        }
    }

    /// Activates what has waited long enough.
    pub fn advance(&mut self, now: Instant) {
        while let Some((until, uid)) = self.backing_off.first()
            && *until <= now
        {
            let uid = uid.clone();
            self.activate(&uid);
        }
        while let Some((since, uid)) = self.parked.first()
            && *since + PARKED_AT_MOST <= now
        {
            let uid = uid.clone();
            self.activate(&uid);
        }
    }

    /// When [`Queue::advance`] will have something to do.
    pub fn deadline(&self) -> Option<Instant> {
        let backing_off = self.backing_off.first().map(|(until, _)| *until);
        let parked = self.parked.first().map(|(since, _)| *since + PARKED_AT_MOST);
        backing_off.into_iter().chain(parked).min()
    }

    fn activate(&mut self, uid: &Arc<str>) {
        let Some(waiting) = self.pods.get(uid) else { return };
        self.turn += 1;
        let rank = (Reverse(waiting.info.priority), self.turn);
        self.put(uid, Place::Active(rank));
    }

    fn put(&mut self, uid: &Arc<str>, place: Place) {
        let Some(waiting) = self.pods.get_mut(uid) else { return };
        let left = std::mem::replace(&mut waiting.place, place);
        let kin = waiting.kin.clone();
        self.leave(uid, &kin, &left);
        match &self.pods[uid].place {
            Place::Active(rank) => _ = self.active.insert(*rank, uid.clone()),
            Place::BackingOff { until, .. } => _ = self.backing_off.insert((*until, uid.clone())),
            Place::Parked { since, turn } => {
                self.parked.insert((*since, uid.clone()));
                self.families.entry(kin).or_default().members.insert(*turn, uid.clone());
            }
            Place::Gated | Place::InHand => {}
        }
    }

    fn leave(&mut self, uid: &Arc<str>, kin: &Kin, place: &Place) {
        match place {
            Place::Active(rank) => _ = self.active.remove(rank),
            Place::BackingOff { until, .. } => _ = self.backing_off.remove(&(*until, uid.clone())),
            Place::Parked { since, turn } => {
                self.parked.remove(&(*since, uid.clone()));
                let Some(family) = self.families.get_mut(kin) else { return };
                family.members.remove(turn);
                if family.members.is_empty() {
                    self.families.remove(kin);
                }
            }
            Place::Gated | Place::InHand => {}
        }
    }
}

impl Waiting {
    /// When its back-off ends; none if it has not failed.
    fn rests_until(&self) -> Option<Instant> {
        self.failed_at.map(|at| at + backoff(self.failures))
    }
}

fn backoff(failures: u32) -> Duration {
    FIRST_BACKOFF.saturating_mul(1 << failures.saturating_sub(1).min(10)).min(MAX_BACKOFF)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::pod;
    use crate::pod::Classes;

    fn info(name: &str, priority: i32, more: &str) -> Arc<PodInfo> {
        let yaml =
            format!("metadata: {{name: {name}, uid: {name}}}\nspec: {{priority: {priority}, containers: []{more}}}");
        Classes::default().info(&Arc::new(pod(&yaml)))
    }

    fn pop(queue: &mut Queue) -> Option<String> {
        queue.pop().map(|info| info.name().to_owned())
    }

    #[test]
    fn the_highest_priority_comes_first_then_the_earliest() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        for (name, priority) in [("a", 0), ("b", 5), ("c", 0), ("d", 5)] {
            queue.set(info(name, priority, ""), true, now);
        }
        let order: Vec<_> = std::iter::from_fn(|| pop(&mut queue)).collect();
        assert_eq!(order, ["b", "d", "a", "c"]);
    }

    #[test]
    fn a_parked_pod_waits_for_an_event_that_helps() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(info("a", 0, ""), true, now);
        pop(&mut queue);
        queue.park("a", 0b10, now);
        queue.wake(now, |_, plugins| plugins & 0b01 != 0);
        assert_eq!(pop(&mut queue), None);
        // A change of its status is none of its business, one of its spec is.
        queue.set(info("a", 0, ""), false, now);
        assert_eq!(pop(&mut queue), None);
        queue.wake(now, |_, plugins| plugins & 0b10 != 0);
        assert_eq!(pop(&mut queue), Some("a".to_owned()), "nothing else is waiting, so its back-off does not matter");
        queue.park("a", 0b10, now);
        queue.set(info("a", 0, ""), true, now);
        assert_eq!(pop(&mut queue), Some("a".to_owned()));
    }

    #[test]
    fn errors_back_off_from_one_to_ten_seconds() {
        let (mut queue, mut now) = (Queue::default(), Instant::now());
        queue.set(info("a", 0, ""), true, now);
        for seconds in [1, 2, 4, 8, 10, 10] {
            assert_eq!(pop(&mut queue), Some("a".to_owned()));
            queue.retry("a", now);
            assert_eq!(queue.deadline(), Some(now + Duration::from_secs(seconds)));
            now += Duration::from_secs(seconds) - Duration::from_millis(1);
            queue.advance(now);
            assert_eq!(pop(&mut queue), None);
            now += Duration::from_millis(1);
            queue.advance(now);
        }
    }

    #[test]
    fn a_woken_pod_backs_off_behind_active_ones() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(info("failing", 9, ""), true, now);
        pop(&mut queue);
        queue.park("failing", 1, now);
        queue.set(info("other", 0, ""), true, now);
        queue.wake(now, |_, _| true);
        assert_eq!(pop(&mut queue), Some("other".to_owned()));
    }

    #[test]
    fn of_pods_that_are_alike_one_tries_for_all() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        let mut classes = Classes::default();
        let names = ["a", "b", "c"];
        for name in names {
            let yaml = format!("metadata: {{name: {name}, uid: {name}}}\nspec: {{containers: []}}");
            queue.set(classes.info(&Arc::new(pod(&yaml))), true, now);
        }
        for name in names {
            pop(&mut queue);
            queue.park(name, 1, now);
        }
        queue.wake(now, |_, _| true);
        let a = queue.pop().unwrap();
        assert_eq!((a.name(), pop(&mut queue)), ("a", None));
        queue.placed(&a, now);
        assert_eq!(pop(&mut queue), Some("b".to_owned()), "where one has found a node, the next may");
        queue.park("b", 1, now);
        assert_eq!(pop(&mut queue), None, "where one has not, none would");
        queue.wake(now, |_, _| true);
        queue.remove("c", now);
        assert_eq!(pop(&mut queue), Some("b".to_owned()), "the one that was to try is gone, so another does");
    }

    #[test]
    fn nothing_is_parked_for_good() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(info("a", 0, ""), true, now);
        pop(&mut queue);
        queue.park("a", 1, now);
        assert_eq!(queue.deadline(), Some(now + PARKED_AT_MOST));
        queue.advance(now + PARKED_AT_MOST);
        assert_eq!(pop(&mut queue), Some("a".to_owned()));
    }

    #[test]
    fn gates_hold_a_pod_back() {
        let (mut queue, now) = (Queue::default(), Instant::now());
        queue.set(info("a", 0, ", schedulingGates: [{name: g}]"), true, now);
        assert_eq!(pop(&mut queue), None);
        queue.set(info("a", 0, ""), true, now);
        assert_eq!(pop(&mut queue), Some("a".to_owned()));
        queue.remove("a", now);
        assert_eq!(pop(&mut queue), None);
    }
}
