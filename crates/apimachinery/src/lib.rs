//! What a Kubernetes object is.
//!
//! Pure functions over `serde_json::Value`: names, metadata, selectors, quantities, `Status` errors, resource rows, and the
//! schema engine (decode checks, defaulting, pruning, validation, patches, server-side apply, OpenAPI, tables).
//!
//! Must not know: tokio, sockets, files, clocks, random numbers. Time and randomness come in as arguments.

pub mod apply;
pub mod cron;
pub mod field;
pub mod meta;
pub mod names;
pub mod openapi;
pub mod patch;
pub mod protobuf;
pub mod quantity;
pub mod quota;
pub mod resource;
pub mod schema;
pub mod selector;
pub mod status;
pub mod table;

pub use serde_json::Value;
