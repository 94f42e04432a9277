//! Random operations compared with a model that keeps every state there ever was.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use histories::rounds;
use proptest::prelude::*;

use super::sim::SimDisk;
use super::{Text, block_on, delete, guarded, put, tiny};
use crate::{Change, Compare, Entry, Error, Event, Expect, Op, Outcome, Range, Revision, Store, Watcher, prefix_end};

#[derive(Clone, Debug)]
enum Step {
    Commit {
        compares: Vec<(usize, u8)>,
        ops: Vec<(usize, Option<String>, bool)>,
    },
    Read {
        start: usize,
        end: usize,
        limit: usize,
        back: u64,
    },
    Watch {
        prefix: usize,
        key: bool,
        back: u64,
    },
    /// One batch of one watcher; the others lag behind.
    Take {
        watcher: usize,
    },
    Compact {
        back: u64,
    },
    Reopen {
        killed: bool,
    },
}

const KEYS: [&str; 8] = ["/a", "/a/", "/a/x", "/a/xy", "/b/x", "/b/x/y", "c", "/ä/ö"];
const PREFIXES: [&str; 7] = ["", "/", "/a", "/a/", "/a/x", "/b/x/", "/ä"];

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS.len();
    // Some expire, long after the test.
    let op = (key.clone(), prop::option::weighted(0.7, "[a-z]{0,40}"), prop::bool::weighted(0.3));
    let commit = (prop::collection::vec((key.clone(), 0..4u8), 0..3), prop::collection::vec(op, 0..4));
    prop_oneof![
        8 => commit.prop_map(|(compares, ops)| Step::Commit { compares, ops }),
        4 => (key.clone(), 0..=KEYS.len(), 0..4usize, 0..12u64)
            .prop_map(|(start, end, limit, back)| Step::Read { start, end, limit, back }),
        2 => (0..PREFIXES.len(), any::<bool>(), 0..12u64)
            .prop_map(|(prefix, key, back)| Step::Watch { prefix, key, back }),
        2 => (0..8usize).prop_map(|watcher| Step::Take { watcher }),
        1 => (0..12u64).prop_map(|back| Step::Compact { back }),
        1 => any::<bool>().prop_map(|killed| Step::Reopen { killed }),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    value: String,
    create_revision: Revision,
    mod_revision: Revision,
    version: u64,
    expires: bool,
}

/// Of those keys that expire.
const TTL: Duration = Duration::from_secs(3600);

fn row(entry: &Entry<Text>) -> Row {
    assert_eq!(entry.value.revision, entry.mod_revision);
    Row {
        value: String::from_utf8(entry.value.bytes.to_vec()).unwrap(),
        create_revision: entry.create_revision,
        mod_revision: entry.mod_revision,
        version: entry.version,
        expires: expires(entry),
    }
}

fn expires(entry: &Entry<Text>) -> bool {
    let Some(at) = entry.expires() else { return false };
    let left = at.duration_since(std::time::SystemTime::now()).unwrap();
    assert!(left <= TTL && left > TTL / 2, "{left:?} are left");
    true
}

/// Revision, key, what it was, what it became.
type ModelEvent = (Revision, String, Option<Row>, Option<Row>);

struct Model {
    states: BTreeMap<Revision, BTreeMap<String, Row>>,
    events: Vec<ModelEvent>,
    revision: Revision,
    compacted: Revision,
}

impl Model {
    fn now(&self) -> &BTreeMap<String, Row> {
        &self.states[&self.revision]
    }

    fn holds(&self, compare: &Compare) -> bool {
        let row = self.now().get(&compare.key);
        match compare.expect {
            Expect::Absent => row.is_none(),
            Expect::Exists => row.is_some(),
            Expect::ModRevision(revision) => row.is_some_and(|row| row.mod_revision == revision),
        }
    }

    fn commit(&mut self, ops: &[Op]) -> Revision {
        let revision = self.revision + 1;
        let mut state = self.now().clone();
        let mut changed = false;
        for op in ops {
            let previous = state.get(op.key()).cloned();
            let next = match op {
                Op::Put { value, ttl, .. } => Some(Row {
                    value: String::from_utf8(value.to_vec()).unwrap(),
                    create_revision: previous.as_ref().map_or(revision, |row| row.create_revision),
                    mod_revision: revision,
                    version: previous.as_ref().map_or(1, |row| row.version + 1),
                    expires: ttl.is_some(),
                }),
                Op::Delete { .. } => None,
            };
            if previous.is_none() && next.is_none() {
                continue;
            }
            match &next {
                Some(row) => _ = state.insert(op.key().to_owned(), row.clone()),
                None => _ = state.remove(op.key()),
            }
            self.events.push((revision, op.key().to_owned(), previous, next));
            changed = true;
        }
        if changed {
            self.states.insert(revision, state);
            self.revision = revision;
        }
        self.revision
    }

    fn back(&self, back: u64) -> Revision {
        (self.revision + 2).saturating_sub(back).max(1)
    }

    fn readable(&self, revision: Revision) -> bool {
        (self.compacted..=self.revision).contains(&revision)
    }
}

/// A watcher and what it has to be told.
struct Watch {
    watcher: Watcher<Text>,
    name: &'static str,
    /// Of the key `name`, else of keys that start with it.
    key: bool,
    after: Revision,
    found: Vec<ModelEvent>,
}

impl Watch {
    fn expected(&self, model: &Model) -> Vec<ModelEvent> {
        let mine = |key: &str| if self.key { key == self.name } else { key.starts_with(self.name) };
        model.events.iter().filter(|event| event.0 > self.after && mine(&event.1)).cloned().collect()
    }

    /// One batch, which has to go on where the last one ended. Returns whether there was one.
    fn take(&mut self, model: &Model) -> Result<bool, Error> {
        let batch = self.watcher.take()?;
        self.found.extend(batch.iter().map(|event| model_event(event)));
        let expected = self.expected(model);
        assert_eq!(self.found, expected[..self.found.len()], "watch of {:?} after {}", self.name, self.after);
        let next = expected.get(self.found.len()).map(|event| event.0);
        assert!(self.found.last().map(|event| event.0) != next || next.is_none(), "a transaction was split");
        let progress = self.watcher.progress();
        assert!(next.is_none_or(|next| progress < next), "progress {progress} is ahead of {next:?}");
        assert!(next.is_some() || progress == model.revision);
        Ok(!batch.is_empty())
    }
}

fn model_event(event: &Event<Text>) -> ModelEvent {
    let next = match &event.change {
        Change::Put(entry) => Some(row(entry)),
        Change::Delete(tombstone) => {
            assert!(tombstone.value.deleted);
            None
        }
    };
    (event.revision, event.key().to_owned(), event.previous.as_deref().map(row), next)
}

struct Harness {
    disk: SimDisk,
    store: Store<Text>,
    model: Model,
    watches: Vec<Watch>,
}

impl Harness {
    fn new() -> Self {
        let disk = SimDisk::default();
        let store = Store::open_disk(Arc::new(disk.clone()), tiny()).unwrap();
        let states = BTreeMap::from([(1, BTreeMap::new())]);
        let model = Model { states, events: Vec::new(), revision: 1, compacted: 1 };
        Harness { disk, store, model, watches: Vec::new() }
    }

    fn step(&mut self, step: Step) {
        match step {
            Step::Commit { compares, ops } => self.commit(compares, ops),
            Step::Read { start, end, limit, back } => self.read(start, end, limit, back),
            Step::Watch { prefix, key: false, back } => self.watch(PREFIXES[prefix], false, back),
            Step::Watch { prefix, key: true, back } => self.watch(KEYS[prefix], true, back),
            Step::Take { watcher } => {
                if let Some(watch) = self.watches.get_mut(watcher) {
                    watch.take(&self.model).unwrap();
                }
            }
            Step::Compact { back } => self.compact(back),
            Step::Reopen { killed } => self.reopen(killed),
        }
        assert_eq!(self.store.revision(), self.model.revision);
    }

    /// Watchers that are behind what is forgotten are told; no others.
    fn compact(&mut self, back: u64) {
        let revision = self.model.back(back);
        assert_eq!(self.store.compact(revision).is_ok(), self.model.readable(revision));
        if !self.model.readable(revision) {
            return;
        }
        self.model.compacted = revision;
        let model = &self.model;
        self.watches.retain_mut(|watch| {
            let next = watch.expected(model).get(watch.found.len()).map(|event| event.0);
            match watch.take(model) {
                Ok(_) => {
                    assert!(next.is_none_or(|next| next > revision), "{:?} was not told", watch.name);
                    true
                }
                // What it has missed may have been a neighbour's.
                Err(Error::Compacted { .. }) => false,
                Err(other) => panic!("{other}"),
            }
        });
    }

    fn reopen(&mut self, killed: bool) {
        self.drain();
        self.watches.clear();
        if !killed {
            block_on(self.store.shutdown());
        }
        self.disk = self.disk.kill();
        self.store = Store::open_disk(Arc::new(self.disk.clone()), tiny()).unwrap();
        let revision = self.store.revision();
        assert!(revision == self.model.revision || killed && revision > self.model.revision);
        // What was skipped stands for nothing.
        let state = self.model.now().clone();
        self.model.states.insert(revision, state);
        self.model.revision = revision;
        self.model.compacted = revision;
        self.read(0, KEYS.len(), 0, 0);
    }

    fn commit(&mut self, compares: Vec<(usize, u8)>, ops: Vec<(usize, Option<String>, bool)>) {
        let compare = |(key, expect): (usize, u8)| Compare {
            key: KEYS[key].to_owned(),
            expect: match expect {
                0 => Expect::Absent,
                1 => Expect::Exists,
                2 => Expect::ModRevision(self.model.revision),
                _ => Expect::ModRevision(self.model.now().get(KEYS[key]).map_or(7, |row| row.mod_revision)),
            },
        };
        let compares: Vec<_> = compares.into_iter().map(compare).collect();
        let ops: Vec<_> = ops
            .into_iter()
            .map(|(key, value, expires)| match (value, put(KEYS[key], "")) {
                (Some(value), Op::Put { key, .. }) => Op::Put { key, value: value.into(), ttl: expires.then_some(TTL) },
                _ => delete(KEYS[key]),
            })
            .collect();
        let twice = (1..ops.len()).any(|at| ops[..at].iter().any(|op| op.key() == ops[at].key()));
        let holds = compares.iter().all(|compare| self.model.holds(compare));
        match block_on(self.store.commit(guarded(compares.clone(), ops.clone()))) {
            Ok(Outcome::Committed { revision, entries }) => {
                assert!(holds && !twice);
                let before = self.model.revision;
                assert_eq!(revision, self.model.commit(&ops));
                assert_eq!(entries.len(), ops.len());
                for (op, entry) in ops.iter().zip(&entries) {
                    match (op, entry) {
                        (Op::Put { key, .. }, Some(entry)) => assert_eq!(row(entry), self.model.now()[key]),
                        (Op::Delete { .. }, Some(entry)) => {
                            assert!(entry.value.deleted && entry.mod_revision == revision)
                        }
                        (Op::Delete { key }, None) => assert!(!self.model.states[&before].contains_key(key)),
                        (Op::Put { .. }, None) => panic!("a put without an entry"),
                    }
                }
            }
            Ok(Outcome::Failed { current }) => {
                assert!(!holds);
                for (compare, entry) in compares.iter().zip(current) {
                    assert_eq!(entry.as_deref().map(row), self.model.now().get(&compare.key).cloned());
                }
            }
            Err(Error::DuplicateKey { .. }) => assert!(twice && holds),
            Err(other) => panic!("{other}"),
        }
    }

    fn read(&self, start: usize, end: usize, limit: usize, back: u64) {
        let revision = (back > 0).then(|| self.model.back(back));
        let end = KEYS.get(end).map_or_else(|| prefix_end(""), |key| key.to_string());
        let query = Range { start: KEYS[start].to_owned(), end, limit, revision };
        let shown = revision.unwrap_or(self.model.revision);
        let Ok(listing) = self.store.range(&query) else {
            assert!(!self.model.readable(shown));
            return;
        };
        assert!(self.model.readable(shown));
        let (_, state) = self.model.states.range(..=shown).next_back().unwrap();
        let inside: Vec<_> = state.iter().filter(|(key, _)| **key >= query.start && **key < query.end).collect();
        let taken = if limit == 0 { inside.len() } else { limit.min(inside.len()) };
        let found: Vec<_> = listing.entries.iter().map(|entry| (entry.key.to_string(), row(entry))).collect();
        let expected: Vec<_> = inside[..taken].iter().map(|(key, row)| ((*key).clone(), (*row).clone())).collect();
        assert_eq!(found, expected);
        let rest = inside.len() - taken;
        assert_eq!((listing.more, listing.remaining, listing.revision), (rest > 0, rest, shown));
        for key in KEYS {
            assert_eq!(self.store.get(key).as_deref().map(row), self.model.now().get(key).cloned());
        }
    }

    fn watch(&mut self, name: &'static str, key: bool, back: u64) {
        let after = self.model.back(back);
        let watch = if key { self.store.watch_key(name, after) } else { self.store.watch(name, after) };
        assert_eq!(watch.is_ok(), self.model.readable(after));
        self.watches.extend(watch.ok().map(|watcher| Watch { watcher, name, key, after, found: Vec::new() }));
    }

    /// Every watcher has to have got exactly the model's events.
    fn drain(&mut self) {
        for watch in &mut self.watches {
            while watch.take(&self.model).unwrap() {}
            assert_eq!(watch.found, watch.expected(&self.model), "watch of {:?} after {}", watch.name, watch.after);
        }
    }
}

/// 200, or as many as the long form has time for: some 150 a second.
fn cases() -> u32 {
    let seconds = std::env::var(rounds::SECONDS).ok().and_then(|seconds| seconds.parse().ok());
    seconds.map_or(200, |seconds: u32| seconds.saturating_mul(150).max(200))
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), max_shrink_iters: 2000, ..ProptestConfig::default() })]

    #[test]
    fn the_store_does_what_the_model_does(steps in prop::collection::vec(step(), 1..60)) {
        let mut harness = Harness::new();
        // The first open of an empty directory is clean.
        for step in steps {
            harness.step(step);
        }
        harness.drain();
    }
}
