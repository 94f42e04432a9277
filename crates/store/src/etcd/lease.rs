//! Keys that go away by themselves hang on leases, which cost etcd more than keys: those that are due at about the same time
//! share one, as upstream's lease manager has it.

use std::time::Duration;

use parking_lot::Mutex;
use tokio::time::Instant;

use super::client::Client;
use super::wire::{self, method};
use crate::Error;

/// A key may live longer than it was given by so much, or by the part below, whichever is less.
const SLACK_MAX: Duration = Duration::from_secs(60);
const SLACK_PART: f64 = 0.05;
/// At the end of a lease its keys are deleted in one transaction.
const KEYS_MAX: usize = 1000;

#[derive(Clone, Copy, Debug)]
struct Lease {
    id: i64,
    ends: Instant,
    keys: usize,
}

#[derive(Default)]
pub(crate) struct Leases {
    known: Mutex<Vec<Lease>>,
    /// Held while one is granted, so that those who wait for the same get the same.
    granting: tokio::sync::Mutex<()>,
}

impl Leases {
    /// One that ends in `ttl`, or a little later.
    pub(crate) async fn lease(&self, client: &Client, ttl: Duration) -> Result<i64, Error> {
        if let Some(id) = self.find(ttl) {
            return Ok(id);
        }
        let _granting = self.granting.lock().await;
        if let Some(id) = self.find(ttl) {
            return Ok(id);
        }
        let life = whole_seconds(ttl + slack(ttl));
        let request = wire::LeaseGrantRequest { ttl: i64::try_from(life).unwrap_or(i64::MAX), id: 0 };
        // Before the call, since the lease may begin at any moment during it.
        let asked = Instant::now();
        // One that was granted but not heard of ends by itself.
        let granted: wire::LeaseGrantResponse = client.repeatable(method::LEASE_GRANT, &request).await?;
        if !granted.error.is_empty() {
            return Err(Error::Datastore { reason: granted.error });
        }
        let life = Duration::from_secs(u64::try_from(granted.ttl).unwrap_or(life));
        self.known.lock().push(Lease { id: granted.id, ends: asked + life, keys: 1 });
        Ok(granted.id)
    }

    fn find(&self, ttl: Duration) -> Option<i64> {
        let now = Instant::now();
        let mut known = self.known.lock();
        known.retain(|lease| lease.ends > now);
        let lease = known.iter_mut().find(|lease| {
            let left = lease.ends - now;
            left >= ttl && left <= ttl + 2 * slack(ttl) && lease.keys < KEYS_MAX
        })?;
        lease.keys += 1;
        Some(lease.id)
    }

    pub(crate) fn forget(&self, id: i64) {
        self.known.lock().retain(|lease| lease.id != id);
    }
}

fn slack(ttl: Duration) -> Duration {
    ttl.mul_f64(SLACK_PART).min(SLACK_MAX)
}

/// Upwards: nothing goes before its time.
fn whole_seconds(duration: Duration) -> u64 {
    duration.as_secs() + u64::from(duration.subsec_nanos() > 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn leases_are_shared_by_what_is_due_soon_after() {
        let leases = Leases::default();
        let hour = Duration::from_secs(3600);
        let lease = |id, life| Lease { id, ends: Instant::now() + life, keys: KEYS_MAX - 1 };
        leases.known.lock().extend([lease(1, hour - Duration::from_secs(1)), lease(2, hour + SLACK_MAX)]);
        assert_eq!(leases.find(hour), Some(2), "not one that ends too early");
        assert_eq!(leases.find(hour), None, "nor one that is full");
        leases.forget(1);
        assert_eq!(leases.find(hour - SLACK_MAX), None);
        assert_eq!((whole_seconds(Duration::from_millis(1001)), slack(Duration::from_secs(20)).as_secs()), (2, 1));
    }
}
