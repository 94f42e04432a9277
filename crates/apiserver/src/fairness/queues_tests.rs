//! Properties of fair queuing, over random loads in simulated time.

use std::collections::BTreeMap;

use proptest::prelude::*;

use super::super::config::Queuing;
use super::*;
use crate::request::UserInfo;

const QUEUING: Queuing = Queuing { queues: 8, hand: 3, length: 10 };

fn asker() -> Asker {
    Asker::new("schema".into(), Arc::new(UserInfo::default()))
}

fn set(limit: Limit, seats: u32) -> QueueSet<usize> {
    QueueSet::new(limit, seats, Duration::ZERO)
}

fn ms(milliseconds: u64) -> Time {
    Duration::from_millis(milliseconds)
}

#[derive(Clone, Debug)]
enum Step {
    /// A request of a flow, with so many seats, last seats and milliseconds of lingering.
    Arrive(u64, u32, u32, u64),
    /// The nth of those that are there goes: it ends, or its client gives up.
    Leave(usize),
    Pass(u64),
    Configure(usize, u32),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (any::<u64>(), 1..5u32, 0..5u32, 0..20u64).prop_map(|(flow, seats, last, linger)| Step::Arrive(flow % 5, seats, last, linger)),
        3 => (0..64usize).prop_map(Step::Leave),
        2 => (0..30u64).prop_map(Step::Pass),
        1 => (1..12usize, 1..10u32).prop_map(|(queues, seats)| Step::Configure(queues, seats)),
    ]
}

/// What the set must be like after every step, whatever happened.
fn check(set: &QueueSet<usize>, live: &BTreeMap<usize, (Id, bool)>) {
    let totals = set.totals();
    let executing = live.values().filter(|(id, _)| set.has_seats(*id)).count();
    assert_eq!(totals.executing, executing);
    assert_eq!(totals.waiting, live.len() - executing);
    let of_queues: u32 = set.queues().map(|queue| queue.seats).sum();
    assert_eq!(of_queues, totals.seats, "each seat is one queue's");
    assert_eq!(set.queues().map(|queue| queue.waiting).sum::<usize>(), totals.waiting);
    assert_eq!(set.queues().map(|queue| queue.waiting_seats).sum::<u32>(), totals.seats_waiting);
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(400))]

    #[test]
    fn nothing_is_lost_and_nobody_leaves_seats_behind(steps in prop::collection::vec(step(), 1..200)) {
        let mut set = set(Limit::Queue(QUEUING), 5);
        let mut limit = 5;
        let (mut now, mut next) = (Duration::ZERO, 0);
        let mut live: BTreeMap<usize, (Id, bool)> = BTreeMap::new();
        for step in steps {
            let before = set.totals();
            match step {
                Step::Arrive(flow, seats, last_seats, linger) => {
                    let estimate = Estimate { seats, last_seats, linger: ms(linger) };
                    match set.start(asker(), estimate, flow * 7919, now) {
                        Start::Go(id) => { live.insert(next, (id, true)); }
                        Start::Wait(id) => {
                            set.wake_by(id, next, "");
                            live.insert(next, (id, false));
                        }
                        Start::Refused(why) => {
                            prop_assert_eq!(why, Refusal::QueueFull);
                            prop_assert!(before.seats >= limit, "refused though seats are free");
                        }
                    }
                    next += 1;
                }
                Step::Leave(which) => {
                    let key = live.keys().nth(which % live.len().max(1)).copied();
                    if let Some((id, _)) = key.and_then(|key| live.remove(&key)) {
                        set.leave(id, now);
                    }
                }
                Step::Pass(milliseconds) => {
                    now += ms(milliseconds);
                    set.advance(now);
                }
                Step::Configure(queues, seats) => {
                    limit = seats;
                    set.configure(Limit::Queue(Queuing { queues, hand: 3.min(queues), ..QUEUING }), seats, now);
                }
            }
            for waker in set.take_woken() {
                let request = live.get_mut(&waker).expect("only those who are there are woken");
                prop_assert!(!request.1, "woken once");
                request.1 = true;
            }
            for (id, goes) in live.values() {
                prop_assert_eq!(set.has_seats(*id), *goes, "who has seats has been told");
            }
            check(&set, &live);
            let after = set.totals();
            // More than the limit only by one request that is wider than it, or what was there before it was lowered.
            if after.dispatched > before.dispatched {
                let most = live.values().filter(|(_, goes)| *goes).count();
                prop_assert!(after.seats <= limit || most == 1 || after.seats <= before.seats, "{before:?} {after:?} {limit}");
            }
        }
        for (id, _) in std::mem::take(&mut live).into_values() {
            set.leave(id, now);
            // Whoever gets seats meanwhile is gone or goes in this loop.
            set.take_woken();
        }
        set.advance(now + Duration::from_secs(60));
        let totals = set.totals();
        prop_assert_eq!((totals.seats, totals.seats_waiting, totals.executing, totals.waiting), (0, 0, 0, 0));
        prop_assert!(set.is_idle());
        prop_assert_eq!(set.active_queues, 0);
        prop_assert!(set.next_release().is_none());
    }
}

/// Runs flows that always have requests on `seats` seats for a while. Each flow keeps `waiting[f]` requests there, each of which
/// takes `milliseconds[f]`. Returns how many of each flow's ended, and the longest that one of them waited.
fn contend(seats: u32, waiting: &[usize], milliseconds: &[u64], span: u64) -> Vec<(usize, u64)> {
    let mut set = set(Limit::Queue(Queuing { queues: 64, hand: 2, length: 1000 }), seats);
    let mut ended = vec![(0, 0); waiting.len()];
    // Of each request: its flow, when it came, and when it will have ended once that is known.
    let mut requests: Vec<(usize, u64, Id, Option<u64>)> = Vec::new();
    for now in 0..span {
        requests.retain(|(flow, _, id, end)| {
            let over = *end == Some(now);
            if over {
                set.leave(*id, ms(now));
                ended[*flow].0 += 1;
            }
            !over
        });
        for (flow, count) in waiting.iter().enumerate() {
            while requests.iter().filter(|request| request.0 == flow).count() < *count {
                let hash = 0x9E37_79B9_7F4A_7C15_u64.wrapping_mul(flow as u64 + 1);
                match set.start(asker(), Estimate::ONE, hash, ms(now)) {
                    Start::Go(id) | Start::Wait(id) => requests.push((flow, now, id, None)),
                    Start::Refused(why) => panic!("{why:?}"),
                }
            }
        }
        set.take_woken();
        for (flow, came, id, end) in &mut requests {
            if end.is_none() && set.has_seats(*id) {
                *end = Some(now + milliseconds[*flow]);
                ended[*flow].1 = ended[*flow].1.max(now - *came);
            }
        }
        assert!(set.totals().seats <= seats);
    }
    ended
}

#[test]
fn a_flood_does_not_take_more_than_its_share() {
    let ended = contend(4, &[200, 8], &[10, 10], 5000);
    // 2,000 requests in all, half of each flow, though one has 200 there and the other 8.
    assert!(ended[1].0 > 900, "{ended:?}");
    assert!(ended[0].0 > 900, "{ended:?}");
}

#[test]
fn long_requests_count_for_what_they_take() {
    let ended = contend(4, &[50, 50], &[100, 10], 20_000);
    let (long, short) = (ended[0].0 * 100, ended[1].0 * 10);
    let part = long as f64 / (long + short) as f64;
    assert!((0.4..0.6).contains(&part), "seat-milliseconds {long} and {short}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(24))]

    /// The bound: beside floods, a flow with one request at a time waits no longer than all other flows' queues need to be served
    /// their turn of it: a few of the longest requests each.
    #[test]
    fn no_flow_starves(floods in prop::collection::vec((1..60usize, 1..40u64), 1..6), seats in 1..6u32) {
        let mut waiting: Vec<usize> = floods.iter().map(|(count, _)| *count).collect();
        let mut milliseconds: Vec<u64> = floods.iter().map(|(_, ms)| *ms).collect();
        waiting.push(1);
        milliseconds.push(5);
        let ended = contend(seats, &waiting, &milliseconds, 8000);
        let longest = milliseconds.iter().max().copied().unwrap_or(0);
        // Each flood has a hand of two queues.
        let bound = 3 * (2 * floods.len() as u64 + 1) * longest;
        let (done, waited) = ended[floods.len()];
        prop_assert!(waited <= bound, "waited {waited} ms of at most {bound}");
        prop_assert!(done > 0);
    }
}

#[test]
fn without_queues_what_is_too_much_is_refused() {
    let mut set = set(Limit::Reject, 2);
    let start = |set: &mut QueueSet<usize>| set.start(asker(), Estimate::ONE, 0, Duration::ZERO);
    let Start::Go(first) = start(&mut set) else { panic!("there are seats") };
    assert!(matches!(start(&mut set), Start::Go(_)));
    assert_eq!(start(&mut set), Start::Refused(Refusal::ConcurrencyLimit));
    set.leave(first, Duration::ZERO);
    assert!(matches!(start(&mut set), Start::Go(_)));
}

#[test]
fn exempt_requests_never_wait_and_are_counted() {
    let mut set = set(Limit::Exempt, 0);
    for _ in 0..1000 {
        assert!(matches!(set.start(asker(), Estimate::ONE, 0, Duration::ZERO), Start::Go(_)));
    }
    assert_eq!(set.totals().seats, 1000);
}

#[test]
fn a_request_wider_than_the_level_goes_alone() {
    let mut set = set(Limit::Queue(QUEUING), 2);
    let wide = Estimate { seats: 5, ..Estimate::ONE };
    let Start::Go(small) = set.start(asker(), Estimate::ONE, 1, Duration::ZERO) else { panic!("it is free") };
    let Start::Wait(waits) = set.start(asker(), wide, 2, Duration::ZERO) else { panic!("not beside another") };
    set.wake_by(waits, 7, "");
    set.leave(small, ms(1));
    assert_eq!(set.take_woken(), [7]);
}

#[test]
fn seats_linger_and_come_back_by_time_alone() {
    let mut set = set(Limit::Queue(QUEUING), 4);
    let write = Estimate { seats: 1, last_seats: 4, linger: ms(5) };
    let Start::Go(first) = set.start(asker(), write, 1, ms(0)) else { panic!("it is free") };
    assert_eq!(set.totals().seats, 4);
    let Start::Wait(second) = set.start(asker(), Estimate::ONE, 2, ms(0)) else { panic!("all seats are taken") };
    set.wake_by(second, 1, "");
    set.leave(first, ms(10));
    assert_eq!((set.totals().executing, set.totals().seats), (0, 4));
    assert_eq!(set.next_release(), Some(ms(15)));
    set.advance(ms(14));
    assert!(set.take_woken().is_empty());
    set.advance(ms(15));
    assert_eq!(set.take_woken(), [1]);
    assert_eq!(set.next_release(), None, "nobody waits");
}
