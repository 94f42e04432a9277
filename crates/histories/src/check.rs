//! Whether a history can be that of a linearizable store with revisions and watches.
//!
//! Calls of a key have to be linearizable as those of a register with conditional writes (`register.rs`); linearizability is
//! local, so that is so of all keys together. Revisions tie the keys to each other: they order all writes, writes get them in
//! the order of time where that has one, and listings and streams are held against the order that they make (`log.rs`, `events.rs`).

use std::fmt;

use crate::events;
use crate::history::History;
use crate::log::Log;
use crate::register;

/// What a history can violate.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Rule {
    /// The calls of a key have no order that explains their answers: a stale read, a lost write, a write applied twice.
    Linearizable,
    /// The search for that order took too long.
    Undecided,
    /// A revision is smaller than one that was seen before.
    RevisionBackward,
    /// One revision stands for two different writes.
    RevisionReused,
    /// One write has two revisions.
    AppliedTwice,
    /// A value was seen that no call has written by then.
    Invented,
    /// A stream went on, or a bookmark came, without an event that belongs before it; or the last events never came.
    EventLost,
    /// An event came after one with a higher revision.
    EventsReordered,
    /// An event came twice.
    EventDuplicated,
    /// A resumed stream began with what its client had said that it knows.
    EventRepeated,
    /// A bookmark came before an event that it covers.
    BookmarkAhead,
    /// An event says that a key was created that was there, or changed that was not.
    WrongKind,
    /// A listing is not the state at its revision.
    NotASnapshot,
    /// Nobody watched from beginning to end, or the listing after a gap is missing: the history cannot be judged.
    NoWitness,
}

#[derive(Clone, Debug)]
pub struct Violation {
    pub rule: Rule,
    pub what: String,
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.rule, self.what)
    }
}

/// Everything that is wrong with a history; nothing if a correct store can have made it.
pub fn check(history: &History) -> Vec<Violation> {
    let mut violations = Vec::new();
    let mut report = |rule, what: String| violations.push(Violation { rule, what });
    let log = Log::of(history, &mut report);
    events::time(history, &mut report);
    events::listings(history, &log, &mut report);
    events::streams(history, &log, &mut report);
    register::keys(history, &log, &mut report);
    violations
}

/// Panics with everything that is wrong.
pub fn assert_correct(history: &History) {
    let violations = check(history);
    if violations.is_empty() {
        return;
    }
    let lines: Vec<String> = violations.iter().take(20).map(ToString::to_string).collect();
    panic!("{} violations:\n{}", violations.len(), lines.join("\n"));
}
