//! A store in a directory made out of another store's entries, each with the revisions that it had there.
//!
//! It is written as a checkpoint over an empty log that begins at the other store's revision, so whoever held a revision of the other
//! store can go on with it here: revisions mean the same, and new ones are greater.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

use parking_lot::RwLock;

use crate::checkpoint::Checkpoint;
use crate::clock::{self, Expiry};
use crate::disk::{Directory, Disk};
use crate::etcd::RawEntry;
use crate::log::Log;
use crate::recovery::{Recovered, recover};
use crate::state::State;
use crate::{Entry, Error, Options, Revision};

/// Makes a store with these entries, at `revision`, in a directory without one.
///
/// Fails with [`Error::Configuration`] if there is a store with anything in it, and leaves it as it is.
pub fn import(dir: &Path, entries: Vec<RawEntry>, revision: Revision) -> Result<(), Error> {
    let disk: Arc<dyn Disk> = Arc::new(Directory::lock(dir)?);
    let found = recover(&*disk)?;
    if !found.entries.is_empty() || found.tail.is_some() {
        return Err(Error::Configuration { reason: format!("{} holds a store already", dir.display()) });
    }
    let now_ms = clock::system_ms();
    let entry = |raw: RawEntry| {
        let len = u32::try_from(raw.value.len())
            .map_err(|_| Error::RequestTooLarge { reason: format!("{} is larger than 4 GiB", raw.key) })?;
        Ok(Arc::new(Entry {
            key: Arc::from(raw.key.as_str()),
            value: raw.value,
            len,
            create_revision: raw.create_revision,
            mod_revision: raw.mod_revision,
            version: raw.version,
            expiry: raw.ttl.map(|ttl| Box::new(Expiry::new(now_ms, ttl))),
            sealed: None,
        }))
    };
    let entries = entries.into_iter().map(entry).collect::<Result<Vec<_>, Error>>()?;
    let (mut log, _) = Log::open(disk.clone(), &Recovered { revision, ..found }, &Options::default())?;
    let checkpoint = Checkpoint {
        disk,
        state: Arc::new(RwLock::new(State::new(entries, revision))),
        // The first segment, which is empty, comes after it.
        number: 1,
        revision,
        replaces: Vec::new(),
        stop: Arc::new(AtomicBool::new(false)),
    };
    let len = checkpoint.run(|| Ok(()))?;
    log.checkpointed(1, len);
    log.finish()
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::{Range, Store};

    #[test]
    fn an_imported_store_goes_on_where_the_other_was() {
        let dir = tempfile::tempdir().unwrap();
        let raw = |key: &str, mod_revision, ttl| RawEntry {
            key: key.to_owned(),
            value: "v".into(),
            create_revision: 5,
            mod_revision,
            version: 3,
            ttl,
        };
        let entries = vec![raw("/a", 700, None), raw("/b", 900, Some(Duration::from_secs(3600)))];
        import(dir.path(), entries.clone(), 1000).unwrap();
        let again = import(dir.path(), entries, 2000).unwrap_err();
        assert!(matches!(again, Error::Configuration { .. }), "{again}");
        for _ in 0..2 {
            let store = Store::<bytes::Bytes>::open(dir.path(), Options::default()).unwrap();
            assert_eq!(store.revision(), 1000);
            let found = store.range(&Range::prefix("/")).unwrap().entries;
            let told: Vec<_> = found
                .iter()
                .map(|e| (&*e.key, e.create_revision, e.mod_revision, e.version, e.expires().is_some()))
                .collect();
            assert_eq!(told, [("/a", 5, 700, 3, false), ("/b", 5, 900, 3, true)]);
        }
    }
}
