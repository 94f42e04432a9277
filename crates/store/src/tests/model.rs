//! Random operations compared with a model that keeps every state there ever was.

use std::collections::BTreeMap;
use std::sync::Arc;

use proptest::prelude::*;

use super::sim::SimDisk;
use super::{Text, block_on, delete, guarded, put, tiny};
use crate::{Change, Compare, Entry, Error, Expect, Op, Outcome, Range, Revision, Store, Watcher, prefix_end};

#[derive(Clone, Debug)]
enum Step {
    Commit { compares: Vec<(usize, u8)>, ops: Vec<(usize, Option<String>)> },
    Read { start: usize, end: usize, limit: usize, back: u64 },
    Watch { prefix: usize, back: u64 },
    Compact { back: u64 },
    Reopen,
}

const KEYS: [&str; 8] = ["/a", "/a/", "/a/x", "/a/xy", "/b/x", "/b/x/y", "c", "/ä/ö"];
const PREFIXES: [&str; 7] = ["", "/", "/a", "/a/", "/a/x", "/b/x/", "/ä"];

fn step() -> impl Strategy<Value = Step> {
    let key = 0..KEYS.len();
    let op = (key.clone(), prop::option::weighted(0.7, "[a-z]{0,40}"));
    let commit = (prop::collection::vec((key.clone(), 0..4u8), 0..3), prop::collection::vec(op, 0..4));
    prop_oneof![
        8 => commit.prop_map(|(compares, ops)| Step::Commit { compares, ops }),
        4 => (key.clone(), 0..=KEYS.len(), 0..4usize, 0..12u64)
            .prop_map(|(start, end, limit, back)| Step::Read { start, end, limit, back }),
        2 => (0..PREFIXES.len(), 0..12u64).prop_map(|(prefix, back)| Step::Watch { prefix, back }),
        1 => (0..12u64).prop_map(|back| Step::Compact { back }),
        1 => Just(Step::Reopen),
    ]
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Row {
    value: String,
    create_revision: Revision,
    mod_revision: Revision,
    version: u64,
}

fn row(entry: &Entry<Text>) -> Row {
    assert_eq!(entry.value.revision, entry.mod_revision);
    Row {
        value: String::from_utf8(entry.value.bytes.to_vec()).unwrap(),
        create_revision: entry.create_revision,
        mod_revision: entry.mod_revision,
        version: entry.version,
    }
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
                Op::Put { value, .. } => Some(Row {
                    value: String::from_utf8(value.to_vec()).unwrap(),
                    create_revision: previous.as_ref().map_or(revision, |row| row.create_revision),
                    mod_revision: revision,
                    version: previous.as_ref().map_or(1, |row| row.version + 1),
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

struct Harness {
    disk: SimDisk,
    store: Store<Text>,
    model: Model,
    watches: Vec<(Watcher<Text>, &'static str, Revision)>,
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
            Step::Watch { prefix, back } => self.watch(PREFIXES[prefix], back),
            Step::Compact { back } => {
                let revision = self.model.back(back);
                self.drain();
                assert_eq!(self.store.compact(revision).is_ok(), self.model.readable(revision));
                if self.model.readable(revision) {
                    self.model.compacted = revision;
                }
            }
            Step::Reopen => {
                self.drain();
                self.watches.clear();
                block_on(self.store.shutdown());
                self.disk = self.disk.kill();
                self.store = Store::open_disk(Arc::new(self.disk.clone()), tiny()).unwrap();
                self.model.compacted = self.model.revision;
            }
        }
        assert_eq!(self.store.revision(), self.model.revision);
    }

    fn commit(&mut self, compares: Vec<(usize, u8)>, ops: Vec<(usize, Option<String>)>) {
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
            .map(|(key, value)| value.map_or_else(|| delete(KEYS[key]), |value| put(KEYS[key], &value)))
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

    fn watch(&mut self, prefix: &'static str, back: u64) {
        let after = self.model.back(back);
        let watch = self.store.watch(prefix, after);
        assert_eq!(watch.is_ok(), self.model.readable(after));
        self.watches.extend(watch.ok().map(|watch| (watch, prefix, after)));
    }

    /// Every watcher has to have got exactly the model's events.
    fn drain(&mut self) {
        for (watcher, prefix, after) in &mut self.watches {
            let mut found = Vec::new();
            loop {
                let batch = watcher.take().unwrap();
                if batch.is_empty() {
                    break;
                }
                found.extend(batch);
            }
            let found: Vec<ModelEvent> = found
                .iter()
                .map(|event| {
                    let next = match &event.change {
                        Change::Put(entry) => Some(row(entry)),
                        Change::Delete(tombstone) => {
                            assert!(tombstone.value.deleted);
                            None
                        }
                    };
                    (event.revision, event.key().to_owned(), event.previous.as_deref().map(row), next)
                })
                .collect();
            let inside = |event: &&ModelEvent| event.0 > *after && event.1.starts_with(*prefix);
            let expected: Vec<_> = self.model.events.iter().filter(inside).cloned().collect();
            assert_eq!(found, expected, "watch of {prefix:?} after {after}");
            assert_eq!(watcher.progress(), self.model.revision);
            *after = self.model.revision;
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 200, max_shrink_iters: 2000, ..ProptestConfig::default() })]

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
