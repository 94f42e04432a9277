//! The streaming protocols of exec, attach and port-forward: SPDY/3.1 (as `moby/spdystream` speaks it), WebSocket with the
//! channel subprotocols, the HTTP/1.1 upgrades that lead to both, and the naming of remote-command streams.
//!
//! Must not know: pods, the API, TLS, sockets. Everything works over any `AsyncRead + AsyncWrite`.

pub mod remotecommand;
pub mod spdy;
pub mod tunnel;
pub mod upgrade;
pub mod websocket;

/// A connection that bytes flow over in both directions.
pub trait Io: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static {}

impl<T: tokio::io::AsyncRead + tokio::io::AsyncWrite + Send + Unpin + 'static> Io for T {}

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error("i/o: {0}")]
    Io(#[from] std::io::Error),
    #[error("protocol violation: {0}")]
    Protocol(&'static str),
    #[error("the connection is closed")]
    Closed,
    #[error("the peer refused the stream")]
    Refused,
    #[error("timed out waiting for {0}")]
    Timeout(&'static str),
    #[error("websocket: {0}")]
    WebSocket(#[from] tokio_tungstenite::tungstenite::Error),
    #[error("http: {0}")]
    Http(#[from] hyper::Error),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
