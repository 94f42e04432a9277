//! The rows of a real node: from a process's start to a node that is ready, from a pod's creation to its running, from its deletion to
//! its being gone. All of it as the API shows it, on this machine's clock.

use std::path::Path;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::client::{Call, Protocol, Target};
use crate::events::{self, Event, Watch};
use crate::kubeconfig;
use crate::load::{self, Done};
use crate::objects;
use crate::report::Row;
use crate::rows::Bench;

/// Pods started and stopped one after the other.
const ONE_BY_ONE: usize = 20;
/// Pods created at once.
const BURST: usize = 30;
/// What has not happened by then never will.
const LIMIT: Duration = Duration::from_secs(180);
/// How often a starting server is asked; the measured time is that exact.
const ASK_EVERY: Duration = Duration::from_millis(3);
/// How long a node with nothing to do is watched.
const IDLE: Duration = Duration::from_secs(60);

/// What a server that was started has to become.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Goal {
    /// `/readyz` succeeds.
    Api,
    /// All nodes of the cluster are ready, one at least.
    Node,
}

/// Runs `program`, which starts a server in the background, and waits for `goal` on the cluster behind `kubeconfig`, a file that
/// the server writes.
pub async fn ready(program: &Path, kubeconfig: &Path, protocol: Protocol, goal: Goal) -> Result<Row> {
    let started = Instant::now();
    let mut command = Command::new(program);
    let status = command.stdin(Stdio::null()).status().with_context(|| format!("cannot run {}", program.display()))?;
    if !status.success() {
        bail!("{}: {status}", program.display());
    }
    while !reached(goal, kubeconfig, protocol).await.unwrap_or(false) {
        if started.elapsed() > LIMIT {
            bail!("not ready after {} s", LIMIT.as_secs());
        }
        tokio::time::sleep(ASK_EVERY).await;
    }
    let (name, note) = match goal {
        Goal::Api => ("ready", "start of the processes to /readyz, empty disk"),
        Goal::Node => ("node ready", "start of the process to the node's condition Ready, empty disk"),
    };
    Ok(Row { name: name.to_owned(), p50: Some(started.elapsed()), note: note.to_owned(), ..Row::default() })
}

async fn reached(goal: Goal, kubeconfig: &Path, protocol: Protocol) -> Result<bool> {
    let target = Target::new(&kubeconfig::read(kubeconfig)?, protocol)?;
    let mut connection = target.connect().await?;
    match goal {
        Goal::Api => connection.drain(Call::get("/readyz")).await.map(|_| true),
        Goal::Node => {
            let nodes = events::list(&mut connection, "/api/v1/nodes").await?.items;
            Ok(!nodes.is_empty() && nodes.iter().all(events::Object::is_ready))
        }
    }
}

impl Bench {
    /// Memory and processor time of everything that makes a node, with nothing to do.
    pub async fn node_idle(&self) -> Row {
        self.idle_for("node idle", IDLE).await
    }

    /// Pods one after the other: the first row is their starts, the second their ends.
    pub async fn node_pods(&self) -> Result<[Row; 2]> {
        let target = self.target();
        let mut watch = Watch::from_now(target, &objects::pods()).await?;
        let mut connection = target.connect().await?;
        let (mut starts, mut stops) = (Vec::new(), Vec::new());
        let (mut starting, mut stopping) = (Duration::ZERO, Duration::ZERO);
        let first = self.read();
        for index in 0..ONE_BY_ONE {
            let before = self.read();
            let asked = Instant::now();
            connection.drain(Call::post(objects::pods(), objects::short_lived(index))).await?;
            until(&mut watch, |event| event.object.status.phase == "Running").await.context("a pod's start")?;
            starts.push(asked.elapsed());
            let between = self.read();
            let asked = Instant::now();
            connection.drain(Call::delete(objects::short_lived_path(index))).await?;
            until(&mut watch, |event| event.kind == "DELETED").await.context("a pod's end")?;
            stops.push(asked.elapsed());
            starting += between.cpu.saturating_sub(before.cpu);
            stopping += self.read().cpu.saturating_sub(between.cpu);
        }
        let row = |name: &str, mut latencies: Vec<Duration>, cpu: Duration, note: &str| {
            latencies.sort_unstable();
            let took = latencies.iter().sum();
            let mut row = self.row(name, first, &Done { latencies, took, bytes: 0 }, ONE_BY_ONE, note.to_owned());
            row.cpu_per_1000 = Some(cpu.as_secs_f64() * 1000.0 / ONE_BY_ONE as f64);
            row
        };
        Ok([
            row(
                "node pod start",
                starts,
                starting,
                "one by one, create to phase Running; shims and runc not in the CPU",
            ),
            row("node pod stop", stops, stopping, "one by one, delete to gone; the process exits on SIGTERM"),
        ])
    }

    /// Many pods at once: the time until the last of them runs.
    pub async fn node_burst(&self) -> Result<Row> {
        let target = self.target();
        let mut watch = Watch::from_now(target, &objects::pods()).await?;
        let connections = load::connections(target, BURST).await?;
        let before = self.read();
        let started = Instant::now();
        let make = |index| Call::post(objects::pods(), objects::short_lived(index));
        load::run(connections, BURST, make).await?;
        let mut latencies = Vec::with_capacity(BURST);
        let mut running = std::collections::HashSet::new();
        while running.len() < BURST {
            let event = until(&mut watch, |event| event.object.status.phase == "Running").await.context("a burst")?;
            if running.insert(event.object.metadata.name) {
                latencies.push(started.elapsed());
            }
        }
        let done = Done { latencies, took: started.elapsed(), bytes: 0 };
        let row = self.row("node 30 pods", before, &done, BURST, "all at once, until all are Running".to_owned());
        let mut connection = target.connect().await?;
        for index in 0..BURST {
            connection.drain(Call::delete(objects::short_lived_path(index))).await?;
        }
        for _ in 0..BURST {
            until(&mut watch, |event| event.kind == "DELETED").await.context("the end of a burst")?;
        }
        Ok(row)
    }
}

/// The next event that is `wanted`.
pub async fn until(watch: &mut Watch, wanted: impl Fn(&Event) -> bool) -> Result<Event> {
    let found = async {
        loop {
            let event = watch.next().await?;
            if wanted(&event) {
                return anyhow::Ok(event);
            }
        }
    };
    tokio::time::timeout(LIMIT, found).await.with_context(|| format!("nothing for {} s", LIMIT.as_secs()))?
}
