//! `coxswain check`: what this machine lacks to run a server with these settings, one line each with the mend.
//!
//! Looks and tries, and leaves nothing behind; kernel features are tried in a network namespace of their own.

use std::net::{IpAddr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use nix::fcntl::{Flock, FlockArg};
use nix::unistd::{AccessFlags, access};

use crate::config::Server;
use crate::node;

/// A unix socket's path has at most this many bytes.
const SOCKET_PATH_BYTES: usize = 107;
/// Below this, images and logs soon fill the disk.
const COMFORTABLE_BYTES: u64 = 2 << 30;
/// What limits of pods are made of.
const CONTROLLERS: [&str; 4] = ["cpu", "cpuset", "memory", "pids"];

/// One thing a server needs.
struct Check {
    what: String,
    found: Found,
}

enum Found {
    Fine,
    /// It works, but not as it should.
    Poor(String),
    Missing {
        mend: String,
    },
}

impl Check {
    fn new(what: impl Into<String>, met: bool, mend: impl Into<String>) -> Self {
        let found = if met { Found::Fine } else { Found::Missing { mend: mend.into() } };
        Check { what: what.into(), found }
    }

    fn tried<E: std::fmt::Display>(what: impl Into<String>, outcome: Result<(), E>, mend: &str) -> Self {
        let found = match outcome {
            Ok(()) => Found::Fine,
            Err(error) => Found::Missing { mend: format!("{mend} ({error})") },
        };
        Check { what: what.into(), found }
    }

    fn better(what: impl Into<String>, met: bool, mend: impl Into<String>) -> Self {
        let found = if met { Found::Fine } else { Found::Poor(mend.into()) };
        Check { what: what.into(), found }
    }

    fn line(&self) -> String {
        match &self.found {
            Found::Fine => format!("ok       {}", self.what),
            Found::Poor(mend) => format!("poor     {}: {mend}", self.what),
            Found::Missing { mend } => format!("missing  {}: {mend}", self.what),
        }
    }
}

/// Fails if anything is missing.
pub fn run(config: &Server) -> ExitCode {
    let mut checks = storage(config);
    checks.extend(ports(config));
    if config.agent {
        checks.extend(machine(config));
        checks.extend(kernel());
    }
    for check in &checks {
        println!("{}", check.line());
    }
    let missing = checks.iter().any(|check| matches!(check.found, Found::Missing { .. }));
    if missing { ExitCode::FAILURE } else { ExitCode::SUCCESS }
}

fn storage(config: &Server) -> Vec<Check> {
    let dir = &config.host.data_dir;
    let existing = dir.ancestors().find(|d| d.exists()).unwrap_or(Path::new("/"));
    let writable = existing.is_dir() && access(existing, AccessFlags::W_OK | AccessFlags::X_OK).is_ok();
    let free = nix::sys::statvfs::statvfs(existing).map_or(0, |fs| fs.blocks_available() * fs.fragment_size());
    vec![
        Check::new(
            format!("data folder {} can be written", dir.display()),
            writable,
            format!("{} refuses; choose another with --data-dir", existing.display()),
        ),
        Check::better(
            format!("{} MiB free for data", free >> 20),
            free >= COMFORTABLE_BYTES,
            format!("images and logs need room, have {} MiB or more", COMFORTABLE_BYTES >> 20),
        ),
    ]
}

/// The ports to listen on. Those of a server that runs with these settings are taken, and rightly so.
fn ports(config: &Server) -> Vec<Check> {
    let lock = std::fs::File::open(config.host.data_dir.join("lock")).ok();
    let running = lock.is_some_and(|file| Flock::lock(file, FlockArg::LockExclusiveNonblock).is_err());
    if running {
        return vec![Check::new(format!("a server is running on {}", config.host.data_dir.display()), true, "")];
    }
    let check = |what: &str, address: SocketAddr, bound: std::io::Result<()>, mend: &str| {
        Check::tried(format!("{what} {address} is free"), bound, mend)
    };
    let tcp = |address: SocketAddr| TcpListener::bind(address).map(drop);
    let stop = "stop what listens there (ss -tulnp)";
    let api = SocketAddr::new(config.host.bind_address, config.port);
    let mut checks = vec![check("TCP", api, tcp(api), "stop what listens there (ss -tlnp) or set --https-listen-port")];
    if config.agent {
        let kubelet = SocketAddr::new(config.host.bind_address, node::KUBELET_PORT);
        checks.push(check("TCP", kubelet, tcp(kubelet), stop));
        let dns = SocketAddr::new(config.host.node_ip, node::DNS_PORT);
        if config.enabled("dns") {
            checks.push(check("TCP", dns, tcp(dns), stop));
            checks.push(check("UDP", dns, UdpSocket::bind(dns).map(drop), stop));
        }
        if config.enabled("kube-proxy") {
            let health = SocketAddr::new(IpAddr::from([0, 0, 0, 0]), node::PROXY_HEALTHZ_PORT);
            checks.push(check("TCP", health, tcp(health), stop));
        }
    }
    checks
}

fn machine(config: &Server) -> Vec<Check> {
    let mut checks = vec![Check::new("root privileges", nix::unistd::geteuid().is_root(), "run as root")];
    match &config.host.runtime_endpoint {
        Some(endpoint) => {
            let socket = endpoint.strip_prefix("unix://").unwrap_or(endpoint);
            let answers = std::os::unix::net::UnixStream::connect(socket).map(drop);
            checks.push(Check::tried(format!("container runtime on {endpoint}"), answers, "start it"));
        }
        None => {
            let socket = node::containerd_socket(&config.host);
            let containerd = cri::containerd::find_binary();
            checks.extend([
                Check::new("containerd", containerd.is_some(), "apt-get install containerd"),
                Check::new("ctr", on_path("ctr").is_some(), "apt-get install containerd"),
                Check::new("runc", on_path("runc").is_some(), "apt-get install runc"),
                Check::new(
                    "data folder's path is short enough for sockets",
                    socket.as_os_str().len() <= SOCKET_PATH_BYTES,
                    format!("{} is longer than {SOCKET_PATH_BYTES} bytes; shorten --data-dir", socket.display()),
                ),
            ]);
        }
    }
    checks.push(Check::better(
        format!("node address {}", config.host.node_ip),
        !config.host.node_ip.is_loopback(),
        "no default route tells another; set --node-ip for a node that others can reach",
    ));
    checks
}

fn kernel() -> Vec<Check> {
    let mut checks: Vec<Check> = CONTROLLERS.into_iter().map(cgroup).collect();
    checks.push(Check::better(
        "overlay file system",
        on_file_system_list("overlay") || Path::new("/sys/module/overlay").exists(),
        "modprobe overlay; without it each container copies its image",
    ));
    checks.push(Check::new(
        "IP forwarding can be switched on",
        access("/proc/sys/net/ipv4/ip_forward", AccessFlags::W_OK).is_ok(),
        "make /proc/sys writable",
    ));
    // A thread has a network namespace of its own; it goes with the thread.
    let tried = std::thread::spawn(network_features).join();
    checks.extend(tried.unwrap_or_default());
    checks
}

fn cgroup(controller: &'static str) -> Check {
    let met = match std::fs::read_to_string("/sys/fs/cgroup/cgroup.controllers") {
        Ok(controllers) => controllers.split_whitespace().any(|c| c == controller),
        Err(_) => Path::new("/sys/fs/cgroup").join(controller).is_dir(),
    };
    let mend = match controller {
        "memory" => "add cgroup_enable=memory to the kernel's command line and reboot",
        _ => "mount it under /sys/fs/cgroup, or run a kernel that has it",
    };
    Check::new(format!("{controller} cgroup"), met, mend)
}

fn network_features() -> Vec<Check> {
    let entered = nix::sched::unshare(nix::sched::CloneFlags::CLONE_NEWNET);
    let mut checks = vec![Check::tried("network namespaces", entered, "run with CAP_SYS_ADMIN")];
    if entered.is_ok() {
        checks.push(Check::tried("veth links", veth(), "modprobe veth"));
        let tables = network::nft::exists(network::nft::Family::V4, "coxswain-check").map(drop);
        checks.push(Check::tried("nf_tables", tables, "modprobe nf_tables"));
    }
    checks
}

fn veth() -> anyhow::Result<()> {
    let namespace = std::fs::File::open("/proc/thread-self/ns/net")?;
    network::netlink::route::Handle::open()?.add_veth("check0", "check1", namespace.as_fd(), 1500)?;
    Ok(())
}

fn on_path(program: &str) -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/sbin", "/usr/local/bin", "/usr/sbin", "/usr/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join(program)).find(|file| file.is_file())
}

fn on_file_system_list(name: &str) -> bool {
    let listed = std::fs::read_to_string("/proc/filesystems").unwrap_or_default();
    listed.split_whitespace().any(|word| word == name)
}
