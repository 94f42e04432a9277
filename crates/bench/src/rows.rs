//! The rows of the speed table: what each one sends and counts.

use std::rc::Rc;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use http_body_util::BodyExt as _;
use serde_json::json;

use crate::client::{Call, Connection, Target, explain};
use crate::load::{self, Done};
use crate::objects::{self, NAMESPACE};
use crate::process::Process;
use crate::report::Row;
use crate::server::Server;

const GETS: usize = 40_000;
const PATCHES: usize = 10_000;
const APPLIES: usize = 10_000;
/// Config maps that the applies go to in turn.
const CONFIG_MAPS: usize = 500;
const LISTS: usize = 20;
const WATCHERS: usize = 200;
const CHANGES: usize = 500;
pub const USUAL_PODS: usize = 5000;
/// A server that has nothing to do is left alone for this long before its memory is read.
pub const SETTLE: Duration = Duration::from_secs(3);
/// A server that takes no pods by then never will.
const PODS_LIMIT: Duration = Duration::from_secs(30);
/// Watchers have seen all changes by then, or never will.
const WATCH_LIMIT: Duration = Duration::from_secs(120);

/// Processor time and memory of the server at one moment.
#[derive(Clone, Copy)]
pub struct Reading {
    pub cpu: Duration,
    rss_kib: u64,
    written: u64,
}

/// One server under load.
pub struct Bench {
    target: Target,
    processes: Vec<Process>,
    concurrency: usize,
    pods: usize,
    /// Number of rounds of changes so far: each has to differ from the last.
    round: usize,
}

pub fn ready(server: &Server) -> Row {
    let rss = server.process().rss_kib();
    Row {
        name: "ready".to_owned(),
        p50: Some(server.ready_after),
        rss_before_kib: rss,
        rss_after_kib: rss,
        note: format!("start of the process to /readyz, processor time {:?}", server.process().cpu()),
        ..Row::default()
    }
}

impl Bench {
    pub fn new(target: Target, processes: Vec<Process>, concurrency: usize, pods: usize) -> Self {
        Bench { target, processes, concurrency, pods, round: 0 }
    }

    pub fn target(&self) -> &Target {
        &self.target
    }

    pub fn concurrency(&self) -> usize {
        self.concurrency
    }

    /// Pods that the rows create.
    pub fn pods(&self) -> usize {
        self.pods
    }

    pub fn read(&self) -> Reading {
        Reading {
            cpu: self.processes.iter().map(|p| p.cpu()).sum(),
            rss_kib: self.processes.iter().map(|p| p.rss_kib()).sum(),
            written: self.processes.iter().map(|p| p.written()).sum(),
        }
    }

    /// Memory of a server that has nothing to do, and the processor time that this costs.
    pub async fn idle(&self) -> Row {
        self.idle_for("idle memory", 2 * SETTLE).await
    }

    /// As operations count seconds, so that the row's processor time is that of 1,000 seconds of nothing.
    pub async fn idle_for(&self, name: &str, time: Duration) -> Row {
        tokio::time::sleep(SETTLE).await;
        let before = self.read();
        tokio::time::sleep(time).await;
        let after = self.read();
        let used = after.cpu.saturating_sub(before.cpu);
        let written = after.written.saturating_sub(before.written) as f64 / 1e6 * 3600.0 / time.as_secs_f64();
        let note = format!("{used:?} of processor time in {time:?}; {written:.1} MB an hour written to disk");
        let cpu = (!self.processes.is_empty()).then(|| used.as_secs_f64() * 1000.0 / time.as_secs_f64());
        Row { cpu_per_1000: cpu, ..self.memory_row(name, before, note) }
    }

    /// Memory after a load has gone.
    pub async fn settled(&self) -> Row {
        let before = self.read();
        tokio::time::sleep(2 * SETTLE).await;
        self.memory_row(&self.many("memory with pods"), before, format!("{} pods", self.pods))
    }

    /// The name of a row; it says how many pods there are unless they are as many as usual.
    pub fn many(&self, name: &str) -> String {
        if self.pods == USUAL_PODS { name.to_owned() } else { name.replace("pod", &format!("{} pod", self.pods)) }
    }

    fn memory_row(&self, name: &str, before: Reading, note: String) -> Row {
        Row {
            name: name.to_owned(),
            rss_before_kib: before.rss_kib,
            rss_after_kib: self.read().rss_kib,
            note,
            ..Row::default()
        }
    }

    pub fn row(&self, name: &str, before: Reading, done: &Done, operations: usize, note: String) -> Row {
        let after = self.read();
        let percentile = |part: f64| done.latencies.get((done.latencies.len() as f64 * part) as usize).copied();
        let cpu = after.cpu.saturating_sub(before.cpu).as_secs_f64();
        Row {
            name: name.to_owned(),
            per_second: Some(operations as f64 / done.took.as_secs_f64()),
            p50: percentile(0.5),
            p99: percentile(0.99),
            cpu_per_1000: (!self.processes.is_empty()).then(|| cpu * 1000.0 / operations as f64),
            rss_before_kib: before.rss_kib,
            rss_after_kib: after.rss_kib,
            note,
        }
    }

    /// A namespace to work in, with the service account that pods there need.
    pub async fn prepare(&self) -> Result<()> {
        let mut connection = self.target.connect().await?;
        let namespace = json!({"metadata": {"name": NAMESPACE}}).to_string();
        let account = json!({"metadata": {"name": "default"}}).to_string();
        make(&mut connection, Call::post("/api/v1/namespaces", namespace)).await?;
        make(&mut connection, Call::post(format!("/api/v1/namespaces/{NAMESPACE}/serviceaccounts"), account)).await?;
        // Older servers take no pod before a controller has made the account's token.
        let started = Instant::now();
        let path = format!("{}?dryRun=All", objects::pods());
        while let Err(error) = connection.drain(Call::post(path.clone(), objects::pod(0))).await {
            if started.elapsed() > PODS_LIMIT {
                return Err(error.context("the server takes no pods"));
            }
            tokio::time::sleep(Duration::from_millis(100)).await;
            connection = self.target.connect().await?;
        }
        Ok(())
    }

    /// Deletes the namespace. It takes its objects along where a controller runs.
    pub async fn clean_up(&self) -> Result<()> {
        let mut connection = self.target.connect().await?;
        connection.drain(Call::delete(format!("/api/v1/namespaces/{NAMESPACE}"))).await.map(drop)
    }

    async fn load(&self, total: usize, make: impl Fn(usize) -> Call + 'static) -> Result<(Reading, Done)> {
        let connections = load::connections(&self.target, self.concurrency).await?;
        let before = self.read();
        Ok((before, load::run(connections, total, make).await?))
    }

    pub async fn create(&self) -> Result<Row> {
        let bodies: Vec<_> = (0..self.pods).map(objects::pod).collect();
        let make = move |index: usize| Call::post(objects::pods(), bodies[index].clone());
        let (before, done) = self.load(self.pods, make).await?;
        let note = format!("{} bytes a pod as stored", done.bytes / self.pods);
        Ok(self.row("create pod", before, &done, self.pods, note))
    }

    pub async fn get(&self) -> Result<Row> {
        let pods = self.pods;
        let (before, done) = self.load(GETS, move |index| Call::get(objects::pod_path(index % pods))).await?;
        Ok(self.row("get pod", before, &done, GETS, String::new()))
    }

    pub async fn patch(&mut self) -> Result<Row> {
        let make = self.pod_patch(PATCHES);
        let (before, done) = self.load(PATCHES, make).await?;
        Ok(self.row("merge patch pod", before, &done, PATCHES, String::new()))
    }

    /// Patches of one pod after the other, each with something new.
    fn pod_patch(&mut self, total: usize) -> impl Fn(usize) -> Call + 'static {
        let (start, pods) = (self.round, self.pods);
        self.round += total;
        move |index| {
            let media = "application/merge-patch+json";
            Call::patch(objects::pod_path(index % pods), media, objects::pod_patch(start + index))
        }
    }

    pub async fn apply(&self) -> Result<Row> {
        let call = |index: usize| {
            let body = objects::config_map(index % CONFIG_MAPS, index / CONFIG_MAPS);
            Call::patch(objects::config_map_path(index % CONFIG_MAPS), "application/apply-patch+yaml", body)
        };
        // The objects exist already when it counts.
        self.load(CONFIG_MAPS, call).await?;
        let (before, done) = self.load(APPLIES, move |index| call(index + CONFIG_MAPS)).await?;
        Ok(self.row("server-side apply", before, &done, APPLIES, "config maps, sent as JSON".to_owned()))
    }

    /// One list after the other: the time is what counts.
    pub async fn list(&self) -> Result<Row> {
        let connections = load::connections(&self.target, 1).await?;
        let before = self.read();
        let done = load::run(connections, LISTS, |_| Call::get(objects::pods())).await?;
        let note = format!("{:.1} MB a list", done.bytes as f64 / LISTS as f64 / 1e6);
        Ok(self.row("list pods", before, &done, LISTS, note))
    }

    /// The rate of events that reach watchers, and the server's time for 1,000 of them, the changes included.
    pub async fn watch(&mut self) -> Result<Row> {
        let version = self.version().await?;
        let mut watches = Vec::with_capacity(WATCHERS);
        for _ in 0..WATCHERS {
            watches.push(self.open_watch(&version).await?);
        }
        let before = self.read();
        let started = Instant::now();
        let local = tokio::task::LocalSet::new();
        let readers: Vec<_> = watches.into_iter().map(|watch| local.spawn_local(count_events(watch))).collect();
        let changes = load::connections(&self.target, self.concurrency).await?;
        let make = self.pod_patch(CHANGES);
        let mut done = local.run_until(load::run(changes, CHANGES, make)).await?;
        let all = async {
            for reader in readers {
                reader.await??;
            }
            anyhow::Ok(())
        };
        tokio::time::timeout(WATCH_LIMIT, local.run_until(all)).await.context("watchers wait for events")??;
        done.took = started.elapsed();
        done.latencies.clear();
        let note = format!("{WATCHERS} watchers, {CHANGES} changes of pods; ops are events");
        Ok(self.row("watch pods", before, &done, WATCHERS * CHANGES, note))
    }

    async fn version(&self) -> Result<Rc<str>> {
        let mut connection = self.target.connect().await?;
        let response = connection.open(Call::get(format!("{}?limit=1", objects::pods()))).await?;
        let body = response.into_body().collect().await?.to_bytes();
        let list: serde_json::Value = serde_json::from_slice(&body)?;
        Ok(list["metadata"]["resourceVersion"].as_str().context("a list has a version")?.into())
    }

    async fn open_watch(&self, version: &str) -> Result<Watch> {
        let mut connection = self.target.connect().await?;
        let path = format!("{}?watch=true&resourceVersion={version}", objects::pods());
        let response = connection.open(Call::get(path)).await?;
        if !response.status().is_success() {
            bail!("{}", explain(response).await);
        }
        Ok(Watch { body: response.into_body(), _connection: connection })
    }
}

struct Watch {
    body: hyper::body::Incoming,
    /// Ends the watch when it goes.
    _connection: Connection,
}

/// Reads until every change has come: an event is a line.
async fn count_events(mut watch: Watch) -> Result<()> {
    let mut seen = 0;
    while seen < CHANGES {
        let frame = watch.body.frame().await.context("a watch ended")??;
        seen += frame.data_ref().map_or(0, |data| data.iter().filter(|byte| **byte == b'\n').count());
    }
    Ok(())
}

/// Creates what may exist already.
async fn make(connection: &mut Connection, call: Call) -> Result<()> {
    let response = connection.open(call).await?;
    if response.status().is_success() || response.status() == http::StatusCode::CONFLICT {
        response.into_body().collect().await?;
        return Ok(());
    }
    bail!("{}", explain(response).await)
}
