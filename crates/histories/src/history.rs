//! What clients saw of a store: calls and their answers, listings, streams of events. Plain data.

use std::collections::BTreeMap;

/// Nanoseconds since the recording began.
pub type Time = u64;
/// The store's clock.
pub type Revision = u64;
/// What is written. No two calls of a history write the same, so that a value says which call wrote it.
pub type Value = u64;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Op {
    /// Only if there is no such key.
    Create(Value),
    /// Whatever the key is.
    Put(Value),
    /// Only if the key's newest write has this revision.
    Update(Value, Revision),
    /// With a revision: only if the key's newest write has it.
    Delete(Option<Revision>),
    Get,
}

impl Op {
    /// What it writes, if anything.
    pub fn value(&self) -> Option<Value> {
        match self {
            Op::Create(value) | Op::Put(value) | Op::Update(value, _) => Some(*value),
            Op::Delete(_) | Op::Get => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Answer {
    /// Done, at this revision if it was told.
    Written(Option<Revision>),
    Found(Value, Revision),
    /// There is no such key.
    Absent,
    /// There is one, and the call's condition does not hold.
    Refused,
    /// None, or an error that leaves open whether it was done or will be.
    Unknown,
    /// An error that says that it was not and will not be done.
    NotDone,
}

/// One call of one key.
#[derive(Clone, Debug)]
pub struct Call {
    pub client: usize,
    pub key: String,
    pub op: Op,
    pub start: Time,
    /// When the answer was there, or waiting for it ended.
    pub end: Time,
    pub answer: Answer,
}

/// All keys at once.
#[derive(Clone, Debug)]
pub struct Listing {
    pub start: Time,
    pub end: Time,
    /// Whether the state at `revision` was asked for; else the newest was.
    pub past: bool,
    pub revision: Revision,
    /// Value and revision of the newest write of each key.
    pub items: BTreeMap<String, (Value, Revision)>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// `created` tells whether the key is said not to have been there before.
    Put {
        value: Value,
        created: bool,
    },
    Delete,
}

/// What a stream of events says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Note {
    Event {
        revision: Revision,
        key: String,
        change: Change,
    },
    /// Everything up to this revision has been told.
    Bookmark(Revision),
}

/// A watch of all keys, from its opening to its end.
#[derive(Clone, Debug, Default)]
pub struct Stream {
    /// Asked for: events after this revision.
    pub after: Revision,
    /// When the watcher knew that it would ask for this: for one that had to list again, when it had the listing.
    pub since: Time,
    /// In the order in which they came, and when.
    pub notes: Vec<(Time, Note)>,
}

/// One watcher's streams. A later one resumes where an earlier one ended; or, when that has been compacted, at the revision of a
/// listing, which is one of the history's.
#[derive(Clone, Debug, Default)]
pub struct Watcher {
    pub streams: Vec<Stream>,
    /// It was watching until long after the last write, so its last stream must have told everything.
    pub until_the_end: bool,
}

/// All that is known of one run. A history begins with no keys.
#[derive(Clone, Debug, Default)]
pub struct History {
    /// Before every write.
    pub first_revision: Revision,
    pub calls: Vec<Call>,
    pub listings: Vec<Listing>,
    /// One of them at least has watched from `first_revision` to the end: it is the witness of writes whose callers were not told
    /// of them. Where it had to list again there is a gap, in which some writes may remain unseen.
    pub watchers: Vec<Watcher>,
}
