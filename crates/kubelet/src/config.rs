//! What a kubelet is told at start. Names and defaults are those of upstream's KubeletConfiguration where it has them.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::PathBuf;
use std::time::Duration;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::Taint;

use crate::thresholds::Thresholds;

/// What [`Config::set`] knows.
const FLAGS: [&str; 7] = [
    "container-log-max-files",
    "container-log-max-size",
    "eviction-hard",
    "image-gc-high-threshold",
    "image-gc-low-threshold",
    "max-pods",
    "resolv-conf",
];

#[derive(Clone, Debug)]
pub struct Config {
    pub node_name: String,
    /// The node's addresses, primary family first. Never empty.
    pub node_ips: Vec<IpAddr>,
    /// First nameserver of pods with dnsPolicy ClusterFirst.
    pub cluster_dns: Vec<IpAddr>,
    pub cluster_domain: String,
    /// Volumes and what else belongs to pods.
    pub root_dir: PathBuf,
    /// Container logs lie in `<log_dir>/pods/<namespace>_<name>_<uid>/<container>/<n>.log`.
    pub log_dir: PathBuf,
    /// `unix://…` of the container runtime.
    pub runtime_endpoint: String,
    /// Port of the kubelet's HTTPS server, published in the node's status.
    pub port: u16,
    pub max_pods: u32,
    /// Labels and taints set at registration.
    pub node_labels: BTreeMap<String, String>,
    pub register_with_taints: Vec<Taint>,
    /// `gitVersion` as the API server tells it.
    pub version: String,
    /// The host's resolver configuration that pods inherit from.
    pub resolv_conf: PathBuf,
    /// The longest back-off of a crashing container.
    pub max_container_back_off: Duration,
    pub container_log_max_bytes: u64,
    /// The current log file and its rotated predecessors together.
    pub container_log_max_files: usize,
    /// Unused images are collected once this much of the image file system is used, until less than the low mark is.
    pub image_gc_high_percent: u8,
    pub image_gc_low_percent: u8,
    pub eviction_hard: Thresholds,
    /// The runtime's image of pod sandboxes, which is never collected.
    pub sandbox_image: Option<String>,
    /// How often the node's status is written when nothing changed.
    pub node_status_report_frequency: Duration,
    pub node_lease_duration: Duration,
}

impl Config {
    pub fn new(node_name: &str, node_ips: Vec<IpAddr>, data_dir: &std::path::Path, runtime_endpoint: &str) -> Self {
        Config {
            node_name: node_name.to_owned(),
            node_ips,
            cluster_dns: Vec::new(),
            cluster_domain: "cluster.local".to_owned(),
            root_dir: data_dir.join("kubelet"),
            log_dir: data_dir.join("log"),
            runtime_endpoint: runtime_endpoint.to_owned(),
            port: 10250,
            max_pods: 110,
            node_labels: BTreeMap::new(),
            register_with_taints: Vec::new(),
            version: "v1.37.0".to_owned(),
            resolv_conf: PathBuf::from("/etc/resolv.conf"),
            max_container_back_off: Duration::from_secs(300),
            container_log_max_bytes: 10 * 1024 * 1024,
            container_log_max_files: 5,
            image_gc_high_percent: 85,
            image_gc_low_percent: 80,
            eviction_hard: Thresholds::default(),
            sandbox_image: None,
            node_status_report_frequency: Duration::from_secs(300),
            node_lease_duration: Duration::from_secs(40),
        }
    }

    /// Sets one of upstream's kubelet flags, named as there without dashes in front (k3s's `--kubelet-arg`). Fails with what is
    /// wrong with it in one line.
    pub fn set(&mut self, flag: &str, value: &str) -> Result<(), String> {
        fn number<T: std::str::FromStr>(value: &str) -> Result<T, String> {
            value.parse().map_err(|_| format!("{value}: not a number in range"))
        }
        let percent = || number::<u8>(value).and_then(|p| if p <= 100 { Ok(p) } else { Err(format!("{p}: over 100")) });
        match flag {
            "eviction-hard" => self.eviction_hard = Thresholds::parse(value)?,
            "image-gc-high-threshold" => self.image_gc_high_percent = percent()?,
            "image-gc-low-threshold" => self.image_gc_low_percent = percent()?,
            "max-pods" => self.max_pods = number(value)?,
            "container-log-max-files" => self.container_log_max_files = number::<usize>(value)?.max(2),
            "container-log-max-size" => {
                let bytes = Quantity::parse(value).map_err(|error| format!("{value}: {error}"))?.value();
                self.container_log_max_bytes =
                    u64::try_from(bytes).map_err(|_| format!("{value}: must not be negative"))?;
            }
            "resolv-conf" => self.resolv_conf = PathBuf::from(value),
            _ => return Err(format!("there are {}", FLAGS.join(", "))),
        }
        Ok(())
    }

    /// `<root>/pods/<uid>`: everything of one pod but its logs.
    pub fn pod_dir(&self, uid: &str) -> PathBuf {
        self.root_dir.join("pods").join(uid)
    }

    pub fn pod_log_dir(&self, namespace: &str, name: &str, uid: &str) -> PathBuf {
        self.log_dir.join("pods").join(format!("{namespace}_{name}_{uid}"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_of_upstream() {
        let mut config = Config::new("n", Vec::new(), std::path::Path::new("/d"), "unix:///c");
        for flag in FLAGS {
            // Known, whatever it says of this value.
            assert!(!config.set(flag, "!").is_err_and(|error| error.starts_with("there are")), "{flag}");
        }
        config.set("image-gc-high-threshold", "100").unwrap();
        config.set("container-log-max-size", "5Mi").unwrap();
        assert_eq!((config.image_gc_high_percent, config.container_log_max_bytes), (100, 5 << 20));
        assert_eq!(config.set("image-gc-high-threshold", "101").unwrap_err(), "101: over 100");
        assert_eq!(config.set("max-pods", "-1").unwrap_err(), "-1: not a number in range");
        assert!(config.set("cgroup-root", "/").unwrap_err().starts_with("there are container-log-max-files, "));
    }
}
