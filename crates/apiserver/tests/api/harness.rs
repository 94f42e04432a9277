//! A whole server in memory, and one client for both ways into it.

use std::sync::Arc;

use apiserver::authn::{Authenticator, SigningKey, TokenSigner};
use apiserver::authz::Authorizer;
use apiserver::http::inprocess::InProcess;
use apiserver::http::{Body, BoxError, listener};
use apiserver::object::ObjectStore;
use apiserver::proxy::Dialer;
use apiserver::request::UserInfo;
use apiserver::strategy::{Services, Settings, Strategies};
use apiserver::view::View;
use apiserver::{ApiServer, Components, Limits, Startup, admission, nonresource};
use bytes::Bytes;
use http::{HeaderMap, Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tower::Service as _;

/// Makes a test of `async fn $name(api: Api)` over each transport.
macro_rules! over_both {
    ($($name:ident),+ $(,)?) => {
        mod in_process {
            $(#[tokio::test] async fn $name() { super::$name($crate::harness::Api::in_process().await).await; })+
        }
        mod over_tls {
            $(#[tokio::test] async fn $name() { super::$name($crate::harness::Api::over_tls().await).await; })+
        }
    };
}
pub(crate) use over_both;

enum Transport {
    InProcess(InProcess),
    Tls(SendRequest<Full<Bytes>>),
}

/// A client with all rights, and the server behind it.
pub struct Api {
    pub server: ApiServer,
    transport: Transport,
    _stop: tokio_util::sync::DropGuard,
}

/// An answer, read whole.
#[derive(Debug)]
pub struct Answer {
    pub code: u16,
    pub headers: HeaderMap,
    pub text: String,
    pub body: Value,
}

impl Answer {
    pub fn message(&self) -> &str {
        self.body["message"].as_str().unwrap_or_default()
    }

    pub fn warnings(&self) -> Vec<&str> {
        self.headers.get_all("warning").iter().map(|v| v.to_str().unwrap()).collect()
    }
}

const ADMIN: &str = "tester";

impl Api {
    pub async fn in_process() -> Self {
        Api::of(server().await)
    }

    /// A client in the process of `server`.
    pub fn of(server: ApiServer) -> Self {
        let user = UserInfo::new(ADMIN, &["system:masters"]);
        let transport = Transport::InProcess(InProcess::new(server.clone(), user));
        Api { server, transport, _stop: CancellationToken::new().drop_guard() }
    }

    pub async fn over_tls() -> Self {
        let authority = Authority::new();
        let server = server().await;
        let socket = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = socket.local_addr().unwrap();
        let stop = CancellationToken::new();
        tokio::spawn(listener::serve(server.clone(), socket, authority.server_config(), stop.clone()));
        let stream = TcpStream::connect(address).await.unwrap();
        stream.set_nodelay(true).unwrap();
        let connector = tokio_rustls::TlsConnector::from(authority.client_config(ADMIN, "system:masters"));
        let name = ServerName::try_from("localhost").unwrap();
        let stream = connector.connect(name, stream).await.unwrap();
        let (sender, connection) =
            hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
        tokio::spawn(connection);
        Api { server, transport: Transport::Tls(sender), _stop: stop.drop_guard() }
    }

    /// Sends `METHOD /path`; the answer's body is read by the caller.
    pub async fn open(&self, line: &str, headers: &[(&str, &str)], body: String) -> Response<Body> {
        let (method, path) = line.split_once(' ').unwrap();
        let uri = match self.transport {
            Transport::InProcess(_) => path.to_owned(),
            Transport::Tls(_) => format!("https://localhost{path}"),
        };
        let mut request = Request::builder().method(method).uri(uri);
        for (name, value) in headers {
            request = request.header(*name, *value);
        }
        let request = request.body(Full::from(body)).unwrap();
        match &self.transport {
            Transport::InProcess(service) => service.clone().call(request).await.unwrap(),
            Transport::Tls(sender) => {
                let response = sender.clone().send_request(request).await.unwrap();
                response.map(|body| body.map_err(|e| Box::new(e) as BoxError).boxed_unsync())
            }
        }
    }

    pub async fn with(&self, line: &str, headers: &[(&str, &str)], body: Value) -> Answer {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let response = self.open(line, headers, text).await;
        let (head, body) = response.into_parts();
        let bytes = body.collect().await.unwrap().to_bytes();
        let text = String::from_utf8_lossy(&bytes).into_owned();
        let body = serde_json::from_str(&text).unwrap_or_default();
        Answer { code: head.status.as_u16(), headers: head.headers, text, body }
    }

    /// Sends JSON, whatever comes back.
    pub async fn send(&self, line: &str, body: Value) -> Answer {
        let media = match line.split(' ').next() {
            Some("PATCH") => "application/merge-patch+json",
            _ => "application/json",
        };
        self.with(line, &[("content-type", media)], body).await
    }

    /// Sends JSON and expects success.
    pub async fn ok(&self, line: &str, body: Value) -> Value {
        let answer = self.send(line, body).await;
        assert!(answer.code < 300, "{line}: {} {}", answer.code, answer.text);
        answer.body
    }

    pub async fn get(&self, path: &str) -> Value {
        self.ok(&format!("GET {path}"), Value::Null).await
    }

    pub async fn apply(&self, path: &str, manager: &str, object: Value) -> Answer {
        let line = format!("PATCH {path}?fieldManager={manager}");
        self.with(&line, &[("content-type", "application/apply-patch+yaml")], object).await
    }
}

pub fn config_map(name: &str, value: &str) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name, "labels": {"value": value}}, "data": {"key": value}})
}

pub fn version(object: &Value) -> u64 {
    object["metadata"]["resourceVersion"].as_str().unwrap().parse().unwrap()
}

async fn server() -> ApiServer {
    server_with(Limits::default()).await
}

/// Creates what every cluster has.
pub async fn bootstrap(server: &ApiServer) {
    let startup = Startup {
        bootstrap: apiserver::bootstrap::Settings {
            service_cidrs: vec!["10.43.0.0/16".to_owned()],
            ..apiserver::bootstrap::Settings::default()
        },
        address: None,
        port: 6443,
        service_ip: "10.43.0.1".to_owned(),
        cluster_dns: None,
        objects: Vec::new(),
    };
    apiserver::start(server, &startup).await.unwrap();
}

/// A server in memory with two objects, whose bounds are `limits`.
pub async fn server_with(limits: Limits) -> ApiServer {
    let store = ObjectStore::in_memory(store::Options::default());
    let view = View::new(store.clone());
    let authorizer = Authorizer::new(view.clone());
    let key = SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap();
    let signer = Arc::new(TokenSigner::new("https://kubernetes.default.svc.cluster.local", key));
    let authenticator = Arc::new(Authenticator::new(view, signer.clone(), []));
    let services = Services { authorizer: authorizer.clone(), authenticator: authenticator.clone(), signer };
    let tls =
        rustls::ClientConfig::builder().with_root_certificates(rustls::RootCertStore::empty()).with_no_client_auth();
    let components = Components {
        store: store.clone(),
        table: apimachinery::resource::builtin().clone(),
        authenticator,
        admission: admission::default_chain(authorizer.clone()),
        authorizer,
        strategies: Strategies::new(services),
        settings: Settings {
            service_cidr: "10.43.0.0/16".to_owned(),
            node_ports: (30000, 32767),
            advertise: "127.0.0.1:6443".to_owned(),
            event_ttl: Some(std::time::Duration::from_secs(3600)),
            serving_ca: String::new(),
        },
        dialer: Dialer::new(&tls),
        version: nonresource::Version { git_version: "v1.37.0".into(), git_commit: "".into(), build_date: "".into() },
    };
    let server = ApiServer::with_limits(components, limits);
    // All that these tests need of what a cluster has: the objects of a whole one are the other tests' subject.
    let mut admin = InProcess::new(server.clone(), UserInfo::new(ADMIN, &["system:masters"]));
    for (path, object) in [
        ("/api/v1/namespaces", json!({"metadata": {"name": "default"}})),
        ("/api/v1/namespaces/default/serviceaccounts", json!({"metadata": {"name": "default"}})),
    ] {
        let request = Request::post(path).header("content-type", "application/json");
        let request = request.body(Full::from(object.to_string())).unwrap();
        assert_eq!(admin.call(request).await.unwrap().status(), 201);
    }
    server
}

/// A certificate authority for one test.
struct Authority {
    issuer: Issuer<'static, KeyPair>,
    certificate: rcgen::Certificate,
}

impl Authority {
    fn new() -> Self {
        let mut params = CertificateParams::default();
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.distinguished_name.push(DnType::CommonName, "test");
        let key = KeyPair::generate().unwrap();
        let certificate = params.self_signed(&key).unwrap();
        Authority { issuer: Issuer::new(params, key), certificate }
    }

    fn roots(&self) -> Arc<rustls::RootCertStore> {
        let mut roots = rustls::RootCertStore::empty();
        roots.add(self.certificate.der().clone()).unwrap();
        Arc::new(roots)
    }

    fn issue(&self, params: CertificateParams) -> (Vec<CertificateDer<'static>>, PrivateKeyDer<'static>) {
        let key = KeyPair::generate().unwrap();
        let certificate = params.signed_by(&key, &self.issuer).unwrap();
        (vec![certificate.der().clone()], PrivateKeyDer::try_from(key.serialize_der()).unwrap())
    }

    fn server_config(&self) -> Arc<rustls::ServerConfig> {
        let (chain, key) = self.issue(CertificateParams::new(vec!["localhost".to_owned()]).unwrap());
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(self.roots(), provider.clone());
        let verifier = verifier.allow_unauthenticated().build().unwrap();
        let builder = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let mut config = builder.unwrap().with_client_cert_verifier(verifier).with_single_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Arc::new(config)
    }

    fn client_config(&self, name: &str, group: &str) -> Arc<rustls::ClientConfig> {
        let mut params = CertificateParams::default();
        params.distinguished_name.push(DnType::CommonName, name);
        params.distinguished_name.push(DnType::OrganizationName, group);
        let (chain, key) = self.issue(params);
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
        let builder = builder.unwrap().with_root_certificates(self.roots());
        let mut config = builder.with_client_auth_cert(chain, key).unwrap();
        config.alpn_protocols = vec![b"h2".to_vec()];
        Arc::new(config)
    }
}
