//! What can go wrong between us and a runtime.

use std::path::PathBuf;
use std::time::Duration;

pub use tonic::Code;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// The runtime answered with an error. The text is upstream's form, since users see it in events.
    #[error("rpc error: code = {code:?} desc = {message}")]
    Call { method: &'static str, code: Code, message: String },
    /// The runtime did not answer in time; whether the call had an effect is unknown.
    #[error("rpc error: code = DeadlineExceeded desc = {method} did not answer within {after:?}")]
    Deadline { method: &'static str, after: Duration },
    /// The answer lacks a field that the interface promises.
    #[error("{method}: the runtime's answer has no {field}")]
    Incomplete { method: &'static str, field: &'static str },
    #[error("runtime endpoint {0:?} is not a unix socket address")]
    Endpoint(String),
    #[error("{what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    #[error("containerd: {0}")]
    Supervisor(String),
}

impl Error {
    /// The object named in the call does not exist (any more).
    pub fn is_not_found(&self) -> bool {
        matches!(self, Error::Call { code: Code::NotFound, .. })
    }

    pub fn is_already_exists(&self) -> bool {
        matches!(self, Error::Call { code: Code::AlreadyExists, .. })
    }

    /// The runtime does not offer this method.
    pub fn is_unimplemented(&self) -> bool {
        matches!(self, Error::Call { code: Code::Unimplemented, .. })
    }

    /// The runtime could not be reached or gave no answer; a later try may succeed.
    pub fn is_unavailable(&self) -> bool {
        matches!(self, Error::Call { code: Code::Unavailable | Code::DeadlineExceeded, .. } | Error::Deadline { .. })
    }

    /// The message alone, without the code, as upstream puts it in statuses.
    pub fn message(&self) -> String {
        match self {
            Error::Call { message, .. } => message.clone(),
            other => other.to_string(),
        }
    }
}
