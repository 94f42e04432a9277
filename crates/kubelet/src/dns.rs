//! A pod's names and resolver configuration, from its DNS policy. Pure but for reading the host's file.

use std::collections::HashSet;
use std::path::Path;

use k8s_openapi::api::core::v1::Pod;

use crate::config::Config;
use crate::podutil;

/// Host names have at most so many bytes in the kernel.
const MAX_HOSTNAME_BYTES: usize = 63;
const MAX_SERVERS: usize = 3;
const MAX_SEARCHES: usize = 32;
const MAX_SEARCH_CHARS: usize = 2048;

#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Resolver {
    pub servers: Vec<String>,
    pub searches: Vec<String>,
    pub options: Vec<String>,
}

pub fn read_host(file: &Path) -> Resolver {
    parse(&std::fs::read_to_string(file).unwrap_or_default())
}

fn parse(text: &str) -> Resolver {
    let mut resolver = Resolver::default();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        let rest = |words: std::str::SplitWhitespace<'_>| words.map(str::to_owned).collect::<Vec<_>>();
        match words.next() {
            Some("nameserver") => resolver.servers.extend(words.next().map(str::to_owned)),
            // The last line of each kind counts; a lone dot is the root and says nothing.
            Some("search") => {
                resolver.searches = rest(words).into_iter().filter(|domain| domain != ".").collect();
            }
            Some("options") => resolver.options = rest(words),
            _ => {}
        }
    }
    resolver
}

/// The resolver configuration of a pod (upstream's `GetPodDNS`).
pub fn for_pod(pod: &Pod, config: &Config, host: &Resolver) -> Resolver {
    let spec = podutil::spec(pod);
    let policy = spec.dns_policy.as_deref().unwrap_or("ClusterFirst");
    let cluster = match policy {
        "ClusterFirstWithHostNet" => true,
        "ClusterFirst" => !podutil::is_host_network(pod),
        _ => false,
    } && !config.cluster_dns.is_empty();
    let mut resolver = if policy == "None" {
        Resolver::default()
    } else if cluster {
        let domain = &config.cluster_domain;
        let namespace = podutil::namespace(pod);
        let own = [format!("{namespace}.svc.{domain}"), format!("svc.{domain}"), domain.clone()];
        Resolver {
            servers: config.cluster_dns.iter().map(ToString::to_string).collect(),
            searches: own.into_iter().chain(host.searches.iter().cloned()).collect(),
            options: vec!["ndots:5".to_owned()],
        }
    } else {
        host.clone()
    };
    if let Some(extra) = &spec.dns_config {
        resolver.servers.extend(extra.nameservers.iter().flatten().cloned());
        resolver.searches.extend(extra.searches.iter().flatten().cloned());
        for option in extra.options.iter().flatten() {
            let name = option.name.clone().unwrap_or_default();
            // One name, one value: the pod's word wins.
            resolver.options.retain(|known| known.split(':').next() != Some(name.as_str()));
            resolver.options.push(match &option.value {
                Some(value) if !value.is_empty() => format!("{name}:{value}"),
                _ => name,
            });
        }
    }
    limited(resolver)
}

fn limited(mut resolver: Resolver) -> Resolver {
    let unique = |list: &mut Vec<String>| {
        let mut seen = HashSet::new();
        list.retain(|item| seen.insert(item.clone()));
    };
    unique(&mut resolver.servers);
    unique(&mut resolver.searches);
    resolver.servers.truncate(MAX_SERVERS);
    resolver.searches.truncate(MAX_SEARCHES);
    while resolver.searches.iter().map(|domain| domain.len() + 1).sum::<usize>() > MAX_SEARCH_CHARS {
        resolver.searches.pop();
    }
    resolver
}

/// The pod's own host name, without a domain.
pub fn short_hostname(pod: &Pod) -> String {
    let spec = podutil::spec(pod);
    let given = spec.hostname_override.as_deref().or(spec.hostname.as_deref()).filter(|name| !name.is_empty());
    let name = given.unwrap_or(podutil::name(pod));
    // Names are ASCII, so characters are bytes.
    let cut: String = name.chars().take(MAX_HOSTNAME_BYTES).collect();
    cut.trim_end_matches(['-', '.']).to_owned()
}

/// `<subdomain>.<namespace>.svc.<cluster domain>`, for pods with a subdomain.
pub fn domain(pod: &Pod, cluster_domain: &str) -> Option<String> {
    let subdomain = podutil::spec(pod).subdomain.as_deref().filter(|name| !name.is_empty())?;
    Some(format!("{subdomain}.{}.svc.{cluster_domain}", podutil::namespace(pod)))
}

/// The name that the kernel of the pod's UTS namespace is given.
pub fn hostname(pod: &Pod, cluster_domain: &str) -> String {
    let host = short_hostname(pod);
    match domain(pod, cluster_domain) {
        Some(domain) if podutil::spec(pod).set_hostname_as_fqdn == Some(true) => format!("{host}.{domain}"),
        _ => host,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(spec: serde_json::Value, expected: &str) {
        let pod: Pod =
            serde_json::from_value(serde_json::json!({"metadata": {"name": "p", "namespace": "ns"}, "spec": spec}))
                .unwrap();
        let mut config = Config::new("n", vec!["192.0.2.1".parse().unwrap()], Path::new("/d"), "unix:///s");
        config.cluster_dns = vec!["10.96.0.10".parse().unwrap()];
        let host = parse("nameserver 8.8.8.8\nsearch . corp.example\noptions edns0\n");
        let resolver = for_pod(&pod, &config, &host);
        let text = format!(
            "{} | {} | {}",
            resolver.servers.join(" "),
            resolver.searches.join(" "),
            resolver.options.join(" ")
        );
        assert_eq!(text, expected);
    }

    #[test]
    fn policies() {
        let json =
            |policy: &str, host: bool| serde_json::json!({"containers": [], "dnsPolicy": policy, "hostNetwork": host});
        let cluster = "10.96.0.10 | ns.svc.cluster.local svc.cluster.local cluster.local corp.example | ndots:5";
        let of_host = "8.8.8.8 | corp.example | edns0";
        check(json("ClusterFirst", false), cluster);
        check(json("ClusterFirst", true), of_host);
        check(json("ClusterFirstWithHostNet", true), cluster);
        check(json("Default", false), of_host);
        let none = serde_json::json!({"containers": [], "dnsPolicy": "None", "dnsConfig": {"nameservers": ["1.1.1.1"],
            "searches": ["x"], "options": [{"name": "ndots", "value": "2"}, {"name": "edns0"}]}});
        check(none, "1.1.1.1 | x | ndots:2 edns0");
    }

    #[test]
    fn the_pods_own_option_replaces_the_default() {
        let spec = serde_json::json!({"containers": [], "dnsConfig": {"options": [{"name": "ndots", "value": "1"}]}});
        check(spec, "10.96.0.10 | ns.svc.cluster.local svc.cluster.local cluster.local corp.example | ndots:1");
    }

    #[test]
    fn long_names_are_cut_where_the_kernel_demands() {
        let mut pod = Pod::default();
        pod.metadata.name = Some(format!("{}-{}", "a".repeat(62), "b".repeat(20)));
        assert_eq!(short_hostname(&pod), "a".repeat(62));
    }
}
