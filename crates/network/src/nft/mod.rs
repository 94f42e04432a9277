//! nf_tables over netlink: the rules that we write, as data; their text form (as `nft` would print it) and their wire form.
//!
//! Our own encoder of the few statements that we use: the general crates either need libnftnl or encode neither maps with
//! concatenated keys nor dynamic sets. It must not know what a service or a pod is.

mod commit;
mod encode;
mod monitor;
mod statement;

use std::collections::BTreeMap;
use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

pub use commit::{Transaction, commit, exists};
pub use monitor::{Monitor, Seen};
pub use statement::{Field, Rule, Statement};

/// Which packets a table sees.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Family {
    V4,
    V6,
}

impl Family {
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Family::V4 } else { Family::V6 }
    }
}

/// The addresses that never leave a host.
pub fn loopback(family: Family) -> IpNet {
    let loopback = match family {
        Family::V4 => IpNet::new([127, 0, 0, 0].into(), 8),
        Family::V6 => IpNet::new(std::net::Ipv6Addr::LOCALHOST.into(), 128),
    };
    loopback.expect("a constant with a valid prefix length")
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if *self == Family::V4 { "ip" } else { "ip6" })
    }
}

/// A transport protocol that services may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Protocol {
    Tcp,
    Udp,
    Sctp,
}

impl Protocol {
    /// From the API's spelling, `TCP` and so on.
    pub fn from_api(name: &str) -> Option<Self> {
        match name {
            "TCP" => Some(Protocol::Tcp),
            "UDP" => Some(Protocol::Udp),
            "SCTP" => Some(Protocol::Sctp),
            _ => None,
        }
    }

    pub fn number(self) -> u8 {
        match self {
            Protocol::Tcp => libc::IPPROTO_TCP as u8,
            Protocol::Udp => libc::IPPROTO_UDP as u8,
            Protocol::Sctp => libc::IPPROTO_SCTP as u8,
        }
    }
}

impl fmt::Display for Protocol {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Protocol::Tcp => "tcp",
            Protocol::Udp => "udp",
            Protocol::Sctp => "sctp",
        })
    }
}

/// One part of a set's key or of a map's data.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Value {
    Address(IpAddr),
    Protocol(Protocol),
    Port(u16),
}

impl fmt::Display for Value {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Value::Address(address) => address.fmt(f),
            Value::Protocol(protocol) => protocol.fmt(f),
            Value::Port(port) => port.fmt(f),
        }
    }
}

/// The type of a [`Value`]; addresses are of the table's family.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum ValueType {
    Address,
    Protocol,
    Port,
}

/// A key: one value or a concatenation.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Key(pub Vec<Value>);

impl Key {
    pub fn endpoint(address: IpAddr, protocol: Protocol, port: u16) -> Self {
        Key(vec![Value::Address(address), Value::Protocol(protocol), Value::Port(port)])
    }

    pub fn port(protocol: Protocol, port: u16) -> Self {
        Key(vec![Value::Protocol(protocol), Value::Port(port)])
    }

    pub fn address(address: IpAddr) -> Self {
        Key(vec![Value::Address(address)])
    }
}

impl fmt::Display for Key {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, value) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { " . " };
            write!(f, "{separator}{value}")?;
        }
        Ok(())
    }
}

/// What becomes of a packet.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Verdict {
    Accept,
    Drop,
    Jump(String),
    Goto(String),
}

impl fmt::Display for Verdict {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Verdict::Accept => f.write_str("accept"),
            Verdict::Drop => f.write_str("drop"),
            Verdict::Jump(chain) => write!(f, "jump {chain}"),
            Verdict::Goto(chain) => write!(f, "goto {chain}"),
        }
    }
}

/// What an element of a set carries.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Data {
    /// A member of a plain set.
    Nothing,
    /// An entry of a verdict map.
    Verdict(Verdict),
    /// An entry of a data map.
    Values(Key),
}

/// What a set maps its keys to.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum SetKind {
    Plain,
    VerdictMap,
    Map(Vec<ValueType>),
    /// Filled by rules; elements go away this many seconds after their last use.
    Dynamic {
        timeout_seconds: u32,
    },
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Set {
    pub key: Vec<ValueType>,
    pub kind: SetKind,
}

/// Where in the packet's way a base chain is called.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Hook {
    /// `nat` or `filter`.
    pub kind: &'static str,
    pub point: HookPoint,
    pub priority: i32,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum HookPoint {
    Prerouting = 0,
    Input = 1,
    Forward = 2,
    Output = 3,
    Postrouting = 4,
}

#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Chain {
    pub hook: Option<Hook>,
    pub rules: Vec<Rule>,
}

/// A whole table as it should be.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RuleSet {
    pub family: Family,
    pub table: String,
    pub sets: BTreeMap<String, Set>,
    pub chains: BTreeMap<String, Chain>,
    pub elements: BTreeMap<String, BTreeMap<Key, Data>>,
}

impl RuleSet {
    pub fn new(family: Family, table: &str) -> Self {
        RuleSet {
            family,
            table: table.to_owned(),
            sets: BTreeMap::new(),
            chains: BTreeMap::new(),
            elements: BTreeMap::new(),
        }
    }

    /// The transaction that makes the kernel's table be exactly this one, whatever it was, with no moment between.
    pub fn replace(&self) -> Transaction {
        let mut transaction = Transaction::new(self.family, &self.table);
        // Deleting needs an existing table; adding one that exists is no error.
        transaction.push(Change::AddTable);
        transaction.push(Change::DeleteTable);
        transaction.push(Change::AddTable);
        for (name, set) in &self.sets {
            transaction.push(Change::AddSet { name: name.clone(), set: set.clone() });
        }
        for (name, chain) in &self.chains {
            transaction.push(Change::AddChain { name: name.clone(), hook: chain.hook });
        }
        for (name, chain) in &self.chains {
            for rule in &chain.rules {
                transaction.push(Change::AddRule { chain: name.clone(), rule: rule.clone() });
            }
        }
        for (set, elements) in &self.elements {
            let elements: Vec<_> = elements.iter().map(|(k, d)| (k.clone(), d.clone())).collect();
            transaction.push(Change::AddElements { set: set.clone(), elements });
        }
        transaction
    }
}

/// One step of a transaction.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Change {
    AddTable,
    DeleteTable,
    AddSet { name: String, set: Set },
    DeleteSet { name: String },
    AddChain { name: String, hook: Option<Hook> },
    FlushChain { name: String },
    DeleteChain { name: String },
    AddRule { chain: String, rule: Rule },
    AddElements { set: String, elements: Vec<(Key, Data)> },
    DeleteElements { set: String, keys: Vec<Key> },
}

impl fmt::Display for Set {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let names = |types: &[ValueType]| -> String {
            let names = types.iter().map(|t| match t {
                ValueType::Address => "addr",
                ValueType::Protocol => "proto",
                ValueType::Port => "port",
            });
            names.collect::<Vec<_>>().join(" . ")
        };
        match &self.kind {
            SetKind::Plain => write!(f, "set {}", names(&self.key)),
            SetKind::VerdictMap => write!(f, "map {} : verdict", names(&self.key)),
            SetKind::Map(data) => write!(f, "map {} : {}", names(&self.key), names(data)),
            SetKind::Dynamic { timeout_seconds } => {
                write!(f, "set {} dynamic timeout {timeout_seconds}s", names(&self.key))
            }
        }
    }
}

impl fmt::Display for Data {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Data::Nothing => Ok(()),
            Data::Verdict(verdict) => write!(f, " : {verdict}"),
            Data::Values(values) => write!(f, " : {values}"),
        }
    }
}

/// One line, close to what `nft` would take; for fixtures and error messages.
impl fmt::Display for Change {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Change::AddTable => f.write_str("add table"),
            Change::DeleteTable => f.write_str("delete table"),
            Change::AddSet { name, set } => write!(f, "add {set} {name}"),
            Change::DeleteSet { name } => write!(f, "delete set {name}"),
            Change::AddChain { name, hook: None } => write!(f, "add chain {name}"),
            Change::AddChain { name, hook: Some(hook) } => {
                write!(f, "add chain {name} {} {:?} {}", hook.kind, hook.point, hook.priority)
            }
            Change::FlushChain { name } => write!(f, "flush chain {name}"),
            Change::DeleteChain { name } => write!(f, "delete chain {name}"),
            Change::AddRule { chain, rule } => write!(f, "add rule {chain} {rule}"),
            Change::AddElements { set, elements } => {
                let elements: Vec<String> = elements.iter().map(|(k, d)| format!("{k}{d}")).collect();
                write!(f, "add element {set} {{ {} }}", elements.join(", "))
            }
            Change::DeleteElements { set, keys } => {
                let keys: Vec<String> = keys.iter().map(Key::to_string).collect();
                write!(f, "delete element {set} {{ {} }}", keys.join(", "))
            }
        }
    }
}
