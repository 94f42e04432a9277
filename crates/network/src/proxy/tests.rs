//! Plans and deltas as text, from objects as text.

use std::sync::Arc;

use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;

use super::base::plan_base;
use super::plan::{PlanConfig, ServiceRules, plan_service};
use super::selection::Place;
use super::table::Table;
use crate::nft::Family;

fn config(family: Family) -> PlanConfig {
    let (cluster, service) = match family {
        Family::V4 => ("10.42.0.0/16", "10.43.0.0/16"),
        Family::V6 => ("fd42::/56", "fd43::/112"),
    };
    PlanConfig {
        family,
        place: Place { node: "here".into(), zone: Some("east".into()) },
        cluster_cidrs: vec![cluster.parse().unwrap()],
        service_cidrs: vec![service.parse().unwrap()],
    }
}

/// A service `default/web` of this spec.
fn service(spec: &str) -> Service {
    let mut service: Service =
        serde_saphyr::from_str(&format!("metadata: {{namespace: default, name: web}}\n{spec}")).unwrap();
    service.metadata.namespace = Some("default".into());
    service
}

/// A slice of port http/80 with endpoints as `address node [conditions and hints]`, one per line.
fn slice(endpoints: &str) -> Arc<EndpointSlice> {
    slice_of("IPv4", "{name: http, port: 8080, protocol: TCP}", endpoints)
}

fn slice_of(address_type: &str, port: &str, endpoints: &str) -> Arc<EndpointSlice> {
    let lines = endpoints.lines().map(str::trim).filter(|line| !line.is_empty());
    let endpoints: Vec<String> = lines
        .map(|line| {
            let mut words = line.split(' ');
            let (address, node) = (words.next().unwrap(), words.next().unwrap());
            let (mut conditions, mut hints) = (Vec::new(), Vec::new());
            for word in words {
                match word.split_once('=') {
                    Some((kind, name)) => hints.push(format!("{kind}: [{{name: {name}}}]")),
                    None => match word.strip_prefix('!') {
                        Some(word) => conditions.push(format!("{word}: false")),
                        None => conditions.push(format!("{word}: true")),
                    },
                }
            }
            format!(
                "- addresses: ['{address}']\n  nodeName: {node}\n  conditions: {{{}}}\n  hints: {{{}}}\n",
                conditions.join(", "),
                hints.join(", ")
            )
        })
        .collect();
    let list = if endpoints.is_empty() { "[]".to_owned() } else { format!("\n{}", endpoints.concat()) };
    let text = format!("metadata: {{name: web-1}}\naddressType: {address_type}\nports: [{port}]\nendpoints: {list}\n");
    Arc::new(serde_saphyr::from_str(&text).unwrap())
}

#[track_caller]
fn check_text(actual: &str, expected: &str) {
    let lines = |text: &str| text.lines().map(|l| l.trim().to_owned()).filter(|l| !l.is_empty()).collect::<Vec<_>>();
    let (actual, expected) = (lines(actual), lines(expected));
    assert!(actual == expected, "expected:\n{}\n\nactual:\n{}", expected.join("\n"), actual.join("\n"));
}

#[track_caller]
fn check(spec: &str, slices: &[Arc<EndpointSlice>], expected: &str) {
    check_text(&plan_service(&config(Family::V4), &service(spec), slices).to_string(), expected);
}

const CLUSTER_IP: &str = "
spec:
  clusterIP: 10.43.0.5
  clusterIPs: [10.43.0.5]
  ports: [{name: http, port: 80, protocol: TCP}]
";

const NODE_PORT: &str = "
spec:
  type: NodePort
  clusterIP: 10.43.0.5
  ports: [{name: http, port: 80, nodePort: 30080}]
";

#[test]
fn cluster_ip_spreads_over_ready_endpoints() {
    check(
        CLUSTER_IP,
        &[slice("10.42.0.9 here ready\n10.42.1.3 there ready\n10.42.1.4 there !ready")],
        "
        cluster-ips: 10.43.0.5
        hairpin-connections: 10.42.0.9 . 10.42.0.9
        service-ips: 10.43.0.5 . tcp . 80 : goto cluster/default/web/tcp/http
        chain cluster/default/web/tcp/http
          tcp one in 2 dnat to 10.42.0.9 . 8080
          tcp dnat to 10.42.1.3 . 8080
        ",
    );
}

#[test]
fn no_endpoint_refuses() {
    let refuses = "
        cluster-ips: 10.43.0.5
        no-endpoint-services: 10.43.0.5 . tcp . 80 : goto reject-chain
    ";
    check(CLUSTER_IP, &[], refuses);
    check(CLUSTER_IP, &[slice("10.42.0.9 here !ready")], refuses);
    let other_port = slice_of("IPv4", "{name: other, port: 1}", "10.42.0.9 here ready");
    check(CLUSTER_IP, &[other_port], refuses);
}

#[test]
fn what_drains_serves_until_something_is_ready() {
    let serves = |endpoint: &str| {
        format!(
            "
            cluster-ips: 10.43.0.5
            service-ips: 10.43.0.5 . tcp . 80 : goto cluster/default/web/tcp/http
            chain cluster/default/web/tcp/http
              tcp dnat to {endpoint} . 8080
            "
        )
    };
    let draining = "10.42.1.3 there !ready serving terminating";
    check(CLUSTER_IP, &[slice(draining)], &serves("10.42.1.3"));
    check(CLUSTER_IP, &[slice(&format!("{draining}\n10.42.1.4 there ready"))], &serves("10.42.1.4"));
}

#[test]
fn hints_count_only_when_complete_and_for_us() {
    let spread = |endpoints: &str, target: &str| {
        let rules = plan_service(&config(Family::V4), &service(CLUSTER_IP), &[slice(endpoints)]);
        let chain = &rules.chains["cluster/default/web/tcp/http"];
        let targets: Vec<String> =
            chain.iter().map(|r| r.to_string().rsplit_once("to ").unwrap().1.to_owned()).collect();
        assert_eq!(targets.join(", "), target, "{endpoints}");
    };
    let both = "10.42.1.3 . 8080, 10.42.1.4 . 8080";
    spread("10.42.1.3 there forZones=east\n10.42.1.4 there forZones=west", "10.42.1.3 . 8080");
    spread("10.42.1.3 there forZones=east\n10.42.1.4 there", both);
    spread("10.42.1.3 there forZones=north\n10.42.1.4 there forZones=west", both);
    spread("10.42.1.3 there forNodes=there\n10.42.1.4 there forNodes=here", "10.42.1.4 . 8080");
    spread("10.42.1.3 there forNodes=there\n10.42.1.4 there forNodes=elsewhere", both);
    spread("10.42.1.3 there forZones=east\n10.42.1.4 there forZones=east\n10.42.1.5 x !ready", both);
}

#[test]
fn node_port_masquerades() {
    check(
        NODE_PORT,
        &[slice("10.42.1.3 there ready")],
        "
        cluster-ips: 10.43.0.5
        service-ips: 10.43.0.5 . tcp . 80 : goto cluster/default/web/tcp/http
        service-nodeports: tcp . 30080 : goto external/default/web/tcp/http
        chain cluster/default/web/tcp/http
          tcp dnat to 10.42.1.3 . 8080
        chain external/default/web/tcp/http
          mark set mark | 0x4000
          goto cluster/default/web/tcp/http
        ",
    );
    check(
        NODE_PORT,
        &[],
        "
        cluster-ips: 10.43.0.5
        no-endpoint-nodeports: tcp . 30080 : goto reject-chain
        no-endpoint-services: 10.43.0.5 . tcp . 80 : goto reject-chain
        ",
    );
}

#[test]
fn external_policy_local_keeps_the_client_and_drops_where_nobody_is() {
    let spec = &NODE_PORT.replace("type: NodePort", "type: NodePort\n  externalTrafficPolicy: Local");
    check(
        spec,
        &[slice("10.42.0.9 here ready\n10.42.1.3 there ready")],
        "
        cluster-ips: 10.43.0.5
        hairpin-connections: 10.42.0.9 . 10.42.0.9
        service-ips: 10.43.0.5 . tcp . 80 : goto cluster/default/web/tcp/http
        service-nodeports: tcp . 30080 : goto external/default/web/tcp/http
        chain cluster/default/web/tcp/http
          tcp one in 2 dnat to 10.42.0.9 . 8080
          tcp dnat to 10.42.1.3 . 8080
        chain external/default/web/tcp/http
          saddr 10.42.0.0/16 goto cluster/default/web/tcp/http
          fib saddr type local mark set mark | 0x4000 goto cluster/default/web/tcp/http
          goto local/default/web/tcp/http
        chain local/default/web/tcp/http
          tcp dnat to 10.42.0.9 . 8080
        ",
    );
    check(
        spec,
        &[slice("10.42.1.3 there ready")],
        "
        cluster-ips: 10.43.0.5
        no-endpoint-nodeports: tcp . 30080 : drop
        service-ips: 10.43.0.5 . tcp . 80 : goto cluster/default/web/tcp/http
        service-nodeports: tcp . 30080 : goto external/default/web/tcp/http
        chain cluster/default/web/tcp/http
          tcp dnat to 10.42.1.3 . 8080
        chain external/default/web/tcp/http
          saddr 10.42.0.0/16 goto cluster/default/web/tcp/http
          fib saddr type local mark set mark | 0x4000 goto cluster/default/web/tcp/http
        ",
    );
}

#[test]
fn internal_policy_local_stays_here() {
    let spec = &CLUSTER_IP.replace("spec:", "spec:\n  internalTrafficPolicy: Local");
    check(
        spec,
        &[slice("10.42.0.9 here ready\n10.42.1.3 there ready")],
        "
        cluster-ips: 10.43.0.5
        hairpin-connections: 10.42.0.9 . 10.42.0.9
        service-ips: 10.43.0.5 . tcp . 80 : goto local/default/web/tcp/http
        chain local/default/web/tcp/http
          tcp dnat to 10.42.0.9 . 8080
        ",
    );
    check(
        spec,
        &[slice("10.42.1.3 there ready")],
        "
        cluster-ips: 10.43.0.5
        no-endpoint-services: 10.43.0.5 . tcp . 80 : drop
        ",
    );
}

#[test]
fn affinity_remembers_clients_per_endpoint() {
    let spec = &CLUSTER_IP.replace(
        "spec:",
        "spec:\n  sessionAffinity: ClientIP\n  sessionAffinityConfig: {clientIP: {timeoutSeconds: 60}}",
    );
    check(
        spec,
        &[slice("10.42.1.3 there ready\n10.42.1.4 there ready")],
        "
        set addr dynamic timeout 60s affinity/default/web/tcp/http/10.42.1.3/8080
        set addr dynamic timeout 60s affinity/default/web/tcp/http/10.42.1.4/8080
        cluster-ips: 10.43.0.5
        service-ips: 10.43.0.5 . tcp . 80 : goto cluster/default/web/tcp/http
        chain cluster/default/web/tcp/http
          saddr @affinity/default/web/tcp/http/10.42.1.3/8080 goto endpoint/default/web/tcp/http/10.42.1.3/8080
          saddr @affinity/default/web/tcp/http/10.42.1.4/8080 goto endpoint/default/web/tcp/http/10.42.1.4/8080
          one in 2 goto endpoint/default/web/tcp/http/10.42.1.3/8080
          goto endpoint/default/web/tcp/http/10.42.1.4/8080
        chain endpoint/default/web/tcp/http/10.42.1.3/8080
          update @affinity/default/web/tcp/http/10.42.1.3/8080 { saddr }
          tcp dnat to 10.42.1.3 . 8080
        chain endpoint/default/web/tcp/http/10.42.1.4/8080
          update @affinity/default/web/tcp/http/10.42.1.4/8080 { saddr }
          tcp dnat to 10.42.1.4 . 8080
        ",
    );
}

#[test]
fn many_endpoints_share_a_map() {
    let endpoints: Vec<String> = (0..17).map(|n| format!("10.42.1.{n} there ready")).collect();
    let rules = plan_service(&config(Family::V4), &service(CLUSTER_IP), &[slice(&endpoints.join("\n"))]);
    let chain = &rules.chains["cluster/default/web/tcp/http"];
    assert_eq!(chain.len(), 1);
    assert!(chain[0].to_string().starts_with("tcp dnat to random { 10.42.1.0 . 8080, "), "{}", chain[0]);
}

#[test]
fn load_balancer_addresses_and_external_ips() {
    let spec = "
spec:
  type: LoadBalancer
  clusterIP: 10.43.0.5
  externalIPs: [203.0.113.7, 'fd99::7']
  loadBalancerSourceRanges: [198.51.100.0/24]
  ports: [{name: http, port: 80}]
status:
  loadBalancer: {ingress: [{ip: 203.0.113.8, ipMode: VIP}, {ip: 203.0.113.9, ipMode: Proxy}, {hostname: x.example}]}
";
    check(
        spec,
        &[slice("10.42.1.3 there ready")],
        "
        cluster-ips: 10.43.0.5
        service-ips: 10.43.0.5 . tcp . 80 : goto cluster/default/web/tcp/http
        service-ips: 203.0.113.7 . tcp . 80 : goto external/default/web/tcp/http
        service-ips: 203.0.113.8 . tcp . 80 : goto firewall/default/web/tcp/http
        chain cluster/default/web/tcp/http
          tcp dnat to 10.42.1.3 . 8080
        chain external/default/web/tcp/http
          mark set mark | 0x4000
          goto cluster/default/web/tcp/http
        chain firewall/default/web/tcp/http
          saddr 198.51.100.0/24 goto external/default/web/tcp/http
          drop
        ",
    );
}

#[test]
fn services_that_are_not_ours_have_no_rules() {
    for spec in [
        "spec: {clusterIP: None, ports: [{port: 80}]}",
        "spec: {type: ExternalName, externalName: x.example}",
        "spec: {ports: [{port: 80}]}",
    ] {
        check(spec, &[slice("10.42.1.3 there ready")], "");
    }
    let mut others = service(CLUSTER_IP);
    others.metadata.labels = Some([("service.kubernetes.io/service-proxy-name".into(), "mine".into())].into());
    assert_eq!(plan_service(&config(Family::V4), &others, &[]), ServiceRules::default());
}

#[test]
fn each_family_has_its_own_addresses() {
    let spec = "
spec:
  clusterIP: 10.43.0.5
  clusterIPs: [10.43.0.5, 'fd43::5']
  sessionAffinity: ClientIP
  ports: [{port: 53, protocol: UDP}]
";
    let slices = [
        slice_of("IPv4", "{name: '', port: 53, protocol: UDP}", "10.42.0.9 here ready"),
        slice_of("IPv6", "{name: '', port: 53, protocol: UDP}", "fd42::9 here ready"),
    ];
    check_text(
        &plan_service(&config(Family::V6), &service(spec), &slices).to_string(),
        "
        set addr dynamic timeout 10800s affinity/default/web/udp//fd42--9/53
        cluster-ips: fd43::5
        hairpin-connections: fd42::9 . fd42::9
        service-ips: fd43::5 . udp . 53 : goto cluster/default/web/udp/
        chain cluster/default/web/udp/
          saddr @affinity/default/web/udp//fd42--9/53 goto endpoint/default/web/udp//fd42--9/53
          goto endpoint/default/web/udp//fd42--9/53
        chain endpoint/default/web/udp//fd42--9/53
          update @affinity/default/web/udp//fd42--9/53 { saddr }
          udp dnat to fd42::9 . 53
        udp fd43::5:53 <- fd42::9
        ",
    );
}

/// Steps from one state of `default/web` to the next.
fn transitions(steps: &[(&str, &[Arc<EndpointSlice>])]) -> String {
    let config = config(Family::V4);
    let mut table = Table::new(plan_base(&config));
    let name = ("default".to_owned(), "web".to_owned());
    let mut text = String::new();
    for (spec, slices) in steps {
        let rules = plan_service(&config, &service(spec), slices);
        text += &format!("--\n{}", table.apply([(name.clone(), rules)]));
    }
    text + &format!("--\n{}", table.apply([(name, ServiceRules::default())]))
}

#[test]
fn only_what_changes_is_sent() {
    check_text(
        &transitions(&[
            (CLUSTER_IP, &[]),
            (CLUSTER_IP, &[slice("10.42.1.3 there ready")]),
            (CLUSTER_IP, &[slice("10.42.1.3 there ready\n10.42.1.4 there ready")]),
            (CLUSTER_IP, &[slice("10.42.1.4 there ready\n10.42.1.3 there ready\n10.42.1.5 there !ready")]),
        ]),
        "
        --
        add element cluster-ips { 10.43.0.5 }
        add element no-endpoint-services { 10.43.0.5 . tcp . 80 : goto reject-chain }
        --
        delete element no-endpoint-services { 10.43.0.5 . tcp . 80 }
        add chain cluster/default/web/tcp/http
        add rule cluster/default/web/tcp/http tcp dnat to 10.42.1.3 . 8080
        add element service-ips { 10.43.0.5 . tcp . 80 : goto cluster/default/web/tcp/http }
        --
        flush chain cluster/default/web/tcp/http
        add rule cluster/default/web/tcp/http tcp one in 2 dnat to 10.42.1.3 . 8080
        add rule cluster/default/web/tcp/http tcp dnat to 10.42.1.4 . 8080
        --
        --
        delete element cluster-ips { 10.43.0.5 }
        delete element service-ips { 10.43.0.5 . tcp . 80 }
        flush chain cluster/default/web/tcp/http
        delete chain cluster/default/web/tcp/http
        ",
    );
}

#[test]
fn of_two_claimants_the_first_by_name_has_the_address() {
    let config = config(Family::V4);
    let mut table = Table::new(plan_base(&config));
    let rules = |name: &str, ip: &str| {
        let spec = format!("spec: {{clusterIP: {ip}, externalIPs: [203.0.113.7], ports: [{{name: http, port: 80}}]}}");
        let mut service = service(&spec);
        service.metadata.name = Some(name.into());
        plan_service(&config, &service, &[slice("10.42.1.3 there ready")])
    };
    let key = |name: &str| ("default".to_owned(), name.to_owned());
    let claims = |text: String| text.lines().filter(|l| l.contains("203.0.113.7")).collect::<Vec<_>>().join("\n");
    let b = table.apply([(key("b"), rules("b", "10.43.0.2"))]).to_string();
    assert!(claims(b).contains("goto external/default/b/"));
    let a = table.apply([(key("a"), rules("a", "10.43.0.1"))]).to_string();
    check_text(
        &claims(a),
        "delete element service-ips { 203.0.113.7 . tcp . 80 }
        add element service-ips { 10.43.0.1 . tcp . 80 : goto cluster/default/a/tcp/http, 203.0.113.7 . tcp . 80 : goto external/default/a/tcp/http }",
    );
    let gone = table.apply([(key("a"), ServiceRules::default())]).to_string();
    assert!(claims(gone).contains("add element service-ips { 203.0.113.7 . tcp . 80 : goto external/default/b/"));
}
