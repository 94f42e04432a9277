//! `cargo xtask e2e`: a real cluster, real containers, real packets, the stock kubectl.
//!
//! The cluster runs in a network namespace of its own that has no way out, so that nothing it sends can leave the machine. Each
//! scenario is a shell script under `tests/e2e`, written as a user would type it, and runs in a Kubernetes namespace of its own.

mod clients;
pub mod cluster;
mod datastore;
pub mod host;

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use clients::Clients;
use cluster::Cluster;
use datastore::Etcd;

/// A scenario that takes longer has failed.
const SCENARIO_LIMIT: Duration = Duration::from_secs(240);

/// What the command line asks for.
struct Options {
    filter: Option<String>,
    /// Build and run the unoptimised binary.
    dev: bool,
    /// Test this program instead of building one.
    binary: Option<PathBuf>,
    /// Leave the cluster running for a look.
    keep: bool,
    /// Times to run all of it, each on a new cluster.
    repeat: usize,
    /// Stop at the first scenario that fails: what follows would mostly tell the same again.
    fail_fast: bool,
    /// Keep the cluster's state in an etcd instead of the data folder.
    etcd: bool,
    /// The scenarios of other clients in place of those of kubectl.
    clients: bool,
}

pub fn run(args: &[String]) -> Result<()> {
    let mut options = Options {
        filter: None,
        dev: false,
        binary: None,
        keep: false,
        repeat: 1,
        fail_fast: false,
        etcd: false,
        clients: false,
    };
    for arg in args {
        match arg.as_str() {
            "--dev" => options.dev = true,
            "--keep" => options.keep = true,
            "--datastore=etcd" => options.etcd = true,
            "--datastore=embedded" => options.etcd = false,
            "--clients" => options.clients = true,
            "--fail-fast" => options.fail_fast = true,
            flag if flag.starts_with("--binary=") => options.binary = Some(PathBuf::from(&flag["--binary=".len()..])),
            flag if flag.starts_with("--repeat=") => {
                options.repeat = flag["--repeat=".len()..].parse().context("--repeat=N")?
            }
            flag if flag.starts_with('-') => {
                bail!(
                    "unknown flag {flag}; there are --dev, --binary=FILE, --datastore=etcd, --clients, --keep, --fail-fast and --repeat=N"
                )
            }
            filter => options.filter = Some(filter.to_owned()),
        }
    }
    host::install()?;
    let binary = options.binary.clone().map_or_else(|| host::build(options.dev), Ok)?;
    let kubectls = host::kubectls()?;
    let (_, newest) = kubectls.last().cloned().context("no kubectl to test with")?;
    let plan = Plan::of(&options, kubectls)?;
    let work = crate::root().join("target/e2e");
    host::enter_private_network()?;
    for round in 1..=options.repeat {
        if options.repeat > 1 {
            println!("round {round} of {}", options.repeat);
        }
        let etcd = if options.etcd { Some(Etcd::start(&crate::root().join("target/e2e-etcd"))?) } else { None };
        let datastore = etcd.as_ref().map(Etcd::flags).unwrap_or_default();
        let cluster = Cluster::start_on(&datastore, &binary, &work, &newest)?;
        let outcome = scenarios(&options, &cluster, &plan);
        if options.keep {
            println!("cluster kept: {}", cluster.describe());
            // Its etcd as well.
            std::mem::forget(etcd);
        } else {
            cluster.stop();
        }
        outcome?;
    }
    Ok(())
}

/// What is run on each cluster.
struct Plan {
    scripts: Vec<PathBuf>,
    /// All scripts are run with each: version and program.
    kubectls: Vec<(String, PathBuf)>,
    /// What the scripts are told of their tools.
    environment: Vec<(&'static str, String)>,
}

impl Plan {
    /// Installs what it needs, so it is made while there is a way out.
    fn of(options: &Options, mut kubectls: Vec<(String, PathBuf)>) -> Result<Self> {
        let (folder, environment) = if options.clients {
            // kubectl only looks on here: the newest does.
            kubectls.drain(..kubectls.len().saturating_sub(1));
            ("tests/clients", Clients::install()?.environment())
        } else {
            ("tests/e2e", Vec::new())
        };
        let mut scripts: Vec<PathBuf> = fs::read_dir(crate::root().join(folder))?
            .filter_map(|entry| entry.ok().map(|e| e.path()))
            .filter(|path| path.extension().is_some_and(|e| e == "sh") && path.file_stem().is_some_and(|s| s != "lib"))
            .filter(|path| options.filter.as_ref().is_none_or(|f| path.to_string_lossy().contains(f.as_str())))
            .collect();
        scripts.sort();
        if scripts.is_empty() {
            bail!("no scenario matches");
        }
        Ok(Plan { scripts, kubectls, environment })
    }
}

fn scenarios(options: &Options, cluster: &Cluster, plan: &Plan) -> Result<()> {
    let (mut passed, mut failed) = (0, Vec::new());
    for (turn, (version, kubectl)) in plan.kubectls.iter().enumerate() {
        for script in &plan.scripts {
            let name = script.file_stem().map(|s| s.to_string_lossy().into_owned()).unwrap_or_default();
            let started = Instant::now();
            match scenario(cluster, plan, &name, turn, script, kubectl) {
                Ok(()) => {
                    passed += 1;
                    println!("ok      {name} (kubectl {version}) {:.1}s", started.elapsed().as_secs_f64());
                }
                Err(error) => {
                    println!("FAILED  {name} (kubectl {version}) {:.1}s\n{error:#}", started.elapsed().as_secs_f64());
                    println!("{}", cluster.diagnosis());
                    failed.push(format!("{name} (kubectl {version})"));
                    if options.fail_fast {
                        bail!("failed: {}", failed.join(", "));
                    }
                }
            }
        }
    }
    println!("{passed} passed, {} failed", failed.len());
    if failed.is_empty() { Ok(()) } else { bail!("failed: {}", failed.join(", ")) }
}

/// `turn` keeps apart the namespaces of one scenario with several kubectls: the first may still be leaving.
fn scenario(cluster: &Cluster, plan: &Plan, name: &str, turn: usize, script: &Path, kubectl: &Path) -> Result<()> {
    let topic = name.trim_start_matches(|c: char| c.is_ascii_digit() || c == '-');
    let namespace = format!("e2e-{topic}-{turn}");
    let bin = cluster.tools(kubectl)?;
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", &SCENARIO_LIMIT.as_secs().to_string(), "sh", "-eu"])
        .arg(script)
        .current_dir(script.parent().context("scripts lie in a folder")?)
        .env("NS", &namespace)
        .env("KUBECONFIG", cluster.kubeconfig(&namespace)?)
        .env("PATH", format!("{}:{}", bin.display(), std::env::var("PATH").unwrap_or_default()));
    command.envs(cluster.environment()).envs(plan.environment.iter().map(|(key, value)| (key, value)));
    let output = command.output()?;
    if output.status.success() {
        return cluster.leave(&namespace);
    }
    let tail = |bytes: &[u8]| {
        let text = String::from_utf8_lossy(bytes).into_owned();
        let lines: Vec<&str> = text.lines().collect();
        lines[lines.len().saturating_sub(60)..].join("\n")
    };
    bail!("{}\n{}", tail(&output.stdout), tail(&output.stderr))
}
