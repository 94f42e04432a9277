//! What the tests against a real containerd stand on.

pub mod api;
pub mod machine;
