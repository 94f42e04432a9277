//! Upstream's nodes: its kubelet on Debian's containerd and network plugins, and where Debian's iptables is given, its kube-proxy.
//!
//! Each kubelet works below a cgroup of its own: in the usual one it would end what it does not know, other clusters' containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::side::{self, Part, Side};
use super::upstream::{self, Reach};
use super::{POD_NETWORK, SERVICE_NETWORK};
use crate::conformance::cache::Cache;
use crate::e2e::cluster;
use crate::e2e::host::{NODE_IP, run};
use crate::image;

const PAUSE: &str = "k8s.gcr.io/pause:3.2";
/// What the kubelet sets for the whole machine.
const SYSCTLS: [&str; 5] =
    ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys"];

/// Debian's packages that nodes use, unpacked and not installed.
#[derive(Clone, Default)]
pub struct Tools {
    /// Network plugins.
    plugins: PathBuf,
    /// Iptables and conntrack; without them nodes have no kube-proxy, and pods no ports of their host.
    filter: Option<PathBuf>,
}

impl Tools {
    /// The first time this needs the network.
    pub fn plugins(folder: &Path) -> Result<Self> {
        let plugins = unpacked(&folder.join("network-plugins"), &["containernetworking-plugins"])?.join("usr/lib/cni");
        Ok(Tools { plugins, filter: None })
    }

    /// As [`Tools::plugins`], and what services need.
    pub fn all(folder: &Path) -> Result<Self> {
        let filter = unpacked(&folder.join("packet-filter"), &FILTER_PACKAGES)?;
        let programs = filter.join("programs");
        fs::create_dir_all(&programs)?;
        for program in ["iptables", "ip6tables"] {
            for suffix in ["", "-save", "-restore"] {
                let link = programs.join(format!("{program}{suffix}"));
                let _ = fs::remove_file(&link);
                std::os::unix::fs::symlink(filter.join("usr/sbin/xtables-nft-multi"), link)?;
            }
        }
        Ok(Tools { filter: Some(filter), ..Tools::plugins(folder)? })
    }

    /// A part that finds the programs.
    fn part(&self, name: &'static str, program: PathBuf, args: Vec<String>) -> Part {
        let Some(filter) = &self.filter else { return Part { name, program, args } };
        let at = filter.display();
        let path = std::env::var("PATH").unwrap_or_default();
        let set = [
            format!("PATH={at}/programs:{at}/usr/sbin:/usr/sbin:/sbin:{path}"),
            format!("LD_LIBRARY_PATH={at}/lib"),
            format!("XTABLES_LIBDIR={at}/lib/xtables"),
            program.display().to_string(),
        ];
        Part { name, program: "env".into(), args: set.into_iter().chain(args).collect() }
    }
}

/// With the libraries that a machine may not have.
const FILTER_PACKAGES: [&str; 9] = [
    "iptables",
    "conntrack",
    "libip4tc2",
    "libip6tc2",
    "libxtables12",
    "libmnl0",
    "libnetfilter-conntrack3",
    "libnfnetlink0",
    "libnftnl11",
];

/// Packages below a folder, their libraries in `lib`.
fn unpacked(folder: &Path, packages: &[&str]) -> Result<PathBuf> {
    if folder.join("whole").is_file() {
        return Ok(folder.to_owned());
    }
    fs::create_dir_all(folder)?;
    let mut download = Command::new("apt-get");
    download.args(["-o", "APT::Sandbox::User=root", "download", "-qq"]).args(packages).current_dir(folder);
    run(&mut download)?;
    let script =
        "for package in *.deb; do dpkg -x \"$package\" .; done; ln -sfn usr/lib/$(uname -m)-linux-gnu lib; touch whole";
    run(Command::new("sh").args(["-euc", script]).current_dir(folder))?;
    Ok(folder.to_owned())
}

/// One of the nodes.
#[derive(Clone)]
pub struct Place {
    pub name: String,
    pub address: String,
    /// What the controller manager gives to the node that is registered as this one's number.
    pub pods: String,
    cgroup: String,
    /// All that the node writes lies here.
    pub work: PathBuf,
}

impl Place {
    /// Node `number`, from 1, of the cluster that is called `cluster` on this machine.
    pub fn new(cluster: &str, number: u32, work: PathBuf) -> Self {
        let prefix = NODE_IP.rsplit_once('.').map_or(NODE_IP, |(prefix, _)| prefix);
        Place {
            name: format!("node-{number}"),
            address: format!("{prefix}.{}", number + 1),
            pods: format!("10.64.{}.0/24", number - 1),
            cgroup: format!("coxswain-{cluster}-{number}"),
            work,
        }
    }

    fn at(&self, file: &str) -> String {
        self.work.join(file).display().to_string()
    }

    pub fn socket(&self) -> PathBuf {
        self.work.join("containerd.sock")
    }

    /// Writes what the node's processes read. `control` is the folder of the control plane.
    fn parts(&self, cache: &Cache, tools: &Tools, control: &Path) -> Result<Vec<Part>> {
        let kubelet = cache.program("kubelet");
        if !kubelet.is_file() {
            bail!("upstream's kubelet is not built yet");
        }
        fs::create_dir_all(self.work.join("cni"))?;
        fs::write(self.work.join("cni/10-pods.conflist"), self.network(tools).to_string())?;
        fs::write(self.work.join("containerd.toml"), self.containerd(&tools.plugins))?;
        fs::write(self.work.join("kubelet.json"), self.settings(control, tools).to_string())?;
        let kubeconfig = control.join("kubeconfig.yaml").display().to_string();
        let words = |flags: &[(&str, String)]| flags.iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
        let flags = [
            ("config", self.at("kubelet.json")),
            ("kubeconfig", kubeconfig.clone()),
            ("container-runtime", "remote".to_owned()),
            ("container-runtime-endpoint", format!("unix://{}", self.socket().display())),
            ("hostname-override", self.name.clone()),
            ("node-ip", self.address.clone()),
            ("root-dir", self.at("kubelet")),
            ("cert-dir", self.at("certificates")),
        ];
        let containerd = ["--config".to_owned(), self.at("containerd.toml")];
        let mut parts = vec![
            tools.part("containerd", "containerd".into(), containerd.into()),
            tools.part("kubelet", kubelet, words(&flags)),
        ];
        if tools.filter.is_some() {
            let flags = [
                ("kubeconfig", kubeconfig),
                ("hostname-override", self.name.clone()),
                ("proxy-mode", "iptables".to_owned()),
                ("cluster-cidr", POD_NETWORK.to_owned()),
                // That is set for the whole machine, which a network namespace cannot do.
                ("conntrack-max-per-core", "0".to_owned()),
            ];
            parts.push(tools.part("kube-proxy", cache.program("kube-proxy"), words(&flags)));
        }
        Ok(parts)
    }

    fn network(&self, tools: &Tools) -> serde_json::Value {
        let ranges = json!([[{"subnet": self.pods}]]);
        if tools.filter.is_none() {
            let ipam = json!({"type": "host-local", "ranges": ranges, "dataDir": self.work.join("addresses")});
            let bridge = json!({"type": "bridge", "bridge": "cni0", "isGateway": true, "ipam": ipam});
            return json!({"cniVersion": "0.4.0", "name": "pods", "plugins": [bridge]});
        }
        // Routed, not bridged: the packet filter of a network namespace would not see what a bridge passes on.
        let routes = json!([{"dst": "0.0.0.0/0"}]);
        let ipam =
            json!({"type": "host-local", "ranges": ranges, "routes": routes, "dataDir": self.work.join("addresses")});
        json!({
            "cniVersion": "0.4.0", "name": "pods",
            "plugins": [
                {"type": "ptp", "ipam": ipam},
                {"type": "portmap", "capabilities": {"portMappings": true}, "snat": true},
            ],
        })
    }

    fn containerd(&self, plugins: &Path) -> String {
        let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
        format!(
            "version = 2\nroot = \"{}\"\nstate = \"{}\"\n[grpc]\naddress = \"{}\"\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{}\"\n\
             [{cri}]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n\
             [{cri}.cni]\nconf_dir = \"{}\"\nbin_dir = \"{}\"\n\
             [{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n",
            self.at("containerd"),
            self.at("state"),
            self.socket().display(),
            self.at("opt"),
            self.at("cni"),
            plugins.display(),
        )
    }

    /// The defaults, but for what this machine cannot have and what is not measured.
    fn settings(&self, control: &Path, tools: &Tools) -> serde_json::Value {
        let dns = SERVICE_NETWORK.replace(".0.0/16", ".0.10");
        json!({
            "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
            "authentication": {
                "anonymous": {"enabled": false}, "webhook": {"enabled": false},
                "x509": {"clientCAFile": control.join("ca.crt")},
            },
            "authorization": {"mode": "AlwaysAllow"},
            "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{}", self.cgroup), "failSwapOn": false,
            "evictionHard": {"memory.available": "100Mi"}, "imageGCHighThresholdPercent": 100,
            "makeIPTablesUtilChains": tools.filter.is_some(), "healthzPort": 0, "resolvConf": "",
            "clusterDNS": [dns], "clusterDomain": "cluster.local", "volumePluginDir": self.work.join("volume-plugins"),
        })
    }

    fn cgroups(&self) -> Vec<PathBuf> {
        let root = Path::new("/sys/fs/cgroup");
        let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|e| e.path().join(&self.cgroup));
        hierarchies
            .chain([root.join(&self.cgroup)])
            .filter(|path| path.parent().is_some_and(|at| at.join("cgroup.procs").exists()))
            .collect()
    }
}

/// A node that is prepared; what the kubelet changes of the machine is put back when it goes.
pub struct Node {
    pub side: Side,
    pub place: Place,
    sysctls: Vec<(PathBuf, String)>,
}

impl Node {
    /// Prepares the only node together with its control plane in an empty folder; nothing runs yet.
    pub fn with_control_plane(cache: &Cache, work: &Path, tools: &Tools) -> Result<Self> {
        let place = Place::new("compare", 1, work.to_owned());
        let parts = place.parts(cache, tools, work)?;
        let side = upstream::side(cache, work, Reach::Loopback, parts)?;
        Ok(Node::around(side, place))
    }

    /// Prepares a node of a control plane that keeps its files in `control`; nothing runs yet.
    pub fn beside(cache: &Cache, place: Place, tools: &Tools, control: &Path) -> Result<Self> {
        let parts = place.parts(cache, tools, control)?;
        let side = Side::new("node", &place.work, control.join("kubeconfig.yaml"), &parts)?;
        Ok(Node::around(side, place))
    }

    fn around(side: Side, place: Place) -> Self {
        for hierarchy in place.cgroups() {
            // In all hierarchies that there are; the kubelet wants to find it.
            let _ = fs::create_dir(hierarchy);
        }
        let sysctls = SYSCTLS.map(|name| Path::new("/proc/sys").join(name));
        let sysctls = sysctls.into_iter().filter_map(|file| Some((file.clone(), fs::read_to_string(file).ok()?)));
        Node { side, place, sysctls: sysctls.collect() }
    }

    /// Gives containerd the images of the pods and of their sandboxes.
    pub fn load_images(&self, cache: &Cache) -> Result<()> {
        let mut tars = image::write_all(&image::test_images()?, &self.place.work.join("images"))?;
        let pause = fs::read(cache.program("pause")).context("upstream's pause")?;
        let files = [("pause".to_owned(), (pause, 0o755))].into();
        let sandbox = image::Image { reference: PAUSE, files, command: vec!["/pause"] };
        tars.extend(image::write_all(&[sandbox], &self.place.work.join("pause"))?);
        tars.iter().try_for_each(|tar| self.import(tar))
    }

    pub fn import(&self, tar: &Path) -> Result<()> {
        let mut ctr = Command::new("ctr");
        ctr.arg("--address").arg(self.place.socket()).args(["--namespace", "k8s.io", "images", "import"]).arg(tar);
        let output = ctr.output().context("ctr")?;
        if !output.status.success() {
            bail!("image import: {}", String::from_utf8_lossy(&output.stderr));
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.side.stop_parts(&["kube-proxy", "kubelet", "containerd"]);
        cluster::kill_with_descendants(&self.place.work.display().to_string());
        side::end(&self.place.work);
        for (file, value) in &self.sysctls {
            // As it was; where that fails it is as the kubelet wants it.
            let _ = fs::write(file, value);
        }
        for hierarchy in self.place.cgroups() {
            // Deepest first: only empty ones can go.
            let _ = Command::new("find")
                .arg(hierarchy)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                .output();
        }
    }
}
