use std::collections::HashSet;
use std::net::IpAddr;
use std::path::Path;

use proptest::prelude::*;
use serde_json::{Value, json};

use super::ipam::{Owner, Pool, next_free};
use super::*;
use crate::testing::{NODE_IP, Namespace, OUTSIDE_IP, Site};

fn code(outcome: &Outcome) -> u64 {
    let report: Value = serde_json::from_str(&outcome.stdout).unwrap();
    assert_eq!(outcome.exit_code, 1);
    report["code"].as_u64().unwrap()
}

#[test]
fn an_added_pod_talks_and_a_deleted_one_leaves_nothing() {
    let site = Site::new();
    site.outside.serve("outside", 8080);
    let (a, b) = (site.pod("a"), site.pod("b"));

    assert_eq!(a.result["ips"][0], json!({ "address": "10.42.0.2/32", "gateway": "10.42.0.1", "interface": 1 }));
    assert_eq!(a.result["interfaces"][1]["name"], "eth0");
    assert_eq!(a.result["interfaces"][1]["mac"].as_str().unwrap().len(), "aa:bb:cc:dd:ee:ff".len());
    let (to_a, to_b) = (format!("{}:8080", a.address), format!("{}:8080", b.address));
    assert_eq!(a.namespace.ask_tcp(&to_b), format!("b {}", a.address));
    assert_eq!(b.namespace.ask_udp(&to_a), format!("a {}", b.address));
    assert_eq!(site.host.ask_tcp(&to_a), "a 10.42.0.1");
    assert_eq!(site.outside.ask_tcp(&to_a), format!("a {OUTSIDE_IP}"));

    let config = site.cni_config(json!({}));
    assert_eq!(site.cni("CHECK", "a", a.namespace.path(), &config).exit_code, 0);
    assert_eq!(site.cni("DEL", "a", a.namespace.path(), &config), Outcome { stdout: String::new(), exit_code: 0 });
    assert_eq!(code(&site.cni("CHECK", "a", a.namespace.path(), &config)), 5);
    // Again, as the runtime may, also when the namespace is gone.
    assert_eq!(site.cni("DEL", "a", Path::new(""), &config).exit_code, 0);
    assert_ne!(site.host.ask_tcp(&to_a), "a 10.42.0.1");
    let records = Pool::lock(site.data.path()).unwrap().records().unwrap();
    assert_eq!(records.iter().map(|r| r.owner.container.as_str()).collect::<Vec<_>>(), ["b"]);
    assert_eq!(site.host.run(|| crate::netlink::route::Handle::open().unwrap().links().unwrap().len()), 3);
}

#[test]
fn pods_leave_the_cluster_with_the_nodes_address() {
    let site = Site::new();
    site.outside.serve("outside", 8080);
    let network = config::PodNetwork {
        data_dir: site.data.path().into(),
        pod_cidrs: vec!["10.42.0.0/24".parse().unwrap()],
        cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        mtu: 1500,
    };
    site.host.run(|| restore(&network).unwrap());
    let pod = site.pod("a");
    assert_eq!(pod.namespace.ask_tcp(&format!("{OUTSIDE_IP}:8080")), format!("outside {NODE_IP}"));
}

#[test]
fn host_ports_follow_their_pods() {
    let site = Site::new();
    let mapping = json!({ "runtimeConfig": { "portMappings": [
        { "HostPort": 8000, "ContainerPort": 8080, "Protocol": "tcp", "HostIP": "" },
        { "hostPort": 8000, "containerPort": 8080, "protocol": "udp", "hostIP": "192.168.50.1" },
        { "hostPort": 0, "containerPort": 9 },
    ] } });
    // The table is not there at first: the plugin makes it.
    let a = site.pod_with("a", mapping.clone());
    let node = format!("{NODE_IP}:8000");
    assert_eq!(site.outside.ask_tcp(&node), format!("a {OUTSIDE_IP}"));
    assert_eq!(site.outside.ask_udp_from(4000, &node), format!("a {OUTSIDE_IP}"));
    assert_eq!(site.host.ask_tcp(&node), format!("a {NODE_IP}"));
    assert_eq!(a.namespace.ask_tcp(&node), "a 10.42.0.1", "through the host to itself");
    site.host.run(|| crate::sysctl::write_sysctl("net/ipv4/conf/all/route_localnet", "1").unwrap());
    assert_eq!(site.host.ask_tcp("127.0.0.1:8000"), "a 10.42.0.1");

    assert_eq!(site.cni("DEL", "a", a.namespace.path(), &site.cni_config(mapping.clone())).exit_code, 0);
    assert_eq!(site.outside.ask_tcp(&node), "refused");
    let b = site.pod_with("b", mapping);
    assert_eq!(site.outside.ask_tcp(&node), format!("b {OUTSIDE_IP}"));
    assert_eq!(site.outside.ask_udp_from(4000, &node), format!("b {OUTSIDE_IP}"), "not the dead pod's flow");
    drop(b);
}

#[test]
fn garbage_and_the_dead_give_their_addresses_back() {
    let site = Site::new();
    let tiny = json!({ "podCIDRs": ["10.42.0.0/29"] });
    let config = site.cni_config(tiny.clone());
    let pods: Vec<_> = ["a", "b", "c", "d", "e"].iter().map(|name| site.pod_with(name, tiny.clone())).collect();
    let late = Namespace::new();
    assert_eq!(code(&site.cni("ADD", "f", late.path(), &config)), 11, "five addresses, all held by the living");

    let valid = json!([{ "containerID": "a", "ifname": "eth0" }]);
    let collect = site.cni_config(json!({ "cniVersion": "1.1.0", "cni.dev/valid-attachments": valid }));
    assert_eq!(site.cni("GC", "", Path::new(""), &collect).exit_code, 0);
    let records = Pool::lock(site.data.path()).unwrap().records().unwrap();
    assert_eq!(records.iter().map(|r| r.owner.container.as_str()).collect::<Vec<_>>(), ["a"]);

    // Four killed half way: on record, with no namespace.
    let mut pool = Pool::lock(site.data.path()).unwrap();
    let network = ["10.42.0.0/29".parse().unwrap()];
    for name in ["w", "x", "y", "z"] {
        let owner = Owner { container: name.into(), interface: "eth0".into() };
        pool.allocate(&owner, &network, Path::new("/nowhere"), Vec::new()).unwrap();
    }
    drop(pool);
    assert_eq!(site.cni("ADD", "f", late.path(), &config).exit_code, 0);
    drop(pods);
}

/// The runtime waits for this at every pod's start.
#[test]
fn an_add_takes_milliseconds() {
    let site = Site::new();
    let config = site.cni_config(json!({}));
    let pods: Vec<Namespace> = (0..20).map(|_| Namespace::new()).collect();
    let mut times: Vec<std::time::Duration> = Vec::new();
    for (number, pod) in pods.iter().enumerate() {
        let started = std::time::Instant::now();
        assert_eq!(site.cni("ADD", &format!("p{number}"), pod.path(), &config).exit_code, 0);
        times.push(started.elapsed());
    }
    times.sort();
    // Some two milliseconds on a quiet machine; the bound allows for a busy one.
    assert!(times[10] < std::time::Duration::from_millis(50), "{times:?}");
}

#[test]
fn adding_twice_keeps_one_attachment() {
    let site = Site::new();
    let namespace = Namespace::new();
    let config = site.cni_config(json!({ "cniVersion": "0.3.1" }));
    for _ in 0..2 {
        let outcome = site.cni("ADD", "a", namespace.path(), &config);
        assert_eq!(outcome.exit_code, 0, "{}", outcome.stdout);
        let result: Value = serde_json::from_str(&outcome.stdout).unwrap();
        assert_eq!(result["ips"][0]["version"], "4", "the old form says the version");
    }
    assert_eq!(Pool::lock(site.data.path()).unwrap().records().unwrap().len(), 1);
}

#[test]
fn bad_calls_are_told_apart() {
    let call = |command: Option<&str>, container: &str, interface: &str, stdin: &str| {
        let environment = |name: &str| match name {
            "CNI_COMMAND" => command.map(str::to_owned),
            "CNI_CONTAINERID" => Some(container.to_owned()),
            "CNI_IFNAME" => Some(interface.to_owned()),
            "CNI_NETNS" => Some("/nowhere".to_owned()),
            _ => None,
        };
        main(environment, stdin.as_bytes())
    };
    let data = tempfile::tempdir().unwrap();
    let good = json!({
        "cniVersion": "1.0.0", "name": "n", "type": "coxswain-cni", "dataDir": data.path(), "podCIDRs": ["10.42.0.0/24"],
    })
    .to_string();
    assert_eq!(code(&call(None, "a", "eth0", &good)), 4);
    assert_eq!(code(&call(Some("JUMP"), "a", "eth0", &good)), 4);
    assert_eq!(code(&call(Some("ADD"), "../../etc", "eth0", &good)), 4);
    assert_eq!(code(&call(Some("ADD"), "a", "an-interface-too-long", &good)), 4);
    assert_eq!(code(&call(Some("ADD"), "a", "eth0", "{")), 6);
    assert_eq!(code(&call(Some("ADD"), "a", "eth0", &good.replace("1.0.0", "9.0.0"))), 1);
    assert_eq!(code(&call(Some("ADD"), "a", "eth0", &good)), 5, "the namespace does not exist");
    assert!(Pool::lock(data.path()).unwrap().records().unwrap().is_empty(), "a failed ADD holds nothing");
    assert_eq!(call(Some("STATUS"), "", "", &good).exit_code, 0);
    assert_eq!(code(&call(Some("STATUS"), "", "", &good.replace("10.42.0.0/24", "").replace("[\"\"]", "[]"))), 50);
    let version = call(Some("VERSION"), "", "", "{\"cniVersion\":\"1.0.0\"}");
    assert!(version.stdout.contains("0.3.1") && version.stdout.contains("1.1.0"), "{}", version.stdout);
}

#[test]
fn the_runtime_can_read_the_config_list() {
    let directory = tempfile::tempdir().unwrap();
    let network = config::PodNetwork {
        data_dir: "/data".into(),
        pod_cidrs: vec!["10.42.0.0/24".parse().unwrap()],
        cluster_cidrs: vec!["10.42.0.0/16".parse().unwrap()],
        mtu: 1400,
    };
    network.write_config_list(directory.path()).unwrap();
    let names: Vec<_> = std::fs::read_dir(directory.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert_eq!(names, ["10-coxswain.conflist"]);
    let text = std::fs::read_to_string(directory.path().join(config::FILE_NAME)).unwrap();
    let list: Value = serde_json::from_str(&text).unwrap();
    // The runtime hands each plugin its part with the list's name and version.
    let mut plugin = list["plugins"][0].clone();
    plugin["cniVersion"] = list["cniVersion"].clone();
    let config = NetworkConfig::parse(plugin.to_string().as_bytes()).unwrap();
    assert_eq!((config.pod_cidrs, config.cluster_cidrs, config.mtu), (network.pod_cidrs, network.cluster_cidrs, 1400));
}

proptest! {
    /// Every address of a network is given out before any is refused, none twice, never the reserved ones.
    #[test]
    fn a_network_is_used_up_exactly(prefix in 24u8..=30, start in any::<u8>()) {
        let network = IpNet::new(IpAddr::from([10, 9, 8, 0]), prefix).unwrap();
        let mut last = vec![IpAddr::from([10, 9, 8, start])];
        let mut used = HashSet::new();
        while let Some(address) = next_free(&network, &used, &last) {
            prop_assert!(network.contains(&address) && used.insert(address));
            last = vec![address];
        }
        prop_assert_eq!(used.len(), (1usize << (32 - prefix)) - 3);
        for reserved in [network.network(), network.broadcast(), IpAddr::from([10, 9, 8, 1])] {
            prop_assert!(!used.contains(&reserved));
        }
    }
}
