//! Priority levels and the schemas that lead to them, as they are in force; and how many seats each level has.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, AtomicU64};

use http::HeaderValue;
use parking_lot::Mutex;
use tokio::sync::oneshot;

use super::Time;
use super::config::{CATCH_ALL, EXEMPT, Level, Limit, Schema};
use super::demand::Demand;
use super::queues::QueueSet;
use super::retry::RetryAfter;
use super::share::{Claim, divide};
use crate::metrics::Histogram;

/// Wakes a request that has got its seats.
pub type Waker = oneshot::Sender<()>;

/// Seats of one level.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct Seats {
    pub nominal: u32,
    /// What is left when all that it lends is lent.
    pub low: u32,
    pub high: u32,
    /// What it may use now.
    pub current: u32,
    pub target: f64,
    pub demand: Demand,
}

pub struct Inner {
    pub config: Level,
    pub queues: QueueSet<Waker>,
    pub seats: Seats,
    /// No object describes it any more; it goes when its last request has.
    pub leaving: bool,
    pub retry: RetryAfter,
    /// Whether somebody has been charged with calling at the next release of seats.
    pub alarm: bool,
}

/// A priority level in use.
pub struct LevelState {
    pub name: String,
    pub inner: Mutex<Inner>,
}

/// Upstream's buckets of waiting and execution, in seconds.
const DURATIONS: &[f64] = &[0.0, 0.005, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 15.0, 30.0];
const LENGTHS: &[f64] = &[0.0, 10.0, 25.0, 50.0, 100.0, 250.0, 500.0, 1000.0];
const WATCHES: &[f64] = &[0.0, 1.0, 10.0, 100.0, 1000.0, 10000.0];
const WIDTHS: &[f64] = &[1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 64.0, 100.0];

/// What is counted of one schema's requests to one level.
pub struct Counters {
    pub schema: Arc<str>,
    pub level: String,
    pub waiting: AtomicI64,
    pub waiting_seats: AtomicI64,
    pub executing: AtomicI64,
    pub executing_seats: AtomicI64,
    pub dispatched: AtomicU64,
    /// By [`super::queues::Refusal`].
    pub refused: [AtomicU64; 3],
    pub waited: [Histogram; 2],
    pub executed: [Histogram; 2],
    pub lengths: Histogram,
    pub watches: Histogram,
    pub widths: Histogram,
}

impl Counters {
    fn new(schema: &str, level: &str) -> Self {
        let durations = || Histogram::new(DURATIONS);
        Counters {
            schema: schema.into(),
            level: level.to_owned(),
            waiting: AtomicI64::default(),
            waiting_seats: AtomicI64::default(),
            executing: AtomicI64::default(),
            executing_seats: AtomicI64::default(),
            dispatched: AtomicU64::default(),
            refused: Default::default(),
            waited: [durations(), durations()],
            executed: [durations(), durations()],
            lengths: Histogram::new(LENGTHS),
            watches: Histogram::new(WATCHES),
            widths: Histogram::new(WIDTHS),
        }
    }
}

/// A schema whose level there is.
pub struct Flow {
    pub schema: Schema,
    pub level: Arc<LevelState>,
    pub level_uid: HeaderValue,
    pub limit: Limit,
    /// The most seats that one request of the level is estimated at.
    pub widest: u32,
    pub counters: Arc<Counters>,
}

/// All that is in force, replaced as a whole.
#[derive(Default)]
pub struct Plan {
    /// In the order of matching.
    pub flows: Vec<Arc<Flow>>,
    pub levels: BTreeMap<String, Arc<LevelState>>,
    pub nominal_sum: u32,
}

impl Plan {
    /// What follows from the objects there are and what was in force. `limit` is the whole server's concurrency. Mandatory schemas and
    /// levels that are missing are added from `mandatory`; the second result says which schemas lead to a level that exists.
    pub fn next(
        &self,
        limit: u32,
        mut levels: Vec<Level>,
        mut schemas: Vec<Schema>,
        mandatory: &(Vec<Level>, Vec<Schema>),
        now: Time,
    ) -> (Plan, Vec<(String, String, bool)>) {
        let has_level = |levels: &[Level], name: &str| levels.iter().any(|level| level.name == name);
        // Before the mandatory ones: an object that is not there dangles, though the server acts as if it were.
        let found = |schema: &Schema| (schema.name.clone(), schema.level.clone(), has_level(&levels, &schema.level));
        let found: Vec<_> = schemas.iter().map(found).collect();
        schemas.retain(|schema| has_level(&levels, &schema.level));
        for level in &mandatory.0 {
            if !has_level(&levels, &level.name) {
                levels.push(level.clone());
            }
        }
        schemas.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        for schema in &mandatory.1 {
            if !schemas.iter().any(|known| known.name == schema.name) {
                let place = if schema.name == EXEMPT { 0 } else { schemas.len() };
                schemas.insert(place, schema.clone());
            }
        }
        let states = self.states(levels, now);
        let nominal_sum = set_bounds(limit, &states, now);
        let flows = schemas.into_iter().filter_map(|schema| self.flow(schema, &states)).collect();
        let plan = Plan { flows, levels: states, nominal_sum };
        plan.adjust(now, 0.0);
        (plan, found)
    }

    /// The levels of the objects, and those that are gone and still have requests.
    fn states(&self, levels: Vec<Level>, now: Time) -> BTreeMap<String, Arc<LevelState>> {
        let mut states = BTreeMap::new();
        for config in levels {
            let name = config.name.clone();
            let state = match self.levels.get(&name) {
                Some(state) => {
                    let mut inner = state.inner.lock();
                    (inner.config, inner.leaving) = (config, false);
                    state.clone()
                }
                None => {
                    let queues = QueueSet::new(config.limit, 0, now);
                    let (seats, retry) = (Seats::default(), RetryAfter::default());
                    let inner = Inner { config, queues, seats, leaving: false, retry, alarm: false };
                    Arc::new(LevelState { name: name.clone(), inner: Mutex::new(inner) })
                }
            };
            states.insert(name, state);
        }
        for (name, state) in &self.levels {
            if !states.contains_key(name) && !state.inner.lock().queues.is_idle() {
                state.inner.lock().leaving = true;
                states.insert(name.clone(), state.clone());
            }
        }
        states
    }

    fn flow(&self, schema: Schema, states: &BTreeMap<String, Arc<LevelState>>) -> Option<Arc<Flow>> {
        let level = states.get(&schema.level)?.clone();
        let known = self.flows.iter().find(|f| f.schema.name == schema.name && f.schema.level == schema.level);
        let counters = known.map(|flow| flow.counters.clone());
        let counters = counters.unwrap_or_else(|| Arc::new(Counters::new(&schema.name, &schema.level)));
        let (level_uid, limit, widest) = {
            let inner = level.inner.lock();
            (inner.config.uid.clone(), inner.config.limit, widest(inner.config.limit, inner.seats.nominal))
        };
        Some(Arc::new(Flow { schema, level, level_uid, limit, widest, counters }))
    }

    /// Gives each level the seats that it may use until the next adjustment, by what it could have used in the last `periods` periods.
    /// Returns the proportion of all to their targets; 0 where exempt requests leave nothing to divide.
    pub fn adjust(&self, now: Time, periods: f64) -> f64 {
        let mut all: Vec<_> = self.levels.values().map(|level| level.inner.lock()).collect();
        let (mut claims, mut low_sum, mut least_sum) = (Vec::new(), 0, 0);
        let mut left = i64::from(self.nominal_sum);
        for inner in &mut all {
            let observed = inner.queues.demand.take(now);
            inner.seats.demand.update(observed, periods);
            let least = inner.seats.least(inner.config.limit);
            if inner.config.limit == Limit::Exempt {
                left -= i64::from(least);
                continue;
            }
            let target = inner.seats.demand.smoothed.max(f64::from(least));
            inner.seats.target = target;
            claims.push(Claim { low: least.into(), high: inner.seats.high.into(), target });
            low_sum += i64::from(inner.seats.low);
            least_sum += i64::from(least);
        }
        let divided = (left > least_sum).then(|| divide(self.nominal_sum.into(), &claims)).flatten();
        let mut given = divided.iter().flat_map(|(given, _)| given);
        for inner in &mut all {
            let (seats, exempt) = (inner.seats, inner.config.limit == Limit::Exempt);
            let least = seats.least(inner.config.limit);
            let share = if exempt { None } else { given.next() };
            let current = match share {
                _ if exempt => least,
                Some(share) => share.round() as u32,
                None if left <= low_sum => seats.low,
                None if left <= least_sum => {
                    let part = (left - low_sum) as f64 / (least_sum - low_sum) as f64;
                    seats.low + (f64::from(least - seats.low) * part).round() as u32
                }
                // Bounds that cannot be met leave everything as it is.
                None => seats.current,
            };
            inner.seats.current = current;
            let limit = inner.config.limit;
            inner.queues.configure(limit, current, now);
            wake(&mut inner.queues);
        }
        divided.map_or(0.0, |(_, proportion)| proportion)
    }

    /// Whether a level may go that no object describes.
    pub fn has_drained(&self) -> bool {
        self.levels.values().any(|level| {
            let inner = level.inner.lock();
            inner.leaving && inner.queues.is_idle()
        })
    }

    /// The first schema that a request is of.
    pub fn classify(&self, user: &crate::request::UserInfo, info: &crate::request::RequestInfo) -> Option<&Arc<Flow>> {
        let catch_all = || self.flows.iter().find(|flow| flow.schema.name == CATCH_ALL);
        self.flows.iter().find(|flow| flow.schema.matches(user, info)).or_else(catch_all)
    }
}

impl Seats {
    /// The least that a level is left with: what it needed at most lately, though never below or above what is its own.
    fn least(&self, limit: Limit) -> u32 {
        match limit {
            Limit::Exempt => self.low.max(self.demand.high),
            Limit::Reject | Limit::Queue(_) => self.low.max(self.nominal.min(self.demand.high)),
        }
    }
}

/// Sets each level's nominal seats and their bounds by its shares; returns the sum, which rounding makes a little more than `limit`.
fn set_bounds(limit: u32, states: &BTreeMap<String, Arc<LevelState>>, now: Time) -> u32 {
    let shares: f64 = states.values().map(|level| f64::from(level.inner.lock().config.shares)).sum();
    let mut sum = 0;
    for level in states.values() {
        let mut inner = level.inner.lock();
        let part = if shares > 0.0 { f64::from(inner.config.shares) / shares } else { 0.0 };
        let nominal = (f64::from(limit) * part).ceil() as u32;
        let per_cent = |percent: u32| (f64::from(nominal) * f64::from(percent) / 100.0).round() as u32;
        let lent = per_cent(inner.config.lendable);
        let borrowed = inner.config.borrowing.map_or(limit, per_cent);
        let is_new = inner.seats == Seats::default();
        inner.seats.nominal = nominal;
        inner.seats.low = nominal - lent.min(nominal);
        inner.seats.high = nominal + borrowed;
        if is_new {
            inner.seats.current = nominal - lent / 2;
        }
        let (kind, current) = (inner.config.limit, inner.seats.current);
        inner.queues.configure(kind, current, now);
        wake(&mut inner.queues);
        sum += nominal;
    }
    sum
}

/// The most seats that a request is estimated at: 15 % of the level's, and so many that a flow's hand of queues could all be served.
/// 0 is no bound of the level's own.
fn widest(limit: Limit, nominal: u32) -> u32 {
    let Limit::Queue(queuing) = limit else { return 0 };
    let part = (f64::from(nominal) * 0.15).ceil() as u32;
    part.min(nominal / u32::try_from(queuing.hand).unwrap_or(u32::MAX).max(1)).max(1)
}

/// Tells those who have got seats.
pub fn wake(queues: &mut QueueSet<Waker>) {
    for waker in queues.take_woken() {
        // Who is gone by now gives its seats back itself.
        let _ = waker.send(());
    }
}

#[cfg(test)]
#[path = "levels_tests.rs"]
mod tests;
