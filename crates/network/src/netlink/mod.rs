//! Netlink, synchronously: sockets, message encoding, attribute parsing. The base of `nft`, of the CNI plugin's links
//! and routes, and of conntrack.
//!
//! Our own and small, because the CNI plugin must start and finish in milliseconds (no async runtime), and because one
//! encoder then serves rtnetlink and nf_tables alike. It must not know what a pod or a service is.

pub mod conntrack;
pub mod route;

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, sendmsg, setsockopt, socket,
    sockopt,
};

use crate::{Error, Result};

const HEADER_LEN: usize = 16;
const ATTRIBUTE_HEADER_LEN: usize = 4;
const NLA_F_NESTED: u16 = 1 << 15;
const NLA_TYPE_MASK: u16 = 0x3fff;
/// Kernel messages are at most this long, but for dumps of a size that the receiver's buffer allows.
const RECEIVE_BUFFER_LEN: usize = 64 * 1024;

const fn aligned(len: usize) -> usize {
    (len + 3) & !3
}

/// Encodes messages one after another into one buffer.
#[derive(Default)]
pub struct Writer {
    bytes: Vec<u8>,
    last_message: usize,
}

impl Writer {
    /// Appends one message; `body` writes the family header and the attributes.
    pub fn message(&mut self, kind: u16, flags: u16, sequence: u32, body: impl FnOnce(&mut Writer)) {
        let start = self.bytes.len();
        self.last_message = start;
        self.bytes.extend_from_slice(&[0; 4]);
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(&flags.to_ne_bytes());
        self.bytes.extend_from_slice(&sequence.to_ne_bytes());
        self.bytes.extend_from_slice(&[0; 4]);
        body(self);
        let len = u32::try_from(self.bytes.len() - start).expect("a message is far below 4 GiB");
        self.bytes[start..start + 4].copy_from_slice(&len.to_ne_bytes());
    }

    /// Asks for an answer to the message written last.
    pub fn acknowledge_last(&mut self) {
        let at = self.last_message + 6;
        let flags = u16::from_ne_bytes([self.bytes[at], self.bytes[at + 1]]) | libc::NLM_F_ACK as u16;
        self.bytes[at..at + 2].copy_from_slice(&flags.to_ne_bytes());
    }

    /// Bytes as they are, padded to four: a family header.
    pub fn raw(&mut self, bytes: &[u8]) {
        self.bytes.extend_from_slice(bytes);
        self.pad();
    }

    pub fn attribute(&mut self, kind: u16, value: &[u8]) {
        let len = u16::try_from(ATTRIBUTE_HEADER_LEN + value.len()).expect("callers keep attributes below 64 KiB");
        self.bytes.extend_from_slice(&len.to_ne_bytes());
        self.bytes.extend_from_slice(&kind.to_ne_bytes());
        self.bytes.extend_from_slice(value);
        self.pad();
    }

    pub fn nest(&mut self, kind: u16, body: impl FnOnce(&mut Writer)) {
        let start = self.bytes.len();
        self.bytes.extend_from_slice(&[0; 2]);
        self.bytes.extend_from_slice(&(kind | NLA_F_NESTED).to_ne_bytes());
        body(self);
        let len = u16::try_from(self.bytes.len() - start).expect("callers keep attributes below 64 KiB");
        self.bytes[start..start + 2].copy_from_slice(&len.to_ne_bytes());
    }

    pub fn string(&mut self, kind: u16, value: &str) {
        let mut bytes = Vec::with_capacity(value.len() + 1);
        bytes.extend_from_slice(value.as_bytes());
        bytes.push(0);
        self.attribute(kind, &bytes);
    }

    pub fn be32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub fn be64(&mut self, kind: u16, value: u64) {
        self.attribute(kind, &value.to_be_bytes());
    }

    pub fn ne32(&mut self, kind: u16, value: u32) {
        self.attribute(kind, &value.to_ne_bytes());
    }

    pub fn len(&self) -> usize {
        self.bytes.len()
    }

    pub fn is_empty(&self) -> bool {
        self.bytes.is_empty()
    }

    fn pad(&mut self) {
        self.bytes.resize(aligned(self.bytes.len()), 0);
    }
}

/// One attribute of a received message.
#[derive(Clone, Copy, Debug)]
pub struct Attribute<'a> {
    pub kind: u16,
    pub value: &'a [u8],
}

impl<'a> Attribute<'a> {
    pub fn nested(self) -> Attributes<'a> {
        Attributes(self.value)
    }

    /// A NUL-terminated string.
    pub fn as_str(self) -> &'a str {
        let end = self.value.iter().position(|b| *b == 0).unwrap_or(self.value.len());
        std::str::from_utf8(&self.value[..end]).unwrap_or_default()
    }

    pub fn as_be16(self) -> Option<u16> {
        self.value.first_chunk().map(|b| u16::from_be_bytes(*b))
    }

    pub fn as_ne32(self) -> Option<u32> {
        self.value.first_chunk().map(|b| u32::from_ne_bytes(*b))
    }

    pub fn as_address(self) -> Option<std::net::IpAddr> {
        match self.value.len() {
            4 => Some(<[u8; 4]>::try_from(self.value).ok()?.into()),
            16 => Some(<[u8; 16]>::try_from(self.value).ok()?.into()),
            _ => None,
        }
    }
}

/// Iterates the attributes in a piece of a message. Ends at the first malformed one.
#[derive(Clone, Copy)]
pub struct Attributes<'a>(&'a [u8]);

impl<'a> Attributes<'a> {
    /// The attributes behind a family header of `header_len` bytes.
    pub fn after(payload: &'a [u8], header_len: usize) -> Self {
        Attributes(payload.get(aligned(header_len)..).unwrap_or_default())
    }

    pub fn get(mut self, kind: u16) -> Option<Attribute<'a>> {
        self.find(|a| a.kind == kind)
    }
}

impl<'a> Iterator for Attributes<'a> {
    type Item = Attribute<'a>;

    fn next(&mut self) -> Option<Attribute<'a>> {
        let header = self.0.first_chunk::<ATTRIBUTE_HEADER_LEN>()?;
        let len = usize::from(u16::from_ne_bytes([header[0], header[1]]));
        let kind = u16::from_ne_bytes([header[2], header[3]]) & NLA_TYPE_MASK;
        let value = self.0.get(ATTRIBUTE_HEADER_LEN..len)?;
        self.0 = self.0.get(aligned(len)..).unwrap_or_default();
        Some(Attribute { kind, value })
    }
}

/// A received message without its header.
#[derive(Debug)]
pub struct Reply {
    pub kind: u16,
    pub payload: Vec<u8>,
}

/// What the kernel says of one request of a batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Answer {
    pub sequence: u32,
    /// None: done.
    pub failure: Option<(Errno, Option<String>)>,
}

enum Received {
    Answer(Answer),
    Done { failure: Option<(Errno, Option<String>)> },
    Reply(Reply),
}

/// A netlink socket bound to the network namespace in which it was opened, whatever the thread does later.
pub struct Socket {
    fd: OwnedFd,
    sequence: u32,
}

impl Socket {
    /// Opens a socket for rtnetlink.
    pub fn route() -> Result<Self> {
        Self::open(SockProtocol::NetlinkRoute)
    }

    /// Opens a socket for nf_tables and conntrack.
    pub fn netfilter() -> Result<Self> {
        Self::open(SockProtocol::NetlinkNetFilter)
    }

    fn open(protocol: SockProtocol) -> Result<Self> {
        let fd = socket(AddressFamily::Netlink, SockType::Raw, SockFlag::SOCK_CLOEXEC, protocol)
            .map_err(Error::os("opening a netlink socket"))?;
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, 0)).map_err(Error::os("binding a netlink socket"))?;
        let on: libc::c_int = 1;
        // Plain words for a refusal, and acknowledgements that do not repeat the request. Old kernels know neither: no harm.
        for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
            // SAFETY: the option value is an int that outlives the call, and the fd is ours.
            unsafe {
                libc::setsockopt(
                    fd.as_raw_fd(),
                    libc::SOL_NETLINK,
                    option,
                    (&raw const on).cast(),
                    size_of_val(&on) as libc::socklen_t,
                );
            }
        }
        Ok(Socket { fd, sequence: 0 })
    }

    /// The next `count` sequence numbers; returns the first.
    pub fn reserve_sequences(&mut self, count: u32) -> u32 {
        // Zero is what unsolicited messages carry.
        if self.sequence > u32::MAX - count - 1 {
            self.sequence = 0;
        }
        let first = self.sequence + 1;
        self.sequence += count;
        first
    }

    /// Sends one request and waits until the kernel has carried it out.
    pub fn request(&mut self, what: &str, kind: u16, flags: u16, body: impl FnOnce(&mut Writer)) -> Result<()> {
        let sequence = self.reserve_sequences(1);
        let mut writer = Writer::default();
        let flags = flags | (libc::NLM_F_REQUEST | libc::NLM_F_ACK) as u16;
        writer.message(kind, flags, sequence, body);
        self.send(&writer.bytes).map_err(Error::io(what))?;
        loop {
            for received in self.receive()? {
                if let Received::Answer(answer) = received
                    && answer.sequence == sequence
                {
                    return match answer.failure {
                        None => Ok(()),
                        Some((errno, detail)) => Err(Error::Netlink { what: what.to_owned(), errno, detail }),
                    };
                }
            }
        }
    }

    /// Sends a request that is answered by messages: one, or (with `NLM_F_DUMP`) many.
    pub fn query(&mut self, what: &str, kind: u16, flags: i32, body: impl FnOnce(&mut Writer)) -> Result<Vec<Reply>> {
        let sequence = self.reserve_sequences(1);
        let mut writer = Writer::default();
        writer.message(kind, (libc::NLM_F_REQUEST | flags) as u16, sequence, body);
        self.send(&writer.bytes).map_err(Error::io(what))?;
        let many = flags & libc::NLM_F_DUMP == libc::NLM_F_DUMP;
        let mut replies = Vec::new();
        loop {
            for received in self.receive()? {
                match received {
                    Received::Reply(reply) => replies.push(reply),
                    Received::Done { failure: None } => return Ok(replies),
                    Received::Answer(Answer { failure: Some((errno, detail)), .. })
                    | Received::Done { failure: Some((errno, detail)) } => {
                        return Err(Error::Netlink { what: what.to_owned(), errno, detail });
                    }
                    Received::Answer(_) => {}
                }
            }
            if !many && !replies.is_empty() {
                return Ok(replies);
            }
        }
    }

    /// Sends a whole batch as one datagram (nf_tables takes a transaction only so) and collects the answers until the one
    /// to `last`, or the first refusal.
    pub fn batch(&mut self, what: &str, writer: &Writer, last: u32) -> Result<Vec<Answer>> {
        // The default send buffer holds some 200 KB; forcing needs CAP_NET_ADMIN, which nf_tables needs anyway.
        let wanted = writer.len() * 2 + 64 * 1024;
        setsockopt(&self.fd, sockopt::SndBufForce, &wanted).map_err(Error::os("sizing the send buffer"))?;
        self.send(&writer.bytes).map_err(Error::io(what))?;
        let mut answers = Vec::new();
        loop {
            for received in self.receive()? {
                if let Received::Answer(answer) = received {
                    let finished = answer.failure.is_some() || answer.sequence == last;
                    answers.push(answer);
                    if finished {
                        self.discard_pending();
                        return Ok(answers);
                    }
                }
            }
        }
    }

    /// After a refused batch further answers may wait; they belong to requests that we have given up.
    fn discard_pending(&mut self) {
        let mut buffer = [0u8; 4096];
        while recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_TRUNC).is_ok() {}
    }

    fn send(&self, bytes: &[u8]) -> io::Result<()> {
        let kernel = NetlinkAddr::new(0, 0);
        sendmsg(self.fd.as_raw_fd(), &[IoSlice::new(bytes)], &[], MsgFlags::empty(), Some(&kernel))?;
        Ok(())
    }

    fn receive(&self) -> Result<Vec<Received>> {
        let mut buffer = vec![0u8; RECEIVE_BUFFER_LEN];
        let len = loop {
            match recv(self.fd.as_raw_fd(), &mut buffer, MsgFlags::empty()) {
                Ok(len) => break len,
                Err(Errno::EINTR) => {}
                Err(errno) => return Err(Error::os("receiving from netlink")(errno)),
            }
        };
        parse_datagram(&buffer[..len])
    }
}

fn parse_datagram(mut bytes: &[u8]) -> Result<Vec<Received>> {
    let mut received = Vec::new();
    while let Some(header) = bytes.first_chunk::<HEADER_LEN>() {
        let field = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
        let len = field(0) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let flags = u16::from_ne_bytes([header[6], header[7]]);
        let payload = bytes.get(HEADER_LEN..len).ok_or(Error::Malformed("length"))?;
        match i32::from(kind) {
            libc::NLMSG_ERROR => {
                let failure = parse_failure(payload, flags)?;
                received.push(Received::Answer(Answer { sequence: field(8), failure }));
            }
            libc::NLMSG_DONE => {
                let failure = if payload.len() >= 4 { parse_failure(payload, flags)? } else { None };
                received.push(Received::Done { failure });
            }
            libc::NLMSG_NOOP => {}
            _ => received.push(Received::Reply(Reply { kind, payload: payload.to_vec() })),
        }
        bytes = bytes.get(aligned(len)..).unwrap_or_default();
    }
    Ok(received)
}

/// The errno (zero: success) and the kernel's words on it, if any.
fn parse_failure(payload: &[u8], flags: u16) -> Result<Option<(Errno, Option<String>)>> {
    const NLM_F_CAPPED: u16 = 0x100;
    const NLM_F_ACK_TLVS: u16 = 0x200;
    const NLMSGERR_ATTR_MSG: u16 = 1;
    let code = payload.first_chunk().map(|b| i32::from_ne_bytes(*b)).ok_or(Error::Malformed("error code"))?;
    if code == 0 {
        return Ok(None);
    }
    let mut detail = None;
    if flags & NLM_F_ACK_TLVS != 0 {
        let request_len = payload.get(4..8).map_or(0, |b| u32::from_ne_bytes([b[0], b[1], b[2], b[3]]) as usize);
        let skip = if flags & NLM_F_CAPPED != 0 { HEADER_LEN } else { aligned(request_len) };
        detail = Attributes::after(payload, 4 + skip).get(NLMSGERR_ATTR_MSG).map(|a| a.as_str().to_owned());
    }
    Ok(Some((Errno::from_raw(-code), detail)))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn attributes_survive_encoding_and_stop_at_damage() {
        let mut writer = Writer::default();
        writer.message(7, 0, 9, |w| {
            w.raw(&[1, 2, 3]);
            w.string(1, "eth0");
            w.nest(2, |w| w.be32(3, 77));
        });
        assert_eq!(writer.len(), u32::from_ne_bytes(writer.bytes[..4].try_into().unwrap()) as usize);
        let payload = &writer.bytes[HEADER_LEN..];
        let attributes = Attributes::after(payload, 3);
        assert_eq!(attributes.get(1).unwrap().as_str(), "eth0");
        assert_eq!(attributes.get(2).unwrap().nested().get(3).unwrap().value, 77u32.to_be_bytes());
        for cut in 0..payload.len() {
            let seen = Attributes::after(&payload[..cut], 3).count();
            assert!(seen <= 2, "cut at {cut}");
        }
    }

    #[test]
    fn a_datagram_cut_anywhere_is_an_error_or_shorter() {
        let mut writer = Writer::default();
        writer.message(libc::NLMSG_ERROR as u16, 0, 5, |w| w.raw(&(-libc::ENOENT).to_ne_bytes()));
        for cut in 0..writer.bytes.len() {
            assert!(parse_datagram(&writer.bytes[..cut]).map_or(true, |r| r.is_empty()), "cut at {cut}");
        }
        let received = parse_datagram(&writer.bytes).unwrap();
        let [Received::Answer(answer)] = received.as_slice() else { panic!("one answer") };
        assert_eq!(*answer, Answer { sequence: 5, failure: Some((Errno::ENOENT, None)) });
    }
}
