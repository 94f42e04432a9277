//! Whether the calls of one key have an order that keeps to time and explains every answer: a search after Wing and Gong, with
//! Lowe's memory of places where it has been.
//!
//! The register is a key with a value and a revision; listings are reads of every key. A call without an answer that was seen has
//! taken effect by then, at the revision seen. One that was not may have taken effect where the witness had a gap, or where it is a
//! deletion, which does not say whose it is; or never.

use std::collections::{BTreeMap, HashSet};

use crate::check::Rule;
use crate::history::{Answer, Call, History, Op, Revision, Time, Value};
use crate::log::{Log, Report};

/// Places visited before the search gives up.
const MOST_PLACES: usize = 2_000_000;

/// A key at one moment.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
struct Register {
    /// Value and revision; the revision is none after a write that was not told its own.
    now: Option<(Value, Option<Revision>)>,
    /// Every later write of the key has a greater revision.
    floor: Revision,
}

impl Register {
    fn written(self, value: Option<Value>, revision: Option<Revision>) -> Option<Register> {
        if revision.is_some_and(|revision| revision <= self.floor) {
            return None;
        }
        Some(Register { now: value.map(|value| (value, revision)), floor: revision.unwrap_or(self.floor) })
    }

    /// Whether the newest write may have this revision.
    fn has(self, revision: Revision) -> bool {
        match self.now {
            None => false,
            Some((_, Some(known))) => known == revision,
            Some((_, None)) => revision > self.floor,
        }
    }

    /// Whether it may have another.
    fn has_other(self, revision: Revision) -> bool {
        self.now.is_some_and(|(_, known)| known != Some(revision))
    }

    fn write(self, op: Op, revision: Option<Revision>) -> Option<Register> {
        let allowed = match op {
            Op::Create(_) => self.now.is_none(),
            Op::Put(_) => true,
            Op::Update(_, expected) | Op::Delete(Some(expected)) => self.has(expected),
            Op::Delete(None) => self.now.is_some(),
            Op::Get => false,
        };
        if allowed { self.written(op.value(), revision) } else { None }
    }

    /// The register after a call with this answer; none if it cannot have been given now.
    fn after(self, op: Op, answer: Answer) -> Option<Register> {
        let same = |possible: bool| possible.then_some(self);
        match (op, answer) {
            (_, Answer::NotDone) | (Op::Get, Answer::Unknown) => Some(self),
            (op, Answer::Written(revision)) => self.write(op, revision),
            // Only tried where it took effect.
            (op, Answer::Unknown) => self.write(op, None),
            (Op::Get, Answer::Found(value, revision)) => {
                let matches = self.now.is_some_and(|(now, _)| now == value) && self.has(revision);
                let floor = self.floor.max(revision);
                matches.then_some(Register { now: Some((value, Some(revision))), floor })
            }
            (Op::Create(_), Answer::Refused) => same(self.now.is_some()),
            (Op::Update(_, expected) | Op::Delete(Some(expected)), Answer::Refused) => same(self.has_other(expected)),
            (Op::Get | Op::Update(..) | Op::Delete(_), Answer::Absent) => same(self.now.is_none()),
            _ => None,
        }
    }
}

/// A call as the search sees it.
#[derive(Clone, Debug)]
struct Step {
    op: Op,
    answer: Answer,
    start: Time,
    end: Time,
    client: String,
    /// The revision of a listing: what happens later has a greater one.
    floor: Revision,
    /// The revision by which it has happened, if at all.
    until: Revision,
}

impl Step {
    fn applied(&self, register: Register) -> Option<Register> {
        let after = register.after(self.op, self.answer)?;
        Some(Register { floor: after.floor.max(self.floor), ..after })
    }
}

pub(crate) fn keys(history: &History, log: &Log<'_>, report: &mut Report<'_>) {
    let mut keys: BTreeMap<&str, (Vec<Step>, Vec<Step>)> = BTreeMap::new();
    for call in &history.calls {
        let (certain, open) = keys.entry(&call.key).or_default();
        match step(call, log) {
            Some(step) if step.answer == Answer::Unknown => open.push(step),
            Some(step) => certain.push(step),
            None => {}
        }
    }
    for listing in history.listings.iter().filter(|listing| !listing.past) {
        for (key, (certain, _)) in &mut keys {
            let answer = listing.items.get(*key).map_or(Answer::Absent, |(value, at)| Answer::Found(*value, *at));
            let (start, end) = (listing.start, listing.end);
            certain.push(Step {
                op: Op::Get,
                answer,
                start,
                end,
                client: "a listing".to_owned(),
                floor: listing.revision,
                until: Revision::MAX,
            });
        }
    }
    for (key, (mut certain, open)) in keys {
        certain.sort_by_key(|step| step.start);
        let search = Search { certain: &certain, open: &open };
        match search.run(history.first_revision) {
            Found::Order => {}
            Found::None(stuck) => report(Rule::Linearizable, format!("{key}: no order explains {stuck}")),
            Found::Undecided => report(Rule::Undecided, format!("{key}: {} calls", certain.len() + open.len())),
        }
    }
}

/// What is known of a call by its own answer and by others who saw its effect; none if it has no effect to explain. With the answer
/// `Unknown`: it may have taken effect, by its `end`.
fn step(call: &Call, log: &Log<'_>) -> Option<Step> {
    let client = format!("client {}", call.client);
    let mut step = Step {
        op: call.op,
        answer: call.answer,
        start: call.start,
        end: call.end,
        client,
        floor: 0,
        until: Revision::MAX,
    };
    let seen = call.op.value().and_then(|value| log.seen.get(&(call.key.clone(), value)));
    match (call.op, call.answer, seen) {
        (_, Answer::NotDone, _) | (Op::Get, Answer::Unknown, _) => return None,
        (_, Answer::Unknown, Some((time, revision))) => {
            step.answer = Answer::Written(Some(*revision));
            step.end = *time;
        }
        // It took effect before it was seen, whenever its caller was told.
        (_, Answer::Written(_), Some((time, revision))) => {
            step.answer = Answer::Written(Some(*revision));
            step.end = step.end.min(*time);
        }
        (Op::Delete(_), Answer::Unknown, None) => step.end = Time::MAX,
        // Seen by nobody: in a gap, if at all, and no later gap than the first, since the server that was asked has died.
        (_, Answer::Unknown, None) => {
            let gap = log.gaps.iter().find(|gap| gap.closed > call.end)?;
            (step.end, step.until) = (gap.closed, gap.until);
        }
        _ => {}
    }
    Some(step)
}

struct Search<'a> {
    /// Have taken effect; by start.
    certain: &'a [Step],
    /// May have taken effect, or not.
    open: &'a [Step],
}

enum Found {
    Order,
    /// With what the search could not get past, at its farthest.
    None(String),
    Undecided,
}

/// Which calls are in the order so far, and what the register is after them.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Place {
    /// All of `certain` before this index …
    before: usize,
    /// … and these after it, in order.
    also: Vec<usize>,
    /// Of `open`, in order.
    open: Vec<usize>,
    register: Register,
}

impl Place {
    fn with(&self, certain: usize, register: Register) -> Place {
        let mut next = Place { register, ..self.clone() };
        let at = next.also.partition_point(|other| *other < certain);
        next.also.insert(at, certain);
        let whole = next.also.iter().zip(next.before..).take_while(|(index, expected)| *index == expected).count();
        next.also.drain(..whole);
        next.before += whole;
        next
    }

    fn with_open(&self, open: usize, register: Register) -> Place {
        let mut next = Place { register, ..self.clone() };
        let at = next.open.partition_point(|other| *other < open);
        next.open.insert(at, open);
        next
    }

    fn len(&self) -> usize {
        self.before + self.also.len()
    }
}

impl Search<'_> {
    fn run(&self, first: Revision) -> Found {
        let start =
            Place { before: 0, also: Vec::new(), open: Vec::new(), register: Register { now: None, floor: first } };
        let mut farthest = start.clone();
        let mut visited = HashSet::from([start.clone()]);
        let mut stack = vec![start];
        while let Some(place) = stack.pop() {
            if place.len() == self.certain.len() {
                return Found::Order;
            }
            if place.len() > farthest.len() {
                farthest = place.clone();
            }
            for next in self.next(&place) {
                if visited.insert(next.clone()) {
                    stack.push(next);
                }
            }
            if visited.len() > MOST_PLACES {
                return Found::Undecided;
            }
        }
        Found::None(self.describe(&farthest))
    }

    /// The certain calls that can be next: those that no other one that is left over ended before.
    fn candidates(&self, place: &Place) -> (Vec<usize>, Time) {
        let mut first_end = Time::MAX;
        let mut candidates = Vec::new();
        for (index, step) in self.certain.iter().enumerate().skip(place.before) {
            if step.start > first_end {
                break;
            }
            if place.also.binary_search(&index).is_err() {
                first_end = first_end.min(step.end);
                candidates.push(index);
            }
        }
        candidates.retain(|index| self.certain[*index].start <= first_end);
        (candidates, first_end)
    }

    /// In the order in which they are best tried last.
    fn next(&self, place: &Place) -> Vec<Place> {
        let (candidates, first_end) = self.candidates(place);
        let mut next = Vec::new();
        let last = place.also.last().copied().or(place.before.checked_sub(1));
        let last_start = last.map_or(0, |last| self.certain[last].start);
        for (index, step) in self.open.iter().enumerate() {
            if step.start <= first_end
                && last_start <= step.end
                && place.register.floor < step.until
                && place.open.binary_search(&index).is_err()
                && let Some(register) = step.applied(place.register)
            {
                next.push(place.with_open(index, register));
            }
        }
        let mut certain = Vec::new();
        for index in candidates {
            let step = &self.certain[index];
            if let Some(register) = step.applied(place.register) {
                certain.push((step.end, place.with(index, register)));
            }
        }
        // What ended first probably happened first.
        certain.sort_by_key(|(end, _)| std::cmp::Reverse(*end));
        next.extend(certain.into_iter().map(|(_, place)| place));
        next
    }

    fn describe(&self, place: &Place) -> String {
        let (candidates, _) = self.candidates(place);
        let steps: Vec<String> = candidates
            .iter()
            .map(|index| &self.certain[*index])
            .map(|step| format!("{} {:?} {:?} [{}, {}]", step.client, step.op, step.answer, step.start, step.end))
            .collect();
        format!("{} when the key is {:?}, after {} calls", steps.join(" or "), place.register, place.len())
    }
}
