//! Connections to one member of the cluster: TCP with or without TLS, or a unix socket.

use std::fs;
use std::path::{Path, PathBuf};
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::TokioIo;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpStream, UnixStream};
use tonic::transport::{Channel, Endpoint, Uri};

use crate::Error;

/// For connection and TLS handshake together.
const CONNECT_WITHIN: Duration = Duration::from_secs(3);
/// A connection on which nothing comes is asked for a sign of life, so that a host that fell silent is noticed.
const KEEPALIVE_EVERY: Duration = Duration::from_secs(10);
const KEEPALIVE_WITHIN: Duration = Duration::from_secs(5);
/// A list of a thousand objects, or of events, may be large: HTTP/2's usual 64 KiB would make it slow.
const WINDOW_BYTES: u32 = 4 << 20;

/// Where a member listens.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Address {
    Tcp { host: String, port: u16, tls: bool },
    Unix(PathBuf),
}

impl Address {
    /// `https://host:port`, `http://host:port` or `unix:///path`. The port is 2379 where none is given.
    pub(crate) fn parse(text: &str) -> Result<Self, Error> {
        let bad = |why: &str| Error::Configuration { reason: format!("endpoint {text:?} {why}") };
        if let Some(path) = text.strip_prefix("unix://") {
            return if path.starts_with('/') {
                Ok(Address::Unix(path.into()))
            } else {
                Err(bad("has no absolute path"))
            };
        }
        let tls = text.starts_with("https://");
        if !tls && !text.starts_with("http://") {
            return Err(bad("does not begin with https://, http:// or unix://"));
        }
        let uri: Uri = text.parse().map_err(|_| bad("is not a URL"))?;
        if !matches!(uri.path(), "" | "/") || uri.query().is_some() {
            return Err(bad("must have no path"));
        }
        let host = uri.host().filter(|host| !host.is_empty()).ok_or_else(|| bad("has no host"))?;
        let authority = uri.authority().map_or("", |authority| authority.as_str());
        // What is not a number is no port for the parser, but part of the authority.
        let port = match authority.strip_prefix(host).map(|rest| rest.strip_prefix(':').unwrap_or(rest)) {
            Some("") => 2379,
            Some(port) => port.parse().map_err(|_| bad("has no port that is a number"))?,
            None => return Err(bad("must not name a user")),
        };
        let host = host.trim_start_matches('[').trim_end_matches(']').to_owned();
        Ok(Address::Tcp { host, port, tls })
    }
}

/// Whom to believe and what to show. The files are read at each connection, so that renewed certificates come into use.
#[derive(Clone, Debug, Default)]
pub(crate) struct Credentials {
    /// PEM of the authorities that sign the members' certificates; none is those that the system trusts.
    pub ca_file: Option<PathBuf>,
    pub cert_file: Option<PathBuf>,
    pub key_file: Option<PathBuf>,
}

impl Credentials {
    pub(crate) fn tls(&self) -> Result<Arc<rustls::ClientConfig>, Error> {
        let mut roots = rustls::RootCertStore::empty();
        match &self.ca_file {
            Some(path) => {
                for certificate in certificates(path)? {
                    roots.add(certificate).map_err(|error| unusable(path, &error))?;
                }
            }
            None => _ = roots.add_parsable_certificates(rustls_native_certs::load_native_certs().certs),
        }
        let provider = Arc::new(rustls::crypto::ring::default_provider());
        let builder = rustls::ClientConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .map_err(|error| Error::Configuration { reason: error.to_string() })?
            .with_root_certificates(roots);
        let mut tls = match (&self.cert_file, &self.key_file) {
            (Some(cert), Some(key)) => {
                let pem = read(key)?;
                let private = PrivateKeyDer::from_pem_slice(&pem).map_err(|error| unusable(key, &error))?;
                builder.with_client_auth_cert(certificates(cert)?, private).map_err(|error| unusable(cert, &error))?
            }
            (None, None) => builder.with_no_client_auth(),
            _ => {
                let reason = "a client certificate and its key are needed together".to_owned();
                return Err(Error::Configuration { reason });
            }
        };
        tls.alpn_protocols = vec![b"h2".to_vec()];
        Ok(Arc::new(tls))
    }
}

fn read(path: &Path) -> Result<Vec<u8>, Error> {
    fs::read(path).map_err(|error| Error::io("read", path, error))
}

fn certificates(path: &Path) -> Result<Vec<CertificateDer<'static>>, Error> {
    let pem = read(path)?;
    let all: Result<Vec<_>, _> = CertificateDer::pem_slice_iter(&pem).collect();
    let all = all.map_err(|error| unusable(path, &error))?;
    if all.is_empty() {
        return Err(Error::Configuration { reason: format!("{} holds no certificate", path.display()) });
    }
    Ok(all)
}

fn unusable(path: &Path, error: &dyn std::fmt::Display) -> Error {
    Error::Configuration { reason: format!("{} cannot be used: {error}", path.display()) }
}

trait Stream: AsyncRead + AsyncWrite + Send + Unpin {}
impl<S: AsyncRead + AsyncWrite + Send + Unpin> Stream for S {}

type Boxed = TokioIo<Pin<Box<dyn Stream>>>;

/// A connection that is there when this returns; should it break, it mends itself at the next call.
pub(crate) async fn connect(address: &Address, credentials: &Credentials) -> Result<Channel, String> {
    let target = match address {
        Address::Tcp { host, port, .. } if host.contains(':') => format!("http://[{host}]:{port}"),
        Address::Tcp { host, port, .. } => format!("http://{host}:{port}"),
        Address::Unix(_) => "http://localhost".to_owned(),
    };
    let endpoint = Endpoint::from_shared(target).map_err(|error| error.to_string())?;
    let endpoint = endpoint
        .http2_keep_alive_interval(KEEPALIVE_EVERY)
        .keep_alive_timeout(KEEPALIVE_WITHIN)
        .keep_alive_while_idle(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(WINDOW_BYTES);
    let (address, credentials) = (address.clone(), credentials.clone());
    let connector = tower::service_fn(move |_: Uri| {
        let (address, credentials) = (address.clone(), credentials.clone());
        async move {
            let opened = tokio::time::timeout(CONNECT_WITHIN, open(&address, &credentials)).await;
            opened.unwrap_or_else(|_| Err(format!("no connection within {CONNECT_WITHIN:?}").into()))
        }
    });
    endpoint.connect_with_connector(connector).await.map_err(|error| chain(&error))
}

async fn open(address: &Address, credentials: &Credentials) -> Result<Boxed, tower::BoxError> {
    let (host, port, tls) = match address {
        Address::Unix(path) => return Ok(TokioIo::new(Box::pin(UnixStream::connect(path).await?))),
        Address::Tcp { host, port, tls } => (host, *port, *tls),
    };
    let stream = TcpStream::connect((host.as_str(), port)).await?;
    stream.set_nodelay(true)?;
    if !tls {
        return Ok(TokioIo::new(Box::pin(stream)));
    }
    let connector = tokio_rustls::TlsConnector::from(credentials.tls()?);
    let name = ServerName::try_from(host.clone())?;
    Ok(TokioIo::new(Box::pin(connector.connect(name, stream).await?)))
}

/// An error with what it comes from, on one line.
pub(crate) fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        if !text.ends_with(&cause_text) {
            text = format!("{text}: {cause_text}");
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn endpoints() {
        let tcp = |host: &str, port, tls| Address::Tcp { host: host.to_owned(), port, tls };
        for (text, expected) in [
            ("https://a:2380", tcp("a", 2380, true)),
            ("http://127.0.0.1", tcp("127.0.0.1", 2379, false)),
            ("https://[::1]:1/", tcp("::1", 1, true)),
            ("unix:///run/etcd", Address::Unix("/run/etcd".into())),
        ] {
            assert_eq!(Address::parse(text).unwrap(), expected, "{text}");
        }
        for bad in ["a:2379", "ftp://a", "unix://x", "https://", "http://a/x", "https://a:port", "https://user@a:1"] {
            assert!(matches!(Address::parse(bad), Err(Error::Configuration { .. })), "{bad}");
        }
    }

    #[test]
    fn what_is_wrong_with_certificates_is_said_with_the_file() {
        let dir = tempfile::tempdir().unwrap();
        let empty = dir.path().join("empty.pem");
        fs::write(&empty, "").unwrap();
        let credentials = |ca: Option<&Path>, cert: Option<&Path>| Credentials {
            ca_file: ca.map(Path::to_owned),
            cert_file: cert.map(Path::to_owned),
            key_file: None,
        };
        let said = |credentials: Credentials| credentials.tls().unwrap_err().to_string();
        assert!(said(credentials(Some(&empty), None)).contains("empty.pem holds no certificate"));
        assert!(said(credentials(Some(&dir.path().join("none")), None)).contains("none"));
        assert!(said(credentials(None, Some(&empty))).contains("needed together"));
    }
}
