//! What the API server passes on: logs, exec, attach and port-forward to kubelets; HTTP to pods, services and nodes.
//!
//! Every request that comes here has been authorised. This is one of the named exceptions to "components talk only through the
//! API": the API server is the kubelets' client, and shows its own certificate, never the user's credentials.

mod aggregated;
mod connect;
mod dial;
mod location;
mod logs;
mod reverse;
mod rewrite;
mod stream;
mod translate;
mod tunnel;

pub use aggregated::{aggregated, set_remote_user};
pub use connect::connect;
pub use dial::{Dialer, Scheme, Target};
pub use location::{logs as logs_path, port_forward as port_forward_path, remote_command as remote_command_path};
pub use logs::logs;
pub use reverse::forward;
pub use rewrite::Links;
pub use stream::{StreamKind, stream};

use crate::http::{Body, BoxError, Response, respond};

#[cfg(test)]
mod tests;
