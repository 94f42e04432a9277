//! TLS and HTTP/1.1 (upgrades exist nowhere else), one task per connection.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use serving::Limits;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

use super::Server;
use super::auth::Certified;

/// How long a client may take for the handshake, and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(30);
/// The API server, its users' sessions and a few scrapers; the rest waits to be accepted.
const MAX_CONNECTIONS: usize = 4096;
/// How long requests in hand may go on at shutdown; followed logs and sessions do not end by themselves.
const DRAIN: Duration = Duration::from_secs(2);

/// The server's half of TLS. Clients may show a certificate that one of `client_authorities` has signed; who shows none needs a
/// token.
pub fn tls(
    certificate: Arc<dyn ResolvesServerCert>,
    client_authorities: RootCertStore,
) -> Result<ServerConfig, rustls::Error> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let verifier = WebPkiClientVerifier::builder_with_provider(Arc::new(client_authorities), provider.clone())
        .allow_unauthenticated()
        .build()
        .map_err(|error| rustls::Error::General(error.to_string()))?;
    Ok(ServerConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .with_client_cert_verifier(verifier)
        .with_cert_resolver(certificate))
}

/// Serves until `shutdown`. `tls` must believe only client certificates that speak for users of this cluster.
pub async fn run(server: Arc<Server>, listener: TcpListener, tls: Arc<ServerConfig>, shutdown: CancellationToken) {
    let mut tls = ServerConfig::clone(&tls);
    tls.alpn_protocols = vec![b"http/1.1".to_vec()];
    let limits = Limits { connections: MAX_CONNECTIONS, handshake: PATIENCE };
    let stop = shutdown.clone();
    let serve = move |stream| {
        let work = connection(server.clone(), stream, stop.clone());
        async move {
            if let Err(error) = work.await {
                tracing::debug!(%error, "kubelet server: connection ended");
            }
        }
    };
    let connections = serving::accept(listener, Arc::new(tls), limits, shutdown, serve).await;
    serving::drain(connections, DRAIN).await;
}

async fn connection(
    server: Arc<Server>,
    tls: TlsStream<TcpStream>,
    shutdown: CancellationToken,
) -> Result<(), super::BoxError> {
    let certificates = tls.get_ref().1.peer_certificates();
    let leaf = certificates.and_then(|chain| chain.first());
    let certified = leaf.and_then(|leaf| Certified::from_certificate(leaf)).map(Arc::new);
    let service = service_fn(move |request| {
        let (server, certified) = (server.clone(), certified.clone());
        async move {
            let user = certified.as_ref().and_then(|certified| certified.user_at(SystemTime::now()));
            Ok::<_, std::convert::Infallible>(server.handle(request, user).await)
        }
    });
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(PATIENCE)
        .serve_connection(TokioIo::new(tls), service)
        .with_upgrades();
    let mut connection = std::pin::pin!(connection);
    tokio::select! {
        ended = connection.as_mut() => return Ok(ended?),
        () = shutdown.cancelled() => connection.as_mut().graceful_shutdown(),
    }
    Ok(connection.await?)
}
