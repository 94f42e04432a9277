//! Single keys of a cluster without an index in memory: for what is needed before a store can be opened, and for copying.

use std::time::Duration;

use bytes::Bytes;

use super::Config;
use super::client::{Client, Failure, from_wire, revision_of, to_wire};
use super::wire::{self, method, request_op};
use crate::{Error, Revision};

/// Operations in one transaction; etcd refuses more than 128 unless it was told otherwise.
const BATCH_OPS: usize = 100;
/// And about so many bytes: etcd's limit for a request is 1.5 MiB.
const BATCH_BYTES: usize = 1 << 20;

/// A cluster's keys.
pub struct Keys {
    client: Client,
}

/// One key as etcd has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RawEntry {
    pub key: String,
    pub value: Bytes,
    pub create_revision: Revision,
    pub mod_revision: Revision,
    pub version: u64,
    /// Until the key goes away by itself.
    pub ttl: Option<Duration>,
}

impl Keys {
    /// Connects at the first call. `config.prefix` is not looked at: keys are whole.
    pub fn new(config: &Config) -> Result<Self, Error> {
        Ok(Keys { client: config.client()? })
    }

    /// The newest revision.
    pub async fn revision(&self) -> Result<Revision, Error> {
        self.client.newest_revision().await
    }

    /// The value of one key and its `mod_revision`.
    pub async fn get(&self, key: &str) -> Result<Option<(Bytes, Revision)>, Error> {
        let request = wire::RangeRequest { key: Bytes::copy_from_slice(key.as_bytes()), ..Default::default() };
        let answer: wire::RangeResponse = self.client.repeatable(method::RANGE, &request).await?;
        Ok(answer.kvs.into_iter().next().map(|kv| (kv.value, from_wire(kv.mod_revision))))
    }

    /// Writes `key` if its `mod_revision` is `expected`, 0 for a key that does not exist. Returns whether it did.
    pub async fn put_if(&self, key: &str, value: Bytes, expected: Revision) -> Result<bool, Error> {
        let request = wire::TxnRequest {
            compare: vec![wire::Compare {
                result: wire::CompareResult::Equal as i32,
                target: wire::CompareTarget::Mod as i32,
                key: Bytes::copy_from_slice(key.as_bytes()),
                value: Some(wire::compare::Value::ModRevision(to_wire(expected))),
            }],
            success: vec![put(key, value, 0)],
            failure: Vec::new(),
        };
        let answer: wire::TxnResponse = self.client.once(method::TXN, &request).await.map_err(Failure::into_error)?;
        Ok(answer.succeeded)
    }

    /// Whether there is any key that starts with `prefix`.
    pub async fn is_empty(&self, prefix: &str) -> Result<bool, Error> {
        let request = wire::RangeRequest {
            key: Bytes::copy_from_slice(prefix.as_bytes()),
            range_end: crate::prefix_end(prefix).into(),
            count_only: true,
            ..Default::default()
        };
        let answer: wire::RangeResponse = self.client.repeatable(method::RANGE, &request).await?;
        Ok(answer.count == 0)
    }

    /// All keys that start with `prefix`, in order, and the revision that they are of.
    pub async fn all(&self, prefix: &str) -> Result<(Vec<RawEntry>, Revision), Error> {
        let mut found = Vec::new();
        let revision = super::load::pages(&self.client, prefix, |kv| found.push(kv)).await?;
        let mut ttls = std::collections::HashMap::new();
        let mut entries = Vec::with_capacity(found.len());
        for kv in found {
            let ttl = match (kv.lease, ttls.get(&kv.lease)) {
                (0, _) => None,
                (_, Some(known)) => Some(*known),
                (lease, None) => {
                    let left = self.ttl(lease).await?;
                    ttls.insert(lease, left);
                    Some(left)
                }
            };
            let key = String::from_utf8(kv.key.to_vec()).map_err(|error| Error::Datastore {
                reason: format!("key {:?} is not text", String::from_utf8_lossy(error.as_bytes())),
            })?;
            entries.push(RawEntry {
                key,
                value: Bytes::copy_from_slice(&kv.value),
                create_revision: from_wire(kv.create_revision),
                mod_revision: from_wire(kv.mod_revision),
                version: from_wire(kv.version),
                ttl,
            });
        }
        Ok((entries, revision))
    }

    async fn ttl(&self, lease: i64) -> Result<Duration, Error> {
        let request = wire::LeaseTimeToLiveRequest { id: lease };
        let answer: wire::LeaseTimeToLiveResponse =
            self.client.repeatable(method::LEASE_TIME_TO_LIVE, &request).await?;
        // One that has just ended: its keys are going.
        Ok(Duration::from_secs(u64::try_from(answer.ttl).unwrap_or(0).max(1)))
    }

    /// Writes keys with their times to live, many in a transaction, over whatever there is. Doing it twice does no harm.
    pub async fn put_all(
        &self,
        entries: impl IntoIterator<Item = (String, Bytes, Option<Duration>)>,
    ) -> Result<(), Error> {
        let leases = super::Leases::default();
        let (mut batch, mut size) = (Vec::new(), 0);
        for (key, value, ttl) in entries {
            let lease = match ttl {
                Some(ttl) => leases.lease(&self.client, ttl).await?,
                None => 0,
            };
            let len = key.len() + value.len();
            if !batch.is_empty() && (batch.len() >= BATCH_OPS || size + len > BATCH_BYTES) {
                self.write(std::mem::take(&mut batch)).await?;
                size = 0;
            }
            size += len;
            batch.push(put(&key, value, lease));
        }
        if batch.is_empty() { Ok(()) } else { self.write(batch).await }
    }

    async fn write(&self, success: Vec<wire::RequestOp>) -> Result<(), Error> {
        let request = wire::TxnRequest { success, ..Default::default() };
        let _: wire::TxnResponse = self.client.repeatable(method::TXN, &request).await?;
        Ok(())
    }

    /// Writes `key` again and again until the cluster's revision is at least `revision`, and then compacts that away. The key stays.
    pub async fn raise_revision(&self, key: &str, revision: Revision) -> Result<(), Error> {
        loop {
            let now = self.revision().await?;
            if now >= revision {
                break;
            }
            let round = (revision - now).min(RAISE_ROUND);
            let writes = (0..RAISE_AT_ONCE).map(|writer| {
                let count = round / RAISE_AT_ONCE + u64::from(writer < round % RAISE_AT_ONCE);
                async move {
                    for _ in 0..count {
                        self.write(vec![put(key, Bytes::new(), 0)]).await?;
                    }
                    Ok::<_, Error>(())
                }
            });
            futures::future::try_join_all(writes).await?;
            let reached = self.revision().await?;
            let request = wire::CompactionRequest { revision: to_wire(reached) };
            let compacted: wire::CompactionResponse = self.client.repeatable(method::COMPACT, &request).await?;
            tracing::info!(
                revision = revision_of(compacted.header.as_ref()),
                goal = revision,
                "raising etcd's revision"
            );
        }
        Ok(())
    }
}

/// Writes under way at a time: etcd syncs its log once for many.
const RAISE_AT_ONCE: u64 = 256;
/// Writes between two compactions, so that they do not fill the database.
const RAISE_ROUND: u64 = 100_000;

fn put(key: &str, value: Bytes, lease: i64) -> wire::RequestOp {
    let put = wire::PutRequest { key: Bytes::copy_from_slice(key.as_bytes()), value, lease };
    wire::RequestOp { request: Some(request_op::Request::Put(put)) }
}
