//! The time by which keys expire: that of the wall, but it never goes back.
//!
//! Within a process it runs with the monotonic clock, so that nothing that is done to the system's clock shortens or
//! prolongs a life. At opening it starts with the system's clock, or with the newest moment that the store has noted, where that
//! is later: a clock that was set back in between, or a board without one that starts in 1970, lets no key live longer than
//! it was given.

use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// When a key goes away by itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Expiry {
    /// Milliseconds since the Unix epoch.
    pub at_ms: u64,
    /// How long it was given, in milliseconds: `at_ms` less this is the moment of the write.
    pub ttl_ms: u64,
}

impl Expiry {
    pub(crate) fn new(now_ms: u64, ttl: Duration) -> Self {
        let ttl_ms = ms(ttl);
        Expiry { at_ms: now_ms.saturating_add(ttl_ms), ttl_ms }
    }

    /// When the key was written.
    pub(crate) fn written_ms(self) -> u64 {
        self.at_ms.saturating_sub(self.ttl_ms)
    }

    pub(crate) fn at(self) -> SystemTime {
        UNIX_EPOCH.checked_add(Duration::from_millis(self.at_ms)).unwrap_or(UNIX_EPOCH + Duration::from_secs(1 << 40))
    }
}

pub(crate) struct Clock {
    started: Instant,
    started_ms: u64,
}

impl Clock {
    /// `system_ms` is what the system's clock says, `newest_ms` the newest moment that the store knows of.
    pub(crate) fn starting(system_ms: u64, newest_ms: u64) -> Self {
        Clock { started: Instant::now(), started_ms: system_ms.max(newest_ms) }
    }

    pub(crate) fn ms_at(&self, instant: Instant) -> u64 {
        self.started_ms.saturating_add(ms(instant.saturating_duration_since(self.started)))
    }

    /// None is further away than can be said.
    pub(crate) fn instant_of(&self, at_ms: u64) -> Option<Instant> {
        self.started.checked_add(Duration::from_millis(at_ms.saturating_sub(self.started_ms)))
    }
}

/// What the system's clock says, in milliseconds since the Unix epoch.
pub(crate) fn system_ms() -> u64 {
    SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, ms)
}

fn ms(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
