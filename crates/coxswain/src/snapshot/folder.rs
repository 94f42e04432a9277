//! The folder of snapshots: `<name>-<time>.snapshot`, which sorts by time within a name.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context as _, Result, bail};
use jiff::Timestamp;
use store::snapshot::{Summary, verify};

use crate::files;

const SUFFIX: &str = ".snapshot";
/// What the store calls one that it is writing.
const UNFINISHED: &str = ".snapshot.tmp";

pub struct Folder(pub PathBuf);

/// A snapshot that is there, and what is in it or wrong with it.
pub struct Found {
    pub name: String,
    pub file_bytes: u64,
    pub summary: Result<Summary, store::Error>,
}

pub fn time(at: SystemTime) -> Timestamp {
    Timestamp::try_from(at).unwrap_or(Timestamp::UNIX_EPOCH)
}

/// What a name may begin with.
pub fn check_name(name: &str) -> Result<()> {
    let plain = |c: char| c.is_ascii_alphanumeric() || "-_.".contains(c);
    if name.is_empty() || name.len() > 128 || name.starts_with(['.', '-']) || !name.chars().all(plain) {
        bail!("{name:?} cannot name a snapshot: letters, digits, dots, dashes and underlines can");
    }
    Ok(())
}

impl Folder {
    /// A path for a new snapshot. Makes the folder, closed to others.
    pub fn next_path(&self, name: &str) -> Result<PathBuf> {
        check_name(name)?;
        files::private_dir(&self.0)?;
        let now = Timestamp::now().strftime("%Y%m%dT%H%M%SZ");
        // A second one in the same second.
        let again = (2..100).map(|number| format!("{name}-{now}.{number}{SUFFIX}"));
        let free = std::iter::once(format!("{name}-{now}{SUFFIX}")).chain(again).map(|file| self.0.join(file));
        free.into_iter().find(|path| !path.exists()).context("a hundred snapshots in one second")
    }

    /// The snapshot of a name, with or without its suffix.
    pub fn named(&self, name: &str) -> Result<PathBuf> {
        let name = name.strip_suffix(SUFFIX).unwrap_or(name);
        check_name(name)?;
        let path = self.0.join(format!("{name}{SUFFIX}"));
        if !path.is_file() {
            bail!("there is no snapshot {name} in {}", self.0.display());
        }
        Ok(path)
    }

    fn names(&self) -> Result<Vec<String>> {
        let failed = || format!("cannot look into {}", self.0.display());
        let entries = match std::fs::read_dir(&self.0) {
            Ok(entries) => entries,
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Ok(Vec::new()),
            Err(error) => return Err(error).with_context(failed),
        };
        let mut names = Vec::new();
        for entry in entries {
            let name = entry.with_context(failed)?.file_name();
            names.extend(name.to_str().and_then(|name| name.strip_suffix(SUFFIX)).map(str::to_owned));
        }
        names.sort_unstable();
        Ok(names)
    }

    /// All snapshots by name, each read to the end.
    pub fn list(&self) -> Result<Vec<Found>> {
        let found = |name: String| {
            let path = self.path_of(&name);
            let file_bytes = std::fs::metadata(&path).map_or(0, |metadata| metadata.len());
            Found { name, file_bytes, summary: verify(&path) }
        };
        Ok(self.names()?.into_iter().map(found).collect())
    }

    /// Removes all but the newest `keep` snapshots whose name is `name` and a time; returns those removed.
    pub fn prune(&self, name: &str, keep: usize) -> Result<Vec<PathBuf>> {
        let of_name = |found: &String| {
            let rest = found.strip_prefix(name).and_then(|rest| rest.strip_prefix('-'));
            rest.is_some_and(|rest| {
                rest.starts_with(|c: char| c.is_ascii_digit()) && rest.contains('T') && !rest.contains('-')
            })
        };
        let mut names: Vec<_> = self.names()?.into_iter().filter(of_name).collect();
        names.truncate(names.len().saturating_sub(keep));
        let paths: Vec<_> = names.iter().map(|name| self.path_of(name)).collect();
        for path in &paths {
            std::fs::remove_file(path).with_context(|| format!("cannot delete {}", path.display()))?;
        }
        Ok(paths)
    }

    /// Removes what a server left unfinished when it was stopped or killed. For its next start, when nobody writes here.
    pub fn sweep(&self) {
        for entry in std::fs::read_dir(&self.0).into_iter().flatten().flatten() {
            if entry.file_name().to_str().is_some_and(|name| name.ends_with(UNFINISHED)) {
                // What cannot be removed is only in the way of its own space.
                let _ = std::fs::remove_file(entry.path());
            }
        }
    }

    fn path_of(&self, name: &str) -> PathBuf {
        self.0.join(format!("{name}{SUFFIX}"))
    }

    pub fn path(&self) -> &Path {
        &self.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_that_leave_the_folder_or_look_like_flags_are_refused() {
        for bad in ["", "../x", "a/b", ".hidden", "-n", "ä"] {
            assert!(check_name(bad).is_err(), "{bad:?}");
        }
        assert!(check_name("before-upgrade_1.2").is_ok());
    }

    #[test]
    fn pruning_keeps_the_newest_of_the_name_and_all_others() {
        let dir = tempfile::tempdir().unwrap();
        let folder = Folder(dir.path().to_owned());
        let names = [
            "scheduled-20260101T000000Z",
            "scheduled-20260102T000000Z",
            "scheduled-20260103T000000Z",
            "scheduled-by-me-20260101T000000Z",
            "on-demand-20250101T000000Z",
        ];
        for name in names {
            std::fs::write(folder.path_of(name), "").unwrap();
        }
        let pruned = folder.prune("scheduled", 2).unwrap();
        assert_eq!(pruned, [folder.path_of(names[0])]);
        assert!(folder.prune("scheduled", 2).unwrap().is_empty());
        assert_eq!(folder.names().unwrap().len(), 4);
        std::fs::write(dir.path().join("scheduled-20260104T000000Z.snapshot.tmp"), "half").unwrap();
        folder.sweep();
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 4);
        // None of them is a snapshot.
        assert!(folder.list().unwrap().iter().all(|found| found.summary.is_err()));
    }
}
