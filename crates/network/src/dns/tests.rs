//! Names as text: a small cluster, questions and answers, one per line. Then the server over loopback.

use std::net::{IpAddr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use hickory_proto::op::{Edns, Message, Query, ResponseCode};
use hickory_proto::rr::rdata::A;
use hickory_proto::rr::{Name, RData, Record, RecordType};
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};

use super::cache::{Cache, Question};
use super::forward::{Forwarder, Upstreams, parse_resolv_conf};
use super::server::{Responder, serve_tcp, serve_udp};
use super::zone::{Facts, Zone};

const CLUSTER: &str = "
services:
- metadata: {name: kubernetes, namespace: default}
  spec: {clusterIP: 10.43.0.1, clusterIPs: [10.43.0.1], ports: [{name: https, port: 443, protocol: TCP}]}
- metadata: {name: dual, namespace: default}
  spec: {clusterIP: 10.43.0.7, clusterIPs: [10.43.0.7, 'fd43::7'], ports: [{name: web, port: 80}, {name: dns, port: 53, protocol: UDP}]}
- metadata: {name: db, namespace: prod}
  spec: {clusterIP: None, clusterIPs: [None], ports: [{name: sql, port: 5432}]}
- metadata: {name: empty, namespace: prod}
  spec: {clusterIP: None, ports: [{name: sql, port: 5432}]}
- metadata: {name: early, namespace: prod}
  spec: {clusterIP: None, publishNotReadyAddresses: true}
- metadata: {name: outside, namespace: prod}
  spec: {type: ExternalName, externalName: www.example.com}
- metadata: {name: alias, namespace: prod}
  spec: {type: ExternalName, externalName: kubernetes.default.svc.cluster.local.}
- metadata: {name: mirror, namespace: prod}
  spec: {type: ExternalName, externalName: mirror.prod.svc.cluster.local}
slices:
- metadata: {name: db-1, namespace: prod, labels: {kubernetes.io/service-name: db}}
  addressType: IPv4
  ports: [{name: sql, port: 5432, protocol: TCP}]
  endpoints:
  - {addresses: [10.42.0.5], hostname: db-0, conditions: {ready: true}}
  - {addresses: [10.42.0.6]}
  - {addresses: [10.42.0.7], hostname: db-2, conditions: {ready: false}}
- metadata: {name: early-1, namespace: prod, labels: {kubernetes.io/service-name: early}}
  addressType: IPv4
  endpoints: [{addresses: [10.42.0.8], conditions: {ready: false}}]
- metadata: {name: dual-1, namespace: default, labels: {kubernetes.io/service-name: dual}}
  addressType: IPv6
  ports: [{name: web, port: 8080}]
  endpoints: [{addresses: ['fd42::9']}]
";

#[derive(serde::Deserialize)]
struct World {
    services: Vec<Service>,
    slices: Vec<EndpointSlice>,
}

impl World {
    fn read() -> Self {
        serde_saphyr::from_str(CLUSTER).unwrap()
    }
}

impl Facts for World {
    fn service(&self, namespace: &str, name: &str) -> Option<Arc<Service>> {
        let key = (namespace.to_owned(), name.to_owned());
        self.services.iter().find(|s| client::key_of(*s) == key).cloned().map(Arc::new)
    }

    fn slices(&self, namespace: &str, name: &str) -> Vec<Arc<EndpointSlice>> {
        let key = Some((namespace.to_owned(), name.to_owned()));
        self.slices.iter().filter(|s| crate::endpoints::service_of(s) == key).cloned().map(Arc::new).collect()
    }

    fn namespace_exists(&self, name: &str) -> bool {
        ["default", "prod", "kube-system"].contains(&name)
    }

    fn service_by_ip(&self, ip: IpAddr) -> Option<Arc<Service>> {
        let has = |s: &&Service| s.spec.as_ref().unwrap().cluster_ips.iter().flatten().any(|i| *i == ip.to_string());
        self.services.iter().find(has).cloned().map(Arc::new)
    }

    fn slices_by_ip(&self, ip: IpAddr) -> Vec<Arc<EndpointSlice>> {
        let has = |s: &&EndpointSlice| s.endpoints.iter().flatten().any(|e| e.addresses.contains(&ip.to_string()));
        self.slices.iter().filter(has).cloned().map(Arc::new).collect()
    }
}

fn zone() -> Zone {
    Zone {
        domain: Name::from_ascii("cluster.local.").unwrap(),
        server: "10.43.0.10".parse().unwrap(),
        networks: vec!["10.43.0.0/16".parse().unwrap(), "10.42.0.0/16".parse().unwrap()],
    }
}

fn render(record: &Record) -> String {
    format!("{} {} {}", record.name, record.record_type(), record.data)
}

/// The answer to `name TYPE` in one line: records, or why there are none; `elsewhere` if the name is not ours.
fn ask(question: &str) -> String {
    let (name, kind) = question.split_once(' ').unwrap();
    let name = if name.ends_with(".arpa") { name.to_owned() } else { format!("{name}.cluster.local") };
    let query = Query::query(Name::from_ascii(format!("{name}.")).unwrap(), kind.parse().unwrap());
    let Some(reply) = zone().resolve(&World::read(), &query) else { return "elsewhere".into() };
    let strip = |record: &Record| render(record).replace(".cluster.local.", "");
    let mut words: Vec<String> = reply.answers.iter().map(strip).collect();
    match reply.code {
        ResponseCode::NoError if words.is_empty() => words.push("NODATA".into()),
        ResponseCode::NoError => {}
        code => words.push(format!("{code:?}")),
    }
    words.extend(reply.additionals.iter().map(|record| format!("+ {}", strip(record))));
    words.extend(reply.continues.as_ref().map(|name| format!("then {name}")));
    let negative = reply.answers.is_empty() && reply.continues.is_none();
    let soa = |r: &Record| r.record_type() == RecordType::SOA && r.ttl == 5;
    assert_eq!(
        reply.authorities.iter().any(soa),
        negative,
        "{question}: an SOA where there is nothing, and only there"
    );
    words.join("; ")
}

#[track_caller]
fn check(expected: &str) {
    for line in expected.lines().map(str::trim).filter(|l| !l.is_empty()) {
        let (question, answer) = line.split_once(" => ").unwrap();
        assert_eq!(ask(question), answer, "{question}");
    }
}

#[test]
fn services() {
    check(
        "
        kubernetes.default.svc A => kubernetes.default.svc A 10.43.0.1
        KuberNetes.Default.SVC A => KuberNetes.Default.SVC A 10.43.0.1
        kubernetes.default.svc AAAA => NODATA
        kubernetes.default.svc TXT => NODATA
        dual.default.svc AAAA => dual.default.svc AAAA fd43::7
        dual.default.svc A => dual.default.svc A 10.43.0.7
        missing.default.svc A => NXDomain
        kubernetes.missing.svc A => NXDomain
        _https._tcp.kubernetes.default.svc SRV => _https._tcp.kubernetes.default.svc SRV 0 100 443 kubernetes.default.svc; + kubernetes.default.svc A 10.43.0.1
        _https._udp.kubernetes.default.svc SRV => NXDomain
        _web._tcp.dual.default.svc A => _web._tcp.dual.default.svc A 10.43.0.7
        https.tcp.kubernetes.default.svc SRV => NXDomain
        dual.default.svc SRV => dual.default.svc SRV 0 50 80 dual.default.svc; dual.default.svc SRV 0 50 53 dual.default.svc; + dual.default.svc A 10.43.0.7; + dual.default.svc AAAA fd43::7
        ",
    );
}

#[test]
fn endpoints() {
    check(
        "
        db.prod.svc A => db.prod.svc A 10.42.0.5; db.prod.svc A 10.42.0.6
        db-0.db.prod.svc A => db-0.db.prod.svc A 10.42.0.5
        10-42-0-6.db.prod.svc A => 10-42-0-6.db.prod.svc A 10.42.0.6
        db-2.db.prod.svc A => NXDomain
        10-42-0-5.db.prod.svc A => NXDomain
        _sql._tcp.db.prod.svc SRV => _sql._tcp.db.prod.svc SRV 0 50 5432 db-0.db.prod.svc; _sql._tcp.db.prod.svc SRV 0 50 5432 10-42-0-6.db.prod.svc; + db-0.db.prod.svc A 10.42.0.5; + 10-42-0-6.db.prod.svc A 10.42.0.6
        empty.prod.svc A => NXDomain
        early.prod.svc A => early.prod.svc A 10.42.0.8
        early.prod.svc SRV => NODATA
        fd42--9.dual.default.svc AAAA => fd42--9.dual.default.svc AAAA fd42::9
        ",
    );
}

#[test]
fn external_names() {
    check(
        "
        outside.prod.svc A => outside.prod.svc CNAME www.example.com.; then www.example.com.
        outside.prod.svc CNAME => outside.prod.svc CNAME www.example.com.
        alias.prod.svc A => alias.prod.svc CNAME kubernetes.default.svc; kubernetes.default.svc A 10.43.0.1
        x.outside.prod.svc A => NXDomain
        ",
    );
}

#[test]
fn an_alias_of_itself_ends() {
    let query = Query::query(Name::from_ascii("mirror.prod.svc.cluster.local.").unwrap(), RecordType::A);
    assert_eq!(zone().resolve(&World::read(), &query).unwrap().code, ResponseCode::ServFail);
}

#[test]
fn names_between() {
    check(
        "
        svc A => NODATA
        default.svc A => NODATA
        missing.svc A => NXDomain
        missing.pod A => NXDomain
        whatever A => NXDomain
        a.b.c.d.e.svc A => NXDomain
        dns-version TXT => dns-version TXT 1.1.0
        dns-version A => NODATA
        ns.dns A => ns.dns A 10.43.0.10
        1-2-3-4.default.pod A => 1-2-3-4.default.pod A 1.2.3.4
        1-2-3-4.missing.pod A => NXDomain
        web-0.default.pod A => NXDomain
        fd00--1.default.pod AAAA => fd00--1.default.pod AAAA fd00::1
        ",
    );
    let apex = |kind| {
        zone().resolve(&World::read(), &Query::query(Name::from_ascii("cluster.local.").unwrap(), kind)).unwrap()
    };
    assert_eq!(apex(RecordType::SOA).answers.len(), 1);
    assert_eq!(apex(RecordType::NS).answers.len(), 1);
    assert_eq!((apex(RecordType::A).code, apex(RecordType::A).answers.len()), (ResponseCode::NoError, 0));
}

#[test]
fn reverse() {
    check(
        "
        1.0.43.10.in-addr.arpa PTR => 1.0.43.10.in-addr.arpa. PTR kubernetes.default.svc
        5.0.42.10.in-addr.arpa PTR => 5.0.42.10.in-addr.arpa. PTR db-0.db.prod.svc
        6.0.42.10.in-addr.arpa PTR => NXDomain
        99.0.43.10.in-addr.arpa PTR => NXDomain
        1.0.43.10.in-addr.arpa A => NODATA
        8.8.8.8.in-addr.arpa PTR => elsewhere
        43.10.in-addr.arpa PTR => NODATA
        ",
    );
    let query = Query::query(Name::from_ascii("www.example.com.").unwrap(), RecordType::A);
    assert!(zone().resolve(&World::read(), &query).is_none());
}

#[test]
fn resolv_conf() {
    let text = "# comment\nsearch example.com\nnameserver 192.0.2.1\nnameserver fd00::1\nnameserver 192.0.2.1\nnameserver nonsense\n nameserver 192.0.2.2 # b\n";
    let expected: Vec<SocketAddr> =
        ["192.0.2.1:53", "[fd00::1]:53", "192.0.2.2:53"].iter().map(|a| a.parse().unwrap()).collect();
    assert_eq!(parse_resolv_conf(text), expected);
}

fn question(name: &str) -> Message {
    let mut message = Message::query();
    message.metadata.recursion_desired = true;
    message.add_query(Query::query(Name::from_ascii(name).unwrap(), RecordType::A));
    message
}

#[test]
fn the_cache_is_bounded_and_counts_down() {
    let now = Instant::now();
    let mut cache = Cache::new(2);
    let answer = |ttl| {
        let mut answer = Message::response(1, hickory_proto::op::OpCode::Query);
        answer.add_answer(Record::from_rdata(Name::root(), ttl, RData::A(A([192, 0, 2, 1].into()))));
        answer
    };
    let key = |name: &str| Question::of(&question(name)).unwrap();
    cache.put(key("a.example."), answer(3600), now);
    cache.put(key("zero.example."), answer(0), now);
    assert!(cache.get(&key("zero.example."), now).is_none());
    assert_eq!(cache.get(&key("A.Example."), now + Duration::from_secs(10)).unwrap().answers[0].ttl, 3590);
    assert!(cache.get(&key("a.example."), now + Duration::from_secs(31)).is_none(), "no longer than half a minute");
    cache.put(key("b.example."), answer(60), now);
    cache.put(key("c.example."), answer(60), now);
    assert!(cache.get(&key("a.example."), now).is_none() && cache.get(&key("b.example."), now).is_some());
    let mut failed = answer(60);
    failed.metadata.response_code = ResponseCode::ServFail;
    cache.put(key("d.example."), failed, now);
    assert!(cache.get(&key("d.example."), now).is_none());
}

/// A resolver on loopback that knows every name, and counts how often it is asked. `long.example` has an answer that does
/// not fit into a datagram.
async fn fake_resolver() -> (SocketAddr, Arc<AtomicUsize>) {
    let asked = Arc::new(AtomicUsize::new(0));
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    let answer_to = |request: &[u8], by_udp: bool| {
        let request = Message::from_vec(request).unwrap();
        let mut answer = request.clone().into_response();
        let name = request.queries[0].name().clone();
        let long = name.to_string().starts_with("long");
        if long && by_udp {
            answer.metadata.truncation = true;
        } else {
            let count = if long { 200 } else { 1 };
            for n in 0..count {
                answer.add_answer(Record::from_rdata(name.clone(), 60, RData::A(A([192, 0, 2, n].into()))));
            }
        }
        answer.to_vec().unwrap()
    };
    let counter = asked.clone();
    tokio::spawn(async move {
        let mut buffer = [0; 2048];
        while let Ok((len, peer)) = udp.recv_from(&mut buffer).await {
            counter.fetch_add(1, Ordering::SeqCst);
            udp.send_to(&answer_to(&buffer[..len], true), peer).await.unwrap();
        }
    });
    tokio::spawn(async move {
        while let Ok((mut stream, _)) = tcp.accept().await {
            let len = stream.read_u16().await.unwrap();
            let mut request = vec![0; usize::from(len)];
            stream.read_exact(&mut request).await.unwrap();
            let answer = answer_to(&request, false);
            stream.write_all(&[&(answer.len() as u16).to_be_bytes(), answer.as_slice()].concat()).await.unwrap();
        }
    });
    (address, asked)
}

/// Our server on loopback.
async fn server(upstreams: Vec<SocketAddr>) -> (SocketAddr, Arc<Responder<World>>) {
    let udp = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let address = udp.local_addr().unwrap();
    let tcp = TcpListener::bind(address).await.unwrap();
    let forwarder = Forwarder::new(Upstreams::Fixed(upstreams), vec![address]);
    let responder = Arc::new(Responder { zone: zone(), facts: World::read(), forwarder });
    tokio::spawn(serve_udp(Arc::new(udp), responder.clone()));
    tokio::spawn(serve_tcp(tcp, responder.clone()));
    (address, responder)
}

async fn ask_udp(server: SocketAddr, request: &[u8]) -> Message {
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    socket.send_to(request, server).await.unwrap();
    let mut buffer = [0; 4096];
    let received = tokio::time::timeout(Duration::from_secs(8), socket.recv(&mut buffer)).await;
    Message::from_vec(&buffer[..received.expect("an answer").unwrap()]).unwrap()
}

async fn ask_tcp(server: SocketAddr, request: &Message) -> Message {
    let mut stream = TcpStream::connect(server).await.unwrap();
    let request = request.to_vec().unwrap();
    stream.write_all(&[&(request.len() as u16).to_be_bytes(), request.as_slice()].concat()).await.unwrap();
    let len = stream.read_u16().await.unwrap();
    let mut answer = vec![0; usize::from(len)];
    stream.read_exact(&mut answer).await.unwrap();
    Message::from_vec(&answer).unwrap()
}

#[tokio::test]
async fn the_cluster_is_answered_and_the_rest_forwarded_once() {
    let (resolver, asked) = fake_resolver().await;
    let (server, _) = server(vec![resolver]).await;
    let request = question("kubernetes.default.svc.cluster.local.");
    let answer = ask_udp(server, &request.to_vec().unwrap()).await;
    assert_eq!((answer.metadata.id, answer.metadata.authoritative), (request.metadata.id, true));
    assert!(answer.metadata.recursion_available && answer.metadata.recursion_desired && answer.edns.is_none());
    assert_eq!(render(&answer.answers[0]), "kubernetes.default.svc.cluster.local. A 10.43.0.1");
    assert_eq!(asked.load(Ordering::SeqCst), 0);

    for name in ["www.example.com.", "WWW.example.com."] {
        let request = question(name);
        let answer = ask_udp(server, &request.to_vec().unwrap()).await;
        assert_eq!((answer.metadata.id, answer.answers.len()), (request.metadata.id, 1));
        assert!(!answer.metadata.authoritative);
        assert_eq!(answer.queries[0].name().to_string(), name, "the question is repeated as it was put");
    }
    assert_eq!(asked.load(Ordering::SeqCst), 1, "the second was remembered");

    let answer = ask_udp(server, &question("outside.prod.svc.cluster.local.").to_vec().unwrap()).await;
    let lines: Vec<String> = answer.answers.iter().map(render).collect();
    assert_eq!(lines, ["outside.prod.svc.cluster.local. CNAME www.example.com.", "www.example.com. A 192.0.2.0"]);
}

#[tokio::test]
async fn long_answers_go_by_tcp() {
    let (resolver, _) = fake_resolver().await;
    let (server, _) = server(vec![resolver]).await;
    let mut request = question("long.example.");
    let short = ask_udp(server, &request.to_vec().unwrap()).await;
    assert!(short.metadata.truncation);
    assert!(short.to_vec().unwrap().len() <= 512 && short.answers.len() > 10, "as much as fits");
    let mut edns = Edns::new();
    edns.set_max_payload(4096);
    request.set_edns(edns);
    let longer = ask_udp(server, &request.to_vec().unwrap()).await;
    assert!(longer.metadata.truncation && longer.edns.is_some() && longer.answers.len() > short.answers.len());
    let whole = ask_tcp(server, &request).await;
    assert_eq!((whole.metadata.truncation, whole.answers.len()), (false, 200));
}

#[tokio::test]
async fn nonsense_gets_an_answer_or_silence_and_never_an_end() {
    let (server, _) = server(vec![]).await;
    let good = question("kubernetes.default.svc.cluster.local.");
    let code = |message: Message| message.metadata.response_code;
    let mut torn = good.to_vec().unwrap();
    torn.truncate(20);
    assert_eq!(code(ask_udp(server, &torn).await), ResponseCode::FormErr);
    let mut two = good.clone();
    two.add_query(Query::query(Name::root(), RecordType::A));
    assert_eq!(code(ask_udp(server, &two.to_vec().unwrap()).await), ResponseCode::FormErr);
    let mut update = good.clone();
    update.metadata.op_code = hickory_proto::op::OpCode::Notify;
    assert_eq!(code(ask_udp(server, &update.to_vec().unwrap()).await), ResponseCode::NotImp);
    let mut transfer = Message::query();
    transfer.add_query(Query::query(Name::from_ascii("cluster.local.").unwrap(), RecordType::AXFR));
    assert_eq!(code(ask_udp(server, &transfer.to_vec().unwrap()).await), ResponseCode::Refused);
    let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    for bytes in [&b""[..], b"x", &[0xff; 12], &good.clone().into_response().to_vec().unwrap()] {
        socket.send_to(bytes, server).await.unwrap();
    }
    assert_eq!(code(ask_udp(server, &question("www.example.com.").to_vec().unwrap()).await), ResponseCode::ServFail);
    assert_eq!(code(ask_udp(server, &good.to_vec().unwrap()).await), ResponseCode::NoError);
}

#[tokio::test]
async fn a_dead_resolver_is_passed_over_and_a_loop_is_cut() {
    let (resolver, _) = fake_resolver().await;
    let silent = UdpSocket::bind("127.0.0.1:0").await.unwrap();
    let (first, _) = server(vec![silent.local_addr().unwrap(), resolver]).await;
    let answer = ask_udp(first, &question("www.example.com.").to_vec().unwrap()).await;
    assert_eq!(answer.answers.len(), 1);

    // Two servers that forward to each other.
    let (udp_a, udp_b) = (UdpSocket::bind("127.0.0.1:0").await.unwrap(), UdpSocket::bind("127.0.0.1:0").await.unwrap());
    let (a, b) = (udp_a.local_addr().unwrap(), udp_b.local_addr().unwrap());
    let responder = |to: SocketAddr, own: SocketAddr| {
        let forwarder = Forwarder::new(Upstreams::Fixed(vec![to]), vec![own]);
        Arc::new(Responder { zone: zone(), facts: World::read(), forwarder })
    };
    let (at_a, at_b) = (responder(b, a), responder(a, b));
    tokio::spawn(serve_udp(Arc::new(udp_a), at_a.clone()));
    tokio::spawn(serve_udp(Arc::new(udp_b), at_b.clone()));
    at_a.forwarder.find_loops().await;
    let started = Instant::now();
    let answer = ask_udp(a, &question("www.example.com.").to_vec().unwrap()).await;
    assert_eq!(answer.metadata.response_code, ResponseCode::ServFail);
    assert!(started.elapsed() < Duration::from_secs(1), "it did not go round");
}
