//! The controller manager: one file (or folder) per controller.

mod deployment;
mod endpointslice;
mod error;
#[cfg(test)]
mod fixture;
mod owner;
mod pods;
mod replicaset;
mod template;
mod write;

pub use error::Error;
pub use endpointslice::{endpoints, mirror, run as run_es};
pub use replicaset::run as run_rs;
pub use deployment::run as run_d;
