//! The kubelet: runs the pods that are bound to this node, and reports on them and on the node.
//!
//! Must not know: the API server's insides or the store. It speaks to the API as `system:node:<name>`, and to containers only
//! through `cri`.

mod backoff;
mod cgroup;
pub mod config;
mod container;
mod dns;
pub mod error;
mod gc;
pub mod hollow;
mod hosts;
mod images;
mod logs;
mod metrics;
mod node;
mod objects;
mod pod;
pub mod pods;
mod podutil;
mod probe;
mod run;
mod runtime;
pub mod server;
mod shared;
mod status;
mod thresholds;
mod volume;

pub use config::Config;
pub use error::{Error, Result};
pub use pods::{ContainerKind, ContainerRecord, PodRecord, PodStore, RunState};
pub use run::{Kubelet, run};
