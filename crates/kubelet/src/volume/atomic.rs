//! Directories whose files all change in one moment: a hidden directory holds the contents, `..data` points at it, and the
//! visible names point through `..data`. Upstream's atomic writer, whose layout users rely on.

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Component, Path};

use super::ownership;
use super::payload::{File, Payload};
use crate::error::{Error, Result};

const DATA: &str = "..data";
const DATA_NEW: &str = "..data_tmp";

/// Makes `dir` show exactly `payload`. Writes nothing if it does already.
pub fn write(dir: &Path, payload: &Payload, fs_group: Option<i64>) -> Result<()> {
    for path in payload.keys() {
        validate(path)?;
    }
    // What the group's ownership will add to the modes, so that the comparison below sees what a write would make.
    let mut payload = payload.clone();
    if fs_group.is_some() {
        payload.values_mut().for_each(|file| file.mode |= 0o440);
    }
    let payload = &payload;
    fs::create_dir_all(dir).map_err(Error::file("create directory", dir))?;
    let old = fs::read_link(dir.join(DATA)).ok();
    if old.as_ref().is_some_and(|old| current(&dir.join(old)).as_ref() == Some(payload)) {
        return Ok(());
    }
    let name = format!("..{}.{:010}", jiff::Timestamp::now().strftime("%Y_%m_%d_%H_%M_%S"), rand::random::<u32>());
    let fresh = dir.join(&name);
    for (path, file) in payload {
        write_file(&fresh.join(path), file)?;
    }
    fs::create_dir_all(&fresh).map_err(Error::file("create directory", &fresh))?;
    set_mode(&fresh, 0o755)?;
    ownership::apply(&fresh, fs_group, true)?;
    for (path, file) in payload {
        if let Some(user) = file.user {
            own_file(&fresh.join(path), user)?;
        }
    }
    let new_link = dir.join(DATA_NEW);
    let _ = fs::remove_file(&new_link);
    symlink(&name, &new_link).map_err(Error::file("link", &new_link))?;
    fs::rename(&new_link, dir.join(DATA)).map_err(Error::file("switch", dir))?;
    show(dir, payload)?;
    if let Some(old) = old {
        let _ = fs::remove_dir_all(dir.join(old));
    }
    Ok(())
}

/// Paths come from users: they must stay below the volume and not touch the writer's own names.
fn validate(path: &str) -> Result<()> {
    let relative = Path::new(path);
    let plain = relative.components().all(|part| matches!(part, Component::Normal(_)));
    if path.is_empty() || !plain || path.starts_with("..") {
        return Err(Error::Invalid(format!("invalid path: must be relative and not contain '..': {path}")));
    }
    Ok(())
}

fn write_file(path: &Path, file: &File) -> Result<()> {
    if let Some(parent) = path.parent() {
        fs::create_dir_all(parent).map_err(Error::file("create directory", parent))?;
    }
    fs::write(path, &file.data).map_err(Error::file("write", path))?;
    set_mode(path, file.mode)
}

fn set_mode(path: &Path, mode: u32) -> Result<()> {
    fs::set_permissions(path, fs::Permissions::from_mode(mode)).map_err(Error::file("change the mode of", path))
}

fn own_file(path: &Path, user: u32) -> Result<()> {
    std::os::unix::fs::chown(path, Some(user), None).map_err(Error::file("change the owner of", path))
}

/// What the data directory holds now, modes and owners included; none if it cannot be read whole.
fn current(data: &Path) -> Option<Payload> {
    let mut found = BTreeMap::new();
    collect(data, data, &mut found)?;
    Some(found)
}

fn collect(root: &Path, dir: &Path, found: &mut Payload) -> Option<()> {
    use std::os::unix::fs::MetadataExt as _;
    for entry in fs::read_dir(dir).ok()? {
        let path = entry.ok()?.path();
        let meta = fs::symlink_metadata(&path).ok()?;
        if meta.is_dir() {
            collect(root, &path, found)?;
        } else {
            let name = path.strip_prefix(root).ok()?.to_str()?.to_owned();
            let user = (meta.uid() != 0).then_some(meta.uid());
            found.insert(name, File { data: fs::read(&path).ok()?, mode: meta.mode() & 0o7777, user });
        }
    }
    Some(())
}

/// Links the visible names and removes those that are no more.
fn show(dir: &Path, payload: &Payload) -> Result<()> {
    let first = |path: &str| path.split('/').next().unwrap_or_default().to_owned();
    let wanted: BTreeSet<String> = payload.keys().map(|path| first(path)).collect();
    for name in &wanted {
        let link = dir.join(name);
        if fs::symlink_metadata(&link).is_err() {
            symlink(Path::new(DATA).join(name), &link).map_err(Error::file("link", &link))?;
        }
    }
    for entry in fs::read_dir(dir).map_err(Error::file("read directory", dir))?.flatten() {
        let name = entry.file_name().to_string_lossy().into_owned();
        if !name.starts_with("..") && !wanted.contains(&name) {
            let _ = fs::remove_file(entry.path());
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn payload(files: &[(&str, &str)]) -> Payload {
        let file = |data: &str| File { data: data.as_bytes().to_vec(), mode: 0o644, user: None };
        files.iter().map(|(path, data)| ((*path).to_owned(), file(data))).collect()
    }

    fn listing(dir: &Path) -> String {
        let mut names: Vec<String> = fs::read_dir(dir)
            .unwrap()
            .map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned())
            .filter(|name| !name.starts_with("..2"))
            .collect();
        names.sort();
        names.join(" ")
    }

    #[test]
    fn contents_change_as_one_and_stale_names_go() {
        let root = tempfile::tempdir().unwrap();
        let dir = root.path().join("v");
        write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(listing(&dir), "..data a sub");
        assert_eq!(fs::read_to_string(dir.join("sub/b")).unwrap(), "2");
        let first = fs::read_link(dir.join(DATA)).unwrap();
        write(&dir, &payload(&[("a", "1"), ("sub/b", "2")]), None).unwrap();
        assert_eq!(fs::read_link(dir.join(DATA)).unwrap(), first, "nothing changed, nothing written");
        write(&dir, &payload(&[("a", "3"), ("c", "4")]), None).unwrap();
        assert_eq!(listing(&dir), "..data a c");
        assert_eq!(fs::read_to_string(dir.join("a")).unwrap(), "3");
        assert!(!dir.join(first).exists());
        write(&dir, &Payload::new(), None).unwrap();
        assert_eq!(listing(&dir), "..data");
    }

    #[test]
    fn paths_cannot_escape() {
        let root = tempfile::tempdir().unwrap();
        for path in ["../x", "/etc/x", "a/../../x", "", "..data", "./a"] {
            let result = write(root.path(), &payload(&[(path, "x")]), None);
            assert!(result.is_err(), "{path}");
        }
    }
}
