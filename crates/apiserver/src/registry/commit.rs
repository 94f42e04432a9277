//! The one way in which an object's next state gets into the store: with the claims that go with it, and only over the state that
//! it was made from.

use apimachinery::Value;
use apimachinery::status::Result;
use bytes::Bytes;
use store::{Compare, Durability, Expect, Op, Outcome, Txn};

use super::admit::Attributes;
use super::key_of;
use super::prepare::{self, Moment};
use crate::admission::Operation;
use crate::object::Entry;
use crate::server::{ApiServer, Call};
use crate::strategy::Claim;

/// What the kind and admission claim for the next state of an object (none: it goes away).
pub fn claims(
    server: &ApiServer,
    call: &Call,
    moment: Moment,
    mut next: Option<&mut Value>,
    old: Option<&Value>,
) -> Result<Vec<Claim>> {
    let mut claims = match server.strategies.get(&call.row).and_then(|strategy| strategy.allocator()) {
        Some(allocator) => allocator.claims(&prepare::context(server, call, moment), next.as_deref_mut(), old)?,
        None => Vec::new(),
    };
    if let Some(next) = next {
        let operation = if old.is_none() { Operation::Create } else { Operation::Update };
        let attributes = Attributes::new(operation, &call.info.subresource, false, moment);
        claims.extend(attributes.claims(server, call, next, old)?);
    }
    Ok(claims)
}

/// `op` on an object, if its key is as expected and nobody has taken what is claimed. The object's entry is the first, and has the
/// time to live of its kind.
pub fn transaction(server: &ApiServer, call: &Call, expect: Expect, mut op: Op, claims: Vec<Claim>) -> Txn {
    let traits = server.strategies.traits(&call.row);
    if let Op::Put { ttl, .. } = &mut op {
        *ttl = server.settings.event_ttl.filter(|_| traits.expires);
    }
    let key = op.key().to_owned();
    // What may be lost with the machine's power, but not with the process.
    let durability = if traits.volatile { Durability::Relaxed } else { Durability::Synced };
    let mut txn = Txn { compares: vec![Compare { key, expect }], ops: vec![op], durability };
    for (compare, op) in claims {
        txn.compares.extend(compare);
        txn.ops.push(op);
    }
    txn
}

/// Puts the encoded object `next` in the place of `entry`, or nothing where it goes away. Returns the new entry or the last one;
/// none if somebody else was quicker.
pub async fn replace(
    server: &ApiServer,
    call: &Call,
    entry: &Entry,
    next: Option<Bytes>,
    claims: Vec<Claim>,
) -> Result<Option<Entry>> {
    let key = key_of(call, &call.info.name);
    let op = match next {
        Some(value) => Op::Put { key, value, ttl: None },
        None => Op::Delete { key },
    };
    let txn = transaction(server, call, Expect::ModRevision(entry.mod_revision), op, claims);
    match server.view.store().commit(txn).await.map_err(crate::error::from_store)? {
        Outcome::Committed { entries, .. } => {
            Ok(Some(entries.into_iter().next().flatten().unwrap_or_else(|| entry.clone())))
        }
        Outcome::Failed { .. } => Ok(None),
    }
}
