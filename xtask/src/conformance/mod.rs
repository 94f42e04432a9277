//! `cargo xtask conformance`: upstream's own conformance suite against our cluster, and our own tests of what it is too old for.
//!
//! The suite is v1.20's, the newest that can be built from packages; `cache` says where it lies once built, `conformance/README.md` what
//! the recorded table means. This module starts a cluster, has `schedule` run the tests in two phases as upstream does, and compares.

pub mod build;
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

/// With one, the suite would skip what it checks between nodes.
const NODES: u32 = 2;

const USAGE: &str = "usage: cargo xtask conformance [flags]
  build                  build the suite and the images, and end
  images                 say what stands in for each image, and end
  --list                 list the tests that the other flags choose, and end
  --focus REGEX          tests whose name matches (Go's syntax for the suite's tests)
  --skip REGEX           not those tests
  --sig NAME             tests of a group, as sig-apps
  --kind official|ours   upstream's tests, or our own of newer ones; both if not given
  --subset               the tests of conformance/subset.txt; fails if one that is recorded as passed does not pass
  --parallel N           processes of the suite at a time (4 for each core)
  --serial-only          only tests that want the cluster for themselves
  --content-type json|protobuf
                         what the suite's client speaks; protobuf if not given, as upstream's
  --binary=FILE          test this program instead of building one
  --nodes N              nodes of the cluster (2)
  --retry                run a recorded pass that fails once more, by itself, before it counts as lost
  --repeat N             run all N times, each on a new cluster; a test passes if it passes each time
  --record               write conformance/results.tsv
  --work=FOLDER          of the cluster and the logs (target/conformance); runs at the same time need one each
  --keep                 leave the cluster for a look";

/// What the command line asks for.
struct Options {
    focus: Option<String>,
    skip: Option<String>,
    sig: Option<String>,
    kind: Option<Kind>,
    parallel: usize,
    serial_only: bool,
    content_type: &'static str,
    binary: Option<PathBuf>,
    work: PathBuf,
    nodes: u32,
    repeat: usize,
    record: bool,
    keep: bool,
    subset: bool,
    retry: bool,
    list: bool,
}

impl Options {
    fn parse(args: &[String]) -> Result<Self> {
        let cores = std::thread::available_parallelism().map_or(2, usize::from);
        let mut options = Options {
            focus: None,
            skip: None,
            sig: None,
            kind: None,
            parallel: cores * WORKERS_PER_CORE,
            serial_only: false,
            content_type: "application/vnd.kubernetes.protobuf",
            binary: None,
            work: crate::root().join("target/conformance"),
            nodes: NODES,
            repeat: 1,
            record: false,
            keep: false,
            subset: false,
            retry: false,
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
                "--skip" => options.skip = Some(value()?),
                "--sig" => options.sig = Some(value()?),
                "--kind" => options.kind = Some(kind(&value()?)?),
                "--parallel" => options.parallel = value()?.parse().context("--parallel N")?,
                "--content-type" => options.content_type = content_type(&value()?)?,
                "--binary" => options.binary = Some(PathBuf::from(value()?)),
                "--work" => options.work = std::path::absolute(value()?)?,
                "--nodes" => options.nodes = value()?.parse().context("--nodes N")?,
                "--repeat" => options.repeat = value()?.parse().context("--repeat N")?,
                "--serial-only" => options.serial_only = true,
                "--record" => options.record = true,
                "--keep" => options.keep = true,
                "--subset" => options.subset = true,
                "--retry" => options.retry = true,
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
        Some("build") => {
            make(&cache)?;
            return build::upstream(&cache);
        }
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
    make(&cache)?;
    let recorded = Table::read(&crate::root().join(RECORD))?;
    let own = if options.wants(Kind::Ours) { ours::build()? } else { None };
    let plan = Plan::new(&options, &cache, own.as_deref())?;
    if options.list {
        plan.official.iter().chain(&plan.ours).for_each(|name| println!("{name}"));
        return Ok(());
    }
    host::install()?;
    let binary = options.binary.clone().map_or_else(|| host::build(false), Ok)?;
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

/// Whether a run needs no build of the suite first.
pub fn is_built() -> Result<bool> {
    Ok(Cache::open()?.complete())
}

fn make(cache: &Cache) -> Result<()> {
    build::suite(cache)?;
    images::all(cache)
}

/// Which tests to run.
struct Plan {
    official: Vec<String>,
    ours: Vec<String>,
    /// Names that are to have a test of ours and have none.
    absent: Vec<String>,
}

impl Plan {
    fn new(options: &Options, cache: &Cache, own: Option<&Path>) -> Result<Self> {
        let subset = options.subset.then(subset).transpose()?;
        let chosen = |name: &String| {
            options.sig.as_ref().is_none_or(|wanted| table::sig(name) == wanted)
                && (!options.serial_only || is_serial(name))
                && subset.as_ref().is_none_or(|names| names.contains(name))
        };
        let mut plan = Plan { official: Vec::new(), ours: Vec::new(), absent: Vec::new() };
        if options.wants(Kind::Official) {
            plan.official = suite::list(cache, options.focus.as_deref(), options.skip.as_deref())?;
        }
        if options.wants(Kind::Ours) {
            plan.ours = own
                .map(|program| ours::list(program, options.focus.as_deref(), options.skip.as_deref()))
                .transpose()?
                .unwrap_or_default();
            // Whether an expression would match a test that is not there, nobody knows.
            if options.focus.is_none() && options.skip.is_none() {
                plan.absent = ours::wanted()?.into_iter().filter(|name| !plan.ours.contains(name)).collect();
            }
        }
        for names in [&mut plan.official, &mut plan.ours, &mut plan.absent] {
            names.retain(chosen);
        }
        if plan.official.is_empty() && plan.ours.is_empty() {
            bail!("no test matches");
        }
        Ok(plan)
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

/// The cluster that is tested, with the images of the tests on every node. The one place that knows how nodes come to be.
fn start_cluster(cache: &Cache, binary: &Path, own: Option<&Path>, work: &Path, nodes: u32) -> Result<Cluster> {
    let cluster = Cluster::start(binary, work, &cache.program("kubectl"))?;
    // Every image that lies here is given to a node that joins.
    let folder = work.join("images");
    std::os::unix::fs::symlink(cache.at("images.tar"), folder.join("conformance.tar"))?;
    let mut archives = vec![folder.join("conformance.tar")];
    if let Some(program) = own {
        images::ours(program, &folder.join("ours.tar"))?;
        archives.push(folder.join("ours.tar"));
    }
    let socket = cluster.environment().into_iter().find(|(name, _)| *name == "CONTAINERD");
    let (_, socket) = socket.context("the cluster does not tell its containerd")?;
    for archive in archives {
        let mut ctr = Command::new("ctr");
        ctr.args(["--address", &socket, "--namespace", "k8s.io", "images", "import"]).arg(archive);
        let output = ctr.output().context("cannot run ctr")?;
        if !output.status.success() {
            bail!("image import: {}", String::from_utf8_lossy(&output.stderr));
        }
    }
    (2..=nodes).try_for_each(|number| cluster.join(number))?;
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
    let cluster = start_cluster(cache, binary, own, &options.work.join("cluster"), options.nodes)?;
    let logs = options.work.join("logs");
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
        let lost: Vec<String> = if self.options.retry { self.lost() } else { Vec::new() };
        if !lost.is_empty() {
            println!("once more, by themselves: {}", lost.len());
            let work = lost.into_iter().map(|name| vec![name]).collect();
            schedule::run(&suite, work, 1, &turn, &|outcome| self.tell(Kind::Official, outcome))?;
        }
        Ok(())
    }

    /// Recorded passes that failed.
    fn lost(&self) -> Vec<String> {
        let outcomes = self.outcomes.lock().unwrap_or_else(PoisonError::into_inner);
        let failed = outcomes.iter().filter(|(_, (_, outcome))| outcome.verdict == Verdict::Failed);
        let recorded = |name: &String| self.recorded.rows.get(name).is_some_and(|row| row.verdict == Verdict::Passed);
        failed.map(|(name, _)| name.clone()).filter(recorded).collect()
    }

    fn ours(&self, program: Option<&Path>) -> Result<()> {
        for name in &self.plan.absent {
            let cause = "nobody has written it yet".to_owned();
            self.tell(Kind::Ours, Outcome { name: name.clone(), verdict: Verdict::Absent, seconds: 0.0, cause });
        }
        let (Some(program), false) = (program, self.plan.ours.is_empty()) else { return Ok(()) };
        println!("our own tests: {}", self.plan.ours.len());
        let told = Mutex::new(BTreeSet::new());
        ours::run(program, &self.kubeconfig()?, &self.plan.ours, self.options.parallel, &self.logs, &|outcome| {
            told.lock().unwrap_or_else(PoisonError::into_inner).insert(outcome.name.clone());
            self.tell(Kind::Ours, outcome);
        })?;
        let told = told.into_inner().unwrap_or_else(PoisonError::into_inner);
        for name in self.plan.ours.iter().filter(|name| !told.contains(*name)) {
            let cause = "the program ended without a result".to_owned();
            self.tell(Kind::Ours, Outcome { name: name.clone(), verdict: Verdict::Failed, seconds: 0.0, cause });
        }
        Ok(())
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
    run.write(&options.work.join("results.tsv"))?;
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_listed_by_name_is_in_the_record() -> Result<()> {
        let recorded = Table::read(&crate::root().join(RECORD))?;
        for name in subset()? {
            assert_eq!(recorded.rows.get(&name).map(|row| row.verdict), Some(Verdict::Passed), "{SUBSET}: {name:?}");
        }
        for name in exceptions::names() {
            assert!(recorded.rows.contains_key(name), "no test is called {name:?}");
        }
        for name in ours::wanted()? {
            assert!(recorded.rows.contains_key(&name), "{name:?} has no line");
        }
        Ok(())
    }

    #[test]
    fn several_rounds_make_the_worst_of_them() {
        let round = |verdict| {
            let outcome = Outcome { name: "x".into(), verdict, seconds: 1.0, cause: "why".into() };
            Outcomes::from([("x".to_owned(), (Kind::Official, outcome))])
        };
        let all = together(vec![round(Verdict::Passed), round(Verdict::Failed), round(Verdict::Passed)]);
        assert_eq!(all["x"].1.verdict, Verdict::Failed);
        assert_eq!(all["x"].1.cause, "passed 2 of 3: why");
    }
}
