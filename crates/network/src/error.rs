//! The crate's one error type.

use std::io;
use std::path::Path;

/// What can go wrong between us and the kernel, the disk, the API server or the container runtime.
#[derive(Debug, thiserror::Error)]
pub enum Error {
    /// A system call or a file operation failed.
    #[error("{what}: {source}")]
    Io { what: String, source: io::Error },
    /// The kernel refused a netlink request.
    #[error("{what}: {errno}{}", detail.as_deref().map(|d| format!(" ({d})")).unwrap_or_default())]
    Netlink { what: String, errno: nix::errno::Errno, detail: Option<String> },
    /// The kernel answered with something that is no netlink message.
    #[error("malformed netlink message: {0}")]
    Malformed(&'static str),
    /// The container runtime called us with a bad configuration or environment.
    #[error("{0}")]
    Config(String),
    /// No pod address is left on this node.
    #[error("no address is free in {0}")]
    PoolExhausted(ipnet::IpNet),
    /// What CNI CHECK expected is not there.
    #[error("{0}")]
    CheckFailed(String),
    #[error("API server: {0}")]
    Api(#[from] kube::Error),
}

impl Error {
    /// For `map_err`: names what was being done.
    pub fn io(what: impl Into<String>) -> impl FnOnce(io::Error) -> Error {
        let what = what.into();
        move |source| Error::Io { what, source }
    }

    /// For `map_err`: names what was done to which file.
    pub fn file(verb: &str, path: &Path) -> impl FnOnce(io::Error) -> Error {
        Error::io(format!("{verb} {}", path.display()))
    }

    /// For `map_err` of `nix` calls.
    pub fn os(what: impl Into<String>) -> impl FnOnce(nix::errno::Errno) -> Error {
        let what = what.into();
        move |errno| Error::Io { what, source: errno.into() }
    }

    /// The errno that the kernel answered a netlink request with.
    pub fn errno(&self) -> Option<nix::errno::Errno> {
        match self {
            Error::Netlink { errno, .. } => Some(*errno),
            Error::Io { source, .. } => source.raw_os_error().map(nix::errno::Errno::from_raw),
            _ => None,
        }
    }
}

pub type Result<T, E = Error> = std::result::Result<T, E>;
