//! The hosts file that the kubelet gives to containers. Pure.

use std::fmt::Write as _;
use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;

use crate::{dns, podutil};

/// `host_file` reads the machine's own file, which pods of the host's network see.
pub fn render(
    pod: &Pod,
    pod_ips: &[IpAddr],
    cluster_domain: &str,
    host_file: impl FnOnce() -> std::io::Result<String>,
) -> String {
    let mut text = String::new();
    if podutil::is_host_network(pod) {
        text.push_str("# Kubernetes-managed hosts file (host network).\n");
        text.push_str(&host_file().unwrap_or_default());
    } else {
        text.push_str("# Kubernetes-managed hosts file.\n");
        text.push_str("127.0.0.1\tlocalhost\n");
        text.push_str("::1\tlocalhost ip6-localhost ip6-loopback\n");
        text.push_str(
            "fe00::0\tip6-localnet\nfe00::0\tip6-mcastprefix\nfe00::1\tip6-allnodes\nfe00::2\tip6-allrouters\n",
        );
        let host = dns::short_hostname(pod);
        let domain = dns::domain(pod, cluster_domain);
        for ip in pod_ips {
            let _ = match &domain {
                Some(domain) => writeln!(text, "{ip}\t{host}.{domain}\t{host}"),
                None => writeln!(text, "{ip}\t{host}"),
            };
        }
    }
    let aliases = podutil::spec(pod).host_aliases.as_deref().unwrap_or_default();
    if !aliases.is_empty() {
        text.push_str("\n# Entries added by HostAliases.\n");
        for alias in aliases {
            let _ = writeln!(text, "{}\t{}", alias.ip, alias.hostnames.clone().unwrap_or_default().join("\t"));
        }
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod(spec: serde_json::Value) -> Pod {
        serde_json::from_value(serde_json::json!({"metadata": {"name": "web-0", "namespace": "ns"}, "spec": spec}))
            .unwrap()
    }

    #[test]
    fn a_pod_with_a_subdomain_knows_its_full_name_first() {
        let pod = pod(serde_json::json!({"containers": [], "hostname": "h", "subdomain": "s",
            "hostAliases": [{"ip": "1.2.3.4", "hostnames": ["a", "b"]}]}));
        let text = render(&pod, &["10.0.0.9".parse().unwrap()], "cluster.local", || unreachable!());
        assert!(text.starts_with("# Kubernetes-managed hosts file.\n127.0.0.1\tlocalhost\n"));
        assert!(
            text.ends_with("10.0.0.9\th.s.ns.svc.cluster.local\th\n\n# Entries added by HostAliases.\n1.2.3.4\ta\tb\n")
        );
    }

    #[test]
    fn a_pod_of_the_hosts_network_sees_the_hosts_file() {
        let pod = pod(serde_json::json!({"containers": [], "hostNetwork": true}));
        let text = render(&pod, &[], "cluster.local", || Ok("127.0.0.1 box\n".to_owned()));
        assert_eq!(text, "# Kubernetes-managed hosts file (host network).\n127.0.0.1 box\n");
    }
}
