//! One of the two control planes: how its processes start, what they are, how they stop.

use std::fmt::Write as _;
use std::fs;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::e2e::host::run;

/// A process that has not stopped by then is killed.
const STOP_LIMIT: Duration = Duration::from_secs(20);

/// A process of a control plane.
pub struct Part {
    pub name: &'static str,
    pub program: PathBuf,
    pub args: Vec<String>,
}

/// Processes that make one control plane. They stop when it goes.
pub struct Side {
    pub name: &'static str,
    /// All that is written lies here.
    pub work: PathBuf,
    pub kubeconfig: PathBuf,
    parts: Vec<&'static str>,
}

impl Side {
    /// Writes the program that starts the parts, in this order and without waiting.
    pub fn new(name: &'static str, work: &Path, kubeconfig: PathBuf, parts: &[Part]) -> Result<Self> {
        let mut script = "#!/bin/sh -eu\n".to_owned();
        for Part { name, program, args } in parts {
            let (log, pid) = (work.join(format!("{name}.log")), work.join(format!("{name}.pid")));
            let quoted: Vec<String> = args.iter().map(|arg| format!("'{arg}'")).collect();
            let (program, log, pid) = (program.display(), log.display(), pid.display());
            writeln!(script, "setsid {program} {} </dev/null >>{log} 2>&1 &\necho $! >{pid}", quoted.join(" "))?;
        }
        let side =
            Side { name, work: work.to_owned(), kubeconfig, parts: parts.iter().map(|part| part.name).collect() };
        fs::write(side.starter(), script)?;
        run(std::process::Command::new("chmod").arg("+x").arg(side.starter()))?;
        Ok(side)
    }

    /// The program that starts it in the background.
    pub fn starter(&self) -> PathBuf {
        self.work.join("start")
    }

    fn pid(&self, part: &str) -> Result<i32> {
        let file = self.work.join(format!("{part}.pid"));
        let text = fs::read_to_string(&file).with_context(|| format!("cannot read {}", file.display()))?;
        text.trim().parse().with_context(|| file.display().to_string())
    }

    /// The processes that run.
    pub fn pids(&self) -> Result<Vec<String>> {
        let all: Result<Vec<i32>> = self.parts.iter().map(|part| self.pid(part)).collect();
        Ok(all?.into_iter().filter(|pid| alive(*pid)).map(|pid| pid.to_string()).collect())
    }

    pub fn stop_parts(&self, parts: &[&str]) {
        for part in parts {
            if let Ok(pid) = self.pid(part) {
                stop(pid);
            }
        }
    }
}

/// Ends every process that names the folder on its command line (shims, and with them their containers; what an earlier run that was
/// killed has left), and unmounts what is in it.
pub fn end(work: &Path) {
    let name = work.display().to_string();
    for entry in fs::read_dir("/proc").into_iter().flatten().flatten() {
        let pid = entry.file_name().to_str().and_then(|name| name.parse().ok());
        let command = fs::read(entry.path().join("cmdline")).unwrap_or_default();
        if let Some(pid) = pid.filter(|_| String::from_utf8_lossy(&command).contains(&name)) {
            // Gone already, at worst.
            kill(Pid::from_raw(pid), Signal::SIGKILL).ok();
        }
    }
    let mounts = fs::read_to_string("/proc/mounts").unwrap_or_default();
    let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1));
    for point in points.filter(|point| point.starts_with(&name)) {
        let _ = std::process::Command::new("umount").args(["-l", point]).output();
    }
}

impl Drop for Side {
    fn drop(&mut self) {
        // Against the order of the start: what stores, last.
        let parts: Vec<&str> = self.parts.iter().rev().copied().collect();
        self.stop_parts(&parts);
    }
}

fn alive(pid: i32) -> bool {
    let status = fs::read_to_string(format!("/proc/{pid}/status")).unwrap_or_default();
    status.lines().any(|line| line.starts_with("State:") && !line.contains('Z'))
}

fn stop(pid: i32) {
    let begun = Instant::now();
    let mut signal = Signal::SIGTERM;
    while alive(pid) {
        // It may have ended meanwhile.
        kill(Pid::from_raw(pid), signal).ok();
        if begun.elapsed() > STOP_LIMIT {
            signal = Signal::SIGKILL;
        }
        std::thread::sleep(Duration::from_millis(100));
    }
}
