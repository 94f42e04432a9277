//! The API as a client sees it, over both transports: the same tests run in process and over TLS on loopback.

#![allow(clippy::unwrap_used, reason = "a test fails by panicking")]

mod aggregation;
mod apply;
mod audit;
mod conversions;
mod custom;
mod deletes;
mod fairness;
mod harness;
mod hookserver;
mod kinds;
mod linear;
mod lists;
mod mutations;
mod owners;
mod policies;
mod watches;
mod webhooks;
mod writes;
