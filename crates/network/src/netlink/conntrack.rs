//! Connection tracking: finding and deleting entries.
//!
//! A UDP "connection" lives as long as its client keeps sending, so a client would talk for ever to an endpoint that is
//! gone. Whoever changes UDP rules deletes the entries that the new rules would not have made.

use std::net::IpAddr;

use super::{Attributes, Socket};
use crate::Result;

const NFNL_SUBSYS_CTNETLINK: u16 = 1;
const IPCTNL_MSG_CT_GET: u16 = (NFNL_SUBSYS_CTNETLINK << 8) | 1;
const IPCTNL_MSG_CT_DELETE: u16 = (NFNL_SUBSYS_CTNETLINK << 8) | 2;
const NFGENMSG_LEN: usize = 4;

const CTA_TUPLE_ORIG: u16 = 1;
const CTA_TUPLE_REPLY: u16 = 2;
const CTA_TUPLE_IP: u16 = 1;
const CTA_TUPLE_PROTO: u16 = 2;
const CTA_IP_V4_SRC: u16 = 1;
const CTA_IP_V4_DST: u16 = 2;
const CTA_IP_V6_SRC: u16 = 3;
const CTA_IP_V6_DST: u16 = 4;
const CTA_PROTO_NUM: u16 = 1;
const CTA_PROTO_DST_PORT: u16 = 3;

/// One tracked flow: what the client sent, and who answers.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Flow {
    pub protocol: u8,
    /// The destination as the client sees it.
    pub destination: IpAddr,
    pub destination_port: u16,
    /// Who answers: the endpoint behind a service, or the destination itself where nothing was translated.
    pub answering: IpAddr,
}

/// Deletes the entries of `protocol` (an IP protocol number) of the given address family that `stale` picks; returns how many.
///
/// Reads the whole table: to be called when something has changed, not in a loop.
pub fn delete_flows(ipv6: bool, protocol: u8, stale: impl Fn(&Flow) -> bool) -> Result<usize> {
    let family = (if ipv6 { libc::AF_INET6 } else { libc::AF_INET }) as u8;
    let header = [family, 0, 0, 0];
    let mut socket = Socket::netfilter()?;
    let replies = socket.query("listing tracked flows", IPCTNL_MSG_CT_GET, libc::NLM_F_DUMP, |w| w.raw(&header))?;
    let mut deleted = 0;
    for reply in replies {
        let attributes = Attributes::after(&reply.payload, NFGENMSG_LEN);
        let Some(flow) = parse_flow(attributes) else { continue };
        if flow.protocol != protocol || !stale(&flow) {
            continue;
        }
        let Some(original) = attributes.get(CTA_TUPLE_ORIG) else { continue };
        // It may have expired meanwhile.
        let gone = socket.request("deleting a tracked flow", IPCTNL_MSG_CT_DELETE, 0, |w| {
            w.raw(&header);
            w.attribute(CTA_TUPLE_ORIG | super::NLA_F_NESTED, original.value);
        });
        match gone {
            Ok(()) => deleted += 1,
            Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(deleted)
}

fn parse_flow(attributes: Attributes<'_>) -> Option<Flow> {
    let original = attributes.get(CTA_TUPLE_ORIG)?.nested();
    let reply = attributes.get(CTA_TUPLE_REPLY)?.nested();
    let ip = original.get(CTA_TUPLE_IP)?.nested();
    let proto = original.get(CTA_TUPLE_PROTO)?.nested();
    let reply_ip = reply.get(CTA_TUPLE_IP)?.nested();
    Some(Flow {
        protocol: *proto.get(CTA_PROTO_NUM)?.value.first()?,
        destination: ip.get(CTA_IP_V4_DST).or_else(|| ip.get(CTA_IP_V6_DST))?.as_address()?,
        destination_port: proto.get(CTA_PROTO_DST_PORT)?.as_be16()?,
        answering: reply_ip.get(CTA_IP_V4_SRC).or_else(|| reply_ip.get(CTA_IP_V6_SRC))?.as_address()?,
    })
}
