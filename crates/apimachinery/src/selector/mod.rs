//! Label and field selectors: the text forms of queries, `metav1.LabelSelector`, and matching.
//!
//! Must not know: where labels and fields come from. Matching asks through a closure, so stored buffers need not be parsed.

pub mod field;
pub mod label;

pub use field::FieldSelector;
pub use label::LabelSelector;
