//! Connecting a network namespace to the host's routing.

use std::fs::File;
use std::net::IpAddr;
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::time::Duration;

use ipnet::IpNet;
use nix::sched::{CloneFlags, setns};

use crate::netlink::route::{Handle, Link, Route, Via};
use crate::{Error, Result};

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attachment {
    /// The name of the host's end.
    pub host_link: String,
    /// The name of the pod's end.
    pub interface: String,
    pub netns: PathBuf,
    /// The pod's addresses, each with its gateway.
    pub addresses: Vec<(IpAddr, IpAddr)>,
    pub mtu: u32,
}

/// The two ends' hardware addresses.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Attached {
    pub host_mac: String,
    pub pod_mac: String,
}

/// Makes the veth pair with addresses and routes on both sides. The calling thread comes back to its own namespace.
pub fn attach(attachment: &Attachment) -> Result<Attached> {
    let netns = open_netns(&attachment.netns)?;
    let mut host = Handle::open()?;
    let mut pod = handle_in(&netns)?;
    host.add_veth(&attachment.host_link, &attachment.interface, netns.as_fd(), attachment.mtu)?;

    let pod_link = pod.expect_link(&attachment.interface)?;
    let lo = pod.expect_link("lo")?;
    pod.set_up(lo.index)?;
    let host_link = host.expect_link(&attachment.host_link)?;
    for (setting, value) in HOST_SETTINGS {
        set(setting, &host_link.name, value);
    }
    if attachment.addresses.iter().any(|(address, _)| address.is_ipv6()) {
        in_netns(&netns, || set(NO_DUPLICATE_DETECTION, &pod_link.name, "0"))?;
    }
    host.set_up(host_link.index)?;
    pod.set_up(pod_link.index)?;
    for (address, gateway) in &attachment.addresses {
        host.add_address(host_link.index, IpNet::from(*gateway))?;
        host.set_route(&host_route(&host_link, *address, *gateway))?;
        pod.add_address(pod_link.index, IpNet::from(*address))?;
        for route in pod_routes(&pod_link, *gateway) {
            pod.set_route(&route)?;
        }
    }
    wait_until_operational(&mut host, &host_link.name)?;
    wait_until_operational(&mut pod, &pod_link.name)?;
    Ok(Attached { host_mac: host_link.mac, pod_mac: pod_link.mac })
}

/// The end that was set up first becomes able to send on a kernel thread, a moment after its peer is up. What it is given
/// before is lost: a pod's first packet would wait a second for the next ARP request. To ask makes newer kernels do it at
/// once; older ones need the moment, and a pod is not held back for longer.
fn wait_until_operational(handle: &mut Handle, link: &str) -> Result<()> {
    const MOMENT: Duration = Duration::from_micros(200);
    const ATTEMPTS: u32 = 250;
    for _ in 0..ATTEMPTS {
        if handle.expect_link(link)?.operational {
            return Ok(());
        }
        std::thread::sleep(MOMENT);
    }
    Ok(())
}

/// Takes the pair away. No error if it is gone, as it is when the pod's namespace is.
pub fn detach(host_link: &str) -> Result<()> {
    Handle::open()?.delete_link(host_link)
}

/// Whether everything that [`attach`] made is still there.
pub fn check(attachment: &Attachment) -> Result<()> {
    let netns = open_netns(&attachment.netns)?;
    let mut host = Handle::open()?;
    let mut pod = handle_in(&netns)?;
    let host_link = host.expect_link(&attachment.host_link)?;
    let pod_link = pod.expect_link(&attachment.interface)?;
    if !host_link.up || !pod_link.up {
        return Err(Error::CheckFailed(format!("{} or {} is down", host_link.name, pod_link.name)));
    }
    let (pod_addresses, host_routes, routes) = (pod.all_addresses()?, host.own_routes()?, pod.own_routes()?);
    for (address, gateway) in &attachment.addresses {
        if !pod_addresses.contains(&(pod_link.index, IpNet::from(*address))) {
            return Err(Error::CheckFailed(format!("{} does not have the address {address}", pod_link.name)));
        }
        let to_pod = IpNet::from(*address);
        if !host_routes.iter().any(|route| route.destination == to_pod) {
            return Err(Error::CheckFailed(format!("the host has no route to {address}")));
        }
        if !routes.iter().any(|r| r.destination.prefix_len() == 0 && r.destination.contains(gateway)) {
            return Err(Error::CheckFailed(format!("the pod has no default route through {gateway}")));
        }
    }
    Ok(())
}

/// What the plugin `loopback` is for.
pub fn set_loopback_up(netns: &Path) -> Result<()> {
    let mut pod = handle_in(&open_netns(netns)?)?;
    let lo = pod.expect_link("lo")?;
    pod.set_up(lo.index)
}

fn host_route(link: &Link, address: IpAddr, gateway: IpAddr) -> Route {
    let via = Via::Link { index: link.index, source: Some(gateway) };
    Route { destination: IpNet::from(address), via, metric: 0 }
}

fn pod_routes(link: &Link, gateway: IpAddr) -> [Route; 2] {
    let everywhere: IpNet = match gateway {
        IpAddr::V4(_) => IpNet::new([0; 4].into(), 0),
        IpAddr::V6(_) => IpNet::new([0u8; 16].into(), 0),
    }
    .expect("zero is a valid prefix length");
    [
        Route { destination: IpNet::from(gateway), via: Via::Link { index: link.index, source: None }, metric: 0 },
        Route { destination: everywhere, via: Via::OnLinkGateway { index: link.index, address: gateway }, metric: 0 },
    ]
}

fn open_netns(path: &Path) -> Result<File> {
    File::open(path).map_err(Error::file("opening the network namespace", path))
}

/// A netlink handle that speaks to another namespace.
fn handle_in(netns: &File) -> Result<Handle> {
    in_netns(netns, Handle::open)?
}

/// Does something with the calling thread in another network namespace.
fn in_netns<T>(netns: &File, work: impl FnOnce() -> T) -> Result<T> {
    let own_path = Path::new("/proc/thread-self/ns/net");
    let own = File::open(own_path).map_err(Error::file("opening", own_path))?;
    setns(netns, CloneFlags::CLONE_NEWNET).map_err(Error::os("entering the pod's network namespace"))?;
    let done = work();
    setns(&own, CloneFlags::CLONE_NEWNET).map_err(Error::os("returning to the host's network namespace"))?;
    Ok(done)
}

/// Nobody else can have the address, and until the detection is over (a second) neighbours cannot be asked for.
const NO_DUPLICATE_DETECTION: &str = "ipv6/conf/{}/accept_dad";

/// A pod that reaches itself through a service goes out and in by the same link: the kernel would tell it of a "better" way.
/// And no router advertisement of a pod may change the host's routes.
const HOST_SETTINGS: [(&str, &str); 3] =
    [("ipv4/conf/{}/send_redirects", "0"), ("ipv6/conf/{}/accept_ra", "0"), (NO_DUPLICATE_DETECTION, "0")];

/// Sets a link's parameter. A missing file means that the kernel has no such feature.
fn set(setting: &str, link: &str, value: &str) {
    let path = PathBuf::from("/proc/sys/net").join(setting.replace("{}", link));
    if let Err(error) = std::fs::write(&path, value) {
        tracing::debug!(%error, path = %path.display(), "cannot set");
    }
}
