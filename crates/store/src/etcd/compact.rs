//! etcd keeps every version of every key until it is told to compact.
//!
//! Of several servers one does so, by the protocol of upstream's API server, so that its servers and ours could share an etcd: the key
//! `compact_rev_key` counts the rounds by its version. Whoever moves it from the version that it has seen last has won the round, and
//! compacts to the revision that it saw in the round before, so history of at least one interval remains.

use std::sync::Arc;
use std::time::Duration;

use super::Core;
use super::client::{Client, Failure, from_wire, to_wire};
use super::wire::{self, method, request_op, response_op};
use crate::{Error, Revision};

const KEY: &str = "compact_rev_key";

/// What was learnt in a round.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Round {
    /// Version of the key.
    number: i64,
    /// The cluster's revision.
    revision: Revision,
}

pub(crate) async fn run<V>(core: Arc<Core<V>>, interval: Duration) {
    let mut round = Round::default();
    loop {
        tokio::time::sleep(interval).await;
        match compact(&core.client, round).await {
            Ok(next) => round = next,
            Err(error) => tracing::warn!(%error, "etcd's history was not compacted, it will be tried again"),
        }
    }
}

/// Takes part in a round.
pub(crate) async fn compact(client: &Client, last: Round) -> Result<Round, Error> {
    let key = || bytes::Bytes::from_static(KEY.as_bytes());
    let value = last.revision.to_string().into();
    let put = wire::PutRequest { key: key(), value, lease: 0 };
    let get = wire::RangeRequest { key: key(), ..Default::default() };
    let request = wire::TxnRequest {
        compare: vec![wire::Compare {
            result: wire::CompareResult::Equal as i32,
            target: wire::CompareTarget::Version as i32,
            key: key(),
            value: Some(wire::compare::Value::Version(last.number)),
        }],
        success: vec![wire::RequestOp { request: Some(request_op::Request::Put(put)) }],
        failure: vec![wire::RequestOp { request: Some(request_op::Request::Range(get)) }],
    };
    // A round that was won without hearing of it is one that nobody compacts in.
    let answer: wire::TxnResponse = client.once(method::TXN, &request).await.map_err(Failure::into_error)?;
    let revision = from_wire(answer.header.map_or(0, |header| header.revision));
    if !answer.succeeded {
        let number = answer.responses.into_iter().next().and_then(|response| match response.response {
            Some(response_op::Response::Range(range)) => range.kvs.first().map(|kv| kv.version),
            _ => None,
        });
        return Ok(Round { number: number.unwrap_or(0), revision });
    }
    if last.revision > 0 {
        let request = wire::CompactionRequest { revision: to_wire(last.revision) };
        match client.repeatable::<_, wire::CompactionResponse>(method::COMPACT, &request).await {
            Ok(_) => tracing::debug!(revision = last.revision, "etcd's history is compacted"),
            // By somebody else, or by this call's first sending.
            Err(Error::Compacted { .. }) => {}
            Err(error) => return Err(error),
        }
    }
    Ok(Round { number: last.number + 1, revision })
}
