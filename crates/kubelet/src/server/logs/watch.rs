//! Being told that a log file has grown, has been closed, or has been replaced (inotify).

use std::ffi::OsString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, RawFd};
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify, WatchDescriptor};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

struct Handle(Inotify);

impl AsRawFd for Handle {
    fn as_raw_fd(&self) -> RawFd {
        self.0.as_fd().as_raw_fd()
    }
}

/// What has happened to a log since the last look.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Changes {
    pub written: bool,
    /// A writer has closed the file: the container has ended, or the log was rotated.
    pub closed: bool,
    /// Another file has taken the log's name: the log was rotated.
    pub replaced: bool,
    /// The log's directory is gone.
    pub gone: bool,
}

/// Watches the file that a log's path leads to, and the path itself.
pub struct Watch {
    fd: AsyncFd<Handle>,
    path: PathBuf,
    name: OsString,
    directory: WatchDescriptor,
    file: WatchDescriptor,
}

impl Watch {
    pub fn new(path: &Path) -> io::Result<Self> {
        let name = path.file_name().ok_or(io::ErrorKind::InvalidInput)?.to_owned();
        let parent = path.parent().ok_or(io::ErrorKind::InvalidInput)?;
        let inotify = Inotify::init(InitFlags::IN_NONBLOCK | InitFlags::IN_CLOEXEC)?;
        let of_names = AddWatchFlags::IN_CREATE | AddWatchFlags::IN_MOVED_TO | AddWatchFlags::IN_DELETE_SELF;
        let directory = inotify.add_watch(parent, of_names)?;
        let file = watch_file(&inotify, path)?;
        // SAFETY: the handle owns its descriptor, always gives out the same, and closes it only when it is dropped.
        let fd = unsafe { AsyncFd::register_with_interest(Handle(inotify), Interest::READABLE) }?;
        Ok(Watch { fd, path: path.to_owned(), name, directory, file })
    }

    /// Turns to the file that has the log's name now.
    pub fn turn_to_new_file(&mut self) -> io::Result<()> {
        // Fails where the old file is gone, and its watch with it.
        let _ = self.fd.get_ref().0.rm_watch(self.file);
        self.file = watch_file(&self.fd.get_ref().0, &self.path)?;
        Ok(())
    }

    /// Waits for the next changes. Cancel safe.
    pub async fn changed(&mut self) -> io::Result<Changes> {
        loop {
            let mut guard = self.fd.readable().await?;
            let events = match guard.get_inner().0.read_events() {
                Ok(events) => events,
                Err(Errno::EAGAIN) => {
                    guard.clear_ready();
                    continue;
                }
                Err(errno) => return Err(errno.into()),
            };
            let mut changes = Changes::default();
            for event in events {
                if event.mask.contains(AddWatchFlags::IN_Q_OVERFLOW) {
                    // Anything may have happened: look at everything.
                    return Ok(Changes { written: true, closed: true, replaced: false, gone: false });
                } else if event.wd == self.file {
                    changes.written |= event.mask.contains(AddWatchFlags::IN_MODIFY);
                    changes.closed |= event.mask.contains(AddWatchFlags::IN_CLOSE_WRITE);
                } else if event.wd == self.directory {
                    changes.replaced |= event.name.as_ref() == Some(&self.name);
                    changes.gone |= event.mask.contains(AddWatchFlags::IN_DELETE_SELF);
                }
            }
            if changes != Changes::default() {
                return Ok(changes);
            }
        }
    }
}

fn watch_file(inotify: &Inotify, path: &Path) -> io::Result<WatchDescriptor> {
    Ok(inotify.add_watch(path, AddWatchFlags::IN_MODIFY | AddWatchFlags::IN_CLOSE_WRITE)?)
}
