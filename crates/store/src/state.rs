//! What readers see: the ordered index, the history ring and the feeds of the watchers.
//!
//! Must not know: disks or threads. The caller holds the lock.
//!
//! Invariants:
//! 1. `index` holds exactly the live keys as of `revision`.
//! 2. `history` holds every event with a revision in `(compacted, revision]`, in order; so any state from `compacted` on
//!    can be had by undoing events.
//! 3. `expiries` holds exactly the live keys that expire.
//! 4. A feed holds every event of `history` under its prefix that is newer than its floor.

use std::collections::{BTreeMap, BTreeSet, HashMap, VecDeque};
use std::ops::Bound;
use std::sync::Arc;
use std::time::Instant;

use crate::feed::Feed;
use crate::{Change, Entry, Error, Event, Listing, Options, Range, Revision};

/// Events dropped in one go, to keep the time under the lock short.
const COMPACT_STEP: usize = 512;

pub(crate) struct State<V> {
    index: BTreeMap<Arc<str>, Arc<Entry<V>>>,
    revision: Revision,
    compacted: Revision,
    history: VecDeque<Arc<Event<V>>>,
    /// When the newest event of each commit batch came, for compaction by age.
    marks: VecDeque<(Instant, Revision)>,
    /// Bytes that only the history keeps alive.
    history_bytes: u64,
    live_bytes: u64,
    /// Of the live keys that have one: when they expire, in milliseconds since the Unix epoch.
    expiries: BTreeSet<(u64, Arc<str>)>,
    /// Of the live keys those whose value cannot be opened.
    unreadable: BTreeSet<Arc<str>>,
    feeds: HashMap<Box<str>, Arc<Feed<V>>>,
    closed: bool,
}

/// What a commit batch hands over at the moment it becomes visible.
pub(crate) struct Visible<V> {
    /// In revision order.
    pub events: Vec<Arc<Event<V>>>,
    pub revision: Revision,
}

impl<V> State<V> {
    pub(crate) fn new(entries: Vec<Arc<Entry<V>>>, revision: Revision) -> Self {
        let live_bytes = entries.iter().map(|entry| entry.size()).sum();
        let expiries = entries.iter().filter_map(expiry).collect();
        let unreadable = entries.iter().filter(|entry| entry.unreadable().is_some());
        let unreadable = unreadable.map(|entry| entry.key.clone()).collect();
        State {
            index: entries.into_iter().map(|entry| (entry.key.clone(), entry)).collect(),
            revision,
            compacted: revision,
            history: VecDeque::new(),
            marks: VecDeque::new(),
            history_bytes: 0,
            live_bytes,
            expiries,
            unreadable,
            feeds: HashMap::new(),
            closed: false,
        }
    }

    pub(crate) fn revision(&self) -> Revision {
        self.revision
    }

    /// The newest moment that a live key was written at as far as is known, in milliseconds since the Unix epoch.
    pub(crate) fn newest_ms(&self) -> u64 {
        let written = |entry: &Arc<Entry<V>>| entry.expiry.as_ref().map(|expiry| expiry.written_ms());
        self.index.values().filter_map(written).max().unwrap_or(0)
    }

    /// When the first key expires, in milliseconds since the Unix epoch.
    pub(crate) fn next_key_expiry(&self) -> Option<u64> {
        self.expiries.first().map(|(at_ms, _)| *at_ms)
    }

    /// Up to `limit` live keys that expire until `now_ms`, oldest first.
    pub(crate) fn expired_keys(&self, now_ms: u64, limit: usize) -> Vec<Arc<str>> {
        let due = self.expiries.iter().take_while(|(at_ms, _)| *at_ms <= now_ms);
        due.take(limit).map(|(_, key)| key.clone()).collect()
    }

    pub(crate) fn live_bytes(&self) -> u64 {
        self.live_bytes
    }

    /// Number of live keys.
    pub(crate) fn len(&self) -> usize {
        self.index.len()
    }

    pub(crate) fn get(&self, key: &str) -> Option<&Arc<Entry<V>>> {
        self.index.get(key)
    }

    /// Up to `limit` live entries after `after`, for walks that let the lock go in between.
    pub(crate) fn page(&self, after: Option<&str>, limit: usize) -> Vec<Arc<Entry<V>>> {
        let from = after.map_or(Bound::Unbounded, Bound::Excluded);
        self.index.range::<str, _>((from, Bound::Unbounded)).take(limit).map(|(_, entry)| entry.clone()).collect()
    }

    pub(crate) fn range(&self, query: &Range) -> Result<Listing<V>, Error> {
        let revision = query.revision.unwrap_or(self.revision);
        self.check_readable(revision)?;
        let mut listing = Listing { entries: Vec::new(), more: false, remaining: 0, revision };
        if query.start >= query.end {
            return Ok(listing);
        }
        let bounds = (Bound::Included(query.start.as_str()), Bound::Excluded(query.end.as_str()));
        let limit = if query.limit == 0 { usize::MAX } else { query.limit };
        let live = self.index.range::<str, _>(bounds).map(|(_, entry)| entry);
        if revision == self.revision {
            fill(&mut listing, limit, live);
        } else {
            let past = self.changed_since(revision, &query.start, &query.end);
            fill(&mut listing, limit, undo(live, past));
        }
        listing.more = listing.remaining > 0;
        Ok(listing)
    }

    /// For each key in the range that changed after `revision`: what it was then.
    fn changed_since(&self, revision: Revision, start: &str, end: &str) -> BTreeMap<&str, Option<&Arc<Entry<V>>>> {
        let mut past = BTreeMap::new();
        for event in self.history.range(self.position_after(revision)..) {
            let key = event.key();
            if start <= key && key < end {
                past.entry(key).or_insert(event.previous.as_ref());
            }
        }
        past
    }

    /// What happened after `revision`, and the newest revision; none if that is not known any more.
    pub(crate) fn changed_after(&self, revision: Revision) -> Option<(Revision, Vec<Arc<Event<V>>>)> {
        let known = self.check_readable(revision).is_ok();
        known.then(|| (self.revision, self.history.range(self.position_after(revision)..).cloned().collect()))
    }

    fn position_after(&self, revision: Revision) -> usize {
        self.history.partition_point(|event| event.revision <= revision)
    }

    fn check_readable(&self, revision: Revision) -> Result<(), Error> {
        if revision > self.revision {
            return Err(Error::FutureRevision { requested: revision, current: self.revision });
        }
        if revision < self.compacted {
            return Err(Error::Compacted { requested: revision, compacted: self.compacted });
        }
        Ok(())
    }

    /// Makes a batch visible. Returns the feeds that have something new, to be woken without the lock.
    pub(crate) fn publish(&mut self, visible: Visible<V>, now: Instant) -> Vec<Arc<Feed<V>>> {
        let mut wake = Vec::new();
        if !visible.events.is_empty() {
            self.marks.push_back((now, visible.revision));
        }
        for event in visible.events {
            // First, since a put may set the same moment again.
            if let Some(gone) = event.previous.as_ref().and_then(expiry) {
                self.expiries.remove(&gone);
            }
            if event.previous.as_ref().is_some_and(|previous| previous.unreadable().is_some()) {
                self.unreadable.remove(event.key());
            }
            match &event.change {
                Change::Put(entry) => {
                    self.live_bytes += entry.size();
                    self.expiries.extend(expiry(entry));
                    self.unreadable.extend(entry.unreadable().map(|_| entry.key.clone()));
                    self.index.insert(entry.key.clone(), entry.clone());
                }
                Change::Delete(tombstone) => {
                    self.index.remove(&tombstone.key);
                }
            }
            if let Some(previous) = &event.previous {
                self.live_bytes -= previous.size();
                self.history_bytes += previous.size();
            }
            self.feed_event(&event, &mut wake);
            self.history.push_back(event);
        }
        self.revision = visible.revision;
        wake
    }

    fn feed_event(&mut self, event: &Arc<Event<V>>, wake: &mut Vec<Arc<Feed<V>>>) {
        if self.feeds.is_empty() {
            return;
        }
        for prefix in feed_prefixes(event.key()) {
            let Some(feed) = self.feeds.get(prefix) else { continue };
            // Watchers are made under the write lock, so a feed that only the table holds stays unwatched.
            if Arc::strong_count(feed) == 1 {
                self.feeds.remove(prefix);
            } else if feed.push(event.clone()) {
                wake.push(feed.clone());
            }
        }
    }

    /// The feed of `prefix`, complete for events after `after`.
    pub(crate) fn subscribe(&mut self, prefix: &str, after: Revision) -> Result<Arc<Feed<V>>, Error> {
        if self.closed {
            return Err(Error::Closed);
        }
        self.check_readable(after)?;
        let feed = match self.feeds.get(prefix) {
            Some(feed) => feed.clone(),
            None => {
                self.feeds.retain(|_, feed| Arc::strong_count(feed) > 1);
                let feed = Arc::new(Feed::new(self.revision));
                self.feeds.insert(prefix.into(), feed.clone());
                feed
            }
        };
        let floor = feed.floor();
        if after < floor {
            let missing = self.history.range(self.position_after(after)..self.position_after(floor));
            feed.extend_back(after, missing.filter(|event| in_feed(prefix, event.key())).cloned());
        }
        Ok(feed)
    }

    /// When the oldest event will be due for compaction by age.
    pub(crate) fn next_expiry(&self, options: &Options) -> Option<Instant> {
        self.marks.front().map(|(at, _)| *at + options.history_age)
    }

    /// Drops some of the history beyond the bounds; call again while it returns anything. What it returns is to be
    /// dropped without the lock.
    pub(crate) fn compact_step(&mut self, options: &Options, now: Instant) -> Vec<Arc<Event<V>>> {
        let expired = self.marks.partition_point(|(at, _)| *at + options.history_age <= now);
        let target = expired.checked_sub(1).map_or(self.compacted, |last| self.marks[last].1);
        let mut dropped = Vec::new();
        while let Some(oldest) = self.history.front() {
            // A transaction is dropped whole.
            let same = dropped.last().is_some_and(|last: &Arc<Event<V>>| last.revision == oldest.revision);
            let beyond = oldest.revision <= target
                || self.history.len() > options.history_events
                || self.history_bytes > options.history_bytes;
            if !same && (!beyond || dropped.len() >= COMPACT_STEP) {
                break;
            }
            dropped.extend(self.drop_oldest());
        }
        self.drop_marks();
        dropped
    }

    /// Forgets history up to and with `revision`.
    pub(crate) fn compact_to(&mut self, revision: Revision) -> Result<Vec<Arc<Event<V>>>, Error> {
        self.check_readable(revision)?;
        let mut dropped = Vec::new();
        while self.history.front().is_some_and(|oldest| oldest.revision <= revision) {
            dropped.extend(self.drop_oldest());
        }
        self.compacted = revision;
        self.drop_marks();
        Ok(dropped)
    }

    fn drop_marks(&mut self) {
        while self.marks.front().is_some_and(|(_, revision)| *revision <= self.compacted) {
            self.marks.pop_front();
        }
    }

    fn drop_oldest(&mut self) -> Option<Arc<Event<V>>> {
        let event = self.history.pop_front()?;
        self.compacted = event.revision;
        if let Some(previous) = &event.previous {
            self.history_bytes -= previous.size();
        }
        for prefix in feed_prefixes(event.key()) {
            if let Some(feed) = self.feeds.get(prefix) {
                feed.drop_until(event.revision);
            }
        }
        Some(event)
    }

    /// Starts anew with the state of a later revision, of which it is not known how it came about. Returns what there was, to be
    /// dropped without the lock.
    pub(crate) fn reset(&mut self, entries: Vec<Arc<Entry<V>>>, revision: Revision) -> Self {
        let mut fresh = State::new(entries, revision);
        fresh.feeds = std::mem::take(&mut self.feeds);
        fresh.closed = self.closed;
        for feed in fresh.feeds.values() {
            feed.reset(revision);
        }
        std::mem::replace(self, fresh)
    }

    /// The live entries whose value cannot be opened.
    pub(crate) fn unreadable(&self) -> Vec<Arc<Entry<V>>> {
        self.unreadable.iter().filter_map(|key| self.index.get(key)).cloned().collect()
    }

    /// Puts the same versions in another form in the place of those that are still there. Watchers of them have to list again.
    pub(crate) fn replace<'a>(&mut self, pairs: impl IntoIterator<Item = (&'a Arc<Entry<V>>, Arc<Entry<V>>)>)
    where
        V: 'a,
    {
        for (old, new) in pairs {
            let Some(slot) = self.index.get_mut(&old.key).filter(|now| Arc::ptr_eq(now, old)) else { continue };
            if new.unreadable().is_none() {
                self.unreadable.remove(&new.key);
            }
            *slot = new;
            for prefix in feed_prefixes(&old.key) {
                if let Some(feed) = self.feeds.get(prefix) {
                    feed.invalidate();
                }
            }
        }
    }

    /// The retained events of one revision.
    pub(crate) fn events_of(&self, revision: Revision) -> impl Iterator<Item = &Arc<Event<V>>> {
        let from = self.position_after(revision.saturating_sub(1));
        self.history.range(from..).take_while(move |event| event.revision == revision)
    }

    /// Ends all watches.
    pub(crate) fn close(&mut self) {
        self.closed = true;
        for feed in self.feeds.values() {
            feed.close();
        }
    }
}

fn expiry<V>(entry: &Arc<Entry<V>>) -> Option<(u64, Arc<str>)> {
    entry.expiry.as_ref().map(|expiry| (expiry.at_ms, entry.key.clone()))
}

/// Takes up to `limit` entries and counts the rest.
fn fill<'a, V: 'a>(listing: &mut Listing<V>, limit: usize, mut entries: impl Iterator<Item = &'a Arc<Entry<V>>>) {
    listing.entries.extend(entries.by_ref().take(limit).cloned());
    listing.remaining = entries.count();
}

/// The live entries with those that changed since replaced by what they were, in key order.
fn undo<'a, V>(
    live: impl Iterator<Item = &'a Arc<Entry<V>>>,
    past: BTreeMap<&'a str, Option<&'a Arc<Entry<V>>>>,
) -> impl Iterator<Item = &'a Arc<Entry<V>>> {
    let mut live = live.peekable();
    let mut past = past.into_iter().peekable();
    std::iter::from_fn(move || {
        loop {
            let Some((key, _)) = past.peek() else { return live.next() };
            match live.peek() {
                Some(entry) if (*entry.key).cmp(key).is_lt() => return live.next(),
                Some(entry) if *entry.key == **key => _ = live.next(),
                _ => {}
            }
            if let Some((_, Some(entry))) = past.next() {
                return Some(entry);
            }
        }
    })
}

/// The names of the feeds that an event of `key` belongs to: the key itself, and every prefix of it that ends in `/`,
/// the empty one included.
fn feed_prefixes(key: &str) -> impl Iterator<Item = &str> {
    let directories = key.match_indices('/').map(|(at, _)| &key[..=at]);
    std::iter::once("").chain(directories).chain((!key.ends_with('/')).then_some(key))
}

fn in_feed(name: &str, key: &str) -> bool {
    if name.is_empty() || name.ends_with('/') { key.starts_with(name) } else { key == name }
}
