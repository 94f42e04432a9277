//! The real binary under bad input and bad luck, each test in a network and mount namespace of its own. They need root.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on says so best by ending")]

mod audit;
mod clients;
mod datastore;
mod durable;
mod hollow;
mod linear;
mod node;
mod snapshot;
mod start;
mod support;
