//! Snapshots: all live keys as of one revision in one file that can be checked, and a store made of such a file.
//!
//! A snapshot is taken beside commits. What is live is collected page by page, as shared pointers, so commits wait for one page at
//! most; what was committed meanwhile is put in the place of what was collected before. From then on the snapshot is a matter of
//! memory that nobody else changes, and is written at leisure.
//!
//! ```text
//! snapshot    header (kind 3, number 0, revision: that of the snapshot) · taken · entries … · footer
//! ```
//!
//! Must not know: when snapshots are taken, and what they are called.

use std::collections::BTreeMap;
use std::fs::{File, OpenOptions};
use std::io::{self, Write as _};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};

use parking_lot::RwLock;

use crate::disk::{Directory, Disk as _};
use crate::frames::{Frames, Next};
use crate::log::{self, MAX_UNSYNCED, new_header};
use crate::record::{Body, FORMAT, HEADER_LEN, Header, Kind, Record, Writer};
use crate::recovery::{checkpoint_name, recover};
use crate::state::State;
use crate::store::entries;
use crate::{Change, Entry, Error, Revision, Store, Value, clock};

/// Entries per look at the index and per record.
const PAGE: usize = 256;
/// Written between syncs, so that a commit's sync never waits for much of the snapshot.
const SYNC_BYTES: u64 = 8 << 20;
/// How often the collection may be overtaken by the history's bounds before commits have to wait for it.
const TRIES: usize = 3;
/// Where a restored store's log begins: behind the checkpoint that the snapshot becomes.
const FIRST_SEGMENT: u64 = 2;

/// What a snapshot holds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Summary {
    pub revision: Revision,
    /// Number of keys.
    pub keys: u64,
    /// Keys and values together, in bytes.
    pub bytes: u64,
    /// The file, in bytes.
    pub file_bytes: u64,
    pub taken: SystemTime,
}

/// What [`restore`] did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Restored {
    pub snapshot: Summary,
    /// Where the restored store goes on from: higher than any that a client of the old one has seen.
    pub revision: Revision,
    /// Where the old store is now; none if there was none.
    pub kept: Option<PathBuf>,
}

impl<V: Value> Store<V> {
    /// Writes all live keys to `path`, as of the newest revision. Commits go on meanwhile.
    ///
    /// The file is complete and durable when it gets its name, in place of any that had it, and only its owner may read it.
    pub async fn snapshot(&self, path: &Path) -> Result<Summary, Error> {
        let (state, target) = (self.state().clone(), path.to_owned());
        let work = move || {
            let (revision, entries) = freeze(&state);
            write(&target, revision, &entries)
        };
        // The process is ending when the work cannot be waited for.
        tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)?
    }
}

/// Makes a snapshot of the store in `dir`, which nobody may have open. Changes nothing there.
pub fn save(dir: &Path, path: &Path) -> Result<Summary, Error> {
    let directory = Directory::lock_existing(dir)?;
    let recovered = recover(&directory)?;
    let revision = recovered.revision;
    write(path, revision, &entries::<bytes::Bytes>(recovered.entries, None))
}

/// The state at one revision, without keeping commits waiting.
fn freeze<V>(state: &RwLock<State<V>>) -> (Revision, Vec<Arc<Entry<V>>>) {
    for _ in 0..TRIES {
        let start = state.read().revision();
        let mut entries: Vec<Arc<Entry<V>>> = Vec::new();
        loop {
            let page = state.read().page(entries.last().map(|entry| &*entry.key), PAGE);
            if page.is_empty() {
                break;
            }
            entries.extend(page);
        }
        let changed = state.read().changed_after(start);
        if let Some((revision, events)) = changed {
            return (revision, overlay(entries, &events));
        }
    }
    let state = state.read();
    (state.revision(), state.page(None, usize::MAX))
}

/// `entries` with what `events` did, in key order. An event may be in the entries already.
fn overlay<V>(mut entries: Vec<Arc<Entry<V>>>, events: &[Arc<crate::Event<V>>]) -> Vec<Arc<Entry<V>>> {
    if events.is_empty() {
        return entries;
    }
    let mut newest = BTreeMap::new();
    for event in events {
        let entry = match &event.change {
            Change::Put(entry) => Some(entry.clone()),
            Change::Delete(_) => None,
        };
        newest.insert(event.entry().key.clone(), entry);
    }
    entries.retain(|entry| !newest.contains_key(&entry.key));
    entries.extend(newest.into_values().flatten());
    entries.sort_unstable_by(|a, b| a.key.cmp(&b.key));
    entries
}

fn write<V: Value>(path: &Path, revision: Revision, entries: &[Arc<Entry<V>>]) -> Result<Summary, Error> {
    let mut temporary = path.as_os_str().to_owned();
    temporary.push(".tmp");
    let temporary = PathBuf::from(temporary);
    let written = write_file(&temporary, revision, entries).and_then(|summary| {
        std::fs::rename(&temporary, path)?;
        let folder = path.parent().filter(|parent| !parent.as_os_str().is_empty()).unwrap_or(Path::new("."));
        File::open(folder)?.sync_all()?;
        Ok(summary)
    });
    written.map_err(|error| {
        let _ = std::fs::remove_file(&temporary);
        Error::io("write", path, error)
    })
}

fn write_file<V: Value>(path: &Path, revision: Revision, entries: &[Arc<Entry<V>>]) -> io::Result<Summary> {
    // Whatever has that name was left by a crash, or put there by somebody who must not receive the secrets.
    match std::fs::remove_file(path) {
        Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
        _ => {}
    }
    let mut file = OpenOptions::new().write(true).create_new(true).mode(0o600).open(path)?;
    let header = Header { kind: Kind::Snapshot, ..new_header(0, 0, revision) };
    let taken_ms = clock::system_ms();
    let mut buffer = header.encode();
    let (mut file_bytes, mut synced) = (0, 0);
    let records = 1 + entries.len().div_ceil(PAGE) + 1;
    for at in 0..records {
        let mut writer = Writer { out: &mut buffer, salt: header.salt, synced: HEADER_LEN as u64 };
        match entries.chunks(PAGE).nth(at.wrapping_sub(1)) {
            _ if at == 0 => writer.taken(revision, taken_ms),
            Some(page) => writer.entries(revision, page),
            None => writer.footer(revision, entries.len() as u64),
        }
        file.write_all(&buffer)?;
        file_bytes += buffer.len() as u64;
        buffer.clear();
        if file_bytes - synced >= SYNC_BYTES {
            file.sync_data()?;
            synced = file_bytes;
        }
    }
    file.sync_all()?;
    let bytes = entries.iter().map(|entry| entry.size()).sum();
    Ok(Summary { revision, keys: entries.len() as u64, bytes, file_bytes, taken: moment(taken_ms) })
}

fn moment(ms: u64) -> SystemTime {
    UNIX_EPOCH.checked_add(Duration::from_millis(ms)).unwrap_or(UNIX_EPOCH)
}

/// Reads all of a snapshot and checks it.
///
/// Fails with [`Error::Damaged`] if a byte is not what was written, or some are missing, and with [`Error::NewerFormat`].
pub fn verify(path: &Path) -> Result<Summary, Error> {
    read(path, |_, _| Ok(()))
}

/// Passes the payloads that a checkpoint has, too, to `each`, with the header of the file.
fn read(path: &Path, mut each: impl FnMut(&Header, &[u8]) -> Result<(), Error>) -> Result<Summary, Error> {
    let failed = |error| Error::io("read", path, error);
    let damaged = |offset, reason: String| Error::Damaged { path: path.to_owned(), offset, reason };
    let mut frames = Frames::new(File::open(path).map_err(failed)?);
    let header = Header::decode(frames.header().map_err(failed)?).map_err(|reason| damaged(0, reason))?;
    if header.format > FORMAT {
        return Err(Error::NewerFormat { path: path.to_owned(), found: header.format, newest: FORMAT });
    }
    if header.kind != Kind::Snapshot {
        return Err(damaged(0, "this is no snapshot, but a file of a store".to_owned()));
    }
    frames.set_salt(header.salt);
    let mut summary = Summary { revision: header.revision, keys: 0, bytes: 0, file_bytes: 0, taken: UNIX_EPOCH };
    let (mut last, mut footer) = (String::new(), None);
    loop {
        let at = frames.offset();
        let payload = match frames.next().map_err(failed)? {
            Next::Payload(payload) if footer.is_none() => payload,
            Next::Payload(_) => return Err(damaged(at, "bytes left over after the last record".to_owned())),
            Next::Broken(reason) => return Err(damaged(at, reason.to_owned())),
            Next::End => break,
        };
        match Record::decode(payload, header.format).map_err(|reason| damaged(at, reason))?.body {
            Body::Taken { at_ms } => {
                summary.taken = moment(at_ms);
                continue;
            }
            Body::Entries(rows) => {
                for row in rows {
                    if summary.keys > 0 && *row.key <= *last {
                        return Err(damaged(at, format!("key {:?} is out of order", row.key)));
                    }
                    last.clear();
                    last.push_str(row.key);
                    summary.keys += 1;
                    summary.bytes += (row.key.len() + row.value.len()) as u64;
                }
            }
            Body::Footer { count } => footer = Some(count),
            _ => return Err(damaged(at, "a record that has no place in a snapshot".to_owned())),
        }
        each(&header, payload)?;
    }
    summary.file_bytes = frames.offset();
    if footer != Some(summary.keys) {
        return Err(damaged(summary.file_bytes, "the end of the file is missing".to_owned()));
    }
    Ok(summary)
}

/// Makes the store in `dir` what the snapshot says. Nobody may have it open.
///
/// The old store is kept beside it, under a name that [`Restored::kept`] tells. The new one goes on `margin` revisions after the
/// newest that either knows of, and keeps no history from before: whoever watches has to list again, and no revision that a client
/// has seen comes to mean something else. At every moment there is either the old store under its name or the new one, whole.
pub fn restore(path: &Path, dir: &Path, margin: u64) -> Result<Restored, Error> {
    let snapshot = verify(path)?;
    let mut newest = snapshot.revision;
    let exists = dir.try_exists().map_err(|error| Error::io("look at", dir, error))?;
    // Held until the end: of the old directory, wherever it is by then.
    let old = if exists { Some(Directory::lock(dir)?) } else { None };
    if let Some(old) = &old {
        newest = newest.max(newest_revision(old)? + MAX_UNSYNCED);
    }
    let revision = newest.saturating_add(margin.max(1));
    let staged = beside(dir, "restoring");
    if staged.exists() {
        // From a restore that was interrupted.
        std::fs::remove_dir_all(&staged).map_err(|error| Error::io("remove", &staged, error))?;
    }
    let new = Directory::lock(&staged)?;
    stage(path, &new, revision)?;
    let seconds = clock::system_ms() / 1000;
    let kept = exists.then(|| beside(dir, &format!("before-restore-{seconds}")));
    swap(&staged, dir, kept.as_deref()).map_err(|error| Error::io("replace", dir, error))?;
    Ok(Restored { snapshot, revision, kept })
}

/// The newest revision of a store, as far as it can be known: of one that is damaged, what the beginnings of its files say.
fn newest_revision(directory: &Directory) -> Result<Revision, Error> {
    match recover(directory) {
        Ok(recovered) => return Ok(recovered.revision),
        Err(Error::Damaged { path, offset, reason }) => {
            tracing::warn!(path = %path.display(), offset, reason, "the old store is damaged");
        }
        Err(other) => return Err(other),
    }
    let mut newest = 0;
    for name in directory.list().map_err(|error| Error::io("list", directory.path(""), error))? {
        let header = directory.read(&name).and_then(|reader| Frames::new(reader).header().map(Header::decode));
        if let Ok(Ok(header)) = header {
            newest = newest.max(header.revision);
        }
    }
    Ok(newest)
}

/// Writes a store with the snapshot's keys, whose newest revision is `revision`.
fn stage(snapshot: &Path, directory: &Directory, revision: Revision) -> Result<(), Error> {
    let name = checkpoint_name(FIRST_SEGMENT);
    let failed = |error| Error::io("write", directory.path(&name), error);
    let mut file = directory.create(&name).map_err(failed)?;
    let (mut len, mut buffer) = (0, Vec::new());
    let mut salt = None;
    read(snapshot, |header, payload| {
        let salt = *salt.get_or_insert_with(|| {
            // In the format of its rows, which the store carries forward when it is opened.
            let made =
                Header { format: header.format, kind: Kind::Checkpoint, ..new_header(FIRST_SEGMENT, 0, revision) };
            buffer.extend(made.encode());
            made.salt
        });
        Writer { out: &mut buffer, salt, synced: HEADER_LEN as u64 }.copy(payload);
        file.write_at(len, &buffer).map_err(failed)?;
        len += buffer.len() as u64;
        buffer.clear();
        Ok(())
    })?;
    file.sync().map_err(failed)?;
    let header = new_header(FIRST_SEGMENT, 0, revision);
    // Makes the names durable, too.
    log::create(directory, Kind::Segment, &header.encode(), FIRST_SEGMENT).map(|_| ())
}

fn beside(dir: &Path, suffix: &str) -> PathBuf {
    let mut name = dir.file_name().unwrap_or(dir.as_os_str()).to_owned();
    name.push(".");
    name.push(suffix);
    dir.with_file_name(name)
}

/// Puts `staged` in the place of `dir`, which then is `kept`.
fn swap(staged: &Path, dir: &Path, kept: Option<&Path>) -> io::Result<()> {
    let folder = dir.canonicalize().ok().as_deref().and_then(Path::parent).map(Path::to_owned);
    match kept {
        None => std::fs::rename(staged, dir)?,
        Some(kept) => {
            exchange(staged, dir)?;
            std::fs::rename(staged, kept)?;
        }
    }
    match folder.or_else(|| dir.parent().map(Path::to_owned)) {
        Some(folder) => File::open(folder)?.sync_all(),
        None => Ok(()),
    }
}

/// Two names change places in one step.
fn exchange(a: &Path, b: &Path) -> io::Result<()> {
    use rustix::fs::{CWD, RenameFlags, renameat_with};
    Ok(renameat_with(CWD, a, CWD, b, RenameFlags::EXCHANGE)?)
}
