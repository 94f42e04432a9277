//! The commit thread: takes whatever is queued, decides it, appends it, syncs once, makes it visible, acknowledges.
//!
//! While one batch is being synced the next one queues up: that is the group commit, no timer takes part. All changes of
//! the state are made here (but for compaction asked for by a caller), so a decision cannot be overtaken.

use std::sync::Arc;
use std::time::Instant;

use parking_lot::RwLock;
use tokio::sync::oneshot;

use crate::inbox::{Inbox, Received};
use crate::plan::Pending;
use crate::state::{State, Visible};
use crate::{Error, Options, Outcome, Txn, Value};

type Reply<V> = oneshot::Sender<Result<Outcome<V>, Error>>;

pub(crate) enum Request<V> {
    Commit { txn: Txn, reply: Reply<V> },
}

pub(crate) struct Engine<V> {
    pub state: Arc<RwLock<State<V>>>,
    pub inbox: Arc<Inbox<Request<V>>>,
    pub options: Options,
}

impl<V: Value> Engine<V> {
    /// Works until the inbox is closed.
    pub(crate) fn run(mut self) {
        loop {
            let deadline = self.state.read().next_expiry(&self.options);
            match self.inbox.receive(deadline) {
                Received::Items(requests) => self.commit(requests),
                Received::TimedOut => {}
                Received::Closed => break,
            }
            self.compact();
        }
    }

    fn commit(&mut self, requests: Vec<Request<V>>) {
        let mut replies = Vec::with_capacity(requests.len());
        let mut pending = Pending::after(&self.state.read());
        for request in requests {
            let Request::Commit { txn, reply } = request;
            replies.push((reply, pending.decide(&self.state, txn, &self.options)));
        }
        let visible = Visible { events: pending.events, revision: pending.revision };
        let wake = self.state.write().publish(visible, Instant::now());
        for feed in wake {
            feed.wake();
        }
        for (reply, outcome) in replies {
            // A caller that went away does not undo its transaction.
            let _ = reply.send(outcome);
        }
    }

    fn compact(&mut self) {
        loop {
            let dropped = self.state.write().compact_step(&self.options, Instant::now());
            if dropped.is_empty() {
                return;
            }
        }
    }
}

impl<V> Drop for Engine<V> {
    /// However the thread ends, nobody waits for it any more.
    fn drop(&mut self) {
        self.inbox.close();
        self.state.write().close();
    }
}
