//! TLS as our servers speak it: accepting connections within bounds, and dialling those whose certificate is nobody's business.
//!
//! Must not know: HTTP, who the clients are, what is served.

mod listener;
mod unverified;

pub use listener::{Limits, accept, drain};
pub use unverified::unverified;
