//! Histories written by hand, each with what is wrong with it.

use std::collections::BTreeMap;

use crate::{Answer, Call, Change, History, Listing, Note, Op, Revision, Rule, Stream, Time, Value, Watcher, check};

/// A history under construction. Revision 1 is the empty store.
#[derive(Default)]
struct Story(History);

impl Story {
    fn call(mut self, times: (Time, Time), key: &str, op: Op, answer: Answer) -> Self {
        let client = self.0.calls.len();
        let (start, end) = times;
        self.0.calls.push(Call { client, key: key.to_owned(), op, start, end, answer });
        self
    }

    fn create(self, times: (Time, Time), key: &str, value: Value, revision: Revision) -> Self {
        self.call(times, key, Op::Create(value), Answer::Written(Some(revision)))
    }

    fn get(self, times: (Time, Time), key: &str, found: Option<(Value, Revision)>) -> Self {
        let answer = found.map_or(Answer::Absent, |(value, revision)| Answer::Found(value, revision));
        self.call(times, key, Op::Get, answer)
    }

    fn list(mut self, times: (Time, Time), revision: Revision, items: &[(&str, Value, Revision)]) -> Self {
        let items: BTreeMap<_, _> = items.iter().map(|(key, value, at)| ((*key).to_owned(), (*value, *at))).collect();
        self.0.listings.push(Listing { start: times.0, end: times.1, past: false, revision, items });
        self
    }

    /// A watcher until the end, with one stream for each start and its notes.
    fn watch(mut self, streams: &[(Revision, &[(Time, Note)])]) -> Self {
        let streams =
            streams.iter().map(|(after, notes)| Stream { after: *after, since: 0, notes: notes.to_vec() }).collect();
        self.0.watchers.push(Watcher { streams, until_the_end: true });
        self
    }

    #[track_caller]
    fn is(mut self, expected: &[Rule]) {
        self.0.first_revision = 1;
        let violations = check(&self.0);
        let mut rules: Vec<Rule> = violations.iter().map(|violation| violation.rule).collect();
        rules.dedup();
        assert_eq!(rules, expected, "{violations:#?}");
    }
}

fn put(time: Time, revision: Revision, key: &str, value: Value, created: bool) -> (Time, Note) {
    (time, Note::Event { revision, key: key.to_owned(), change: Change::Put { value, created } })
}

fn deleted(time: Time, revision: Revision, key: &str) -> (Time, Note) {
    (time, Note::Event { revision, key: key.to_owned(), change: Change::Delete })
}

fn mark(time: Time, revision: Revision) -> (Time, Note) {
    (time, Note::Bookmark(revision))
}

/// `a` is created at 2 and updated at 3, `b` created at 4, `a` deleted at 5.
fn usual() -> Story {
    Story::default()
        .create((10, 20), "a", 100, 2)
        .call((30, 40), "a", Op::Update(101, 2), Answer::Written(Some(3)))
        .create((35, 50), "b", 102, 4)
        .call((60, 70), "a", Op::Delete(None), Answer::Written(Some(5)))
}

fn usual_events() -> [(Time, Note); 4] {
    [put(15, 2, "a", 100, true), put(39, 3, "a", 101, false), put(51, 4, "b", 102, true), deleted(69, 5, "a")]
}

#[test]
fn what_can_have_been_is_accepted() {
    let events = usual_events();
    let resumed: &[(Revision, &[_])] = &[(1, &events[..2]), (3, &[events[2].clone(), mark(52, 4)]), (4, &events[3..])];
    usual()
        .watch(resumed)
        .watch(&[(4, &events[3..])])
        // At the same time as the update: either answer will do.
        .get((32, 38), "a", Some((100, 2)))
        .get((31, 37), "a", Some((101, 3)))
        .call((41, 45), "a", Op::Update(103, 2), Answer::Refused)
        .call((71, 75), "a", Op::Update(104, 3), Answer::Absent)
        .call((41, 45), "b", Op::Create(105), Answer::Refused)
        .list((52, 58), 4, &[("a", 101, 3), ("b", 102, 4)])
        .is(&[]);
}

#[test]
fn a_stale_read() {
    usual().watch(&[(1, &usual_events())]).get((53, 57), "a", Some((100, 2))).is(&[Rule::Linearizable]);
    usual().watch(&[(1, &usual_events())]).get((53, 57), "b", None).is(&[Rule::Linearizable]);
    // Somebody saw the write before it was acknowledged: no later read may miss it.
    usual().watch(&[(1, &usual_events())]).get((39, 40), "a", Some((101, 3))).is(&[]);
    usual().watch(&[(1, &usual_events())]).get((40, 41), "a", Some((100, 2))).is(&[Rule::Linearizable]);
}

#[test]
fn a_lost_write() {
    let events = usual_events();
    // Its event came, but reads find nothing of it.
    usual()
        .watch(&[(1, &events)])
        .create((80, 90), "c", 110, 6)
        .get((95, 96), "c", None)
        .is(&[Rule::EventLost, Rule::Linearizable]);
    // Two updates of the same revision.
    Story::default()
        .create((10, 20), "a", 100, 2)
        .call((30, 40), "a", Op::Update(101, 2), Answer::Written(Some(3)))
        .call((30, 40), "a", Op::Update(102, 2), Answer::Written(Some(4)))
        .watch(&[(1, &[put(15, 2, "a", 100, true), put(35, 3, "a", 101, false), put(39, 4, "a", 102, false)])])
        .is(&[Rule::Linearizable]);
}

#[test]
fn a_write_that_was_refused_or_not_made() {
    let events = [put(15, 2, "a", 100, true), put(35, 3, "a", 101, false)];
    let refused = |answer| {
        let story = Story::default().create((10, 20), "a", 100, 2);
        story.call((30, 40), "a", Op::Update(101, 2), answer).watch(&[(1, &events)])
    };
    refused(Answer::Unknown).is(&[]);
    refused(Answer::NotDone).is(&[Rule::Invented]);
    refused(Answer::Refused).is(&[Rule::Invented, Rule::Linearizable]);
    // Seen before it was sent.
    Story::default().create((16, 20), "a", 100, 2).watch(&[(1, &[put(15, 2, "a", 100, true)])]).is(&[
        Rule::Invented,
        Rule::RevisionBackward,
        Rule::Linearizable,
    ]);
}

#[test]
fn a_write_applied_twice() {
    let events = [put(15, 2, "a", 100, true), put(25, 3, "a", 100, false)];
    Story::default().create((10, 20), "a", 100, 2).watch(&[(1, &events)]).is(&[Rule::AppliedTwice]);
}

#[test]
fn an_answer_that_never_came() {
    let events = [put(15, 2, "a", 100, true), deleted(95, 3, "a")];
    let story =
        || Story::default().create((10, 20), "a", 100, 2).call((30, 40), "a", Op::Delete(None), Answer::Unknown);
    // A deletion may take effect long after.
    story().get((50, 60), "a", Some((100, 2))).get((96, 97), "a", None).watch(&[(1, &events)]).is(&[]);
    // But not before it was sent, and not twice.
    story().get((25, 28), "a", None).watch(&[(1, &events)]).is(&[Rule::Linearizable]);
    story()
        .get((45, 48), "a", None)
        .get((50, 60), "a", Some((100, 2)))
        .watch(&[(1, &events)])
        .is(&[Rule::Linearizable]);
    // A creation that nobody ever saw did not happen.
    Story::default()
        .call((30, 40), "a", Op::Create(100), Answer::Unknown)
        .call((50, 60), "a", Op::Create(101), Answer::Refused)
        .watch(&[(1, &[])])
        .is(&[Rule::Linearizable]);
}

#[test]
fn a_lost_event() {
    let [first, second, third, fourth] = usual_events();
    let in_the_middle = [first.clone(), third.clone(), fourth.clone()];
    usual().watch(&[(1, &in_the_middle)]).is(&[Rule::EventLost]);
    let at_the_end = [first.clone(), second.clone(), third.clone()];
    usual().watch(&[(1, &at_the_end)]).is(&[Rule::EventLost]);
    // Skipped by the watcher itself, which has not listed.
    usual().watch(&[(1, &at_the_end), (5, &[])]).is(&[Rule::NoWitness]);
    // Covered by a bookmark.
    usual().watch(&[(1, &usual_events())]).watch(&[(1, &[first, second, third, mark(80, 5)])]).is(&[Rule::EventLost]);
}

#[test]
fn events_out_of_order() {
    let [first, second, third, fourth] = usual_events();
    usual().watch(&[(1, &usual_events())]).watch(&[(1, &[first, third, second, fourth])]).is(&[Rule::EventsReordered]);
}

#[test]
fn a_duplicate_event() {
    let [first, second, third, fourth] = usual_events();
    let twice = [first.clone(), second.clone(), second.clone(), third.clone(), fourth.clone()];
    usual().watch(&[(1, &usual_events())]).watch(&[(1, &twice)]).is(&[Rule::EventDuplicated]);
    // After a resumption.
    usual().watch(&[(1, &[first, second.clone()]), (3, &[second, third, fourth])]).is(&[Rule::EventRepeated]);
}

#[test]
fn a_bookmark_ahead_of_an_event() {
    let [first, second, third, fourth] = usual_events();
    usual().watch(&[(1, &[first, second, mark(41, 4), third, fourth])]).is(&[Rule::BookmarkAhead]);
}

#[test]
fn a_revision_going_backward() {
    // Of a write: `b` is written after 3 was seen.
    Story::default()
        .create((10, 20), "a", 100, 3)
        .create((30, 40), "b", 101, 2)
        .watch(&[(1, &[put(50, 2, "b", 101, true), put(51, 3, "a", 100, true)])])
        .is(&[Rule::RevisionBackward]);
    // Of a listing.
    usual()
        .watch(&[(1, &usual_events())])
        .list((80, 90), 4, &[("a", 101, 3), ("b", 102, 4)])
        .is(&[Rule::RevisionBackward, Rule::Linearizable]);
    // Of a bookmark.
    let [first, second, third, fourth] = usual_events();
    usual().watch(&[(1, &[first, second, third, mark(55, 3), fourth])]).is(&[Rule::RevisionBackward]);
    // One for two writes, as when a restart has forgotten some.
    Story::default()
        .create((10, 20), "a", 100, 2)
        .create((30, 40), "b", 101, 2)
        .watch(&[(1, &[put(12, 2, "a", 100, true)])])
        .is(&[Rule::RevisionReused, Rule::RevisionBackward]);
}

#[test]
fn a_listing_that_is_no_snapshot() {
    let story = || usual().watch(&[(1, &usual_events())]);
    story().list((36, 51), 4, &[("b", 102, 4)]).is(&[Rule::NotASnapshot, Rule::Linearizable]);
    // Of two moments: the update of `a` is missing, the later creation of `b` is there.
    story().list((34, 52), 4, &[("a", 100, 2), ("b", 102, 4)]).is(&[Rule::NotASnapshot, Rule::Linearizable]);
    story().list((36, 38), 2, &[("a", 100, 2)]).is(&[]);
}

#[test]
fn an_event_of_the_wrong_kind() {
    let [first, _, third, fourth] = usual_events();
    usual().watch(&[(1, &[first, put(39, 3, "a", 101, true), third, fourth])]).is(&[Rule::WrongKind]);
}

#[test]
fn a_gap_hides_what_happened_in_it_and_nothing_else() {
    // The server died at 30, with two writes under way, and the witness had to list.
    let story = |seen: &[(&str, Value, Revision)]| {
        let story = Story::default()
            .create((10, 20), "a", 100, 2)
            .call((25, 30), "a", Op::Update(101, 2), Answer::Unknown)
            .call((25, 30), "b", Op::Create(102), Answer::Unknown)
            .list((40, 41), 9, seen);
        let mut story = story.watch(&[(1, &[put(15, 2, "a", 100, true)]), (9, &[])]);
        story.0.watchers[0].streams[1].since = 41;
        story
    };
    story(&[("a", 100, 2)]).is(&[]);
    story(&[("a", 101, 3), ("b", 102, 4)]).is(&[]);
    story(&[("a", 100, 2)]).get((50, 60), "b", Some((102, 4))).is(&[Rule::Linearizable]);
    story(&[]).is(&[Rule::Linearizable]);
    let refused = |times| story(&[("a", 100, 2)]).call(times, "b", Op::Create(103), Answer::Refused);
    refused((50, 60)).is(&[Rule::Linearizable]);
}

#[test]
fn a_history_that_nobody_witnessed_is_not_judged_correct() {
    usual().is(&[Rule::NoWitness]);
    usual().watch(&[(3, &usual_events()[2..])]).is(&[Rule::NoWitness]);
}
