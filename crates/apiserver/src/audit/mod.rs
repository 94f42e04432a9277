//! Audit: a record of who asked for what, and what came of it, by a policy that says of which requests and how much.
//!
//! `policy` decides, `record` follows one request through the server and makes an event of each stage, `sink` brings events to where
//! they are kept (`file`, `webhook`). Where no auditor is set, a request costs one look at a pointer. Must not know: kinds.

mod event;
mod file;
mod metrics;
mod policy;
mod record;
mod sink;
#[cfg(test)]
pub(crate) mod testing;
mod webhook;

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use futures::future::join_all;
use parking_lot::Mutex;
use tokio_util::sync::CancellationToken;

use crate::metrics::Text;
use event::Event;
use metrics::Counters;
use sink::{Sink, Target, Worker};

pub use event::Micros;
pub use file::Rotation;
pub use policy::{Level, Policy, Stage};
pub use record::{Arrival, Hold, Record};
pub use sink::{Batch, Delivery, Format, Mode, Truncation};

/// Where events go: to a log, to a webhook, or to both.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Options {
    pub log: Option<LogOptions>,
    pub webhook: Option<WebhookOptions>,
}

#[derive(Clone, Debug, PartialEq)]
pub struct LogOptions {
    /// `-` is standard output.
    pub path: String,
    pub format: Format,
    pub rotation: Rotation,
    pub delivery: Delivery,
}

#[derive(Clone, Debug, PartialEq)]
pub struct WebhookOptions {
    /// A kubeconfig.
    pub config_file: PathBuf,
    /// Before a failed request is made again for the first time.
    pub initial_backoff: Duration,
    pub delivery: Delivery,
}

/// Records requests. Set once for a server, before it serves.
pub struct Auditor {
    policy: Policy,
    sinks: Vec<Sink>,
    workers: Mutex<Vec<Worker>>,
    counters: Arc<Counters>,
    stop: CancellationToken,
}

impl Auditor {
    /// Opens the log and reads the webhook's configuration; the error says what of them cannot be used. Call it within a runtime.
    pub fn new(policy: Policy, options: &Options) -> Result<Arc<Self>, String> {
        let (counters, stop) = (Arc::<Counters>::default(), CancellationToken::new());
        let (mut sinks, mut workers) = (Vec::new(), Vec::new());
        let mut add = |target, delivery| {
            let (sink, worker) = Sink::new(target, delivery, counters.clone(), stop.clone());
            sinks.push(sink);
            workers.extend(worker);
        };
        if let Some(log) = &options.log {
            let output = file::Output::open(&log.path, log.rotation.clone());
            let output = output.map_err(|error| format!("ensureLogFile: {}: {error}", log.path))?;
            add(Target::Log(output, log.format), &log.delivery);
        }
        if let Some(hook) = &options.webhook {
            let webhook = webhook::Webhook::from_kubeconfig(&hook.config_file, hook.initial_backoff);
            let webhook = webhook.map_err(|why| format!("initializing audit webhook: {why}"))?;
            add(Target::Webhook(Box::new(webhook)), &hook.delivery);
        }
        Ok(Arc::new(Auditor { policy, sinks, workers: Mutex::new(workers), counters, stop }))
    }

    /// Hands an event to all sinks. False where one of them had to keep it and did not.
    async fn process(&self, event: &Arc<Event>) -> bool {
        self.counters.event();
        let mut all = true;
        for sink in &self.sinks {
            all &= sink.process(event).await;
        }
        all
    }

    fn process_detached(&self, event: &Arc<Event>) {
        self.counters.event();
        for sink in &self.sinks {
            sink.process_detached(event);
        }
    }

    /// Until what waits in queues has been kept, as far as it can be. No request may come after this.
    pub async fn shutdown(&self) {
        self.stop.cancel();
        let workers = std::mem::take(&mut *self.workers.lock());
        join_all(workers).await;
    }

    pub(crate) fn render(&self, text: &mut Text) {
        self.counters.render(text);
    }
}
