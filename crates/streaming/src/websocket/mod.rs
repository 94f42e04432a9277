//! WebSocket (RFC 6455) as Kubernetes uses it: the server's handshake, [`channels`] over one socket, and [`Tunnel`]s.

mod channels;
mod tunnel;

use http::header::{SEC_WEBSOCKET_ACCEPT, SEC_WEBSOCKET_KEY, SEC_WEBSOCKET_PROTOCOL, SEC_WEBSOCKET_VERSION};
use http::{HeaderMap, HeaderValue, Response};
use tokio_tungstenite::tungstenite::handshake::derive_accept_key;
use tokio_tungstenite::tungstenite::protocol::frame::coding::CloseCode;
use tokio_tungstenite::tungstenite::protocol::{CloseFrame, Role, WebSocketConfig};

pub use channels::{ChannelEvent, ChannelProtocol};
pub use tokio_tungstenite::WebSocketStream;
pub use tokio_tungstenite::tungstenite::Message;
pub use tunnel::Tunnel;

use crate::{Error, Io, Result, upgrade};

/// Larger messages than any client sends; beyond, the connection is closed.
const MESSAGE_BYTES_MAX: usize = 16 * 1024 * 1024;

/// Whether a request asks for a WebSocket.
pub fn is_request(headers: &HeaderMap) -> bool {
    upgrade::is_upgrade_to(headers, upgrade::WEBSOCKET)
}

/// The subprotocols that a request offers, best first.
pub fn offered_protocols(headers: &HeaderMap) -> Vec<&str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .map(str::trim)
        .filter(|protocol| !protocol.is_empty())
        .collect()
}

/// The answer to a WebSocket request that accepts it with `protocol` (one of those offered, or none).
pub fn accept<B: Default>(request: &HeaderMap, protocol: Option<&str>) -> Result<Response<B>> {
    if request.get(SEC_WEBSOCKET_VERSION).is_none_or(|version| version != "13") {
        return Err(Error::Protocol("the version of WebSocket must be 13"));
    }
    let key = request.get(SEC_WEBSOCKET_KEY).ok_or(Error::Protocol("Sec-WebSocket-Key is missing"))?;
    let mut response = upgrade::switching_protocols(upgrade::WEBSOCKET, None);
    let accept = HeaderValue::try_from(derive_accept_key(key.as_bytes())).expect("base64 is a header value");
    response.headers_mut().insert(SEC_WEBSOCKET_ACCEPT, accept);
    if let Some(protocol) = protocol {
        let protocol = HeaderValue::try_from(protocol).map_err(|_| Error::Protocol("the subprotocol is not text"))?;
        response.headers_mut().insert(SEC_WEBSOCKET_PROTOCOL, protocol);
    }
    Ok(response)
}

/// Speaks WebSocket as server over a connection that has been upgraded.
pub async fn server<T: Io>(io: T) -> WebSocketStream<T> {
    start(io, Role::Server).await
}

/// Speaks WebSocket as client over a connection that has been upgraded.
pub async fn client<T: Io>(io: T) -> WebSocketStream<T> {
    start(io, Role::Client).await
}

/// The message that ends a connection. Clients take any other end, even one without a code, for an error.
pub fn normal_closure() -> Message {
    Message::Close(Some(CloseFrame { code: CloseCode::Normal, reason: "".into() }))
}

async fn start<T: Io>(io: T, role: Role) -> WebSocketStream<T> {
    let config = WebSocketConfig::default()
        .max_message_size(Some(MESSAGE_BYTES_MAX))
        .max_frame_size(Some(MESSAGE_BYTES_MAX))
        // Every message goes out at once: these are terminals.
        .write_buffer_size(0);
    WebSocketStream::from_raw_socket(io, role, Some(config)).await
}

#[cfg(test)]
mod tests {
    use super::*;

    fn request(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn handshake_of_the_rfc() {
        let headers = request(&[
            ("connection", "keep-alive, Upgrade"),
            ("upgrade", "websocket"),
            ("sec-websocket-key", "dGhlIHNhbXBsZSBub25jZQ=="),
            ("sec-websocket-version", "13"),
            ("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io"),
        ]);
        assert!(is_request(&headers));
        assert_eq!(offered_protocols(&headers), ["v5.channel.k8s.io", "v4.channel.k8s.io"]);
        let response: Response<()> = accept(&headers, Some("v4.channel.k8s.io")).unwrap();
        assert_eq!(response.status(), 101);
        assert_eq!(response.headers()["sec-websocket-accept"], "s3pPLMBiTxaQ9kYGzzhZRbK+xOo=");
        assert_eq!(response.headers()["sec-websocket-protocol"], "v4.channel.k8s.io");
    }

    #[test]
    fn requests_that_are_no_websocket() {
        assert!(!is_request(&request(&[("upgrade", "websocket")])));
        assert!(!is_request(&request(&[("connection", "upgrade"), ("upgrade", "SPDY/3.1")])));
        let old = request(&[("sec-websocket-key", "x"), ("sec-websocket-version", "8")]);
        assert!(accept::<()>(&old, None).is_err());
    }
}
