//! `emptyDir`: a directory that lives as long as the pod, on disk or in memory.

use std::os::unix::fs::{MetadataExt as _, PermissionsExt as _};
use std::path::Path;

use apimachinery::quantity::Quantity;
use k8s_openapi::api::core::v1::EmptyDirVolumeSource;
use nix::mount::{MsFlags, mount};

use crate::error::{Error, Result};

/// Any user of the pod may write (upstream's mode).
const MODE: u32 = 0o777;

/// Makes the volume if it is not there; true if it is a mount.
pub fn set_up(path: &Path, source: &EmptyDirVolumeSource, node_memory_bytes: i64) -> Result<bool> {
    let mode = source.mode.and_then(|mode| u32::try_from(mode).ok()).unwrap_or(MODE);
    let in_memory = match source.medium.as_deref().unwrap_or_default() {
        "" => false,
        "Memory" => true,
        other => return Err(Error::Unsupported(format!("unknown storage medium \"{other}\""))),
    };
    let fresh = !path.exists();
    if in_memory {
        let limit = source.size_limit.as_ref().and_then(|limit| Quantity::parse(&limit.0).ok()).map(|q| q.value());
        let limit = limit.filter(|limit| *limit > 0).map(|limit| limit.min(node_memory_bytes));
        ensure_tmpfs(path, limit)?;
    } else {
        std::fs::create_dir_all(path).map_err(Error::file("create directory", path))?;
    }
    if fresh {
        let mode = std::fs::Permissions::from_mode(mode);
        std::fs::set_permissions(path, mode).map_err(Error::file("change the mode of", path))?;
    }
    Ok(in_memory)
}

/// Mounts a tmpfs at `path` unless one is there.
pub fn ensure_tmpfs(path: &Path, size_bytes: Option<i64>) -> Result<()> {
    std::fs::create_dir_all(path).map_err(Error::file("create directory", path))?;
    if is_mount(path) {
        return Ok(());
    }
    let options = size_bytes.map(|size| format!("size={size}"));
    mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::empty(), options.as_deref())
        .map_err(|errno| Error::file("mount tmpfs at", path)(errno.into()))
}

/// Whether a file system of its own is mounted at `path`.
pub fn is_mount(path: &Path) -> bool {
    let device = |path: &Path| std::fs::symlink_metadata(path).map(|meta| meta.dev()).ok();
    match path.parent() {
        Some(parent) => device(path).is_some() && device(path) != device(parent),
        None => true,
    }
}
