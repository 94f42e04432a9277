//! The edge between what readers see and what is kept: values are kept in the form that the caller's [`Transformer`] gives them
//! (encryption at rest), and are as they were committed in memory.
//!
//! A value is sealed once, by whoever commits it, and what came of that is remembered beside it: the log, checkpoints, snapshots and
//! etcd all get those same bytes. So a checkpoint seals nothing anew and needs no key, a copy of the files is as secret as the files,
//! and what was sealed with an older key stays so until it is written again. The price is the sealed bytes in memory, of sealed values
//! only.
//!
//! What cannot be opened is kept: its entry says why ([`Entry::unreadable`]), its value is made of no bytes, and
//! [`crate::Store::reopen`] tries again.
//!
//! Must not know: ciphers and keys.

use std::fmt;
use std::sync::Arc;

use bytes::Bytes;

use crate::{Entry, Error, Op, Revision, Value};

/// Turns values into what is kept, and back.
pub trait Transformer: fmt::Debug + Send + Sync + 'static {
    /// What is to be kept of `value`; none is the value itself. An error refuses the transaction.
    fn seal(&self, key: &str, value: &Bytes) -> Result<Option<Bytes>, String>;

    /// The value of what was kept; none if it is the value itself. Called from threads that may wait.
    fn open(&self, key: &str, kept: &Bytes) -> Result<Option<Bytes>, String>;

    /// Whether [`Transformer::seal`] would keep it otherwise today, so that it is to be written again though nothing changes. `kept` is
    /// none where the value is kept as it is.
    fn is_stale(&self, key: &str, kept: Option<&[u8]>) -> bool;

    /// Whether [`Transformer::open`] may have to wait for another process.
    fn waits(&self) -> bool;
}

pub(crate) type Transform = Option<Arc<dyn Transformer>>;

/// What is kept of a value where that is not its own bytes.
#[derive(Clone)]
pub(crate) struct Sealed {
    pub bytes: Bytes,
    /// Why it cannot be opened.
    pub unreadable: Option<Box<str>>,
}

/// What is kept of the ops' values, one each; empty where all are kept as they are.
pub(crate) fn seal(transform: &Transform, ops: &[Op]) -> Result<Vec<Option<Bytes>>, Error> {
    let Some(transformer) = transform else { return Ok(Vec::new()) };
    let mut sealed = Vec::new();
    for (at, op) in ops.iter().enumerate() {
        let Op::Put { key, value, .. } = op else { continue };
        let kept = transformer.seal(key, value).map_err(|reason| Error::Transform { key: key.clone(), reason })?;
        if let Some(kept) = kept {
            sealed.resize(ops.len(), None);
            sealed[at] = Some(kept);
        }
    }
    Ok(sealed)
}

/// The value of `kept`, which was read at `revision`, and what to remember of it.
pub(crate) fn open<V: Value>(
    transform: Option<&dyn Transformer>,
    key: &str,
    kept: Bytes,
    revision: Revision,
) -> (V, Option<Box<Sealed>>) {
    let Some(transformer) = transform else { return (V::committed(kept, revision), None) };
    match transformer.open(key, &kept) {
        Ok(None) => (V::committed(kept, revision), None),
        Ok(Some(value)) => (V::committed(value, revision), Some(Box::new(Sealed { bytes: kept, unreadable: None }))),
        Err(why) => {
            let sealed = Sealed { bytes: kept, unreadable: Some(why.into()) };
            (V::committed(Bytes::new(), revision), Some(Box::new(sealed)))
        }
    }
}

impl<V> Entry<V> {
    /// Why the value cannot be had, if it cannot: then it is [`Value::committed`] of no bytes.
    pub fn unreadable(&self) -> Option<&str> {
        self.sealed.as_ref()?.unreadable.as_deref()
    }
}

impl<V: Value> Entry<V> {
    /// What is kept of the value, as pieces that are put together.
    pub(crate) fn kept(&self) -> [&[u8]; 2] {
        match &self.sealed {
            Some(sealed) => [&sealed.bytes, &[]],
            None => self.value.stored(),
        }
    }
}
