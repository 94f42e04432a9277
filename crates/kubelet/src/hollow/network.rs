//! Networks of nodes and the addresses of their pods. Pure.

use std::net::IpAddr;
use std::str::FromStr;

/// Prefix of a node's part of a larger network, as the node address controller's defaults.
const NODE_BITS: [(u8, u8); 2] = [(32, 24), (128, 64)];
/// Addresses of one node's network that are given to pods at most.
const MOST_ADDRESSES: u128 = 1 << 16;

/// An IP network in CIDR form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Network {
    /// With the bits after the prefix zero.
    base: u128,
    /// Length of the prefix.
    bits: u8,
    /// Length of an address: 32 or 128.
    width: u8,
}

impl FromStr for Network {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong = || format!("{text:?} is no network such as 10.42.0.0/16");
        let (address, bits) = text.split_once('/').ok_or_else(wrong)?;
        let (address, bits): (IpAddr, u8) = (address.parse().map_err(|_| wrong())?, bits.parse().map_err(|_| wrong())?);
        let (value, width) = match address {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
            IpAddr::V6(ip) => (u128::from(ip), 128),
        };
        if bits > width {
            return Err(wrong());
        }
        let host = host_mask(width - bits);
        Ok(Network { base: value & !host, bits, width })
    }
}

impl std::fmt::Display for Network {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{}/{}", self.address(0), self.bits)
    }
}

/// The lowest `bits` bits.
fn host_mask(bits: u8) -> u128 {
    1u128.checked_shl(u32::from(bits)).map_or(u128::MAX, |bit| bit - 1)
}

impl Network {
    /// The part of the `index`th node. None where the network is too small for so many.
    pub fn part(&self, index: u32) -> Option<Network> {
        let (_, usual) = NODE_BITS.into_iter().find(|(width, _)| *width == self.width)?;
        let bits = usual.max(self.bits);
        let offset = u128::from(index) << (self.width - bits);
        (offset & !host_mask(self.width - self.bits) == 0).then_some(Network {
            base: self.base | offset,
            bits,
            ..*self
        })
    }

    /// The address so far from the network's first.
    pub fn address(&self, offset: u32) -> IpAddr {
        let value = self.base + u128::from(offset);
        match u32::try_from(value) {
            Ok(value) if self.width == 32 => IpAddr::V4(value.into()),
            _ => IpAddr::V6(value.into()),
        }
    }

    /// How far an address is from the network's first; none if it is outside.
    fn offset(&self, address: IpAddr) -> Option<u32> {
        let (value, width) = match address {
            IpAddr::V4(ip) => (u128::from(u32::from(ip)), 32),
            IpAddr::V6(ip) => (u128::from(ip), 128),
        };
        let inside = width == self.width && value & !host_mask(self.width - self.bits) == self.base;
        if inside { u32::try_from(value - self.base).ok() } else { None }
    }

    /// One past the last offset that a pod may have: the last address is the broadcast's.
    fn end(&self) -> u32 {
        let size = host_mask(self.width - self.bits).min(MOST_ADDRESSES);
        u32::try_from(size).unwrap_or(u32::MAX)
    }
}

/// The addresses of one node's pods. The first two of the network are not given out: network and gateway.
#[derive(Debug)]
pub struct Pool {
    network: Network,
    /// A bit for each offset that is taken.
    taken: Vec<u64>,
}

const FIRST: u32 = 2;

impl Pool {
    pub fn new(network: Network) -> Self {
        Pool { network, taken: Vec::new() }
    }

    pub fn network(&self) -> Network {
        self.network
    }

    /// Takes the lowest free address. None if there is none.
    pub fn take(&mut self) -> Option<IpAddr> {
        let free = (FIRST..self.network.end()).find(|offset| !self.is_taken(*offset))?;
        self.set(free, true);
        Some(self.network.address(free))
    }

    /// Marks an address that a pod has already. Others' addresses are none of ours.
    pub fn reserve(&mut self, address: IpAddr) {
        if let Some(offset) = self.network.offset(address).filter(|offset| *offset < self.network.end()) {
            self.set(offset, true);
        }
    }

    pub fn release(&mut self, address: IpAddr) {
        if let Some(offset) = self.network.offset(address) {
            self.set(offset, false);
        }
    }

    fn is_taken(&self, offset: u32) -> bool {
        self.taken.get(offset as usize / 64).is_some_and(|word| word & (1 << (offset % 64)) != 0)
    }

    fn set(&mut self, offset: u32, taken: bool) {
        let word = offset as usize / 64;
        if self.taken.len() <= word {
            if !taken {
                return;
            }
            self.taken.resize(word + 1, 0);
        }
        if taken {
            self.taken[word] |= 1 << (offset % 64);
        } else {
            self.taken[word] &= !(1 << (offset % 64));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn network(text: &str) -> Network {
        text.parse().unwrap()
    }

    #[test]
    fn parts_of_a_network() {
        let whole = network("10.64.7.9/11");
        assert_eq!(whole.to_string(), "10.64.0.0/11");
        assert_eq!(whole.part(257).unwrap().to_string(), "10.65.1.0/24");
        assert_eq!(whole.part(8191).unwrap().to_string(), "10.95.255.0/24");
        assert_eq!(whole.part(8192), None);
        assert_eq!(network("fd00::/48").part(3).unwrap().to_string(), "fd00:0:0:3::/64");
        for wrong in ["10.0.0.0", "10.0.0.0/33", "x/8", ""] {
            assert!(wrong.parse::<Network>().is_err(), "{wrong}");
        }
    }

    #[test]
    fn addresses_are_given_once_and_again_when_free() {
        let mut pool = Pool::new(network("10.1.2.0/29"));
        let taken: Vec<String> = std::iter::from_fn(|| pool.take()).map(|ip| ip.to_string()).collect();
        assert_eq!(taken, ["10.1.2.2", "10.1.2.3", "10.1.2.4", "10.1.2.5", "10.1.2.6"]);
        pool.release("10.1.2.4".parse().unwrap());
        pool.release("192.0.2.4".parse().unwrap());
        assert_eq!(pool.take(), Some("10.1.2.4".parse().unwrap()));
        assert_eq!(pool.take(), None);
    }

    #[test]
    fn what_pods_have_is_not_given_again() {
        let mut pool = Pool::new(network("10.1.2.0/24"));
        pool.reserve("10.1.2.2".parse().unwrap());
        pool.reserve("10.9.9.3".parse().unwrap());
        assert_eq!(pool.take(), Some("10.1.2.3".parse().unwrap()));
        assert_eq!(Pool::new(network("10.1.2.7/32")).take(), None);
        assert_eq!(Pool::new(network("fd00::/64")).take(), Some("fd00::2".parse().unwrap()));
    }
}
