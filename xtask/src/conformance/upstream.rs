//! Upstream's own cluster, of the suite's version: control plane and nodes, each node on a host of its own. Beside it the suite runs
//! as beside ours. Knows nothing of tests.
//!
//! A host is a namespace for mounts, since upstream's kubelet keeps logs and device plugins where every kubelet of a machine does, and
//! but for the first node's a network namespace on the cluster's link. There is no cluster DNS.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use super::cache::Cache;
use crate::compare::side::{self, Side};
use crate::compare::upstream::{self, Reach};
use crate::compare::upstream_node::{Node, Place, Tools};
use crate::e2e::host::{BRIDGE, NODE_IP, run};

const READY_WITHIN: Duration = Duration::from_secs(120);

/// Mounts over what kubelets share otherwise, then stays for as long as the host is to be.
const HOST: &str = r#"mkdir -p "$1/log" "$1/plugins" /var/lib/kubelet
mount --make-rshared /
mount --bind "$1/log" /var/log
mount --bind "$1/plugins" /var/lib/kubelet
touch "$1/host"
exec tail -f "$1/host"
"#;

/// Connects the host of process `$1` to the link `$3` by `veth-$2`, with the address `$4`, and through `$5` to all else.
const CONNECT: &str = r#"ip link delete "veth-$2" 2>/dev/null || true
ip link add "veth-$2" type veth peer name eth0 netns "$1"
ip link set "veth-$2" master "$3" up
nsenter --target "$1" --net sh -euc 'ip link set lo up; ip address add "$1/24" dev eth0; ip link set eth0 up
ip route add default via "$2"' sh "$4" "$5"
"#;

/// A running cluster. It stops when this goes.
pub struct Cluster {
    // In the order in which they go.
    nodes: Vec<Node>,
    hosts: Vec<Host>,
    control: Side,
    kubectl: PathBuf,
}

impl Cluster {
    /// Starts from nothing: whatever an earlier run left in `work` goes first. Must run in the cluster's network.
    pub fn start(cache: &Cache, tools: &Tools, work: &Path, nodes: u32) -> Result<Self> {
        side::end(work);
        let _ = fs::remove_dir_all(work);
        fs::create_dir_all(work)?;
        let control = upstream::side(cache, work, Reach::Nodes, Vec::new())?;
        run(&mut Command::new(control.starter()))?;
        let kubectl = cache.program("kubectl");
        let mut cluster = Cluster { nodes: Vec::new(), hosts: Vec::new(), control, kubectl };
        cluster.wait("the API server", &["get", "--raw", "/readyz"], "ok")?;
        for number in 1..=nodes {
            // A kubelet ends what it finds in its cgroup, so those of two runs at a time must differ.
            let name = format!("upstream-{}", std::process::id());
            cluster.join(cache, tools, Place::new(&name, number, work.join(format!("node-{number}"))))?;
        }
        Ok(cluster)
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.control.kubeconfig.clone()
    }

    pub fn describe(&self) -> String {
        let pid = self.control.pids().ok().and_then(|pids| pids.first().cloned()).unwrap_or_default();
        format!("nsenter --net=/proc/{pid}/ns/net kubectl --kubeconfig {}", self.kubeconfig().display())
    }

    /// Starts a node and gives it the images of the tests. One at a time: pod networks are given out in that order.
    fn join(&mut self, cache: &Cache, tools: &Tools, place: Place) -> Result<()> {
        fs::create_dir_all(&place.work)?;
        let host = Host::new(&place)?;
        let node = Node::beside(cache, place.clone(), tools, &self.control.work)?;
        let started = host.enter().arg(node.side.starter()).status().context("nsenter")?;
        // Kept in any case, so that they stop.
        self.hosts.push(host);
        self.nodes.push(node);
        if !started.success() {
            bail!("{} does not start", place.name);
        }
        let ready = "jsonpath={.status.conditions[?(@.type=='Ready')].status} {.spec.podCIDR}";
        self.wait(&place.name, &["get", "node", &place.name, "-o", ready], &format!("True {}", place.pods))?;
        self.connect_pods()?;
        self.nodes.iter().rev().take(1).try_for_each(|node| node.import(&cache.at("images.tar")))
    }

    /// Has each host reach the pods of the others; an address that no pod of its own has leads nowhere.
    fn connect_pods(&self) -> Result<()> {
        for host in &self.hosts {
            for Node { place, .. } in &self.nodes {
                let mut route = host.enter();
                route.args(["ip", "route", "replace"]);
                if place.address == host.address {
                    route.args(["unreachable", &place.pods]);
                } else {
                    route.args([&place.pods, "via", &place.address]);
                }
                run(&mut route)?;
            }
        }
        Ok(())
    }

    /// Until kubectl says so.
    fn wait(&self, what: &str, words: &[&str], wanted: &str) -> Result<()> {
        let started = Instant::now();
        loop {
            let mut kubectl = Command::new(&self.kubectl);
            let output = kubectl.arg("--kubeconfig").arg(self.kubeconfig()).args(words).output()?;
            let said = String::from_utf8_lossy(&output.stdout);
            if output.status.success() && said.trim() == wanted {
                println!("upstream: {what} is ready after {:.1}s", started.elapsed().as_secs_f64());
                return Ok(());
            }
            if started.elapsed() > READY_WITHIN {
                let complaint = String::from_utf8_lossy(&output.stderr);
                bail!("{what} is not ready: {said} {complaint}; the logs are in {}", self.control.work.display());
            }
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

/// Namespaces of a node, held by a process.
struct Host {
    holder: Child,
    address: String,
}

impl Host {
    fn new(place: &Place) -> Result<Self> {
        let first = place.address == NODE_IP;
        let mut unshare = Command::new("unshare");
        unshare.args(["--mount"].into_iter().chain((!first).then_some("--net")));
        unshare.args(["sh", "-euc", HOST, "sh"]).arg(&place.work);
        let errors = fs::File::create(place.work.join("host.log"))?;
        let holder = unshare.stdin(Stdio::null()).stdout(Stdio::null()).stderr(errors).spawn().context("unshare")?;
        let mut host = Host { holder, address: place.address.clone() };
        while !place.work.join("host").is_file() {
            if let Some(status) = host.holder.try_wait()? {
                bail!("the host of {} has ended: {status}; see host.log in {}", place.name, place.work.display());
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        if !first {
            let pid = host.holder.id().to_string();
            let words = [pid.as_str(), place.name.as_str(), BRIDGE, place.address.as_str(), NODE_IP];
            run(Command::new("sh").args(["-euc", CONNECT, "sh"]).args(words))?;
        }
        Ok(host)
    }

    /// Followed by a command, runs it there.
    fn enter(&self) -> Command {
        let mut command = Command::new("nsenter");
        command.args(["--target", &self.holder.id().to_string(), "--mount", "--net"]);
        command
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        // It may have ended by itself.
        self.holder.kill().ok();
        self.holder.wait().ok();
    }
}
