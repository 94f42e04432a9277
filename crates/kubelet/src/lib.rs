//! The kubelet: runs the pods that are bound to this node, and reports on them and on the node.
//!
//! Must not know: the API server's insides or the store. It speaks to the API as `system:node:<name>`, and to containers only
//! through `cri`.

pub mod pods;

pub use pods::{ContainerKind, ContainerRecord, PodRecord, PodStore, RunState};
