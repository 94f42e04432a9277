//! `cargo xtask bench`: builds the server and the load generator, optimised, and measures one with the other.
//!
//! A server of our own runs in a network namespace that has nothing but loopback.

use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, unshare};

use crate::e2e::host;

const RECORDS: &str = "bench/results.tsv";

pub fn run(args: &[String]) -> Result<()> {
    let mut record = false;
    let mut rest = Vec::new();
    for arg in args {
        match arg.as_str() {
            "--record" => record = true,
            _ => rest.push(arg.clone()),
        }
    }
    let foreign = rest.iter().any(|arg| arg == "--kubeconfig" || arg.starts_with("--kubeconfig="));
    host::run(
        Command::new("cargo").args(["build", "--quiet", "--release", "--package", "bench"]).current_dir(crate::root()),
    )?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), Into::into);
    let mut bench = Command::new(target.join("release/bench"));
    bench.args(&rest);
    if !foreign {
        bench.arg("--binary").arg(host::build(false)?);
        private_loopback()?;
    }
    if record {
        bench.arg("--record").arg(crate::root().join(RECORDS));
    }
    let status = bench.status().context("cannot run the load generator")?;
    if status.success() { Ok(()) } else { bail!("bench: {status}") }
}

/// Moves this process and its children into a network namespace of their own, without a way out.
fn private_loopback() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; run as root")?;
    host::run(Command::new("ip").args(["link", "set", "lo", "up"]))
}
