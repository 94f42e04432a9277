//! What runs inside the cluster under test, from an image of this program: an admission and conversion webhook, and servers that
//! say what reached them.
//!
//! Must not know: the tests. What a path does is said where tests use it and here, nowhere else.

use std::net::{Ipv6Addr, SocketAddr};
use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use http::{Request, Response, StatusCode};
use http_body_util::{BodyExt as _, Full};
use hyper::body::{Bytes, Incoming};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde_json::{Value, json};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, UdpSocket};
use tokio_rustls::TlsAcceptor;

#[derive(clap::Subcommand)]
pub enum Serve {
    /// Admission and conversion webhooks over TLS
    Webhook {
        /// Folder with tls.crt and tls.key
        #[arg(long)]
        tls: PathBuf,
        #[arg(long, default_value_t = 8443)]
        port: u16,
    },
    /// Answers every HTTP request with its method, its path and a text; over UDP with the host's name
    Echo {
        /// Ports for HTTP; may be repeated
        #[arg(long)]
        port: Vec<u16>,
        #[arg(long)]
        udp: Option<u16>,
        /// The text [default: the host's name]
        #[arg(long)]
        body: Option<String>,
    },
    /// A registry that has one image, `conformance/volume:1`
    Registry {
        #[arg(long)]
        port: u16,
    },
    /// Not a server: asks one over UDP and prints its answer
    AskUdp { address: SocketAddr },
}

impl Serve {
    /// Serves until told to end.
    pub async fn run(self) -> Result<()> {
        let mut ended = tokio::signal::unix::signal(tokio::signal::unix::SignalKind::terminate())?;
        tokio::select! {
            result = self.serve() => result,
            _ = ended.recv() => Ok(()),
        }
    }

    async fn serve(self) -> Result<()> {
        match self {
            Serve::Webhook { tls, port } => webhooks(&tls, port).await,
            Serve::Echo { port, udp, body } => echo(port, udp, body).await,
            Serve::Registry { port } => registry(port).await,
            Serve::AskUdp { address } => ask_udp(address).await,
        }
    }
}

fn any_address(port: u16) -> SocketAddr {
    (Ipv6Addr::UNSPECIFIED, port).into()
}

async fn echo(ports: Vec<u16>, udp: Option<u16>, body: Option<String>) -> Result<()> {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname")?.trim().to_owned();
    let body = body.unwrap_or_else(|| host.clone());
    let mut servers = Vec::new();
    for port in ports {
        let listener = TcpListener::bind(any_address(port)).await.with_context(|| format!("port {port}"))?;
        let body = body.clone();
        servers.push(tokio::spawn(accept_plain(listener, body)));
    }
    if let Some(port) = udp {
        let socket = UdpSocket::bind(any_address(port)).await.with_context(|| format!("UDP port {port}"))?;
        servers.push(tokio::spawn(async move {
            let mut packet = [0; 1500];
            loop {
                let (_, from) = socket.recv_from(&mut packet).await?;
                socket.send_to(host.as_bytes(), from).await?;
            }
        }));
    }
    for server in servers {
        server.await??;
    }
    Ok(())
}

/// Files of the registry's image.
pub const VOLUME_FILES: [(&str, &str); 2] =
    [("data.json", "{\"image\": \"volume\"}\n"), ("etc/os-release", "NAME=Conformance\n")];

/// A part of the registry's image.
#[derive(Clone)]
struct Blob {
    media_type: &'static str,
    bytes: Bytes,
}

impl Blob {
    fn digest(&self) -> String {
        let digest = ring::digest::digest(&ring::digest::SHA256, &self.bytes);
        let hex: String = digest.as_ref().iter().map(|byte| format!("{byte:02x}")).collect();
        format!("sha256:{hex}")
    }

    fn descriptor(&self) -> Value {
        json!({"mediaType": self.media_type, "digest": self.digest(), "size": self.bytes.len()})
    }
}

/// Layer, configuration and manifest of the image, in the form of the OCI.
fn volume_image() -> Result<[Blob; 3]> {
    let mut layer = tar::Builder::new(Vec::new());
    for (path, content) in VOLUME_FILES {
        let mut header = tar::Header::new_gnu();
        header.set_mode(0o644);
        header.set_size(content.len() as u64);
        layer.append_data(&mut header, path, content.as_bytes())?;
    }
    let blob = |media_type, bytes: Vec<u8>| Blob { media_type, bytes: Bytes::from(bytes) };
    let layer = blob("application/vnd.oci.image.layer.v1.tar", layer.into_inner()?);
    let config = json!({
        "architecture": if cfg!(target_arch = "aarch64") { "arm64" } else { "amd64" }, "os": "linux", "config": {},
        "rootfs": {"type": "layers", "diff_ids": [layer.digest()]},
    });
    let config = blob("application/vnd.oci.image.config.v1+json", config.to_string().into_bytes());
    let media_type = "application/vnd.oci.image.manifest.v1+json";
    let manifest = json!({
        "schemaVersion": 2, "mediaType": media_type, "config": config.descriptor(), "layers": [layer.descriptor()],
    });
    Ok([layer, config, blob(media_type, manifest.to_string().into_bytes())])
}

/// The reading half of the distribution protocol: every blob and manifest by digest, the manifest by the tag as well.
async fn registry(port: u16) -> Result<()> {
    let blobs = Arc::new(volume_image()?);
    let listener = TcpListener::bind(any_address(port)).await.with_context(|| format!("port {port}"))?;
    loop {
        let (stream, _) = listener.accept().await?;
        let blobs = Arc::clone(&blobs);
        let service = service_fn(move |request: Request<Incoming>| {
            let blobs = Arc::clone(&blobs);
            async move { registry_answer(&request, blobs.as_ref()) }
        });
        tokio::spawn(http1::Builder::new().serve_connection(TokioIo::new(stream), service));
    }
}

fn registry_answer(request: &Request<Incoming>, blobs: &[Blob; 3]) -> Result<Response<Full<Bytes>>, http::Error> {
    let path = request.uri().path();
    if path == "/v2/" {
        return Response::builder().body(Full::default());
    }
    let wanted = path.rsplit('/').next().unwrap_or_default();
    let found = blobs.iter().find(|blob| blob.digest() == wanted);
    let Some(blob) = found.or_else(|| (wanted == "1").then_some(&blobs[2])) else {
        return Response::builder().status(StatusCode::NOT_FOUND).body(Full::default());
    };
    let body = if request.method() == http::Method::HEAD { Bytes::new() } else { blob.bytes.clone() };
    Response::builder()
        .header("content-type", blob.media_type)
        .header("content-length", blob.bytes.len())
        .header("docker-content-digest", blob.digest())
        .body(Full::new(body))
}

async fn accept_plain(listener: TcpListener, body: String) -> Result<()> {
    loop {
        let (stream, _) = listener.accept().await?;
        let body = body.clone();
        tokio::spawn(connection(stream, move |method: &str, path: &str, _: &Value| {
            Some(json!({"method": method, "path": path, "body": body}))
        }));
    }
}

async fn ask_udp(address: SocketAddr) -> Result<()> {
    let local = if address.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" };
    let socket = UdpSocket::bind(local).await?;
    socket.connect(address).await?;
    socket.send(b"who").await?;
    let mut packet = [0; 1500];
    let answer = tokio::time::timeout(std::time::Duration::from_secs(2), socket.recv(&mut packet));
    let length = answer.await.context("no answer")??;
    println!("{}", String::from_utf8_lossy(&packet[..length]));
    Ok(())
}

async fn webhooks(tls: &std::path::Path, port: u16) -> Result<()> {
    let chain: Vec<CertificateDer<'static>> =
        CertificateDer::pem_file_iter(tls.join("tls.crt"))?.collect::<Result<_, _>>()?;
    ensure!(!chain.is_empty(), "no certificate in tls.crt");
    let key = PrivateKeyDer::from_pem_file(tls.join("tls.key"))?;
    let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
        .with_safe_default_protocol_versions()?
        .with_no_client_auth()
        .with_single_cert(chain, key)?;
    let acceptor = TlsAcceptor::from(Arc::new(config));
    let listener = TcpListener::bind(any_address(port)).await?;
    loop {
        let (stream, _) = listener.accept().await?;
        let acceptor = acceptor.clone();
        tokio::spawn(async move {
            let stream = acceptor.accept(stream).await?;
            connection(stream, |_, path, body| reviewed(path, body)).await
        });
    }
}

/// Serves one connection: each answer is made of the request's method, path and body.
async fn connection<S, F>(stream: S, answer: F) -> Result<()>
where
    S: AsyncRead + AsyncWrite + Send + Unpin + 'static,
    F: Fn(&str, &str, &Value) -> Option<Value> + Clone + Send + 'static,
{
    let service = service_fn(move |request: Request<Incoming>| {
        let answer = answer.clone();
        async move {
            let (parts, body) = request.into_parts();
            let body = body.collect().await?.to_bytes();
            let body = serde_json::from_slice(&body).unwrap_or(Value::Null);
            let answered = answer(parts.method.as_str(), parts.uri.path(), &body);
            let status = if answered.is_some() { StatusCode::OK } else { StatusCode::NOT_FOUND };
            let text = answered.unwrap_or_else(|| json!({"error": "no such path"})).to_string();
            let mut response = Response::new(Full::new(Bytes::from(text)));
            *response.status_mut() = status;
            response.headers_mut().insert("content-type", http::HeaderValue::from_static("application/json"));
            Ok::<_, hyper::Error>(response)
        }
    });
    http1::Builder::new().serve_connection(TokioIo::new(stream), service).await?;
    Ok(())
}

/// The review with its answer; none for an unknown path.
///
/// - `/readyz` answers anything.
/// - `/mutating-configmaps` adds to a config map's data, in two stages: `mutation-stage-1` where there is `mutation-start`,
///   `mutation-stage-2` where there is `mutation-stage-1`.
/// - `/deny` refuses what it is asked.
/// - `/crdconvert` converts between `hostPort: "h:p"` (v1) and `host: "h"`, `port: "p"` (v2).
fn reviewed(path: &str, review: &Value) -> Option<Value> {
    let uid = &review["request"]["uid"];
    let mut response = match path {
        "/readyz" => return Some(json!({"ok": true})),
        "/crdconvert" => return Some(converted(review)),
        "/deny" => json!({"allowed": false, "status": {"message": "denied by the conformance webhook"}}),
        "/mutating-configmaps" => json!({"allowed": true}),
        _ => return None,
    };
    response["uid"] = uid.clone();
    if path == "/mutating-configmaps" {
        let data = &review["request"]["object"]["data"];
        let mut patch = Vec::new();
        for (seen, added) in [("mutation-start", "mutation-stage-1"), ("mutation-stage-1", "mutation-stage-2")] {
            if data[seen] == "yes" && data[added].is_null() {
                patch.push(json!({"op": "add", "path": format!("/data/{added}"), "value": "yes"}));
            }
        }
        if !patch.is_empty() {
            response["patchType"] = "JSONPatch".into();
            response["patch"] = STANDARD.encode(Value::Array(patch).to_string()).into();
        }
    }
    Some(json!({"apiVersion": review["apiVersion"], "kind": "AdmissionReview", "response": response}))
}

fn converted(review: &Value) -> Value {
    let desired = review["request"]["desiredAPIVersion"].as_str().unwrap_or_default();
    let objects = review["request"]["objects"].as_array().cloned().unwrap_or_default();
    let convert = |mut object: Value| {
        object["apiVersion"] = desired.into();
        let Some(fields) = object.as_object_mut() else { return object };
        if desired.ends_with("/v2") {
            if let Some(Value::String(both)) = fields.remove("hostPort") {
                let (host, port) = both.split_once(':').unwrap_or((&both, ""));
                fields.insert("host".to_owned(), host.into());
                fields.insert("port".to_owned(), port.into());
            }
        } else if let Some(Value::String(host)) = fields.remove("host") {
            let port = fields.remove("port");
            let port = port.as_ref().and_then(Value::as_str).unwrap_or_default();
            fields.insert("hostPort".to_owned(), format!("{host}:{port}").into());
        }
        object
    };
    let objects: Vec<Value> = objects.into_iter().map(convert).collect();
    let uid = &review["request"]["uid"];
    json!({
        "apiVersion": review["apiVersion"], "kind": "ConversionReview",
        "response": {"uid": uid, "result": {"status": "Success"}, "convertedObjects": objects},
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn review(object: Value) -> Value {
        json!({"apiVersion": "admission.k8s.io/v1", "request": {"uid": "u", "object": object}})
    }

    #[test]
    fn config_maps_are_mutated_stage_by_stage() {
        let patch = |data: Value| {
            let answer = reviewed("/mutating-configmaps", &review(json!({"data": data}))).unwrap();
            assert_eq!(answer["response"]["uid"], "u");
            let patch = answer["response"]["patch"].as_str().map(|text| STANDARD.decode(text).unwrap());
            patch.map(|bytes| serde_json::from_slice::<Value>(&bytes).unwrap())
        };
        let first = patch(json!({"mutation-start": "yes"}));
        assert_eq!(first, Some(json!([{"op": "add", "path": "/data/mutation-stage-1", "value": "yes"}])));
        let second = patch(json!({"mutation-start": "yes", "mutation-stage-1": "yes"}));
        assert_eq!(second, Some(json!([{"op": "add", "path": "/data/mutation-stage-2", "value": "yes"}])));
        assert_eq!(patch(json!({"a": "b"})), None);
    }

    #[test]
    fn host_and_port_are_converted_both_ways() {
        let there = converted(&json!({"request": {"desiredAPIVersion": "g/v2", "objects": [{"hostPort": "h:80"}]}}));
        let object = json!({"apiVersion": "g/v2", "host": "h", "port": "80"});
        assert_eq!(there["response"]["convertedObjects"], json!([object]));
        let back = converted(&json!({"request": {"desiredAPIVersion": "g/v1", "objects": [object]}}));
        assert_eq!(back["response"]["convertedObjects"], json!([{"apiVersion": "g/v1", "hostPort": "h:80"}]));
    }
}
