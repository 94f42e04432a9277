//! The bytes of the files: headers, frames and what is in them. Pure.
//!
//! All integers are little-endian. A file is a header, then frames back to back:
//!
//! ```text
//! header      magic [8] · format u32 · kind u32 · number u64 · previous_len u64 · revision u64 · salt u32 · crc u32
//! frame       len u32 (of the payload) · crc u32 (salt, len, payload) · payload
//! payload     synced u64 · revision u64 · tag u8 · body
//! transaction tag 1: count u32 · count × op
//! advance     tag 2: nothing; the revision is now this one
//! clean       tag 3: nothing; the store was shut down here
//! entries     tag 4: count u32 · count × (mod_revision u64 · put)          checkpoints and snapshots only
//! footer      tag 5: count u64 (of all entries)                            checkpoints and snapshots only
//! taken       tag 6: when, u64, in milliseconds since the Unix epoch            snapshots only
//! op          1 u8 · put  |  2 u8 · key
//! put         key · create_revision u64 · version u64 · flags u8 [· expiry] · value_len u32 · value
//! expiry      if flag 1: at u64 · ttl u64, in milliseconds, `at` since the Unix epoch
//! key         len u32 · UTF-8
//! ```
//!
//! # Versions
//!
//! The header is the same in all versions. What they differ in:
//!
//! | format | puts |
//! |---|---|
//! | 1 | without flags, so no key expires |
//! | 2 | as above |
//!
//! All of them are read, file by file; only the newest is written. A store with files of an older one closes its last segment when
//! it is opened and writes a checkpoint, after which there are none left.

use crate::clock::Expiry;
use crate::{Change, Entry, Event, Revision, Value};

pub(crate) const HEADER_LEN: usize = 48;
pub(crate) const FRAME_LEN: usize = 8;
/// `synced`, `revision` and the tag.
const PREFIX_LEN: usize = 17;
/// More than the largest transaction with its keys.
pub(crate) const MAX_PAYLOAD: usize = 1 << 30;

const MAGIC: &[u8; 8] = b"coxstore";
pub(crate) const FORMAT: u32 = 2;
/// Flags of a put.
const EXPIRES: u8 = 1;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    Segment = 1,
    Checkpoint = 2,
    /// Of no store: see `snapshot.rs`.
    Snapshot = 3,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Header {
    pub format: u32,
    pub kind: Kind,
    /// Of the segment; of a checkpoint: of the first segment that it does not cover.
    pub number: u64,
    /// Where the valid part of the previous segment ends.
    pub previous_len: u64,
    /// The revision before the first record.
    pub revision: Revision,
    /// Differs from file to file, so that the frames of one are not valid in another, nor within a value.
    pub salt: u32,
}

impl Header {
    pub(crate) fn encode(&self) -> Vec<u8> {
        let mut out = Vec::with_capacity(HEADER_LEN);
        out.extend(MAGIC);
        out.extend(self.format.to_le_bytes());
        out.extend((self.kind as u32).to_le_bytes());
        out.extend(self.number.to_le_bytes());
        out.extend(self.previous_len.to_le_bytes());
        out.extend(self.revision.to_le_bytes());
        out.extend(self.salt.to_le_bytes());
        out.extend(crc32c::crc32c(&out).to_le_bytes());
        out
    }

    /// Of any format: whether it is one that can be read is for the caller to say.
    pub(crate) fn decode(bytes: &[u8]) -> Result<Header, String> {
        let mut input = Input(bytes);
        let magic = input.take(8)?;
        if magic != MAGIC {
            return Err("not a file of this store".to_owned());
        }
        let format = input.u32()?;
        let kind = match input.u32()? {
            1 => Kind::Segment,
            2 => Kind::Checkpoint,
            3 => Kind::Snapshot,
            other => return Err(format!("unknown kind of file {other}")),
        };
        let (number, previous_len, revision) = (input.u64()?, input.u64()?, input.u64()?);
        let salt = input.u32()?;
        if input.u32()? != crc32c::crc32c(&bytes[..HEADER_LEN - 4]) {
            return Err("checksum of the header does not match".to_owned());
        }
        Ok(Header { format, kind, number, previous_len, revision, salt })
    }
}

/// A record as read; borrows from the file's buffer.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Record<'a> {
    /// How much of the file was durable when this record was written.
    pub synced: u64,
    pub revision: Revision,
    pub body: Body<'a>,
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Body<'a> {
    Transaction(Vec<Step<'a>>),
    Advance,
    Clean,
    Entries(Vec<Row<'a>>),
    Footer { count: u64 },
    Taken { at_ms: u64 },
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Step<'a> {
    Put(Row<'a>),
    Delete { key: &'a str },
}

#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Row<'a> {
    pub key: &'a str,
    pub value: &'a [u8],
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: u64,
    pub expiry: Option<Expiry>,
}

impl<'a> Record<'a> {
    /// `format` is that of the file.
    pub(crate) fn decode(payload: &'a [u8], format: u32) -> Result<Self, String> {
        let mut input = Input(payload);
        let (synced, revision, tag) = (input.u64()?, input.u64()?, input.u8()?);
        let body = match tag {
            1 => {
                let count = input.u32()?;
                Body::Transaction((0..count).map(|_| input.step(revision, format)).collect::<Result<_, _>>()?)
            }
            2 => Body::Advance,
            3 => Body::Clean,
            4 => {
                let count = input.u32()?;
                let mut row = || {
                    let mod_revision = input.u64()?;
                    input.row(mod_revision, format)
                };
                Body::Entries((0..count).map(|_| row()).collect::<Result<_, _>>()?)
            }
            5 => Body::Footer { count: input.u64()? },
            6 => Body::Taken { at_ms: input.u64()? },
            other => return Err(format!("unknown kind of record {other}")),
        };
        if !input.0.is_empty() {
            return Err("bytes left over after the record".to_owned());
        }
        Ok(Record { synced, revision, body })
    }
}

struct Input<'a>(&'a [u8]);

impl<'a> Input<'a> {
    fn take(&mut self, len: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(len).ok_or("cut short")?;
        self.0 = rest;
        Ok(taken)
    }

    fn u8(&mut self) -> Result<u8, String> {
        Ok(self.take(1)?[0])
    }

    fn u32(&mut self) -> Result<u32, String> {
        Ok(u32::from_le_bytes(self.take(4)?.try_into().expect("took four bytes")))
    }

    fn u64(&mut self) -> Result<u64, String> {
        Ok(u64::from_le_bytes(self.take(8)?.try_into().expect("took eight bytes")))
    }

    fn bytes(&mut self) -> Result<&'a [u8], String> {
        let len = self.u32()? as usize;
        self.take(len)
    }

    fn key(&mut self) -> Result<&'a str, String> {
        std::str::from_utf8(self.bytes()?).map_err(|_| "key is not UTF-8".to_owned())
    }

    fn row(&mut self, mod_revision: Revision, format: u32) -> Result<Row<'a>, String> {
        let key = self.key()?;
        let (create_revision, version) = (self.u64()?, self.u64()?);
        let expiry = match if format < 2 { 0 } else { self.u8()? } {
            0 => None,
            EXPIRES => Some(Expiry { at_ms: self.u64()?, ttl_ms: self.u64()? }),
            other => return Err(format!("unknown flags {other:#x}")),
        };
        Ok(Row { key, value: self.bytes()?, create_revision, mod_revision, version, expiry })
    }

    fn step(&mut self, revision: Revision, format: u32) -> Result<Step<'a>, String> {
        match self.u8()? {
            1 => Ok(Step::Put(self.row(revision, format)?)),
            2 => Ok(Step::Delete { key: self.key()? }),
            other => Err(format!("unknown kind of operation {other}")),
        }
    }
}

/// Appends frames to a buffer.
pub(crate) struct Writer<'a> {
    pub out: &'a mut Vec<u8>,
    pub salt: u32,
    pub synced: u64,
}

impl Writer<'_> {
    pub(crate) fn transaction<V: Value>(&mut self, revision: Revision, events: &[impl AsRef<Event<V>>]) {
        self.frame(revision, 1, |out| {
            out.extend(count(events.len()).to_le_bytes());
            for event in events {
                match &event.as_ref().change {
                    Change::Put(entry) => {
                        out.push(1);
                        put(out, entry);
                    }
                    Change::Delete(tombstone) => {
                        out.push(2);
                        bytes(out, tombstone.key.as_bytes());
                    }
                }
            }
        });
    }

    pub(crate) fn advance(&mut self, revision: Revision) {
        self.frame(revision, 2, |_| {});
    }

    pub(crate) fn clean(&mut self, revision: Revision) {
        self.frame(revision, 3, |_| {});
    }

    pub(crate) fn entries<V: Value>(&mut self, revision: Revision, entries: &[impl AsRef<Entry<V>>]) {
        self.frame(revision, 4, |out| {
            out.extend(count(entries.len()).to_le_bytes());
            for entry in entries {
                out.extend(entry.as_ref().mod_revision.to_le_bytes());
                put(out, entry.as_ref());
            }
        });
    }

    pub(crate) fn footer(&mut self, revision: Revision, count: u64) {
        self.frame(revision, 5, |out| out.extend(count.to_le_bytes()));
    }

    pub(crate) fn taken(&mut self, revision: Revision, at_ms: u64) {
        self.frame(revision, 6, |out| out.extend(at_ms.to_le_bytes()));
    }

    fn frame(&mut self, revision: Revision, tag: u8, body: impl FnOnce(&mut Vec<u8>)) {
        let start = self.out.len();
        self.out.extend([0; FRAME_LEN]);
        self.out.extend(self.synced.to_le_bytes());
        self.out.extend(revision.to_le_bytes());
        self.out.push(tag);
        body(self.out);
        seal(&mut self.out[start..], self.salt);
    }

    /// Appends a frame with a payload that was read from another file.
    pub(crate) fn copy(&mut self, payload: &[u8]) {
        let start = self.out.len();
        self.out.extend([0; FRAME_LEN]);
        self.out.extend(self.synced.to_le_bytes());
        self.out.extend(&payload[8..]);
        seal(&mut self.out[start..], self.salt);
    }

    /// Appends frames that were written for another file.
    pub(crate) fn adopt(&mut self, frames: &[u8]) {
        let mut rest = frames;
        while !rest.is_empty() {
            let payload = u32::from_le_bytes(rest[..4].try_into().expect("four bytes")) as usize;
            let (frame, after) = rest.split_at(FRAME_LEN + payload);
            let start = self.out.len();
            self.out.extend(frame);
            self.out[start + FRAME_LEN..][..8].copy_from_slice(&self.synced.to_le_bytes());
            seal(&mut self.out[start..], self.salt);
            rest = after;
        }
    }
}

/// Fills in a frame's length and checksum.
fn seal(frame: &mut [u8], salt: u32) {
    let (head, payload) = frame.split_at_mut(FRAME_LEN);
    let len = count(payload.len()).to_le_bytes();
    head[..4].copy_from_slice(&len);
    head[4..].copy_from_slice(&checksum(salt, len, payload).to_le_bytes());
}

fn checksum(salt: u32, len: [u8; 4], payload: &[u8]) -> u32 {
    crc32c::crc32c_append(crc32c::crc32c_append(salt, &len), payload)
}

fn put<V: Value>(out: &mut Vec<u8>, entry: &Entry<V>) {
    bytes(out, entry.key.as_bytes());
    out.extend(entry.create_revision.to_le_bytes());
    out.extend(entry.version.to_le_bytes());
    match &entry.expiry {
        None => out.push(0),
        Some(expiry) => {
            out.push(EXPIRES);
            out.extend(expiry.at_ms.to_le_bytes());
            out.extend(expiry.ttl_ms.to_le_bytes());
        }
    }
    out.extend(entry.len.to_le_bytes());
    for piece in entry.kept() {
        out.extend(piece);
    }
}

fn bytes(out: &mut Vec<u8>, bytes: &[u8]) {
    out.extend(count(bytes.len()).to_le_bytes());
    out.extend(bytes);
}

fn count(len: usize) -> u32 {
    u32::try_from(len).expect("a transaction is limited to far less than 4 GiB")
}

/// The payload length that a frame's head announces, if it can be one.
pub(crate) fn announced_len(head: &[u8]) -> Option<usize> {
    let len = u32::from_le_bytes(head.get(..4)?.try_into().ok()?) as usize;
    (PREFIX_LEN..=MAX_PAYLOAD).contains(&len).then_some(len)
}

/// Whether the checksum of a whole frame matches.
pub(crate) fn is_intact(frame: &[u8], salt: u32) -> bool {
    let (head, payload) = frame.split_at(FRAME_LEN);
    let stored = u32::from_le_bytes(head[4..].try_into().expect("four bytes"));
    checksum(salt, head[..4].try_into().expect("four bytes"), payload) == stored
}

/// Looks behind a broken frame, whose file offset is `at` and whose bytes `rest` starts with: whether an intact frame says
/// that the broken one was already durable. Then it was damaged later; otherwise its write was cut off by a crash.
pub(crate) fn was_durable(rest: &[u8], at: u64, salt: u32) -> bool {
    (1..rest.len()).any(|start| {
        let candidate = &rest[start..];
        let Some(len) = announced_len(candidate) else { return false };
        let Some(frame) = candidate.get(..FRAME_LEN + len) else { return false };
        let synced = u64::from_le_bytes(frame[FRAME_LEN..][..8].try_into().expect("eight bytes"));
        synced > at && synced <= at + start as u64 && is_intact(frame, salt)
    })
}
