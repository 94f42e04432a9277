//! Exec, attach and port-forward: requests that leave HTTP for a session with the kubelet.

use apimachinery::status::StatusError;
use bytes::Bytes;
use http::{HeaderMap, HeaderValue, Method, Request};
use hyper_util::rt::TokioIo;
use streaming::remotecommand::{Options, PROTOCOL_HEADER};
use streaming::upgrade;
use streaming::websocket::{self, ChannelProtocol, Tunnel};

use super::{BoxError, Response, Target, respond, translate, tunnel};
use crate::audit::Hold;

/// The WebSocket subprotocols that carry SPDY: this prefix, then the stream protocol inside.
const TUNNEL_PREFIX: &str = "SPDY/3.1+";

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum StreamKind {
    /// Exec or attach, with the streams that the client asked for.
    RemoteCommand(Options),
    PortForward,
}

/// Answers a request for a session with the kubelet at `target`.
///
/// SPDY clients speak to the kubelet through a tunnel of raw bytes. The channels of a WebSocket client become SPDY streams
/// (upstream's `StreamTranslator`); SPDY inside a WebSocket is taken out of it (`TunnelingHandler`).
pub async fn stream<B>(request: Request<B>, target: Target, kind: StreamKind) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if !upgrade::is_upgrade(request.headers()) {
        return respond::error(&StatusError::bad_request("Upgrade request required"));
    }
    if !websocket::is_request(request.headers()) {
        return tunnel::raw(request, target).await;
    }
    let offered = websocket::offered_protocols(request.headers());
    match kind {
        StreamKind::RemoteCommand(options) => match ChannelProtocol::negotiate(&offered) {
            Some(protocol) => remote_command(request, target, protocol, options),
            None => respond::text(403, "unable to upgrade: none of the requested subprotocols is supported"),
        },
        StreamKind::PortForward if offered.iter().any(|protocol| protocol.starts_with(TUNNEL_PREFIX)) => {
            port_forward(request, target).await
        }
        // The older channel protocol of port-forward, which runtimes speak themselves.
        StreamKind::PortForward => tunnel::raw(request, target).await,
    }
}

/// SPDY within a WebSocket, and plain SPDY towards the kubelet.
async fn port_forward<B>(mut request: Request<B>, target: Target) -> Response {
    let client = hyper::upgrade::on(&mut request);
    let held = request.extensions_mut().remove::<Hold>();
    let mut headers = HeaderMap::new();
    upgrade::ask_for(&mut headers, upgrade::SPDY);
    for protocol in websocket::offered_protocols(request.headers()) {
        if let Some(inner) = protocol.strip_prefix(TUNNEL_PREFIX).and_then(|inner| HeaderValue::from_str(inner).ok()) {
            headers.append(PROTOCOL_HEADER, inner);
        }
    }
    let (headers, backend) = match tunnel::ask(target, Method::POST, headers).await {
        Ok(tunnel::Asked::Upgraded(headers, backend)) => (headers, backend),
        Ok(tunnel::Asked::Refused(response)) => return response,
        Err(error) => return tunnel::dial_failed(&error),
    };
    let chosen = headers.get(PROTOCOL_HEADER).and_then(|inner| inner.to_str().ok()).unwrap_or_default();
    let protocol = format!("{TUNNEL_PREFIX}{chosen}");
    accept(request.headers(), Some(&protocol), async move {
        let _held = held;
        let (client, backend) = tokio::try_join!(client, backend)?;
        let socket = websocket::server(TokioIo::new(client)).await;
        streaming::tunnel::pump(Tunnel::new(socket), TokioIo::new(backend)).await;
        Ok(())
    })
}

/// Channels of a WebSocket, and SPDY streams towards the kubelet. As upstream, the client is answered first: what the kubelet then
/// refuses is told on the error channel.
fn remote_command<B>(mut request: Request<B>, target: Target, protocol: ChannelProtocol, options: Options) -> Response {
    let client = hyper::upgrade::on(&mut request);
    let held = request.extensions_mut().remove::<Hold>();
    accept(request.headers(), protocol.name(), async move {
        let _held = held;
        let socket = websocket::server(TokioIo::new(client.await?)).await;
        translate::run(socket, protocol, target, options).await;
        Ok(())
    })
}

/// Accepts a WebSocket and leaves the connection to `session`.
fn accept(
    request: &HeaderMap,
    protocol: Option<&str>,
    session: impl Future<Output = hyper::Result<()>> + Send + 'static,
) -> Response {
    match websocket::accept(request, protocol) {
        Ok(response) => {
            tokio::spawn(async move {
                if let Err(error) = session.await {
                    tracing::debug!(%error, "upgrade failed");
                }
            });
            response
        }
        Err(error) => respond::error(&StatusError::bad_request(error.to_string())),
    }
}
