//! A server that is asked: ours in this process, or that of a kubeconfig.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use apimachinery::schema::decode;
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request as HttpRequest, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::Value;
use tokio::net::TcpStream;

use crate::answer::Answer;
use crate::corpus::Request;
use crate::harness::Api;

/// By whose name fields are managed.
const AGENT: &str = "differential/1";

pub enum Target {
    Ours(Box<Api>),
    Foreign(Foreign),
}

/// A connection to a server somewhere.
pub struct Foreign {
    /// `https://127.0.0.1:6443`
    origin: String,
    token: Option<String>,
    sender: SendRequest<Full<Bytes>>,
}

impl Target {
    pub async fn in_process() -> Self {
        Target::Ours(Box::new(Api::in_process().await))
    }

    /// The current context's server and user.
    pub async fn of_kubeconfig(path: &Path) -> Self {
        let text = std::fs::read(path).unwrap();
        let config = decode::from_yaml(&text).unwrap().value;
        let named = |list: &str, name: &Value, key: &str| {
            let all = config[list].as_array().unwrap();
            all.iter().find(|entry| entry["name"] == *name).map(|entry| entry[key].clone()).unwrap()
        };
        let context = named("contexts", &config["current-context"], "context");
        let cluster = named("clusters", &context["cluster"], "cluster");
        let user = named("users", &context["user"], "user");
        let origin = cluster["server"].as_str().unwrap().trim_end_matches('/').to_owned();
        let sender = connect(&origin, &cluster, &user, path.parent().unwrap()).await;
        Target::Foreign(Foreign { origin, token: user["token"].as_str().map(str::to_owned), sender })
    }

    pub async fn send(&mut self, method: &str, path: &str, media: &str, body: &Value) -> Answer {
        let text = if body.is_null() { String::new() } else { body.to_string() };
        let (code, warnings, bytes) = match self {
            Target::Ours(api) => {
                let headers = [("content-type", media), ("user-agent", AGENT)];
                let response = api.open(&format!("{method} {path}"), &headers, text).await;
                let warnings = warnings(&response);
                (response.status(), warnings, response.into_body().collect().await.unwrap().to_bytes())
            }
            Target::Foreign(foreign) => {
                let mut request = HttpRequest::builder().method(method).uri(format!("{}{path}", foreign.origin));
                request = request.header("content-type", media).header("user-agent", AGENT);
                if let Some(token) = &foreign.token {
                    request = request.header("authorization", format!("Bearer {token}"));
                }
                let request = request.body(Full::from(text)).unwrap();
                let response = foreign.sender.send_request(request).await.unwrap();
                let warnings = warnings(&response);
                (response.status(), warnings, response.into_body().collect().await.unwrap().to_bytes())
            }
        };
        let text = || Value::from(String::from_utf8_lossy(&bytes).into_owned());
        let body = serde_json::from_slice(&bytes).unwrap_or_else(|_| text());
        Answer { code: code.as_u16(), warnings, body }
    }

    pub async fn answer(&mut self, request: &Request) -> Answer {
        let answer = self.send(request.method, &request.path, request.media, &request.body).await;
        answer.normalised(request)
    }
}

/// The texts of `Warning: 299` headers.
fn warnings<B>(response: &Response<B>) -> Vec<String> {
    let all = response.headers().get_all("warning").iter().map(|value| String::from_utf8_lossy(value.as_bytes()));
    all.map(|text| text.trim_start_matches("299 - ").to_owned()).collect()
}

async fn connect(origin: &str, cluster: &Value, user: &Value, folder: &Path) -> SendRequest<Full<Bytes>> {
    let bytes = |object: &Value, key: &str| -> Option<Vec<u8>> {
        if let Some(data) = object[format!("{key}-data")].as_str() {
            return Some(STANDARD.decode(data).unwrap());
        }
        object[key].as_str().map(|file| std::fs::read(folder.join(PathBuf::from(file))).unwrap())
    };
    let mut roots = rustls::RootCertStore::empty();
    let authority = bytes(cluster, "certificate-authority").expect("the cluster's authority");
    for certificate in CertificateDer::pem_slice_iter(&authority) {
        roots.add(certificate.unwrap()).unwrap();
    }
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let builder = rustls::ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.unwrap().with_root_certificates(roots);
    let mut config = match (bytes(user, "client-certificate"), bytes(user, "client-key")) {
        (Some(chain), Some(key)) => {
            let chain = CertificateDer::pem_slice_iter(&chain).map(Result::unwrap).collect();
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(&key).unwrap()).unwrap()
        }
        _ => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![b"h2".to_vec()];
    let address = origin.strip_prefix("https://").expect("https");
    let host = address.rsplit_once(':').map_or(address, |(host, _)| host).trim_matches(['[', ']']).to_owned();
    let stream = TcpStream::connect(address).await.unwrap();
    stream.set_nodelay(true).unwrap();
    let connector = tokio_rustls::TlsConnector::from(Arc::new(config));
    let stream = connector.connect(ServerName::try_from(host).unwrap(), stream).await.unwrap();
    let (sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    sender
}
