//! The TLS listener: HTTP/1.1 and HTTP/2 by ALPN, client certificates taken if offered, slow clients cut off.

use std::sync::Arc;
use std::time::Duration;

use hyper_util::rt::{TokioExecutor, TokioIo, TokioTimer};
use hyper_util::server::conn::auto;
use serving::Limits;
use tokio::net::{TcpListener, TcpStream};
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;

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
    let limits = Limits { connections: MAX_CONNECTIONS, handshake: HANDSHAKE_LIMIT };
    let (of_connections, stop) = (server.clone(), shutdown.clone());
    let serve = move |stream| connection(of_connections.clone(), stream, stop.clone());
    let connections = serving::accept(listener, tls, limits, shutdown, serve).await;
    server.health.drain();
    serving::drain(connections, DRAIN_LIMIT).await;
}

async fn connection(server: ApiServer, stream: TlsStream<TcpStream>, shutdown: CancellationToken) {
    let peer = stream.get_ref().1.peer_certificates().and_then(Peer::new).map(Arc::new);
    let address = stream.get_ref().0.peer_addr().ok();
    let service = hyper::service::service_fn(move |request| {
        let server = server.clone();
        let caller = Caller::Remote { peer: peer.clone(), address };
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
