//! The one place where errors of other crates become an API `Status`.

use apimachinery::status::StatusError;

/// A store's failure as the API answers it.
pub fn from_store(error: store::Error) -> StatusError {
    match error {
        store::Error::Compacted { .. } => StatusError::expired(
            "The provided continue parameter is too old to display a consistent list result. You can start a new list without the continue parameter.",
        ),
        // Closed: the server is about to end.
        store::Error::Unavailable { .. } | store::Error::Closed => StatusError::unavailable(error.to_string()),
        // As upstream where etcd does not answer in time: the client has to look what became of it.
        store::Error::Uncertain { .. } => StatusError::timeout(error.to_string(), 0),
        store::Error::RequestTooLarge { .. } | store::Error::TooLarge { .. } => {
            StatusError::request_too_large(error.to_string())
        }
        other => {
            tracing::error!(error = %other, "store failed");
            StatusError::internal(other)
        }
    }
}
