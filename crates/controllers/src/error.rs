//! What can go wrong in a reconcile. Every error is retried with back-off by the queue.

/// A failed reconcile.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error(transparent)]
    Stale(#[from] client::gate::Stale),
    #[error("the selector is invalid: {0}")]
    Selector(#[from] kube::core::ParseExpressionError),
    #[error("{0} is not known to discovery")]
    UnknownResource(String),
    #[error("waiting for {0}")]
    Waiting(&'static str),
}

pub type Result<T, E = Error> = std::result::Result<T, E>;

/// An API error as the server worded it, for events and conditions.
pub fn text_of(error: &kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message.clone(),
        other => other.to_string(),
    }
}
