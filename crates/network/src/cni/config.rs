//! What the plugin is told: the network configuration on standard input and the call's arguments in the environment.
//! Also the configuration file that makes the runtime call us.

use std::net::IpAddr;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::ipam::{Owner, PortMapping};
use super::rules::Networks;
use crate::nft::Protocol;
use crate::{Error, Result};

pub const PLUGIN_NAME: &str = "coxswain-cni";
/// The names under which the container runtime executes us: the network's own plugin, and `loopback`, which containerd
/// calls for every pod besides.
pub const PLUGIN_NAMES: [&str; 2] = [PLUGIN_NAME, "loopback"];
pub const NETWORK_NAME: &str = "coxswain";
pub const FILE_NAME: &str = "10-coxswain.conflist";
const IFNAMSIZ: usize = 16;

#[derive(Debug, Clone, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct NetworkConfig {
    /// Without it the specification says 0.1.0, which nobody speaks any more.
    #[serde(default)]
    pub cni_version: String,
    #[serde(rename = "type")]
    pub plugin: String,
    /// Where allocations are recorded.
    #[serde(default)]
    pub data_dir: PathBuf,
    /// This node's pod networks, one or two.
    #[serde(default, rename = "podCIDRs")]
    pub pod_cidrs: Vec<IpNet>,
    /// The whole cluster's pod networks: traffic to them keeps the pod's address.
    #[serde(default, rename = "clusterCIDRs")]
    pub cluster_cidrs: Vec<IpNet>,
    #[serde(default = "default_mtu")]
    pub mtu: u32,
    #[serde(default)]
    runtime_config: RuntimeConfig,
    #[serde(default, rename = "cni.dev/valid-attachments")]
    valid_attachments: Vec<ValidAttachment>,
}

#[derive(Debug, Clone, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct RuntimeConfig {
    #[serde(default)]
    port_mappings: Vec<RequestedPort>,
}

/// In the conventions' spelling, or in containerd's, which relies on Go's readers not minding case.
#[derive(Debug, Clone, Deserialize)]
struct RequestedPort {
    #[serde(rename = "hostPort", alias = "HostPort")]
    host_port: i64,
    #[serde(rename = "containerPort", alias = "ContainerPort")]
    container_port: i64,
    #[serde(default, alias = "Protocol")]
    protocol: String,
    #[serde(default, rename = "hostIP", alias = "HostIP")]
    host_ip: String,
}

#[derive(Debug, Clone, Deserialize)]
struct ValidAttachment {
    #[serde(rename = "containerID")]
    container_id: String,
    ifname: String,
}

fn default_mtu() -> u32 {
    1500
}

/// The version that an error report should carry, as far as the input tells.
pub fn version_of(stdin: &[u8]) -> String {
    #[derive(Deserialize)]
    #[serde(rename_all = "camelCase")]
    struct Versioned {
        cni_version: String,
    }
    serde_json::from_slice::<Versioned>(stdin).map_or_else(|_| super::NEWEST_VERSION.to_owned(), |v| v.cni_version)
}

/// Whether `version` is `at_least` (major, minor).
pub fn version_at_least(version: &str, at_least: (u32, u32)) -> bool {
    let mut parts = version.split('.').map(|part| part.parse().unwrap_or(0));
    (parts.next().unwrap_or(0), parts.next().unwrap_or(0)) >= at_least
}

impl NetworkConfig {
    pub fn parse(stdin: &[u8]) -> Result<Self> {
        serde_json::from_slice(stdin)
            .map_err(|error| Error::Config(format!("cannot decode the configuration: {error}")))
    }

    pub fn networks(&self) -> Networks<'_> {
        Networks { pods: &self.pod_cidrs, cluster: &self.cluster_cidrs }
    }

    /// The host's address on the pod network that `address` lies in: its first.
    pub fn gateway_for(&self, address: IpAddr) -> IpAddr {
        let network = self.pod_cidrs.iter().find(|network| network.contains(&address));
        network.map_or(address, gateway_of)
    }

    /// The host ports that the pod asks for. A port that is no port is left out, as upstream's plugin does with port 0.
    pub fn port_mappings(&self) -> Vec<PortMapping> {
        let requested = self.runtime_config.port_mappings.iter();
        requested
            .filter_map(|port| {
                let protocol = if port.protocol.is_empty() { "TCP".to_owned() } else { port.protocol.to_uppercase() };
                Some(PortMapping {
                    protocol: Protocol::from_api(&protocol)?,
                    host_port: u16::try_from(port.host_port).ok().filter(|p| *p != 0)?,
                    container_port: u16::try_from(port.container_port).ok().filter(|p| *p != 0)?,
                    host_ip: port.host_ip.parse::<IpAddr>().ok().filter(|ip| !ip.is_unspecified()),
                })
            })
            .collect()
    }

    pub fn valid_attachments(&self) -> Vec<Owner> {
        let valid = self.valid_attachments.iter();
        valid.map(|a| Owner { container: a.container_id.clone(), interface: a.ifname.clone() }).collect()
    }
}

/// The first address of a pod network belongs to the host.
pub fn gateway_of(network: &IpNet) -> IpAddr {
    match network.network() {
        IpAddr::V4(first) => IpAddr::V4(u32::from(first).wrapping_add(1).into()),
        IpAddr::V6(first) => IpAddr::V6(u128::from(first).wrapping_add(1).into()),
    }
}

/// The arguments of one call.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Environment {
    pub container: String,
    pub interface: String,
    /// Path of the pod's network namespace. Empty at DEL if it is gone already.
    pub netns: String,
}

impl Environment {
    pub fn read(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let call = Self::read_for_delete(environment)?;
        if call.netns.is_empty() {
            return Err(Error::Config("CNI_NETNS is not set".into()));
        }
        Ok(call)
    }

    pub fn read_for_delete(environment: &dyn Fn(&str) -> Option<String>) -> Result<Self> {
        let required = |name: &str| {
            let value = environment(name).filter(|value| !value.is_empty());
            value.ok_or_else(|| Error::Config(format!("{name} is not set")))
        };
        let container = required("CNI_CONTAINERID")?;
        let interface = required("CNI_IFNAME")?;
        // Both become file names, so nothing but what the specification allows may pass.
        let plain = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-');
        if !container.starts_with(|c: char| c.is_ascii_alphanumeric()) || !container.chars().all(plain) {
            return Err(Error::Config(format!("CNI_CONTAINERID {container:?} is not a valid name")));
        }
        let dots = matches!(interface.as_str(), "." | "..");
        if dots || interface.len() >= IFNAMSIZ || !interface.chars().all(plain) {
            return Err(Error::Config(format!("CNI_IFNAME {interface:?} is not a valid interface name")));
        }
        Ok(Environment { container, interface, netns: environment("CNI_NETNS").unwrap_or_default() })
    }

    pub fn owner(&self) -> Owner {
        Owner { container: self.container.clone(), interface: self.interface.clone() }
    }
}

/// What goes into the configuration file, once the node knows its pod networks.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct PodNetwork {
    /// Where allocations are recorded.
    pub data_dir: PathBuf,
    pub pod_cidrs: Vec<IpNet>,
    pub cluster_cidrs: Vec<IpNet>,
    pub mtu: u32,
}

impl PodNetwork {
    /// The configuration list that the container runtime reads.
    pub fn config_list(&self) -> String {
        let plugin = json!({
            "type": PLUGIN_NAME,
            "capabilities": { "portMappings": true },
            "dataDir": self.data_dir,
            "podCIDRs": self.pod_cidrs,
            "clusterCIDRs": self.cluster_cidrs,
            "mtu": self.mtu,
        });
        // 1.0.0: the newest version that containerd 1.6 knows.
        let list = json!({ "cniVersion": "1.0.0", "name": NETWORK_NAME, "plugins": [plugin] });
        format!("{list:#}\n")
    }

    /// Writes the configuration list into `directory`, whole or not at all, and only if it is not there already.
    pub fn write_config_list(&self, directory: &Path) -> Result<()> {
        let (path, text) = (directory.join(FILE_NAME), self.config_list());
        if std::fs::read_to_string(&path).is_ok_and(|present| present == text) {
            return Ok(());
        }
        std::fs::create_dir_all(directory).map_err(Error::file("creating", directory))?;
        // Not `.conflist`, or the runtime would read the unfinished file.
        let unfinished = directory.join(format!("{FILE_NAME}.new"));
        std::fs::write(&unfinished, text).map_err(Error::file("writing", &unfinished))?;
        std::fs::rename(&unfinished, &path).map_err(Error::file("writing", &path))
    }
}
