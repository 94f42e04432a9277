//! The wire form: nf_tables messages with their nested attributes and expressions.
//!
//! Numbers are those of `linux/netfilter/nf_tables.h`. Registers are the 32-bit ones; every field of a concatenation
//! starts at a register of its own, an IPv6 address takes four.

use std::net::IpAddr;

use ipnet::IpNet;

use super::{Change, Data, Family, Field, Hook, Key, Rule, Set, SetKind, Statement, Value, ValueType, Verdict};
use crate::netlink::Writer;

const NFNL_SUBSYS_NFTABLES: u16 = 10;
const NFTA_LIST_ELEM: u16 = 1;

const NFT_REG_VERDICT: u32 = 0;
/// The first 32-bit register.
const REGISTER: u32 = 8;

/// The datatypes of `nft` itself, so that it prints our sets readably.
const NFT_TYPE_INTEGER: u32 = 4;
const NFT_TYPE_IPADDR: u32 = 7;
const NFT_TYPE_IP6ADDR: u32 = 8;
const NFT_TYPE_INET_PROTO: u32 = 12;
const NFT_TYPE_INET_SERVICE: u32 = 13;
const NFT_TYPE_BITS: u32 = 6;
const NFT_DATA_VERDICT: u32 = 0xffff_ff00;

/// Elements per message, so that a list attribute stays far below its limit of 64 KiB.
const ELEMENTS_PER_MESSAGE: usize = 256;

/// A message of a batch: one change makes one or more.
pub(super) struct Encoder<'a> {
    pub writer: &'a mut Writer,
    pub family: Family,
    pub table: &'a str,
    /// The sequence number of the next message.
    pub sequence: u32,
    /// The batch-wide number of the next anonymous set.
    pub set_id: u32,
}

impl Encoder<'_> {
    fn message(&mut self, kind: i32, flags: i32, body: impl FnOnce(&mut Writer)) {
        let family = if self.family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
        let kind = (NFNL_SUBSYS_NFTABLES << 8) | kind as u16;
        self.writer.message(kind, (libc::NLM_F_REQUEST | flags) as u16, self.sequence, |w| {
            w.raw(&[family, 0, 0, 0]);
            body(w);
        });
        self.sequence += 1;
    }

    pub fn change(&mut self, change: &Change) {
        let table = self.table;
        match change {
            Change::AddTable => self.message(libc::NFT_MSG_NEWTABLE, libc::NLM_F_CREATE, |w| w.string(1, table)),
            Change::DeleteTable => self.message(libc::NFT_MSG_DELTABLE, 0, |w| w.string(1, table)),
            Change::AddSet { name, set } => self.add_set(name, set),
            Change::DeleteSet { name } => self.message(libc::NFT_MSG_DELSET, 0, |w| {
                w.string(NFTA_SET_TABLE, table);
                w.string(NFTA_SET_NAME, name);
            }),
            Change::AddChain { name, hook } => self.add_chain(name, *hook),
            Change::FlushChain { name } => self.message(libc::NFT_MSG_DELRULE, 0, |w| {
                w.string(NFTA_RULE_TABLE, table);
                w.string(NFTA_RULE_CHAIN, name);
            }),
            Change::DeleteChain { name } => self.message(libc::NFT_MSG_DELCHAIN, 0, |w| {
                w.string(NFTA_CHAIN_TABLE, table);
                w.string(NFTA_CHAIN_NAME, name);
            }),
            Change::AddRule { chain, rule } => self.add_rule(chain, rule),
            Change::AddElements { set, elements } => {
                for part in elements.chunks(ELEMENTS_PER_MESSAGE) {
                    let family = self.family;
                    let part = part.iter().map(|(key, data)| (key_bytes(family, key), Some(data)));
                    self.elements(libc::NFT_MSG_NEWSETELEM, set, None, part);
                }
            }
            Change::DeleteElements { set, keys } => {
                for part in keys.chunks(ELEMENTS_PER_MESSAGE) {
                    let family = self.family;
                    let part = part.iter().map(|key| (key_bytes(family, key), None));
                    self.elements(libc::NFT_MSG_DELSETELEM, set, None, part);
                }
            }
        }
    }

    fn add_chain(&mut self, name: &str, hook: Option<Hook>) {
        let table = self.table;
        self.message(libc::NFT_MSG_NEWCHAIN, libc::NLM_F_CREATE, |w| {
            w.string(NFTA_CHAIN_TABLE, table);
            w.string(NFTA_CHAIN_NAME, name);
            if let Some(hook) = hook {
                w.nest(4, |w| {
                    w.be32(1, hook.point as u32);
                    w.attribute(2, &hook.priority.to_be_bytes());
                });
                w.string(7, hook.kind);
            }
        });
    }

    fn add_set(&mut self, name: &str, set: &Set) {
        let (table, family) = (self.table, self.family);
        let id = self.next_set_id();
        self.message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, |w| {
            let flags = match set.kind {
                SetKind::Plain => 0,
                SetKind::VerdictMap | SetKind::Map(_) => libc::NFT_SET_MAP,
                SetKind::Dynamic { .. } => libc::NFT_SET_EVAL | libc::NFT_SET_TIMEOUT,
            };
            w.string(NFTA_SET_TABLE, table);
            w.string(NFTA_SET_NAME, name);
            w.be32(NFTA_SET_FLAGS, flags as u32);
            w.be32(NFTA_SET_KEY_TYPE, type_number(family, &set.key));
            w.be32(NFTA_SET_KEY_LEN, type_len(family, &set.key));
            match &set.kind {
                SetKind::Plain => {}
                SetKind::VerdictMap => {
                    w.be32(NFTA_SET_DATA_TYPE, NFT_DATA_VERDICT);
                    // The size of the kernel's own verdict; it does not look at what we say.
                    w.be32(NFTA_SET_DATA_LEN, 0);
                }
                SetKind::Map(data) => {
                    w.be32(NFTA_SET_DATA_TYPE, type_number(family, data));
                    w.be32(NFTA_SET_DATA_LEN, type_len(family, data));
                }
                SetKind::Dynamic { timeout_seconds } => {
                    w.be64(NFTA_SET_TIMEOUT, u64::from(*timeout_seconds) * 1000);
                    w.nest(NFTA_SET_DESC, |w| w.be32(1, DYNAMIC_SET_SIZE));
                }
            }
            w.be32(NFTA_SET_ID, id);
        });
    }

    fn elements<'d>(
        &mut self,
        kind: i32,
        set: &str,
        id: Option<u32>,
        elements: impl Iterator<Item = (Vec<u8>, Option<&'d Data>)>,
    ) {
        let (table, family) = (self.table, self.family);
        let flags = if kind == libc::NFT_MSG_NEWSETELEM { libc::NLM_F_CREATE } else { 0 };
        self.message(kind, flags, |w| {
            w.string(1, table);
            w.string(2, set);
            if let Some(id) = id {
                w.be32(4, id);
            }
            w.nest(3, |w| {
                for (key, data) in elements {
                    w.nest(NFTA_LIST_ELEM, |w| {
                        w.nest(1, |w| w.attribute(NFTA_DATA_VALUE, &key));
                        match data {
                            None | Some(Data::Nothing) => {}
                            Some(Data::Verdict(verdict)) => w.nest(2, |w| write_verdict(w, verdict)),
                            Some(Data::Values(values)) => {
                                w.nest(2, |w| w.attribute(NFTA_DATA_VALUE, &key_bytes(family, values)));
                            }
                        }
                    });
                }
            });
        });
    }

    fn next_set_id(&mut self) -> u32 {
        self.set_id += 1;
        self.set_id
    }

    fn add_rule(&mut self, chain: &str, rule: &Rule) {
        // Anonymous sets come before the rule that binds them; in a batch they are known by number.
        let maps: Vec<Option<u32>> = rule.0.iter().map(|s| self.add_anonymous_map(s)).collect();
        let (table, family) = (self.table, self.family);
        self.message(libc::NFT_MSG_NEWRULE, libc::NLM_F_CREATE | libc::NLM_F_APPEND, |w| {
            w.string(NFTA_RULE_TABLE, table);
            w.string(NFTA_RULE_CHAIN, chain);
            w.nest(4, |w| {
                for (statement, map) in rule.0.iter().zip(&maps) {
                    Expressions { w, family }.statement(statement, *map);
                }
            });
        });
    }

    /// The map from a random number to an endpoint or a chain.
    fn add_anonymous_map(&mut self, statement: &Statement) -> Option<u32> {
        let entries: Vec<Data> = match statement {
            Statement::ByChance(chains) => chains.iter().map(|c| Data::Verdict(Verdict::Goto(c.clone()))).collect(),
            Statement::TranslateByChance(targets) => targets
                .iter()
                .map(|(address, port)| Data::Values(Key(vec![Value::Address(*address), Value::Port(*port)])))
                .collect(),
            _ => return None,
        };
        let id = self.next_set_id();
        let (table, family) = (self.table, self.family);
        let verdicts = matches!(statement, Statement::ByChance(_));
        self.message(libc::NFT_MSG_NEWSET, libc::NLM_F_CREATE, |w| {
            let flags = libc::NFT_SET_ANONYMOUS | libc::NFT_SET_CONSTANT | libc::NFT_SET_MAP;
            let data = [ValueType::Address, ValueType::Port];
            w.string(NFTA_SET_TABLE, table);
            w.string(NFTA_SET_NAME, ANONYMOUS_MAP);
            w.be32(NFTA_SET_FLAGS, flags as u32);
            w.be32(NFTA_SET_KEY_TYPE, NFT_TYPE_INTEGER);
            w.be32(NFTA_SET_KEY_LEN, 4);
            let data_type = if verdicts { NFT_DATA_VERDICT } else { type_number(family, &data) };
            w.be32(NFTA_SET_DATA_TYPE, data_type);
            w.be32(NFTA_SET_DATA_LEN, if verdicts { 0 } else { type_len(family, &data) });
            w.nest(NFTA_SET_DESC, |w| w.be32(1, entries.len() as u32));
            w.be32(NFTA_SET_ID, id);
            w.attribute(NFTA_SET_USERDATA, &KEY_IS_HOST_ENDIAN);
        });
        for (part_index, part) in entries.chunks(ELEMENTS_PER_MESSAGE).enumerate() {
            let first = part_index * ELEMENTS_PER_MESSAGE;
            let numbered =
                part.iter().enumerate().map(|(i, data)| (((first + i) as u32).to_ne_bytes().to_vec(), Some(data)));
            self.elements(libc::NFT_MSG_NEWSETELEM, ANONYMOUS_MAP, Some(id), numbered);
        }
        Some(id)
    }
}

const NFTA_SET_TABLE: u16 = 1;
const NFTA_SET_NAME: u16 = 2;
const NFTA_SET_FLAGS: u16 = 3;
const NFTA_SET_KEY_TYPE: u16 = 4;
const NFTA_SET_KEY_LEN: u16 = 5;
const NFTA_SET_DATA_TYPE: u16 = 6;
const NFTA_SET_DATA_LEN: u16 = 7;
const NFTA_SET_DESC: u16 = 9;
const NFTA_SET_ID: u16 = 10;
const NFTA_SET_TIMEOUT: u16 = 11;
const NFTA_SET_USERDATA: u16 = 13;
const NFTA_CHAIN_TABLE: u16 = 1;
const NFTA_CHAIN_NAME: u16 = 3;
const NFTA_RULE_TABLE: u16 = 1;
const NFTA_RULE_CHAIN: u16 = 2;
const NFTA_DATA_VALUE: u16 = 1;
const NFTA_DATA_VERDICT: u16 = 2;

/// The kernel puts a number where the pattern is; within a batch the set is found by its id.
const ANONYMOUS_MAP: &str = "__map%d";
/// `nft`'s own note (type, length, value): without it, it prints the random numbers with their bytes swapped.
const KEY_IS_HOST_ENDIAN: [u8; 6] = {
    let value = 1u32.to_ne_bytes();
    [0, 4, value[0], value[1], value[2], value[3]]
};
/// Clients remembered per endpoint. More than that and the set forgets none but takes no new ones.
const DYNAMIC_SET_SIZE: u32 = 65535;

fn type_number(family: Family, types: &[ValueType]) -> u32 {
    types.iter().fold(0, |number, value_type| {
        let one = match (value_type, family) {
            (ValueType::Address, Family::V4) => NFT_TYPE_IPADDR,
            (ValueType::Address, Family::V6) => NFT_TYPE_IP6ADDR,
            (ValueType::Protocol, _) => NFT_TYPE_INET_PROTO,
            (ValueType::Port, _) => NFT_TYPE_INET_SERVICE,
        };
        (number << NFT_TYPE_BITS) | one
    })
}

fn type_len(family: Family, types: &[ValueType]) -> u32 {
    match (types, family) {
        // A single field has its own length, in a concatenation each is padded to registers.
        ([ValueType::Protocol], _) => 1,
        ([ValueType::Port], _) => 2,
        _ => types.iter().map(|t| registers(family, *t == ValueType::Address) * 4).sum(),
    }
}

fn registers(family: Family, is_address: bool) -> u32 {
    if is_address && family == Family::V6 { 4 } else { 1 }
}

fn key_bytes(family: Family, key: &Key) -> Vec<u8> {
    let mut bytes = Vec::with_capacity(12);
    for value in &key.0 {
        match value {
            Value::Address(address) => bytes.extend_from_slice(&address_bytes(*address)),
            Value::Protocol(protocol) => bytes.push(protocol.number()),
            Value::Port(port) => bytes.extend_from_slice(&port.to_be_bytes()),
        }
        if key.0.len() > 1 {
            bytes.resize(bytes.len().next_multiple_of(4), 0);
        }
    }
    debug_assert!(key.0.iter().all(|v| !matches!(v, Value::Address(a) if Family::of(*a) != family)));
    bytes
}

fn address_bytes(address: IpAddr) -> Vec<u8> {
    match address {
        IpAddr::V4(a) => a.octets().to_vec(),
        IpAddr::V6(a) => a.octets().to_vec(),
    }
}

fn write_verdict(w: &mut Writer, verdict: &Verdict) {
    let (code, chain) = match verdict {
        Verdict::Accept => (libc::NF_ACCEPT, None),
        Verdict::Drop => (libc::NF_DROP, None),
        Verdict::Jump(chain) => (libc::NFT_JUMP, Some(chain)),
        Verdict::Goto(chain) => (libc::NFT_GOTO, Some(chain)),
    };
    w.nest(NFTA_DATA_VERDICT, |w| {
        w.attribute(1, &code.to_be_bytes());
        if let Some(chain) = chain {
            w.string(2, chain);
        }
    });
}

/// Writes the expressions of one rule.
struct Expressions<'a> {
    w: &'a mut Writer,
    family: Family,
}

impl Expressions<'_> {
    fn expression(&mut self, name: &str, body: impl FnOnce(&mut Writer)) {
        self.w.nest(NFTA_LIST_ELEM, |w| {
            w.string(1, name);
            w.nest(2, body);
        });
    }

    fn statement(&mut self, statement: &Statement, anonymous_map: Option<u32>) {
        match statement {
            Statement::InNetwork { field, network, not } => self.in_network(*field, *network, *not),
            Statement::InSet { fields, set } => {
                self.load_all(fields);
                self.lookup(set, None, None);
            }
            Statement::IsProtocol(protocol) => {
                self.load(Field::Protocol, REGISTER);
                self.compare(true, &[protocol.number()]);
            }
            Statement::IsLocal(field) => self.is_local(*field),
            Statement::IsNew => self.connection_has(libc::NFT_CT_STATE, CT_STATE_NEW, true),
            Statement::IsInvalid => self.connection_has(libc::NFT_CT_STATE, CT_STATE_INVALID, true),
            Statement::IsTranslated => self.connection_has(libc::NFT_CT_STATUS, IPS_DST_NAT, true),
            Statement::IsUntranslated => self.connection_has(libc::NFT_CT_STATUS, IPS_DST_NAT, false),
            Statement::HasMark(bits) => {
                self.load_meta(libc::NFT_META_MARK);
                self.bitwise(*bits, 0);
                self.compare(true, &bits.to_ne_bytes());
            }
            Statement::SetMark(bits) => self.change_mark(!bits, *bits),
            Statement::ClearMark(bits) => self.change_mark(!bits, 0),
            Statement::ByMap { fields, map } => {
                self.load_all(fields);
                self.lookup(map, None, Some(NFT_REG_VERDICT));
            }
            Statement::OneIn(times) => {
                self.random(*times as usize);
                self.compare(true, &0u32.to_ne_bytes());
            }
            Statement::ByChance(chains) => {
                self.random(chains.len());
                self.lookup(ANONYMOUS_MAP, anonymous_map, Some(NFT_REG_VERDICT));
            }
            Statement::Remember { set } => {
                self.load(Field::SourceAddress, REGISTER);
                self.expression("dynset", |w| {
                    w.string(1, set);
                    w.be32(3, libc::NFT_DYNSET_OP_UPDATE as u32);
                    w.be32(4, REGISTER);
                });
            }
            Statement::TranslateTo { address, port } => {
                let port_register = self.port_register();
                self.immediate(REGISTER, &address_bytes(*address));
                self.immediate(port_register, &port.to_be_bytes());
                self.translate();
            }
            Statement::TranslateByChance(targets) => {
                self.random(targets.len());
                self.lookup(ANONYMOUS_MAP, anonymous_map, Some(REGISTER));
                self.translate();
            }
            Statement::TranslateByMap { fields, map } => {
                self.load_all(fields);
                self.lookup(map, None, Some(REGISTER));
                self.translate();
            }
            Statement::Masquerade => self.expression("masq", |w| w.be32(1, NF_NAT_RANGE_PROTO_RANDOM_FULLY)),
            Statement::Reject => {
                let code = if self.family == Family::V4 { ICMP_PORT_UNREACH } else { ICMPV6_PORT_UNREACH };
                self.expression("reject", |w| {
                    w.be32(1, libc::NFT_REJECT_ICMP_UNREACH as u32);
                    w.attribute(2, &[code]);
                });
            }
            Statement::Reset => self.expression("reject", |w| {
                w.be32(1, libc::NFT_REJECT_TCP_RST as u32);
                w.attribute(2, &[0]);
            }),
            Statement::Verdict(verdict) => self.expression("immediate", |w| {
                w.be32(1, NFT_REG_VERDICT);
                w.nest(2, |w| write_verdict(w, verdict));
            }),
        }
    }

    fn load_all(&mut self, fields: &[Field]) {
        let mut register = REGISTER;
        for field in fields {
            self.load(*field, register);
            let is_address = matches!(field, Field::SourceAddress | Field::DestinationAddress);
            register += registers(self.family, is_address);
        }
    }

    fn load(&mut self, field: Field, register: u32) {
        const NETWORK_HEADER: u32 = 1;
        const TRANSPORT_HEADER: u32 = 2;
        let (base, offset, len) = match (field, self.family) {
            (Field::SourceAddress, Family::V4) => (NETWORK_HEADER, 12, 4),
            (Field::DestinationAddress, Family::V4) => (NETWORK_HEADER, 16, 4),
            (Field::SourceAddress, Family::V6) => (NETWORK_HEADER, 8, 16),
            (Field::DestinationAddress, Family::V6) => (NETWORK_HEADER, 24, 16),
            (Field::DestinationPort, _) => (TRANSPORT_HEADER, 2, 2),
            (Field::Protocol, _) => {
                return self.expression("meta", |w| {
                    w.be32(1, register);
                    w.be32(2, libc::NFT_META_L4PROTO as u32);
                });
            }
        };
        self.expression("payload", |w| {
            w.be32(1, register);
            w.be32(2, base);
            w.be32(3, offset);
            w.be32(4, len);
        });
    }

    fn load_meta(&mut self, key: i32) {
        self.expression("meta", |w| {
            w.be32(1, REGISTER);
            w.be32(2, key as u32);
        });
    }

    fn change_mark(&mut self, mask: u32, xor: u32) {
        self.load_meta(libc::NFT_META_MARK);
        self.bitwise(mask, xor);
        self.expression("meta", |w| {
            w.be32(2, libc::NFT_META_MARK as u32);
            w.be32(3, REGISTER);
        });
    }

    /// `register = (register & mask) ^ xor`
    fn bitwise(&mut self, mask: u32, xor: u32) {
        self.bitwise_bytes(&mask.to_ne_bytes(), &xor.to_ne_bytes());
    }

    fn bitwise_bytes(&mut self, mask: &[u8], xor: &[u8]) {
        self.expression("bitwise", |w| {
            w.be32(1, REGISTER);
            w.be32(2, REGISTER);
            w.be32(3, mask.len() as u32);
            w.nest(4, |w| w.attribute(NFTA_DATA_VALUE, mask));
            w.nest(5, |w| w.attribute(NFTA_DATA_VALUE, xor));
        });
    }

    fn compare(&mut self, equal: bool, value: &[u8]) {
        let operator = if equal { libc::NFT_CMP_EQ } else { libc::NFT_CMP_NEQ };
        self.expression("cmp", |w| {
            w.be32(1, REGISTER);
            w.be32(2, operator as u32);
            w.nest(3, |w| w.attribute(NFTA_DATA_VALUE, value));
        });
    }

    fn in_network(&mut self, field: Field, network: IpNet, not: bool) {
        self.load(field, REGISTER);
        let mask = address_bytes(network.netmask());
        if network.prefix_len() < network.max_prefix_len() {
            self.bitwise_bytes(&mask, &vec![0; mask.len()]);
        }
        self.compare(!not, &address_bytes(network.network()));
    }

    fn is_local(&mut self, field: Field) {
        const NFT_FIB_RESULT_ADDRTYPE: u32 = 3;
        const NFTA_FIB_F_SADDR: u32 = 1;
        const NFTA_FIB_F_DADDR: u32 = 2;
        let flag = if field == Field::SourceAddress { NFTA_FIB_F_SADDR } else { NFTA_FIB_F_DADDR };
        self.expression("fib", |w| {
            w.be32(1, REGISTER);
            w.be32(2, NFT_FIB_RESULT_ADDRTYPE);
            w.be32(3, flag);
        });
        self.compare(true, &u32::from(libc::RTN_LOCAL).to_ne_bytes());
    }

    fn connection_has(&mut self, key: i32, bits: u32, wanted: bool) {
        self.expression("ct", |w| {
            w.be32(1, REGISTER);
            w.be32(2, key as u32);
        });
        self.bitwise(bits, 0);
        self.compare(!wanted, &0u32.to_ne_bytes());
    }

    fn random(&mut self, modulus: usize) {
        self.expression("numgen", |w| {
            w.be32(1, REGISTER);
            w.be32(2, modulus as u32);
            w.be32(3, libc::NFT_NG_RANDOM as u32);
        });
    }

    fn lookup(&mut self, set: &str, id: Option<u32>, result: Option<u32>) {
        self.expression("lookup", |w| {
            w.string(1, set);
            w.be32(2, REGISTER);
            if let Some(result) = result {
                w.be32(3, result);
            }
            if let Some(id) = id {
                w.be32(4, id);
            }
        });
    }

    fn immediate(&mut self, register: u32, value: &[u8]) {
        self.expression("immediate", |w| {
            w.be32(1, register);
            w.nest(2, |w| w.attribute(NFTA_DATA_VALUE, value));
        });
    }

    /// Behind the address in a concatenation.
    fn port_register(&self) -> u32 {
        REGISTER + registers(self.family, true)
    }

    /// Destination NAT to the address and the port in the registers.
    fn translate(&mut self) {
        let family = if self.family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 } as u32;
        let port_register = self.port_register();
        self.expression("nat", |w| {
            w.be32(1, libc::NFT_NAT_DNAT as u32);
            w.be32(2, family);
            w.be32(3, REGISTER);
            w.be32(5, port_register);
            w.be32(7, NF_NAT_RANGE_PROTO_SPECIFIED);
        });
    }
}

const CT_STATE_INVALID: u32 = 1 << 0;
/// `NF_CT_STATE_BIT(IP_CT_NEW)` of the kernel.
const CT_STATE_NEW: u32 = 1 << 3;
const IPS_DST_NAT: u32 = 1 << 5;
const NF_NAT_RANGE_PROTO_SPECIFIED: u32 = 2;
const NF_NAT_RANGE_PROTO_RANDOM_FULLY: u32 = 16;
const ICMP_PORT_UNREACH: u8 = 3;
const ICMPV6_PORT_UNREACH: u8 = 4;
