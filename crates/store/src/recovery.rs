//! Reading a directory back: the newest checkpoint, then the segments after it.

use std::collections::HashMap;
use std::io::Read;

use bytes::Bytes;

use crate::clock::Expiry;
use crate::disk::Disk;
use crate::frames::{Frames, Next};
use crate::record::{Body, FORMAT, Header, Kind, Record, Row, Step, was_durable};
use crate::{Error, Revision};

/// A live key as loaded, before the caller's value is made of it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Loaded {
    pub bytes: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: u64,
    pub expiry: Option<Expiry>,
}

pub(crate) struct Recovered {
    pub entries: HashMap<Box<str>, Loaded>,
    pub revision: Revision,
    /// Whether the store was shut down properly, so that no acknowledged transaction can be missing.
    pub clean: bool,
    /// The segment to go on with; none in an empty directory.
    pub tail: Option<Tail>,
    /// Number and valid length of the segments before the tail.
    pub closed: Vec<(u64, u64)>,
    /// First segment not covered by the checkpoint, and the length of its file.
    pub checkpoint: Option<(u64, u64)>,
    /// Whether there are files of an older format.
    pub outdated: bool,
    /// Files that are of no use any more.
    pub obsolete: Vec<String>,
}

pub(crate) struct Tail {
    pub header: Header,
    /// Where the valid part ends; what follows was being written when the machine stopped.
    pub len: u64,
}

pub(crate) fn segment_name(number: u64) -> String {
    format!("{number:016x}.log")
}

pub(crate) fn checkpoint_name(number: u64) -> String {
    format!("{number:016x}.checkpoint")
}

/// What a name in the directory stands for.
pub(crate) enum Name {
    Segment(u64),
    Checkpoint(u64),
    Temporary,
    Foreign,
}

pub(crate) fn parse_name(name: &str) -> Name {
    let number = |stem: &str| (stem.len() == 16).then(|| u64::from_str_radix(stem, 16).ok()).flatten();
    match name.rsplit_once('.') {
        Some((stem, "log")) => number(stem).map_or(Name::Foreign, Name::Segment),
        Some((stem, "checkpoint")) => number(stem).map_or(Name::Foreign, Name::Checkpoint),
        Some((_, "tmp")) => Name::Temporary,
        _ => Name::Foreign,
    }
}

/// The names of a directory, sorted out.
struct Files {
    /// First segment that the newest checkpoint does not cover.
    checkpoint: Option<u64>,
    /// Those that the checkpoint does not cover, in order, none missing.
    segments: Vec<u64>,
    obsolete: Vec<String>,
}

fn files(disk: &dyn Disk) -> Result<Files, Error> {
    let (mut segments, mut checkpoints, mut obsolete) = (Vec::new(), Vec::new(), Vec::new());
    for name in disk.list().map_err(|error| Error::io("list", disk.path(""), error))? {
        match parse_name(&name) {
            Name::Segment(number) => segments.push(number),
            Name::Checkpoint(number) => checkpoints.push(number),
            Name::Temporary => obsolete.push(name),
            Name::Foreign => {}
        }
    }
    let checkpoint = checkpoints.iter().max().copied();
    let first = checkpoint.unwrap_or(1);
    obsolete.extend(checkpoints.into_iter().filter(|number| *number < first).map(checkpoint_name));
    obsolete.extend(segments.extract_if(.., |number| *number < first).map(segment_name));
    segments.sort_unstable();
    let missing =
        segments.iter().zip(first..).find(|(number, expected)| *number != expected).map(|(_, missing)| missing);
    if let Some(missing) = missing.or((checkpoint.is_some() && segments.is_empty()).then_some(first)) {
        let path = disk.path(&segment_name(missing));
        return Err(Error::Damaged { path, offset: 0, reason: "the file is missing".to_owned() });
    }
    Ok(Files { checkpoint, segments, obsolete })
}

/// Reads everything. Changes nothing on disk.
pub(crate) fn recover(disk: &dyn Disk) -> Result<Recovered, Error> {
    let Files { checkpoint, segments, obsolete } = files(disk)?;
    let mut load = Load { disk, entries: HashMap::new(), revision: 1, clean: true, outdated: false };
    let checkpoint = match checkpoint {
        Some(number) => Some((number, load.checkpoint(number)?)),
        None => None,
    };
    let headers: Vec<Header> = segments
        .iter()
        .map(|number| load.open(&segment_name(*number), Kind::Segment, *number).map(|(header, _)| header))
        .collect::<Result<_, _>>()?;
    let mut ends = Vec::new();
    for (at, header) in headers.iter().enumerate() {
        if at == 0 && checkpoint.is_some() {
            load.revision = header.revision;
        }
        ends.push((header.number, load.segment(header, headers.get(at + 1).map(|next| next.previous_len))?));
    }
    let tail = headers.last().copied().zip(ends.pop()).map(|(header, (_, len))| Tail { header, len });
    Ok(Recovered {
        entries: load.entries,
        revision: load.revision,
        clean: load.clean,
        tail,
        closed: ends,
        checkpoint,
        outdated: load.outdated,
        obsolete,
    })
}

struct Load<'a> {
    disk: &'a dyn Disk,
    entries: HashMap<Box<str>, Loaded>,
    revision: Revision,
    clean: bool,
    outdated: bool,
}

type FileFrames = Frames<Box<dyn Read + Send>>;

impl Load<'_> {
    fn open(&mut self, name: &str, kind: Kind, number: u64) -> Result<(Header, FileFrames), Error> {
        let failed = |error| Error::io("read", self.disk.path(name), error);
        let mut frames = Frames::new(self.disk.read(name).map_err(failed)?);
        let header =
            Header::decode(frames.header().map_err(failed)?).map_err(|reason| self.damaged(name, 0, reason))?;
        if header.format > FORMAT {
            return Err(Error::NewerFormat { path: self.disk.path(name), found: header.format, newest: FORMAT });
        }
        if header.format == 0 {
            return Err(self.damaged(name, 0, "there is no format 0"));
        }
        self.outdated |= header.format < FORMAT;
        if (header.kind, header.number) != (kind, number) {
            return Err(self.damaged(name, 0, "the header is that of another file"));
        }
        frames.set_salt(header.salt);
        Ok((header, frames))
    }

    /// Returns the length of the file.
    fn checkpoint(&mut self, number: u64) -> Result<u64, Error> {
        let name = checkpoint_name(number);
        let (header, mut frames) = self.open(&name, Kind::Checkpoint, number)?;
        let mut footer = None;
        loop {
            let at = frames.offset();
            let damaged = |reason: &str| self.damaged(&name, at, reason);
            let payload = match frames.next().map_err(|error| Error::io("read", self.disk.path(&name), error))? {
                Next::Payload(payload) if footer.is_none() => payload,
                Next::Payload(_) => return Err(damaged("bytes left over after the last record")),
                Next::Broken(reason) => return Err(damaged(reason)),
                Next::End => break,
            };
            match Record::decode(payload, header.format).map_err(|reason| damaged(&reason))?.body {
                Body::Entries(rows) => rows.iter().for_each(|row| self.put(row)),
                Body::Footer { count } => footer = Some(count),
                _ => return Err(damaged("a record that has no place in a checkpoint")),
            }
        }
        // Written to the end before it got its name, so a checkpoint without a footer has lost its end since.
        if footer != Some(self.entries.len() as u64) {
            return Err(self.damaged(&name, frames.offset(), "the end of the file is missing"));
        }
        Ok(frames.offset())
    }

    /// Replays a segment. `limit` is where its successor says that it ends. Returns where its valid part ends.
    fn segment(&mut self, header: &Header, limit: Option<u64>) -> Result<u64, Error> {
        let name = segment_name(header.number);
        if header.revision != self.revision {
            let reason = format!("starts after revision {}, not {}", header.revision, self.revision);
            return Err(self.damaged(&name, 0, reason));
        }
        // The first write after opening is synced, so a log that is still empty has not lost any.
        self.clean = header.number == 1;
        let (_, mut frames) = self.open(&name, Kind::Segment, header.number)?;
        let failed = |error| Error::io("read", self.disk.path(&name), error);
        loop {
            let at = frames.offset();
            if limit == Some(at) {
                return Ok(at);
            }
            match frames.next().map_err(failed)? {
                Next::Payload(payload) => {
                    let applied = Record::decode(payload, header.format).and_then(|record| self.apply(record));
                    applied.map_err(|reason| self.damaged(&name, at, reason))?;
                }
                Next::End if limit.is_none() => return Ok(at),
                Next::End => return Err(self.damaged(&name, at, "the end of the file is missing")),
                Next::Broken(reason) => {
                    if limit.is_some() || was_durable(&frames.rest().map_err(failed)?, at, header.salt) {
                        return Err(self.damaged(&name, at, reason));
                    }
                    self.clean = false;
                    return Ok(at);
                }
            }
        }
    }

    fn apply(&mut self, record: Record<'_>) -> Result<(), String> {
        let expected = match record.body {
            Body::Transaction(_) => record.revision == self.revision + 1,
            Body::Advance => record.revision > self.revision,
            Body::Clean => record.revision == self.revision,
            Body::Entries(_) | Body::Footer { .. } | Body::Taken { .. } => {
                return Err("a record that has no place in a segment".to_owned());
            }
        };
        if !expected {
            return Err(format!("revision {} after {}", record.revision, self.revision));
        }
        self.revision = record.revision;
        self.clean = matches!(record.body, Body::Clean);
        if let Body::Transaction(steps) = record.body {
            for step in steps {
                match step {
                    Step::Put(row) => self.put(&row),
                    Step::Delete { key } => _ = self.entries.remove(key),
                }
            }
        }
        Ok(())
    }

    fn put(&mut self, row: &Row<'_>) {
        let loaded = Loaded {
            // A copy: a slice would keep the whole buffer of the file alive.
            bytes: Bytes::copy_from_slice(row.value),
            create_revision: row.create_revision,
            mod_revision: row.mod_revision,
            version: row.version,
            expiry: row.expiry,
        };
        match self.entries.get_mut(row.key) {
            Some(entry) => *entry = loaded,
            None => _ = self.entries.insert(row.key.into(), loaded),
        }
    }

    fn damaged(&self, name: &str, offset: u64, reason: impl Into<String>) -> Error {
        Error::Damaged { path: self.disk.path(name), offset, reason: reason.into() }
    }
}
