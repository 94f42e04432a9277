//! The file that `--audit-log-path` names: appended to, and put aside when it is too large, as upstream's rotating writer
//! (lumberjack) does, under the same names.
//!
//! Knows nothing of events.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::{DirBuilderExt as _, MetadataExt as _, OpenOptionsExt as _, fchown};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::{Timestamp, tz::TimeZone};
use parking_lot::Mutex;

/// Only the server's own user reads what everybody does.
const FILE_MODE: u32 = 0o600;
const FOLDER_MODE: u32 = 0o700;
/// The time in a backup's name, UTC.
const STAMP: &str = "%Y-%m-%dT%H-%M-%S.%3f";
const MEGABYTE: u64 = 1024 * 1024;

/// What becomes of old files; 0 is no bound.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rotation {
    /// Size of the file in megabytes; 0: it grows without end.
    pub max_megabytes: u64,
    pub max_age_days: u64,
    pub max_backups: usize,
    /// Old files are compressed.
    pub compress: bool,
}

pub enum Output {
    Stdout,
    File(Mutex<Appender>),
}

pub struct Appender {
    path: PathBuf,
    rotation: Rotation,
    limit: Option<u64>,
    file: File,
    size: u64,
    /// Whoever tidies up holds it, so that two never do at once.
    tidying: Arc<Mutex<()>>,
}

impl Output {
    /// `-` is standard output. The folder is made, and so is the file, if need be.
    pub fn open(path: &str, rotation: Rotation) -> io::Result<Self> {
        if path == "-" {
            return Ok(Output::Stdout);
        }
        let path = PathBuf::from(path);
        let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty());
        if let Some(folder) = folder {
            fs::DirBuilder::new().recursive(true).mode(FOLDER_MODE).create(folder)?;
        }
        let limit = rotation.max_megabytes.checked_mul(MEGABYTE).filter(|limit| *limit > 0);
        Ok(Output::File(Mutex::new(Appender::open(path, rotation, limit)?)))
    }

    /// Appends one line in one write, so that no two are mixed. Synchronous: it ends in the page cache.
    pub fn write(&self, line: &str) -> io::Result<()> {
        match self {
            Output::Stdout => io::stdout().lock().write_all(line.as_bytes()),
            Output::File(appender) => appender.lock().write(line),
        }
    }
}

fn append_to(path: &Path) -> io::Result<File> {
    OpenOptions::new().create(true).append(true).mode(FILE_MODE).open(path)
}

impl Appender {
    fn open(path: PathBuf, rotation: Rotation, limit: Option<u64>) -> io::Result<Self> {
        let file = append_to(&path)?;
        let size = file.metadata()?.len();
        Ok(Appender { path, rotation, limit, file, size, tidying: Arc::default() })
    }

    fn write(&mut self, line: &str) -> io::Result<()> {
        let length = line.len() as u64;
        if let Some(limit) = self.limit {
            if length > limit {
                return Err(io::Error::other(format!("write length {length} exceeds maximum file size {limit}")));
            }
            if self.size + length > limit {
                self.rotate(Timestamp::now())?;
            }
        }
        self.file.write_all(line.as_bytes())?;
        self.size += length;
        Ok(())
    }

    /// Puts the file aside under the name of the moment and begins a new one, of the same owner and mode.
    fn rotate(&mut self, now: Timestamp) -> io::Result<()> {
        let old = self.file.metadata()?;
        match fs::rename(&self.path, backup_path(&self.path, now)) {
            // Somebody else has put it aside.
            Err(error) if error.kind() == io::ErrorKind::NotFound => {}
            renamed => renamed?,
        }
        let mode = old.mode() & 0o7777;
        let file = OpenOptions::new().create(true).append(true).mode(mode).open(&self.path)?;
        // Only root may give a file away, and everybody else has made the old one too.
        let _ = fchown(&file, Some(old.uid()), Some(old.gid()));
        (self.file, self.size) = (file, 0);
        self.tidy(now);
        Ok(())
    }

    /// In a thread of its own, since compressing takes its time.
    fn tidy(&self, now: Timestamp) {
        let (path, rotation, tidying) = (self.path.clone(), self.rotation.clone(), self.tidying.clone());
        std::thread::spawn(move || {
            let _turn = tidying.lock();
            if let Err(error) = tidy(&path, &rotation, now) {
                tracing::warn!(%error, path = %path.display(), "old audit logs cannot be tidied up");
            }
        });
    }
}

/// `audit.log` becomes `audit-2023-11-14T22-13-20.001.log`.
fn backup_path(path: &Path, now: Timestamp) -> PathBuf {
    let (prefix, extension) = name_parts(path);
    let stamp = now.to_zoned(TimeZone::UTC).strftime(STAMP).to_string();
    path.with_file_name(format!("{prefix}{stamp}{extension}"))
}

/// What stands before and after the time in the names of backups.
fn name_parts(path: &Path) -> (String, String) {
    let name = path.file_name().unwrap_or_default().to_string_lossy();
    let end = name.rfind('.').unwrap_or(name.len());
    (format!("{}-", &name[..end]), name[end..].to_owned())
}

/// One file that was put aside, compressed or not.
#[derive(Debug, PartialEq, Eq)]
struct Backup {
    made: Timestamp,
    path: PathBuf,
    compressed: bool,
}

/// Newest first. Files with other names are none of ours.
fn backups(path: &Path) -> io::Result<Vec<Backup>> {
    let (prefix, extension) = name_parts(path);
    let folder = path.parent().filter(|folder| !folder.as_os_str().is_empty()).unwrap_or(Path::new("."));
    let mut found = Vec::new();
    for entry in fs::read_dir(folder)? {
        let entry = entry?;
        let name = entry.file_name().to_string_lossy().into_owned();
        let bare = name.strip_suffix(".gz").unwrap_or(&name);
        let stamp = bare.strip_prefix(&prefix).and_then(|rest| rest.strip_suffix(&extension));
        let made = stamp.and_then(|stamp| jiff::civil::DateTime::strptime(STAMP, stamp).ok());
        if let Some(made) = made.and_then(|made| made.to_zoned(TimeZone::UTC).ok()) {
            found.push(Backup { made: made.timestamp(), path: entry.path(), compressed: bare.len() < name.len() });
        }
    }
    found.sort_by_key(|backup| std::cmp::Reverse(backup.made));
    Ok(found)
}

/// Removes what is too many or too old, and compresses what is left.
fn tidy(path: &Path, rotation: &Rotation, now: Timestamp) -> io::Result<()> {
    let mut kept: Vec<Timestamp> = Vec::new();
    for backup in backups(path)? {
        // One that was being compressed when the server ended is there twice, and counts once.
        if !kept.contains(&backup.made) {
            kept.push(backup.made);
        }
        let too_many = rotation.max_backups > 0 && kept.len() > rotation.max_backups;
        let age = now.duration_since(backup.made).as_secs();
        let max_age = i64::try_from(rotation.max_age_days.saturating_mul(24 * 60 * 60)).unwrap_or(i64::MAX);
        let too_old = rotation.max_age_days > 0 && age > max_age;
        if too_many || too_old {
            fs::remove_file(&backup.path)?;
        } else if rotation.compress && !backup.compressed {
            compress(&backup.path)?;
        }
    }
    Ok(())
}

/// Leaves `<path>.gz` in place of the file, with its mode.
fn compress(path: &Path) -> io::Result<()> {
    let mut name = path.as_os_str().to_owned();
    name.push(".gz");
    let target = PathBuf::from(name);
    let written = || {
        let mut from = File::open(path)?;
        let mode = from.metadata()?.mode() & 0o7777;
        let to = OpenOptions::new().create(true).write(true).truncate(true).mode(mode).open(&target)?;
        let mut to = flate2::write::GzEncoder::new(to, flate2::Compression::default());
        io::copy(&mut from, &mut to)?;
        to.finish()?.sync_all()
    };
    if let Err(error) = written() {
        let _ = fs::remove_file(&target);
        return Err(error);
    }
    fs::remove_file(path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Read as _;
    use std::os::unix::fs::PermissionsExt as _;

    struct Folder(PathBuf);

    impl Folder {
        fn new(name: &str) -> Self {
            let path = std::env::temp_dir().join(format!("coxswain-audit-{name}-{}", std::process::id()));
            let _ = fs::remove_dir_all(&path);
            Folder(path)
        }

        fn names(&self) -> Vec<String> {
            let mut names: Vec<String> =
                fs::read_dir(&self.0).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
            names.sort();
            names
        }
    }

    impl Drop for Folder {
        fn drop(&mut self) {
            let _ = fs::remove_dir_all(&self.0);
        }
    }

    fn rotation(max_backups: usize, max_age_days: u64, compress: bool) -> Rotation {
        Rotation { max_megabytes: 1, max_age_days, max_backups, compress }
    }

    fn at(second: i64) -> Timestamp {
        Timestamp::from_second(1_700_000_000 + second).unwrap()
    }

    #[test]
    fn a_file_is_put_aside_when_a_line_would_make_it_too_large() {
        let folder = Folder::new("rotate");
        let path = folder.0.join("deep/audit.log");
        let mut appender = match Output::open(path.to_str().unwrap(), rotation(0, 0, false)).unwrap() {
            Output::File(appender) => appender.into_inner(),
            Output::Stdout => unreachable!(),
        };
        assert_eq!(fs::metadata(&path).unwrap().permissions().mode() & 0o777, 0o600);
        assert_eq!(fs::metadata(path.parent().unwrap()).unwrap().permissions().mode() & 0o777, 0o700);
        appender.limit = Some(10);
        appender.write("12345\n").unwrap();
        appender.write("123\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "12345\n123\n");
        appender.write("new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "new\n");
        let found = backups(&path).unwrap();
        assert_eq!(found.len(), 1);
        assert_eq!(fs::read_to_string(&found[0].path).unwrap(), "12345\n123\n");
        fs::remove_file(&path).unwrap();
        appender.write("1234567\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "1234567\n");
        assert_eq!(backups(&path).unwrap().len(), 1);
        let why = appender.write("12345678901\n").unwrap_err();
        assert_eq!(why.to_string(), "write length 12 exceeds maximum file size 10");
    }

    #[test]
    fn a_file_that_is_there_is_continued() {
        let folder = Folder::new("continue");
        fs::create_dir_all(&folder.0).unwrap();
        let path = folder.0.join("audit.log");
        fs::write(&path, "old\n").unwrap();
        let output = Output::open(path.to_str().unwrap(), rotation(0, 0, false)).unwrap();
        output.write("new\n").unwrap();
        assert_eq!(fs::read_to_string(&path).unwrap(), "old\nnew\n");
    }

    #[test]
    fn backups_are_named_and_bounded_as_lumberjacks() {
        let folder = Folder::new("bound");
        fs::create_dir_all(&folder.0).unwrap();
        let path = folder.0.join("audit.log");
        let name = backup_path(&path, Timestamp::from_millisecond(1_700_000_000_001).unwrap());
        assert_eq!(name.file_name().unwrap(), "audit-2023-11-14T22-13-20.001.log");
        for second in 0..4 {
            fs::write(backup_path(&path, at(second)), "x").unwrap();
        }
        fs::write(folder.0.join("audit-of-somebody.log"), "x").unwrap();
        tidy(&path, &rotation(2, 0, false), at(10)).unwrap();
        let kept = ["audit-2023-11-14T22-13-22.000.log", "audit-2023-11-14T22-13-23.000.log", "audit-of-somebody.log"];
        assert_eq!(folder.names(), kept);
        tidy(&path, &rotation(0, 1, false), at(24 * 60 * 60 + 3)).unwrap();
        assert_eq!(folder.names(), kept[1..]);
    }

    #[test]
    fn backups_are_compressed() {
        let folder = Folder::new("compress");
        fs::create_dir_all(&folder.0).unwrap();
        let path = folder.0.join("audit.log");
        fs::write(backup_path(&path, at(0)), "what was said\n").unwrap();
        tidy(&path, &rotation(1, 1, true), at(1)).unwrap();
        assert_eq!(folder.names(), ["audit-2023-11-14T22-13-20.000.log.gz"]);
        let mut text = String::new();
        let file = File::open(folder.0.join("audit-2023-11-14T22-13-20.000.log.gz")).unwrap();
        flate2::read::GzDecoder::new(file).read_to_string(&mut text).unwrap();
        assert_eq!(text, "what was said\n");
        tidy(&path, &rotation(1, 1, true), at(2)).unwrap();
        assert_eq!(folder.names().len(), 1);
    }
}
