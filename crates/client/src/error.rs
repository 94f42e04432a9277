//! Telling API errors apart by what they mean to a caller, never by their text.

use kube::Error;
use kube::core::Status;

/// A failure of this crate's own work (requests report `kube::Error`).
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    #[error("cannot read {path}: {source}")]
    Read { path: String, source: std::io::Error },
    #[error("{what} is not valid PEM: {reason}")]
    Pem { what: &'static str, reason: String },
    #[error("TLS credentials are unusable: {0}")]
    Tls(#[from] rustls::Error),
    #[error("kubeconfig: {0}")]
    Kubeconfig(#[from] kube::config::KubeconfigError),
    #[error("{url} is not a usable server address: {reason}")]
    Url { url: String, reason: String },
    #[error(transparent)]
    Api(#[from] kube::Error),
}

fn status(error: &Error) -> Option<&Status> {
    match error {
        Error::Api(status) => Some(status),
        _ => None,
    }
}

fn has_reason(error: &Error, reason: &str) -> bool {
    status(error).is_some_and(|status| status.reason == reason)
}

pub fn is_not_found(error: &Error) -> bool {
    has_reason(error, "NotFound")
}

pub fn is_already_exists(error: &Error) -> bool {
    has_reason(error, "AlreadyExists")
}

/// A resourceVersion or UID precondition did not hold, or the object changed underneath.
pub fn is_conflict(error: &Error) -> bool {
    has_reason(error, "Conflict")
}

pub fn is_invalid(error: &Error) -> bool {
    has_reason(error, "Invalid")
}

pub fn is_forbidden(error: &Error) -> bool {
    has_reason(error, "Forbidden")
}

/// The server knows no such verb for the resource.
pub fn is_method_not_allowed(error: &Error) -> bool {
    has_reason(error, "MethodNotAllowed")
}

/// The namespace is being deleted, so nothing can be created in it: the status carries upstream's `NamespaceTerminating` cause.
pub fn is_namespace_terminating(error: &Error) -> bool {
    status(error)
        .and_then(|status| status.details.as_ref())
        .is_some_and(|details| details.causes.iter().any(|cause| cause.reason == "NamespaceTerminating"))
}

/// The seconds after which the server asks to be tried again (`details.retryAfterSeconds`), if it does.
pub fn retry_after_seconds(error: &Error) -> Option<u32> {
    status(error)?.details.as_ref().map(|details| details.retry_after_seconds).filter(|seconds| *seconds > 0)
}

/// `Ok(None)` in place of a not-found error.
pub fn found<T>(result: Result<T, Error>) -> Result<Option<T>, Error> {
    match result {
        Ok(object) => Ok(Some(object)),
        Err(error) if is_not_found(&error) => Ok(None),
        Err(error) => Err(error),
    }
}
