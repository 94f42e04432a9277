//! Writing the log.
//!
//! Invariants:
//! 1. Bytes before `synced` are durable; nothing is ever written there again.
//! 2. `unsynced` is what was acknowledged after `synced`: the file's bytes from `synced` to `len`.
//! 3. After any failed write or sync the segment is given up, since the kernel may have dropped the pages it could not
//!    write and a second sync would lie. The next attempt goes to a new segment, which says where the old one ends and
//!    starts with `unsynced`. So no acknowledged byte depends on a file that has failed.
//! 4. The first write after opening, and at most [`MAX_UNSYNCED`] transactions after a sync, are synced.

use std::hash::{BuildHasher as _, Hasher as _, RandomState};
use std::sync::Arc;

use crate::disk::{Disk, DiskFile};
use crate::record::{FORMAT, HEADER_LEN, Header, Kind, Writer};
use crate::recovery::{Recovered, Tail, checkpoint_name, segment_name};
use crate::{Error, Event, Options, Revision, Value};

/// Relaxed transactions that may be unsynced at once. After a crash the revision is advanced by as many, so that none
/// that somebody may have seen is ever used for something else.
pub(crate) const MAX_UNSYNCED: u64 = 4096;

pub(crate) struct Log {
    disk: Arc<dyn Disk>,
    segment_bytes: u64,
    file: Box<dyn DiskFile>,
    header: Header,
    len: u64,
    synced: u64,
    unsynced: Vec<u8>,
    /// The newest revision that is durable, and the newest written.
    synced_revision: Revision,
    revision: Revision,
    broken: bool,
    /// Nothing has been made durable since opening; the log may still end with the mark of a clean shutdown.
    untouched: bool,
    closed: Vec<(u64, u64)>,
    checkpoint: Option<(u64, u64)>,
    /// Whether there are files of an older format.
    outdated: bool,
}

/// What a transaction writes.
pub(crate) struct Entry<'a, V> {
    pub revision: Revision,
    pub events: &'a [Arc<Event<V>>],
}

impl Log {
    /// Goes on with what [`crate::recovery::recover`] found. Returns the log and the revision to go on from.
    pub(crate) fn open(
        disk: Arc<dyn Disk>,
        recovered: &Recovered,
        options: &Options,
    ) -> Result<(Self, Revision), Error> {
        // What was read may be in the page cache only, names too: nothing may be built on it, or removed for it, before.
        disk.sync_directory().map_err(|error| Error::io("sync", disk.path(""), error))?;
        for name in &recovered.obsolete {
            disk.remove(name).map_err(|error| Error::io("remove", disk.path(name), error))?;
        }
        let revision = recovered.revision;
        let (header, file, len) = match &recovered.tail {
            Some(Tail { header, len }) => (*header, open_tail(&*disk, header.number, *len)?, *len),
            None => {
                let header = new_header(1, 0, revision);
                (header, create(&*disk, Kind::Segment, &header.encode(), 1)?, HEADER_LEN as u64)
            }
        };
        let mut log = Log {
            disk,
            segment_bytes: options.segment_bytes,
            file,
            header,
            len,
            synced: len,
            unsynced: Vec::new(),
            synced_revision: revision,
            revision,
            broken: false,
            untouched: true,
            closed: recovered.closed.clone(),
            checkpoint: recovered.checkpoint,
            outdated: recovered.outdated,
        };
        if log.header.format != FORMAT {
            log.next_segment()?;
        }
        if !recovered.clean {
            let advanced = revision + MAX_UNSYNCED;
            let mut bytes = Vec::new();
            log.writer(&mut bytes).advance(advanced);
            log.write(bytes, advanced, true)?;
        }
        let revision = log.revision;
        Ok((log, revision))
    }

    /// Appends transactions in order; with `sync` they, and all before them, are durable when it returns.
    ///
    /// On an error none of them counts as written; the next call tries again in a new segment.
    pub(crate) fn append<V: Value>(&mut self, transactions: &[Entry<'_, V>], sync: bool) -> Result<(), Error> {
        let Some(last) = transactions.last() else { return Ok(()) };
        self.ready()?;
        let mut bytes = Vec::new();
        let mut writer = self.writer(&mut bytes);
        for transaction in transactions {
            writer.transaction(transaction.revision, transaction.events);
        }
        let unsynced = last.revision - self.synced_revision;
        self.write(bytes, last.revision, sync || self.untouched || unsynced > MAX_UNSYNCED)
    }

    /// Makes everything durable.
    pub(crate) fn sync(&mut self) -> Result<(), Error> {
        if self.unsynced.is_empty() {
            return Ok(());
        }
        if self.broken {
            return self.next_segment();
        }
        self.sync_file()
    }

    pub(crate) fn has_unsynced(&self) -> bool {
        !self.unsynced.is_empty()
    }

    /// Marks a clean shutdown: the next start need not suspect that anything is missing.
    pub(crate) fn finish(&mut self) -> Result<(), Error> {
        if self.untouched {
            return Ok(());
        }
        self.ready()?;
        let mut bytes = Vec::new();
        let revision = self.revision;
        self.writer(&mut bytes).clean(revision);
        self.write(bytes, revision, true)
    }

    /// Closes the segment; returns the number of the next one, from which on a checkpoint made now does not cover.
    pub(crate) fn rotate(&mut self) -> Result<u64, Error> {
        self.next_segment()?;
        Ok(self.header.number)
    }

    /// Whether there are files of an older format, which a checkpoint replaces.
    pub(crate) fn is_outdated(&self) -> bool {
        self.outdated
    }

    /// Size of all files.
    pub(crate) fn total_bytes(&self) -> u64 {
        let closed: u64 = self.closed.iter().map(|(_, len)| len).sum();
        closed + self.len + self.checkpoint.map_or(0, |(_, len)| len)
    }

    /// The files that checkpoint `number` replaces.
    pub(crate) fn replaced_by(&self, number: u64) -> Vec<String> {
        let segments =
            self.closed.iter().filter(|(segment, _)| *segment < number).map(|(segment, _)| segment_name(*segment));
        segments.chain(self.checkpoint.map(|(older, _)| checkpoint_name(older))).collect()
    }

    /// A checkpoint is in place, and what it replaces is gone.
    pub(crate) fn checkpointed(&mut self, number: u64, len: u64) {
        self.closed.retain(|(segment, _)| *segment >= number);
        self.checkpoint = Some((number, len));
        self.outdated = false;
    }

    fn writer<'a>(&self, out: &'a mut Vec<u8>) -> Writer<'a> {
        Writer { out, salt: self.header.salt, synced: self.synced }
    }

    /// A segment that works and has room.
    fn ready(&mut self) -> Result<(), Error> {
        if self.broken || self.len >= self.segment_bytes { self.next_segment() } else { Ok(()) }
    }

    fn write(&mut self, bytes: Vec<u8>, revision: Revision, sync: bool) -> Result<(), Error> {
        let written = self.file.write_at(self.len, &bytes).map_err(|error| ("write to", error));
        let done = written.and_then(|()| if sync { self.file.sync().map_err(|error| ("sync", error)) } else { Ok(()) });
        if let Err((action, error)) = done {
            self.give_up();
            return Err(Error::io(action, self.path(), error));
        }
        self.len += bytes.len() as u64;
        self.revision = revision;
        if sync {
            self.mark_synced();
        } else {
            self.unsynced.extend(bytes);
        }
        Ok(())
    }

    fn sync_file(&mut self) -> Result<(), Error> {
        if let Err(error) = self.file.sync() {
            self.give_up();
            return Err(Error::io("sync", self.path(), error));
        }
        self.mark_synced();
        Ok(())
    }

    fn mark_synced(&mut self) {
        self.synced = self.len;
        self.synced_revision = self.revision;
        self.unsynced.clear();
        self.unsynced.shrink_to(1 << 16);
        self.untouched = false;
    }

    fn give_up(&mut self) {
        self.broken = true;
        // Frees the space of what failed. That it works is not relied upon: see invariant 3.
        let _ = self.file.truncate(self.len);
    }

    /// Invariant 3.
    fn next_segment(&mut self) -> Result<(), Error> {
        if !self.broken && !self.unsynced.is_empty() {
            self.sync_file()?;
        }
        let number = self.header.number + 1;
        let header = new_header(number, self.synced, self.synced_revision);
        let mut bytes = header.encode();
        Writer { out: &mut bytes, salt: header.salt, synced: HEADER_LEN as u64 }.adopt(&self.unsynced);
        let file = create(&*self.disk, Kind::Segment, &bytes, number);
        // A new segment that could not be made safe may exist nevertheless, and then ends the old one.
        self.broken = file.is_err();
        let file = file?;
        self.closed.push((self.header.number, self.synced));
        self.file = file;
        self.header = header;
        self.len = bytes.len() as u64;
        self.mark_synced();
        Ok(())
    }

    fn path(&self) -> std::path::PathBuf {
        self.disk.path(&segment_name(self.header.number))
    }
}

pub(crate) fn new_header(number: u64, previous_len: u64, revision: Revision) -> Header {
    // The keys of the standard library's hash maps are the nearest source of randomness.
    let salt = RandomState::new().build_hasher().finish() as u32;
    Header { format: FORMAT, kind: Kind::Segment, number, previous_len, revision, salt }
}

/// Opens the last segment for more, without what a crash left behind its valid part.
fn open_tail(disk: &dyn Disk, number: u64, len: u64) -> Result<Box<dyn DiskFile>, Error> {
    let name = segment_name(number);
    let failed = |error| Error::io("open", disk.path(&name), error);
    let mut file = disk.open(&name).map_err(failed)?;
    file.truncate(len).map_err(failed)?;
    // What was read may have been in the page cache only.
    file.sync().map_err(failed)?;
    Ok(file)
}

/// Creates a file that, once it has its name, has all of `bytes`, durably.
pub(crate) fn create(disk: &dyn Disk, kind: Kind, bytes: &[u8], number: u64) -> Result<Box<dyn DiskFile>, Error> {
    let name = match kind {
        Kind::Segment => segment_name(number),
        Kind::Checkpoint | Kind::Snapshot => checkpoint_name(number),
    };
    let temporary = format!("{name}.tmp");
    let steps = || {
        let mut file = disk.create(&temporary)?;
        file.write_at(0, bytes)?;
        file.sync()?;
        disk.rename(&temporary, &name)?;
        disk.sync_directory()?;
        Ok(file)
    };
    steps().map_err(|error| {
        let _ = disk.remove(&temporary);
        Error::io("create", disk.path(&name), error)
    })
}
