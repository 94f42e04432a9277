//! The statements that rules are made of.

use std::fmt;
use std::net::IpAddr;

use ipnet::IpNet;

use super::Verdict;

/// What a rule reads off a packet.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Field {
    SourceAddress,
    DestinationAddress,
    Protocol,
    DestinationPort,
}

/// A condition or an action. A rule goes on to the next statement as long as conditions hold.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Statement {
    /// The address (source or destination) lies in the network, or with `not` outside of it.
    InNetwork {
        field: Field,
        network: IpNet,
        not: bool,
    },
    /// The fields are a key of the named set.
    InSet {
        fields: Vec<Field>,
        set: String,
    },
    /// The transport protocol is this one.
    IsProtocol(super::Protocol),
    /// The address (source or destination) is one of this host's.
    IsLocal(Field),
    /// The packet is the first of its connection.
    IsNew,
    /// The packet fits no connection that the kernel follows.
    IsInvalid,
    /// The connection's destination has been translated.
    IsTranslated,
    IsUntranslated,
    /// All these bits are set in the packet mark.
    HasMark(u32),
    SetMark(u32),
    ClearMark(u32),
    /// Goes by the named verdict map; on if the fields are no key of it.
    ByMap {
        fields: Vec<Field>,
        map: String,
    },
    /// Holds by chance, once in this many times.
    OneIn(u32),
    /// Goes to one of the chains, by chance.
    ByChance(Vec<String>),
    /// Puts the source address into the named dynamic set, or refreshes it.
    Remember {
        set: String,
    },
    TranslateTo {
        address: IpAddr,
        port: u16,
    },
    /// Translates the destination to one of these, by chance.
    TranslateByChance(Vec<(IpAddr, u16)>),
    /// Translates the destination to the address and port that the named data map has for the fields.
    TranslateByMap {
        fields: Vec<Field>,
        map: String,
    },
    /// The source becomes the host's own address on the way out.
    Masquerade,
    /// Refuses with ICMP port unreachable. Kernels send few of these a second.
    Reject,
    /// Refuses a TCP connection with a reset, as a host does whose port is closed.
    Reset,
    Verdict(Verdict),
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Rule(pub Vec<Statement>);

impl From<Vec<Statement>> for Rule {
    fn from(statements: Vec<Statement>) -> Self {
        Rule(statements)
    }
}

impl Rule {
    /// The named sets that the rule looks into or fills, but for maps.
    pub fn sets(&self) -> impl Iterator<Item = &str> {
        self.0.iter().filter_map(|statement| match statement {
            Statement::InSet { set, .. } | Statement::Remember { set } => Some(set.as_str()),
            _ => None,
        })
    }
}

fn concatenation(fields: &[Field]) -> String {
    fields.iter().map(Field::to_string).collect::<Vec<_>>().join(" . ")
}

impl fmt::Display for Field {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Field::SourceAddress => "saddr",
            Field::DestinationAddress => "daddr",
            Field::Protocol => "l4proto",
            Field::DestinationPort => "dport",
        })
    }
}

impl fmt::Display for Statement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Statement::InNetwork { field, network, not: false } => write!(f, "{field} {network}"),
            Statement::InNetwork { field, network, not: true } => write!(f, "{field} != {network}"),
            Statement::InSet { fields, set } => write!(f, "{} @{set}", concatenation(fields)),
            Statement::IsProtocol(protocol) => protocol.fmt(f),
            Statement::IsLocal(field) => write!(f, "fib {field} type local"),
            Statement::IsNew => f.write_str("ct state new"),
            Statement::IsInvalid => f.write_str("ct state invalid"),
            Statement::IsTranslated => f.write_str("ct status dnat"),
            Statement::IsUntranslated => f.write_str("ct status ! dnat"),
            Statement::HasMark(bits) => write!(f, "mark & {bits:#x}"),
            Statement::SetMark(bits) => write!(f, "mark set mark | {bits:#x}"),
            Statement::ClearMark(bits) => write!(f, "mark set mark & ~{bits:#x}"),
            Statement::ByMap { fields, map } => write!(f, "{} vmap @{map}", concatenation(fields)),
            Statement::OneIn(times) => write!(f, "one in {times}"),
            Statement::ByChance(chains) => write!(f, "random vmap {{ {} }}", chains.join(", ")),
            Statement::Remember { set } => write!(f, "update @{set} {{ saddr }}"),
            Statement::TranslateTo { address, port } => write!(f, "dnat to {address} . {port}"),
            Statement::TranslateByChance(targets) => {
                let targets: Vec<String> = targets.iter().map(|(a, p)| format!("{a} . {p}")).collect();
                write!(f, "dnat to random {{ {} }}", targets.join(", "))
            }
            Statement::TranslateByMap { fields, map } => write!(f, "dnat to {} map @{map}", concatenation(fields)),
            Statement::Masquerade => f.write_str("masquerade fully-random"),
            Statement::Reject => f.write_str("reject"),
            Statement::Reset => f.write_str("reject with tcp reset"),
            Statement::Verdict(verdict) => verdict.fmt(f),
        }
    }
}

impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (position, statement) in self.0.iter().enumerate() {
            let separator = if position == 0 { "" } else { " " };
            write!(f, "{separator}{statement}")?;
        }
        Ok(())
    }
}
