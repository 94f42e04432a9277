//! All keys below a prefix, as of one revision.

use std::sync::Arc;

use super::client::{Client, from_wire, revision_of, to_wire};
use super::wire::{self, method};
use crate::{Entry, Error, Revision, Value, prefix_end};

/// Keys in one answer: enough to be quick, few enough that etcd is not held up.
const PAGE: i64 = 2000;
/// Compaction may come between two pages; it does so every few minutes at most.
const TRIES: usize = 5;

pub(crate) struct Loaded<V> {
    pub entries: Vec<Arc<Entry<V>>>,
    pub revision: Revision,
}

pub(crate) async fn load<V: Value>(client: &Client, prefix: &str) -> Result<Loaded<V>, Error> {
    let mut tries = 0;
    loop {
        let mut entries = Vec::new();
        let read = pages(client, prefix, |kv| entries.extend(entry::<V>(kv, None).map(Arc::new))).await;
        match read {
            Ok(revision) => return Ok(Loaded { entries, revision }),
            Err(Error::Compacted { .. }) if tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Hands over each key below `prefix` in order; returns the revision that they are of.
pub(crate) async fn pages(
    client: &Client,
    prefix: &str,
    mut each: impl FnMut(wire::KeyValue),
) -> Result<Revision, Error> {
    let mut request = wire::RangeRequest {
        key: if prefix.is_empty() { wire::ALL.into() } else { prefix.to_owned().into() },
        range_end: if prefix.is_empty() { wire::ALL.into() } else { prefix_end(prefix).into() },
        limit: PAGE,
        ..Default::default()
    };
    let mut revision = 0;
    loop {
        let answer: wire::RangeResponse = client.repeatable(method::RANGE, &request).await?;
        if revision == 0 {
            revision = revision_of(answer.header.as_ref());
            request.revision = to_wire(revision);
        }
        if let Some(last) = answer.kvs.last() {
            let mut next = last.key.to_vec();
            next.push(0);
            request.key = next.into();
        }
        let more = answer.more && !answer.kvs.is_empty();
        answer.kvs.into_iter().for_each(&mut each);
        if !more {
            return Ok(revision);
        }
    }
}

/// None where the key is not text: nobody of ours wrote it. `known` is the same key's allocation, to be shared.
pub(crate) fn entry<V: Value>(kv: wire::KeyValue, known: Option<&Arc<str>>) -> Option<Entry<V>> {
    let key = match known {
        Some(known) => known.clone(),
        None => Arc::from(std::str::from_utf8(&kv.key).ok()?),
    };
    // Of its own, and not a piece of the whole answer, which would stay in memory as long as this.
    let value = bytes::Bytes::copy_from_slice(&kv.value);
    let mod_revision = from_wire(kv.mod_revision);
    Some(Entry {
        key,
        len: u32::try_from(value.len()).unwrap_or(u32::MAX),
        value: V::committed(value, mod_revision),
        create_revision: from_wire(kv.create_revision),
        mod_revision,
        version: from_wire(kv.version),
        // etcd deletes it when its lease ends.
        expiry: None,
    })
}
