//! `cargo xtask test`: everything that must pass before a change lands, cheapest first. `cargo xtask up`: a cluster, now.

use std::os::unix::process::CommandExt as _;
use std::process::Command;
use std::time::Instant;

use anyhow::{Context as _, Result, bail};

use crate::e2e::host;
use crate::{codegen, e2e, layers, protobuf};

type Step = fn() -> Result<()>;

/// Runs all checks and tests; stops at the first that fails.
pub fn test() -> Result<()> {
    host::install()?;
    let steps: [(&str, Step); 7] = [
        ("format", || cargo(&["fmt", "--all", "--check"])),
        ("layers", layers::run),
        ("generated data: schema", || codegen::run(&["--check".to_owned()])),
        ("generated data: protobuf", || protobuf::run(&["--check".to_owned()])),
        ("clippy", || cargo(&["clippy", "--workspace", "--all-targets", "--quiet", "--", "-D", "warnings"])),
        ("unit, property and API tests", || cargo(&["test", "--workspace", "--quiet"])),
        // Three times in a row, each on a cluster of its own: what passes by luck does not.
        ("end to end", || e2e::run(&["--repeat=3".to_owned(), "--fail-fast".to_owned()])),
    ];
    for (name, step) in steps {
        println!("== {name}");
        let started = Instant::now();
        step().with_context(|| format!("step {name:?}"))?;
        println!("== {name}: ok after {:.0}s", started.elapsed().as_secs_f64());
    }
    Ok(())
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
