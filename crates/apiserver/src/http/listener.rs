//! The TLS listener: HTTP/1.1 and HTTP/2 by ALPN, client certificates taken if offered, slow clients cut off.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::Semaphore;
use tokio_rustls::TlsAcceptor;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use crate::authn::Peer;
use crate::server::{ApiServer, Caller};

/// A client that has not finished its TLS handshake or its request's head by then is cut off.
const HANDSHAKE_LIMIT: Duration = Duration::from_secs(10);
const HEAD_LIMIT: Duration = Duration::from_secs(32);
/// Upstream's default of `--http2-max-streams-per-connection` is 100 plus; client-go keeps all its watches on one connection.
const MAX_STREAMS: u32 = 1000;
const MAX_CONNECTIONS: usize = 16_384;
/// At shutdown, requests in hand get this long.
const DRAIN_LIMIT: Duration = Duration::from_secs(5);

/// Serves until `shutdown`, then drains.
pub async fn serve(
    server: ApiServer,
    listener: TcpListener,
    tls: Arc<rustls::ServerConfig>,
    shutdown: CancellationToken,
) {
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(MAX_CONNECTIONS));
    let tasks = TaskTracker::new();
    while let Some(accepted) = shutdown.run_until_cancelled(accept(&listener, &slots)).await {
        let Some((socket, slot)) = accepted else { break };
        let connection = connection(server.clone(), acceptor.clone(), socket, shutdown.clone());
        tasks.spawn(async move {
            connection.await;
            drop(slot);
        });
    }
    server.health.drain();
    tasks.close();
    let _ = tokio::time::timeout(DRAIN_LIMIT, tasks.wait()).await;
}

async fn accept(
    listener: &TcpListener,
    slots: &Arc<Semaphore>,
) -> Option<(TcpStream, tokio::sync::OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return Some((socket, slot)),
            Err(error) => {
                // Out of file descriptors, mostly: wait for some to come back rather than spin.
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(Duration::from_millis(50)).await;
            }
        }
    }
}

async fn connection(server: ApiServer, acceptor: TlsAcceptor, socket: TcpStream, shutdown: CancellationToken) {
    let _ = socket.set_nodelay(true);
    let stream = match tokio::time::timeout(HANDSHAKE_LIMIT, acceptor.accept(socket)).await {
        Ok(Ok(stream)) => stream,
        Ok(Err(error)) => return tracing::debug!(%error, "TLS handshake failed"),
        Err(_) => return tracing::debug!("TLS handshake timed out"),
    };
    let peer = stream.get_ref().1.peer_certificates().and_then(Peer::new).map(Arc::new);
    let service = hyper::service::service_fn(move |request| {
        let server = server.clone();
        let caller = Caller::Remote { peer: peer.clone() };
        async move { Ok::<_, std::convert::Infallible>(server.handle(request, caller).await) }
    });
    // By what was agreed on, not by the first bytes: a client that sends none is then cut off by the head's limit.
    let speaks_http2 = stream.get_ref().1.alpn_protocol() == Some(b"h2");
    let builder = auto::Builder::new(TokioExecutor::new());
    let mut builder = if speaks_http2 { builder.http2_only() } else { builder.http1_only() };
    builder.http1().timer(TokioTimer::new()).header_read_timeout(HEAD_LIMIT);
    builder
        .http2()
        .timer(TokioTimer::new())
        .max_concurrent_streams(MAX_STREAMS)
        .initial_stream_window_size(256 * 1024)
        .initial_connection_window_size(25 * 256 * 1024)
        .keep_alive_interval(Duration::from_secs(30))
        .keep_alive_timeout(Duration::from_secs(20));
    let connection = builder.serve_connection_with_upgrades(TokioIo::new(stream), service);
    let mut connection = std::pin::pin!(connection);
    let ended = tokio::select! {
        ended = connection.as_mut() => ended,
        () = shutdown.cancelled() => {
            connection.as_mut().graceful_shutdown();
            connection.await
        }
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "connection ended");
    }
}
