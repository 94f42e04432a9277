//! What revisions, listings and streams have to keep to, given the order of all writes.

use std::collections::{BTreeMap, HashMap};

use crate::check::Rule;
use crate::history::{Answer, Change, History, Listing, Note, Revision, Stream, Time, Value};
use crate::log::{Log, Report, told};

/// Something that tells a revision. A point in time if `start` is `end`.
struct Sight {
    start: Time,
    end: Time,
    revision: Revision,
    /// The least that the revision may be above what was seen before `start`; none: it may be old.
    above: Option<Revision>,
    what: String,
}

/// Revisions go with time: what starts after a revision was seen gets no smaller one, a write a greater one.
pub(crate) fn time(history: &History, report: &mut Report<'_>) {
    let mut sights = Vec::new();
    for call in &history.calls {
        let (revision, above) = match call.answer {
            Answer::Written(Some(revision)) => (revision, Some(1)),
            Answer::Found(_, revision) => (revision, None),
            _ => continue,
        };
        let what = format!("{:?} of {} by client {}", call.op, call.key, call.client);
        sights.push(Sight { start: call.start, end: call.end, revision, above, what });
    }
    for listing in &history.listings {
        let above = (!listing.past).then_some(0);
        let what = "a listing".to_owned();
        sights.push(Sight { start: listing.start, end: listing.end, revision: listing.revision, above, what });
    }
    for (time, note) in history.watchers.iter().flat_map(|w| &w.streams).flat_map(|stream| &stream.notes) {
        let (Note::Event { revision, .. } | Note::Bookmark(revision)) = note;
        let (what, above) = (String::new(), None);
        sights.push(Sight { start: *time, end: *time, revision: *revision, above, what });
    }
    let mut ends: Vec<(Time, Revision)> = sights.iter().map(|sight| (sight.end, sight.revision)).collect();
    ends.sort_unstable();
    sights.sort_by_key(|sight| sight.start);
    let mut ended = ends.into_iter().peekable();
    let mut newest = history.first_revision;
    for sight in sights {
        while let Some((_, revision)) = ended.next_if(|(end, _)| *end < sight.start) {
            newest = newest.max(revision);
        }
        if sight.above.is_some_and(|above| sight.revision < newest + above) {
            let what = format!("{} has revision {} after {newest} was seen", sight.what, sight.revision);
            report(Rule::RevisionBackward, what);
        }
    }
}

/// The keys as the order of writes makes them, moving forward.
struct Replay<'a> {
    log: &'a Log<'a>,
    at: Revision,
    state: BTreeMap<&'a str, (Value, Revision)>,
}

impl<'a> Replay<'a> {
    /// The state at `revision`, no smaller than at the last call; none within a gap.
    fn to(&mut self, revision: Revision) -> Option<&BTreeMap<&'a str, (Value, Revision)>> {
        for gap in &self.log.gaps {
            if self.at < gap.until && gap.from < revision {
                if revision < gap.until {
                    return None;
                }
                self.state = items(gap.listing);
                self.at = gap.until;
            }
        }
        for (revision, key, wrote) in self.log.between(self.at, revision) {
            match wrote {
                Some(value) => _ = self.state.insert(key, (value, revision)),
                None => _ = self.state.remove(key),
            }
        }
        self.at = self.at.max(revision);
        Some(&self.state)
    }
}

fn items(listing: &Listing) -> BTreeMap<&str, (Value, Revision)> {
    listing.items.iter().map(|(key, item)| (key.as_str(), *item)).collect()
}

/// A listing shows the state at its revision.
pub(crate) fn listings(history: &History, log: &Log<'_>, report: &mut Report<'_>) {
    let mut listings: Vec<&Listing> = history.listings.iter().collect();
    listings.sort_by_key(|listing| listing.revision);
    let mut replay = Replay { log, at: history.first_revision, state: BTreeMap::new() };
    for listing in listings {
        let shown = items(listing);
        if let Some(state) = replay.to(listing.revision)
            && shown != *state
        {
            let what = format!("the listing at revision {} shows {shown:?}, not {state:?}", listing.revision);
            report(Rule::NotASnapshot, what);
        }
    }
}

/// A stream tells every write after its start once, in order, and bookmarks never run ahead.
pub(crate) fn streams(history: &History, log: &Log<'_>, report: &mut Report<'_>) {
    let created = created(log, history.first_revision);
    for (number, watcher) in history.watchers.iter().enumerate() {
        let last = watcher.streams.len().saturating_sub(1);
        for (part, stream) in watcher.streams.iter().enumerate() {
            let mut report = |rule, what: String| report(rule, format!("watcher {number}, stream {part}: {what}"));
            let cursor = one_stream(stream, log, &created, &mut report);
            if watcher.until_the_end && part == last {
                for (revision, key, wrote) in log.between(cursor, log.last()) {
                    let what = format!("{key} = {wrote:?} at revision {revision} never came, it ended at {cursor}");
                    report(Rule::EventLost, what);
                }
            }
        }
    }
}

/// For each put outside of gaps, by revision: whether the key was not there before.
fn created(log: &Log<'_>, first: Revision) -> HashMap<Revision, bool> {
    let mut created = HashMap::new();
    let mut replay = Replay { log, at: first, state: BTreeMap::new() };
    for (revision, key, wrote) in log.between(first, log.last()) {
        // In a gap there is no knowing.
        if wrote.is_some()
            && let Some(before) = replay.to(revision - 1)
        {
            created.insert(revision, !before.contains_key(key));
        }
    }
    created
}

/// Returns up to where the stream has told its events.
fn one_stream(stream: &Stream, log: &Log<'_>, created: &HashMap<Revision, bool>, report: &mut Report<'_>) -> Revision {
    // The newest event, and what the newest bookmark covers.
    let (mut newest, mut marked) = (stream.after, stream.after);
    let mut seen: Vec<Revision> = Vec::new();
    for (_, note) in &stream.notes {
        match note {
            Note::Event { revision, key, change } => {
                let fault = if seen.contains(revision) {
                    Some(Rule::EventDuplicated)
                } else if *revision <= stream.after {
                    Some(Rule::EventRepeated)
                } else if *revision <= marked {
                    Some(Rule::BookmarkAhead)
                } else if *revision < newest {
                    Some(Rule::EventsReordered)
                } else {
                    None
                };
                if let Some(rule) = fault {
                    let what = format!(
                        "event of {key} at revision {revision}; after {}, newest {newest}, bookmark {marked}",
                        stream.after
                    );
                    report(rule, what);
                }
                if let Change::Put { created: said, .. } = change
                    && created.get(revision).is_some_and(|created| created != said)
                {
                    report(Rule::WrongKind, format!("event of {key} at revision {revision} has created: {said}"));
                }
                seen.push(*revision);
                newest = newest.max(*revision);
            }
            Note::Bookmark(revision) => {
                if *revision < newest {
                    report(Rule::RevisionBackward, format!("bookmark {revision} after an event at {newest}"));
                }
                marked = marked.max(*revision);
            }
        }
    }
    let cursor = told(stream);
    seen.sort_unstable();
    for (revision, key, wrote) in log.between(stream.after, cursor) {
        if seen.binary_search(&revision).is_err() {
            let what = format!("{key} = {wrote:?} at revision {revision} is missing, told up to {cursor}");
            report(Rule::EventLost, what);
        }
    }
    cursor
}
