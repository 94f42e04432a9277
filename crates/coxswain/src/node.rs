//! The node: container runtime, pod network, kube-proxy, cluster DNS and kubelet, in the order in which they need each other.

use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use anyhow::{Context as _, Result, anyhow, bail};
use cri::containerd::{Settings, Supervisor, find_binary};
use kubelet::Kubelet;
use network::dns::{DnsConfig, Upstreams, run_dns};
use network::podnet::{PodNetConfig, run_podnet};
use network::proxy::{ProxyConfig, run_proxy};
use tokio::net::TcpListener;

use crate::config::{Cluster, Host};
use crate::process::Process;
use crate::progress::Progress;
use crate::{GIT_VERSION, pause};

pub const KUBELET_PORT: u16 = 10250;
/// Pods reach DNS at port 53 of its service; this is the port behind it, on the node's own address.
pub const DNS_PORT: u16 = 10053;
/// kube-proxy's health, as upstream.
pub const PROXY_HEALTHZ_PORT: u16 = 10256;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// What makes a node of this machine.
pub struct Node<'a> {
    pub host: &'a Host,
    pub cluster: &'a Cluster,
    /// Whether kube-proxy and the cluster's DNS run here.
    pub proxy: bool,
    pub dns: bool,
    /// The kubelet's half of TLS.
    pub tls: Arc<rustls::ServerConfig>,
}

/// Starts everything that makes this machine a node.
pub async fn start(node: &Node<'_>, process: &Process, progress: &Progress) -> Result<()> {
    let Node { host, cluster, .. } = *node;
    if !nix::unistd::geteuid().is_root() {
        bail!("a node needs root privileges; without them a server can offer the API alone, with --disable-agent");
    }
    // First, since a port in use is found out at once.
    let address = SocketAddr::new(host.bind_address, KUBELET_PORT);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let podnet = podnet_config(host, cluster)?;
    let endpoint = match &host.runtime_endpoint {
        Some(endpoint) => endpoint.clone(),
        None => start_containerd(host, &podnet, process).await?,
    };
    progress.step(format_args!("container runtime ready on {endpoint}"));
    let node_user = format!("system:node:{}", host.node_name);
    let as_node = || process.context(&node_user, &["system:nodes"]);

    spawn(process, "pod network", run_podnet(as_node(), podnet.clone()));
    if node.proxy {
        let settings = ProxyConfig {
            node_name: host.node_name.clone(),
            cluster_cidrs: podnet.cluster_cidrs.clone(),
            service_cidrs: podnet.service_cidrs.clone(),
            healthz: Some(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), PROXY_HEALTHZ_PORT)),
        };
        spawn(process, "kube-proxy", run_proxy(process.context("system:kube-proxy", &[]), settings));
    }
    if node.dns {
        let settings = DnsConfig {
            listen: SocketAddr::new(host.node_ip, DNS_PORT),
            cluster_domain: cluster.cluster_domain.clone(),
            cluster_dns_ip: cluster.cluster_dns.into(),
            service_cidrs: podnet.service_cidrs.clone(),
            cluster_cidrs: podnet.cluster_cidrs.clone(),
            upstreams: Upstreams::File(PathBuf::from(RESOLV_CONF)),
            node_name: host.node_name.clone(),
        };
        spawn(process, "cluster DNS", run_dns(process.context("system:kube-dns", &[]), settings));
    }
    start_kubelet(node, process, listener, &endpoint, as_node())?;
    progress.step(format_args!("node {} started", host.node_name));
    Ok(())
}

/// A component that cannot go on is reported; the others stay.
fn spawn<F, E>(process: &Process, name: &'static str, work: F)
where
    F: Future<Output = Result<(), E>> + Send + 'static,
    E: std::fmt::Display + Send + 'static,
{
    process.tasks.spawn(async move {
        if let Err(error) = work.await {
            tracing::error!(component = name, %error, "stopped");
        }
    });
}

fn podnet_config(host: &Host, cluster: &Cluster) -> Result<PodNetConfig> {
    Ok(PodNetConfig {
        node_name: host.node_name.clone(),
        node_ips: vec![host.node_ip],
        cluster_cidrs: vec![cluster.cluster_cidr.parse().context("--cluster-cidr")?],
        service_cidrs: vec![cluster.service_cidr.parse().context("--service-cidr")?],
        cni_dir: host.data_dir.join("cni"),
        executable: std::env::current_exe().context("cannot find this program's own file")?,
    })
}

/// Starts the installed containerd on folders of ours, or takes over the one that an earlier server started.
async fn start_containerd(host: &Host, podnet: &PodNetConfig, process: &Process) -> Result<String> {
    let binary = find_binary().context("containerd is not installed: apt-get install containerd runc")?;
    let dir = containerd_dir(host);
    let settings = Settings {
        binary,
        root_dir: dir.join("root"),
        state_dir: dir.join("state"),
        sandbox_image: host.pause_image.clone(),
        cni_conf_dir: podnet.conf_dir(),
        cni_bin_dir: podnet.bin_dir(),
        log_file: dir.join("containerd.log"),
    };
    make_folders(&[&settings.root_dir, &settings.state_dir, &settings.cni_conf_dir, &settings.cni_bin_dir])?;
    let (socket, binary) = (settings.socket(), settings.binary.clone());
    let supervisor = Supervisor::start(settings).await.context("cannot start containerd")?;
    if host.pause_image == pause::IMAGE {
        pause::provide(&socket, &binary).await?;
    }
    let endpoint = supervisor.endpoint();
    process.tasks.spawn(supervisor.run(process.shutdown.clone()));
    Ok(endpoint)
}

fn containerd_dir(host: &Host) -> PathBuf {
    host.data_dir.join("containerd")
}

/// Where the containerd that we start listens.
pub fn containerd_socket(host: &Host) -> PathBuf {
    containerd_dir(host).join("state/containerd.sock")
}

fn make_folders(folders: &[&Path]) -> Result<()> {
    for folder in folders {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Ok(())
}

fn start_kubelet(
    node: &Node<'_>,
    process: &Process,
    listener: TcpListener,
    endpoint: &str,
    context: client::Context,
) -> Result<()> {
    let Node { host, cluster, .. } = *node;
    let mut settings = kubelet::Config::new(&host.node_name, vec![host.node_ip], &host.data_dir, endpoint);
    settings.cluster_dns = vec![cluster.cluster_dns.into()];
    settings.cluster_domain.clone_from(&cluster.cluster_domain);
    settings.sandbox_image = Some(host.pause_image.clone());
    settings.version = GIT_VERSION.to_owned();
    settings.port = KUBELET_PORT;
    for (key, value) in &host.kubelet_args {
        settings.set(key, value).map_err(|why| anyhow!("--kubelet-arg {key}={value}: {why}"))?;
    }
    let api = context.client.clone();
    let kubelet = Kubelet::new(context, settings.clone()).context("cannot start the kubelet")?;
    let server = kubelet::server::Server::of(&settings, kubelet.store(), kubelet.runtime(), api);
    process.tasks.spawn(kubelet::server::run(Arc::new(server), listener, node.tls.clone(), process.shutdown.clone()));
    process.tasks.spawn(kubelet.run());
    Ok(())
}
