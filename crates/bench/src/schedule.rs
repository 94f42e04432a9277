//! The rows of scheduling: pods are created, and each counts from its creation until the API shows its node. The nodes are there
//! already: hollow ones, as many as one likes.

use std::collections::HashMap;
use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::client::Call;
use crate::events::{self, Watch};
use crate::load::{self, Done};
use crate::objects::{self, Shape};
use crate::report::Row;
use crate::rows::Bench;

/// Nodes that are not ready by then never will be.
const NODES_LIMIT: Duration = Duration::from_secs(600);
/// Pods of a row that are not bound, or not gone, by then never will be.
const LIMIT: Duration = Duration::from_secs(900);
/// Pods that repel each other need a node each.
const REPELLING: usize = 900;

impl Bench {
    /// Waits until so many nodes are ready.
    pub async fn nodes(&self, wanted: usize) -> Result<Row> {
        let started = Instant::now();
        let mut connection = self.target().connect().await?;
        loop {
            // To list them all takes much of a slow server's time; there is no use before they are enough.
            let first = events::list(&mut connection, "/api/v1/nodes?limit=1").await?;
            let known = first.metadata.remaining_item_count.map(|more| more + first.items.len());
            let ready = match known {
                Some(known) if known < wanted => 0,
                _ => {
                    let nodes = events::list(&mut connection, "/api/v1/nodes").await?.items;
                    nodes.iter().filter(|node| node.is_ready()).count()
                }
            };
            if ready >= wanted {
                // Their first leases and networks are still being written.
                let row = self.idle_for(&format!("{wanted} nodes"), 2 * crate::rows::SETTLE).await;
                let note = format!("{}; ready after {:?}", row.note, started.elapsed());
                return Ok(Row { note, ..row });
            }
            if started.elapsed() > NODES_LIMIT {
                bail!("{ready} of {wanted} nodes are ready after {} s", NODES_LIMIT.as_secs());
            }
            tokio::time::sleep(Duration::from_secs(1)).await;
        }
    }

    /// Pods of one shape after the other, each on empty nodes: until all are bound, and until all run.
    pub async fn schedule(&self, nodes: usize) -> Result<Vec<Row>> {
        let mut rows = Vec::new();
        for (shape, count) in [
            (Shape::Plain, self.pods()),
            (Shape::Spread, self.pods()),
            (Shape::Repelling, REPELLING.min(self.pods()).min(nodes)),
        ] {
            rows.extend(self.schedule_shape(shape, count, nodes).await?);
            self.remove_pods().await?;
        }
        Ok(rows)
    }

    async fn schedule_shape(&self, shape: Shape, count: usize, nodes: usize) -> Result<Vec<Row>> {
        let target = self.target();
        let watch = Watch::from_now(target, &objects::pods()).await?;
        let connections = load::connections(target, self.concurrency()).await?;
        let before = self.read();
        let started = Instant::now();
        let local = tokio::task::LocalSet::new();
        let progress = local.spawn_local(follow(watch, count, started));
        let bodies: Vec<_> = (0..count).map(|index| objects::small(shape, index)).collect();
        let created = Rc::new(std::cell::RefCell::new(HashMap::with_capacity(count)));
        let times = created.clone();
        let make = move |index: usize| {
            times.borrow_mut().insert(objects::small_name(shape, index), started.elapsed());
            Call::post(objects::pods(), bodies[index].clone())
        };
        local.run_until(load::run(connections, count, make)).await?;
        let creation = started.elapsed();
        let waiting = async { tokio::time::timeout(LIMIT, progress).await.context("pods wait for a node")?? };
        let Progress { bound, all_bound, all_running, .. } = local.run_until(waiting).await?;
        let created = created.borrow();
        let mut latencies: Vec<Duration> =
            bound.iter().filter_map(|(name, at)| Some(at.saturating_sub(*created.get(name)?))).collect();
        latencies.sort_unstable();
        let name = format!("schedule {}, {nodes} nodes", shape.title(count));
        let note =
            format!("created after {creation:.1?}, bound after {all_bound:.1?}, running after {all_running:.1?}");
        let done = Done { latencies, took: all_bound, bytes: 0 };
        let scheduled = self.row(&name, before, &done, count, note);
        let running = Row { per_second: Some(count as f64 / all_running.as_secs_f64()), ..Row::default() };
        let running =
            Row { rss_before_kib: scheduled.rss_before_kib, rss_after_kib: scheduled.rss_after_kib, ..running };
        Ok(vec![scheduled, running.named(&format!("run {}, {nodes} nodes", shape.title(count)))])
    }

    /// Deletes all pods and waits until they are gone.
    async fn remove_pods(&self) -> Result<()> {
        let target = self.target();
        let names: Vec<String> = {
            let list = events::list(&mut target.connect().await?, &objects::pods()).await?;
            list.items.into_iter().map(|pod| pod.metadata.name).collect()
        };
        let total = names.len();
        let connections = load::connections(target, self.concurrency()).await?;
        let make = move |index: usize| {
            let name: &str = names.get(index).map_or("", String::as_str);
            Call::delete(format!("{}/{name}?gracePeriodSeconds=0", objects::pods()))
        };
        load::run(connections, total, make).await?;
        let started = Instant::now();
        while !events::list(&mut target.connect().await?, &objects::pods()).await?.items.is_empty() {
            if started.elapsed() > LIMIT {
                bail!("pods are not gone after {} s", LIMIT.as_secs());
            }
            tokio::time::sleep(Duration::from_millis(500)).await;
        }
        // Schedulers have to hear of it too.
        tokio::time::sleep(crate::rows::SETTLE).await;
        Ok(())
    }
}

/// What has become of the pods of a row, in times since its start.
#[derive(Default)]
struct Progress {
    bound: HashMap<String, Duration>,
    running: std::collections::HashSet<String>,
    all_bound: Duration,
    all_running: Duration,
}

/// Reads until all pods run.
async fn follow(mut watch: Watch, count: usize, started: Instant) -> Result<Progress> {
    let mut progress = Progress::default();
    while progress.running.len() < count {
        let pod = watch.next().await?.object;
        let now = started.elapsed();
        if !pod.spec.node_name.is_empty() && !progress.bound.contains_key(&pod.metadata.name) {
            progress.bound.insert(pod.metadata.name.clone(), now);
            progress.all_bound = now;
        }
        if pod.status.phase == "Running" && progress.running.insert(pod.metadata.name) {
            progress.all_running = now;
        }
    }
    Ok(progress)
}
