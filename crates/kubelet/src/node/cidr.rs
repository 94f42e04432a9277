//! The pod network of one node, cut from the cluster's, for clusters where nothing else gives out `spec.podCIDR`. Pure.

use std::net::IpAddr;

/// Bits of a node's network: 256 addresses under IPv4, as many as one could wish under IPv6.
const NODE_BITS_V4: u8 = 24;
const NODE_BITS_V6: u8 = 64;

/// The first node network in each of the comma-separated cluster networks. What cannot be read is left out.
pub fn first_of(cluster_cidrs: &str) -> Vec<String> {
    let networks = cluster_cidrs.split(',').filter_map(|cidr| {
        let (address, bits) = cidr.trim().split_once('/')?;
        let (address, bits): (IpAddr, u8) = (address.parse().ok()?, bits.parse().ok()?);
        let (longest, wanted) = if address.is_ipv4() { (32, NODE_BITS_V4) } else { (128, NODE_BITS_V6) };
        (bits <= longest).then(|| format!("{}/{}", masked(address, bits), bits.max(wanted)))
    });
    networks.collect()
}

fn masked(address: IpAddr, bits: u8) -> IpAddr {
    match address {
        IpAddr::V4(ip) => {
            let mask = u32::MAX.checked_shl(32 - u32::from(bits)).unwrap_or(0);
            IpAddr::V4((u32::from(ip) & mask).into())
        }
        IpAddr::V6(ip) => {
            let mask = u128::MAX.checked_shl(128 - u32::from(bits)).unwrap_or(0);
            IpAddr::V6((u128::from(ip) & mask).into())
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_networks() {
        assert_eq!(first_of("10.42.7.9/16"), ["10.42.0.0/24"]);
        assert_eq!(first_of("10.42.0.128/26, fd00:1::/48"), ["10.42.0.128/26", "fd00:1::/64"]);
        assert!(first_of("nonsense,1.2.3.4/40,").is_empty());
    }
}
