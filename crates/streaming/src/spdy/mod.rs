//! SPDY/3.1 as client and server, over any byte stream.
//!
//! Like `moby/spdystream`, the peer of every Kubernetes client and container runtime, this neither grants nor obeys flow-control
//! windows: a reader that falls behind stops the reading of the connection, and TCP tells the peer.

mod connection;
mod frame;
mod headers;
mod stream;

pub use connection::{Connection, Incoming, Offer, Role};
pub use frame::{Frame, FrameDecoder, FrameEncoder, Setting, goaway, reset};
pub use headers::Headers;
pub use stream::{ReadHalf, Stream, WriteHalf};
