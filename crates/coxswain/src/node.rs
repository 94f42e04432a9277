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

use crate::config::Server;
use crate::control_plane::{Process, kubelet_tls};
use crate::pki::Pki;
use crate::progress::Progress;
use crate::{GIT_VERSION, pause};

pub const KUBELET_PORT: u16 = 10250;
/// Pods reach DNS at port 53 of its service; this is the port behind it, on the node's own address.
pub const DNS_PORT: u16 = 10053;
/// kube-proxy's health, as upstream.
pub const PROXY_HEALTHZ_PORT: u16 = 10256;
const RESOLV_CONF: &str = "/etc/resolv.conf";

/// Starts everything that makes this machine a node.
pub async fn start(config: &Server, pki: &Pki, process: &Process, progress: &Progress) -> Result<()> {
    if !nix::unistd::geteuid().is_root() {
        bail!("a node needs root privileges; without them there is the API alone, with --disable-agent");
    }
    // First, since a port in use is found out at once.
    let address = SocketAddr::new(config.bind_address, KUBELET_PORT);
    let listener = TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))?;
    let podnet = podnet_config(config)?;
    let endpoint = match &config.runtime_endpoint {
        Some(endpoint) => endpoint.clone(),
        None => start_containerd(config, &podnet, process).await?,
    };
    progress.step(format_args!("container runtime ready on {endpoint}"));
    let node_user = format!("system:node:{}", config.node_name);
    let node = || process.context(&node_user, &["system:nodes"]);

    spawn(process, "pod network", run_podnet(node(), podnet.clone()));
    if config.enabled("kube-proxy") {
        let settings = ProxyConfig {
            node_name: config.node_name.clone(),
            cluster_cidrs: podnet.cluster_cidrs.clone(),
            service_cidrs: podnet.service_cidrs.clone(),
            healthz: Some(SocketAddr::new(IpAddr::from([0, 0, 0, 0]), PROXY_HEALTHZ_PORT)),
        };
        spawn(process, "kube-proxy", run_proxy(process.context("system:kube-proxy", &[]), settings));
    }
    if config.enabled("dns") {
        let settings = DnsConfig {
            listen: SocketAddr::new(config.node_ip, DNS_PORT),
            cluster_domain: config.cluster_domain.clone(),
            cluster_dns_ip: config.cluster_dns.into(),
            service_cidrs: podnet.service_cidrs.clone(),
            cluster_cidrs: podnet.cluster_cidrs.clone(),
            upstreams: Upstreams::File(PathBuf::from(RESOLV_CONF)),
            node_name: config.node_name.clone(),
        };
        spawn(process, "cluster DNS", run_dns(process.context("system:kube-dns", &[]), settings));
    }
    start_kubelet(config, pki, process, listener, &endpoint, node())?;
    progress.step(format_args!("node {} started", config.node_name));
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

fn podnet_config(config: &Server) -> Result<PodNetConfig> {
    Ok(PodNetConfig {
        node_name: config.node_name.clone(),
        node_ips: vec![config.node_ip],
        cluster_cidrs: vec![config.cluster_cidr.parse().context("--cluster-cidr")?],
        service_cidrs: vec![config.service_cidr.parse().context("--service-cidr")?],
        cni_dir: config.data_dir.join("cni"),
        executable: std::env::current_exe().context("cannot find this program's own file")?,
    })
}

/// Starts the installed containerd on folders of ours, or takes over the one that an earlier server started.
async fn start_containerd(config: &Server, podnet: &PodNetConfig, process: &Process) -> Result<String> {
    let binary = find_binary().context("containerd is not installed: apt-get install containerd runc")?;
    let dir = containerd_dir(config);
    let settings = Settings {
        binary,
        root_dir: dir.join("root"),
        state_dir: dir.join("state"),
        sandbox_image: config.pause_image.clone(),
        cni_conf_dir: podnet.conf_dir(),
        cni_bin_dir: podnet.bin_dir(),
        log_file: dir.join("containerd.log"),
    };
    make_folders(&[&settings.root_dir, &settings.state_dir, &settings.cni_conf_dir, &settings.cni_bin_dir])?;
    let (socket, binary) = (settings.socket(), settings.binary.clone());
    let supervisor = Supervisor::start(settings).await.context("cannot start containerd")?;
    if config.pause_image == pause::IMAGE {
        pause::provide(&socket, &binary).await?;
    }
    let endpoint = supervisor.endpoint();
    process.tasks.spawn(supervisor.run(process.shutdown.clone()));
    Ok(endpoint)
}

fn containerd_dir(config: &Server) -> PathBuf {
    config.data_dir.join("containerd")
}

/// Where the containerd that we start listens.
pub fn containerd_socket(config: &Server) -> PathBuf {
    containerd_dir(config).join("state/containerd.sock")
}

fn make_folders(folders: &[&Path]) -> Result<()> {
    for folder in folders {
        std::fs::create_dir_all(folder).with_context(|| format!("cannot create {}", folder.display()))?;
    }
    Ok(())
}

fn start_kubelet(
    config: &Server,
    pki: &Pki,
    process: &Process,
    listener: TcpListener,
    endpoint: &str,
    context: client::Context,
) -> Result<()> {
    let mut settings = kubelet::Config::new(&config.node_name, vec![config.node_ip], &config.data_dir, endpoint);
    settings.cluster_dns = vec![config.cluster_dns.into()];
    settings.cluster_domain.clone_from(&config.cluster_domain);
    settings.cluster_cidr = Some(config.cluster_cidr.clone());
    settings.sandbox_image = Some(config.pause_image.clone());
    settings.version = GIT_VERSION.to_owned();
    settings.port = KUBELET_PORT;
    for (key, value) in &config.kubelet_args {
        settings.set(key, value).map_err(|why| anyhow!("--kubelet-arg {key}={value}: {why}"))?;
    }
    let api = context.client.clone();
    let kubelet = Kubelet::new(context, settings.clone()).context("cannot start the kubelet")?;
    let server = kubelet::server::Server::of(&settings, kubelet.store(), kubelet.runtime(), api);
    let tls = kubelet_tls(pki)?;
    process.tasks.spawn(kubelet::server::run(Arc::new(server), listener, tls, process.shutdown.clone()));
    process.tasks.spawn(kubelet.run());
    Ok(())
}
