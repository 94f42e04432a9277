//! Network namespaces for tests that send real packets. All need root, and say so.

mod sctp;

use std::fs::File;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::thread;
use std::time::Duration;

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns, unshare};
use serde_json::{Value, json};

use crate::cni;
use crate::netlink::route::{Handle, Route, Via};
use std::os::fd::AsFd as _;

pub const POD_CIDR: &str = "10.42.0.0/24";
pub const CLUSTER_CIDR: &str = "10.42.0.0/16";
pub const NODE_IP: &str = "192.168.50.1";
pub const OUTSIDE_IP: &str = "192.168.50.9";
pub const NODE_IP6: &str = "fd50::1";
pub const OUTSIDE_IP6: &str = "fd50::9";
const PATIENCE: Duration = Duration::from_secs(2);

/// A network namespace that lives as long as this, with a path by which others can open it.
pub struct Namespace {
    file: File,
    path: PathBuf,
}

impl Namespace {
    pub fn new() -> Self {
        let made = thread::spawn(|| {
            unshare(CloneFlags::CLONE_NEWNET).expect("this test makes network namespaces: run it as root");
            let mut handle = Handle::open().unwrap();
            let lo = handle.expect_link("lo").unwrap();
            handle.set_up(lo.index).unwrap();
            File::open("/proc/thread-self/ns/net").unwrap()
        });
        let file = made.join().expect("a namespace");
        use std::os::fd::AsRawFd as _;
        let path = PathBuf::from(format!("/proc/{}/fd/{}", std::process::id(), file.as_raw_fd()));
        Namespace { file, path }
    }

    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Runs `work` on a thread inside.
    pub fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        thread::scope(|scope| {
            let inside = scope.spawn(|| {
                setns(&self.file, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            });
            inside.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Starts a server: to whatever comes by TCP or UDP on `port` it answers `<name> <client's address>`.
    pub fn serve(&self, name: &str, port: u16) {
        let (name_tcp, name_udp) = (name.to_owned(), name.to_owned());
        let (tcp, udp) =
            self.run(move || (TcpListener::bind(("::", port)).unwrap(), UdpSocket::bind(("::", port)).unwrap()));
        thread::spawn(move || {
            for connection in tcp.incoming().flatten() {
                let mut connection = connection;
                let peer = connection.peer_addr().unwrap().ip().to_canonical();
                let _ = connection.write_all(format!("{name_tcp} {peer}").as_bytes());
            }
        });
        thread::spawn(move || {
            let mut buffer = [0; 64];
            while let Ok((_, peer)) = udp.recv_from(&mut buffer) {
                let _ = udp.send_to(format!("{name_udp} {}", peer.ip().to_canonical()).as_bytes(), peer);
            }
        });
    }

    /// What a server answers by TCP; `refused` or `silence` if none does.
    pub fn ask_tcp(&self, to: &str) -> String {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            let mut connection = match TcpStream::connect_timeout(&to, Duration::from_secs(3)) {
                Ok(connection) => connection,
                Err(error) => return word_for(&error),
            };
            connection.set_read_timeout(Some(PATIENCE)).unwrap();
            let mut answer = String::new();
            connection.read_to_string(&mut answer).map_or_else(|error| word_for(&error), |_| answer)
        })
    }

    /// What a server answers by UDP from a given source port (zero: any).
    pub fn ask_udp_from(&self, port: u16, to: &str) -> String {
        let to: SocketAddr = to.parse().unwrap();
        self.run(move || {
            let socket = UdpSocket::bind((if to.is_ipv4() { "0.0.0.0" } else { "::" }, port)).unwrap();
            socket.connect(to).unwrap();
            socket.set_read_timeout(Some(Duration::from_secs(2))).unwrap();
            socket.send(b"hello").unwrap();
            let mut buffer = [0; 64];
            match socket.recv(&mut buffer) {
                Ok(len) => String::from_utf8_lossy(&buffer[..len]).into_owned(),
                Err(error) => word_for(&error),
            }
        })
    }

    pub fn ask_udp(&self, to: &str) -> String {
        self.ask_udp_from(0, to)
    }

    /// Runs the `nft` program inside; returns what it prints.
    pub fn nft(&self, arguments: &[&str]) -> String {
        self.run(|| {
            let output = Command::new("nft").args(arguments).stdin(Stdio::null()).output();
            let output = output.expect("these tests read back with the program nft (Debian package nftables)");
            assert!(output.status.success(), "nft {arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
            String::from_utf8(output.stdout).unwrap()
        })
    }
}

fn word_for(error: &std::io::Error) -> String {
    match error.kind() {
        std::io::ErrorKind::ConnectionRefused => "refused".into(),
        std::io::ErrorKind::TimedOut | std::io::ErrorKind::WouldBlock => "silence".into(),
        _ => error.to_string(),
    }
}

/// A node with an outside world: the host has 192.168.50.1, the outside 192.168.50.9 and its default route through it.
pub struct Site {
    pub host: Namespace,
    pub outside: Namespace,
    pub data: tempfile::TempDir,
}

impl Site {
    pub fn new() -> Self {
        let (host, outside) = (Namespace::new(), Namespace::new());
        host.run(|| {
            std::fs::write("/proc/sys/net/ipv4/ip_forward", "1").unwrap();
            let mut handle = Handle::open().unwrap();
            handle.add_veth("uplink", "eth0", outside.file.as_fd(), 1500).unwrap();
            connect(&mut handle, "uplink", &format!("{NODE_IP}/24"), OUTSIDE_IP);
        });
        outside.run(|| connect(&mut Handle::open().unwrap(), "eth0", &format!("{OUTSIDE_IP}/24"), NODE_IP));
        Site { host, outside, data: tempfile::tempdir().unwrap() }
    }

    /// Gives host and outside IPv6 addresses as well.
    pub fn add_ipv6(&self) {
        self.host.run(|| {
            std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
            without_duplicate_detection("uplink");
            connect(&mut Handle::open().unwrap(), "uplink", &format!("{NODE_IP6}/64"), OUTSIDE_IP6);
        });
        self.outside.run(|| {
            without_duplicate_detection("eth0");
            connect(&mut Handle::open().unwrap(), "eth0", &format!("{OUTSIDE_IP6}/64"), NODE_IP6);
        });
    }

    pub fn cni_config(&self, extra: Value) -> Value {
        let mut config = json!({
            "cniVersion": "1.0.0", "name": "coxswain", "type": "coxswain-cni",
            "dataDir": self.data.path(), "podCIDRs": [POD_CIDR], "clusterCIDRs": [CLUSTER_CIDR],
        });
        config.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        config
    }

    /// Calls the plugin as the runtime does.
    pub fn cni(&self, command: &str, container: &str, netns: &Path, config: &Value) -> cni::Outcome {
        let netns = netns.to_str().unwrap().to_owned();
        let environment = |name: &str| match name {
            "CNI_COMMAND" => Some(command.to_owned()),
            "CNI_CONTAINERID" => Some(container.to_owned()),
            "CNI_IFNAME" => Some("eth0".to_owned()),
            "CNI_NETNS" => Some(netns.clone()),
            _ => None,
        };
        let stdin = config.to_string();
        // Sync is not needed of the closure: the call happens on one thread.
        self.host.run(move || cni::main(environment, stdin.as_bytes()))
    }

    /// A pod connected by our own plugin, with a server on port 8080.
    pub fn pod(&self, name: &str) -> Pod {
        self.pod_with(name, json!({}))
    }

    pub fn pod_with(&self, name: &str, extra: Value) -> Pod {
        let namespace = Namespace::new();
        let outcome = self.cni("ADD", name, namespace.path(), &self.cni_config(extra));
        assert_eq!(outcome.exit_code, 0, "{}", outcome.stdout);
        let result: Value = serde_json::from_str(&outcome.stdout).unwrap();
        let address = result["ips"][0]["address"].as_str().unwrap().parse::<IpNet>().unwrap().addr();
        namespace.serve(name, 8080);
        Pod { namespace, address, result }
    }
}

pub struct Pod {
    pub namespace: Namespace,
    pub address: IpAddr,
    pub result: Value,
}

/// A link that is up already is detecting: down and up again.
fn without_duplicate_detection(link: &str) {
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/accept_dad"), "0").unwrap();
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "1").unwrap();
    std::fs::write(format!("/proc/sys/net/ipv6/conf/{link}/disable_ipv6"), "0").unwrap();
}

fn connect(handle: &mut Handle, link: &str, address: &str, gateway: &str) {
    let link = handle.expect_link(link).unwrap();
    handle.add_address(link.index, address.parse().unwrap()).unwrap();
    handle.set_up(link.index).unwrap();
    let gateway: IpAddr = gateway.parse().unwrap();
    let everywhere = if gateway.is_ipv4() { "0.0.0.0/0" } else { "::/0" };
    let via = Via::OnLinkGateway { index: link.index, address: gateway };
    handle.set_route(&Route { destination: everywhere.parse().unwrap(), via, metric: 0 }).unwrap();
}
