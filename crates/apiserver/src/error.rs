//! The one place where errors of other crates become an API `Status`.

use apimachinery::status::StatusError;

/// A store's failure as the API answers it.
pub fn from_store(error: store::Error) -> StatusError {
    match error {
        store::Error::Compacted { .. } => StatusError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        ),
        other => {
            tracing::error!(error = %other, "store failed");
            StatusError::internal(other)
        }
    }
}
