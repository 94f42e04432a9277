//! All that the store asks of a file system, so that tests can put a failing or crashing one in its place.
//!
//! Must not know: what is in the files.

use std::fs::{File, OpenOptions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt as _, FileExt as _, OpenOptionsExt as _};
use std::path::{Path, PathBuf};

use crate::Error;

const LOCK: &str = "lock";

/// One flat directory.
pub(crate) trait Disk: Send + Sync + 'static {
    /// For messages.
    fn path(&self, name: &str) -> PathBuf;
    fn list(&self) -> io::Result<Vec<String>>;
    fn read(&self, name: &str) -> io::Result<Box<dyn Read + Send>>;
    /// An empty file, in place of any of that name.
    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>>;
    fn rename(&self, from: &str, to: &str) -> io::Result<()>;
    fn remove(&self, name: &str) -> io::Result<()>;
    /// Makes creations, renames and removals durable.
    fn sync_directory(&self) -> io::Result<()>;
}

pub(crate) trait DiskFile: Send {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()>;
    fn truncate(&mut self, len: u64) -> io::Result<()>;
    /// Makes the content and the length durable.
    fn sync(&mut self) -> io::Result<()>;
}

/// A directory of the operating system, locked against other users of it.
pub(crate) struct Directory {
    path: PathBuf,
    /// Locked as long as it is open; the kernel unlocks it when the process dies.
    _lock: File,
}

impl Directory {
    /// Takes the lock of a directory that is there.
    pub(crate) fn lock_existing(path: &Path) -> Result<Self, Error> {
        match std::fs::metadata(path) {
            Ok(found) if found.is_dir() => Self::lock(path),
            Ok(_) => Err(Error::io("open", path, io::ErrorKind::NotADirectory.into())),
            Err(error) => Err(Error::io("open", path, error)),
        }
    }

    /// Makes the directory if need be and takes its lock.
    pub(crate) fn lock(path: &Path) -> Result<Self, Error> {
        let make = |path: &Path| std::fs::DirBuilder::new().recursive(true).mode(0o700).create(path);
        make(path).map_err(|error| Error::io("create", path, error))?;
        if let Some(parent) = path.canonicalize().ok().as_deref().and_then(Path::parent) {
            // A new directory must survive too; one that cannot be opened was not made by us.
            let _ = File::open(parent).and_then(|parent| parent.sync_all());
        }
        let lock_path = path.join(LOCK);
        let lock = options().create(true).truncate(false).open(&lock_path);
        let lock = lock.map_err(|error| Error::io("open", &lock_path, error))?;
        match lock.try_lock() {
            Ok(()) => Ok(Directory { path: path.to_owned(), _lock: lock }),
            Err(std::fs::TryLockError::WouldBlock) => Err(Error::Locked { path: path.to_owned() }),
            Err(std::fs::TryLockError::Error(error)) => Err(Error::io("lock", &lock_path, error)),
        }
    }
}

/// The store holds secrets: nobody but the owner may read its files.
fn options() -> OpenOptions {
    let mut options = OpenOptions::new();
    options.read(true).write(true).mode(0o600);
    options
}

impl Disk for Directory {
    fn path(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    fn list(&self) -> io::Result<Vec<String>> {
        let mut names = Vec::new();
        for entry in std::fs::read_dir(&self.path)? {
            names.extend(entry?.file_name().into_string().ok());
        }
        Ok(names)
    }

    fn read(&self, name: &str) -> io::Result<Box<dyn Read + Send>> {
        Ok(Box::new(File::open(self.path(name))?))
    }

    fn create(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(options().create(true).truncate(true).open(self.path(name))?))
    }

    fn open(&self, name: &str) -> io::Result<Box<dyn DiskFile>> {
        Ok(Box::new(options().open(self.path(name))?))
    }

    fn rename(&self, from: &str, to: &str) -> io::Result<()> {
        std::fs::rename(self.path(from), self.path(to))
    }

    fn remove(&self, name: &str) -> io::Result<()> {
        std::fs::remove_file(self.path(name))
    }

    fn sync_directory(&self) -> io::Result<()> {
        File::open(&self.path)?.sync_all()
    }
}

impl DiskFile for File {
    fn write_at(&mut self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        self.write_all_at(bytes, offset)
    }

    fn truncate(&mut self, len: u64) -> io::Result<()> {
        self.set_len(len)
    }

    fn sync(&mut self) -> io::Result<()> {
        self.sync_data()
    }
}
