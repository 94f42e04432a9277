//! What the components of this process are started with.

use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result};
use client::{ClientFactory, Informers};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// Components get this long to finish what they have in hand.
const STOP_WITHIN: Duration = Duration::from_secs(10);

pub struct Process {
    pub clients: Arc<dyn ClientFactory>,
    pub informers: Informers,
    pub shutdown: CancellationToken,
    pub tasks: TaskTracker,
}

impl Process {
    /// `reader` lists and watches for all components: there is one cache of each kind in a process.
    pub fn new(clients: Arc<dyn ClientFactory>, reader: kube::Client, shutdown: CancellationToken) -> Self {
        Process { clients, informers: Informers::new(reader, shutdown.clone()), shutdown, tasks: TaskTracker::new() }
    }

    /// The context of a component that acts as `user`.
    pub fn context(&self, user: &str, groups: &[&str]) -> client::Context {
        client::Context {
            client: self.clients.client_as(user, groups),
            clients: self.clients.clone(),
            informers: self.informers.clone(),
            shutdown: self.shutdown.clone(),
        }
    }

    /// Waits for the components to end after `shutdown`.
    pub async fn finish(&self) {
        self.tasks.close();
        if tokio::time::timeout(STOP_WITHIN, self.tasks.wait()).await.is_err() {
            tracing::warn!("some components did not stop in time");
        }
    }
}

/// What asks the program to stop.
pub struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    pub fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    pub async fn stop(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
    }
}
