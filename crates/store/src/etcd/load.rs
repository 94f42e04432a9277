//! All keys below a prefix, as of one revision.

use std::sync::Arc;

use super::client::{Client, from_wire, revision_of, to_wire};
use super::wire::{self, method};
use crate::transform::{self, Transform};
use crate::{Entry, Error, Revision, Transformer, Value, prefix_end};

/// Keys in one answer: enough to be quick, few enough that etcd is not held up.
const PAGE: i64 = 2000;
/// Compaction may come between two pages; it does so every few minutes at most.
const TRIES: usize = 5;

pub(crate) struct Loaded<V> {
    pub entries: Vec<Arc<Entry<V>>>,
    pub revision: Revision,
}

pub(crate) async fn load<V: Value>(client: &Client, prefix: &str, transform: &Transform) -> Result<Loaded<V>, Error> {
    let mut tries = 0;
    loop {
        let mut entries = Vec::new();
        let mut sealed = Vec::new();
        let read = match transform {
            None => pages(client, prefix, |kv| entries.extend(entry::<V>(kv, None, None).map(Arc::new))).await,
            Some(_) => pages(client, prefix, |kv| sealed.push(kv)).await,
        };
        match read {
            Ok(revision) => {
                if !sealed.is_empty() {
                    entries = open_all(sealed, transform.clone()).await?;
                }
                return Ok(Loaded { entries, revision });
            }
            Err(Error::Compacted { .. }) if tries < TRIES => tries += 1,
            Err(error) => return Err(error),
        }
    }
}

/// Opening may take its time, and wait for others.
async fn open_all<V: Value>(kvs: Vec<wire::KeyValue>, transform: Transform) -> Result<Vec<Arc<Entry<V>>>, Error> {
    let work = move || {
        let opened = kvs.into_iter().filter_map(|kv| entry(kv, None, transform.as_deref()));
        opened.map(Arc::new).collect()
    };
    tokio::task::spawn_blocking(work).await.map_err(|_| Error::Closed)
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
pub(crate) fn entry<V: Value>(
    kv: wire::KeyValue,
    known: Option<&Arc<str>>,
    transformer: Option<&dyn Transformer>,
) -> Option<Entry<V>> {
    let key = match known {
        Some(known) => known.clone(),
        None => Arc::from(std::str::from_utf8(&kv.key).ok()?),
    };
    // Of its own, and not a piece of the whole answer, which would stay in memory as long as this.
    let kept = bytes::Bytes::copy_from_slice(&kv.value);
    let mod_revision = from_wire(kv.mod_revision);
    let len = u32::try_from(kept.len()).unwrap_or(u32::MAX);
    let (value, sealed) = transform::open(transformer, &key, kept, mod_revision);
    Some(Entry {
        key,
        len,
        value,
        create_revision: from_wire(kv.create_revision),
        mod_revision,
        version: from_wire(kv.version),
        // etcd deletes it when its lease ends.
        expiry: None,
        sealed,
    })
}
