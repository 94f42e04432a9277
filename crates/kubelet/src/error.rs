//! What can go wrong on a node. The texts end up in events and statuses, so they read as upstream's.

use std::path::PathBuf;

pub type Result<T, E = Error> = std::result::Result<T, E>;

#[derive(Debug, thiserror::Error)]
pub enum Error {
    #[error(transparent)]
    Runtime(#[from] cri::Error),
    #[error(transparent)]
    Api(#[from] kube::Error),
    #[error("{what} {}: {source}", path.display())]
    File { what: &'static str, path: PathBuf, source: std::io::Error },
    /// A configuration that names something that is not there.
    #[error("{0}")]
    Missing(String),
    /// The pod asks for what cannot be done.
    #[error("{0}")]
    Invalid(String),
    #[error("{0}")]
    Unsupported(String),
    #[error("timed out waiting for {0}")]
    Timeout(String),
    /// The work was given up because the pod ends.
    #[error("context canceled")]
    Cancelled,
}

impl Error {
    pub fn file(what: &'static str, path: impl Into<PathBuf>) -> impl FnOnce(std::io::Error) -> Error {
        let path = path.into();
        move |source| Error::File { what, path, source }
    }
}
