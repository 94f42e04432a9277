//! Notices when somebody else deletes our tables (`nft flush ruleset`, a firewall service's restart).

use std::os::fd::AsRawFd;

use nix::sys::socket::{AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket};
use tokio::io::unix::AsyncFd;

use crate::netlink::Attributes;
use crate::{Error, Result};

const NFNLGRP_NFTABLES: u32 = 7;
const NFNL_SUBSYS_NFTABLES: u16 = 10;
const HEADER_LEN: usize = 16;
const NFGENMSG_LEN: usize = 4;

/// What [`Monitor::next`] saw.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Seen {
    /// The table of this name was deleted, in whichever family.
    TableDeleted(String),
    /// So much happened that messages were lost: anything may have been deleted.
    Lost,
}

/// Listens to the kernel's news of nf_tables in the network namespace where it was opened.
pub struct Monitor {
    fd: AsyncFd<std::os::fd::OwnedFd>,
}

impl Monitor {
    /// Must be called within a tokio runtime.
    pub fn open() -> Result<Self> {
        let flags = SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK;
        let fd = socket(AddressFamily::Netlink, SockType::Raw, flags, SockProtocol::NetlinkNetFilter)
            .map_err(Error::os("opening a netlink socket"))?;
        let groups = 1 << (NFNLGRP_NFTABLES - 1);
        bind(fd.as_raw_fd(), &NetlinkAddr::new(0, groups)).map_err(Error::os("subscribing to nftables news"))?;
        // SAFETY: an `OwnedFd` names one open socket until it is dropped, and nobody replaces it meanwhile.
        let fd =
            unsafe { AsyncFd::register(fd) }.map_err(|error| Error::io("watching a netlink socket")(error.into()))?;
        Ok(Monitor { fd })
    }

    /// Waits for the next news. Cancellation safe. Our own replacements of a table are seen as well: the caller must look
    /// whether the table is really gone.
    pub async fn next(&self) -> Seen {
        let mut buffer = vec![0u8; 64 * 1024];
        loop {
            let Ok(mut ready) = self.fd.readable().await else {
                // The runtime is shutting down: there is no more news.
                return std::future::pending().await;
            };
            let received = ready.try_io(|fd| Ok(recv(fd.as_raw_fd(), &mut buffer, MsgFlags::empty())?));
            match received {
                Ok(Ok(len)) => {
                    if let Some(table) = deleted_table(&buffer[..len]) {
                        return Seen::TableDeleted(table);
                    }
                }
                // The socket's buffer overflowed; the error is told once, then reading goes on.
                Ok(Err(_overflow)) => return Seen::Lost,
                Err(_would_block) => {}
            }
        }
    }
}

fn deleted_table(mut bytes: &[u8]) -> Option<String> {
    while let Some(header) = bytes.first_chunk::<HEADER_LEN>() {
        let len = u32::from_ne_bytes([header[0], header[1], header[2], header[3]]) as usize;
        let kind = u16::from_ne_bytes([header[4], header[5]]);
        let payload = bytes.get(HEADER_LEN..len)?;
        if kind == (NFNL_SUBSYS_NFTABLES << 8) | libc::NFT_MSG_DELTABLE as u16 {
            return Attributes::after(payload, NFGENMSG_LEN).get(1).map(|a| a.as_str().to_owned());
        }
        bytes = bytes.get((len + 3) & !3..).unwrap_or_default();
    }
    None
}
