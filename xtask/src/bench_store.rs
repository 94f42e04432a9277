//! `cargo xtask bench store`: the store and Debian's etcd under the same work, in a network that has nothing but loopback.

use std::fs;
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::bench::private_loopback;
use crate::e2e::host;

const TABLE: &str = "bench/store.md";

/// `--record` writes the table to [`TABLE`].
pub fn run(args: &[String]) -> Result<()> {
    let record = match args {
        [] => false,
        [flag] if flag == "--record" => true,
        _ => bail!("there is --record and nothing else"),
    };
    let root = crate::root();
    let build = ["build", "--quiet", "--release", "--package", "store", "--example", "bench"];
    host::run(Command::new("cargo").args(build).current_dir(&root))?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| root.join("target"), Into::into);
    // On the disk of the build, never in memory.
    let directory = target.join("bench-store/data");
    let heading = heading()?;
    private_loopback()?;
    let mut command = Command::new(target.join("release/examples/bench"));
    let output = command.arg(&directory).stderr(Stdio::inherit()).output().context("cannot run the bench")?;
    if !output.status.success() {
        bail!("the bench has failed: {}", output.status);
    }
    let text = heading + &String::from_utf8(output.stdout)?;
    println!("{text}");
    if record {
        fs::write(root.join(TABLE), text)?;
    }
    Ok(())
}

fn said(program: &str, args: &[&str]) -> Result<String> {
    let output = Command::new(program).args(args).current_dir(crate::root()).output();
    let output = output.with_context(|| format!("cannot run {program}"))?;
    Ok(String::from_utf8_lossy(&output.stdout).trim().to_owned())
}

/// What was measured, when and where.
fn heading() -> Result<String> {
    let date = said("date", &["-u", "+%FT%RZ"])?;
    let commit = said("git", &["rev-parse", "--short", "HEAD"])?;
    let etcd = said("etcd", &["--version"])?;
    let etcd = etcd.lines().next().unwrap_or_default().to_lowercase();
    let cores = std::thread::available_parallelism()?;
    let memory = fs::read_to_string("/proc/meminfo")?;
    let kib = memory.split_whitespace().nth(1).and_then(|kib| kib.parse::<u64>().ok()).unwrap_or_default();
    Ok(format!(
        "# The store beside etcd\n\nWritten by `cargo xtask bench store --record`; README.md says what the rows are. {date}, commit {commit}, \
         {cores} cores, {} GiB, {etcd}.\n",
        (kib + (1 << 19)) >> 20
    ))
}
