//! The node's network: pod network (CNI plugin, netlink), kube-proxy (nf_tables), cluster DNS.
//!
//! Must not know: the API server, the store, the container runtime. The CNI plugin is called by the runtime, and knows
//! nothing but what CNI tells it and what lies in its data directory.

pub mod cni;
pub mod dns;
pub mod endpoints;
mod error;
pub mod netlink;
pub mod nft;
pub mod podnet;
pub mod proxy;
mod sysctl;

pub use error::{Error, Result};

#[cfg(test)]
mod fake_api;
#[cfg(test)]
mod node_tests;
#[cfg(test)]
mod testing;
