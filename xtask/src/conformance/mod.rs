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
mod phases;
mod schedule;
mod suite;
mod table;
mod tested;
mod upstream;
mod upstream_record;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::AtomicUsize;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::compare::upstream_node::Tools;
use crate::e2e::host;
use cache::Cache;
use phases::Phase;
use suite::Suite;
use table::{Kind, Outcome, Row, Table, Verdict};
use tested::{Program, Tested};

const RECORD: &str = "conformance/results.tsv";
const SUBSET: &str = "conformance/subset.txt";
/// Most tests wait most of the time.
const WORKERS_PER_CORE: usize = 4;

/// With one, the suite would skip what it checks between nodes.
const NODES: u32 = 2;

const USAGE: &str = "usage: cargo xtask conformance [flags]
  build                  build the suite and the images, and end
  images                 say what stands in for each image, and end
  compare                write what the record says of ours and upstream's cluster to conformance/README.md, and end
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
  --upstream             test upstream's own cluster: for each test, the best of all rounds; --record writes upstream_seconds
  --retry                run a recorded pass that fails once more, by itself, before it counts as lost
  --repeat N             run all N times, each on a new cluster; a test passes if it passes each time
  --record               write conformance/results.tsv
  --work=FOLDER          of the cluster and the logs (target/conformance, target/conformance-upstream); runs at the same time need one each
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
    upstream: bool,
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
            work: PathBuf::new(),
            nodes: NODES,
            repeat: 1,
            record: false,
            keep: false,
            subset: false,
            retry: false,
            upstream: false,
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
                "--upstream" => options.upstream = true,
                "--list" => options.list = true,
                _ => bail!("what is {word:?}?\n\n{USAGE}"),
            }
        }
        if options.work.as_os_str().is_empty() {
            let folder = if options.upstream { "target/conformance-upstream" } else { "target/conformance" };
            options.work = crate::root().join(folder);
        }
        Ok(options)
    }

    fn wants(&self, kind: Kind) -> bool {
        // Ours are of newer versions.
        self.kind.is_none_or(|only| only == kind) && !(self.upstream && kind == Kind::Ours)
    }

    /// Whether all tests are run that upstream has.
    fn whole(&self) -> bool {
        let some = [&self.focus, &self.skip, &self.sig].iter().any(|choice| choice.is_some());
        !some && !self.serial_only && !self.subset && self.wants(Kind::Official)
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
        Some("compare") => return upstream_record::compare(),
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
    let program = if options.upstream {
        build::upstream(&cache)?;
        Program::Upstream(Tools::all(&options.work.join("tools"))?)
    } else {
        Program::Ours(options.binary.clone().map_or_else(|| host::build(false), Ok)?)
    };
    host::enter_private_network()?;
    let mut rounds = Vec::new();
    for round in 1..=options.repeat {
        if options.repeat > 1 {
            println!("round {round} of {}", options.repeat);
        }
        let (outcomes, phases) = one_round(&options, &cache, &program, own.as_deref(), &plan, &recorded)?;
        rounds.push(outcomes);
        if options.record && options.whole() {
            let phases: Vec<Phase> = phases.into_iter().map(|phase| Phase { round, ..phase }).collect();
            phases::record(&crate::root().join(phases::RECORD), &phases)?;
        }
        if options.upstream {
            upstream_record::conclude(&rounds, &options.work.join("results.tsv"), options.record)?;
        }
    }
    if options.upstream {
        return Ok(());
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

type Outcomes = BTreeMap<String, (Kind, Outcome)>;

fn one_round(
    options: &Options,
    cache: &Cache,
    program: &Program,
    own: Option<&Path>,
    plan: &Plan,
    recorded: &Table,
) -> Result<(Outcomes, Vec<Phase>)> {
    let cluster = Tested::start(cache, program, own, &options.work.join("cluster"), options.nodes)?;
    let logs = options.work.join("logs");
    let _ = fs::remove_dir_all(&logs);
    fs::create_dir_all(&logs)?;
    let round = Round {
        options,
        logs,
        cluster: program.word(),
        kubeconfig: cluster.kubeconfig(),
        plan,
        recorded,
        outcomes: Mutex::default(),
        started: Instant::now(),
    };
    let ended = round.official(cache).and_then(|phases| round.ours(own).map(|()| phases));
    if options.keep {
        cluster.keep();
    } else {
        cluster.stop();
    }
    let phases = ended?;
    println!("the round took {:.0}s", round.started.elapsed().as_secs_f64());
    Ok((round.outcomes.into_inner().unwrap_or_else(PoisonError::into_inner), phases))
}

struct Round<'a> {
    options: &'a Options,
    logs: PathBuf,
    /// Whose.
    cluster: &'static str,
    kubeconfig: PathBuf,
    plan: &'a Plan,
    recorded: &'a Table,
    outcomes: Mutex<Outcomes>,
    started: Instant,
}

impl Round<'_> {
    fn official(&self, cache: &Cache) -> Result<Vec<Phase>> {
        let suite = Suite {
            program: cache.program("e2e.test"),
            kubectl: cache.program("kubectl"),
            source: cache.at("source"),
            kubeconfig: self.kubeconfig.clone(),
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
        let mut phases = Vec::new();
        for (phase, tests, workers) in [("parallel", parallel, self.options.parallel), ("serial", serial, 1)] {
            if tests.is_empty() {
                continue;
            }
            let (started, load) = (Instant::now(), phases::load_average());
            println!("{phase} phase: {} tests, {workers} at a time, load average {load}", tests.len());
            let work = schedule::batches(&tests, &expected);
            schedule::run(&suite, work, workers, &turn, &|outcome| self.tell(Kind::Official, outcome))?;
            let seconds = started.elapsed().as_secs_f64();
            println!("{phase} phase took {seconds:.0}s");
            let (name, cluster) = (phase.to_owned(), self.cluster.to_owned());
            phases.push(Phase { cluster, round: 1, name, tests: tests.len(), workers, seconds, load });
        }
        let lost: Vec<String> = if self.options.retry { self.lost() } else { Vec::new() };
        if !lost.is_empty() {
            println!("once more, by themselves: {}", lost.len());
            let work = lost.into_iter().map(|name| vec![name]).collect();
            schedule::run(&suite, work, 1, &turn, &|outcome| self.tell(Kind::Official, outcome))?;
        }
        Ok(phases)
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
        ours::run(program, &self.kubeconfig, &self.plan.ours, self.options.parallel, &self.logs, &|outcome| {
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

/// One outcome of several rounds: the worst, which says how often it was so, and of several such the fastest.
fn together(rounds: Vec<Outcomes>) -> Outcomes {
    let count = rounds.len();
    let mut all: BTreeMap<String, Vec<(Kind, Outcome)>> = BTreeMap::new();
    for (name, outcome) in rounds.into_iter().flatten() {
        all.entry(name).or_default().push(outcome);
    }
    let worst = |(name, outcomes): (String, Vec<(Kind, Outcome)>)| {
        let passed = outcomes.iter().filter(|(_, outcome)| outcome.verdict == Verdict::Passed).count();
        // What else the machine did meanwhile is not of interest.
        let order = |(_, a): &(Kind, Outcome), (_, b): &(Kind, Outcome)| {
            a.verdict.cmp(&b.verdict).then(b.seconds.total_cmp(&a.seconds))
        };
        let (kind, mut outcome) = outcomes.into_iter().max_by(order)?;
        if passed > 0 && passed < count {
            outcome.cause = format!("passed {passed} of {count}: {}", outcome.cause);
        }
        Some((name, (kind, outcome)))
    };
    all.into_iter().filter_map(worst).collect()
}

/// Prints counts and what changed; records where asked; fails if a pass was lost.
fn conclude(options: &Options, recorded: &Table, outcomes: Outcomes) -> Result<()> {
    // As it is now: a run of upstream's cluster may have written its times meanwhile.
    let now = Table::read(&crate::root().join(RECORD))?;
    let mut run = Table::default();
    for (name, (kind, outcome)) in outcomes {
        let upstream_seconds = now.rows.get(&name).map(|row| row.upstream_seconds.clone()).unwrap_or_default();
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
        let mut all = now;
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

    #[test]
    fn several_passes_make_the_fastest() {
        let round = |seconds| {
            let outcome = Outcome { name: "x".into(), verdict: Verdict::Passed, seconds, cause: String::new() };
            Outcomes::from([("x".to_owned(), (Kind::Official, outcome))])
        };
        assert_eq!(together(vec![round(3.0), round(1.0), round(2.0)])["x"].1.seconds, 1.0);
    }
}
