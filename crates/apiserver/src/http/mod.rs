//! HTTP: what a request means, which form the answer takes, and the two ways in (TLS listener, in-process transport).

mod indent;
pub mod inprocess;
pub mod listener;
pub mod negotiate;
pub mod parse;
pub mod query;
pub mod respond;
pub mod socket;

use bytes::Bytes;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
/// Every answer's body.
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;
pub type Response = http::Response<Body>;
