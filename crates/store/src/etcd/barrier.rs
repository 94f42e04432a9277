//! Reading what everybody has written, not only what has come here yet.
//!
//! A question for the newest revision that is under way already may have been answered before the caller's moment, so it does not serve
//! it. The next one does, together with all that ask meanwhile: however many wait, one question is under way.

use std::sync::Arc;

use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinSet;

use super::Core;
use crate::{Error, Revision, Value};

/// Callers that wait for the next question; more wait to be let in.
const QUEUE: usize = 4096;

type Reply = oneshot::Sender<Result<Revision, Error>>;

pub(crate) struct Barrier {
    asks: mpsc::Sender<Reply>,
}

impl Barrier {
    pub(crate) fn start<V: Value>(core: Arc<Core<V>>, tasks: &mut JoinSet<()>) -> Self {
        let (asks, asked) = mpsc::channel(QUEUE);
        tasks.spawn(run(core, asked));
        Barrier { asks }
    }

    /// Returns when the index shows all that had been acknowledged when this was called.
    pub(crate) async fn pass<V>(&self, core: &Core<V>) -> Result<(), Error> {
        let (reply, answer) = oneshot::channel();
        self.asks.send(reply).await.map_err(|_| Error::Closed)?;
        let revision = answer.await.map_err(|_| Error::Closed)??;
        core.applied.reach(revision).await
    }
}

async fn run<V: Value>(core: Arc<Core<V>>, mut asked: mpsc::Receiver<Reply>) {
    let mut waiting = Vec::new();
    while asked.recv_many(&mut waiting, QUEUE).await > 0 {
        let shown = core.state.read().revision();
        let newest = core.client.newest_revision().await;
        let newest = newest.and_then(|newest| core.check_revision(shown, newest).map(|()| newest));
        for reply in waiting.drain(..) {
            // One that has gone away does not want to know.
            let _ = reply.send(newest.clone());
        }
    }
}
