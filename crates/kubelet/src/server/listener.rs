//! TLS and HTTP/1.1 (upgrades exist nowhere else), one task per connection.

use std::sync::Arc;
use std::time::Duration;

use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use rustls::server::{ResolvesServerCert, WebPkiClientVerifier};
use rustls::{RootCertStore, ServerConfig};
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::{Server, User};

/// How long a client may take for the handshake, and for the headers of a request.
const PATIENCE: Duration = Duration::from_secs(30);
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
    let acceptor = TlsAcceptor::from(Arc::new(tls));
    let connections = TaskTracker::new();
    loop {
        let accepted = tokio::select! {
            accepted = listener.accept() => accepted,
            () = shutdown.cancelled() => break,
        };
        match accepted {
            Ok((tcp, _)) => {
                let (server, acceptor, shutdown) = (server.clone(), acceptor.clone(), shutdown.clone());
                connections.spawn(async move {
                    if let Err(error) = connection(server, acceptor, tcp, shutdown).await {
                        tracing::debug!(%error, "kubelet server: connection ended");
                    }
                });
            }
            // Out of file descriptors, say: others must end first.
            Err(error) => {
                tracing::warn!(%error, "kubelet server: cannot accept");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    connections.close();
    // What streams on is cut off with the process.
    let _ = tokio::time::timeout(DRAIN, connections.wait()).await;
}

async fn connection(
    server: Arc<Server>,
    acceptor: TlsAcceptor,
    tcp: TcpStream,
    shutdown: CancellationToken,
) -> Result<(), super::BoxError> {
    tcp.set_nodelay(true)?;
    let tls = tokio::time::timeout(PATIENCE, acceptor.accept(tcp)).await??;
    let certificates = tls.get_ref().1.peer_certificates();
    let user = certificates.and_then(|chain| chain.first()).and_then(|leaf| User::from_certificate(leaf)).map(Arc::new);
    let service = service_fn(move |request| {
        let (server, user) = (server.clone(), user.clone());
        async move { Ok::<_, std::convert::Infallible>(server.handle(request, user.as_deref()).await) }
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
