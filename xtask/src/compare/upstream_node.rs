//! Upstream's node beside its control plane: its kubelet on Debian's containerd and network plugins. There is no kube-proxy, which
//! would need iptables.
//!
//! The kubelet works below a cgroup of its own: in the usual one it would end what it does not know, other clusters' containers.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::side::{self, Part, Side};
use super::upstream;
use crate::conformance::cache::Cache;
use crate::e2e::host::{NODE_IP, run};
use crate::image;

const NODE: &str = "node-1";
const CGROUP: &str = "coxswain-compare";
const PAUSE: &str = "k8s.gcr.io/pause:3.2";
/// What the controller manager gives to the first node.
const POD_NETWORK: &str = "10.64.0.0/24";
/// What the kubelet sets for the whole machine.
const SYSCTLS: [&str; 5] =
    ["vm/overcommit_memory", "vm/panic_on_oom", "kernel/panic", "kernel/panic_on_oops", "kernel/keys/root_maxkeys"];

/// A node that is prepared; what the kubelet changes of the machine is put back when it goes.
pub struct Node {
    pub side: Side,
    work: PathBuf,
    sysctls: Vec<(PathBuf, String)>,
}

impl Node {
    /// Prepares control plane and node in an empty folder; nothing runs yet.
    pub fn new(cache: &Cache, work: &Path, plugins: &Path) -> Result<Self> {
        let kubelet = cache.program("kubelet");
        if !kubelet.is_file() {
            bail!("upstream's kubelet is not built yet");
        }
        fs::create_dir_all(work.join("cni"))?;
        fs::write(work.join("cni/10-pods.conflist"), network(work).to_string())?;
        fs::write(work.join("containerd.toml"), containerd(work, plugins))?;
        fs::write(work.join("kubelet.json"), settings(work).to_string())?;
        for hierarchy in cgroups() {
            // In all hierarchies that there are; the kubelet wants to find it.
            let _ = fs::create_dir(hierarchy);
        }
        let at = |file: &str| work.join(file).display().to_string();
        let socket = format!("unix://{}", socket(work).display());
        let args = [
            ("config", at("kubelet.json")),
            ("kubeconfig", at("kubeconfig.yaml")),
            ("container-runtime", "remote".to_owned()),
            ("container-runtime-endpoint", socket),
            ("hostname-override", NODE.to_owned()),
            ("node-ip", NODE_IP.to_owned()),
            ("root-dir", at("kubelet")),
            ("cert-dir", at("certificates")),
        ];
        let words = args.iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
        let containerd = ["--config".to_owned(), at("containerd.toml")];
        let more = [
            Part { name: "containerd", program: "containerd".into(), args: containerd.into() },
            Part { name: "kubelet", program: kubelet, args: words },
        ];
        let sysctls = SYSCTLS.map(|name| Path::new("/proc/sys").join(name));
        let sysctls = sysctls.into_iter().filter_map(|file| Some((file.clone(), fs::read_to_string(file).ok()?)));
        let sysctls = sysctls.collect();
        Ok(Node { side: upstream::side(cache, work, more.into())?, work: work.to_owned(), sysctls })
    }

    /// Gives containerd the images of the pods and of their sandboxes.
    pub fn load_images(&self, cache: &Cache) -> Result<()> {
        let mut tars = image::write_all(&image::test_images()?, &self.work.join("images"))?;
        let pause = fs::read(cache.program("pause")).context("upstream's pause")?;
        let files = [("pause".to_owned(), (pause, 0o755))].into();
        let sandbox = image::Image { reference: PAUSE, files, command: vec!["/pause"] };
        tars.extend(image::write_all(&[sandbox], &self.work.join("pause"))?);
        for tar in tars {
            let mut ctr = Command::new("ctr");
            ctr.arg("--address").arg(socket(&self.work)).args(["--namespace", "k8s.io", "images", "import"]).arg(tar);
            let output = ctr.output().context("ctr")?;
            if !output.status.success() {
                bail!("image import: {}", String::from_utf8_lossy(&output.stderr));
            }
        }
        Ok(())
    }
}

impl Drop for Node {
    fn drop(&mut self) {
        self.side.stop_parts(&["kubelet", "containerd"]);
        side::end(&self.work);
        for (file, value) in &self.sysctls {
            // As it was; where that fails it is as the kubelet wants it.
            let _ = fs::write(file, value);
        }
        for hierarchy in cgroups() {
            // Deepest first: only empty ones can go.
            let _ = Command::new("find")
                .arg(hierarchy)
                .args(["-depth", "-type", "d", "-exec", "rmdir", "{}", ";"])
                .output();
        }
    }
}

fn socket(work: &Path) -> PathBuf {
    work.join("containerd.sock")
}

fn cgroups() -> Vec<PathBuf> {
    let root = Path::new("/sys/fs/cgroup");
    let hierarchies = fs::read_dir(root).into_iter().flatten().flatten().map(|entry| entry.path().join(CGROUP));
    hierarchies
        .chain([root.join(CGROUP)])
        .filter(|path| path.parent().is_some_and(|at| at.join("cgroup.procs").exists()))
        .collect()
}

/// Debian's network plugins, unpacked below `folder` and not installed. The first time this needs the network.
pub fn network_plugins(folder: &Path) -> Result<PathBuf> {
    let folder = folder.join("network-plugins");
    let plugins = folder.join("usr/lib/cni");
    if !plugins.is_dir() {
        fs::create_dir_all(&folder)?;
        run(Command::new("apt-get")
            .args(["-o", "APT::Sandbox::User=root", "download", "-qq", "containernetworking-plugins"])
            .current_dir(&folder))?;
        run(Command::new("sh").args(["-euc", "dpkg -x containernetworking-plugins_*.deb ."]).current_dir(&folder))?;
    }
    Ok(plugins)
}

fn network(work: &Path) -> serde_json::Value {
    json!({
        "cniVersion": "0.4.0", "name": "pods",
        "plugins": [{
            "type": "bridge", "bridge": "cni0", "isGateway": true,
            "ipam": {"type": "host-local", "ranges": [[{"subnet": POD_NETWORK}]], "dataDir": work.join("addresses")},
        }],
    })
}

fn containerd(work: &Path, plugins: &Path) -> String {
    let cri = "plugins.\"io.containerd.grpc.v1.cri\"";
    let at = |file: &str| work.join(file).display().to_string();
    format!(
        "version = 2\nroot = \"{}\"\nstate = \"{}\"\n[grpc]\naddress = \"{}\"\n[plugins.\"io.containerd.internal.v1.opt\"]\npath = \"{}\"\n\
         [{cri}]\nsandbox_image = \"{PAUSE}\"\nrestrict_oom_score_adj = true\nnetns_mounts_under_state_dir = true\n\
         [{cri}.cni]\nconf_dir = \"{}\"\nbin_dir = \"{}\"\n\
         [{cri}.containerd.runtimes.runc]\nruntime_type = \"io.containerd.runc.v2\"\n",
        at("containerd"),
        at("state"),
        socket(work).display(),
        at("opt"),
        at("cni"),
        plugins.display(),
    )
}

/// The defaults, but for what this machine cannot have and what is not measured.
fn settings(work: &Path) -> serde_json::Value {
    json!({
        "apiVersion": "kubelet.config.k8s.io/v1beta1", "kind": "KubeletConfiguration",
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": false}, "x509": {"clientCAFile": work.join("ca.crt")}},
        "authorization": {"mode": "AlwaysAllow"},
        "cgroupDriver": "cgroupfs", "cgroupRoot": format!("/{CGROUP}"), "failSwapOn": false,
        "evictionHard": {"memory.available": "100Mi"}, "imageGCHighThresholdPercent": 100,
        "makeIPTablesUtilChains": false, "healthzPort": 0, "resolvConf": "",
    })
}
