//! Work queues: deduplicating, with delays and per-key exponential back-off, bounded by the number of distinct keys.
//!
//! A key is never worked on by two workers at once; a key added while in work is worked on again afterwards.

use std::cmp::Reverse;
use std::collections::{BinaryHeap, HashMap, HashSet, VecDeque};
use std::fmt::Debug;
use std::future::Future;
use std::hash::Hash;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::Notify;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

#[derive(Clone, Copy, Debug)]
pub struct QueueConfig {
    pub base_delay: Duration,
    pub max_delay: Duration,
}

impl Default for QueueConfig {
    /// Upstream's default rate limiter: 5 ms doubling to 1000 s; we cap at 30 s, since retries are cheap here.
    fn default() -> Self {
        QueueConfig { base_delay: Duration::from_millis(5), max_delay: Duration::from_secs(30) }
    }
}

/// A century.
const FOR_EVER: Duration = Duration::from_secs(100 * 365 * 24 * 3600);

struct State<T> {
    ready: VecDeque<T>,
    /// In `ready`, or to be put there when its present work ends.
    dirty: HashSet<T>,
    working: HashSet<T>,
    delayed: BinaryHeap<Reverse<(Instant, u64)>>,
    delayed_keys: HashMap<u64, T>,
    /// The earliest pending wake-up of a key, so that adding again does not pile up timers.
    wakeups: HashMap<T, (Instant, u64)>,
    failures: HashMap<T, u32>,
    next_id: u64,
}

struct Shared<T> {
    state: Mutex<State<T>>,
    wake: Notify,
    config: QueueConfig,
}

/// A work queue. Cloning shares it.
pub struct Queue<T> {
    shared: Arc<Shared<T>>,
}

impl<T> Clone for Queue<T> {
    fn clone(&self) -> Self {
        Queue { shared: self.shared.clone() }
    }
}

impl<T: Clone + Eq + Hash + Debug + Send + 'static> Default for Queue<T> {
    fn default() -> Self {
        Queue::new(QueueConfig::default())
    }
}

impl<T: Clone + Eq + Hash + Debug + Send + 'static> Queue<T> {
    pub fn new(config: QueueConfig) -> Self {
        let state = State {
            ready: VecDeque::new(),
            dirty: HashSet::new(),
            working: HashSet::new(),
            delayed: BinaryHeap::new(),
            delayed_keys: HashMap::new(),
            wakeups: HashMap::new(),
            failures: HashMap::new(),
            next_id: 0,
        };
        Queue { shared: Arc::new(Shared { state: Mutex::new(state), wake: Notify::new(), config }) }
    }

    /// Makes `key` ready now. No effect if it is ready already.
    pub fn add(&self, key: T) {
        let mut state = self.shared.state.lock();
        state.make_ready(key);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// Makes `key` ready after `delay`; an earlier pending wake-up of the same key stands.
    pub fn add_after(&self, key: T, delay: Duration) {
        if delay.is_zero() {
            return self.add(key);
        }
        // A delay beyond what the clock can express is as good as for ever.
        let now = Instant::now();
        let due = now.checked_add(delay).unwrap_or(now + FOR_EVER);
        let mut state = self.shared.state.lock();
        if let Some((pending, _)) = state.wakeups.get(&key)
            && *pending <= due
        {
            return;
        }
        let id = state.next_id;
        state.next_id += 1;
        if let Some((_, stale)) = state.wakeups.insert(key.clone(), (due, id)) {
            state.delayed_keys.remove(&stale);
        }
        state.delayed.push(Reverse((due, id)));
        state.delayed_keys.insert(id, key);
        drop(state);
        self.shared.wake.notify_one();
    }

    /// The next ready key. It must be given back with [`Queue::done`]. Cancellation safe.
    pub async fn next(&self) -> T {
        loop {
            let woken = self.shared.wake.notified();
            let due = {
                let mut state = self.shared.state.lock();
                state.promote(Instant::now());
                if let Some(key) = state.ready.pop_front() {
                    state.dirty.remove(&key);
                    state.working.insert(key.clone());
                    if !state.ready.is_empty() {
                        self.shared.wake.notify_one();
                    }
                    return key;
                }
                state.delayed.peek().map(|Reverse((due, _))| *due)
            };
            match due {
                Some(due) => tokio::select! { () = woken => {}, () = tokio::time::sleep_until(due) => {} },
                None => woken.await,
            }
        }
    }

    /// Ends the work on `key`. `failed` puts it back with the key's next back-off; success forgets its failures.
    pub fn done(&self, key: &T, failed: bool) {
        let mut state = self.shared.state.lock();
        state.working.remove(key);
        if state.dirty.contains(key) {
            state.ready.push_back(key.clone());
        }
        let retry = if failed {
            let failures = state.failures.entry(key.clone()).or_insert(0);
            *failures = failures.saturating_add(1);
            let factor = 1u32.checked_shl(*failures - 1).unwrap_or(u32::MAX);
            Some(self.shared.config.base_delay.saturating_mul(factor).min(self.shared.config.max_delay))
        } else {
            state.failures.remove(key);
            None
        };
        drop(state);
        self.shared.wake.notify_one();
        if let Some(delay) = retry {
            self.add_after(key.clone(), delay);
        }
    }

    pub fn len(&self) -> usize {
        self.shared.state.lock().ready.len()
    }

    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }
}

impl<T: Clone + Eq + Hash> State<T> {
    fn make_ready(&mut self, key: T) {
        if !self.dirty.insert(key.clone()) {
            return;
        }
        if !self.working.contains(&key) {
            self.ready.push_back(key);
        }
    }

    fn promote(&mut self, now: Instant) {
        while let Some(Reverse((due, id))) = self.delayed.peek().copied() {
            if due > now {
                break;
            }
            self.delayed.pop();
            if let Some(key) = self.delayed_keys.remove(&id) {
                self.wakeups.remove(&key);
                self.make_ready(key);
            }
        }
    }
}

/// What a reconcile asks for after a success.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Next {
    /// Nothing until something changes.
    Wait,
    /// Look again after this time.
    After(Duration),
}

/// Runs `workers` concurrent workers until `shutdown`; work in hand is finished first. A failure is logged and retried.
pub async fn run_workers<T, F, Fut, E>(
    name: &'static str,
    queue: Queue<T>,
    workers: usize,
    shutdown: CancellationToken,
    reconcile: F,
) where
    T: Clone + Eq + Hash + Debug + Send + Sync + 'static,
    F: Fn(T) -> Fut + Send + Sync + 'static,
    Fut: Future<Output = Result<Next, E>> + Send,
    E: std::fmt::Display + Send,
{
    let reconcile = &reconcile;
    let queue = &queue;
    let shutdown = &shutdown;
    let one = move || async move {
        while let Some(key) = shutdown.run_until_cancelled(queue.next()).await {
            match reconcile(key.clone()).await {
                Ok(Next::Wait) => queue.done(&key, false),
                Ok(Next::After(delay)) => {
                    queue.done(&key, false);
                    queue.add_after(key, delay);
                }
                Err(error) => {
                    tracing::debug!(component = name, ?key, %error, "reconcile failed, will retry");
                    queue.done(&key, true);
                }
            }
        }
    };
    futures::future::join_all((0..workers).map(|_| one())).await;
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn a_key_is_never_worked_on_twice_at_once_and_not_lost() {
        let queue = Queue::default();
        queue.add("a");
        queue.add("a");
        assert_eq!(queue.next().await, "a");
        queue.add("a");
        assert!(queue.is_empty(), "in work, so it waits");
        queue.done(&"a", false);
        assert_eq!(queue.next().await, "a");
        queue.done(&"a", false);
        assert!(queue.is_empty());
    }

    #[tokio::test(start_paused = true)]
    async fn the_earlier_of_two_wake_ups_stands() {
        let queue = Queue::default();
        let start = Instant::now();
        queue.add_after("a", Duration::from_secs(10));
        queue.add_after("a", Duration::from_secs(3));
        queue.add_after("a", Duration::from_secs(60));
        assert_eq!(queue.next().await, "a");
        assert_eq!(start.elapsed(), Duration::from_secs(3));
        queue.done(&"a", false);
        let more = tokio::time::timeout(Duration::from_secs(100), queue.next()).await;
        assert!(more.is_err(), "the other two were replaced");
    }

    #[tokio::test(start_paused = true)]
    async fn failures_back_off_up_to_the_cap_and_success_forgets() {
        let config = QueueConfig { base_delay: Duration::from_secs(1), max_delay: Duration::from_secs(5) };
        let queue = Queue::new(config);
        queue.add("a");
        let mut waits = Vec::new();
        for failed in [true, true, true, true, false] {
            let start = Instant::now();
            let key = queue.next().await;
            waits.push(start.elapsed().as_secs());
            queue.done(&key, failed);
        }
        assert_eq!(waits, [0, 1, 2, 4, 5]);
        queue.add("a");
        queue.done(&queue.next().await, true);
        let start = Instant::now();
        queue.next().await;
        assert_eq!(start.elapsed().as_secs(), 1);
    }

    #[tokio::test(start_paused = true)]
    async fn workers_share_the_queue_and_finish_their_work_on_shutdown() {
        let queue = Queue::default();
        (0..20).for_each(|key| queue.add(key));
        let shutdown = CancellationToken::new();
        let finished = Arc::new(Mutex::new(Vec::new()));
        let log = finished.clone();
        let workers = tokio::spawn(run_workers("test", queue.clone(), 4, shutdown.clone(), move |key| {
            let log = log.clone();
            async move {
                tokio::time::sleep(Duration::from_secs(1)).await;
                log.lock().push(key);
                Ok::<_, String>(Next::Wait)
            }
        }));
        tokio::time::sleep(Duration::from_millis(2500)).await;
        shutdown.cancel();
        workers.await.expect("no panic");
        assert_eq!(finished.lock().len(), 12, "two full rounds of four, and the third was finished");
    }
}
