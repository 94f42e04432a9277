//! The components as they run on a node: against an API, in a kernel, with packets.

use std::io::{Read as _, Write as _};
use std::net::SocketAddr;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use hickory_proto::op::{Message, Query, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use ipnet::IpNet;
use serde_json::json;

use crate::dns::{DnsConfig, Upstreams, run_dns};
use crate::fake_api::FakeApi;
use crate::netlink::route::{Handle, Via};
use crate::podnet::{PodNetConfig, run_podnet};
use crate::proxy::{ProxyConfig, run_proxy};
use crate::testing::{CLUSTER_CIDR, NODE_IP, Pod, Site};

const SERVICES: &str = "/api/v1/services";
const NODES: &str = "/api/v1/nodes";
const NAMESPACES: &str = "/api/v1/namespaces";
const SLICES: &str = "/apis/discovery.k8s.io/v1/endpointslices";
const SERVICE_CIDR: &str = "10.43.0.0/16";
const CLUSTER_DNS: &str = "10.43.0.10";

/// Runs `work` beside components in the host's namespace; every thread of the runtime is in there.
fn on_node<F: Future<Output = ()> + Send>(site: &Site, work: F) {
    site.host.run(|| {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        runtime.block_on(work);
        runtime.shutdown_background();
    });
}

/// Waits until `now` gives what is expected. Everything that it looks at changes by itself, and soon.
#[track_caller]
fn becomes<T: PartialEq + std::fmt::Debug>(expected: T, now: impl Fn() -> T) {
    let patience = Instant::now() + Duration::from_secs(5);
    loop {
        let seen = now();
        if seen == expected {
            return;
        }
        assert!(Instant::now() < patience, "expected {expected:?}, still {seen:?}");
        std::thread::sleep(Duration::from_millis(5));
    }
}

fn cidrs(text: &str) -> Vec<IpNet> {
    vec![text.parse().unwrap()]
}

fn proxy_config() -> ProxyConfig {
    ProxyConfig {
        node_name: "here".into(),
        cluster_cidrs: cidrs(CLUSTER_CIDR),
        service_cidrs: cidrs(SERVICE_CIDR),
        healthz: Some(([0, 0, 0, 0], 10256).into()),
    }
}

fn dns_config() -> DnsConfig {
    DnsConfig {
        listen: SocketAddr::new(NODE_IP.parse().unwrap(), 10053),
        cluster_domain: "cluster.local".into(),
        cluster_dns_ip: CLUSTER_DNS.parse().unwrap(),
        service_cidrs: cidrs(SERVICE_CIDR),
        cluster_cidrs: cidrs(CLUSTER_CIDR),
        upstreams: Upstreams::Fixed(Vec::new()),
        node_name: "here".into(),
    }
}

fn podnet_config(site: &Site) -> PodNetConfig {
    PodNetConfig {
        node_name: "here".into(),
        node_ips: vec![NODE_IP.parse().unwrap()],
        cluster_cidrs: cidrs(CLUSTER_CIDR),
        service_cidrs: cidrs(SERVICE_CIDR),
        cni_dir: site.data.path().join("cni"),
        executable: PathBuf::from("/usr/bin/coxswain"),
    }
}

fn node(name: &str, pod_cidr: &str, address: &str) -> String {
    format!(
        "{{metadata: {{name: {name}}}, spec: {{podCIDR: {pod_cidr}, podCIDRs: [{pod_cidr}]}}, \
         status: {{addresses: [{{type: Hostname, address: {name}}}, {{type: InternalIP, address: {address}}}]}}}}"
    )
}

fn put_web(api: &FakeApi, endpoints: &[&Pod]) {
    api.put(SERVICES, "{metadata: {namespace: default, name: web}, spec: {clusterIP: 10.43.0.5, ports: [{port: 80}]}}");
    let endpoints: Vec<String> = endpoints.iter().map(|pod| format!("{{addresses: [{}]}}", pod.address)).collect();
    api.put(
        SLICES,
        &format!(
            "{{metadata: {{namespace: default, name: web-1, labels: {{kubernetes.io/service-name: web}}}}, \
             addressType: IPv4, ports: [{{name: '', port: 8080, protocol: TCP}}], endpoints: [{}]}}",
            endpoints.join(", ")
        ),
    );
}

#[test]
fn the_proxy_follows_the_api_and_mends_what_others_break() {
    let site = Site::new();
    let (a, b) = (site.pod("a"), site.pod("b"));
    let api = FakeApi::new();
    put_web(&api, &[&a]);
    on_node(&site, async {
        let context = api.context();
        let running = tokio::spawn(run_proxy(context.clone(), proxy_config()));
        let ask = || b.namespace.ask_tcp("10.43.0.5:80");
        becomes(format!("a {}", b.address), ask);
        put_web(&api, &[]);
        becomes("refused".to_owned(), ask);
        put_web(&api, &[&a]);
        becomes(format!("a {}", b.address), ask);
        site.host.nft(&["flush", "ruleset"]);
        becomes(format!("a {}", b.address), ask);
        api.delete(SERVICES, "default", "web");
        becomes("refused".to_owned(), ask);
        context.shutdown.cancel();
        running.await.unwrap().unwrap();
        assert!(site.host.nft(&["list", "tables"]).contains("table ip coxswain"), "the rules outlive the daemon");
    });
}

#[test]
fn load_balancers_learn_where_endpoints_are() {
    let site = Site::new();
    let pod = site.pod("a");
    let api = FakeApi::new();
    put_web(&api, &[&pod]);
    let ask = |port: u16, path: &str| {
        site.outside.run(|| {
            let request = || -> std::io::Result<String> {
                let address = SocketAddr::new(NODE_IP.parse().unwrap(), port);
                let mut stream = std::net::TcpStream::connect(address)?;
                stream.write_all(format!("GET {path} HTTP/1.1\r\nHost: x\r\n\r\n").as_bytes())?;
                let mut answer = String::new();
                stream.read_to_string(&mut answer)?;
                Ok(answer)
            };
            let answer = request().unwrap_or_else(|error| error.kind().to_string());
            let code = answer.split(' ').nth(1).unwrap_or(&answer).to_owned();
            let local = answer.split_once("\"localEndpoints\":").map(|(_, rest)| rest.chars().next().unwrap());
            (code, local)
        })
    };
    on_node(&site, async {
        let context = api.context();
        let running = tokio::spawn(run_proxy(context.clone(), proxy_config()));
        becomes(("200".to_owned(), None), || ask(10256, "/healthz"));
        assert_eq!(ask(10256, "/nonsense").0, "404");
        api.put(
            SERVICES,
            "{metadata: {namespace: default, name: web}, spec: {type: LoadBalancer, clusterIP: 10.43.0.5, \
              externalTrafficPolicy: Local, healthCheckNodePort: 32000, ports: [{port: 80, nodePort: 30080}]}}",
        );
        becomes(("503".to_owned(), Some('0')), || ask(32000, "/"));
        api.put(
            SLICES,
            &format!(
                "{{metadata: {{namespace: default, name: web-1, labels: {{kubernetes.io/service-name: web}}}}, addressType: IPv4, \
                 ports: [{{name: '', port: 8080}}], endpoints: [{{addresses: [{}], nodeName: here}}]}}",
                pod.address
            ),
        );
        becomes(("200".to_owned(), Some('1')), || ask(32000, "/"));
        api.delete(SERVICES, "default", "web");
        becomes("refused".to_owned(), || ask(32000, "/").0);
        context.shutdown.cancel();
        running.await.unwrap().unwrap();
        becomes("refused".to_owned(), || ask(10256, "/healthz").0);
    });
}

#[test]
fn the_pod_network_follows_the_nodes() {
    let site = Site::new();
    let api = FakeApi::new();
    let config = podnet_config(&site);
    on_node(&site, async {
        let context = api.context();
        let running = tokio::spawn(run_podnet(context.clone(), config.clone()));
        let conf = config.conf_dir().join("10-coxswain.conflist");
        let routes = || {
            let routes = Handle::open().unwrap().own_routes().unwrap();
            routes.into_iter().filter(|r| r.metric == 0).map(|r| (r.destination.to_string(), r.via)).collect::<Vec<_>>()
        };
        becomes(true, || {
            config.bin_dir().join("loopback").is_symlink() && config.bin_dir().join("coxswain-cni").is_symlink()
        });
        assert!(!conf.exists(), "the runtime must not start pods before there is a network");
        api.put(NODES, &node("here", "10.42.0.0/24", NODE_IP));
        becomes(true, || conf.exists());
        assert_eq!(std::fs::read_to_string("/proc/sys/net/ipv4/ip_forward").unwrap().trim(), "1");
        let own = ("10.42.0.0/24".to_owned(), Via::Unreachable);
        becomes(vec![own.clone()], routes);

        let masquerades =
            || site.host.nft(&["list", "ruleset"]).contains("ip saddr 10.42.0.0/24 ip daddr != 10.42.0.0/16");
        assert!(masquerades());
        site.host.nft(&["flush", "ruleset"]);
        becomes(true, masquerades);

        let gateway = |address: &str| Via::Gateway { address: address.parse().unwrap() };
        let expect = |destination: &str, address: &str| vec![own.clone(), (destination.to_owned(), gateway(address))];
        // A node that cannot be reached directly does no harm.
        api.put(NODES, &node("far", "10.42.9.0/24", "203.0.113.1"));
        api.put(NODES, &node("there", "10.42.1.0/24", "192.168.50.2"));
        becomes(expect("10.42.1.0/24", "192.168.50.2"), || {
            let mut routes = routes();
            routes.retain(|(destination, _)| destination != "10.42.9.0/24");
            routes
        });
        api.delete(NODES, "", "far");
        api.put(NODES, &node("there", "10.42.1.0/24", "192.168.50.3"));
        becomes(expect("10.42.1.0/24", "192.168.50.3"), routes);
        api.delete(NODES, "", "there");
        becomes(vec![own], routes);
        context.shutdown.cancel();
        running.await.unwrap().unwrap();
    });
}

#[test]
fn a_host_without_default_route_reaches_services() {
    let site = Site::new();
    let pod = site.pod("a");
    let api = FakeApi::new();
    put_web(&api, &[&pod]);
    api.put(NODES, &node("here", "10.42.0.0/24", NODE_IP));
    let ip = |arguments: &str| {
        let done = std::process::Command::new("ip").args(arguments.split(' ')).status().unwrap();
        assert!(done.success(), "ip {arguments}");
    };
    on_node(&site, async {
        ip("route del default");
        let context = api.context();
        let config = podnet_config(&site);
        tokio::spawn(run_proxy(context.clone(), proxy_config()));
        tokio::spawn(run_podnet(context.clone(), config));
        becomes("a 10.42.0.1".to_owned(), || site.host.ask_tcp("10.43.0.5:80"));
        assert_eq!(site.host.ask_tcp("10.43.7.7:80"), "refused");
        context.shutdown.cancel();
    });
}

#[test]
fn a_pod_finds_a_service_by_name_through_the_services_address() {
    let site = Site::new();
    let pod = site.pod("a");
    let api = FakeApi::new();
    api.put(NAMESPACES, "{metadata: {name: kube-system}}");
    api.put(NODES, &node("here", "10.42.0.0/24", NODE_IP));
    api.put(
        SERVICES,
        &format!(
            "{{metadata: {{namespace: kube-system, name: kube-dns}}, spec: {{clusterIP: {CLUSTER_DNS}, clusterIPs: [{CLUSTER_DNS}], \
             ports: [{{name: dns, port: 53, protocol: UDP}}, {{name: dns-tcp, port: 53, protocol: TCP}}]}}}}"
        ),
    );
    put_web(&api, &[&pod]);
    let ask = |name: &str| {
        let mut request = Message::query();
        request.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
        let request = request.to_vec().unwrap();
        pod.namespace.run(move || {
            let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
            socket.connect((CLUSTER_DNS, 53)).unwrap();
            let mut buffer = [0; 2048];
            match socket.send(&request).and_then(|_| socket.recv(&mut buffer)) {
                Ok(len) => {
                    let answer = Message::from_vec(&buffer[..len]).unwrap();
                    let data = answer.answers.iter().map(|r| r.data.to_string()).collect::<Vec<_>>().join(" ");
                    if answer.metadata.response_code == ResponseCode::NoError {
                        data
                    } else {
                        answer.metadata.response_code.to_string()
                    }
                }
                Err(error) => error.to_string(),
            }
        })
    };
    on_node(&site, async {
        let context = api.context();
        tokio::spawn(run_proxy(context.clone(), proxy_config()));
        let running = tokio::spawn(run_dns(context.clone(), dns_config()));
        becomes("10.43.0.5".to_owned(), || ask("web.default.svc.cluster.local."));
        assert_eq!(ask("kube-dns.kube-system.svc.cluster.local."), CLUSTER_DNS);
        assert_ne!(ask("web.kube-system.svc.cluster.local."), "10.43.0.5");

        let published = || api.get(SLICES, "kube-system", "kube-dns-here");
        let slice = published().unwrap();
        assert_eq!(slice["metadata"]["ownerReferences"][0]["uid"], "uid-here");
        assert_eq!(slice["endpoints"][0]["addresses"], json!([NODE_IP]));
        // Whoever meddles with it sees it come back.
        api.delete(SLICES, "kube-system", "kube-dns-here");
        becomes(true, || published().is_some());
        let mut meddled = published().unwrap();
        meddled["endpoints"][0]["addresses"] = json!(["10.0.0.1"]);
        api.put(SLICES, &meddled.to_string());
        becomes(json!([NODE_IP]), || published().unwrap()["endpoints"][0]["addresses"].clone());
        context.shutdown.cancel();
        running.await.unwrap().unwrap();
    });
}
