//! How long failed pods are waited out before they are replaced: 10 s, doubled with each failure in a row, at most ten
//! minutes. Pure.

use std::sync::Arc;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use k8s_openapi::api::core::v1::Pod;

use crate::pods;

const FIRST: Duration = Duration::from_secs(10);
const MAX: Duration = Duration::from_secs(10 * 60);

/// The failures of a Job since its last success. Kept in memory only, as upstream's: a restart forgives.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Record {
    pub failures: u32,
    pub last: Option<Timestamp>,
}

impl Record {
    /// The record after these pods have newly ended.
    pub fn after(self, succeeded: &[&Arc<Pod>], failed: &[&Arc<Pod>]) -> Record {
        let last = |times: &[Timestamp]| times.iter().max().copied();
        let failed: Vec<Timestamp> = failed.iter().map(|pod| finished_at(pod)).collect();
        let succeeded: Vec<Timestamp> = succeeded.iter().map(|pod| finished_at(pod)).collect();
        let count = |times: &[Timestamp]| u32::try_from(times.len()).unwrap_or(u32::MAX);
        match last(&succeeded) {
            None if failed.is_empty() => self,
            None => Record { failures: self.failures.saturating_add(count(&failed)), last: last(&failed) },
            Some(success) => {
                let later: Vec<Timestamp> = failed.into_iter().filter(|at| *at > success).collect();
                Record { failures: count(&later), last: last(&later) }
            }
        }
    }

    /// What is left of the wait.
    pub fn wait(self, now: Timestamp) -> Duration {
        match self.last {
            Some(last) if self.failures > 0 => remaining(self.failures, last, now),
            _ => Duration::ZERO,
        }
    }
}

/// What is left of the wait after `failures` in a row, of which the last was at `last`.
pub fn remaining(failures: u32, last: Timestamp, now: Timestamp) -> Duration {
    let doubled = 2u32.saturating_pow(failures.saturating_sub(1));
    let full = FIRST.saturating_mul(doubled).min(MAX);
    let elapsed = now.duration_since(last).max(SignedDuration::ZERO).unsigned_abs();
    full.saturating_sub(elapsed)
}

/// When the pod ended: as its containers say, else its condition, else its deletion; its creation if nothing says.
pub fn finished_at(pod: &Pod) -> Timestamp {
    let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
    from_containers(pod).or_else(|| unready_since(pod)).or_else(|| deleted_at(pod)).unwrap_or(created)
}

/// The end of the last container, if all have ended.
fn from_containers(pod: &Pod) -> Option<Timestamp> {
    let statuses = pod.status.as_ref()?.container_statuses.as_ref()?;
    let ends: Option<Vec<Timestamp>> = statuses
        .iter()
        .map(|container| container.state.as_ref()?.terminated.as_ref()?.finished_at.as_ref().map(|time| time.0))
        .collect();
    ends?.into_iter().max()
}

fn unready_since(pod: &Pod) -> Option<Timestamp> {
    let ready = pods::condition(pod, "Ready").filter(|ready| ready.status == "False")?;
    ready.last_transition_time.as_ref().map(|time| time.0)
}

fn deleted_at(pod: &Pod) -> Option<Timestamp> {
    let due = pod.metadata.deletion_timestamp.as_ref()?.0;
    let grace = pod.metadata.deletion_grace_period_seconds.unwrap_or(0);
    due.checked_sub(SignedDuration::from_secs(grace)).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{ago, now, pod};

    #[test]
    fn waits_double_up_to_ten_minutes() {
        let waits: Vec<u64> =
            [1, 2, 3, 6, 7, 40].iter().map(|failures| remaining(*failures, now(), now()).as_secs()).collect();
        assert_eq!(waits, [10, 20, 40, 320, 600, 600]);
        assert_eq!(remaining(2, ago(15).0, now()).as_secs(), 5);
        assert_eq!(remaining(2, ago(25).0, now()), Duration::ZERO);
    }

    #[test]
    fn a_success_forgives_earlier_failures() {
        let at = |seconds: i64| Arc::new(pod(&format!("{{ name: p, age: {seconds} }}")));
        let (old, middle, new) = (at(30), at(20), at(10));
        let record = Record::default().after(&[], &[&old, &middle]);
        assert_eq!(record, Record { failures: 2, last: Some(ago(20).0) });
        assert_eq!(record.after(&[], &[]), record);
        assert_eq!(record.after(&[&new], &[]), Record::default());
        assert_eq!(record.after(&[&middle], &[&old, &new]), Record { failures: 1, last: Some(ago(10).0) });
    }
}
