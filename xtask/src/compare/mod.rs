//! `cargo xtask compare`: upstream's control plane and ours, one after the other on this machine, under the work of the bench.
//!
//! Both run in a network namespace that has nothing but loopback and get the same hollow nodes. Upstream's programs come from the
//! cache of the conformance suite. What the bench records of either side goes to `bench/results.tsv`, upstream's under names that
//! begin with `upstream: `, and the ratios to `bench/compare.md`.

pub mod side;
mod table;
pub mod upstream;
pub mod upstream_node;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command};

use anyhow::{Context as _, Result, bail};

use crate::bench;
use crate::conformance::build;
use crate::conformance::cache::{Cache, VERSION};
use crate::e2e::host;
use side::{Part, Side};
use table::Rows;
use upstream::Reach;
use upstream_node::{Node, Tools};

const PORT: u16 = 16443;
/// Large enough for 8,192 nodes.
const POD_NETWORK: &str = "10.64.0.0/11";
const SERVICE_NETWORK: &str = "10.43.0.0/16";
const RECORDS: &str = "bench/results.tsv";
const TABLE: &str = "bench/compare.md";
/// How many of the smallest advantages the table names.
const WORST: usize = 5;
/// Values of the zone label of hollow nodes.
const ZONES: &str = "3";

struct Options {
    /// Work to do.
    work: Vec<&'static str>,
    /// Add to what the last run left.
    keep: bool,
    /// Measure nothing: write the table of what earlier runs left.
    table: bool,
    binary: Option<PathBuf>,
    generator: Option<PathBuf>,
    record: bool,
    sides: Vec<&'static str>,
}

/// Kinds of work, in the order in which they are done; each on a fresh server.
const WORK: [&str; 6] = ["memory", "requests", "schedule", "node", "pods-50000", "schedule-5000"];
/// Kinds that take long, above all upstream's side.
const LARGE: [&str; 2] = ["pods-50000", "schedule-5000"];

fn options(args: &[String]) -> Result<Options> {
    let sides = vec!["ours", "upstream"];
    let mut options =
        Options { work: WORK.into(), keep: false, table: false, binary: None, generator: None, record: false, sides };
    let mut only = Vec::new();
    for arg in args {
        match arg.split_once('=').unwrap_or((arg, "")) {
            ("--small", "") => options.work.retain(|work| !LARGE.contains(work)),
            ("--keep", "") => options.keep = true,
            ("--table", "") => (options.table, options.keep) = (true, true),
            ("--record", "") => options.record = true,
            ("--binary", file) => options.binary = Some(PathBuf::from(file)),
            ("--generator", file) => options.generator = Some(PathBuf::from(file)),
            ("--only", work) if WORK.contains(&work) => only.push(work.to_owned()),
            ("--side", side) => options.sides.retain(|known| *known == side),
            _ => bail!(
                "{arg}: there are --small, --keep, --table, --record, --binary=FILE, --generator=FILE, --side=ours|upstream, --only=WORK with {}",
                WORK.join(", ")
            ),
        }
    }
    if !only.is_empty() {
        options.work.retain(|work| only.iter().any(|only| only == work));
    }
    if options.table {
        options.work.clear();
    } else if options.sides.is_empty() || options.work.is_empty() {
        bail!("nothing to do: --side is ours or upstream");
    }
    Ok(options)
}

pub fn run(args: &[String]) -> Result<()> {
    let options = options(args)?;
    host::install()?;
    let mut run = Run {
        cache: Cache::open()?,
        generator: options.generator.clone().map_or_else(bench::generator, Ok)?,
        binary: options.binary.clone().map_or_else(|| host::build(false), Ok)?,
        work: crate::root().join("target/compare"),
        loads: vec![load_average()],
        options,
    };
    fs::create_dir_all(&run.work)?;
    if run.options.sides.contains(&"upstream") && !run.options.work.is_empty() {
        build::upstream(&run.cache)?;
    }
    if run.options.work.contains(&"node") {
        // While there is a network.
        Tools::plugins(&run.work)?;
    }
    let mut failed = Vec::new();
    for side in run.options.sides.iter().filter(|_| !run.options.keep) {
        let _ = fs::remove_file(run.records(side));
    }
    for work in run.options.work.clone() {
        // One after the other for each kind, so that both meet about the same machine.
        for side in run.options.sides.clone() {
            println!("\n{side}: {work}, load average {}", load_average());
            // What fails leaves its rows out of the table, and no others.
            if let Err(error) = run.measure(side, work) {
                println!("FAILED: {error:#}");
                failed.push(format!("{side}: {work}"));
            }
        }
        run.loads.push(load_average());
    }
    run.publish()?;
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

struct Run {
    options: Options,
    cache: Cache,
    /// The load generator.
    generator: PathBuf,
    /// Ours.
    binary: PathBuf,
    work: PathBuf,
    /// Load averages of the machine: at the start, and after each kind of work.
    loads: Vec<String>,
}

impl Run {
    /// Where the bench records a side's rows.
    fn records(&self, side: &str) -> PathBuf {
        self.work.join(format!("{side}.tsv"))
    }

    fn record_to(&self, side: &str) -> String {
        format!("--record={}", self.records(side).display())
    }

    /// One kind of work, on servers that are started for it.
    fn measure(&self, name: &'static str, work: &str) -> Result<()> {
        if work == "node" {
            return self.node(name);
        }
        // A namespace of its own, so that nothing of one kind of work is in the way of the next.
        bench::private_loopback()?;
        let side = self.start(name, work != "requests")?;
        match work {
            "requests" => self.bench(&side, &["--work=requests"]),
            "schedule" => self.schedule(&side, 1000),
            "schedule-5000" => self.schedule(&side, 5000),
            "pods-50000" => self.bench(&side, &["--work=memory", "--pods=50000", "--only=memory with pods"]),
            _ => self.bench(&side, &["--work=memory"]),
        }
    }

    fn schedule(&self, side: &Side, nodes: u32) -> Result<()> {
        let _hollow = self.hollow(side, nodes)?;
        self.bench(side, &["--work=schedule", &format!("--nodes={nodes}")])
    }

    /// A real node, in a network with a bridge.
    fn node(&self, name: &str) -> Result<()> {
        if name == "ours" {
            return bench::node(&self.generator, &self.binary, &[self.record_to(name)]);
        }
        host::enter_private_network()?;
        let work = self.work.join(name);
        empty(&work)?;
        let node = Node::with_control_plane(&self.cache, &work, &Tools::plugins(&self.work)?)?;
        let mut command = Command::new(&self.generator);
        command.args(["--work=node", "--start"]).arg(node.side.starter());
        host::run(command.arg("--kubeconfig").arg(&node.side.kubeconfig).arg(self.record_to(name)))?;
        node.load_images(&self.cache)?;
        self.bench(&node.side, &["--work=node"])
    }

    /// A fresh control plane that is ready; the time that this took is a row. Not `whole`: without controllers and scheduler.
    fn start(&self, name: &'static str, whole: bool) -> Result<Side> {
        let work = self.work.join(name);
        empty(&work)?;
        let side = if name == "ours" {
            ours(&self.binary, &work, whole)?
        } else {
            upstream::side(&self.cache, &work, Reach::Loopback, Vec::new())?
        };
        let mut command = Command::new(&self.generator);
        command.arg("--start").arg(side.starter()).arg("--kubeconfig").arg(&side.kubeconfig);
        if whole {
            command.arg(self.record_to(name));
        }
        host::run(&mut command).with_context(|| format!("{}: see the logs in {}", side.name, work.display()))?;
        if !whole && name == "upstream" {
            // Its API takes no pods until the controllers have made the account's token.
            self.account(&side)?;
            side.stop_parts(&upstream::BESIDE_THE_API);
        }
        Ok(side)
    }

    /// Has the bench's namespace made while there are controllers.
    fn account(&self, side: &Side) -> Result<()> {
        let kubectl = |words: &[&str]| {
            let mut command = Command::new(self.cache.program("kubectl"));
            command.arg("--kubeconfig").arg(&side.kubeconfig).args(words).output()
        };
        kubectl(&["create", "namespace", "bench"])?;
        for _ in 0..300 {
            let secrets =
                ["--namespace=bench", "get", "serviceaccount", "default", "-o", "jsonpath={.secrets[0].name}"];
            if kubectl(&secrets)?.stdout.starts_with(b"default-token") {
                return Ok(());
            }
            std::thread::sleep(std::time::Duration::from_millis(100));
        }
        bail!("upstream's controllers made no token for the bench's account")
    }

    fn bench(&self, side: &Side, words: &[&str]) -> Result<()> {
        let mut command = Command::new(&self.generator);
        command.args(words).arg("--kubeconfig").arg(&side.kubeconfig).arg(self.record_to(side.name));
        for pid in side.pids()? {
            command.args(["--pid", &pid]);
        }
        host::run(&mut command).with_context(|| format!("{}: see the logs in {}", side.name, side.work.display()))
    }

    fn hollow(&self, side: &Side, nodes: u32) -> Result<Hollow> {
        let mut command = Command::new(&self.binary);
        command.args(["hollow", "--log-level=warn", "--zones", ZONES, "--nodes", &nodes.to_string()]);
        command.arg("--kubeconfig").arg(&side.kubeconfig);
        Ok(Hollow(command.spawn().context("cannot start the hollow nodes")?))
    }

    /// Writes the table, and on request the records, of what both sides' last runs left.
    fn publish(&self) -> Result<()> {
        let read = |side: &str| fs::read_to_string(self.records(side)).unwrap_or_default();
        let (ours, theirs) = (read("ours"), read("upstream"));
        let lines = table::lines(&Rows::parse(&ours), &Rows::parse(&theirs));
        let text = format!("{}\n{}", heading(&ours, &theirs, &self.loads), table::markdown(&lines, WORST));
        println!("\n{text}");
        if self.options.record || self.options.table {
            fs::write(crate::root().join(TABLE), text)?;
        }
        if !self.options.record {
            return Ok(());
        }
        let mut records = fs::read_to_string(crate::root().join(RECORDS)).unwrap_or_default();
        records.push_str(&without_heading(&ours, ""));
        records.push_str(&without_heading(&theirs, "upstream: "));
        Ok(fs::write(crate::root().join(RECORDS), records)?)
    }
}

/// Our server, prepared in an empty folder.
fn ours(binary: &Path, work: &Path, whole: bool) -> Result<Side> {
    let data = work.join("data");
    let mut args: Vec<String> =
        ["server", "--disable-agent", "--bind-address=127.0.0.1", "--node-ip=127.0.0.1"].map(str::to_owned).into();
    args.push("--log-level=warn".to_owned());
    args.push(format!("--https-listen-port={PORT}"));
    args.push(format!("--cluster-cidr={POD_NETWORK}"));
    args.push(format!("--service-cidr={SERVICE_NETWORK}"));
    args.push(format!("--data-dir={}", data.display()));
    if !whole {
        args.push("--disable=controllers,scheduler".to_owned());
    }
    let kubeconfig = data.join("kubeconfig.yaml");
    Side::new("ours", work, kubeconfig, &[Part { name: "coxswain", program: binary.to_owned(), args }])
}

/// Whatever an earlier run left goes.
fn empty(work: &Path) -> Result<()> {
    side::end(work);
    let _ = fs::remove_dir_all(work);
    Ok(fs::create_dir_all(work)?)
}

/// Simulated nodes. They stop when this goes.
struct Hollow(Child);

impl Drop for Hollow {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.0.kill().ok();
        self.0.wait().ok();
    }
}

/// Lines of a record, with the rows' names after `prefix`.
fn without_heading(records: &str, prefix: &str) -> String {
    let lines = records.lines().filter(|line| !line.starts_with("date\t"));
    lines
        .map(|line| {
            let mut cells: Vec<String> = line.split('\t').map(str::to_owned).collect();
            if let Some(name) = cells.get_mut(4) {
                name.insert_str(0, prefix);
            }
            cells.join("\t") + "\n"
        })
        .collect()
}

/// How busy the machine has been in the last minute.
fn load_average() -> String {
    let text = fs::read_to_string("/proc/loadavg").unwrap_or_default();
    text.split(' ').next().unwrap_or_default().to_owned()
}

/// Date, commit and machine as the records say, and how busy the machine was.
fn heading(ours: &str, upstream: &str, loads: &[String]) -> String {
    let first = without_heading(ours, "") + &without_heading(upstream, "");
    let cells: Vec<&str> = first.lines().next().unwrap_or_default().split('\t').collect();
    let cell = |index: usize| cells.get(index).copied().unwrap_or("?");
    let last = first.lines().filter_map(|line| line.split('\t').next()).max().unwrap_or("?");
    format!(
        "# Ours and upstream's control plane, measured on one machine\n\nWritten by `cargo xtask compare`. {} to {last}, commit {}, {} cores, {} GiB; \
         load average at the start of the last run and after each kind of its work {}.\nUpstream is {VERSION} with Debian's etcd, all on this machine, both sides under the same load generator \
         and the same hollow nodes.\nA row's name and measures are those of [README.md](README.md).\n",
        cell(0),
        cell(1),
        cell(2),
        cell(3),
        loads.join(", "),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn upstreams_records_are_told_apart() {
        let records = "date\tcommit\tcores\tmemory GiB\trow\nd\tc\t2\t24\tready\t-\n";
        assert_eq!(without_heading(records, "upstream: "), "d\tc\t2\t24\tupstream: ready\t-\n");
    }

    #[test]
    fn work_is_named_or_refused() {
        let args = |words: &[&str]| options(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let some = args(&["--only=memory", "--only=schedule-5000", "--small", "--side=ours"]).unwrap();
        assert_eq!((some.work, some.sides), (vec!["memory"], vec!["ours"]));
        assert_eq!(args(&[]).unwrap().work, WORK);
        for wrong in ["--only=everything", "--side=theirs", "fast"] {
            assert!(args(&[wrong]).is_err(), "{wrong}");
        }
    }
}
