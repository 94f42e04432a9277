//! `cargo xtask bench`: builds the server and the load generator, optimised, and measures one with the other.
//!
//! A server of our own runs in a network namespace that has nothing but loopback, a node in one that has a bridge besides.

use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result};
use nix::sched::{CloneFlags, unshare};

use crate::e2e::cluster::Cluster;
use crate::e2e::host;

const RECORDS: &str = "bench/results.tsv";
/// The rows that need a real node, by the start of their names.
const NODE_ROWS: &str = "node";

pub fn run(args: &[String]) -> Result<()> {
    if let Some(("store", rest)) = args.split_first().map(|(first, rest)| (first.as_str(), rest)) {
        return crate::bench_store::run(rest);
    }
    let mut record = false;
    let mut given = None;
    let mut rest = Vec::new();
    for arg in args {
        match (arg.as_str(), arg.strip_prefix("--binary=")) {
            ("--record", _) => record = true,
            (_, Some(file)) => given = Some(PathBuf::from(file)),
            _ => rest.push(arg.clone()),
        }
    }
    if record {
        rest.push(format!("--record={}", crate::root().join(RECORDS).display()));
    }
    let foreign = rest.iter().any(|arg| arg == "--kubeconfig" || arg.starts_with("--kubeconfig="));
    let program = generator()?;
    if foreign {
        return host::run(Command::new(program).args(&rest));
    }
    let binary = given.map_or_else(|| host::build(false), Ok)?;
    let only = only(&rest);
    if only.is_empty() || only.iter().any(|row| !row.starts_with(NODE_ROWS)) {
        private_loopback()?;
        host::run(Command::new(&program).args(&rest).arg("--binary").arg(&binary))?;
    }
    if only.is_empty() || only.iter().any(|row| row.starts_with(NODE_ROWS)) {
        node(&program, &binary, &rest)?;
    }
    Ok(())
}

/// Builds the load generator.
pub fn generator() -> Result<PathBuf> {
    host::run(
        Command::new("cargo").args(["build", "--quiet", "--release", "--package", "bench"]).current_dir(crate::root()),
    )?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), Into::into);
    Ok(target.join("release/bench"))
}

/// What `--only` names.
fn only(args: &[String]) -> Vec<String> {
    let mut names = Vec::new();
    let mut all = args.iter();
    while let Some(arg) = all.next() {
        match arg.strip_prefix("--only") {
            Some("") => names.extend(all.next().cloned()),
            Some(value) => names.push(value.trim_start_matches('=').to_owned()),
            None => {}
        }
    }
    names
}

/// Moves this process and its children into a network namespace of their own, without a way out.
pub fn private_loopback() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace; run as root")?;
    host::run(Command::new("ip").args(["link", "set", "lo", "up"]))
}

/// The rows of a real node, on a cluster that is made for them and leaves nothing behind.
pub fn node(program: &Path, binary: &Path, args: &[String]) -> Result<()> {
    host::install()?;
    let kubectls = host::kubectls()?;
    let (_, kubectl) = kubectls.last().context("no kubectl")?;
    host::enter_private_network()?;
    let cluster = Cluster::prepare(binary, &crate::root().join("target/bench-node"), kubectl)?;
    let outcome = node_rows(program, &cluster, args);
    cluster.stop();
    outcome
}

fn node_rows(program: &Path, cluster: &Cluster, args: &[String]) -> Result<()> {
    let generator = || {
        let mut command = Command::new(program);
        command.args(args).arg("--kubeconfig").arg(cluster.admin());
        command
    };
    host::run(generator().args(["--work", "node", "--start"]).arg(cluster.starter()))?;
    cluster.load_images()?;
    let mut command = generator();
    command.args(["--work", "node"]);
    for pid in cluster.pids()? {
        command.args(["--pid", &pid]);
    }
    host::run(&mut command)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rows_are_named_either_way() {
        let args = ["--only", "list", "--pods=3", "--only=node"].map(str::to_owned);
        assert_eq!(only(&args), ["list", "node"]);
    }
}
