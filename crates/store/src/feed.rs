//! Watching: a feed is the shared ring of one prefix's events, a watcher is a cursor over it.
//!
//! A commit costs one look-up per path segment of its key plus one push per feed that exists; idle watchers of other
//! prefixes are neither woken nor visited. Feeds exist only while watched.

use std::collections::VecDeque;
use std::sync::Arc;

use parking_lot::{Mutex, RwLock};
use tokio::sync::Notify;

use crate::state::State;
use crate::{Error, Event, Revision};

/// A watcher takes at most about this many events at once, to keep the time under the feed's lock short.
const BATCH: usize = 256;

pub(crate) struct Feed<V> {
    ring: Mutex<Ring<V>>,
    wake: Notify,
}

struct Ring<V> {
    /// In revision order.
    events: VecDeque<Arc<Event<V>>>,
    /// Complete for events after this revision.
    floor: Revision,
    /// Transactions up to this revision are here whole; of a later one some events may still be on their way.
    whole: Revision,
    /// Whether a push has already asked for the watchers to be woken.
    waking: bool,
    /// Watchers of an older one have to list again, however much they have seen.
    generation: u64,
    closed: bool,
}

impl<V> Feed<V> {
    pub(crate) fn new(floor: Revision) -> Self {
        let ring = Ring { events: VecDeque::new(), floor, whole: floor, waking: false, generation: 0, closed: false };
        Feed { ring: Mutex::new(ring), wake: Notify::new() }
    }

    pub(crate) fn floor(&self) -> Revision {
        self.ring.lock().floor
    }

    /// Appends; returns whether the caller must call [`Feed::wake`] when the transaction is here whole. Until then no watcher sees it.
    pub(crate) fn push(&self, event: Arc<Event<V>>) -> bool {
        let mut ring = self.ring.lock();
        ring.events.push_back(event);
        !std::mem::replace(&mut ring.waking, true)
    }

    pub(crate) fn wake(&self) {
        let mut ring = self.ring.lock();
        ring.waking = false;
        ring.whole = ring.events.back().map_or(ring.whole, |newest| newest.revision);
        drop(ring);
        self.wake.notify_waiters();
    }

    /// Prepends older events, so that the feed is complete after `floor`.
    pub(crate) fn extend_back(&self, floor: Revision, events: impl DoubleEndedIterator<Item = Arc<Event<V>>>) {
        let mut ring = self.ring.lock();
        for event in events.rev() {
            ring.events.push_front(event);
        }
        ring.floor = floor;
    }

    /// Drops events up to and with `revision`.
    pub(crate) fn drop_until(&self, revision: Revision) {
        let mut ring = self.ring.lock();
        while ring.events.front().is_some_and(|event| event.revision <= revision) {
            ring.events.pop_front();
            ring.floor = ring.floor.max(revision);
        }
    }

    /// What happened up to `floor` is not known: who has not seen all of it has fallen behind.
    pub(crate) fn reset(&self, floor: Revision) {
        let mut ring = self.ring.lock();
        ring.events.clear();
        ring.floor = floor;
        ring.whole = ring.whole.max(floor);
        drop(ring);
        self.wake.notify_waiters();
    }

    /// Something is otherwise than the events say: all that watch now have fallen behind.
    pub(crate) fn invalidate(&self) {
        self.ring.lock().generation += 1;
        self.wake.notify_waiters();
    }

    fn generation(&self) -> u64 {
        self.ring.lock().generation
    }

    pub(crate) fn close(&self) {
        self.ring.lock().closed = true;
        self.wake.notify_waiters();
    }
}

/// What is narrower than its feed.
enum Only {
    /// A prefix that ends within a path segment.
    Prefix(Box<str>),
    /// A key that ends in `/`, whose feed is that of a prefix too.
    Key(Box<str>),
}

impl Only {
    fn has(&self, key: &str) -> bool {
        match self {
            Only::Prefix(prefix) => key.starts_with(&**prefix),
            Only::Key(only) => *key == **only,
        }
    }
}

/// A cursor over the events of one prefix.
pub struct Watcher<V> {
    state: Arc<RwLock<State<V>>>,
    feed: Arc<Feed<V>>,
    /// Of the feed's events, those that are asked for; none is all.
    only: Option<Only>,
    generation: u64,
    /// Everything up to and with this revision has been delivered.
    cursor: Revision,
}

impl<V> Watcher<V> {
    /// A watch of all keys that start with `prefix`, for events after `after`.
    pub(crate) fn of_prefix(state: &Arc<RwLock<State<V>>>, prefix: &str, after: Revision) -> Result<Self, Error> {
        let directory = prefix.rfind('/').map_or("", |at| &prefix[..=at]);
        let feed = state.write().subscribe(directory, after)?;
        let only = (directory.len() < prefix.len()).then(|| Only::Prefix(prefix.into()));
        Ok(Watcher { state: state.clone(), generation: feed.generation(), feed, only, cursor: after })
    }

    /// A watch of one key.
    pub(crate) fn of_key(state: &Arc<RwLock<State<V>>>, key: &str, after: Revision) -> Result<Self, Error> {
        let feed = state.write().subscribe(key, after)?;
        let only = (key.is_empty() || key.ends_with('/')).then(|| Only::Key(key.into()));
        Ok(Watcher { state: state.clone(), generation: feed.generation(), feed, only, cursor: after })
    }

    /// The next events, at least one, in revision order; transactions are never split. Waits if there is none yet.
    ///
    /// Cancellation safe. Fails with [`Error::Compacted`] if the watcher has fallen behind the history (it then has to
    /// list again), with [`Error::Closed`] when the store shuts down.
    pub async fn next(&mut self) -> Result<Vec<Arc<Event<V>>>, Error> {
        let feed = self.feed.clone();
        loop {
            let mut woken = std::pin::pin!(feed.wake.notified());
            // From here on a wake-up is remembered, so that none is lost between looking and waiting.
            woken.as_mut().enable();
            let events = self.take()?;
            if !events.is_empty() {
                return Ok(events);
            }
            woken.await;
        }
    }

    /// Like [`Watcher::next`], but empty if there is nothing new.
    pub fn take(&mut self) -> Result<Vec<Arc<Event<V>>>, Error> {
        let mut taken = Vec::new();
        loop {
            let ring = self.feed.ring.lock();
            if self.cursor < ring.floor || self.generation != ring.generation {
                return Err(Error::Compacted { requested: self.cursor, compacted: ring.floor });
            }
            let start = ring.events.partition_point(|event| event.revision <= self.cursor);
            let mut seen = 0;
            for event in ring.events.range(start..) {
                if event.revision > ring.whole || seen >= BATCH && event.revision != self.cursor {
                    break;
                }
                seen += 1;
                self.cursor = event.revision;
                if self.only.as_ref().is_none_or(|only| only.has(event.key())) {
                    taken.push(event.clone());
                }
            }
            if !taken.is_empty() {
                return Ok(taken);
            }
            if seen == 0 {
                return if ring.closed { Err(Error::Closed) } else { Ok(taken) };
            }
        }
    }

    /// The revision up to which every event has been delivered: a bookmark. A watch resumed after it misses nothing.
    pub fn progress(&mut self) -> Revision {
        // Nothing is published while the lock is held, so an empty rest of the feed means: up to date with `revision`.
        let state = self.state.read();
        let ring = self.feed.ring.lock();
        if ring.events.back().is_none_or(|newest| newest.revision <= self.cursor) && self.cursor >= ring.floor {
            self.cursor = state.revision();
        }
        self.cursor
    }
}
