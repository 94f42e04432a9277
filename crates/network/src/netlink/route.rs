//! Links, addresses and routes by rtnetlink: only what the pod network needs.

use std::net::IpAddr;
use std::os::fd::{AsRawFd, BorrowedFd};

use ipnet::IpNet;
use nix::errno::Errno;

use super::{Attributes, Socket, Writer};
use crate::{Error, Result};

const IFINFOMSG_LEN: usize = 16;
const RTMSG_LEN: usize = 12;
const IFADDRMSG_LEN: usize = 8;
const VETH_INFO_PEER: u16 = 1;
const RTNH_F_ONLINK: u32 = 4;
/// Marks our routes, so that stale ones are known after a restart. Any unassigned number serves; see rt_protos.
pub const ROUTE_PROTOCOL: u8 = 181;

const CREATE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_EXCL) as u16;
const REPLACE: u16 = (libc::NLM_F_CREATE | libc::NLM_F_REPLACE) as u16;

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Link {
    pub index: u32,
    pub name: String,
    /// As text, `aa:bb:…`.
    pub mac: String,
    /// Asked to be up.
    pub up: bool,
    /// Really passes packets.
    pub operational: bool,
    pub mtu: u32,
}

/// Where a route sends packets.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Via {
    /// Straight onto a link. `source` is the address that the host uses to these destinations.
    Link { index: u32, source: Option<IpAddr> },
    /// To a router that is a neighbour on whichever link reaches it.
    Gateway { address: IpAddr },
    /// To a router on this link, even where no address of the link covers it.
    OnLinkGateway { index: u32, address: IpAddr },
    /// Refused with an ICMP message.
    Unreachable,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Route {
    pub destination: IpNet,
    pub via: Via,
    /// Lower is preferred. Zero is the kernel's default.
    pub metric: u32,
}

fn family_of(address: IpAddr) -> u8 {
    (if address.is_ipv4() { libc::AF_INET } else { libc::AF_INET6 }) as u8
}

fn octets(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn ifinfomsg(index: u32, flags: u32, change: u32) -> [u8; IFINFOMSG_LEN] {
    let mut header = [0; IFINFOMSG_LEN];
    header[4..8].copy_from_slice(&index.to_ne_bytes());
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    header[12..16].copy_from_slice(&change.to_ne_bytes());
    header
}

/// Rtnetlink in one network namespace.
pub struct Handle {
    socket: Socket,
}

impl Handle {
    /// Speaks to the network namespace of the calling thread, also after the thread has left it.
    pub fn open() -> Result<Self> {
        Ok(Handle { socket: Socket::route()? })
    }

    /// Makes a veth pair: `name` here, `peer_name` in the namespace `peer_namespace`. Both are down.
    pub fn add_veth(&mut self, name: &str, peer_name: &str, peer_namespace: BorrowedFd<'_>, mtu: u32) -> Result<()> {
        let what = format!("creating the veth pair {name} and {peer_name}");
        self.socket.request(&what, libc::RTM_NEWLINK, CREATE, |w| {
            w.raw(&ifinfomsg(0, 0, 0));
            w.string(libc::IFLA_IFNAME, name);
            w.ne32(libc::IFLA_MTU, mtu);
            w.nest(libc::IFLA_LINKINFO, |w| {
                w.string(libc::IFLA_INFO_KIND, "veth");
                w.nest(libc::IFLA_INFO_DATA, |w| {
                    w.nest(VETH_INFO_PEER, |w| {
                        w.raw(&ifinfomsg(0, 0, 0));
                        w.string(libc::IFLA_IFNAME, peer_name);
                        w.ne32(libc::IFLA_MTU, mtu);
                        w.attribute(libc::IFLA_NET_NS_FD, &peer_namespace.as_raw_fd().to_ne_bytes());
                    });
                });
            });
        })
    }

    /// None if there is no such link.
    pub fn link(&mut self, name: &str) -> Result<Option<Link>> {
        let replies = self.socket.query(&format!("looking up link {name}"), libc::RTM_GETLINK, 0, |w| {
            w.raw(&ifinfomsg(0, 0, 0));
            w.string(libc::IFLA_IFNAME, name);
        });
        match replies {
            Ok(replies) => Ok(replies.first().and_then(|r| parse_link(&r.payload))),
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(None),
            Err(error) => Err(error),
        }
    }

    pub fn links(&mut self) -> Result<Vec<Link>> {
        let replies = self.socket.query("listing links", libc::RTM_GETLINK, libc::NLM_F_DUMP, |w| {
            w.raw(&ifinfomsg(0, 0, 0));
        })?;
        Ok(replies.iter().filter_map(|r| parse_link(&r.payload)).collect())
    }

    pub fn set_up(&mut self, index: u32) -> Result<()> {
        let up = libc::IFF_UP as u32;
        self.socket.request(&format!("setting link {index} up"), libc::RTM_NEWLINK, 0, |w| {
            w.raw(&ifinfomsg(index, up, up));
        })
    }

    /// Deletes a link; the other end of a veth pair goes with it. No error if it is gone already.
    pub fn delete_link(&mut self, name: &str) -> Result<()> {
        let deleted = self.socket.request(&format!("deleting link {name}"), libc::RTM_DELLINK, 0, |w| {
            w.raw(&ifinfomsg(0, 0, 0));
            w.string(libc::IFLA_IFNAME, name);
        });
        match deleted {
            Err(error) if error.errno() == Some(Errno::ENODEV) => Ok(()),
            other => other,
        }
    }

    /// Gives a link an address. No error if it has it already.
    pub fn add_address(&mut self, index: u32, address: IpNet) -> Result<()> {
        // IPv6: no duplicate detection; the pod could not use its address for a second.
        let flags = if address.addr().is_ipv6() { libc::IFA_F_NODAD as u8 } else { 0 };
        self.socket.request(&format!("adding address {address}"), libc::RTM_NEWADDR, REPLACE, |w| {
            let mut header = [0; IFADDRMSG_LEN];
            header[..4].copy_from_slice(&[family_of(address.addr()), address.prefix_len(), flags, 0]);
            header[4..].copy_from_slice(&index.to_ne_bytes());
            w.raw(&header);
            w.attribute(libc::IFA_LOCAL, &octets(address.addr()));
            w.attribute(libc::IFA_ADDRESS, &octets(address.addr()));
        })
    }

    /// The addresses of all links, each with its link's index.
    pub fn all_addresses(&mut self) -> Result<Vec<(u32, IpNet)>> {
        let replies = self.socket.query("listing addresses", libc::RTM_GETADDR, libc::NLM_F_DUMP, |w| {
            w.raw(&[0; IFADDRMSG_LEN]);
        })?;
        let parse = |payload: &[u8]| -> Option<(u32, IpNet)> {
            let index = u32::from_ne_bytes(payload.get(4..8)?.try_into().ok()?);
            let attributes = Attributes::after(payload, IFADDRMSG_LEN);
            let address = attributes.get(libc::IFA_LOCAL).or_else(|| attributes.get(libc::IFA_ADDRESS))?;
            Some((index, IpNet::new(address.as_address()?, payload[1]).ok()?))
        };
        Ok(replies.iter().filter_map(|r| parse(&r.payload)).collect())
    }

    /// Adds a route, or replaces the one of the same destination and metric.
    pub fn set_route(&mut self, route: &Route) -> Result<()> {
        let what = format!("setting the route to {}", route.destination);
        self.socket.request(&what, libc::RTM_NEWROUTE, REPLACE, |w| write_route(w, route))
    }

    /// Deletes a route. No error if it is gone already.
    pub fn delete_route(&mut self, route: &Route) -> Result<()> {
        let what = format!("deleting the route to {}", route.destination);
        match self.socket.request(&what, libc::RTM_DELROUTE, 0, |w| write_route(w, route)) {
            Err(error) if error.errno() == Some(Errno::ESRCH) => Ok(()),
            other => other,
        }
    }

    /// The routes of the main table that carry [`ROUTE_PROTOCOL`].
    pub fn own_routes(&mut self) -> Result<Vec<Route>> {
        let replies = self.socket.query("listing routes", libc::RTM_GETROUTE, libc::NLM_F_DUMP, |w| {
            w.raw(&[0; RTMSG_LEN]);
        })?;
        Ok(replies.iter().filter_map(|r| parse_own_route(&r.payload)).collect())
    }
}

fn write_route(w: &mut Writer, route: &Route) {
    let (kind, scope, flags) = match route.via {
        Via::Link { .. } => (libc::RTN_UNICAST, libc::RT_SCOPE_LINK, 0),
        Via::Gateway { .. } => (libc::RTN_UNICAST, libc::RT_SCOPE_UNIVERSE, 0),
        Via::OnLinkGateway { .. } => (libc::RTN_UNICAST, libc::RT_SCOPE_UNIVERSE, RTNH_F_ONLINK),
        Via::Unreachable => (libc::RTN_UNREACHABLE, libc::RT_SCOPE_UNIVERSE, 0),
    };
    // IPv6 has no scopes; the kernel ignores the field.
    let mut header = [0; RTMSG_LEN];
    header[0] = family_of(route.destination.addr());
    header[1] = route.destination.prefix_len();
    header[4] = libc::RT_TABLE_MAIN;
    header[5] = ROUTE_PROTOCOL;
    header[6] = scope;
    header[7] = kind;
    header[8..12].copy_from_slice(&flags.to_ne_bytes());
    w.raw(&header);
    if route.destination.prefix_len() > 0 {
        w.attribute(libc::RTA_DST, &octets(route.destination.network()));
    }
    match route.via {
        Via::Link { index, source } => {
            w.ne32(libc::RTA_OIF, index);
            if let Some(source) = source {
                w.attribute(libc::RTA_PREFSRC, &octets(source));
            }
        }
        Via::Gateway { address } => w.attribute(libc::RTA_GATEWAY, &octets(address)),
        Via::OnLinkGateway { index, address } => {
            w.ne32(libc::RTA_OIF, index);
            w.attribute(libc::RTA_GATEWAY, &octets(address));
        }
        Via::Unreachable => {}
    }
    if route.metric > 0 {
        w.ne32(libc::RTA_PRIORITY, route.metric);
    }
}

fn parse_own_route(payload: &[u8]) -> Option<Route> {
    let header = payload.first_chunk::<RTMSG_LEN>()?;
    if header[4] != libc::RT_TABLE_MAIN || header[5] != ROUTE_PROTOCOL {
        return None;
    }
    let attributes = Attributes::after(payload, RTMSG_LEN);
    let unspecified: IpAddr = if i32::from(header[0]) == libc::AF_INET { [0u8; 4].into() } else { [0u8; 16].into() };
    let destination = attributes.get(libc::RTA_DST).and_then(|a| a.as_address()).unwrap_or(unspecified);
    let index = attributes.get(libc::RTA_OIF).and_then(|a| a.as_ne32());
    let gateway = attributes.get(libc::RTA_GATEWAY).and_then(|a| a.as_address());
    let via = match (header[7], gateway, index) {
        (libc::RTN_UNREACHABLE, ..) => Via::Unreachable,
        (_, Some(address), _) => Via::Gateway { address },
        (_, None, Some(index)) => {
            Via::Link { index, source: attributes.get(libc::RTA_PREFSRC).and_then(|a| a.as_address()) }
        }
        (_, None, None) => return None,
    };
    let metric = attributes.get(libc::RTA_PRIORITY).and_then(|a| a.as_ne32()).unwrap_or(0);
    Some(Route { destination: IpNet::new(destination, header[1]).ok()?, via, metric })
}

fn parse_link(payload: &[u8]) -> Option<Link> {
    let header = payload.first_chunk::<IFINFOMSG_LEN>()?;
    let field = |at: usize| u32::from_ne_bytes([header[at], header[at + 1], header[at + 2], header[at + 3]]);
    let attributes = Attributes::after(payload, IFINFOMSG_LEN);
    let name = attributes.get(libc::IFLA_IFNAME)?.as_str().to_owned();
    let mac: Vec<String> = attributes
        .get(libc::IFLA_ADDRESS)
        .map(|a| a.value.iter().map(|b| format!("{b:02x}")).collect())
        .unwrap_or_default();
    const IF_OPER_UP: u8 = 6;
    let operational = attributes.get(libc::IFLA_OPERSTATE).is_some_and(|a| a.value.first() == Some(&IF_OPER_UP));
    let mtu = attributes.get(libc::IFLA_MTU).and_then(|a| a.as_ne32()).unwrap_or_default();
    Some(Link { index: field(4), name, mac: mac.join(":"), up: field(8) & libc::IFF_UP as u32 != 0, operational, mtu })
}

impl Handle {
    /// The link, which must exist.
    pub fn expect_link(&mut self, name: &str) -> Result<Link> {
        self.link(name)?.ok_or_else(|| Error::CheckFailed(format!("link {name} is missing")))
    }
}
