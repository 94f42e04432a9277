//! A webhook server on loopback, with TLS of its own authority: what it answers is each test's.

use std::sync::{Arc, Mutex};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use bytes::Bytes;
use http::{Request, Response};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rcgen::{BasicConstraints, CertificateParams, DnType, IsCa, Issuer, KeyPair};
use rustls::pki_types::PrivateKeyDer;
use serde_json::{Value, json};
use tokio::net::TcpListener;

/// Path and question to an answer.
type Answer = dyn Fn(&str, &Value) -> Value + Send + Sync;

pub struct HookServer {
    pub port: u16,
    /// PEM of the authority.
    pub ca: String,
    /// What was asked, in order: path with query, body.
    pub asked: Arc<Mutex<Vec<(String, Value)>>>,
    /// Connections that were made.
    pub connections: Arc<Mutex<usize>>,
}

impl HookServer {
    /// Its certificate is for `names`.
    pub async fn start(names: &[&str], answer: impl Fn(&str, &Value) -> Value + Send + Sync + 'static) -> Self {
        let mut authority = CertificateParams::default();
        authority.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        authority.distinguished_name.push(DnType::CommonName, "hooks");
        let authority_key = KeyPair::generate().unwrap();
        let ca = authority.self_signed(&authority_key).unwrap();
        let issuer = Issuer::new(authority, authority_key);
        let key = KeyPair::generate().unwrap();
        let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
        let certificate = CertificateParams::new(names).unwrap().signed_by(&key, &issuer).unwrap();
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let tls = rustls::ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let secret = PrivateKeyDer::try_from(key.serialize_der()).unwrap();
        let tls = tls.with_no_client_auth().with_single_cert(vec![certificate.der().clone()], secret).unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(tls));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (asked, connections) = (Arc::<Mutex<Vec<_>>>::default(), Arc::<Mutex<usize>>::default());
        let server = HookServer { port, ca: ca.pem(), asked: asked.clone(), connections: connections.clone() };
        let answer: Arc<Answer> = Arc::new(answer);
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                *connections.lock().unwrap() += 1;
                let (acceptor, answer, asked) = (acceptor.clone(), answer.clone(), asked.clone());
                tokio::spawn(async move {
                    let Ok(stream) = acceptor.accept(tcp).await else { return };
                    let service = service_fn(move |request| respond(answer.clone(), asked.clone(), request));
                    let _ = hyper::server::conn::http1::Builder::new()
                        .serve_connection(TokioIo::new(stream), service)
                        .await;
                });
            }
        });
        server
    }

    pub fn url(&self, path: &str) -> Value {
        json!({"url": format!("https://localhost:{}{path}", self.port), "caBundle": STANDARD.encode(&self.ca)})
    }

    pub fn questions(&self, path: &str) -> Vec<Value> {
        let asked = self.asked.lock().unwrap();
        asked.iter().filter(|(at, _)| at.starts_with(path)).map(|(_, body)| body["request"].clone()).collect()
    }
}

async fn respond(
    answer: Arc<Answer>,
    asked: Arc<Mutex<Vec<(String, Value)>>>,
    request: Request<Incoming>,
) -> Result<Response<Full<Bytes>>, hyper::Error> {
    let path = request.uri().path_and_query().unwrap().to_string();
    if request.method() != http::Method::POST {
        return Ok(plain(&answer, &asked, &path, request.headers()));
    }
    let body = request.into_body().collect().await?.to_bytes();
    let body: Value = serde_json::from_slice(&body).unwrap();
    asked.lock().unwrap().push((path.clone(), body.clone()));
    let mut reply = answer(&path, &body);
    if let Some(delay) = reply["delayMillis"].as_u64() {
        tokio::time::sleep(std::time::Duration::from_millis(delay)).await;
    }
    if let Some(code) = reply["httpCode"].as_u64() {
        let response = Response::builder().status(code as u16);
        return Ok(response.body(Full::from("it broke")).unwrap());
    }
    // The form of an answer is that of the question.
    reply["apiVersion"] = body["apiVersion"].clone();
    reply["kind"] = body["kind"].clone();
    if reply["response"]["uid"].is_null() {
        reply["response"]["uid"] = body["request"]["uid"].clone();
    }
    Ok(Response::builder().header("content-type", "application/json").body(Full::from(reply.to_string())).unwrap())
}

/// A request that is no review: its headers are the question, the answer is the body.
fn plain(
    answer: &Arc<Answer>,
    asked: &Mutex<Vec<(String, Value)>>,
    path: &str,
    headers: &http::HeaderMap,
) -> Response<Full<Bytes>> {
    let mut question = json!({});
    for name in headers.keys() {
        let values: Vec<&str> = headers.get_all(name).iter().map(|value| value.to_str().unwrap()).collect();
        question[name.as_str()] = json!(values);
    }
    asked.lock().unwrap().push((path.to_owned(), question.clone()));
    let reply = answer(path, &question);
    let code = reply["httpCode"].as_u64().unwrap_or(200) as u16;
    let response = Response::builder().status(code).header("content-type", "application/json");
    response.body(Full::from(reply.to_string())).unwrap()
}

pub fn allow() -> Value {
    json!({"response": {"allowed": true}})
}

pub fn patch(operations: Value) -> Value {
    let patch = STANDARD.encode(operations.to_string());
    json!({"response": {"allowed": true, "patchType": "JSONPatch", "patch": patch}})
}
