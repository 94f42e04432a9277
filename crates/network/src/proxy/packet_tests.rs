//! The plans in a real kernel, with real packets, in network namespaces of the test's own.

use std::collections::HashSet;
use std::net::{IpAddr, SocketAddrV4};

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use std::sync::Arc;

use super::base::plan_base;
use super::flows::StaleFlows;
use super::plan::{PlanConfig, ServiceRules, plan_service};
use super::selection::Place;
use super::table::{ServiceName, Table};
use crate::nft::{self, Family};
use crate::testing::{CLUSTER_CIDR, NODE_IP, NODE_IP6, OUTSIDE_IP, OUTSIDE_IP6, Pod, Site};

const CLUSTER_CIDR6: &str = "fd42::/56";

fn plan_config(family: Family) -> PlanConfig {
    let (cluster, service) = match family {
        Family::V4 => (CLUSTER_CIDR, "10.43.0.0/16"),
        Family::V6 => (CLUSTER_CIDR6, "fd43::/112"),
    };
    PlanConfig {
        family,
        place: Place { node: "here".into(), zone: None },
        cluster_cidrs: vec![cluster.parse().unwrap()],
        service_cidrs: vec![service.parse().unwrap()],
    }
}

/// A kube-proxy without the API: services are given to it directly.
struct Proxy<'a> {
    site: &'a Site,
    table: Table,
}

impl<'a> Proxy<'a> {
    fn new(site: &'a Site) -> Self {
        Self::of(Family::V4, site)
    }

    fn of(family: Family, site: &'a Site) -> Self {
        let table = Table::new(plan_base(&plan_config(family)));
        let whole = table.replace();
        site.host.run(|| nft::commit(&[whole]).unwrap());
        Proxy { site, table }
    }

    fn set(&mut self, name: &str, spec: &str, protocol: &str, endpoints: &[IpAddr]) {
        let service: Service =
            serde_saphyr::from_str(&format!("metadata: {{namespace: default, name: {name}}}\nspec: {spec}")).unwrap();
        let endpoints: Vec<String> =
            endpoints.iter().map(|address| format!("{{addresses: ['{address}'], nodeName: here}}")).collect();
        let address_type = if self.table.family() == Family::V4 { "IPv4" } else { "IPv6" };
        let slice: EndpointSlice = serde_saphyr::from_str(&format!(
            "metadata: {{name: s}}\naddressType: {address_type}\nports: [{{name: '', port: 8080, protocol: {protocol}}}]\nendpoints: [{}]",
            endpoints.join(", ")
        ))
        .unwrap();
        self.commit(name, plan_service(&plan_config(self.table.family()), &service, &[Arc::new(slice)]));
    }

    fn commit(&mut self, name: &str, rules: ServiceRules) {
        let name: ServiceName = ("default".into(), name.into());
        let mut stale = StaleFlows::default();
        stale.note(self.table.rules(&name), &rules);
        let transaction = self.table.apply([(name, rules)]);
        self.site
            .host
            .run(|| nft::commit(std::slice::from_ref(&transaction)).unwrap_or_else(|e| panic!("{e}\n{transaction}")));
        self.site.host.run(|| stale.delete().unwrap());
    }
}

fn addresses(pods: &[&Pod]) -> Vec<IpAddr> {
    pods.iter().map(|pod| pod.address).collect()
}

#[test]
fn cluster_ips_reach_every_endpoint_from_pods_and_host() {
    let site = Site::new();
    let (a, b, client) = (site.pod("a"), site.pod("b"), site.pod("client"));
    let mut proxy = Proxy::new(&site);
    for protocol in ["TCP", "UDP"] {
        let ip = if protocol == "TCP" { "10.43.0.5" } else { "10.43.0.6" };
        let spec = format!("{{clusterIP: {ip}, ports: [{{port: 80, protocol: {protocol}}}]}}");
        proxy.set(protocol, &spec, protocol, &addresses(&[&a, &b]));
    }
    let many = |ask: &dyn Fn() -> String| (0..40).map(|_| ask()).collect::<HashSet<_>>();
    let both = |peer: IpAddr| HashSet::from([format!("a {peer}"), format!("b {peer}")]);
    assert_eq!(many(&|| client.namespace.ask_tcp("10.43.0.5:80")), both(client.address));
    assert_eq!(many(&|| client.namespace.ask_udp("10.43.0.6:80")), both(client.address));
    assert_eq!(many(&|| site.host.ask_tcp("10.43.0.5:80")), both([10, 42, 0, 1].into()));
    // To itself through the service: the answer comes back through the host.
    let own = many(&|| a.namespace.ask_tcp("10.43.0.5:80"));
    assert_eq!(own, HashSet::from(["a 10.42.0.1".to_owned(), format!("b {}", a.address)]));
    assert_eq!(client.namespace.ask_tcp("10.43.0.5:81"), "refused", "a port that the service does not have");
    assert_eq!(client.namespace.ask_tcp("10.43.9.9:80"), "refused", "an address that no service has");
    assert_eq!(site.host.ask_tcp("10.43.0.5:81"), "refused");

    proxy.set("TCP", "{clusterIP: 10.43.0.5, ports: [{port: 80}]}", "TCP", &addresses(&[&b]));
    assert_eq!(many(&|| client.namespace.ask_tcp("10.43.0.5:80")), HashSet::from([format!("b {}", client.address)]));
    proxy.set("TCP", "{clusterIP: 10.43.0.5, ports: [{port: 80}]}", "TCP", &[]);
    assert_eq!(client.namespace.ask_tcp("10.43.0.5:80"), "refused");
    assert_eq!(site.host.ask_tcp("10.43.0.5:80"), "refused");
}

#[test]
fn sctp_is_translated_there_and_back() {
    let site = Site::new();
    let (a, client) = (site.pod("a"), site.pod("client"));
    a.namespace.serve_sctp(8080);
    let mut proxy = Proxy::new(&site);
    let spec = "{clusterIP: 10.43.0.5, type: NodePort, ports: [{port: 80, nodePort: 30080, protocol: SCTP}]}";
    let cluster_ip: SocketAddrV4 = "10.43.0.5:80".parse().unwrap();
    proxy.set("signalling", spec, "SCTP", &addresses(&[&a]));
    assert_eq!(client.namespace.ask_sctp_from(4000, cluster_ip), Some(cluster_ip));
    let node_port: SocketAddrV4 = format!("{NODE_IP}:30080").parse().unwrap();
    assert_eq!(site.outside.ask_sctp_from(4001, node_port), Some(node_port));
    proxy.set("signalling", spec, "SCTP", &[]);
    assert_eq!(client.namespace.ask_sctp_from(4002, cluster_ip), None);
}

#[test]
fn node_ports_answer_on_all_addresses() {
    let site = Site::new();
    let a = site.pod("a");
    let mut proxy = Proxy::new(&site);
    let spec = |policy: &str| {
        format!(
            "{{type: NodePort, externalTrafficPolicy: {policy}, clusterIP: 10.43.0.5, externalIPs: [203.0.113.7], \
             ports: [{{port: 80, nodePort: 30080}}]}}"
        )
    };
    let node_port = format!("{NODE_IP}:30080");
    proxy.set("web", &spec("Cluster"), "TCP", &addresses(&[&a]));
    assert_eq!(site.outside.ask_tcp(&node_port), "a 10.42.0.1", "masqueraded");
    assert_eq!(site.outside.ask_tcp("203.0.113.7:80"), "a 10.42.0.1");
    assert_eq!(site.host.ask_tcp(&node_port), "a 10.42.0.1");
    assert_eq!(a.namespace.ask_tcp("10.42.0.1:30080"), "a 10.42.0.1");
    site.host.run(|| std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap());
    assert_eq!(site.host.ask_tcp("127.0.0.1:30080"), "a 10.42.0.1");
    // What listens on loopback only stays out of the neighbours' reach.
    site.host.serve("secret", 9999);
    site.outside.run(|| {
        std::fs::write("/proc/sys/net/ipv4/conf/all/route_localnet", "1").unwrap();
        // Without its own loopback, an attacker can send there.
        let script = format!("ip link set lo down && ip route add 127.0.0.5 via {NODE_IP}");
        assert!(std::process::Command::new("sh").args(["-c", &script]).status().unwrap().success());
    });
    assert_eq!(site.host.ask_tcp("127.0.0.5:9999"), "secret 127.0.0.1");
    assert_eq!(site.outside.ask_tcp("127.0.0.5:9999"), "silence");

    proxy.set("web", &spec("Local"), "TCP", &addresses(&[&a]));
    assert_eq!(site.outside.ask_tcp(&node_port), format!("a {OUTSIDE_IP}"), "the client is kept");
    assert_eq!(site.host.ask_tcp(&node_port), "a 10.42.0.1");
    // An endpoint elsewhere does not count from outside.
    let elsewhere =
        "{type: NodePort, externalTrafficPolicy: Local, clusterIP: 10.43.0.5, ports: [{port: 80, nodePort: 30080}]}";
    let service: Service =
        serde_saphyr::from_str(&format!("metadata: {{namespace: default, name: web}}\nspec: {elsewhere}")).unwrap();
    let slice: EndpointSlice = serde_saphyr::from_str(&format!(
        "metadata: {{name: s}}\naddressType: IPv4\nports: [{{name: '', port: 8080}}]\nendpoints: [{{addresses: ['{}'], nodeName: there}}]",
        a.address
    ))
    .unwrap();
    proxy.commit("web", plan_service(&plan_config(Family::V4), &service, &[Arc::new(slice)]));
    assert_eq!(site.outside.ask_tcp(&node_port), "silence");
    assert_eq!(site.host.ask_tcp(&node_port), "a 10.42.0.1", "the node itself is let through");
    proxy.set("web", &spec("Cluster"), "TCP", &[]);
    assert_eq!(site.outside.ask_tcp(&node_port), "refused");
    site.host.nft(&["delete", "table", "ip", "coxswain"]);
    assert_eq!(
        site.outside.ask_tcp("127.0.0.5:9999"),
        format!("secret {OUTSIDE_IP}"),
        "it was our rule that kept it out"
    );
}

#[test]
fn affinity_holds_until_the_endpoint_goes() {
    let site = Site::new();
    let (a, b, client) = (site.pod("a"), site.pod("b"), site.pod("client"));
    let mut proxy = Proxy::new(&site);
    let spec =
        "{sessionAffinity: ClientIP, clusterIP: 10.43.0.5, type: NodePort, ports: [{port: 80, nodePort: 30080}]}";
    proxy.set("web", spec, "TCP", &addresses(&[&a, &b]));
    let first = client.namespace.ask_tcp("10.43.0.5:80");
    for _ in 0..20 {
        assert_eq!(client.namespace.ask_tcp("10.43.0.5:80"), first);
    }
    let by_node_port = site.outside.ask_tcp(&format!("{NODE_IP}:30080"));
    for _ in 0..20 {
        assert_eq!(site.outside.ask_tcp(&format!("{NODE_IP}:30080")), by_node_port);
    }
    let (chosen, other) = if first.starts_with('a') { (&a, &b) } else { (&b, &a) };
    let third = site.pod("third");
    proxy.set("web", spec, "TCP", &addresses(&[chosen, other, &third]));
    assert_eq!(client.namespace.ask_tcp("10.43.0.5:80"), first, "kept when others come");
    proxy.set("web", spec, "TCP", &addresses(&[other]));
    let second = client.namespace.ask_tcp("10.43.0.5:80");
    assert_ne!(second, first);
    let shorter = spec.replace("{session", "{sessionAffinityConfig: {clientIP: {timeoutSeconds: 1}}, session");
    proxy.set("web", &shorter, "TCP", &addresses(&[other]));
    assert_eq!(client.namespace.ask_tcp("10.43.0.5:80"), second, "an edited timeout is taken over");
    proxy.commit("web", ServiceRules::default());
    assert_eq!(client.namespace.ask_tcp("10.43.0.5:80"), "refused");
    assert!(!site.host.nft(&["list", "ruleset"]).contains("default/web"));
}

#[test]
fn udp_clients_move_on_when_their_endpoint_goes() {
    let site = Site::new();
    let (a, b, client) = (site.pod("a"), site.pod("b"), site.pod("client"));
    let mut proxy = Proxy::new(&site);
    let spec = "{clusterIP: 10.43.0.5, type: NodePort, ports: [{port: 80, nodePort: 30080, protocol: UDP}]}";
    let node_port = format!("{NODE_IP}:30080");
    assert_eq!(site.outside.ask_udp_from(5000, &node_port), "refused");
    proxy.set("web", spec, "UDP", &addresses(&[&a]));
    // The same source port each time: the kernel takes it for one flow.
    assert_eq!(client.namespace.ask_udp_from(5000, "10.43.0.5:80"), format!("a {}", client.address));
    assert_eq!(site.outside.ask_udp_from(5000, &node_port), "a 10.42.0.1");
    proxy.set("web", spec, "UDP", &addresses(&[&b]));
    assert_eq!(client.namespace.ask_udp_from(5000, "10.43.0.5:80"), format!("b {}", client.address));
    assert_eq!(site.outside.ask_udp_from(5000, &node_port), "b 10.42.0.1");
}

#[test]
fn nft_reads_back_what_we_wrote_and_foreign_tables_stay() {
    let site = Site::new();
    site.host.nft(&["add", "table", "ip", "foreign"]);
    let mut proxy = Proxy::new(&site);
    let affinity = "{sessionAffinity: ClientIP, clusterIP: 10.43.0.5, ports: [{port: 80}]}";
    let endpoints: Vec<IpAddr> = vec![[10, 42, 0, 9].into(), [10, 42, 1, 3].into()];
    proxy.set("sticky", affinity, "TCP", &endpoints);
    proxy.set("plain", "{clusterIP: 10.43.0.6, ports: [{port: 53, protocol: UDP}]}", "UDP", &endpoints);
    proxy.set("none", "{clusterIP: 10.43.0.7, ports: [{port: 7, protocol: SCTP}]}", "SCTP", &[]);
    let many: Vec<IpAddr> = (0..17).map(|n| IpAddr::from([10, 42, 2, n])).collect();
    proxy.set("wide", "{clusterIP: 10.43.0.8, ports: [{port: 80}]}", "TCP", &many);
    let text = site.host.nft(&["list", "ruleset"]);
    for expected in [
        "table ip foreign",
        "10.43.0.6 . udp . 53 : goto cluster/default/plain/udp/",
        "10.43.0.7 . sctp . 7 : goto reject-chain",
        "meta l4proto udp numgen random mod 2 0 dnat to 10.42.0.9:8080",
        "meta l4proto tcp dnat ip to numgen random mod 17 map { 0 : 10.42.2.0 . 8080, 1 : 10.42.2.1 . 8080",
        "update @affinity/default/sticky/tcp//10.42.0.9/8080 { ip saddr }",
        "ip saddr @affinity/default/sticky/tcp//10.42.0.9/8080 goto endpoint/default/sticky/tcp//10.42.0.9/8080",
        "meta l4proto tcp dnat to 10.42.0.9:8080",
        "ip daddr @cluster-ips ip saddr != 10.42.0.0/16 meta mark set meta mark | 0x00004000",
        "ip daddr . meta l4proto . th dport vmap @service-ips",
        "fib daddr type local meta l4proto . th dport vmap @service-nodeports",
        "ct status dnat ip saddr . ip daddr @hairpin-connections masquerade fully-random",
        "timeout 3h",
    ] {
        assert!(text.contains(expected), "{expected}\nis not in\n{text}");
    }
    // What `nft` prints of ours, `nft` takes back: admins save and restore rulesets.
    let saved = site.data.path().join("saved.nft");
    std::fs::write(&saved, format!("flush ruleset\n{text}")).unwrap();
    site.host.nft(&["-f", saved.to_str().unwrap()]);

    // From memory alone, the table is made anew as it was.
    let whole = proxy.table.replace();
    site.host.run(|| nft::commit(&[whole]).unwrap());
    let again = site.host.nft(&["list", "ruleset"]);
    assert_eq!(again.lines().collect::<HashSet<_>>(), text.lines().collect::<HashSet<_>>());
}

#[test]
fn ipv6_works_the_same() {
    let site = Site::new();
    site.add_ipv6();
    let both =
        serde_json::json!({ "podCIDRs": ["10.42.0.0/24", "fd42::/64"], "clusterCIDRs": [CLUSTER_CIDR, CLUSTER_CIDR6] });
    let (a, client) = (site.pod_with("a", both.clone()), site.pod_with("client", both));
    let address = |pod: &Pod| {
        let text = pod.result["ips"][1]["address"].as_str().unwrap();
        text.parse::<ipnet::IpNet>().unwrap().addr()
    };
    assert_eq!(address(&a).to_string(), "fd42::2");
    assert_eq!(client.namespace.ask_tcp("[fd42::2]:8080"), format!("a {}", address(&client)));
    let mut proxy = Proxy::of(Family::V6, &site);
    let spec = "{clusterIP: 'fd43::5', clusterIPs: ['fd43::5'], type: NodePort, ports: [{port: 80, nodePort: 30080}]}";
    proxy.set("web", spec, "TCP", &[address(&a)]);
    proxy.set(
        "dns",
        "{clusterIP: 'fd43::6', sessionAffinity: ClientIP, ports: [{port: 53, protocol: UDP}]}",
        "UDP",
        &[address(&a)],
    );
    proxy.set("none", "{clusterIP: 'fd43::7', ports: [{port: 80}]}", "TCP", &[]);
    let many: Vec<IpAddr> = (0..300u16).map(|n| IpAddr::from([0xfd42, 0, 0, 1, 0, 0, 0, n])).collect();
    proxy.set("wide", "{clusterIP: 'fd43::8', ports: [{port: 80}]}", "TCP", &many);
    assert_eq!(client.namespace.ask_tcp("[fd43::5]:80"), format!("a {}", address(&client)));
    assert_eq!(client.namespace.ask_udp("[fd43::6]:53"), format!("a {}", address(&client)));
    assert_eq!(client.namespace.ask_tcp("[fd43::7]:80"), "refused");
    assert_eq!(a.namespace.ask_tcp("[fd43::5]:80"), "a fd42::1", "to itself");
    assert_eq!(site.outside.ask_tcp(&format!("[{NODE_IP6}]:30080")), "a fd42::1");
    assert_eq!(site.outside.ask_tcp("[fd42::2]:8080"), format!("a {OUTSIDE_IP6}"));
    let text = site.host.nft(&["list", "ruleset"]);
    for expected in [
        "fd43::6 . udp . 53 : goto cluster/default/dns/udp/",
        "numgen random mod 300 map { 0 : fd42:0:0:1:: . 8080, 1 : fd42:0:0:1::1 . 8080",
        "meta l4proto tcp dnat to [fd42::2]:8080",
        "ip6 daddr @cluster-ips ip6 saddr != fd42::/56",
    ] {
        assert!(text.contains(expected), "{expected}\nis not in\n{text}");
    }
}

#[test]
fn a_refused_transaction_names_the_change_and_changes_nothing() {
    let site = Site::new();
    let proxy = Proxy::new(&site);
    let before = site.host.nft(&["list", "ruleset"]);
    let mut transaction = nft::Transaction::new(Family::V4, super::plan::TABLE);
    transaction.push(nft::Change::AddChain { name: "fine".into(), hook: None });
    transaction.push(nft::Change::DeleteChain { name: "missing".into() });
    let error = proxy.site.host.run(|| nft::commit(&[transaction]).unwrap_err());
    assert_eq!(error.errno(), Some(nix::errno::Errno::ENOENT));
    assert!(error.to_string().contains("delete chain missing"), "{error}");
    assert_eq!(site.host.nft(&["list", "ruleset"]), before);
}

#[test]
fn ten_thousand_services_are_one_transaction_and_a_change_stays_small() {
    let site = Site::new();
    let config = plan_config(Family::V4);
    let rules = |number: u32, endpoints: u8| {
        let ip = IpAddr::from([10, 43, (number >> 8) as u8, number as u8]);
        let service: Service = serde_json::from_value(serde_json::json!({
            "metadata": { "namespace": "default", "name": format!("s{number}") },
            "spec": { "clusterIP": ip, "ports": [{ "name": "http", "port": 80 }] },
        }))
        .unwrap();
        let endpoints: Vec<_> =
            (0..endpoints).map(|e| serde_json::json!({ "addresses": [format!("10.42.1.{e}")] })).collect();
        let slice: EndpointSlice = serde_json::from_value(serde_json::json!({
            "addressType": "IPv4", "ports": [{ "name": "http", "port": 8080 }], "endpoints": endpoints,
        }))
        .unwrap();
        (("default".to_owned(), format!("s{number}")), plan_service(&config, &service, &[Arc::new(slice)]))
    };
    let mut table = Table::new(plan_base(&config));
    table.apply((0..10_000).map(|number| rules(number, 3)));
    let whole = table.replace();
    site.host.run(|| nft::commit(&[whole]).unwrap());
    let change = table.apply([rules(77, 4)]);
    assert_eq!(change.changes.len(), 5, "a chain flushed and its four rules: {change}");
    site.host.run(|| nft::commit(&[change]).unwrap());
}
