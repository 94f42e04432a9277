//! The first two packets of an SCTP association, by raw sockets: kernels are often built without SCTP itself, and address
//! translation is done by conntrack, which only looks at packets.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::os::fd::{AsRawFd as _, FromRawFd as _, OwnedFd};
use std::thread;

use nix::sys::socket::{SockaddrIn, recvfrom, sendto, setsockopt, sockopt};
use nix::sys::time::TimeVal;

use super::Namespace;

const PROTOCOL: libc::c_int = 132;
const INIT: u8 = 1;
const INIT_ACK: u8 = 2;
const PATIENCE_SECONDS: i64 = 2;
/// Tags by which each side of an association recognises the other; any number but zero.
const CLIENT_TAG: u32 = 0x1111_2222;
const SERVER_TAG: u32 = 0x3333_4444;

#[derive(Debug)]
struct Packet {
    source_port: u16,
    port: u16,
    /// The receiver's tag; zero in an INIT, when nobody knows it.
    tag: u32,
    chunk: u8,
    /// The sender's tag.
    initiate_tag: u32,
}

impl Packet {
    fn encode(&self) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(32);
        bytes.extend(self.source_port.to_be_bytes());
        bytes.extend(self.port.to_be_bytes());
        bytes.extend(self.tag.to_be_bytes());
        bytes.extend([0; 4]);
        bytes.extend([self.chunk, 0, 0, 20]);
        bytes.extend(self.initiate_tag.to_be_bytes());
        bytes.extend(65536u32.to_be_bytes());
        bytes.extend([0, 1, 0, 1]);
        bytes.extend(1u32.to_be_bytes());
        let checksum = crc32c::crc32c(&bytes);
        bytes[8..12].copy_from_slice(&checksum.to_le_bytes());
        bytes
    }

    /// From a packet with its IPv4 header. Checks the checksum: translated ports change it.
    fn decode(bytes: &[u8]) -> Packet {
        let mut bytes = bytes[usize::from(bytes[0] & 0xf) * 4..].to_vec();
        let checksum = u32::from_le_bytes(bytes[8..12].try_into().unwrap());
        bytes[8..12].fill(0);
        assert_eq!(checksum, crc32c::crc32c(&bytes), "the checksum of the translated packet");
        let short = |at: usize| u16::from_be_bytes([bytes[at], bytes[at + 1]]);
        let long = |at: usize| u32::from_be_bytes(bytes[at..at + 4].try_into().unwrap());
        Packet { source_port: short(0), port: short(2), tag: long(4), chunk: bytes[12], initiate_tag: long(16) }
    }
}

fn raw_socket() -> OwnedFd {
    // SAFETY: three integers in, a new descriptor or -1 out.
    let fd = unsafe { libc::socket(libc::AF_INET, libc::SOCK_RAW, PROTOCOL) };
    assert!(fd >= 0, "a raw socket: {}", std::io::Error::last_os_error());
    // SAFETY: `fd` was just returned to us.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

fn receive(socket: &OwnedFd) -> Option<(Packet, Ipv4Addr)> {
    let mut buffer = [0; 256];
    let (len, _) = recvfrom::<SockaddrIn>(socket.as_raw_fd(), &mut buffer).ok()?;
    let from: [u8; 4] = buffer[12..16].try_into().unwrap();
    Some((Packet::decode(&buffer[..len]), from.into()))
}

fn send(socket: &OwnedFd, packet: &Packet, to: Ipv4Addr) {
    let to = SockaddrIn::from(SocketAddrV4::new(to, 0));
    sendto(socket.as_raw_fd(), &packet.encode(), &to, nix::sys::socket::MsgFlags::empty()).unwrap();
}

impl Namespace {
    /// Answers each INIT to `port` with an INIT ACK.
    pub fn serve_sctp(&self, port: u16) {
        let socket = self.run(raw_socket);
        thread::spawn(move || {
            while let Some((packet, from)) = receive(&socket) {
                if packet.chunk == INIT && packet.port == port {
                    let reply = Packet {
                        source_port: port,
                        port: packet.source_port,
                        tag: packet.initiate_tag,
                        chunk: INIT_ACK,
                        initiate_tag: SERVER_TAG,
                    };
                    send(&socket, &reply, from);
                }
            }
        });
    }

    /// Opens an association from `source_port`; returns where the answer came from, as the client sees it. `None`: nobody answered in time.
    pub fn ask_sctp_from(&self, source_port: u16, to: SocketAddrV4) -> Option<SocketAddrV4> {
        self.run(move || {
            let socket = raw_socket();
            setsockopt(&socket, sockopt::ReceiveTimeout, &TimeVal::new(PATIENCE_SECONDS, 0)).unwrap();
            let init = Packet { source_port, port: to.port(), tag: 0, chunk: INIT, initiate_tag: CLIENT_TAG };
            send(&socket, &init, *to.ip());
            let (reply, from) = receive(&socket)?;
            assert_eq!((reply.port, reply.tag, reply.chunk), (source_port, CLIENT_TAG, INIT_ACK), "{reply:?}");
            assert_eq!(reply.initiate_tag, SERVER_TAG);
            Some(SocketAddrV4::new(from, reply.source_port))
        })
    }
}
