//! Which levels there are, and how they share the server.

use serde_json::json;

use super::super::queues::{Asker, Estimate, Id, Start};
use super::*;
use crate::bootstrap::flow;
use crate::request::{RequestInfo, UserInfo};

fn mandatory() -> (Vec<Level>, Vec<Schema>) {
    let (levels, schemas) = objects();
    let own = |name: &str| name == EXEMPT || name == CATCH_ALL;
    (levels.into_iter().filter(|l| own(&l.name)).collect(), schemas.into_iter().filter(|s| own(&s.name)).collect())
}

fn objects() -> (Vec<Level>, Vec<Schema>) {
    let all = flow::objects();
    let of = |kind: &'static str| all.iter().filter(move |object| object["kind"] == kind);
    (of("PriorityLevelConfiguration").filter_map(Level::of).collect(), of("FlowSchema").map(Schema::of).collect())
}

fn at(seconds: u64) -> Time {
    Time::from_secs(seconds)
}

fn plan() -> Plan {
    let (levels, schemas) = objects();
    Plan::default().next(600, levels, schemas, &mandatory(), at(0)).0
}

fn seats(plan: &Plan, level: &str) -> Seats {
    plan.levels[level].inner.lock().seats
}

/// Takes so many seats of a level.
fn occupy(plan: &Plan, level: &str, count: usize, now: Time) -> Vec<Id> {
    let mut inner = plan.levels[level].inner.lock();
    let ids = (0..count).map(|n| {
        let asker = Asker::new("schema".into(), Arc::new(UserInfo::default()));
        match inner.queues.start(asker, Estimate::ONE, n as u64 * 7919, now) {
            Start::Go(id) | Start::Wait(id) => id,
            Start::Refused(why) => panic!("{why:?}"),
        }
    });
    ids.collect()
}

#[test]
fn seats_are_divided_by_shares_as_upstream() {
    let plan = plan();
    let nominal: Vec<(&str, u32, u32)> = plan
        .levels
        .iter()
        .map(|(name, level)| (name.as_str(), level.inner.lock().seats))
        .map(|(n, s)| (n, s.nominal, s.low))
        .collect();
    // 245 shares of 600 seats, rounded up; and what is not lent.
    let expected = [
        ("catch-all", 13, 13),
        ("exempt", 0, 0),
        ("global-default", 49, 24),
        ("leader-election", 25, 25),
        ("node-high", 98, 73),
        ("system", 74, 50),
        ("workload-high", 98, 49),
        ("workload-low", 245, 24),
    ];
    assert_eq!(nominal, expected);
    assert_eq!(plan.nominal_sum, 602);
}

#[test]
fn the_busy_borrow_what_the_idle_lend() {
    let plan = plan();
    let idle = seats(&plan, "global-default").current;
    let ids = occupy(&plan, "global-default", 300, at(0));
    plan.adjust(at(10), 1.0);
    let (busy, low) = (seats(&plan, "global-default"), seats(&plan, "workload-low"));
    assert!(busy.current > busy.nominal && busy.current > idle, "{busy:?}");
    assert!(low.current >= low.low, "{low:?}");
    let sum: u32 = plan.levels.values().map(|level| level.inner.lock().seats.current).sum();
    assert!(sum.abs_diff(plan.nominal_sum) <= 4, "{sum}: only rounding differs");
    let executing = plan.levels["global-default"].inner.lock().queues.totals().executing;
    assert_eq!(executing as u32, busy.current.min(300), "borrowed seats are used at once");
    // The lender wants them back.
    occupy(&plan, "workload-low", 400, at(10));
    plan.adjust(at(20), 1.0);
    let low = seats(&plan, "workload-low");
    assert!(low.current >= low.nominal, "{low:?}");
    drop(ids);
}

#[test]
fn a_bound_on_borrowing_holds() {
    let (mut levels, schemas) = objects();
    for level in &mut levels {
        if level.name == "global-default" {
            level.borrowing = Some(20);
        }
    }
    let plan = Plan::default().next(600, levels, schemas, &mandatory(), at(0)).0;
    occupy(&plan, "global-default", 300, at(0));
    plan.adjust(at(10), 1.0);
    assert_eq!(seats(&plan, "global-default").current, 49 + 10);
}

#[test]
fn without_objects_the_mandatory_ones_hold() {
    let (plan, found) = Plan::default().next(600, Vec::new(), Vec::new(), &mandatory(), at(0));
    assert!(found.is_empty());
    assert_eq!(plan.flows.iter().map(|f| f.schema.name.as_str()).collect::<Vec<_>>(), [EXEMPT, CATCH_ALL]);
    let info = RequestInfo { is_resource: true, verb: "get".into(), ..RequestInfo::default() };
    let name = |groups: &[&str]| plan.classify(&UserInfo::new("x", groups), &info).map(|f| f.schema.name.clone());
    assert_eq!(name(&["system:masters"]).as_deref(), Some(EXEMPT));
    assert_eq!(name(&["system:authenticated"]).as_deref(), Some(CATCH_ALL));
    assert_eq!(name(&[]).as_deref(), Some(CATCH_ALL), "whoever is of no group at all");
}

#[test]
fn a_schema_without_its_level_dangles_and_is_not_used() {
    let (levels, mut schemas) = objects();
    let mut dangling = schemas[0].clone();
    (dangling.name, dangling.level, dangling.precedence) = ("new".into(), "missing".into(), 1);
    schemas.push(dangling);
    let (plan, found) = Plan::default().next(600, levels, schemas, &mandatory(), at(0));
    assert!(found.iter().all(|(name, _, found)| *found == (name != "new")), "{found:?}");
    assert!(plan.flows.iter().all(|flow| flow.schema.name != "new"));
}

#[test]
fn a_level_goes_with_its_last_request() {
    let plan = plan();
    let ids = occupy(&plan, "workload-low", 3, at(0));
    let (levels, schemas) = objects();
    let left: Vec<Level> = levels.into_iter().filter(|level| level.name != "workload-low").collect();
    let next = plan.next(600, left.clone(), schemas.clone(), &mandatory(), at(1)).0;
    assert!(next.levels.contains_key("workload-low") && !next.has_drained());
    assert!(next.flows.iter().all(|flow| flow.schema.level != "workload-low"));
    for id in ids {
        next.levels["workload-low"].inner.lock().queues.leave(id, at(2));
    }
    assert!(next.has_drained());
    let last = next.next(600, left, schemas, &mandatory(), at(3)).0;
    assert!(!last.levels.contains_key("workload-low"));
}

#[test]
fn requests_that_are_there_stay_when_a_level_changes() {
    let plan = plan();
    occupy(&plan, "workload-low", 3, at(0));
    let (mut levels, schemas) = objects();
    for level in &mut levels {
        level.shares = 1;
    }
    let next = plan.next(600, levels, schemas, &mandatory(), at(1)).0;
    let inner = next.levels["workload-low"].inner.lock();
    // An eighth of 600.
    assert_eq!((inner.queues.totals().executing, inner.seats.nominal), (3, 75));
}

#[test]
fn objects_that_are_not_whole_count_as_absent() {
    let level = |name: &str, spec: serde_json::Value| Level::of(&json!({"metadata": {"name": name}, "spec": spec}));
    assert!(level("a", json!({"type": "Exempt", "exempt": {}})).is_none(), "only one is exempt");
    assert!(level(EXEMPT, json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}})).is_none());
    assert!(level("a", json!({"type": "Limited", "limited": {}})).is_none());
    assert!(level("a", json!({"type": "Limited", "limited": {"limitResponse": {"type": "Reject"}}})).is_some());
}

#[test]
fn no_request_is_wider_than_is_good_for_its_level() {
    let queue = |queues, hand| Limit::Queue(super::super::config::Queuing { queues, hand, length: 50 });
    assert_eq!(widest(queue(128, 6), 245), 37);
    assert_eq!(widest(queue(128, 6), 49), 8);
    assert_eq!(widest(queue(128, 8), 12), 1);
    assert_eq!(widest(Limit::Reject, 13), 0);
}
