//! Dialling: the TCP half of a connection to a backend.

use std::error::Error;
use std::io;
use std::task::{Context, Poll};
use std::time::Duration;

use futures::future::BoxFuture;
use http::Uri;
use hyper_util::rt::TokioIo;
use tokio::net::TcpStream;

use super::resolve::{Place, resolve};
use crate::view::View;

/// As Go's default dialer.
const DIAL_TIMEOUT: Duration = Duration::from_secs(30);

/// Connects to the host of a URI: found in the store where hosts are services, else by the host's own resolver.
#[derive(Clone)]
pub struct Connector {
    services: Option<View>,
}

impl Connector {
    pub(super) fn new(services: Option<View>) -> Self {
        Connector { services }
    }

    fn place(&self, uri: &Uri) -> Result<Place, String> {
        let host = uri.host().unwrap_or_default().trim_matches(['[', ']']);
        let port = uri.port_u16().unwrap_or(if uri.scheme_str() == Some("http") { 80 } else { 443 });
        match (&self.services, host.strip_suffix(".svc").and_then(|host| host.split_once('.'))) {
            (Some(view), Some((name, namespace))) => resolve(view, namespace, name, port),
            _ => Ok(Place { host: host.to_owned(), port }),
        }
    }
}

impl tower::Service<Uri> for Connector {
    type Response = TokioIo<TcpStream>;
    type Error = io::Error;
    type Future = BoxFuture<'static, io::Result<Self::Response>>;

    fn poll_ready(&mut self, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn call(&mut self, uri: Uri) -> Self::Future {
        let place = self.place(&uri);
        Box::pin(async move { dial(place.map_err(io::Error::other)?).await.map(TokioIo::new) })
    }
}

/// A TCP connection to a place.
pub async fn dial(place: Place) -> io::Result<TcpStream> {
    let Place { host, port } = place;
    let at = if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    match tokio::time::timeout(DIAL_TIMEOUT, TcpStream::connect((host.as_str(), port))).await {
        Ok(Ok(tcp)) => {
            tcp.set_nodelay(true)?;
            Ok(tcp)
        }
        Ok(Err(error)) => Err(io::Error::other(format!("dial tcp {at}: connect: {}", plain(&error)))),
        Err(_) => Err(io::Error::other(format!("dial tcp {at}: i/o timeout"))),
    }
}

/// The cause of a failed request, in Go's words where clients know them.
pub fn words(error: &(dyn Error + 'static)) -> String {
    let mut cause = error;
    loop {
        if let Some(tls) = cause.downcast_ref::<rustls::Error>() {
            return tls_words(tls);
        }
        // What an I/O error wraps is not its source, but it is the cause.
        let wrapped = cause.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        match wrapped.map(|inner| inner as &(dyn Error + 'static)).or_else(|| cause.source()) {
            Some(inner) => cause = inner,
            None => return plain(cause),
        }
    }
}

fn tls_words(error: &rustls::Error) -> String {
    use rustls::CertificateError as Why;
    let rustls::Error::InvalidCertificate(why) = error else { return format!("tls: {error}") };
    let reason = match why {
        Why::UnknownIssuer | Why::BadSignature => "x509: certificate signed by unknown authority".to_owned(),
        Why::Expired | Why::ExpiredContext { .. } | Why::NotValidYet | Why::NotValidYetContext { .. } => {
            "x509: certificate has expired or is not yet valid".to_owned()
        }
        Why::NotValidForNameContext { expected, presented } => {
            let valid: Vec<&str> =
                presented.iter().map(|name| name.trim_start_matches("DnsName(\"").trim_end_matches("\")")).collect();
            format!("x509: certificate is valid for {}, not {}", valid.join(", "), expected.to_str())
        }
        other => format!("x509: {other}"),
    };
    format!("tls: failed to verify certificate: {reason}")
}

fn plain(error: &dyn Error) -> String {
    let text = error.to_string();
    let text = text.split(" (os error").next().unwrap_or(&text);
    let mut letters = text.chars();
    match (letters.next(), letters.next()) {
        (Some(first), Some(second)) if first.is_uppercase() && second.is_lowercase() => {
            format!("{}{}", first.to_lowercase(), &text[first.len_utf8()..])
        }
        _ => text.to_owned(),
    }
}
