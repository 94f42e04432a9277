//! The driver against a store of twenty lines, first as it should be, then with one fault each.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;
use tokio::sync::watch;

use crate::drive::{Events, Items, Load, Opened, Subject, run};
use crate::{Answer, Change, History, Note, Op, Revision, Rule, Value, check};

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Bug {
    None,
    /// Now and then a read is of the state some writes ago.
    StaleRead,
    /// Now and then a write is acknowledged and forgotten.
    LostWrite,
    /// A condition is not looked at.
    BlindUpdate,
    LostEvent,
    ReorderedEvents,
    DuplicateEvent,
    /// A resumed stream starts one event too early.
    RepeatedEvent,
    /// The bookmark is the store's revision, whatever has been told.
    BookmarkAhead,
    /// A listing misses its newest write.
    TornListing,
    /// Now and then the revision jumps back.
    RevisionBackward,
    /// Everything is told but the last events.
    Starved,
    WrongKind,
}

const BUGS: [(Bug, Rule); 12] = [
    (Bug::StaleRead, Rule::Linearizable),
    (Bug::LostWrite, Rule::Linearizable),
    (Bug::BlindUpdate, Rule::Linearizable),
    (Bug::LostEvent, Rule::EventLost),
    (Bug::ReorderedEvents, Rule::EventsReordered),
    (Bug::DuplicateEvent, Rule::EventDuplicated),
    (Bug::RepeatedEvent, Rule::EventRepeated),
    (Bug::BookmarkAhead, Rule::BookmarkAhead),
    (Bug::TornListing, Rule::NotASnapshot),
    (Bug::RevisionBackward, Rule::RevisionBackward),
    (Bug::Starved, Rule::EventLost),
    (Bug::WrongKind, Rule::WrongKind),
];

type Keys = BTreeMap<String, (Value, Revision)>;

struct State {
    keys: Keys,
    /// The keys before each write.
    past: Vec<Keys>,
    revision: Revision,
    log: Vec<Note>,
    calls: u64,
}

#[derive(Clone)]
struct Model {
    bug: Bug,
    state: Arc<Mutex<State>>,
    written: Arc<watch::Sender<()>>,
}

impl Model {
    fn new(bug: Bug) -> Self {
        let state = State { keys: Keys::new(), past: Vec::new(), revision: 1, log: Vec::new(), calls: 0 };
        Model { bug, state: Arc::new(Mutex::new(state)), written: Arc::new(watch::Sender::new(())) }
    }

    fn write(&self, state: &mut State, key: &str, value: Option<Value>, now_and_then: bool) -> Answer {
        state.revision += 1;
        if now_and_then && self.bug == Bug::RevisionBackward && key != "end" {
            state.revision -= 3;
        }
        let revision = state.revision;
        if now_and_then && self.bug == Bug::LostWrite && key != "end" {
            return Answer::Written(Some(revision));
        }
        let before = state.keys.clone();
        state.past.push(before);
        let created = !state.keys.contains_key(key) ^ (now_and_then && self.bug == Bug::WrongKind);
        let change = match value {
            Some(value) => {
                state.keys.insert(key.to_owned(), (value, revision));
                Change::Put { value, created }
            }
            None => {
                state.keys.remove(key);
                Change::Delete
            }
        };
        state.log.push(Note::Event { revision, key: key.to_owned(), change });
        self.written.send_replace(());
        Answer::Written(Some(revision))
    }

    fn decide(&self, key: &str, op: Op) -> Answer {
        let mut state = self.state.lock();
        state.calls += 1;
        // Only some reads of an old state tell another value: there must be many of them, whatever the order of the calls.
        let now_and_then = state.calls.is_multiple_of(if self.bug == Bug::StaleRead { 3 } else { 23 });
        let long_ago = state.past.len().checked_sub(40).map(|at| &state.past[at]);
        let stale = long_ago.filter(|_| now_and_then && self.bug == Bug::StaleRead && op == Op::Get);
        let keys = stale.unwrap_or(&state.keys);
        let now = keys.get(key).copied();
        let blind = self.bug == Bug::BlindUpdate;
        match (op, now) {
            (Op::Get, Some((value, revision))) => Answer::Found(value, revision),
            (Op::Get | Op::Update(..) | Op::Delete(_), None) => Answer::Absent,
            (Op::Create(_), Some(_)) => Answer::Refused,
            (Op::Update(_, expected) | Op::Delete(Some(expected)), Some((_, at))) if expected != at && !blind => {
                Answer::Refused
            }
            _ => self.write(&mut state, key, op.value(), now_and_then),
        }
    }
}

impl Subject for Model {
    type Events = Cursor;

    async fn call(&self, key: &str, op: Op) -> Answer {
        // On either side of the call others may be in between.
        tokio::time::sleep(Duration::from_micros(50)).await;
        let answer = self.decide(key, op);
        tokio::task::yield_now().await;
        answer
    }

    async fn list(&self, at: Option<Revision>) -> Option<Items> {
        let state = self.state.lock();
        if at.is_some_and(|at| at != state.revision) {
            return None;
        }
        let keys = if self.bug == Bug::TornListing { state.past.last().unwrap_or(&state.keys) } else { &state.keys };
        Some((state.revision, keys.clone()))
    }

    async fn watch(&self, after: Revision) -> Opened<Cursor> {
        let state = self.state.lock();
        let mut at = state.log.iter().take_while(|note| revision(note) <= after).count();
        if self.bug == Bug::RepeatedEvent {
            at = at.saturating_sub(1);
        }
        Opened::Stream(Cursor { model: self.clone(), at, waiting: self.written.subscribe() })
    }
}

fn revision(note: &Note) -> Revision {
    match note {
        Note::Event { revision, .. } | Note::Bookmark(revision) => *revision,
    }
}

struct Cursor {
    model: Model,
    /// Index into the log.
    at: usize,
    waiting: watch::Receiver<()>,
}

impl Cursor {
    fn take(&mut self) -> Vec<Note> {
        let state = self.model.state.lock();
        let mut notes: Vec<Note> = state.log[self.at..].iter().take(3).cloned().collect();
        let full = notes.len() == 3;
        self.at += notes.len();
        let now_and_then = self.at.is_multiple_of(7);
        match self.model.bug {
            Bug::LostEvent if now_and_then => _ = notes.pop(),
            Bug::ReorderedEvents => notes.reverse(),
            Bug::DuplicateEvent if now_and_then => notes.extend(notes.last().cloned()),
            Bug::BookmarkAhead if full => notes.push(Note::Bookmark(state.revision)),
            Bug::Starved => notes.retain(|note| !matches!(note, Note::Event { key, .. } if key == "end")),
            _ => {}
        }
        if self.at == state.log.len() && !notes.is_empty() && self.model.bug != Bug::RevisionBackward {
            notes.push(Note::Bookmark(state.revision));
        }
        notes
    }
}

impl Events for Cursor {
    async fn next(&mut self) -> Vec<Note> {
        loop {
            self.waiting.borrow_and_update();
            let notes = self.take();
            if !notes.is_empty() || self.waiting.changed().await.is_err() {
                return notes;
            }
        }
    }
}

fn history(bug: Bug) -> History {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_time().build().unwrap();
    let patience = Duration::from_millis(if bug == Bug::None { 20_000 } else { 300 });
    // Where there is no order, all of them are tried.
    let (clients, calls) = if bug == Bug::None { (6, 100) } else { (4, 150) };
    let load = Load { clients, calls, patience, ..Load::default() };
    runtime.block_on(run(Model::new(bug), load, std::future::ready(())))
}

#[test]
fn a_correct_store_is_found_correct() {
    for _ in 0..5 {
        crate::check::assert_correct(&history(Bug::None));
    }
}

#[test]
fn every_fault_is_found() {
    for (bug, rule) in BUGS {
        let violations = check(&history(bug));
        let rules: std::collections::BTreeSet<Rule> = violations.iter().map(|violation| violation.rule).collect();
        assert!(rules.contains(&rule), "{bug:?} was taken for {rules:?}");
    }
}
