//! `cargo xtask test`: everything that must pass before a change lands, cheapest first. `cargo xtask up`: a cluster, now.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::e2e::host;
use crate::{codegen, conformance, layers, protobuf};

type Step<'a> = &'a dyn Fn() -> Result<()>;

/// Whoever waits for the answer waits forty minutes at most, of which building the conformance suite takes three and its subset three.
const TIME_TO_BUILD_THE_SUITE: Duration = Duration::from_secs(32 * 60);

/// Runs all checks and tests; stops at the first that fails.
pub fn test() -> Result<()> {
    host::install()?;
    let begun = Instant::now();
    let steps: [(&str, Step<'_>); 10] = [
        ("format", &|| cargo(&["fmt", "--all", "--check"])),
        ("layers", &layers::run),
        ("generated data: schema", &|| codegen::run(&["--check".to_owned()])),
        ("generated data: protobuf", &|| protobuf::run(&["--check".to_owned()])),
        ("clippy", &|| cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])),
        ("unit, property and API tests", &tests),
        // Several times, each on a cluster of its own: what passes by luck does not.
        ("end to end", &|| own(&["e2e", "--repeat=2", "--fail-fast"])),
        ("end to end, other clients", &|| own(&["e2e", "--clients", "--fail-fast"])),
        ("end to end, on etcd", &|| own(&["e2e", "--datastore=etcd", "--fail-fast"])),
        ("conformance subset", &|| subset(begun)),
    ];
    for (name, step) in steps {
        println!("== {name}");
        let started = Instant::now();
        step().with_context(|| format!("step {name:?}"))?;
        println!("== {name}: ok after {:.0}s", started.elapsed().as_secs_f64());
    }
    Ok(())
}

/// All tests of the workspace. Some drive real containers and a real etcd against a clock, on a machine that others may keep busy: what fails is
/// told, and must pass the next time.
fn tests() -> Result<()> {
    let Err(first) = cargo(&["test", "--workspace", "--quiet", "--no-fail-fast"]) else { return Ok(()) };
    println!("FAILED ONCE: {first:#}; running all tests again, since some depend on how busy the machine is");
    cargo(&["test", "--workspace", "--quiet"])
}

/// The part of the conformance tests that tells most; not run where the suite is not built and there is no time left to build it.
fn subset(begun: Instant) -> Result<()> {
    if !conformance::is_built()? && begun.elapsed() > TIME_TO_BUILD_THE_SUITE {
        println!(
            "NOT RUN: the conformance suite is not built and there is no time left to build it (cargo xtask conformance build)"
        );
        return Ok(());
    }
    own(&["conformance", "--subset", "--retry"])
}

/// Another of these tasks, in a process of its own: some move to a network namespace that has no way out, for good.
fn own(words: &[&str]) -> Result<()> {
    host::run(Command::new(std::env::current_exe()?).args(words))
}

fn cargo(words: &[&str]) -> Result<()> {
    let status = Command::new("cargo").args(words).current_dir(crate::root()).status().context("cannot run cargo")?;
    if status.success() { Ok(()) } else { bail!("cargo {} failed", words.join(" ")) }
}

/// Installs what a node needs, builds, and becomes the server. `args` go to `coxswain server`.
pub fn up(args: &[String]) -> Result<()> {
    host::install()?;
    let binary = host::build(false)?;
    // Only returns if it fails.
    let error = Command::new(&binary).arg("server").args(args).exec();
    Err(error).with_context(|| format!("cannot run {}", binary.display()))
}
