//! The scheduler: chooses a node for every pod that has none.
//!
//! ```text
//! informers ──feed──▶ core: cluster (nodes, pods, counts) + queue ──next──▶ bind │ report │ make room ──API──▶
//! ```
//!
//! [`core`] is pure: changes go in, decisions come out, time and randomness are arguments. A decision ([`decide`]) asks the
//! [`plugin`]s, each about all nodes at once. What pods of one template have in common is worked out once ([`pod::Class`]),
//! what plugins say of a class and a node object is remembered, and pods are counted per node as they come and go
//! ([`cluster::tally`]); so a decision costs a few steps per node, however many pods there are, and a change costs what
//! the changed object costs. All nodes are looked at, no sample.
//!
//! A decided pod counts on its node at once (assumed), while its binding is under way beside the next decisions. What could not
//! be scheduled is tried again only when an event may have helped one of the plugins that rejected it.
//!
//! Must not know: the API server, the store; other components but through the API.

mod budget;
mod carry_out;
mod cluster;
mod core;
mod decide;
mod diagnosis;
mod feed;
#[cfg(test)]
mod fixture;
mod framework;
mod plugin;
mod pod;
mod preempt;
mod queue;
mod resource;
mod selector;
#[cfg(test)]
mod tests;

use std::sync::Arc;
use std::time::{Duration, Instant};

use client::{Context, Recorder};
use parking_lot::Mutex;
use rand::SeedableRng as _;
use rand::rngs::StdRng;
use tokio::sync::{Notify, OwnedSemaphorePermit, Semaphore};

use crate::carry_out::Executor;
use crate::core::{Core, Next};
use crate::feed::Feed;

/// How long a shutdown waits for decisions that are being carried out: the API server may be gone already.
const SHUTDOWN_GRACE: Duration = Duration::from_secs(2);

#[derive(Clone, Debug)]
pub struct Config {
    /// Pods that name another scheduler are left alone.
    pub scheduler_name: String,
    /// Decisions that are being carried out at once, while the next are made.
    pub in_flight: usize,
}

impl Default for Config {
    fn default() -> Self {
        Config { scheduler_name: "default-scheduler".to_owned(), in_flight: 64 }
    }
}

/// Schedules pods until shutdown, then finishes what is in hand.
pub async fn run(context: Context, config: Config) {
    let core = Core::new(&config.scheduler_name, StdRng::from_os_rng());
    let feed = Feed { core: Arc::new(Mutex::new(core)), bell: Arc::default() };
    if context.shutdown.run_until_cancelled(feed.start(&context.informers)).await.is_none() {
        return;
    }
    tracing::info!("scheduler started");
    let executor = Executor {
        recorder: Recorder::new(context.client.clone(), &config.scheduler_name, ""),
        client: context.client,
        scheduler_name: config.scheduler_name,
    };
    let limit = Arc::new(Semaphore::new(config.in_flight));
    let decisions = decide_forever(&feed, &executor, &limit);
    context.shutdown.run_until_cancelled(decisions).await;
    let all = u32::try_from(config.in_flight).unwrap_or(u32::MAX);
    // Every permit back means that nothing is in hand any more. What takes longer is found undone at the next start.
    let _ = tokio::time::timeout(SHUTDOWN_GRACE, limit.acquire_many(all)).await;
}

async fn decide_forever(feed: &Feed, executor: &Executor, limit: &Arc<Semaphore>) {
    loop {
        let permit = limit.clone().acquire_owned().await.expect("the semaphore is never closed");
        let next = feed.core.lock().next(Instant::now());
        match next {
            Next::Idle(deadline) => {
                drop(permit);
                wait(&feed.bell, deadline).await;
            }
            next => {
                let (feed, executor) = (feed.clone(), executor.clone());
                tokio::spawn(carry_out(feed, executor, next, permit));
            }
        }
    }
}

async fn wait(bell: &Notify, deadline: Option<Instant>) {
    match deadline {
        None => bell.notified().await,
        Some(deadline) => {
            let deadline = tokio::time::Instant::from_std(deadline);
            tokio::select! { () = bell.notified() => {}, () = tokio::time::sleep_until(deadline) => {} }
        }
    }
}

async fn carry_out(feed: Feed, executor: Executor, next: Next, _permit: OwnedSemaphorePermit) {
    match next {
        Next::Bind { pod, node } => {
            let Err(error) = executor.bind(&pod, &node).await else { return };
            feed.core.lock().binding_failed(&pod, Instant::now());
            feed.bell.notify_one();
            // A pod that is gone needs no report, and one that has a node by now neither.
            if !client::is_not_found(&error) && !client::is_conflict(&error) {
                executor.report_unbound(&pod, &error).await;
            }
        }
        Next::Report(failure) => executor.report_failure(&failure).await,
        Next::Idle(_) => {}
    }
}
