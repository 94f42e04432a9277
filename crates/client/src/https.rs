//! API clients over HTTPS, for components on other machines: rustls, mutual TLS, HTTP/2 where the server offers it.
//!
//! Certificate and key files are read again when they change, at the next connection, so that a certificate that renews
//! itself needs no restart.

use std::future::Future;
use std::io;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use http::Uri;
use hyper_util::client::legacy::connect::{Connected, Connection};
use hyper_util::rt::{TokioExecutor, TokioIo};
use kube::client::{Body, ConfigExt as _};
use kube::config::{KubeConfigOptions, Kubeconfig};
use parking_lot::Mutex;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use secrecy::ExposeSecret as _;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;
use tower::{BoxError, Service, ServiceBuilder};

use crate::error::ClientError;

/// PEM data in a file (read again when it changes) or in memory.
#[derive(Clone, Debug)]
pub enum Pem {
    File(PathBuf),
    Bytes(Vec<u8>),
}

impl Pem {
    fn read(&self) -> Result<Vec<u8>, ClientError> {
        match self {
            Pem::Bytes(bytes) => Ok(bytes.clone()),
            Pem::File(path) => {
                std::fs::read(path).map_err(|source| ClientError::Read { path: path.display().to_string(), source })
            }
        }
    }

    fn modified(&self) -> Option<SystemTime> {
        match self {
            Pem::Bytes(_) => None,
            Pem::File(path) => std::fs::metadata(path).and_then(|data| data.modified()).ok(),
        }
    }
}

/// Whom to trust and who to be.
#[derive(Clone, Debug)]
pub struct Credentials {
    /// Certificate authorities that the server's certificate must chain to.
    pub ca: Pem,
    /// Client certificate chain and key; none where a token authenticates.
    pub identity: Option<(Pem, Pem)>,
}

impl Credentials {
    pub fn from_files(ca: &Path, certificate: &Path, key: &Path) -> Self {
        let file = |path: &Path| Pem::File(path.to_owned());
        Credentials { ca: file(ca), identity: Some((file(certificate), file(key))) }
    }

    fn modified(&self) -> [Option<SystemTime>; 3] {
        let (certificate, key) = match &self.identity {
            Some((certificate, key)) => (certificate.modified(), key.modified()),
            None => (None, None),
        };
        [self.ca.modified(), certificate, key]
    }

    /// The TLS side of these credentials, offering HTTP/2 and HTTP/1.1.
    pub fn tls_config(&self) -> Result<rustls::ClientConfig, ClientError> {
        let mut roots = rustls::RootCertStore::empty();
        for certificate in certificates(&self.ca, "the CA")? {
            roots.add(certificate)?;
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()?
            .with_root_certificates(roots);
        let mut config = match &self.identity {
            None => builder.with_no_client_auth(),
            Some((certificate, key)) => {
                let key = PrivateKeyDer::from_pem_slice(&key.read()?)
                    .map_err(|error| ClientError::Pem { what: "the client key", reason: error.to_string() })?;
                builder.with_client_auth_cert(certificates(certificate, "the client certificate")?, key)?
            }
        };
        config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
        Ok(config)
    }
}

fn certificates(pem: &Pem, what: &'static str) -> Result<Vec<CertificateDer<'static>>, ClientError> {
    let bytes = pem.read()?;
    let parsed: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&bytes).collect();
    match parsed {
        Ok(found) if found.is_empty() => Err(ClientError::Pem { what, reason: "there is no certificate in it".into() }),
        Ok(found) => Ok(found),
        Err(error) => Err(ClientError::Pem { what, reason: error.to_string() }),
    }
}

/// A client of the server at `url` (`https://host:port`) with the given credentials.
pub fn client(url: &str, credentials: Credentials) -> Result<kube::Client, ClientError> {
    let uri: Uri = url.parse().map_err(|error| ClientError::Url { url: url.to_owned(), reason: format!("{error}") })?;
    connect(&kube::Config::new(uri), credentials)
}

/// A client of the server at `url` that a bearer token authenticates.
pub fn client_with_token(url: &str, ca: Pem, token: &str) -> Result<kube::Client, ClientError> {
    let uri: Uri = url.parse().map_err(|error| ClientError::Url { url: url.to_owned(), reason: format!("{error}") })?;
    let mut config = kube::Config::new(uri);
    config.auth_info.token = Some(token.to_owned().into());
    connect(&config, Credentials { ca, identity: None })
}

/// A client as a kubeconfig's current context says: CA, client certificate or token.
pub async fn client_from_kubeconfig(path: &Path) -> Result<kube::Client, ClientError> {
    let kubeconfig = Kubeconfig::read_from(path)?;
    let config = kube::Config::from_custom_kubeconfig(kubeconfig, &KubeConfigOptions::default()).await?;
    let credentials = credentials_of(&config)?;
    connect(&config, credentials)
}

fn credentials_of(config: &kube::Config) -> Result<Credentials, ClientError> {
    let auth = &config.auth_info;
    let certificate = match (&auth.client_certificate_data, &auth.client_certificate) {
        (Some(data), _) => Some(Pem::Bytes(decode("client-certificate-data", data)?)),
        (None, Some(path)) => Some(Pem::File(path.into())),
        (None, None) => None,
    };
    let key = match (&auth.client_key_data, &auth.client_key) {
        (Some(data), _) => Some(Pem::Bytes(decode("client-key-data", data.expose_secret())?)),
        (None, Some(path)) => Some(Pem::File(path.into())),
        (None, None) => None,
    };
    let ca: String = config.root_cert.iter().flatten().map(|der| pem_of_certificate(der)).collect();
    Ok(Credentials { ca: Pem::Bytes(ca.into_bytes()), identity: certificate.zip(key) })
}

fn decode(what: &'static str, text: &str) -> Result<Vec<u8>, ClientError> {
    let engine = base64::engine::general_purpose::STANDARD;
    engine.decode(text.trim()).map_err(|error| ClientError::Pem { what, reason: error.to_string() })
}

fn pem_of_certificate(der: &[u8]) -> String {
    let text = base64::engine::general_purpose::STANDARD.encode(der);
    format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
}

fn connect(config: &kube::Config, credentials: Credentials) -> Result<kube::Client, ClientError> {
    // Bad credentials are reported now, not at the first request.
    let tls = Arc::new(credentials.tls_config()?);
    let current = Arc::new(Mutex::new((credentials.modified(), tls)));
    let connector = Connector { credentials: Arc::new(credentials), current };
    let transport = hyper_util::client::legacy::Client::builder(TokioExecutor::new()).build::<_, Body>(connector);
    let service = ServiceBuilder::new()
        .layer(config.base_uri_layer())
        .option_layer(config.auth_layer()?)
        .map_err(BoxError::from)
        .service(transport);
    Ok(kube::Client::new(service, config.default_namespace.clone()))
}

const CONNECT_TIMEOUT: Duration = Duration::from_secs(10);

type LoadedTls = ([Option<SystemTime>; 3], Arc<rustls::ClientConfig>);

/// Opens TLS connections with the credentials of the moment.
#[derive(Clone)]
struct Connector {
    credentials: Arc<Credentials>,
    current: Arc<Mutex<LoadedTls>>,
}

impl Connector {
    fn tls_config(&self) -> Arc<rustls::ClientConfig> {
        let modified = self.credentials.modified();
        let mut current = self.current.lock();
        if current.0 != modified {
            match self.credentials.tls_config() {
                Ok(config) => *current = (modified, Arc::new(config)),
                // Half-written files: the old credentials serve until the next connection.
                Err(error) => tracing::warn!(%error, "new TLS credentials are unusable, keeping the old ones"),
            }
        }
        current.1.clone()
    }
}

impl Service<Uri> for Connector {
    type Response = HttpsStream;
    type Error = io::Error;
    type Future = Pin<Box<dyn Future<Output = io::Result<HttpsStream>> + Send>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let tls = TlsConnector::from(self.tls_config());
        Box::pin(async move {
            tokio::time::timeout(CONNECT_TIMEOUT, handshake(tls, uri))
                .await
                .unwrap_or_else(|_| Err(io::Error::new(io::ErrorKind::TimedOut, "connecting timed out")))
        })
    }
}

async fn handshake(tls: TlsConnector, uri: Uri) -> io::Result<HttpsStream> {
    let host = uri.host().ok_or_else(|| io::Error::other("the server address has no host"))?;
    let host = host.trim_start_matches('[').trim_end_matches(']');
    let name = ServerName::try_from(host.to_owned()).map_err(io::Error::other)?;
    let tcp = TcpStream::connect((host, uri.port_u16().unwrap_or(443))).await?;
    tcp.set_nodelay(true)?;
    Ok(HttpsStream(TokioIo::new(tls.connect(name, tcp).await?)))
}

/// A TLS connection that tells the HTTP client which protocol was agreed on.
struct HttpsStream(TokioIo<TlsStream<TcpStream>>);

impl Connection for HttpsStream {
    fn connected(&self) -> Connected {
        let (_, session) = self.0.inner().get_ref();
        let connected = Connected::new();
        if session.alpn_protocol() == Some(b"h2") { connected.negotiated_h2() } else { connected }
    }
}

impl hyper::rt::Read for HttpsStream {
    fn poll_read(
        mut self: Pin<&mut Self>,
        context: &mut Context<'_>,
        buffer: hyper::rt::ReadBufCursor<'_>,
    ) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_read(context, buffer)
    }
}

impl hyper::rt::Write for HttpsStream {
    fn poll_write(mut self: Pin<&mut Self>, context: &mut Context<'_>, bytes: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.0).poll_write(context, bytes)
    }

    fn poll_flush(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_flush(context)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.0).poll_shutdown(context)
    }
}

#[cfg(test)]
mod tests {
    use http_body_util::Full;
    use hyper::body::Bytes;
    use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, IsCa, KeyPair};

    use super::*;

    fn authority() -> CertifiedIssuer<'static, KeyPair> {
        let mut params = CertificateParams::new(vec![]).expect("no names");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        CertifiedIssuer::self_signed(params, KeyPair::generate().expect("generated")).expect("signed")
    }

    /// Certificate and key, both PEM.
    fn issue(authority: &CertifiedIssuer<'static, KeyPair>, name: &str) -> (Vec<u8>, Vec<u8>) {
        let key = KeyPair::generate().expect("generated");
        let params = CertificateParams::new(vec![name.to_owned()]).expect("a valid name");
        let certificate = params.signed_by(&key, authority).expect("signed");
        (certificate.pem().into_bytes(), key.serialize_pem().into_bytes())
    }

    /// Answers every request with its HTTP version, as the version endpoint would; returns the port.
    async fn server(authority: &CertifiedIssuer<'static, KeyPair>) -> u16 {
        let (certificate, key) = issue(authority, "127.0.0.1");
        let certificate = CertificateDer::from_pem_slice(&certificate).expect("PEM");
        let key = PrivateKeyDer::from_pem_slice(&key).expect("PEM");
        let mut roots = rustls::RootCertStore::empty();
        roots.add(authority.der().clone()).expect("a CA");
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let verifier = rustls::server::WebPkiClientVerifier::builder_with_provider(roots.into(), provider.clone());
        let mut config = rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_client_cert_verifier(verifier.build().expect("roots"))
            .with_single_cert(vec![certificate], key)
            .expect("a pair");
        config.alpn_protocols = vec![b"h2".to_vec()];
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.expect("loopback");
        let port = listener.local_addr().expect("bound").port();
        tokio::spawn(async move {
            while let Ok((tcp, _)) = listener.accept().await {
                let Ok(tls) = acceptor.accept(tcp).await else { continue };
                let service = hyper::service::service_fn(|request: http::Request<hyper::body::Incoming>| async move {
                    let text = format!("\"{:?}\"", request.version());
                    Ok::<_, std::convert::Infallible>(http::Response::new(Full::new(Bytes::from(text))))
                });
                let connection = hyper::server::conn::http2::Builder::new(TokioExecutor::new());
                tokio::spawn(connection.serve_connection(TokioIo::new(tls), service));
            }
        });
        port
    }

    async fn version(client: &kube::Client) -> Result<String, kube::Error> {
        client.request(http::Request::get("/version").body(vec![]).expect("a request")).await
    }

    #[tokio::test]
    async fn mutual_tls_over_http2_and_a_renewed_certificate() {
        let ours = authority();
        let port = server(&ours).await;
        let directory = std::env::temp_dir().join(format!("client-https-{}-{port}", std::process::id()));
        std::fs::create_dir_all(&directory).expect("temporary directory");
        let [ca, certificate, key] = ["ca.crt", "client.crt", "client.key"].map(|name| directory.join(name));
        let write = |authority: &CertifiedIssuer<'static, KeyPair>, age_seconds: u64| {
            let (certificate_pem, key_pem) = issue(authority, "agent");
            for (path, pem) in [(&certificate, certificate_pem), (&key, key_pem)] {
                std::fs::write(path, pem).expect("written");
                let file = std::fs::File::options().write(true).open(path).expect("opened");
                file.set_modified(SystemTime::now() - Duration::from_secs(age_seconds)).expect("set");
            }
        };
        std::fs::write(&ca, ours.pem()).expect("written");
        write(&authority(), 60);
        let credentials = Credentials::from_files(&ca, &certificate, &key);
        let client = client(&format!("https://127.0.0.1:{port}"), credentials).expect("usable credentials");
        assert!(version(&client).await.is_err(), "a certificate of a foreign authority is refused");
        write(&ours, 0);
        assert_eq!(version(&client).await.expect("accepted after renewal"), "HTTP/2.0");
        std::fs::remove_dir_all(&directory).expect("removed");
    }

    #[tokio::test]
    async fn unusable_credentials_are_told_at_once() {
        let credentials = Credentials { ca: Pem::Bytes(b"not PEM".to_vec()), identity: None };
        let error = client("https://127.0.0.1:1", credentials).map(|_| ()).expect_err("refused");
        assert!(error.to_string().contains("the CA"), "{error}");
    }
}
