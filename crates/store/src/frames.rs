//! Reads the frames of a file one after the other, holding little more than one in memory.

use std::io::{self, Read};

use crate::record::{FRAME_LEN, HEADER_LEN, announced_len, is_intact};

const CHUNK: usize = 256 << 10;

pub(crate) struct Frames<R> {
    reader: R,
    buffer: Vec<u8>,
    /// Where the unread part of the buffer starts …
    start: usize,
    /// … and what offset in the file that is.
    offset: u64,
    salt: u32,
}

pub(crate) enum Next<'a> {
    Payload(&'a [u8]),
    End,
    Broken(&'static str),
}

impl<R: Read> Frames<R> {
    pub(crate) fn new(reader: R) -> Self {
        Frames { reader, buffer: Vec::new(), start: 0, offset: 0, salt: 0 }
    }

    /// The first bytes of the file: fewer than a header has, if the file is shorter.
    pub(crate) fn header(&mut self) -> io::Result<&[u8]> {
        let len = self.fill(HEADER_LEN)?.min(HEADER_LEN);
        self.advance(len);
        Ok(&self.buffer[..len])
    }

    pub(crate) fn set_salt(&mut self, salt: u32) {
        self.salt = salt;
    }

    /// The offset of the next frame, or of the broken one.
    pub(crate) fn offset(&self) -> u64 {
        self.offset
    }

    pub(crate) fn next(&mut self) -> io::Result<Next<'_>> {
        match self.fill(FRAME_LEN)? {
            0 => return Ok(Next::End),
            1..FRAME_LEN => return Ok(Next::Broken("record is cut short")),
            _ => {}
        }
        let Some(len) = announced_len(&self.buffer[self.start..]) else {
            return Ok(Next::Broken("length of the record is impossible"));
        };
        let whole = FRAME_LEN + len;
        if self.fill(whole)? < whole {
            return Ok(Next::Broken("record is cut short"));
        }
        let start = self.start;
        if !is_intact(&self.buffer[start..start + whole], self.salt) {
            return Ok(Next::Broken("checksum of the record does not match"));
        }
        self.advance(whole);
        Ok(Next::Payload(&self.buffer[start + FRAME_LEN..start + whole]))
    }

    /// All that has not been read.
    pub(crate) fn rest(mut self) -> io::Result<Vec<u8>> {
        self.buffer.drain(..self.start);
        self.reader.read_to_end(&mut self.buffer)?;
        Ok(self.buffer)
    }

    /// Reads until `wanted` bytes are unread, or to the end of the file; returns how many are.
    fn fill(&mut self, wanted: usize) -> io::Result<usize> {
        let unread = self.buffer.len() - self.start;
        if unread >= wanted {
            return Ok(unread);
        }
        self.buffer.drain(..self.start);
        self.start = 0;
        let more = (wanted - unread).max(CHUNK) as u64;
        self.reader.by_ref().take(more).read_to_end(&mut self.buffer)?;
        Ok(self.buffer.len())
    }

    fn advance(&mut self, len: usize) {
        self.start += len;
        self.offset += len as u64;
    }
}
