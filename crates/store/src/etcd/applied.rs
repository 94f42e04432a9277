//! How far the index has come, and who waits for it to come further.

use std::collections::BTreeMap;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::{Notify, oneshot};

use crate::{Error, Revision};

/// An index that is so far behind a majority of the cluster cannot be used for what is to be up to date.
const APPLY_WITHIN: Duration = Duration::from_secs(10);
/// And after this long the watch is looked for at another member.
const OVERDUE_AFTER: Duration = Duration::from_secs(3);

type Waiters = BTreeMap<Revision, Vec<oneshot::Sender<Result<(), Error>>>>;

pub(crate) struct Applied {
    inner: Mutex<Inner>,
    overdue: Notify,
}

struct Inner {
    revision: Revision,
    waiters: Waiters,
    failed: Option<Error>,
}

impl Applied {
    pub(crate) fn new(revision: Revision) -> Self {
        let inner = Inner { revision, waiters: Waiters::new(), failed: None };
        Applied { inner: Mutex::new(inner), overdue: Notify::new() }
    }

    /// To be called after the index shows `revision`.
    pub(crate) fn advance(&self, revision: Revision) {
        let mut inner = self.inner.lock();
        inner.revision = revision;
        let later = inner.waiters.split_off(&(revision + 1));
        let reached = std::mem::replace(&mut inner.waiters, later);
        drop(inner);
        for waiter in reached.into_values().flatten() {
            // One that has gone away does not want to know.
            let _ = waiter.send(Ok(()));
        }
    }

    /// Nobody needs to wait any more, nor will.
    pub(crate) fn fail(&self, error: &Error) {
        let mut inner = self.inner.lock();
        inner.failed.get_or_insert_with(|| error.clone());
        let waiters = std::mem::take(&mut inner.waiters);
        drop(inner);
        for waiter in waiters.into_values().flatten() {
            let _ = waiter.send(Err(error.clone()));
        }
    }

    /// Returns when somebody has waited for too long.
    pub(crate) async fn overdue(&self) {
        self.overdue.notified().await;
    }

    /// Returns when the index shows `revision`.
    pub(crate) async fn reach(&self, revision: Revision) -> Result<(), Error> {
        let reached = {
            let mut inner = self.inner.lock();
            if inner.revision >= revision {
                return Ok(());
            }
            if let Some(error) = &inner.failed {
                return Err(error.clone());
            }
            let (sender, reached) = oneshot::channel();
            inner.waiters.entry(revision).or_default().push(sender);
            reached
        };
        let mut reached = std::pin::pin!(reached);
        let mut outcome = tokio::time::timeout(OVERDUE_AFTER, &mut reached).await;
        if outcome.is_err() {
            self.overdue.notify_waiters();
            outcome = tokio::time::timeout(APPLY_WITHIN - OVERDUE_AFTER, reached).await;
        }
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => Err(Error::Closed),
            Err(_) => {
                let reason = format!("no news of revision {revision} within {APPLY_WITHIN:?}");
                Err(Error::Unavailable { reason })
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn waiters_are_told_at_their_revision_and_not_before() {
        let applied = Applied::new(5);
        applied.reach(5).await.unwrap();
        let mut six = std::pin::pin!(applied.reach(6));
        let mut eight = std::pin::pin!(applied.reach(8));
        assert!(futures::poll!(&mut six).is_pending() && futures::poll!(&mut eight).is_pending());
        applied.advance(7);
        assert!(matches!(futures::poll!(&mut six), std::task::Poll::Ready(Ok(()))));
        assert!(futures::poll!(&mut eight).is_pending());
        applied.fail(&Error::Closed);
        assert!(matches!(eight.await, Err(Error::Closed)));
        assert!(matches!(applied.reach(8).await, Err(Error::Closed)));
        applied.reach(7).await.unwrap();
    }
}
