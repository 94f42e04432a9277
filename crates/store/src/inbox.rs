//! The bounded queue between async callers and the commit thread.

use std::time::Instant;

use parking_lot::{Condvar, Mutex};
use tokio::sync::Semaphore;

use crate::Error;

struct State<T> {
    items: Vec<T>,
    /// Slots that the items hold; urgent ones hold none.
    slots: usize,
    closed: bool,
}

/// Many async senders, one blocking receiver that takes all there is at once.
pub(crate) struct Inbox<T> {
    state: Mutex<State<T>>,
    ready: Condvar,
    slots: Semaphore,
}

/// What the receiver woke up for.
pub(crate) enum Received<T> {
    Items(Vec<T>),
    TimedOut,
    /// Closed and empty.
    Closed,
}

impl<T> Inbox<T> {
    pub(crate) fn new(capacity: usize) -> Self {
        Inbox {
            state: Mutex::new(State { items: Vec::new(), slots: 0, closed: false }),
            ready: Condvar::new(),
            slots: Semaphore::new(capacity.max(1)),
        }
    }

    /// Waits for room. Cancellation safe: a dropped future has queued nothing.
    pub(crate) async fn send(&self, item: T) -> Result<(), Error> {
        let slot = self.slots.acquire().await.map_err(|_| Error::Closed)?;
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        // The slot is handed back by `receive`, not by this future.
        slot.forget();
        state.items.push(item);
        state.slots += 1;
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Queues beyond the bound: for the few control messages.
    pub(crate) fn send_urgent(&self, item: T) -> Result<(), Error> {
        let mut state = self.state.lock();
        if state.closed {
            return Err(Error::Closed);
        }
        state.items.push(item);
        drop(state);
        self.ready.notify_one();
        Ok(())
    }

    /// Blocks until there is something, or `deadline`.
    pub(crate) fn receive(&self, deadline: Option<Instant>) -> Received<T> {
        let mut state = self.state.lock();
        while state.items.is_empty() {
            if state.closed {
                return Received::Closed;
            }
            match deadline {
                Some(deadline) if self.ready.wait_until(&mut state, deadline).timed_out() => {
                    if state.items.is_empty() && !state.closed {
                        return Received::TimedOut;
                    }
                }
                Some(_) => {}
                None => self.ready.wait(&mut state),
            }
        }
        let items = std::mem::take(&mut state.items);
        let slots = std::mem::take(&mut state.slots);
        drop(state);
        self.slots.add_permits(slots);
        Received::Items(items)
    }

    /// No more sends; what is queued is still received.
    pub(crate) fn close(&self) {
        self.state.lock().closed = true;
        self.slots.close();
        self.ready.notify_all();
    }

    /// Closes and drops what is queued: nobody will receive it any more.
    pub(crate) fn abandon(&self) {
        self.close();
        let dropped = std::mem::take(&mut self.state.lock().items);
        // Outside of the lock: what waits for an item wakes up as it is dropped.
        drop(dropped);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whoever_waits_for_an_abandoned_item_is_told() {
        let inbox = Inbox::new(2);
        let (reply, mut answer) = tokio::sync::oneshot::channel::<()>();
        let runtime = tokio::runtime::Builder::new_current_thread().build().unwrap();
        runtime.block_on(inbox.send(reply)).unwrap();
        assert!(answer.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Empty));
        inbox.abandon();
        assert!(answer.try_recv().is_err_and(|error| error == tokio::sync::oneshot::error::TryRecvError::Closed));
        assert!(matches!(runtime.block_on(inbox.send(tokio::sync::oneshot::channel().0)), Err(Error::Closed)));
    }
}
