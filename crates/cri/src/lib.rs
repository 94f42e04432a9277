//! The Container Runtime Interface: messages, a client over a unix socket, container events, and the supervision of a
//! containerd of our own.
//!
//! Must not know: the API server, pods as API objects, or anything of Kubernetes beyond what CRI itself names.

pub mod client;
pub mod containerd;
pub mod error;
pub mod events;
pub mod messages;
pub mod operations;
mod snapshots;
mod transport;

pub use client::Client;
pub use error::{Error, Result};
pub use events::{Event, EventKind, EventStream};
