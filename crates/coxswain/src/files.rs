//! Files that hold secrets: 0600, written whole or not at all.

use std::fs;
use std::io::Write as _;
use std::os::unix::fs::{DirBuilderExt as _, OpenOptionsExt as _, PermissionsExt as _};
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};

/// Makes a folder that only its owner may enter. One that exists already is closed to others.
pub fn private_dir(path: &Path) -> Result<()> {
    make_dir(path)?;
    let metadata = fs::metadata(path).with_context(|| format!("cannot look at {}", path.display()))?;
    if metadata.permissions().mode() & 0o077 == 0 {
        return Ok(());
    }
    let closed = fs::set_permissions(path, fs::Permissions::from_mode(0o700));
    closed.with_context(|| format!("cannot close {} to others", path.display()))
}

/// Makes a folder, 0700, with those above it; leaves one that exists as it is.
pub fn make_dir(path: &Path) -> Result<()> {
    let made = fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
    made.with_context(|| format!("cannot create the folder {}", path.display()))
}

/// Replaces `path` by `content` in one step that survives a power cut, readable by its owner only.
pub fn write_private(path: &Path, content: &[u8]) -> Result<()> {
    let fail = || format!("cannot write {}", path.display());
    let parent = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
    make_dir(parent)?;
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = Path::new(&temporary);
    // A file or link that somebody else put there must not receive the secret.
    match fs::remove_file(temporary) {
        Err(error) if error.kind() != std::io::ErrorKind::NotFound => return Err(error).with_context(fail),
        _ => {}
    }
    let mut file =
        fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(temporary).with_context(fail)?;
    file.write_all(content).and_then(|()| file.sync_all()).with_context(fail)?;
    fs::rename(temporary, path).with_context(fail)?;
    fs::File::open(parent).and_then(|dir| dir.sync_all()).with_context(fail)
}

/// As [`write_private`], but leaves a file that says the same already alone, with whatever mode it was given.
pub fn write_changed(path: &Path, content: &[u8]) -> Result<()> {
    match fs::read(path) {
        Ok(found) if found == content => Ok(()),
        _ => write_private(path, content),
    }
}

/// The file's content, or none if there is no such file.
pub fn read_optional(path: &Path) -> Result<Option<String>> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error).with_context(|| format!("cannot read {}", path.display())),
    }
}

/// One process per data folder.
pub fn lock(data_dir: &Path) -> Result<Flock<fs::File>> {
    let path = data_dir.join("lock");
    let mut file = fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    let deadline = Instant::now() + UNLOCKED_WITHIN;
    loop {
        match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
            Ok(lock) => return Ok(lock),
            Err((again, nix::errno::Errno::EWOULDBLOCK)) if Instant::now() < deadline => file = again,
            Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
                bail!("another coxswain is running on {}", data_dir.display())
            }
            Err((_, errno)) => return Err(errno).with_context(|| format!("cannot lock {}", path.display())),
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// A process that was killed holds its files until the last of its threads has ended.
const UNLOCKED_WITHIN: Duration = Duration::from_secs(1);

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn private_whatever_was_there_and_untouched_if_the_same() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("a/secret");
        let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
        write_changed(&path, b"1").unwrap();
        assert_eq!((mode(&path), mode(path.parent().unwrap())), (0o600, 0o700));
        fs::set_permissions(&path, fs::Permissions::from_mode(0o640)).unwrap();
        write_changed(&path, b"1").unwrap();
        assert_eq!(mode(&path), 0o640);
        write_changed(&path, b"2").unwrap();
        assert_eq!((mode(&path), fs::read(&path).unwrap()), (0o600, b"2".to_vec()));
        fs::set_permissions(dir.path(), fs::Permissions::from_mode(0o755)).unwrap();
        private_dir(dir.path()).unwrap();
        assert_eq!(mode(dir.path()), 0o700);
    }
}
