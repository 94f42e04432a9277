//! Back-off by key with upstream's rule (client-go's `flowcontrol.Backoff`): an entry doubles each time it is used and is
//! forgotten after twice the longest delay. Pure: time is an argument.

use std::collections::HashMap;
use std::time::Duration;

use jiff::Timestamp;

#[derive(Clone, Copy, Debug)]
struct Entry {
    delay: Duration,
    updated: Timestamp,
}

#[derive(Clone, Debug)]
pub struct Backoff {
    first: Duration,
    longest: Duration,
    entries: HashMap<String, Entry>,
}

impl Backoff {
    pub fn new(first: Duration, longest: Duration) -> Self {
        Backoff { first: first.min(longest), longest, entries: HashMap::new() }
    }

    /// The delay in force for `key` and when it ends, counted from `since`; none if the next attempt may be made at once.
    pub fn blocked(&self, key: &str, since: Timestamp, now: Timestamp) -> Option<(Duration, Timestamp)> {
        let entry = self.entries.get(key)?;
        if self.expired(entry, since) {
            return None;
        }
        let until = since.checked_add(entry.delay).unwrap_or(Timestamp::MAX);
        (now < until).then_some((entry.delay, until))
    }

    /// Counts an attempt for `key` whose predecessor ended at `since`; the attempt after it will wait longer.
    pub fn next(&mut self, key: &str, since: Timestamp, now: Timestamp) {
        let delay = match self.entries.get(key) {
            Some(entry) if !self.expired(entry, since) => (entry.delay * 2).min(self.longest),
            _ => self.first,
        };
        self.entries.insert(key.to_owned(), Entry { delay, updated: now });
    }

    pub fn forget(&mut self, key: &str) {
        self.entries.remove(key);
    }

    fn expired(&self, entry: &Entry, since: Timestamp) -> bool {
        let idle = since.duration_since(entry.updated);
        idle.is_positive() && idle.unsigned_abs() > self.longest * 2
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(second).unwrap()
    }

    #[test]
    fn the_first_restart_is_free_then_delays_double_to_the_longest_and_are_forgotten_after_a_good_run() {
        let mut backoff = Backoff::new(Duration::from_secs(10), Duration::from_secs(300));
        let mut now = 0;
        let mut waits = Vec::new();
        for _ in 0..8 {
            let wait = backoff.blocked("c", at(now), at(now)).map_or(0, |(delay, _)| delay.as_secs());
            waits.push(wait);
            let started = now + i64::try_from(wait).unwrap();
            backoff.next("c", at(now), at(started));
            now = started + 1;
        }
        assert_eq!(waits, [0, 10, 20, 40, 80, 160, 300, 300]);
        assert!(backoff.blocked("c", at(now), at(now + 299)).is_some());
        assert!(backoff.blocked("c", at(now), at(now + 300)).is_none());
        let long_after = now + 601;
        assert!(backoff.blocked("c", at(long_after), at(long_after)).is_none());
    }
}
