//! The order of all writes, put together from whoever saw one.

use std::collections::{BTreeMap, HashMap};

use crate::check::Rule;
use crate::history::{Answer, Call, Change, History, Listing, Note, Op, Revision, Stream, Time, Value};

pub(crate) type Report<'a> = dyn FnMut(Rule, String) + 'a;

/// What a write did. `None`: deleted.
pub(crate) type Wrote = Option<Value>;

/// What the witness had to skip: some writes with revisions after `from`, up to and with `until`, may be unknown.
pub(crate) struct Gap<'a> {
    pub from: Revision,
    pub until: Revision,
    /// What was there afterwards.
    pub listing: &'a Listing,
    /// When the gap was over: what takes effect later is seen.
    pub closed: Time,
}

/// Every write that anybody saw.
#[derive(Default)]
pub(crate) struct Log<'a> {
    /// In order.
    pub gaps: Vec<Gap<'a>>,
    writes: BTreeMap<Revision, (String, Wrote)>,
    /// Where each value was first seen, when, and at which revision.
    pub seen: HashMap<(String, Value), (Time, Revision)>,
}

impl<'a> Log<'a> {
    pub(crate) fn of(history: &'a History, report: &mut Report<'_>) -> Log<'a> {
        let mut log = Log { gaps: gaps(history, report), ..Log::default() };
        for call in &history.calls {
            match (call.op, call.answer) {
                (Op::Delete(_), Answer::Written(Some(revision))) => {
                    log.note(call.end, revision, &call.key, None, report);
                }
                (op, Answer::Written(Some(revision))) => {
                    log.note(call.end, revision, &call.key, op.value(), report);
                }
                (_, Answer::Found(value, revision)) => log.note(call.end, revision, &call.key, Some(value), report),
                _ => {}
            }
        }
        for listing in &history.listings {
            for (key, (value, revision)) in &listing.items {
                log.note(listing.end, *revision, key, Some(*value), report);
            }
        }
        for stream in history.watchers.iter().flat_map(|watcher| &watcher.streams) {
            for (time, note) in &stream.notes {
                let Note::Event { revision, key, change } = note else { continue };
                let wrote = match change {
                    Change::Put { value, .. } => Some(*value),
                    Change::Delete => None,
                };
                log.note(*time, *revision, key, wrote, report);
            }
        }
        log.invented(history, report);
        log
    }

    fn note(&mut self, time: Time, revision: Revision, key: &str, wrote: Wrote, report: &mut Report<'_>) {
        match self.writes.get(&revision) {
            None => _ = self.writes.insert(revision, (key.to_owned(), wrote)),
            Some((other, what)) if other == key && *what == wrote => {}
            Some(other) => {
                let what = format!("revision {revision} is {other:?} and also {:?}", (key, wrote));
                report(Rule::RevisionReused, what);
            }
        }
        let Some(value) = wrote else { return };
        let seen = self.seen.entry((key.to_owned(), value)).or_insert((time, revision));
        if seen.1 != revision {
            report(Rule::AppliedTwice, format!("{key} = {value} has revisions {} and {revision}", seen.1));
        }
        seen.0 = seen.0.min(time);
    }

    /// Values that no call had begun to write when they were seen, or that were refused.
    fn invented(&self, history: &History, report: &mut Report<'_>) {
        let mut calls: HashMap<(&str, Value), &Call> = HashMap::new();
        for call in &history.calls {
            if let Some(value) = call.op.value() {
                calls.insert((call.key.as_str(), value), call);
            }
        }
        for ((key, value), (time, revision)) in &self.seen {
            let written = calls
                .get(&(key.as_str(), *value))
                .is_some_and(|call| call.start <= *time && matches!(call.answer, Answer::Written(_) | Answer::Unknown));
            if !written {
                report(Rule::Invented, format!("{key} = {value} at revision {revision} was written by no call"));
            }
        }
    }

    /// The writes after `after` up to and with `until`, in order.
    pub(crate) fn between(
        &self,
        after: Revision,
        until: Revision,
    ) -> impl Iterator<Item = (Revision, &str, Wrote)> + '_ {
        let writes = (after < until).then(|| self.writes.range(after + 1..=until)).into_iter().flatten();
        writes.map(|(revision, (key, wrote))| (*revision, key.as_str(), *wrote))
    }

    /// The newest write.
    pub(crate) fn last(&self) -> Revision {
        self.writes.keys().next_back().copied().unwrap_or(0)
    }
}

/// Where the history's witness had to list again.
fn gaps<'a>(history: &'a History, report: &mut Report<'_>) -> Vec<Gap<'a>> {
    let whole = |streams: &[Stream]| streams.first().is_some_and(|first| first.after == history.first_revision);
    let mut witnesses = history.watchers.iter().filter(|watcher| watcher.until_the_end && whole(&watcher.streams));
    let Some(witness) = witnesses.next() else {
        report(Rule::NoWitness, "no watcher has watched it all".to_owned());
        return Vec::new();
    };
    let mut gaps = Vec::new();
    for pair in witness.streams.windows(2) {
        let (from, until) = (told(&pair[0]), pair[1].after);
        if from == until {
            continue;
        }
        match history.listings.iter().find(|listing| listing.revision == until) {
            Some(listing) => gaps.push(Gap { from, until, listing, closed: pair[1].since }),
            None => report(Rule::NoWitness, format!("no listing at {until}, where a watcher went on")),
        }
    }
    gaps
}

/// Up to where a stream has told its events.
pub(crate) fn told(stream: &Stream) -> Revision {
    let revision = |note: &Note| match note {
        Note::Event { revision, .. } | Note::Bookmark(revision) => *revision,
    };
    stream.notes.iter().map(|(_, note)| revision(note)).max().unwrap_or(stream.after).max(stream.after)
}
