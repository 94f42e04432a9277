//! The messages of CRI `runtime.v1` (and the few of containerd's event service) that Coxswain uses, as protobuf structs.
//!
//! Written down here instead of generated at build time, so that a build needs no protobuf compiler. Field numbers are those
//! of the published API; fields that are not listed are skipped when decoding, as protobuf defines.

pub mod container;
pub mod containerd;
pub mod image;
pub mod runtime;
pub mod sandbox;
pub mod stats;
pub mod streaming;
