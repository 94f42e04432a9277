//! The node's containers as the runtime tells them, in our terms.
//!
//! Must not know: what ought to run. That is `pod::plan`'s.

pub mod events;
pub mod labels;
pub mod observed;

pub use observed::{ContainerView, Observed};
