//! The controller manager: one file (or folder) per controller.

mod deployment;
mod error;
#[cfg(test)]
mod fixture;
mod owner;
mod pods;
mod replicaset;
mod template;
mod write;

pub use error::Error;
pub use replicaset::run as run_rs;
pub use deployment::run as run_d;
