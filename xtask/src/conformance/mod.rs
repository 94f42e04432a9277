//! `cargo xtask conformance`: upstream's own conformance suite against our cluster, and our own tests of what it is too old for.
//!
//! The suite is v1.20's, the newest that can be built from packages; `cache` says where it lies once built, `conformance/README.md` what
//! the recorded table means. This module starts a cluster, has `schedule` run the tests in two phases as upstream does, and compares.

mod build;
pub mod cache;
mod debian;
mod exceptions;
mod images;
mod junit;
mod oci;
mod ours;
mod schedule;
mod suite;
mod table;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::e2e::cluster::Cluster;
use crate::e2e::host;
use cache::Cache;
use suite::Suite;
use table::{Kind, Outcome, Row, Table, Verdict};

const RECORD: &str = "conformance/results.tsv";
const SUBSET: &str = "conformance/subset.txt";
/// Most tests wait most of the time.
const WORKERS_PER_CORE: usize = 4;

const USAGE: &str = "usage: cargo xtask conformance [flags]
  build                  build the suite and the images, and end
  images                 say what stands in for each image, and end
  --list                 list the tests that the other flags choose, and end
  --focus REGEX          tests whose name matches (Go's syntax for the suite's tests)
  --sig NAME             tests of a group, as sig-apps
  --kind official|ours   upstream's tests, or our own of newer ones; both if not given
  --subset               the tests of conformance/subset.txt; fails if one that is recorded as passed does not pass
  --parallel N           processes of the suite at a time (4 for each core)
  --serial-only          only tests that want the cluster for themselves
  --content-type json|protobuf
                         what the suite's client speaks; protobuf if not given, as upstream's
  --binary=FILE          test this program instead of building one
  --repeat N             run all N times, each on a new cluster; a test passes if it passes each time
  --record               write conformance/results.tsv
  --keep                 leave the cluster for a look";

/// What the command line asks for.
struct Options {
    focus: Option<String>,
    sig: Option<String>,
    kind: Option<Kind>,
    parallel: usize,
    serial_only: bool,
    content_type: &'static str,
    binary: Option<PathBuf>,
    repeat: usize,
    record: bool,
    keep: bool,
    subset: bool,
    list: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let mut options = Options {
            focus: None,
            sig: None,
            kind: None,
            parallel: cores * WORKERS_PER_CORE,
            serial_only: false,
            content_type: "application/vnd.kubernetes.protobuf",
            binary: None,
            repeat: 1,
            record: false,
            keep: false,
            subset: false,
            list: false,
        };
        let mut words = args.iter();
        while let Some(word) = words.next() {
            let (flag, inline) = match word.split_once('=') {
                Some((flag, value)) => (flag, Some(value.to_owned())),
                None => (word.as_str(), None),
            };
            let mut value =
                || inline.clone().or_else(|| words.next().cloned()).with_context(|| format!("{flag} wants a value"));
            match flag {
                "--focus" => options.focus = Some(value()?),
                "--sig" => options.sig = Some(value()?),
                "--kind" => options.kind = Some(kind(&value()?)?),
                "--parallel" => options.parallel = value()?.parse().context("--parallel N")?,
                "--content-type" => options.content_type = content_type(&value()?)?,
                "--binary" => options.binary = Some(PathBuf::from(value()?)),
                "--repeat" => options.repeat = value()?.parse().context("--repeat N")?,
                "--serial-only" => options.serial_only = true,
                "--record" => options.record = true,
                "--keep" => options.keep = true,
                "--subset" => options.subset = true,
                "--list" => options.list = true,
                _ => bail!("what is {word:?}?\n\n{USAGE}"),
            }
        }
        Ok(options)
    }

    fn wants(&self, kind: Kind) -> bool {
        self.kind.is_none_or(|only| only == kind)
    }
}

fn kind(word: &str) -> Result<Kind> {
    match word {
        "official" => Ok(Kind::Official),
        "ours" => Ok(Kind::Ours),
        _ => bail!("--kind official or ours"),
    }
}

fn content_type(word: &str) -> Result<&'static str> {
    match word {
        "json" => Ok("application/json"),
        "protobuf" => Ok("application/vnd.kubernetes.protobuf"),
        _ => bail!("--content-type json or protobuf"),
    }
}

pub fn run(args: &[String]) -> Result<()> {
    let cache = Cache::open()?;
    match args.first().map(String::as_str) {
        Some("build") => return make(&cache),
        Some("images") => {
            images::describe();
            return Ok(());
        }
        Some("--help") => {
            println!("{USAGE}");
            return Ok(());
        }
        _ => {}
    }
    let options = Options::parse(args)?;
    if options.subset && !cache.complete() {
        println!("the suite is not built: no conformance test is run (cargo xtask conformance build)");
        return Ok(());
    }
    make(&cache)?;
    let recorded = Table::read(&crate::root().join(RECORD))?;
    let plan = Plan::new(&options, &cache)?;
    if options.list {
        plan.official.iter().chain(&plan.ours).for_each(|name| println!("{name}"));
        return Ok(());
    }
    host::install()?;
    let binary = options.binary.clone().map_or_else(|| host::build(false), Ok)?;
    let own = if options.wants(Kind::Ours) { ours::build()? } else { None };
    host::enter_private_network()?;
    let mut rounds = Vec::new();
    for round in 1..=options.repeat {
        if options.repeat > 1 {
            println!("round {round} of {}", options.repeat);
        }
        rounds.push(one_round(&options, &cache, &binary, own.as_deref(), &plan, &recorded)?);
    }
    conclude(&options, &recorded, together(rounds))
}

fn make(cache: &Cache) -> Result<()> {
    build::all(cache)?;
    images::all(cache)
}

/// Which tests to run.
struct Plan {
    official: Vec<String>,
    /// Names that are to have a test of ours.
    ours: Vec<String>,
}

impl Plan {
    fn new(options: &Options, cache: &Cache) -> Result<Self> {
        let subset = options.subset.then(subset).transpose()?;
        let chosen = |name: &String| {
            options.sig.as_ref().is_none_or(|wanted| table::sig(name) == wanted)
                && (!options.serial_only || is_serial(name))
                && subset.as_ref().is_none_or(|names| names.contains(name))
        };
        let (mut official, mut own) = (Vec::new(), Vec::new());
        if options.wants(Kind::Official) {
            official = suite::list(cache, options.focus.as_deref().unwrap_or("Conformance"))?;
            official.retain(chosen);
        }
        if options.wants(Kind::Ours) {
            own = ours::wanted()?.into_iter().filter(chosen).collect();
        }
        if official.is_empty() && own.is_empty() {
            bail!("no test matches");
        }
        Ok(Plan { official, ours: own })
    }
}

fn subset() -> Result<BTreeSet<String>> {
    let text = fs::read_to_string(crate::root().join(SUBSET)).with_context(|| format!("no {SUBSET}"))?;
    let lines = text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#'));
    Ok(lines.map(str::to_owned).collect())
}

/// Upstream runs these alone, after the others.
fn is_serial(name: &str) -> bool {
    name.contains("[Serial]") || name.contains("[Disruptive]")
}

/// The cluster that is tested, with the images of the tests on every node. The one place that knows how many nodes there are.
fn start_cluster(cache: &Cache, binary: &Path, work: &Path) -> Result<Cluster> {
    let cluster = Cluster::start(binary, work, &cache.program("kubectl"))?;
    for (name, socket) in cluster.environment() {
        if name.starts_with("CONTAINERD") {
            let mut ctr = Command::new("ctr");
            ctr.args(["--address", &socket, "--namespace", "k8s.io", "images", "import"]).arg(cache.at("images.tar"));
            let output = ctr.output().context("cannot run ctr")?;
            if !output.status.success() {
                bail!("image import: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
    }
    Ok(cluster)
}

type Outcomes = BTreeMap<String, (Kind, Outcome)>;

fn one_round(
    options: &Options,
    cache: &Cache,
    binary: &Path,
    own: Option<&Path>,
    plan: &Plan,
    recorded: &Table,
) -> Result<Outcomes> {
    let work = crate::root().join("target/conformance");
    let cluster = start_cluster(cache, binary, &work.join("cluster"))?;
    let logs = work.join("logs");
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs)?;
    let round =
        Round { options, logs, cluster: &cluster, plan, recorded, outcomes: Mutex::default(), started: Instant::now() };
    let ended = round.official(cache).and_then(|()| round.ours(own));
    if options.keep {
        println!("cluster kept: {}", cluster.describe());
    } else {
        cluster.stop();
    }
    ended?;
    println!("the round took {:.0}s", round.started.elapsed().as_secs_f64());
    Ok(round.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner))
}

struct Round<'a> {
    options: &'a Options,
    logs: PathBuf,
    cluster: &'a Cluster,
    plan: &'a Plan,
    recorded: &'a Table,
    outcomes: Mutex<Outcomes>,
    started: Instant,
}

impl Round<'_> {
    fn kubeconfig(&self) -> Result<PathBuf> {
        let data = self.cluster.environment().into_iter().find(|(name, _)| *name == "DATA");
        Ok(Path::new(&data.context("the cluster does not tell its data folder")?.1).join("kubeconfig.yaml"))
    }

    fn official(&self, cache: &Cache) -> Result<()> {
        let suite = Suite {
            program: cache.program("e2e.test"),
            kubectl: cache.program("kubectl"),
            source: cache.at("source"),
            kubeconfig: self.kubeconfig()?,
            content_type: self.options.content_type,
            logs: self.logs.clone(),
        };
        let (cannot, can): (Vec<_>, Vec<_>) =
            self.plan.official.iter().cloned().partition(|name| exceptions::not_runnable(name).is_some());
        for name in cannot {
            let cause = exceptions::not_runnable(&name).unwrap_or_default().to_owned();
            self.tell(Kind::Official, Outcome { name, verdict: Verdict::NotRunnable, seconds: 0.0, cause });
        }
        let (serial, parallel): (Vec<String>, Vec<String>) = can.into_iter().partition(|name| is_serial(name));
        let (expected, turn) = (self.recorded.seconds(), AtomicUsize::new(1));
        for (phase, tests, workers) in [("parallel", parallel, self.options.parallel), ("serial", serial, 1)] {
            if tests.is_empty() {
                continue;
            }
            let started = Instant::now();
            println!("{phase} phase: {} tests, {workers} at a time", tests.len());
            let work = schedule::batches(&tests, &expected);
            schedule::run(&suite, work, workers, &turn, &|outcome| self.tell(Kind::Official, outcome))?;
            println!("{phase} phase took {:.0}s", started.elapsed().as_secs_f64());
        }
        Ok(())
    }

    fn ours(&self, program: Option<&Path>) -> Result<()> {
        let wanted: BTreeSet<&String> = self.plan.ours.iter().collect();
        let kubeconfig = self.kubeconfig()?;
        let there = program.map(|program| ours::list(program, &kubeconfig)).transpose()?.unwrap_or_default();
        if self.options.focus.is_none() {
            for name in wanted.iter().filter(|name| !there.contains(**name)) {
                let cause = "nobody has written it yet".to_owned();
                self.tell(Kind::Ours, Outcome { name: (*name).clone(), verdict: Verdict::Absent, seconds: 0.0, cause });
            }
        }
        let Some(program) = program else { return Ok(()) };
        if wanted.iter().all(|name| !there.contains(*name)) {
            return Ok(());
        }
        // A choice other than by expression is made by naming what was chosen.
        let names: Vec<String> =
            wanted.iter().filter(|name| there.contains(**name)).map(|name| suite::escape(name)).collect();
        let chosen = self.options.sig.is_some() || self.options.subset || self.options.serial_only;
        let focus = if chosen { Some(format!("^({})$", names.join("|"))) } else { self.options.focus.clone() };
        ours::run(program, &kubeconfig, focus.as_deref(), &self.logs, &|outcome| self.tell(Kind::Ours, outcome))
    }

    /// Says it, and keeps it.
    fn tell(&self, kind: Kind, outcome: Outcome) {
        let Outcome { name, verdict, seconds, cause } = &outcome;
        let mut outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        if *verdict != Verdict::Absent {
            let space = if cause.is_empty() { "" } else { ": " };
            println!("{:<12} {name} {seconds:.1}s{space}{cause}", verdict.word());
        }
        outcomes.insert(name.clone(), (kind, outcome));
    }
}

/// One outcome of several rounds: the worst, which says how often it was so.
fn together(rounds: Vec<Outcomes>) -> Outcomes {
    let count = rounds.len();
    let mut all: BTreeMap<String, Vec<(Kind, Outcome)>> = BTreeMap::new();
    for (name, outcome) in rounds.into_iter().flatten() {
        all.entry(name).or_default().push(outcome);
    }
    let worst = |(name, outcomes): (String, Vec<(Kind, Outcome)>)| {
        let passed = outcomes.iter().filter(|(_, outcome)| outcome.verdict == Verdict::Passed).count();
        let (kind, mut outcome) = outcomes.into_iter().max_by_key(|(_, outcome)| outcome.verdict)?;
        if passed > 0 && passed < count {
            outcome.cause = format!("passed {passed} of {count}: {}", outcome.cause);
        }
        Some((name, (kind, outcome)))
    };
    all.into_iter().filter_map(worst).collect()
}

/// Prints counts and what changed; records where asked; fails if a pass was lost.
fn conclude(options: &Options, recorded: &Table, outcomes: Outcomes) -> Result<()> {
    let mut run = Table::default();
    for (name, (kind, outcome)) in outcomes {
        let upstream_seconds = recorded.rows.get(&name).map(|row| row.upstream_seconds.clone()).unwrap_or_default();
        let Outcome { verdict, seconds, cause, .. } = outcome;
        let dropped = exceptions::DROPPED.contains(&name.as_str());
        run.rows.insert(name, Row { kind, verdict, seconds, upstream_seconds, dropped, cause });
    }
    println!("\n{}", run.counts());
    let changed = run.difference(recorded);
    for (before, now, name) in &changed {
        println!("{} -> {}: {name}", before.word(), now.word());
    }
    run.write(&crate::root().join("target/conformance/results.tsv"))?;
    if options.record {
        let mut all = recorded.clone();
        all.rows.extend(run.rows);
        all.write(&crate::root().join(RECORD))?;
        println!("recorded in {RECORD}");
        return Ok(());
    }
    let lost = changed.iter().filter(|(before, _, _)| *before == Verdict::Passed).count();
    if lost > 0 { bail!("{lost} recorded passes no longer pass") } else { Ok(()) }
}
