//! Which pod has which address: one file per attachment, under a lock.
//!
//! A file's name says all that allocation needs (`<address>[_<address>]@<container>@<interface>`), so that one directory
//! listing suffices; its content is for giving things back. Files appear by rename. Whatever is interrupted, the worst
//! that stays is a record whose pod is dead, and such records are found by that: when addresses run out, by GC and at start.

use std::collections::HashSet;
use std::fs::{self, File};
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};

use ipnet::IpNet;
use nix::fcntl::{Flock, FlockArg};
use nix::sys::statfs::{NSFS_MAGIC, statfs};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};

use super::config::gateway_of;
use crate::nft::Protocol;
use crate::{Error, Result};

const LOCK_FILE: &str = "lock";
/// The addresses given out last: the next search begins behind them, so that an address rests before it is used again.
const LAST_FILE: &str = "last";
const UNFINISHED: &str = ".new";

/// Who holds an address: one interface of one sandbox.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct Owner {
    pub container: String,
    pub interface: String,
}

impl Owner {
    /// The name of the host's end of the veth pair: of fixed length and the same at every call.
    pub fn host_link(&self) -> String {
        let digest = Sha256::digest(format!("{}/{}", self.container, self.interface));
        let hex: String = digest[..5].iter().map(|byte| format!("{byte:02x}")).collect();
        format!("veth{hex}")
    }
}

/// A port of the host that leads to a port of the pod.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct PortMapping {
    pub protocol: Protocol,
    pub host_port: u16,
    pub container_port: u16,
    /// None: all addresses of the host.
    pub host_ip: Option<IpAddr>,
}

/// One attachment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Record {
    pub owner: Owner,
    /// One per pod network.
    pub addresses: Vec<IpAddr>,
    pub netns: PathBuf,
    pub ports: Vec<PortMapping>,
}

/// A record's content on disk.
#[derive(Default, Serialize, Deserialize)]
struct Content {
    netns: PathBuf,
    #[serde(default)]
    ports: Vec<PortContent>,
}

#[derive(Serialize, Deserialize)]
struct PortContent {
    protocol: String,
    host: u16,
    container: u16,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    host_ip: Option<IpAddr>,
}

impl Record {
    fn file_name(&self) -> String {
        let addresses: Vec<String> = self.addresses.iter().map(IpAddr::to_string).collect();
        format!("{}@{}@{}", addresses.join("_"), self.owner.container, self.owner.interface)
    }

    /// None if the name is not a record's.
    fn from_file_name(name: &str) -> Option<Self> {
        let mut parts = name.split('@');
        let (addresses, container, interface) = (parts.next()?, parts.next()?, parts.next()?);
        if parts.next().is_some() || name.ends_with(UNFINISHED) {
            return None;
        }
        let addresses = addresses.split('_').map(|a| a.parse().ok()).collect::<Option<Vec<IpAddr>>>()?;
        let owner = Owner { container: container.to_owned(), interface: interface.to_owned() };
        Some(Record { owner, addresses, netns: PathBuf::new(), ports: Vec::new() })
    }

    /// Whether the pod's network namespace is gone, by reboot or because nobody called DEL.
    pub fn is_dead(&self) -> bool {
        let mounted = statfs(&self.netns);
        !mounted.is_ok_and(|fs| fs.filesystem_type() == NSFS_MAGIC)
    }
}

/// The records of this node, held exclusively: other calls of the plugin wait.
pub struct Pool {
    directory: PathBuf,
    _lock: Flock<File>,
}

impl Pool {
    /// Waits for the lock on `directory`, which is made if it is missing.
    pub fn lock(directory: &Path) -> Result<Self> {
        fs::create_dir_all(directory).map_err(Error::file("creating", directory))?;
        let path = directory.join(LOCK_FILE);
        let file = File::options().create(true).append(true).mode(0o600).open(&path);
        let file = file.map_err(Error::file("opening", &path))?;
        let lock = Flock::lock(file, FlockArg::LockExclusive)
            .map_err(|(_, errno)| Error::os(format!("locking {}", path.display()))(errno))?;
        Ok(Pool { directory: directory.to_owned(), _lock: lock })
    }

    /// All attachments on record.
    pub fn records(&self) -> Result<Vec<Record>> {
        let mut records = self.names()?;
        for record in &mut records {
            let content = fs::read(self.directory.join(record.file_name())).unwrap_or_default();
            // A power cut may leave an empty file: then the record says nothing of its pod, which did not survive either.
            let content: Content = serde_json::from_slice(&content).unwrap_or_default();
            record.netns = content.netns;
            record.ports = content.ports.iter().filter_map(PortContent::decode).collect();
        }
        Ok(records)
    }

    /// Gives `owner` an address of each network and records it.
    ///
    /// Errors: [`Error::PoolExhausted`] if a network has none left.
    pub fn allocate(
        &mut self,
        owner: &Owner,
        networks: &[IpNet],
        netns: &Path,
        ports: Vec<PortMapping>,
    ) -> Result<Record> {
        if networks.is_empty() {
            return Err(Error::Config("no pod network is configured".into()));
        }
        let used: HashSet<IpAddr> = self.names()?.into_iter().flat_map(|record| record.addresses).collect();
        let last = self.last();
        let mut addresses = Vec::with_capacity(networks.len());
        for network in networks {
            addresses.push(next_free(network, &used, &last).ok_or(Error::PoolExhausted(*network))?);
        }
        let record = Record { owner: owner.clone(), addresses, netns: netns.to_owned(), ports };
        let content =
            Content { netns: netns.to_owned(), ports: record.ports.iter().map(PortContent::encode).collect() };
        self.write(&record.file_name(), &serde_json::to_vec(&content).expect("plain data always encodes"))?;
        let last: Vec<String> = record.addresses.iter().map(IpAddr::to_string).collect();
        self.write(LAST_FILE, last.join("\n").as_bytes())?;
        Ok(record)
    }

    /// Gives the record's addresses back. No error if it is gone.
    pub fn release(&mut self, record: &Record) -> Result<()> {
        let path = self.directory.join(record.file_name());
        match fs::remove_file(&path) {
            Err(error) if error.kind() != std::io::ErrorKind::NotFound => Err(Error::file("removing", &path)(error)),
            _ => Ok(()),
        }
    }

    /// The records as far as their names tell.
    fn names(&self) -> Result<Vec<Record>> {
        let entries = fs::read_dir(&self.directory).map_err(Error::file("listing", &self.directory))?;
        let mut records = Vec::new();
        for entry in entries {
            let entry = entry.map_err(Error::file("listing", &self.directory))?;
            records.extend(entry.file_name().to_str().and_then(Record::from_file_name));
        }
        Ok(records)
    }

    fn last(&self) -> Vec<IpAddr> {
        let text = fs::read_to_string(self.directory.join(LAST_FILE)).unwrap_or_default();
        text.lines().filter_map(|line| line.parse().ok()).collect()
    }

    fn write(&self, name: &str, content: &[u8]) -> Result<()> {
        let path = self.directory.join(name);
        let unfinished = self.directory.join(format!("{name}{UNFINISHED}"));
        fs::write(&unfinished, content).map_err(Error::file("writing", &unfinished))?;
        fs::rename(&unfinished, &path).map_err(Error::file("writing", &path))
    }
}

impl PortContent {
    fn encode(port: &PortMapping) -> Self {
        PortContent {
            protocol: port.protocol.to_string(),
            host: port.host_port,
            container: port.container_port,
            host_ip: port.host_ip,
        }
    }

    fn decode(&self) -> Option<PortMapping> {
        Some(PortMapping {
            protocol: Protocol::from_api(&self.protocol.to_uppercase())?,
            host_port: self.host,
            container_port: self.container,
            host_ip: self.host_ip,
        })
    }
}

/// The first unused address behind the one given out last, round and round. Not the network's own, the gateway's or
/// (IPv4) the broadcast address.
pub fn next_free(network: &IpNet, used: &HashSet<IpAddr>, last: &[IpAddr]) -> Option<IpAddr> {
    let number = |address: IpAddr| match address {
        IpAddr::V4(a) => u128::from(u32::from(a)),
        IpAddr::V6(a) => u128::from(a),
    };
    let address = |number: u128| match network {
        IpNet::V4(_) => u32::try_from(number).ok().map(|n| IpAddr::V4(n.into())),
        IpNet::V6(_) => Some(IpAddr::V6(number.into())),
    };
    let first = number(gateway_of(network)).checked_add(1)?;
    let end = match network {
        IpNet::V4(_) => number(network.broadcast()),
        IpNet::V6(_) => number(network.broadcast()).checked_add(1)?,
    };
    let size = end.checked_sub(first).filter(|size| *size > 0)?;
    let behind_last = last.iter().find(|a| network.contains(*a)).map_or(0, |a| number(*a).saturating_sub(first) + 1);
    // One more step than there are used addresses always finds a free one, if there is one.
    let steps = size.min(used.len() as u128 + 1);
    (0..steps).filter_map(|step| address(first + (behind_last + step) % size)).find(|a| !used.contains(a))
}
