//! The life of pods on this node: one worker for each, which looks, plans and acts until the pod is gone.

pub mod admit;
pub mod allocate;
pub mod finish;
pub mod hooks;
pub mod manager;
pub mod memory;
pub mod plan;
pub mod resize;
pub mod sandbox;
pub mod start;
pub mod stop;
mod turns;
pub mod worker;

pub use turns::Turns;
