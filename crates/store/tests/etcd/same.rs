//! Whatever is done, a store on etcd does the same as one in memory, which is held to a model by tests of its own.

use rand::rngs::StdRng;
use rand::seq::IndexedRandom as _;
use rand::{Rng as _, SeedableRng as _};
use store::{Entry, Error, Expect, Op, Options, Outcome, Range, Store, Watcher, prefix_end};

use crate::cluster::Cluster;
use crate::{Text, TextStore, open, put, told, txn};

const KEYS: [&str; 8] = ["/a", "/a/", "/a/x", "/a/xy", "/b/x", "/b/x/y", "c", "/ä/ö"];
const PREFIXES: [&str; 7] = ["", "/", "/a", "/a/", "/a/x", "/b/x/", "/ä"];
const STEPS: usize = 3000;

fn row(entry: &Entry<Text>) -> String {
    assert_eq!(entry.value.revision, entry.mod_revision);
    let Entry { key, value, create_revision, mod_revision, version, .. } = entry;
    format!("{key}={} {create_revision} {mod_revision} {version} {}", value.text(), value.deleted)
}

fn rows<'a>(entries: impl IntoIterator<Item = &'a Option<std::sync::Arc<Entry<Text>>>>) -> Vec<Option<String>> {
    entries.into_iter().map(|entry| entry.as_deref().map(row)).collect()
}

fn outcome(outcome: Result<Outcome<Text>, Error>) -> String {
    match outcome {
        Ok(Outcome::Committed { revision, entries }) => format!("committed {revision} {:?}", rows(&entries)),
        Ok(Outcome::Failed { current }) => format!("failed {:?}", rows(&current)),
        Err(error) => error.to_string(),
    }
}

fn listing(store: &TextStore, query: &Range) -> String {
    match store.range(query) {
        Ok(found) => {
            let rows: Vec<_> = found.entries.iter().map(|entry| row(entry)).collect();
            format!("{rows:?} {} {} {}", found.more, found.remaining, found.revision)
        }
        Err(error) => error.to_string(),
    }
}

fn drain(watcher: &mut Watcher<Text>) -> (Vec<String>, u64) {
    let mut all = Vec::new();
    loop {
        let events = watcher.take().unwrap();
        if events.is_empty() {
            return (all, watcher.progress());
        }
        let before = |event: &store::Event<Text>| event.previous.as_deref().map(row);
        all.extend(events.iter().map(|event| format!("{} from {:?}", told(event), before(event))));
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn etcd_and_memory_do_the_same() {
    let seed = std::env::var("STORE_TEST_SEED").ok().and_then(|text| text.parse().ok()).unwrap_or(7);
    let mut random = StdRng::seed_from_u64(seed);
    let cluster = Cluster::start(1, &[]);
    let etcd = open(cluster.config()).await;
    let memory: TextStore = Store::in_memory(Options::default());
    assert_eq!(etcd.revision(), memory.revision(), "both count from the empty store");
    let mut watches = Vec::new();
    for step in 0..STEPS {
        let key = |random: &mut StdRng| *KEYS.choose(random).unwrap();
        let back = |random: &mut StdRng| (memory.revision() + 2).saturating_sub(random.random_range(0..20)).max(1);
        match random.random_range(0..16) {
            0..8 => {
                let mut compares = Vec::new();
                for _ in 0..random.random_range(0..3) {
                    let key = key(&mut random);
                    let newest = memory.get(key).map_or(7, |entry| entry.mod_revision);
                    let wanted = [
                        Expect::Absent,
                        Expect::Exists,
                        Expect::ModRevision(0),
                        Expect::ModRevision(memory.revision()),
                        Expect::ModRevision(newest),
                        Expect::ModRevision(newest),
                    ];
                    compares.push((key, *wanted.choose(&mut random).unwrap()));
                }
                let mut ops = Vec::new();
                for _ in 0..random.random_range(0..4) {
                    let key = key(&mut random);
                    ops.push(match random.random_bool(0.7) {
                        true => put(key, &format!("value {step}")),
                        false => Op::Delete { key: key.to_owned() },
                    });
                }
                let txn = txn(&compares, ops);
                let (here, there) = (memory.commit(txn.clone()).await, etcd.commit(txn.clone()).await);
                assert_eq!(outcome(there), outcome(here), "step {step} of seed {seed}: {txn:?}");
            }
            8..13 => {
                let end = if random.random_bool(0.2) { prefix_end("") } else { key(&mut random).to_owned() };
                let revision = random.random_bool(0.6).then(|| back(&mut random));
                let query =
                    Range { start: key(&mut random).to_owned(), end, limit: random.random_range(0..4), revision };
                assert_eq!(listing(&etcd, &query), listing(&memory, &query), "step {step} of seed {seed}: {query:?}");
            }
            13..15 => {
                let (prefix, after) = (*PREFIXES.choose(&mut random).unwrap(), back(&mut random));
                let both = (etcd.watch(prefix, after), memory.watch(prefix, after));
                assert_eq!(both.0.is_ok(), both.1.is_ok());
                if let (Ok(there), Ok(here)) = both {
                    watches.push((there, here));
                }
            }
            _ => {
                for (there, here) in &mut watches {
                    assert_eq!(drain(there), drain(here), "step {step} of seed {seed}");
                }
                let keep = random.random_range(0..8);
                watches.truncate(keep);
                if random.random_bool(0.2) {
                    watches.clear();
                    let revision = back(&mut random);
                    assert_eq!(etcd.compact(revision).is_ok(), memory.compact(revision).is_ok());
                }
            }
        }
        assert_eq!(etcd.revision(), memory.revision());
    }
    for (there, here) in &mut watches {
        assert_eq!(drain(there), drain(here));
    }
    // Loaded from what etcd has, it is the same again.
    let again = open(cluster.config()).await;
    let all = Range::prefix("");
    assert_eq!(listing(&again, &all), listing(&memory, &all));
}
