//! What follows from the state of nodes: their health and taints ([`lifecycle`]), and the eviction of pods that do not
//! tolerate those taints ([`eviction`]); and each node's part of the pod network ([`ipam`]).

pub mod eviction;
mod health;
pub mod ipam;
pub mod lifecycle;
mod taints;

pub use health::Grace;
pub use taints::{NO_EXECUTE, NO_SCHEDULE, OUT_OF_SERVICE, taints_of, tolerates};
