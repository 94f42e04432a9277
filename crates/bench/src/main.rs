//! The load generator behind `cargo xtask bench`: drives any Kubernetes API endpoint with the work of the speed table, so that
//! upstream is measured with the same tool.
//!
//! Must not know: our server's crates. It speaks HTTP only, and looks at the server's process from outside.

mod client;
mod events;
mod kubeconfig;
mod load;
mod node;
mod objects;
mod process;
mod report;
mod rows;
mod schedule;
mod server;

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};
use clap::{Parser, ValueEnum};

use crate::client::{Protocol, Target};
use crate::node::Goal;
use crate::process::Process;
use crate::report::Report;
use crate::rows::Bench;
use crate::server::{Parts, Server};

#[derive(Parser)]
#[command(about = "Measure an API server with the work of the speed table")]
struct Args {
    /// Measure the server of this kubeconfig (current context) instead of one started for the purpose
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// Binary to start where no kubeconfig is given
    #[arg(long, value_name = "FILE")]
    binary: Option<PathBuf>,
    /// Process whose CPU and memory are counted; may be repeated [default: who listens on the server's port]
    #[arg(long, value_name = "PID")]
    pid: Vec<u32>,
    /// What to measure of the cluster of the kubeconfig
    #[arg(long, value_enum, default_value = "requests")]
    work: Work,
    /// Run this program, which starts a server in the background that writes the kubeconfig, and measure the time until the API is
    /// ready, or with `--work node` its node
    #[arg(long, value_name = "PROGRAM")]
    start: Option<PathBuf>,
    /// Nodes that `--work schedule` waits for
    #[arg(long, default_value_t = 1000)]
    nodes: usize,
    /// Run only rows whose name contains this; may be repeated. What they need is prepared anyway
    #[arg(long, value_name = "NAME")]
    only: Vec<String>,
    /// Append the rows to this file
    #[arg(long, value_name = "FILE")]
    record: Option<PathBuf>,
    /// Requests in hand at any time
    #[arg(long, default_value_t = 32)]
    concurrency: usize,
    /// Pods that exist while the rows run
    #[arg(long, default_value_t = rows::USUAL_PODS)]
    pods: usize,
    /// HTTP/2 instead of HTTP/1.1
    #[arg(long)]
    http2: bool,
    /// Measure the whole control plane in every row, not the API server alone where that is what is compared
    #[arg(long)]
    whole: bool,
}

/// Which rows.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Work {
    /// Of the API server alone
    Requests,
    /// Memory of a whole control plane, idle and with pods
    Memory,
    /// Scheduling on nodes that are there, or are coming
    Schedule,
    /// Pods on a real node that has busybox's image
    Node,
}

impl Args {
    fn wants(&self, row: &str) -> bool {
        self.only.is_empty() || self.only.iter().any(|word| row.contains(word.as_str()))
    }

    fn bench(&self, server: &Server) -> Bench {
        Bench::new(server.target(), vec![server.process()], self.concurrency, self.pods)
    }

    fn protocol(&self) -> Protocol {
        if self.http2 { Protocol::Http2 } else { Protocol::Http1 }
    }
}

/// One thread: what the generator takes is taken from the server, since both share the machine.
#[tokio::main(flavor = "current_thread")]
async fn main() -> Result<()> {
    let args = Args::parse();
    // The provider of the whole process; that it is set already is no error.
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut report = Report::default();
    match (&args.kubeconfig, &args.binary) {
        (Some(file), _) => foreign(&args, file, &mut report).await?,
        (None, Some(binary)) => own(&args, binary.clone(), &mut report).await?,
        (None, None) => bail!("--kubeconfig or --binary: say what to measure"),
    }
    if let Some(file) = &args.record {
        report.record(file).with_context(|| format!("cannot write {}", file.display()))?;
    }
    Ok(())
}

/// Measures what a kubeconfig leads to.
async fn foreign(args: &Args, file: &Path, report: &mut Report) -> Result<()> {
    if let Some(program) = &args.start {
        let goal = if args.work == Work::Node { Goal::Node } else { Goal::Api };
        report.add(node::ready(program, file, args.protocol(), goal).await?);
        return Ok(());
    }
    let target = Target::new(&kubeconfig::read(file)?, args.protocol())?;
    let processes = if args.pid.is_empty() {
        Process::listening_on(target.port()).into_iter().collect()
    } else {
        args.pid.iter().copied().map(Process::of).collect()
    };
    let bench = Bench::new(target, processes, args.concurrency, args.pods);
    match args.work {
        Work::Requests => requests(args, bench, report).await,
        Work::Memory => memory(args, &bench, report).await,
        Work::Schedule => schedule(args, &bench, report).await,
        Work::Node => node(args, &bench, report).await,
    }
}

async fn schedule(args: &Args, bench: &Bench, report: &mut Report) -> Result<()> {
    report.add(bench.nodes(args.nodes).await?);
    bench.prepare().await?;
    for row in bench.schedule(args.nodes).await? {
        report.add(row);
    }
    bench.clean_up().await
}

async fn node(args: &Args, bench: &Bench, report: &mut Report) -> Result<()> {
    if args.wants("node idle") {
        report.add(bench.node_idle().await);
    }
    bench.prepare().await?;
    if args.wants("node pod start") || args.wants("node pod stop") {
        for row in bench.node_pods().await? {
            report.add(row);
        }
    }
    if args.wants("node 30 pods") {
        report.add(bench.node_burst().await?);
    }
    bench.clean_up().await
}

/// Starts servers of our own: a whole control plane for start-up and memory, the API server alone for what is counted per request.
async fn own(args: &Args, binary: PathBuf, report: &mut Report) -> Result<()> {
    let memory_rows = ["ready", "idle memory", "memory with pods"];
    if memory_rows.iter().any(|row| args.wants(row)) {
        let server = Server::start(&binary, Parts::ControlPlane, args.protocol()).await?;
        if args.wants("ready") {
            report.add(rows::ready(&server));
        }
        memory(args, &args.bench(&server), report).await?;
        server.stop().await?;
    }
    let parts = if args.whole { Parts::ControlPlane } else { Parts::ApiOnly };
    let server = Server::start(&binary, parts, args.protocol()).await?;
    requests(args, args.bench(&server), report).await?;
    server.stop().await
}

async fn memory(args: &Args, bench: &Bench, report: &mut Report) -> Result<()> {
    if args.wants("idle memory") {
        report.add(bench.idle().await);
    }
    if args.wants("memory with pods") {
        bench.prepare().await?;
        report.add(bench.create().await?.named(&bench.many("create pod, all parts")));
        report.add(bench.settled().await);
    }
    Ok(())
}

async fn requests(args: &Args, mut bench: Bench, report: &mut Report) -> Result<()> {
    bench.prepare().await?;
    let created = bench.create().await?;
    if args.wants("create pod") {
        report.add(created);
    }
    if args.wants("get pod") {
        report.add(bench.get().await?);
    }
    if args.wants("merge patch pod") {
        report.add(bench.patch().await?);
    }
    if args.wants("server-side apply") {
        report.add(bench.apply().await?);
    }
    if args.wants("list pods") {
        report.add(bench.list().await?);
    }
    if args.wants("watch pods") {
        report.add(bench.watch().await?);
    }
    bench.clean_up().await
}
