//! `fsGroup`: the group owns the volume, may read it, and (unless it is read-only) write it; new files inherit the group.

use std::os::unix::fs::{PermissionsExt as _, chown};
use std::path::Path;

use crate::error::{Error, Result};

/// Applies the group to `path` and all below. No group, no change. Links are not followed.
pub fn apply(path: &Path, group: Option<i64>, read_only: bool) -> Result<()> {
    let Some(group) = group.and_then(|group| u32::try_from(group).ok()) else { return Ok(()) };
    let meta = std::fs::symlink_metadata(path).map_err(Error::file("inspect", path))?;
    if meta.is_symlink() {
        return std::os::unix::fs::lchown(path, None, Some(group)).map_err(Error::file("change the group of", path));
    }
    chown(path, None, Some(group)).map_err(Error::file("change the group of", path))?;
    let mut mode = meta.permissions().mode() | if read_only { 0o440 } else { 0o660 };
    if meta.is_dir() {
        mode |= 0o2110;
    }
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode))
        .map_err(Error::file("change the mode of", path))?;
    if meta.is_dir() {
        for entry in std::fs::read_dir(path).map_err(Error::file("read directory", path))?.flatten() {
            apply(&entry.path(), i64::from(group).into(), read_only)?;
        }
    }
    Ok(())
}
