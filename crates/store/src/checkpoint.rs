//! Reclaiming space: writes all live entries to one file, which then replaces the segments before it.
//!
//! Runs beside commits and never stops them: it starts with a fresh segment and walks the index page by page, so entries
//! committed meanwhile may be in it or not. Either way they are in the segments that it does not replace, and replaying
//! those over it ends in the same state: every record says what the key is afterwards, not how it changes.

use std::io;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};

use parking_lot::RwLock;

use crate::disk::Disk;
use crate::log::new_header;
use crate::record::{HEADER_LEN, Header, Kind, Writer};
use crate::recovery::checkpoint_name;
use crate::state::State;
use crate::{Error, Revision, Value};

/// Entries per look at the index, to keep the time under the lock short.
const PAGE: usize = 256;
/// Written between syncs, so that a commit's sync never waits for much of the checkpoint.
const SYNC_BYTES: u64 = 8 << 20;

pub(crate) struct Checkpoint<V> {
    pub disk: Arc<dyn Disk>,
    pub state: Arc<RwLock<State<V>>>,
    /// First segment not covered.
    pub number: u64,
    /// The revision before that segment.
    pub revision: Revision,
    /// Files to remove when done.
    pub replaces: Vec<String>,
    pub stop: Arc<AtomicBool>,
}

impl<V: Value> Checkpoint<V> {
    /// Returns the length of the file. `sync_log` makes the log durable: the checkpoint may hold relaxed writes, and must
    /// not outlive writes that came before them.
    pub(crate) fn run(self, sync_log: impl FnOnce() -> Result<(), Error>) -> Result<u64, Error> {
        let name = checkpoint_name(self.number);
        let temporary = format!("{name}.tmp");
        let failed = |error| Error::io("write", self.disk.path(&name), error);
        let len = self.write(&temporary).map_err(failed).and_then(|len| sync_log().map(|()| len));
        let placed = len.and_then(|len| {
            self.disk.rename(&temporary, &name).map_err(failed)?;
            self.disk.sync_directory().map_err(failed)?;
            Ok(len)
        });
        if placed.is_err() {
            let _ = self.disk.remove(&temporary);
            return placed;
        }
        for replaced in &self.replaces {
            // What stays is removed at the next start.
            let _ = self.disk.remove(replaced);
        }
        placed
    }

    fn write(&self, temporary: &str) -> io::Result<u64> {
        let mut file = self.disk.create(temporary)?;
        let header = Header { kind: Kind::Checkpoint, ..new_header(self.number, 0, self.revision) };
        let mut buffer = header.encode();
        let (mut len, mut synced, mut count) = (0, 0, 0);
        let mut last: Option<Arc<str>> = None;
        loop {
            if self.stop.load(Ordering::Relaxed) {
                return Err(io::Error::new(io::ErrorKind::Interrupted, "the store is shutting down"));
            }
            let page = self.state.read().page(last.as_deref(), PAGE);
            let mut writer = Writer { out: &mut buffer, salt: header.salt, synced: HEADER_LEN as u64 };
            match page.last() {
                Some(entry) => {
                    writer.entries(self.revision, &page);
                    last = Some(entry.key.clone());
                    count += page.len() as u64;
                }
                None => writer.footer(self.revision, count),
            }
            file.write_at(len, &buffer)?;
            len += buffer.len() as u64;
            buffer.clear();
            if page.is_empty() || len - synced >= SYNC_BYTES {
                file.sync()?;
                synced = len;
            }
            if page.is_empty() {
                return Ok(len);
            }
        }
    }
}
