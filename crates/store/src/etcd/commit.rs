//! A transaction of ours as one of etcd's.

use std::collections::HashSet;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;

use super::client::{Failure, from_wire, revision_of, to_wire};
use super::lease::Leases;
use super::wire::{self, method, request_op, response_op};
use super::{Core, load};
use crate::{Compare, Entry, Error, Expect, Op, Outcome, Revision, Txn, Value};

/// Sendings of a transaction that may be sent again.
const TRIES: usize = 3;

/// `sealed` is what is kept of the ops' values, empty where that is the values.
pub(crate) async fn commit<V: Value>(
    core: &Core<V>,
    leases: &Leases,
    txn: Txn,
    sealed: Vec<Option<Bytes>>,
) -> Result<Outcome<V>, Error> {
    core.client.check()?;
    if let Some(op) = txn.ops.iter().find(|op| !op.key().starts_with(&core.prefix)) {
        let reason = format!("key {:?} is not below {:?}", op.key(), core.prefix);
        return Err(Error::Configuration { reason });
    }
    let twice = duplicate(&txn.ops);
    let ttls: HashSet<Duration> = txn.ops.iter().filter_map(ttl).collect();
    let mut again = true;
    let (answer, shown) = loop {
        let mut granted = Vec::new();
        for ttl in &ttls {
            granted.push((*ttl, leases.lease(&core.client, *ttl).await?));
        }
        // With a key twice it is only asked whether the conditions hold, which comes first.
        let ops = if twice.is_some() { &[][..] } else { &txn.ops };
        let request = request(&txn.compares, ops, &sealed, &granted);
        let shown = core.state.read().revision();
        match send(core, &request, is_guarded(&txn)).await {
            Err(Error::Datastore { reason }) if again && reason.contains("lease not found") => {
                // It ran out, or was revoked by somebody: nothing has happened yet.
                granted.iter().for_each(|(_, id)| leases.forget(*id));
                again = false;
            }
            answer => break (answer?, shown),
        }
    };
    let revision = revision_of(answer.header.as_ref());
    core.check_revision(shown, revision)?;
    match (answer.succeeded, twice) {
        (true, Some(key)) => Err(Error::DuplicateKey { key }),
        (true, None) => committed(core, &txn.ops, answer, revision).await,
        (false, _) => failed(core, answer, revision).await,
    }
}

fn ttl(op: &Op) -> Option<Duration> {
    match op {
        Op::Put { ttl, .. } => *ttl,
        Op::Delete { .. } => None,
    }
}

fn duplicate(ops: &[Op]) -> Option<String> {
    let mut seen = HashSet::new();
    ops.iter().find(|op| !seen.insert(op.key())).map(|op| op.key().to_owned())
}

/// Whether at most one of two sendings can succeed: see the module's *Writes whose outcome is unknown*. That a key is absent does
/// not do: it may have been made by the first sending, and deleted by somebody, before the second.
fn is_guarded(txn: &Txn) -> bool {
    txn.compares.iter().any(|compare| {
        matches!(compare.expect, Expect::ModRevision(_)) && txn.ops.iter().any(|op| op.key() == compare.key)
    })
}

/// Sends it until it is known what became of it, or cannot be known.
async fn send<V>(core: &Core<V>, request: &wire::TxnRequest, guarded: bool) -> Result<wire::TxnResponse, Error> {
    let mut doubt: Option<String> = None;
    for sending in 1.. {
        match (core.client.once::<_, wire::TxnResponse>(method::TXN, request).await, doubt.take()) {
            (Ok(answer), Some(reason)) if !answer.succeeded => return Err(Error::Uncertain { reason }),
            (Ok(answer), _) => return Ok(answer),
            (Err(Failure::Unknown(reason)), _) if guarded && sending < TRIES => doubt = Some(reason),
            (Err(failure), None) => return Err(failure.into_error()),
            (Err(_), Some(reason)) => return Err(Error::Uncertain { reason }),
        }
    }
    unreachable!("the loop ends by returning")
}

fn request(compares: &[Compare], ops: &[Op], sealed: &[Option<Bytes>], leases: &[(Duration, i64)]) -> wire::TxnRequest {
    let read = |compare: &Compare| {
        let range = wire::RangeRequest { key: bytes_of(&compare.key), ..Default::default() };
        wire::RequestOp { request: Some(request_op::Request::Range(range)) }
    };
    wire::TxnRequest {
        compare: compares.iter().map(compare).collect(),
        success: ops.iter().enumerate().map(|(at, op)| write(op, sealed.get(at), leases)).collect(),
        failure: compares.iter().map(read).collect(),
    }
}

fn bytes_of(key: &str) -> Bytes {
    Bytes::copy_from_slice(key.as_bytes())
}

fn compare(compare: &Compare) -> wire::Compare {
    use wire::compare::Value::{CreateRevision, ModRevision, Version};
    use wire::{CompareResult, CompareTarget};
    let (result, target, value) = match compare.expect {
        Expect::Absent => (CompareResult::Equal, CompareTarget::Create, CreateRevision(0)),
        Expect::Exists => (CompareResult::Greater, CompareTarget::Create, CreateRevision(0)),
        // A missing key has 0 for etcd, and no revision for us: a version that no key has.
        Expect::ModRevision(0) => (CompareResult::Equal, CompareTarget::Version, Version(-1)),
        Expect::ModRevision(revision) => (CompareResult::Equal, CompareTarget::Mod, ModRevision(to_wire(revision))),
    };
    wire::Compare { result: result as i32, target: target as i32, key: bytes_of(&compare.key), value: Some(value) }
}

fn write(op: &Op, sealed: Option<&Option<Bytes>>, leases: &[(Duration, i64)]) -> wire::RequestOp {
    let request = match op {
        Op::Put { key, value, ttl } => {
            let lease = leases.iter().find(|(of, _)| Some(*of) == *ttl).map_or(0, |(_, id)| *id);
            let value = sealed.and_then(Option::as_ref).unwrap_or(value).clone();
            request_op::Request::Put(wire::PutRequest { key: bytes_of(key), value, lease })
        }
        Op::Delete { key } => request_op::Request::DeleteRange(wire::DeleteRangeRequest { key: bytes_of(key) }),
    };
    wire::RequestOp { request: Some(request) }
}

async fn committed<V: Value>(
    core: &Core<V>,
    ops: &[Op],
    answer: wire::TxnResponse,
    revision: Revision,
) -> Result<Outcome<V>, Error> {
    let changes: Vec<bool> = answer
        .responses
        .iter()
        .map(|response| match &response.response {
            Some(response_op::Response::DeleteRange(deleted)) => deleted.deleted > 0,
            other => other.is_some(),
        })
        .collect();
    let done = |error: &dyn std::fmt::Display| Error::Uncertain {
        reason: format!("the transaction was committed at revision {revision}, but: {error}"),
    };
    core.applied.reach(revision).await.map_err(|error| done(&error))?;
    if !changes.contains(&true) {
        return Ok(Outcome::Committed { revision, entries: ops.iter().map(|_| None).collect() });
    }
    let state = core.state.read();
    let events: Vec<_> = state.events_of(revision).collect();
    let entry = |(op, changed): (&Op, &bool)| {
        let event = events.iter().find(|event| event.key() == op.key());
        match (changed, event) {
            (true, Some(event)) => Ok(Some(event.entry().clone())),
            (true, None) => Err(done(&"it is no longer in the history")),
            (false, _) => Ok(None),
        }
    };
    let entries = ops.iter().zip(&changes).map(entry).collect::<Result<_, _>>()?;
    Ok(Outcome::Committed { revision, entries })
}

/// The caller will want to decide anew, by what the index shows then.
async fn failed<V: Value>(core: &Core<V>, answer: wire::TxnResponse, revision: Revision) -> Result<Outcome<V>, Error> {
    core.applied.reach(revision).await?;
    let current = answer.responses.into_iter().map(|response| match response.response {
        Some(response_op::Response::Range(range)) => range.kvs.into_iter().next().and_then(|kv| shared(core, kv)),
        _ => None,
    });
    Ok(Outcome::Failed { current: current.collect() })
}

/// The index's entry where it is the same version, else one of its own.
fn shared<V: Value>(core: &Core<V>, kv: wire::KeyValue) -> Option<Arc<Entry<V>>> {
    let known = core.state.read().get(std::str::from_utf8(&kv.key).ok()?).cloned();
    match known {
        Some(known) if known.mod_revision == from_wire(kv.mod_revision) => Some(known),
        known => {
            let known = known.as_ref().map(|known| &known.key);
            load::entry(kv, known, core.transform().as_deref()).map(Arc::new)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_cannot_happen_twice_is_sent_again() {
        let put = |key: &str| Op::Put { key: key.to_owned(), value: Default::default(), ttl: None };
        let txn = |expect, key: &str, op| {
            let compares = vec![Compare { key: key.to_owned(), expect }];
            Txn { compares, ops: vec![op], ..Txn::default() }
        };
        let delete = Op::Delete { key: "/a".to_owned() };
        assert!(is_guarded(&txn(Expect::ModRevision(3), "/a", put("/a"))));
        assert!(is_guarded(&txn(Expect::ModRevision(3), "/a", delete.clone())));
        assert!(!is_guarded(&txn(Expect::ModRevision(3), "/b", put("/a"))), "another key's condition may still hold");
        assert!(!is_guarded(&txn(Expect::Absent, "/a", put("/a"))), "may have been deleted in between");
        assert!(!is_guarded(&txn(Expect::Exists, "/a", delete)), "may have been made again in between");
        assert!(!is_guarded(&Txn { ops: vec![put("/a")], ..Txn::default() }));
    }
}
