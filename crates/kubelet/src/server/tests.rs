//! The server as its clients see it: TLS over loopback, with a runtime that the test plays.

use std::io::Write as _;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use cri::messages::image::{FilesystemUsage, UInt64Value};
use cri::messages::stats::{ContainerAttributes, ContainerStats, CpuUsage};
use cri::messages::streaming::{AttachRequest, ExecRequest, ExecSyncResponse};
use futures::future::BoxFuture;
use http::Request;
use http_body_util::{BodyExt as _, Empty};
use hyper::body::{Bytes, Incoming};
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Pod;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, PrivatePkcs8KeyDer, ServerName};
use rustls::sign::SingleCertAndKey;
use rustls::{ClientConfig, RootCertStore};
use serde_json::{Value, json};
use streaming::remotecommand::{self, Options, Outcome, PROTOCOL_HEADER, PROTOCOL_V4};
use streaming::spdy::{Connection, Role};
use streaming::upgrade;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsConnector;
use tokio_util::sync::CancellationToken;

use super::{Access, Authority, Components, Runtime, Server, User};
use crate::pods::{ContainerKind, ContainerRecord, PodRecord, PodStore, RunState};

/// A runtime with one container, `c1`.
struct OneContainer {
    running: AtomicBool,
    streaming_url: String,
}

impl Runtime for OneContainer {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, cri::Result<String>> {
        assert_eq!(
            (request.container_id.as_str(), request.cmd.as_slice()),
            ("c1", &["sh".to_owned(), "-c x".to_owned()][..])
        );
        assert!(request.stdin && request.stdout && !request.stderr && !request.tty);
        Box::pin(async { Ok(self.streaming_url.clone()) })
    }

    fn attach(&self, _: AttachRequest) -> BoxFuture<'_, cri::Result<String>> {
        Box::pin(async { Ok(self.streaming_url.clone()) })
    }

    fn port_forward<'a>(&'a self, _: &'a str, _: Vec<i32>) -> BoxFuture<'a, cri::Result<String>> {
        Box::pin(async { Ok(self.streaming_url.clone()) })
    }

    fn exec_sync<'a>(&'a self, _: &'a str, command: Vec<String>) -> BoxFuture<'a, cri::Result<ExecSyncResponse>> {
        let stdout = command.join("|").into_bytes();
        Box::pin(async { Ok(ExecSyncResponse { stdout, stderr: Vec::new(), exit_code: 0 }) })
    }

    fn is_running<'a>(&'a self, _: &'a str) -> BoxFuture<'a, cri::Result<bool>> {
        Box::pin(async { Ok(self.running.load(Ordering::SeqCst)) })
    }

    fn container_stats(&self) -> BoxFuture<'_, cri::Result<Vec<ContainerStats>>> {
        let cpu = CpuUsage {
            timestamp: 1_700_000_000_000_000_000,
            usage_core_nano_seconds: Some(UInt64Value { value: 5 }),
            ..CpuUsage::default()
        };
        let attributes = Some(ContainerAttributes { id: "c1".to_owned(), ..ContainerAttributes::default() });
        Box::pin(async { Ok(vec![ContainerStats { attributes, cpu: Some(cpu), ..ContainerStats::default() }]) })
    }

    fn image_filesystems(&self) -> BoxFuture<'_, cri::Result<Vec<FilesystemUsage>>> {
        Box::pin(async { Ok(Vec::new()) })
    }
}

/// Knows the token `good` of a user who may read metrics, and the certificates' administrators.
struct Rules;

impl Authority for Rules {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<Option<User>, String>> {
        let user = (token == "good").then(|| User { name: "reader".to_owned(), ..User::default() });
        Box::pin(async { Ok(user) })
    }

    fn authorize<'a>(&'a self, user: &'a User, access: Access) -> BoxFuture<'a, Result<bool, String>> {
        let admin = user.groups.iter().any(|group| group == "system:masters");
        Box::pin(async move { Ok(admin || access == Access { verb: "get", subresource: "metrics" }) })
    }
}

struct Fixture {
    port: u16,
    runtime: Arc<OneContainer>,
    logs: tempfile::TempDir,
    /// With the certificate of an administrator, and without.
    admin: Arc<ClientConfig>,
    nobody: Arc<ClientConfig>,
    shutdown: CancellationToken,
}

impl Drop for Fixture {
    fn drop(&mut self) {
        self.shutdown.cancel();
    }
}

fn key_der(key: &KeyPair) -> PrivateKeyDer<'static> {
    PrivateKeyDer::Pkcs8(PrivatePkcs8KeyDer::from(key.serialize_der()))
}

impl Fixture {
    async fn start(pod: Value, streaming_url: &str) -> Fixture {
        let logs = tempfile::tempdir().unwrap();
        let pod: Pod = serde_json::from_value(pod).unwrap();
        let container = ContainerRecord {
            name: "app".to_owned(),
            id: "c1".to_owned(),
            kind: ContainerKind::Main,
            attempt: 0,
            state: RunState::Running,
            created_at: jiff::Timestamp::UNIX_EPOCH,
            log_path: logs.path().join("0.log"),
        };
        let pods = PodStore::default();
        pods.put(
            PodRecord {
                pod: Arc::new(pod),
                sandbox_id: Some("s1".to_owned()),
                containers: vec![container],
                volumes: Vec::new(),
            },
            [],
        );
        let runtime =
            Arc::new(OneContainer { running: AtomicBool::new(true), streaming_url: streaming_url.to_owned() });
        let server = Server::new(Components {
            node_name: "n1".to_owned(),
            pods,
            runtime: runtime.clone(),
            authority: Arc::new(Rules),
            root_dir: logs.path().to_owned(),
            host_log_dir: logs.path().to_owned(),
            configuration: json!({"maxPods": 110}),
        });

        let ca_key = KeyPair::generate().unwrap();
        let mut ca_params = CertificateParams::new(vec![]).unwrap();
        ca_params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        let ca = ca_params.self_signed(&ca_key).unwrap();
        let issuer = Issuer::new(ca_params, ca_key);
        let issue = |names: Vec<String>, group: &str| -> (CertificateDer<'static>, PrivateKeyDer<'static>) {
            let key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(names).unwrap();
            params.distinguished_name.push(DnType::CommonName, "someone");
            params.distinguished_name.push(DnType::OrganizationName, group);
            (params.signed_by(&key, &issuer).unwrap().der().clone(), key_der(&key))
        };
        let mut roots = RootCertStore::empty();
        roots.add(ca.der().clone()).unwrap();
        let (certificate, key) = issue(vec!["127.0.0.1".to_owned()], "system:nodes");
        let key = rustls::crypto::ring::sign::any_supported_type(&key).unwrap();
        let certified = Arc::new(SingleCertAndKey::from(rustls::sign::CertifiedKey::new(vec![certificate], key)));
        let tls = super::tls(certified, roots.clone()).unwrap();
        let client = || {
            ClientConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
                .with_safe_default_protocol_versions()
                .unwrap()
                .with_root_certificates(roots.clone())
        };
        let (certificate, key) = issue(vec![], "system:masters");
        let admin = Arc::new(client().with_client_auth_cert(vec![certificate], key).unwrap());
        let nobody = Arc::new(client().with_no_client_auth());

        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let shutdown = CancellationToken::new();
        tokio::spawn(super::run(Arc::new(server), listener, Arc::new(tls), shutdown.clone()));
        Fixture { port, runtime, logs, admin, nobody, shutdown }
    }

    async fn send(&self, client: &Arc<ClientConfig>, request: Request<Empty<Bytes>>) -> http::Response<Incoming> {
        let tcp = TcpStream::connect(("127.0.0.1", self.port)).await.unwrap();
        let name = ServerName::try_from("127.0.0.1").unwrap();
        let tls = TlsConnector::from(client.clone()).connect(name, tcp).await.unwrap();
        upgrade::send(tls, request).await.unwrap()
    }

    async fn get(&self, client: &Arc<ClientConfig>, path: &str, token: &str) -> (u16, String) {
        let mut request = Request::get(path).header("host", "n1");
        if !token.is_empty() {
            request = request.header("authorization", format!("Bearer {token}"));
        }
        let response = self.send(client, request.body(Empty::new()).unwrap()).await;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await.unwrap().to_bytes();
        (status, String::from_utf8(body.to_vec()).unwrap())
    }

    async fn admin_get(&self, path: &str) -> (u16, String) {
        self.get(&self.admin, path, "").await
    }

    fn append_to_log(&self, text: &str) {
        let path = self.logs.path().join("0.log");
        std::fs::OpenOptions::new().create(true).append(true).open(path).unwrap().write_all(text.as_bytes()).unwrap();
    }
}

fn running_pod() -> Value {
    json!({
        "metadata": {"name": "web", "namespace": "ns", "uid": "u1"},
        "spec": {"containers": [{"name": "app", "image": "busybox:1"}, {"name": "later", "image": "x"}]},
        "status": {"containerStatuses": [
            {"name": "app", "image": "", "imageID": "", "ready": true, "restartCount": 0,
             "containerID": "containerd://c1", "state": {"running": {}}},
            {"name": "later", "image": "", "imageID": "", "ready": false, "restartCount": 0,
             "state": {"waiting": {"reason": "ContainerCreating"}}},
        ]},
    })
}

#[tokio::test]
async fn who_may_what() {
    let kubelet = Fixture::start(running_pod(), "").await;
    let nobody = &kubelet.nobody;
    assert_eq!(kubelet.get(nobody, "/healthz", "").await, (200, "ok".to_owned()));
    assert_eq!(kubelet.get(nobody, "/pods", "").await, (401, "Unauthorized".to_owned()));
    assert_eq!(kubelet.get(nobody, "/pods", "bad").await, (401, "Unauthorized".to_owned()));
    assert_eq!(kubelet.get(nobody, "/metrics", "good").await.0, 200);
    let forbidden = "Forbidden (user=reader, verb=get, resource=nodes, subresource(s)=[\"pods\", \"proxy\"])";
    assert_eq!(kubelet.get(nobody, "/pods", "good").await, (403, forbidden.to_owned()));
    assert_eq!(kubelet.admin_get("/pods").await.0, 200);
    assert_eq!(kubelet.admin_get("/nonsense").await.0, 404);
}

#[tokio::test]
async fn what_the_node_knows() {
    let kubelet = Fixture::start(running_pod(), "").await;
    let object = async |path: &str| serde_json::from_str::<Value>(&kubelet.admin_get(path).await.1).unwrap();
    assert_eq!(object("/pods").await["items"][0]["metadata"]["uid"], "u1");
    let running = object("/runningpods/").await;
    assert_eq!(
        running["items"][0]["spec"]["containers"],
        json!([{"name": "app", "image": "busybox:1", "resources": {}}])
    );
    assert_eq!(object("/configz").await, json!({"kubeletconfig": {"maxPods": 110}}));
    let summary = object("/stats/summary").await;
    assert_eq!(summary["node"]["nodeName"], "n1");
    assert_eq!(summary["pods"][0]["containers"][0]["cpu"]["usageCoreNanoSeconds"], 5);
    let (_, metrics) = kubelet.admin_get("/metrics/resource").await;
    let line =
        "container_cpu_usage_seconds_total{container=\"app\",namespace=\"ns\",pod=\"web\"} 0.000000005 1700000000000";
    assert!(metrics.contains(line), "{metrics}");
    assert!(kubelet.admin_get("/metrics/cadvisor").await.1.contains("machine_cpu_cores "));
    assert!(
        kubelet.admin_get("/metrics").await.1.contains("kubelet_running_containers{container_state=\"running\"} 1")
    );
}

#[tokio::test]
async fn logs_as_they_are() {
    let kubelet = Fixture::start(running_pod(), "").await;
    let missing = "unable to retrieve container logs for containerd://c1";
    assert_eq!(kubelet.admin_get("/containerLogs/ns/web/app").await, (400, missing.to_owned()));
    kubelet.append_to_log("2026-01-02T03:04:05Z stdout F one\n2026-01-02T03:04:06Z stderr F two\n");
    assert_eq!(kubelet.admin_get("/containerLogs/ns/web/app").await, (200, "one\ntwo\n".to_owned()));
    assert_eq!(kubelet.admin_get("/containerLogs/ns/web/app?tailLines=1").await, (200, "two\n".to_owned()));
    let waiting = "container \"later\" in pod \"web\" is waiting to start: ContainerCreating";
    assert_eq!(kubelet.admin_get("/containerLogs/ns/web/later").await, (400, waiting.to_owned()));
    assert_eq!(kubelet.admin_get("/containerLogs/ns/gone/app").await, (404, "pod does not exist".to_owned()));
    let unknown = "container \"x\" not found in pod \"web\"\n";
    assert_eq!(kubelet.admin_get("/containerLogs/ns/web/x").await, (404, unknown.to_owned()));
}

#[tokio::test]
async fn logs_are_followed_through_rotation_to_the_end() {
    let kubelet = Fixture::start(running_pod(), "").await;
    let path = kubelet.logs.path().join("0.log");
    kubelet.append_to_log("2026-01-02T03:04:05Z stdout F old\n2026-01-02T03:04:05Z stdout F one\n");
    let request = Request::get("/containerLogs/ns/web/app?follow=true&tailLines=1").body(Empty::new()).unwrap();
    let mut body = kubelet.send(&kubelet.admin, request).await.into_body();
    let mut expect = async |expected: &str| {
        let mut seen = String::new();
        while seen.len() < expected.len() {
            let frame = tokio::time::timeout(Duration::from_secs(5), body.frame())
                .await
                .unwrap_or_else(|_| panic!("{expected:?} did not come"));
            seen.push_str(std::str::from_utf8(frame.unwrap().unwrap().data_ref().unwrap()).unwrap());
        }
        assert_eq!(seen, expected);
    };
    expect("one\n").await;
    // Each append closes the file, as a runtime that restarts does; half a line waits for its rest.
    kubelet.append_to_log("2026-01-02T03:04:06Z stdout F two\n2026-01-02T03:04:07Z std");
    expect("two\n").await;
    kubelet.append_to_log("out F three\n");
    expect("three\n").await;
    // Rotation: renamed, written to once more, then a new file.
    let mut old = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    std::fs::rename(&path, path.with_extension("log.1")).unwrap();
    old.write_all(b"2026-01-02T03:04:08Z stdout F four\n").unwrap();
    expect("four\n").await;
    kubelet.append_to_log("2026-01-02T03:04:09Z stdout F five\n");
    drop(old);
    expect("five\n").await;
    // The container ends: the log is closed first, then the runtime says so.
    let mut last = std::fs::OpenOptions::new().append(true).open(&path).unwrap();
    last.write_all(b"2026-01-02T03:04:10Z stdout F six\n2026-01-02T03:04:11Z stdout P end").unwrap();
    drop(last);
    expect("six\n").await;
    kubelet.runtime.running.store(false, Ordering::SeqCst);
    expect("end").await;
    assert!(tokio::time::timeout(Duration::from_secs(5), body.frame()).await.expect("the log has ended").is_none());
}

/// A CRI streaming server whose commands repeat their input.
async fn streaming_server() -> String {
    let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move {
        while let Ok((tcp, _)) = listener.accept().await {
            let service = service_fn(|mut request: Request<Incoming>| async move {
                assert_eq!(request.uri().path(), "/exec/token");
                assert!(!request.headers().contains_key("authorization"));
                let upgraded = hyper::upgrade::on(&mut request);
                tokio::spawn(async move {
                    let (_connection, mut incoming) =
                        Connection::start(TokioIo::new(upgraded.await.unwrap()), Role::Server);
                    let options = Options { stdin: true, stdout: true, ..Options::default() };
                    let mut streams =
                        remotecommand::accept(&mut incoming, options, Duration::from_secs(5)).await.unwrap();
                    let mut stdin = streams.stdin.take().unwrap();
                    tokio::io::copy(&mut stdin, streams.stdout.as_mut().unwrap()).await.unwrap();
                    streams.stdout.as_mut().unwrap().shutdown().await.unwrap();
                    let status = Outcome::ExitCode(3).to_status().to_string();
                    streams.error.write_all(status.as_bytes()).await.unwrap();
                    streams.error.shutdown().await.unwrap();
                });
                Ok::<_, hyper::Error>(upgrade::switching_protocols::<Empty<Bytes>>(upgrade::SPDY, Some(PROTOCOL_V4)))
            });
            let server = hyper::server::conn::http1::Builder::new();
            tokio::spawn(server.serve_connection(TokioIo::new(tcp), service).with_upgrades());
        }
    });
    format!("http://{address}/exec/token")
}

#[tokio::test]
async fn exec_reaches_the_runtime() {
    let kubelet = Fixture::start(running_pod(), &streaming_server().await).await;
    let path = "/exec/ns/web/app?command=sh&command=-c+x&input=1&output=1";
    let mut request = Request::post(path).header(PROTOCOL_HEADER, PROTOCOL_V4).body(Empty::new()).unwrap();
    upgrade::ask_for(request.headers_mut(), upgrade::SPDY);
    let response = kubelet.send(&kubelet.admin, request).await;
    assert_eq!(response.status(), 101);
    assert_eq!(response.headers()[PROTOCOL_HEADER], PROTOCOL_V4);
    let io = TokioIo::new(hyper::upgrade::on(response).await.unwrap());
    let (connection, _incoming) = Connection::start(io, Role::Client);
    let options = Options { stdin: true, stdout: true, ..Options::default() };
    let mut streams = remotecommand::open(&connection, options).await.unwrap();
    let mut stdin = streams.stdin.take().unwrap();
    stdin.write_all(b"echo").await.unwrap();
    stdin.shutdown().await.unwrap();
    let (mut output, mut status) = (String::new(), Vec::new());
    streams.stdout.take().unwrap().read_to_string(&mut output).await.unwrap();
    streams.error.read_to_end(&mut status).await.unwrap();
    assert_eq!(output, "echo");
    assert_eq!(Outcome::from_status(&status), Outcome::ExitCode(3));
}

#[tokio::test]
async fn sessions_that_cannot_be() {
    let kubelet = Fixture::start(running_pod(), "http://127.0.0.1:1/x").await;
    let none = "you must specify at least 1 of stdin, stdout, stderr";
    assert_eq!(kubelet.admin_get("/exec/ns/web/app?command=sh").await, (400, none.to_owned()));
    assert_eq!(kubelet.admin_get("/attach/ns/gone/app?output=1").await, (404, "pod does not exist".to_owned()));
    let stopped = "container not found (\"later\")";
    assert_eq!(kubelet.admin_get("/attach/ns/web/later?output=1").await, (500, stopped.to_owned()));
    assert_eq!(kubelet.admin_get("/attach/ns/web/u2/app?output=1").await, (404, "pod does not exist".to_owned()));
    assert_eq!(kubelet.admin_get("/attach/ns/web/app?output=1").await, (400, "Upgrade request required".to_owned()));
    let run = Request::post("/run/ns/web/app?cmd=ls+-l").body(Empty::new()).unwrap();
    let response = kubelet.send(&kubelet.admin, run).await;
    assert_eq!(response.into_body().collect().await.unwrap().to_bytes(), "ls|-l");
}
