//! Fair queuing of one priority level's requests: which waits in which queue, and which goes next.
//!
//! Upstream's technique (KEP-1040): each queue has a progress meter R of the seat-seconds that it has been served; time in the virtual
//! world goes as fast as one of the queues that have work gets seats; the queue whose first request would end earliest in that world
//! goes first. Deterministic: time is an argument. `W` is what wakes who waits.

use std::collections::{BinaryHeap, VecDeque};
use std::sync::Arc;
use std::time::Duration;

use super::Time;
use super::config::Limit;
use super::dealer;
use super::demand::Integrator;

/// What a request is taken to last until it has ended and shown how long it did.
const ESTIMATED_SERVICE: Duration = Duration::from_millis(3);
/// Queues that a flow may wait in: the 60 bits of a hash that the API allows hands to use make no more.
const LARGEST_HAND: usize = 20;

/// Seats and nanoseconds, multiplied. Never overflows: 10^38 is more than all servers' seats in all time.
type Work = i128;

fn work(seats: u32, time: Duration) -> Work {
    i128::from(seats) * i128::try_from(time.as_nanos()).unwrap_or(i128::MAX / 1_000_000)
}

/// What a request is going to cost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Estimate {
    /// Seats while it is carried out; at least 1.
    pub seats: u32,
    /// Seats that its consequences take for `linger` after it has been answered.
    pub last_seats: u32,
    pub linger: Duration,
}

impl Estimate {
    pub const ONE: Estimate = Estimate { seats: 1, last_seats: 0, linger: Duration::ZERO };

    /// Held from dispatch until the end of `linger`.
    pub fn held(&self) -> u32 {
        self.seats.max(self.last_seats)
    }

    fn work(&self) -> Work {
        work(self.seats, ESTIMATED_SERVICE) + work(self.last_seats, self.linger)
    }
}

/// A request that is waiting or being carried out. Meant for one [`QueueSet::finish`] or [`QueueSet::leave`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Id(usize);

/// Why a request is refused, in the words of the metrics' label `reason`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Refusal {
    /// The level has no queues, and no free seats.
    ConcurrencyLimit,
    QueueFull,
    TimeOut,
}

impl Refusal {
    pub fn as_str(self) -> &'static str {
        match self {
            Refusal::ConcurrencyLimit => "concurrency-limit",
            Refusal::QueueFull => "queue-full",
            Refusal::TimeOut => "time-out",
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Start {
    /// It has its seats.
    Go(Id),
    /// It waits; [`QueueSet::wake_by`] says who is to be told.
    Wait(Id),
    Refused(Refusal),
}

/// Who asks, for dumps.
#[derive(Clone, Debug)]
pub struct Asker {
    pub schema: Arc<str>,
    pub user: Arc<crate::request::UserInfo>,
    /// What tells the flow from others of its schema; kept for those who wait.
    pub flow: Box<str>,
}

impl Asker {
    pub fn new(schema: Arc<str>, user: Arc<crate::request::UserInfo>) -> Self {
        Asker { schema, user, flow: Box::default() }
    }
}

/// What a dump shows of a request.
#[derive(Clone, Debug)]
pub struct Shown {
    pub asker: Asker,
    /// None for requests of levels without queues.
    pub queue: Option<usize>,
    /// Place in the queue; none for what is being carried out.
    pub place: Option<usize>,
    pub estimate: Estimate,
    pub arrived: Time,
    pub started: Option<Time>,
}

struct Request<W> {
    asker: Asker,
    queue: Option<usize>,
    estimate: Estimate,
    arrived: Time,
    arrival_r: Work,
    started: Option<Time>,
    waker: Option<W>,
}

#[derive(Default)]
struct Queue {
    waiting: VecDeque<usize>,
    waiting_work: Work,
    executing: usize,
    seats: u32,
    next_r: Work,
}

impl Queue {
    fn is_active(&self) -> bool {
        !self.waiting.is_empty() || self.executing > 0
    }
}

/// Seats that are held until a time.
#[derive(PartialEq, Eq, PartialOrd, Ord)]
struct Lingering(std::cmp::Reverse<Time>, Option<usize>, u32);

/// Counts since the start, and of now.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Totals {
    pub waiting: usize,
    pub seats_waiting: u32,
    pub executing: usize,
    pub seats: u32,
    pub dispatched: u64,
    pub refused: u64,
    pub cancelled: u64,
}

/// What a dump shows of a queue.
#[derive(Clone, Copy, Debug)]
pub struct QueueShown {
    pub waiting: usize,
    pub executing: usize,
    pub seats: u32,
    pub next_r_seconds: f64,
    pub waiting_first_seats: u32,
    pub waiting_seats: u32,
    pub waiting_work_seconds: f64,
}

pub struct QueueSet<W> {
    limit: Limit,
    seats_limit: u32,
    queues: Vec<Queue>,
    active_queues: usize,
    requests: Vec<Option<Request<W>>>,
    free: Vec<usize>,
    lingering: BinaryHeap<Lingering>,
    r: Work,
    now: Time,
    robin: usize,
    enqueued: usize,
    totals: Totals,
    /// Seats in use and asked for.
    pub demand: Integrator,
    woken: Vec<W>,
}

impl<W> QueueSet<W> {
    pub fn new(limit: Limit, seats_limit: u32, now: Time) -> Self {
        let mut set = QueueSet {
            limit,
            seats_limit,
            queues: Vec::new(),
            active_queues: 0,
            requests: Vec::new(),
            free: Vec::new(),
            lingering: BinaryHeap::new(),
            r: 0,
            now,
            robin: 0,
            enqueued: 0,
            totals: Totals::default(),
            demand: Integrator::new(now),
            woken: Vec::new(),
        };
        set.configure(limit, seats_limit, now);
        set
    }

    /// Other bounds from now on. What waits goes on waiting where it is, though its queue may be none that is dealt any more.
    pub fn configure(&mut self, limit: Limit, seats_limit: u32, now: Time) {
        self.advance(now);
        (self.limit, self.seats_limit) = (limit, seats_limit);
        if let Limit::Queue(queuing) = limit
            && queuing.queues > self.queues.len()
        {
            self.queues.resize_with(queuing.queues, Queue::default);
        }
        self.dispatch(None);
        self.trim();
    }

    pub fn totals(&self) -> Totals {
        self.totals
    }

    pub fn r_seconds(&self) -> f64 {
        seconds(self.r)
    }

    pub fn is_idle(&self) -> bool {
        self.totals.waiting == 0 && self.totals.executing == 0
    }

    /// Whether time alone will free seats that somebody waits for, and when. The owner must then call [`QueueSet::advance`].
    pub fn next_release(&self) -> Option<Time> {
        self.lingering.peek().filter(|_| self.totals.waiting > 0).map(|first| first.0.0)
    }

    /// Those whose requests were given their seats since the last call, in that order.
    pub fn take_woken(&mut self) -> Vec<W> {
        std::mem::take(&mut self.woken)
    }

    /// A request has come. `hash` is that of its flow.
    pub fn start(&mut self, asker: Asker, estimate: Estimate, hash: u64, now: Time) -> Start {
        self.advance(now);
        let Limit::Queue(queuing) = self.limit else {
            if self.limit == Limit::Reject && !self.fits(estimate.held()) {
                self.totals.refused += 1;
                return Start::Refused(Refusal::ConcurrencyLimit);
            }
            let id = self.insert(asker, None, estimate);
            self.execute(id);
            self.note_demand();
            return Start::Go(Id(id));
        };
        let at = self.deal(hash, queuing.queues, queuing.hand);
        if self.totals.seats >= self.seats_limit && self.queues[at].waiting.len() >= queuing.length {
            self.totals.refused += 1;
            return Start::Refused(Refusal::QueueFull);
        }
        let id = self.insert(asker, Some(at), estimate);
        self.enqueue(id, at);
        // Where nobody else waits there is nothing to choose.
        self.dispatch((self.totals.waiting == 1).then_some(at));
        self.note_demand();
        if self.has_seats(Id(id)) { Start::Go(Id(id)) } else { Start::Wait(Id(id)) }
    }

    /// Who is to be woken when a waiting request gets its seats; and its flow's name, for dumps.
    pub fn wake_by(&mut self, id: Id, waker: W, flow: &str) {
        if let Some(request) = &mut self.requests[id.0] {
            request.waker = Some(waker);
            request.asker.flow = flow.into();
        }
    }

    /// Whether a request waits no more.
    pub fn has_seats(&self, id: Id) -> bool {
        self.requests[id.0].as_ref().is_some_and(|request| request.started.is_some())
    }

    /// A request goes away: one that waits leaves its queue, one that has its seats has ended. Whether it was waiting.
    pub fn leave(&mut self, id: Id, now: Time) -> bool {
        self.advance(now);
        let waits = self.requests[id.0].as_ref().is_some_and(|request| request.started.is_none());
        if waits {
            self.cancel(id.0)
        } else {
            self.finish(id.0)
        }
        self.dispatch(None);
        self.note_demand();
        self.trim();
        waits
    }

    /// Lets time pass: progress of the virtual world, and seats whose time is over.
    pub fn advance(&mut self, now: Time) {
        while let Some(first) = self.lingering.peek()
            && first.0.0 <= now
        {
            let Some(Lingering(std::cmp::Reverse(at), queue, seats)) = self.lingering.pop() else { break };
            self.progress(at);
            self.release(queue, seats);
            self.note_demand();
            self.dispatch(None);
            self.note_demand();
        }
        self.progress(now);
    }

    fn progress(&mut self, now: Time) {
        let passed = now.saturating_sub(self.now);
        self.now = self.now.max(now);
        if self.active_queues > 0 {
            let asked = self.totals.seats + self.totals.seats_waiting;
            self.r += work(asked.min(self.seats_limit), passed) / self.active_queues as i128;
        }
    }

    fn note_demand(&mut self) {
        self.demand.set(self.now, f64::from(self.totals.seats + self.totals.seats_waiting));
    }

    /// Whether so many seats are free. A request that is wider than the level goes when it is alone.
    fn fits(&self, seats: u32) -> bool {
        match self.limit {
            Limit::Exempt => true,
            _ if seats > self.seats_limit => self.totals.executing == 0,
            _ => self.totals.seats + seats <= self.seats_limit,
        }
    }

    fn insert(&mut self, asker: Asker, queue: Option<usize>, estimate: Estimate) -> usize {
        let (arrived, arrival_r) = (self.now, self.r);
        let request = Request { asker, queue, estimate, arrived, arrival_r, started: None, waker: None };
        match self.free.pop() {
            Some(id) => {
                self.requests[id] = Some(request);
                id
            }
            None => {
                self.requests.push(Some(request));
                self.requests.len() - 1
            }
        }
    }

    /// The queue of the flow's hand that has the least work waiting.
    fn deal(&mut self, hash: u64, queues: usize, hand: usize) -> usize {
        let mut cards = [0; LARGEST_HAND];
        let hand = &mut cards[..hand.clamp(1, LARGEST_HAND.min(queues))];
        dealer::deal(hash, queues, hand);
        // Not always from the first on, or flows whose hands overlap would prefer the same queues.
        let offset = self.enqueued % hand.len();
        self.enqueued = self.enqueued.wrapping_add(1);
        let turned = hand[offset..].iter().chain(&hand[..offset]);
        turned.copied().min_by_key(|at| self.queues[*at].waiting_work).unwrap_or(0)
    }

    fn enqueue(&mut self, id: usize, at: usize) {
        let Some(request) = &self.requests[id] else { return };
        let queue = &mut self.queues[at];
        if !queue.is_active() {
            queue.next_r = self.r;
            self.active_queues += 1;
        }
        queue.waiting.push_back(id);
        queue.waiting_work += request.estimate.work();
        self.totals.waiting += 1;
        self.totals.seats_waiting += request.estimate.held();
        self.bound(at);
    }

    /// A queue's service in the virtual world does not begin before its first request came: a queue that could not use its share
    /// does not save it up.
    fn bound(&mut self, at: usize) {
        let first = self.queues[at].waiting.front().and_then(|id| self.requests[*id].as_ref());
        if let Some(arrival) = first.map(|request| request.arrival_r) {
            let queue = &mut self.queues[at];
            queue.next_r = queue.next_r.max(arrival);
        }
    }

    /// Gives seats to all who can have them. `only` is the one queue that has a request, if that is known.
    fn dispatch(&mut self, only: Option<usize>) {
        while self.totals.waiting > 0 && (self.totals.seats < self.seats_limit || self.limit == Limit::Exempt) {
            let Some(at) = only.or_else(|| self.next_queue()) else { return };
            let Some(id) = self.queues[at].waiting.front().copied() else { return };
            let Some(request) = &mut self.requests[id] else { return };
            let cost = request.estimate;
            // The first of all waits until it fits: were narrower ones let by, a wide one would wait for ever.
            if !self.fits(cost.held()) {
                return;
            }
            let request = self.requests[id].as_mut().expect("it is first of its queue");
            let estimate = &mut request.estimate;
            if estimate.last_seats > self.seats_limit.max(1) {
                // The same work, by as many seats as there are.
                let area = estimate.linger * estimate.last_seats;
                estimate.last_seats = self.seats_limit.max(1);
                estimate.linger = area / estimate.last_seats;
            }
            let waker = request.waker.take();
            self.robin = at;
            self.dequeue(at, 0, cost);
            self.queues[at].next_r += cost.work();
            self.execute(id);
            self.bound(at);
            self.woken.extend(waker);
        }
    }

    /// The queue whose first request ends earliest in the virtual world; the next in turn of several.
    fn next_queue(&self) -> Option<usize> {
        let count = self.queues.len();
        let turns = (1..=count).map(|step| (self.robin + step) % count);
        let waiting = turns.filter_map(|at| {
            let queue = &self.queues[at];
            let first = self.requests[*queue.waiting.front()?].as_ref()?;
            Some((queue.next_r + first.estimate.work(), at))
        });
        waiting.min_by_key(|(end, _)| *end).map(|(_, at)| at)
    }

    /// Takes the request at `place` out of a queue.
    fn dequeue(&mut self, at: usize, place: usize, cost: Estimate) {
        let queue = &mut self.queues[at];
        queue.waiting.remove(place);
        queue.waiting_work -= cost.work();
        self.totals.waiting -= 1;
        self.totals.seats_waiting -= cost.held();
    }

    fn execute(&mut self, id: usize) {
        let Some(request) = &mut self.requests[id] else { return };
        request.started = Some(self.now);
        let held = request.estimate.held();
        self.totals.executing += 1;
        self.totals.dispatched += 1;
        self.totals.seats += held;
        if let Some(at) = request.queue {
            self.queues[at].executing += 1;
            self.queues[at].seats += held;
        }
    }

    fn cancel(&mut self, id: usize) {
        let Some(request) = self.remove(id) else { return };
        let Some(at) = request.queue else { return };
        if let Some(place) = self.queues[at].waiting.iter().position(|waiting| *waiting == id) {
            self.dequeue(at, place, request.estimate);
            self.bound(at);
        }
        self.totals.refused += 1;
        self.totals.cancelled += 1;
        self.active_queues -= usize::from(!self.queues[at].is_active());
    }

    fn finish(&mut self, id: usize) {
        let Some(request) = self.remove(id) else { return };
        let estimate = request.estimate;
        self.totals.executing -= 1;
        if let (Some(at), Some(started)) = (request.queue, request.started) {
            let took = self.now.saturating_sub(started);
            let queue = &mut self.queues[at];
            queue.executing -= 1;
            // It was charged as if it took the estimated time.
            queue.next_r += work(estimate.seats, took) - work(estimate.seats, ESTIMATED_SERVICE);
            self.active_queues -= usize::from(!queue.is_active());
            self.bound(at);
        }
        if estimate.linger.is_zero() {
            self.release(request.queue, estimate.held());
        } else {
            let until = std::cmp::Reverse(self.now + estimate.linger);
            self.lingering.push(Lingering(until, request.queue, estimate.held()));
        }
    }

    fn remove(&mut self, id: usize) -> Option<Request<W>> {
        let request = self.requests[id].take()?;
        self.free.push(id);
        Some(request)
    }

    fn release(&mut self, queue: Option<usize>, seats: u32) {
        self.totals.seats -= seats;
        if let Some(queue) = queue.and_then(|at| self.queues.get_mut(at)) {
            queue.seats -= seats;
        }
    }

    /// Drops queues that are no longer dealt, once they and all behind them are empty.
    fn trim(&mut self) {
        let dealt = match self.limit {
            Limit::Queue(queuing) => queuing.queues,
            Limit::Exempt | Limit::Reject => 0,
        };
        while self.queues.len() > dealt && self.queues.last().is_some_and(|q| !q.is_active() && q.seats == 0) {
            self.queues.pop();
        }
    }

    pub fn queues(&self) -> impl Iterator<Item = QueueShown> {
        self.queues.iter().map(|queue| {
            let waiting = queue.waiting.iter().filter_map(|id| self.requests[*id].as_ref());
            QueueShown {
                waiting: queue.waiting.len(),
                executing: queue.executing,
                seats: queue.seats,
                next_r_seconds: seconds(queue.next_r),
                waiting_first_seats: waiting.clone().map(|request| request.estimate.seats).sum(),
                waiting_seats: waiting.map(|request| request.estimate.held()).sum(),
                waiting_work_seconds: seconds(queue.waiting_work),
            }
        })
    }

    /// Waiting requests in their order, then those that are being carried out.
    pub fn requests(&self) -> Vec<Shown> {
        let show = |request: &Request<W>, place| Shown {
            asker: request.asker.clone(),
            queue: request.queue,
            place,
            estimate: request.estimate,
            arrived: request.arrived,
            started: request.started,
        };
        let mut all = Vec::new();
        for queue in &self.queues {
            let waiting = queue.waiting.iter().filter_map(|id| self.requests[*id].as_ref()).enumerate();
            all.extend(waiting.map(|(place, request)| show(request, Some(place))));
        }
        all.extend(self.requests.iter().flatten().filter(|r| r.started.is_some()).map(|request| show(request, None)));
        all
    }
}

fn seconds(work: Work) -> f64 {
    work as f64 / 1e9
}

#[cfg(test)]
#[path = "queues_tests.rs"]
mod tests;
