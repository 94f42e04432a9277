//! API Priority and Fairness: who may be served now, who waits, who is told to come back (upstream's KEP-1040).
//!
//! Decisions are pure and have their own files: `classify` finds a request's flow, `work` estimates its cost, `queues` says which
//! request of a level goes next, `levels` divides the server's seats among levels. This file carries them out: it takes a level's lock
//! for as long as a decision takes, and never waits while it has it. Nothing runs while nobody asks: levels are adjusted by the
//! requests that come, end or wait.
//!
//! Must not know: what requests do, how they are answered.

mod classify;
mod config;
mod dealer;
mod demand;
mod dump;
mod follow;
mod levels;
mod metrics;
mod queues;
mod retry;
mod share;
mod work;

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use http::{HeaderName, HeaderValue};
use parking_lot::{Mutex, RwLock};
use tokio::sync::oneshot;
use tokio::time::{sleep, sleep_until};

pub use follow::start;
pub use work::WatchGuard;

use crate::http::query::Query;
use crate::request::{RequestInfo, UserInfo};
use crate::view::View;
use config::{Level, Schema};
use levels::{Flow, LevelState, Plan, wake};
use queues::{Asker, Estimate, Id, Refusal, Start};
use work::Stored;

/// Since the server was made.
type Time = Duration;

/// How often seats are divided anew.
const ADJUST_EVERY: Duration = Duration::from_secs(10);
/// Objects whose size stands for that of all of a resource.
const SAMPLE: usize = 50;

/// Response headers that tell which objects were applied; by UID, since names say more than clients should know.
const LEVEL_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-prioritylevel-uid");
const SCHEMA_UID: HeaderName = HeaderName::from_static("x-kubernetes-pf-flowschema-uid");

/// One server's priority and fairness.
pub struct Fairness {
    began: Instant,
    /// Seats of the whole server.
    limit: u32,
    plan: RwLock<Arc<Plan>>,
    /// What holds where there are no objects.
    mandatory: (Vec<Level>, Vec<Schema>),
    /// Nanoseconds since `began` at which levels were adjusted last.
    adjusted: AtomicU64,
    adjusting: Mutex<Adjusted>,
    watches: work::Watches,
    stored: work::Known,
}

#[derive(Default)]
struct Adjusted {
    fair_fraction: f64,
}

/// The seats of a request, or of one that was let in without any. Dropping it gives them back; so does a client that goes away.
pub struct Ticket {
    place: Option<Place>,
    /// Counts a watch for as long as its stream lasts.
    pub watch: Option<WatchGuard>,
}

struct Place {
    flow: Arc<Flow>,
    id: Id,
    began: Instant,
    came: Instant,
    waits: bool,
    held: u32,
    is_watch: bool,
}

/// A request that is not served now.
#[derive(Debug, PartialEq, Eq)]
pub struct Refused {
    /// What to say in `Retry-After`.
    pub seconds: u64,
    labels: [HeaderValue; 2],
}

/// What is known of a request when it comes.
pub struct Arrival<'a> {
    pub user: &'a Arc<UserInfo>,
    pub info: &'a RequestInfo,
    pub query: &'a Query,
    /// How long it may wait for its seats.
    pub patience: Duration,
    /// Where its resource is stored; empty if that is not here.
    pub prefix: &'a str,
}

impl Fairness {
    /// `limit` is the number of requests, by their width, that are served at once beside exempt ones.
    pub fn new(limit: u32) -> Self {
        let objects = crate::bootstrap::flow::objects();
        let mandatory = |kind: &'static str| {
            objects.iter().filter(move |object| {
                let name = apimachinery::meta::name(object);
                object["kind"] == kind && (name == config::EXEMPT || name == config::CATCH_ALL)
            })
        };
        let fairness = Fairness {
            began: Instant::now(),
            limit: limit.max(1),
            plan: RwLock::default(),
            mandatory: (
                mandatory("PriorityLevelConfiguration").filter_map(Level::of).collect(),
                mandatory("FlowSchema").map(Schema::of).collect(),
            ),
            adjusted: AtomicU64::new(0),
            adjusting: Mutex::default(),
            watches: work::Watches::default(),
            stored: work::Known::default(),
        };
        fairness.apply(Vec::new(), Vec::new());
        fairness
    }

    fn now(&self) -> Time {
        self.began.elapsed()
    }

    fn plan(&self) -> Arc<Plan> {
        self.plan.read().clone()
    }

    /// Other objects are in force from now on. Returns each schema's name, its level's, and whether there is such a level.
    fn apply(&self, levels: Vec<Level>, schemas: Vec<Schema>) -> Vec<(String, String, bool)> {
        let mut plan = self.plan.write();
        let (next, found) = plan.next(self.limit, levels, schemas, &self.mandatory, self.now());
        *plan = Arc::new(next);
        found
    }

    /// Waits until the request has its seats. Whoever stops waiting for this leaves no trace but in counters.
    pub async fn enter(&self, view: &View, arrival: Arrival<'_>) -> Result<Ticket, Refused> {
        let now = self.now();
        self.adjust_if_due(now);
        let Some(flow) = self.plan.read().classify(arrival.user, arrival.info).cloned() else {
            return Ok(Ticket { place: None, watch: None });
        };
        let estimate = self.estimate(view, &arrival, &flow, now);
        let hash = match flow.limit {
            config::Limit::Queue(queuing) if queuing.queues > 1 => {
                classify::hash(&flow.schema.name, flow.schema.flow(arrival.user, arrival.info))
            }
            _ => 0,
        };
        let asker = Asker::new(flow.counters.schema.clone(), arrival.user.clone());
        let (came, is_watch, held) = (Instant::now(), arrival.info.verb == "watch", estimate.held());
        let (start, waiter) = {
            let mut inner = flow.level.inner.lock();
            let start = inner.queues.start(asker, estimate, hash, now);
            wake(&mut inner.queues);
            match start {
                Start::Wait(id) => {
                    let (sender, receiver) = oneshot::channel();
                    inner.queues.wake_by(id, sender, flow.schema.flow(arrival.user, arrival.info));
                    flow.counters.lengths.observe(inner.queues.totals().waiting as f64);
                    (start, Some(receiver))
                }
                Start::Go(_) | Start::Refused(_) => (start, None),
            }
        };
        let watch = is_watch.then(|| self.watches.begin(arrival.info, arrival.query));
        match start {
            Start::Refused(why) => Err(self.refuse(&flow, why)),
            Start::Go(id) => {
                let place = Place { flow, id, began: self.began, came, waits: false, held, is_watch };
                place.note_execution();
                Ok(Ticket { place: Some(place), watch })
            }
            Start::Wait(id) => {
                let place = Place { flow, id, began: self.began, came, waits: true, held, is_watch };
                place.note_waiting(1);
                let mut ticket = Ticket { place: Some(place), watch };
                match waiter {
                    Some(waiter) => self.wait(&mut ticket, waiter, arrival.patience).await.map(|()| ticket),
                    None => Ok(ticket),
                }
            }
        }
    }

    async fn wait(
        &self,
        ticket: &mut Ticket,
        mut waiter: oneshot::Receiver<()>,
        patience: Duration,
    ) -> Result<(), Refused> {
        let Some(place) = &mut ticket.place else { return Ok(()) };
        set_alarm(self.began, &place.flow.level);
        let deadline = tokio::time::Instant::now() + patience;
        let got_seats = loop {
            tokio::select! {
                biased;
                _ = &mut waiter => break true,
                () = sleep_until(deadline) => break false,
                // Nobody comes or ends any more: what is idle may be lent to this level.
                () = sleep(ADJUST_EVERY) => self.adjust_if_due(self.now()),
            }
        };
        place.note_waiting(-1);
        if got_seats || place.has_seats() {
            place.waits = false;
            place.flow.counters.waited[0].observe(place.came.elapsed().as_secs_f64());
            place.came = Instant::now();
            place.note_execution();
            return Ok(());
        }
        place.flow.counters.waited[1].observe(place.came.elapsed().as_secs_f64());
        let refused = self.refuse(&place.flow, Refusal::TimeOut);
        if let Some(place) = ticket.place.take() {
            place.leave();
        }
        Err(refused)
    }

    fn refuse(&self, flow: &Flow, why: Refusal) -> Refused {
        flow.counters.refused[why as usize].fetch_add(1, Ordering::Relaxed);
        let mut inner = flow.level.inner.lock();
        let seconds = inner.retry.seconds();
        inner.retry.refused(self.now().as_secs());
        Refused { seconds, labels: [flow.level_uid.clone(), flow.schema.uid.clone()] }
    }

    fn estimate(&self, view: &View, arrival: &Arrival<'_>, flow: &Flow, now: Time) -> Estimate {
        let info = arrival.info;
        let estimate = match info.verb.as_str() {
            "list" | "watch" if info.is_resource && !arrival.prefix.is_empty() => {
                let stored = self.stored.of(arrival.prefix, now, || stored(view, arrival.prefix));
                work::of_list(stored, info, arrival.query, flow.widest)
            }
            _ if info.is_resource && work::is_write(info) => {
                let watches = self.watches.of(info);
                flow.counters.watches.observe(f64::from(watches));
                work::of_write(watches, flow.widest)
            }
            _ => Estimate::ONE,
        };
        flow.counters.widths.observe(f64::from(estimate.held()));
        estimate
    }

    /// Divides the seats anew, if that has not been done for a while. One request does it; others go on meanwhile.
    fn adjust_if_due(&self, now: Time) {
        let last = self.adjusted.load(Ordering::Relaxed);
        let passed = now.saturating_sub(Duration::from_nanos(last));
        if passed < ADJUST_EVERY {
            return;
        }
        let Some(mut adjusting) = self.adjusting.try_lock() else { return };
        let nanoseconds = u64::try_from(now.as_nanos()).unwrap_or(u64::MAX);
        if self.adjusted.compare_exchange(last, nanoseconds, Ordering::Relaxed, Ordering::Relaxed).is_err() {
            return;
        }
        let plan = self.plan();
        adjusting.fair_fraction = plan.adjust(now, passed.as_secs_f64() / ADJUST_EVERY.as_secs_f64());
        if plan.has_drained() {
            self.drop_drained(&plan);
        }
    }

    /// Forgets the levels that nothing describes and nobody uses; their seats go to the others.
    fn drop_drained(&self, seen: &Arc<Plan>) {
        let mut plan = self.plan.write();
        if Arc::ptr_eq(&plan, seen) {
            let kept = |inner: &levels::Inner| !inner.leaving;
            let levels = plan.levels.values().filter_map(|level| {
                let inner = level.inner.lock();
                kept(&inner).then(|| inner.config.clone())
            });
            let levels: Vec<Level> = levels.collect();
            let schemas = plan.flows.iter().map(|flow| flow.schema.clone()).collect();
            let (next, _) = plan.next(self.limit, levels, schemas, &self.mandatory, self.now());
            *plan = Arc::new(next);
        }
    }
}

impl Ticket {
    /// Says in an answer which objects were applied.
    pub fn stamp(&self, headers: &mut http::HeaderMap) {
        if let Some(place) = &self.place {
            stamp(headers, [place.flow.level_uid.clone(), place.flow.schema.uid.clone()]);
        }
    }
}

impl Refused {
    pub fn stamp(self, headers: &mut http::HeaderMap) {
        stamp(headers, self.labels);
    }
}

fn stamp(headers: &mut http::HeaderMap, [level, schema]: [HeaderValue; 2]) {
    headers.insert(LEVEL_UID, level);
    headers.insert(SCHEMA_UID, schema);
}

impl Place {
    fn note_waiting(&self, delta: i64) {
        let counters = &self.flow.counters;
        counters.waiting.fetch_add(delta, Ordering::Relaxed);
        counters.waiting_seats.fetch_add(delta * i64::from(self.held), Ordering::Relaxed);
    }

    fn note_execution(&self) {
        let counters = &self.flow.counters;
        counters.dispatched.fetch_add(1, Ordering::Relaxed);
        counters.executing.fetch_add(1, Ordering::Relaxed);
        counters.executing_seats.fetch_add(i64::from(self.held), Ordering::Relaxed);
    }

    /// Whether the seats came at the very moment at which it lost patience.
    fn has_seats(&self) -> bool {
        self.flow.level.inner.lock().queues.has_seats(self.id)
    }

    fn leave(&self) {
        let lingers = {
            let mut inner = self.flow.level.inner.lock();
            inner.queues.leave(self.id, self.began.elapsed());
            wake(&mut inner.queues);
            inner.queues.next_release().is_some() && !inner.alarm
        };
        if lingers {
            set_alarm(self.began, &self.flow.level);
        }
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        let Some(place) = self.place.take() else { return };
        place.leave();
        if place.waits {
            place.note_waiting(-1);
            return;
        }
        let counters = &place.flow.counters;
        counters.executing.fetch_add(-1, Ordering::Relaxed);
        counters.executing_seats.fetch_add(-i64::from(place.held), Ordering::Relaxed);
        counters.executed[usize::from(place.is_watch)].observe(place.came.elapsed().as_secs_f64());
    }
}

/// Where somebody waits for seats that only time frees: one task calls when they are free. Nothing otherwise.
fn set_alarm(began: Instant, level: &Arc<LevelState>) {
    let mut inner = level.inner.lock();
    let Some(at) = inner.queues.next_release().filter(|_| !inner.alarm) else { return };
    let Ok(runtime) = tokio::runtime::Handle::try_current() else { return };
    inner.alarm = true;
    drop(inner);
    let level = level.clone();
    runtime.spawn(async move {
        sleep(at.saturating_sub(began.elapsed())).await;
        {
            let mut inner = level.inner.lock();
            inner.alarm = false;
            inner.queues.advance(began.elapsed());
            wake(&mut inner.queues);
        }
        set_alarm(began, &level);
    });
}

/// Counts a resource's objects, and guesses their size by the first ones.
fn stored(view: &View, prefix: &str) -> Stored {
    let range = store::Range { limit: SAMPLE, ..store::Range::prefix(&crate::view::folder(prefix, "")) };
    let Ok(listing) = view.store().range(&range) else { return Stored::default() };
    let sampled = listing.entries.len() as u64;
    let bytes: u64 = listing.entries.iter().map(|entry| entry.value.json().len() as u64).sum();
    Stored { count: sampled + listing.remaining as u64, mean_bytes: bytes.checked_div(sampled).unwrap_or(0) }
}
