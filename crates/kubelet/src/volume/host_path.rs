//! `hostPath`: a path of the node, checked or made according to its type.

use std::os::unix::fs::{FileTypeExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::{Path, PathBuf};

use crate::error::{Error, Result};

/// # Errors
/// If the path is not of the type that the volume asks for.
pub fn check(path: &str, kind: &str) -> Result<PathBuf> {
    let target = PathBuf::from(path);
    let meta = std::fs::metadata(&target);
    let kind_of = |test: fn(&std::fs::Metadata) -> bool| meta.as_ref().is_ok_and(test);
    let wrong = |what: &str| Err(Error::Invalid(format!("hostPath type check failed: {path} is not {what}")));
    match kind {
        // The runtime makes a missing directory, as upstream's does.
        "" => ensure_parent_usable(&target),
        "DirectoryOrCreate" if meta.is_err() => make_directory(&target),
        "FileOrCreate" if meta.is_err() => make_file(&target),
        "Directory" | "DirectoryOrCreate" if !kind_of(std::fs::Metadata::is_dir) => wrong("a directory"),
        "File" | "FileOrCreate" if !kind_of(std::fs::Metadata::is_file) => wrong("a file"),
        "Socket" if !kind_of(|meta| meta.file_type().is_socket()) => wrong("a socket"),
        "CharDevice" if !kind_of(|meta| meta.file_type().is_char_device()) => wrong("a character device"),
        "BlockDevice" if !kind_of(|meta| meta.file_type().is_block_device()) => wrong("a block device"),
        "Directory" | "DirectoryOrCreate" | "File" | "FileOrCreate" | "Socket" | "CharDevice" | "BlockDevice" => Ok(()),
        other => Err(Error::Invalid(format!("unknown hostPath type \"{other}\""))),
    }?;
    Ok(target)
}

fn ensure_parent_usable(target: &Path) -> Result<()> {
    if target.exists() {
        return Ok(());
    }
    std::fs::create_dir_all(target).map_err(Error::file("create directory", target))
}

fn make_directory(target: &Path) -> Result<()> {
    std::fs::create_dir_all(target).map_err(Error::file("create directory", target))?;
    std::fs::set_permissions(target, std::fs::Permissions::from_mode(0o755))
        .map_err(Error::file("change the mode of", target))
}

/// The directory must be there already: only the file is made.
fn make_file(target: &Path) -> Result<()> {
    let opened = std::fs::OpenOptions::new().create(true).append(true).mode(0o644).open(target);
    opened.map(drop).map_err(Error::file("create", target))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn types() {
        let root = tempfile::tempdir().unwrap();
        let path = |name: &str| root.path().join(name).to_string_lossy().into_owned();
        let ok = |name: &str, kind: &str| check(&path(name), kind).is_ok();
        assert!(!ok("d", "Directory") && ok("d", "DirectoryOrCreate") && ok("d", "Directory") && !ok("d", "File"));
        assert!(!ok("f", "File") && ok("f", "FileOrCreate") && ok("f", "File") && !ok("f", "DirectoryOrCreate"));
        assert!(!ok("missing/f", "FileOrCreate") && ok("any", "") && !ok("f", "Nonsense"));
        assert!(check("/dev/null", "CharDevice").is_ok() && check("/dev/null", "Socket").is_err());
    }
}
