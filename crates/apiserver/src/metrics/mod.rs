//! What is counted and measured, and Prometheus' text of it, under upstream's names.
//!
//! Bounded: labels come from what is served and configured, never from what clients send.

mod histogram;
mod requests;
mod text;

pub use histogram::Histogram;
pub use requests::Metrics;
pub use text::Text;
