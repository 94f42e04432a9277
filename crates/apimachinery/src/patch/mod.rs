//! The three patches of a write request: JSON Patch, JSON merge patch and strategic merge patch.
//!
//! Must not know: admission, storage, conflicts. A patch turns one document into another or fails with upstream's answer.

pub mod json;
pub mod merge;
pub mod strategic;

use serde_json::Value;

use crate::status::StatusError;

/// Why a patch could not be applied; [`PatchError::status`] is what the client gets.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum PatchError {
    /// The patch itself is malformed: 400.
    #[error("{0}")]
    Malformed(String),
    /// The patch does not fit the document (a path that is missing): 422.
    #[error("{0}")]
    Unprocessable(String),
    /// A `test` found another value: 422.
    #[error("{0}")]
    TestFailed(String),
    /// Too many operations, or too much copied: 413.
    #[error("{0}")]
    TooLarge(String),
    /// Upstream has no status for it and answers 500.
    #[error("{0}")]
    Other(String),
}

impl PatchError {
    pub fn status(&self) -> StatusError {
        match self {
            Self::Malformed(message) => StatusError::bad_request(message),
            // Upstream's `NewGenericServerResponse` keeps the particulars to itself.
            Self::Unprocessable(_) | Self::TestFailed(_) => {
                StatusError::new(422, "Invalid", "the server rejected our request due to an error in our request")
                    .with_details(crate::status::Details::default())
            }
            Self::TooLarge(message) => StatusError::request_too_large(format!("Request entity too large: {message}")),
            Self::Other(message) => StatusError::new(500, "", message),
        }
    }
}

/// Levels of nesting: 0 for a scalar.
fn depth(value: &Value) -> usize {
    match value {
        Value::Array(items) => 1 + items.iter().map(depth).max().unwrap_or(0),
        Value::Object(map) => 1 + map.values().map(depth).max().unwrap_or(0),
        _ => 0,
    }
}
