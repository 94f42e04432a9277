//! Sub-paths of volumes. Their names and the files on the way are in the hands of pods, so no step may leave the volume: links
//! that point outside are refused, not followed.

use std::os::unix::fs::PermissionsExt as _;
use std::path::{Component, Path, PathBuf};

use crate::error::{Error, Result};

/// The existing file or directory at `sub_path` in `volume`.
///
/// # Errors
/// If the path leaves the volume or does not exist.
pub fn resolve(volume: &Path, sub_path: &str) -> Result<PathBuf> {
    let relative = checked(sub_path)?;
    let inside = |path: &Path| std::fs::canonicalize(path).map_err(Error::file("resolve", path));
    let (root, target) = (inside(volume)?, inside(&volume.join(relative))?);
    if !target.starts_with(&root) {
        return Err(Error::Invalid(format!("failed to prepare subPath: \"{sub_path}\" leaves its volume")));
    }
    Ok(target)
}

/// As [`resolve`], but what is missing is made, as directories.
pub fn ensure(volume: &Path, sub_path: &str) -> Result<PathBuf> {
    let relative = checked(sub_path)?;
    let mut made = volume.to_owned();
    for part in relative.components() {
        made.push(part);
        if std::fs::symlink_metadata(&made).is_err() {
            // The way so far must be inside before anything is written below it.
            let parent = made.parent().unwrap_or(volume);
            let (root, parent) = (canonical(volume)?, canonical(parent)?);
            if !parent.starts_with(&root) {
                return Err(Error::Invalid(format!("failed to prepare subPath: \"{sub_path}\" leaves its volume")));
            }
            std::fs::create_dir(&made).map_err(Error::file("create directory", &made))?;
            let like_volume = std::fs::metadata(volume).map_or(0o755, |meta| meta.permissions().mode() & 0o7777);
            std::fs::set_permissions(&made, std::fs::Permissions::from_mode(like_volume))
                .map_err(Error::file("change the mode of", &made))?;
        }
    }
    resolve(volume, sub_path)
}

fn canonical(path: &Path) -> Result<PathBuf> {
    std::fs::canonicalize(path).map_err(Error::file("resolve", path))
}

fn checked(sub_path: &str) -> Result<&Path> {
    let path = Path::new(sub_path);
    let plain = path.components().all(|part| matches!(part, Component::Normal(_) | Component::CurDir));
    if plain {
        Ok(path)
    } else {
        Err(Error::Invalid(format!("subPath \"{sub_path}\" must not contain '..' or be absolute")))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_link_cannot_lead_out_of_the_volume() {
        let root = tempfile::tempdir().unwrap();
        let volume = root.path().join("v");
        std::fs::create_dir(&volume).unwrap();
        std::os::unix::fs::symlink("/etc", volume.join("out")).unwrap();
        std::os::unix::fs::symlink("in", volume.join("link")).unwrap();
        assert!(ensure(&volume, "in/deep").unwrap().ends_with("v/in/deep"));
        assert!(ensure(&volume, "link/deep").unwrap().ends_with("v/in/deep"));
        assert!(ensure(&volume, "out").is_err() && ensure(&volume, "out/x").is_err());
        assert!(ensure(&volume, "../x").is_err() && ensure(&volume, "/etc").is_err());
        assert!(!Path::new("/etc/x").exists());
    }
}
