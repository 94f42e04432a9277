//! Reaching what a request is passed on to: a kubelet, a pod.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use apimachinery::status::{Result, StatusError};
use bytes::Bytes;
use http::uri::PathAndQuery;
use http::{Request, Response, header};
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use rustls::ClientConfig;
use rustls::pki_types::ServerName;
use streaming::upgrade;
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;

use super::{Body, BoxError};

/// Upstream's dial timeout, TLS included.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Knows how to make itself known to kubelets, and whom to believe. Cloning is cheap.
#[derive(Clone)]
pub struct Dialer {
    kubelet: Arc<ClientConfig>,
    /// With our certificate, but without looking at the kubelet's.
    unverified_kubelet: Arc<ClientConfig>,
    unverified: Arc<ClientConfig>,
}

impl Dialer {
    /// `kubelet` carries the API server's client certificate and trusts the authority that signs kubelets' serving certificates.
    pub fn new(kubelet: &ClientConfig) -> Self {
        let mut kubelet = kubelet.clone();
        // Upgrades exist in HTTP/1.1 only.
        kubelet.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut unverified = serving::unverified(kubelet.crypto_provider().clone());
        unverified.alpn_protocols = vec![b"http/1.1".to_vec()];
        let mut unverified_kubelet = unverified.clone();
        unverified_kubelet.client_auth_cert_resolver = kubelet.client_auth_cert_resolver.clone();
        Dialer {
            kubelet: Arc::new(kubelet),
            unverified_kubelet: Arc::new(unverified_kubelet),
            unverified: Arc::new(unverified),
        }
    }

    /// A kubelet, at the address of its node. `path` starts with a slash and may have a query.
    pub fn kubelet(&self, host: &str, port: u16, path: &str) -> Result<Target> {
        Target::new(host, port, Some(self.kubelet.clone()), path)
    }

    /// A kubelet whose certificate need not be good (`insecureSkipTLSVerifyBackend` of logs). It still learns who asks.
    pub fn unverified_kubelet(&self, host: &str, port: u16, path: &str) -> Result<Target> {
        Target::new(host, port, Some(self.unverified_kubelet.clone()), path)
    }

    /// A pod, or another port of a node. As upstream, the certificate of an HTTPS server there is not verified: it is the user's.
    pub fn workload(&self, scheme: Scheme, host: &str, port: u16, path: &str) -> Result<Target> {
        let tls = (scheme == Scheme::Https).then(|| self.unverified.clone());
        Target::new(host, port, tls, path)
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Scheme {
    Http,
    Https,
}

/// Where a request goes on to.
#[derive(Clone)]
pub struct Target {
    host: String,
    port: u16,
    tls: Option<Arc<ClientConfig>>,
    path: PathAndQuery,
}

impl Target {
    /// `host` is a name or an address without brackets.
    pub fn new(host: &str, port: u16, tls: Option<Arc<ClientConfig>>, path: &str) -> Result<Self> {
        let path = PathAndQuery::try_from(path)
            .map_err(|error| StatusError::bad_request(format!("invalid path {path:?}: {error}")))?;
        Ok(Target { host: host.to_owned(), port, tls, path })
    }

    /// `host:port`, with brackets where the host is an IPv6 address.
    pub fn authority(&self) -> String {
        if self.host.contains(':') {
            format!("[{}]:{}", self.host, self.port)
        } else {
            format!("{}:{}", self.host, self.port)
        }
    }

    pub fn path(&self) -> &PathAndQuery {
        &self.path
    }

    /// For errors.
    pub fn url(&self) -> String {
        let scheme = if self.tls.is_some() { "https" } else { "http" };
        format!("{scheme}://{}{}", self.authority(), self.path)
    }

    /// Sends `request` to this target's path over a connection of its own. The error is worded as Go's.
    pub async fn send<B>(&self, request: Request<B>) -> Result<Response<Incoming>, String>
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        self.send_boxed(request.map(|body| body.map_err(Into::into).boxed_unsync())).await
    }

    async fn send_boxed(&self, mut request: Request<Body>) -> Result<Response<Incoming>, String> {
        *request.uri_mut() = self.path.clone().into();
        *request.version_mut() = http::Version::HTTP_11;
        if !request.headers().contains_key(header::HOST) {
            let host = self.authority().try_into().map_err(|_| format!("invalid host {:?}", self.host))?;
            request.headers_mut().insert(header::HOST, host);
        }
        let tcp = self.dial().await?;
        let response = match &self.tls {
            None => upgrade::send(tcp, request).await,
            Some(config) => upgrade::send(self.handshake(tcp, config.clone()).await?, request).await,
        };
        response.map_err(|error| error.to_string())
    }

    async fn dial(&self) -> Result<TcpStream, String> {
        let address = self.authority();
        let dialled = tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((self.host.as_str(), self.port))).await;
        let tcp = match dialled {
            Ok(Ok(tcp)) => tcp,
            Ok(Err(error)) => return Err(format!("dial tcp {address}: connect: {}", words(&error))),
            Err(_) => return Err(format!("dial tcp {address}: i/o timeout")),
        };
        // Keystrokes are not to wait for one another.
        tcp.set_nodelay(true).map_err(|error| words(&error))?;
        Ok(tcp)
    }

    async fn handshake(
        &self,
        tcp: TcpStream,
        config: Arc<ClientConfig>,
    ) -> Result<tokio_rustls::client::TlsStream<TcpStream>, String> {
        let name = ServerName::try_from(self.host.clone()).map_err(|_| format!("invalid host {:?}", self.host))?;
        match tokio::time::timeout(DIAL_TIMEOUT, TlsConnector::from(config).connect(name, tcp)).await {
            Ok(Ok(stream)) => Ok(stream),
            Ok(Err(error)) => Err(format!("tls: {}", words(&error))),
            Err(_) => Err("net/http: TLS handshake timeout".to_owned()),
        }
    }
}

/// The error as Go words it: lower case, without the number.
fn words(error: &io::Error) -> String {
    let text = error.to_string();
    text.split(" (os error").next().unwrap_or(&text).to_lowercase()
}
