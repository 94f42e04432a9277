//! The controller manager: one file (or folder) per controller.

mod deployment;
mod discovery;
mod endpointslice;
mod error;
#[cfg(test)]
mod fixture;
mod namespace;
mod owner;
mod pods;
mod replicaset;
mod serviceaccount;
mod template;
mod write;

pub use error::Error;
pub use namespace::run as run_ns;
pub use serviceaccount::{publish_root_ca, run as run_sa};
pub use endpointslice::{endpoints, mirror, run as run_es};
pub use replicaset::run as run_rs;
pub use deployment::run as run_d;
