//! HTTP/1.1 Upgrade, on both sides.

use http::header::{CONNECTION, UPGRADE};
use http::{HeaderMap, HeaderValue, Request, Response, StatusCode};
use http_body::Body;
use hyper::body::Incoming;
use hyper_util::rt::TokioIo;

use crate::remotecommand::PROTOCOL_HEADER;
use crate::{Io, Result};

/// The `Upgrade` token of SPDY.
pub const SPDY: &str = "SPDY/3.1";
/// The `Upgrade` token of WebSocket.
pub const WEBSOCKET: &str = "websocket";

/// Whether a comma-separated header holds `token`, whatever its case.
pub(crate) fn has_token(headers: &HeaderMap, name: http::HeaderName, token: &str) -> bool {
    headers
        .get_all(name)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .any(|value| value.trim().eq_ignore_ascii_case(token))
}

/// Whether a request asks to leave HTTP, for whatever protocol.
pub fn is_upgrade(headers: &HeaderMap) -> bool {
    has_token(headers, CONNECTION, "upgrade")
}

/// Whether a request asks for `protocol`.
pub fn is_upgrade_to(headers: &HeaderMap, protocol: &str) -> bool {
    is_upgrade(headers) && has_token(headers, UPGRADE, protocol)
}

/// Marks a request as one for an upgrade to `protocol`.
pub fn ask_for(headers: &mut HeaderMap, protocol: &'static str) {
    headers.insert(CONNECTION, HeaderValue::from_static("Upgrade"));
    headers.insert(UPGRADE, HeaderValue::from_static(protocol));
}

/// The answer that ends HTTP: 101 with the chosen version of the stream protocol, if there is one to name.
pub fn switching_protocols<B: Default>(protocol: &'static str, stream_protocol: Option<&'static str>) -> Response<B> {
    let mut response = Response::new(B::default());
    *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
    ask_for(response.headers_mut(), protocol);
    if let Some(version) = stream_protocol {
        response.headers_mut().insert(PROTOCOL_HEADER, HeaderValue::from_static(version));
    }
    response
}

/// Sends one request over a fresh connection, which may be upgraded by its answer. Dropping the answer's body closes it.
pub async fn send<B>(io: impl Io, request: Request<B>) -> Result<Response<Incoming>>
where
    B: Body + Send + 'static,
    B::Data: Send,
    B::Error: Into<Box<dyn std::error::Error + Send + Sync>>,
{
    let (mut sender, connection) = hyper::client::conn::http1::handshake(TokioIo::new(io)).await?;
    tokio::spawn(async move {
        if let Err(error) = connection.with_upgrades().await {
            tracing::debug!(%error, "http connection ended");
        }
    });
    Ok(sender.send_request(request).await?)
}
