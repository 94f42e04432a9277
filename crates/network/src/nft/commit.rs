//! Transactions: many changes, one atomic step.

use std::fmt;

use super::encode::Encoder;
use super::{Change, Family};
use crate::netlink::{Answer, Socket, Writer};
use crate::{Error, Result};

const NFNL_MSG_BATCH_BEGIN: u16 = 16;
const NFNL_MSG_BATCH_END: u16 = 17;
const NFNL_SUBSYS_NFTABLES: u8 = 10;

/// Changes of one table that happen together or not at all.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Transaction {
    pub family: Family,
    pub table: String,
    pub changes: Vec<Change>,
}

impl Transaction {
    pub fn new(family: Family, table: &str) -> Self {
        Transaction { family, table: table.to_owned(), changes: Vec::new() }
    }

    pub fn push(&mut self, change: Change) {
        self.changes.push(change);
    }

    pub fn is_empty(&self) -> bool {
        self.changes.is_empty()
    }
}

impl fmt::Display for Transaction {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.changes.iter().try_for_each(|change| writeln!(f, "{change}"))
    }
}

/// Carries transactions out, all in one step, in the network namespace of the calling thread. Blocks for as long as the
/// kernel needs: milliseconds per thousand changes.
///
/// Errors: [`Error::Netlink`] with the change that the kernel refused; then nothing has changed.
pub fn commit(transactions: &[Transaction]) -> Result<()> {
    if transactions.iter().all(Transaction::is_empty) {
        return Ok(());
    }
    let mut socket = Socket::netfilter()?;
    let mut writer = Writer::default();
    let batch_header = [libc::AF_UNSPEC as u8, 0, 0, NFNL_SUBSYS_NFTABLES];
    let request = libc::NLM_F_REQUEST as u16;
    writer.message(NFNL_MSG_BATCH_BEGIN, request, 0, |w| w.raw(&batch_header));
    // Which message came of which change, to name the one refused.
    let mut origins: Vec<&Change> = Vec::new();
    let (mut sequence, mut set_id) = (1, 0);
    for transaction in transactions {
        let mut encoder =
            Encoder { writer: &mut writer, family: transaction.family, table: &transaction.table, sequence, set_id };
        for change in &transaction.changes {
            encoder.change(change);
            origins.resize(encoder.sequence as usize - 1, change);
        }
        (sequence, set_id) = (encoder.sequence, encoder.set_id);
    }
    // The kernel answers refusals in any case. Of the successes one answer is enough: the one to the last message.
    writer.acknowledge_last();
    writer.message(NFNL_MSG_BATCH_END, request, sequence, |w| w.raw(&batch_header));
    let answers = socket.batch("committing nftables changes", &writer, sequence - 1)?;
    match answers.into_iter().find_map(|Answer { sequence, failure }| failure.map(|f| (sequence, f))) {
        None => Ok(()),
        Some((sequence, (errno, detail))) => {
            let change = (sequence as usize).checked_sub(1).and_then(|at| origins.get(at));
            let what = change.map_or_else(|| "nftables: commit".to_owned(), |change| format!("nftables: {change}"));
            Err(Error::Netlink { what, errno, detail })
        }
    }
}

/// Whether a table of this name is there.
pub fn exists(family: Family, table: &str) -> Result<bool> {
    let mut socket = Socket::netfilter()?;
    let kind = (u16::from(NFNL_SUBSYS_NFTABLES) << 8) | libc::NFT_MSG_GETTABLE as u16;
    let family = if family == Family::V4 { libc::AF_INET } else { libc::AF_INET6 } as u8;
    let found = socket.query("looking for an nftables table", kind, 0, |w| {
        w.raw(&[family, 0, 0, 0]);
        w.string(1, table);
    });
    match found {
        Ok(_) => Ok(true),
        Err(error) if error.errno() == Some(nix::errno::Errno::ENOENT) => Ok(false),
        Err(error) => Err(error),
    }
}
