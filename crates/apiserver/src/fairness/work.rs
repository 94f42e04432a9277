//! What a request is going to cost, in seats: lists by how much they read, writes by how many watch what they change.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use parking_lot::Mutex;

use super::Time;
use super::queues::Estimate;
use crate::http::query::Query;
use crate::request::RequestInfo;

/// Upstream's sizes (`SizeBasedListCostEstimate`).
const BYTES_PER_SEAT: u64 = 100_000;
/// A list out of memory is written piece by piece, so it takes no more than this at once.
const STREAMED_BYTES: u64 = 1_000_000;
const WIDEST_LIST: u32 = 100;
const WIDEST_WRITE: u32 = 10;
const WATCHES_PER_SEAT: u32 = 10;
/// What telling all watchers of one seat takes.
const TELLING: Duration = Duration::from_millis(5);

/// How much there is of a resource.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stored {
    pub count: u64,
    pub mean_bytes: u64,
}

/// Seats of a list, or of a watch that begins with one. `widest` is the level's bound, 0 for none.
pub fn of_list(stored: Stored, info: &RequestInfo, query: &Query, widest: u32) -> Estimate {
    let version = query.get("resourceVersion").unwrap_or_default();
    if info.verb == "watch" && query.optional_flag("sendInitialEvents") != Some(true) && !matches!(version, "" | "0") {
        return Estimate::ONE;
    }
    let limit = query.number("limit").ok().flatten().and_then(|limit| u64::try_from(limit).ok()).filter(|l| *l > 0);
    let read = match limit {
        _ if !info.name.is_empty() => 1,
        Some(limit) => limit.min(stored.count),
        None => stored.count,
    };
    let bytes = read.saturating_mul(stored.mean_bytes).min(STREAMED_BYTES);
    let widest = if widest == 0 { WIDEST_LIST } else { widest.min(WIDEST_LIST) };
    let seats = u32::try_from(bytes.div_ceil(BYTES_PER_SEAT)).unwrap_or(widest).clamp(1, widest.max(1));
    Estimate { seats, ..Estimate::ONE }
}

/// Seats of a write that `watches` watches will be told of.
pub fn of_write(watches: u32, widest: u32) -> Estimate {
    if watches < WATCHES_PER_SEAT {
        return Estimate::ONE;
    }
    let wanted = watches.div_ceil(WATCHES_PER_SEAT);
    let widest = if widest == 0 { WIDEST_WRITE } else { widest.min(WIDEST_WRITE) };
    // The same work, by no more seats than are good for those who wait.
    let last_seats = wanted.min(widest.max(1));
    Estimate { seats: 1, last_seats, linger: TELLING * wanted / last_seats }
}

/// Whether a request is estimated as a write. A token is an answer that nobody watches.
pub fn is_write(info: &RequestInfo) -> bool {
    matches!(info.verb.as_str(), "create" | "update" | "patch" | "delete")
        && !(info.resource == "serviceaccounts" && info.subresource == "token")
}

/// Group and resource, namespace and name, the latter two empty where a watch is of all.
type Watched = (Box<str>, Box<str>, Box<str>, Box<str>);

/// How many watches there are of what.
#[derive(Clone, Default)]
pub struct Watches {
    counts: Arc<Mutex<HashMap<Watched, u32>>>,
}

/// One watch, counted until this is dropped.
pub struct WatchGuard {
    watches: Watches,
    watched: Option<Watched>,
}

impl Watches {
    pub fn begin(&self, info: &RequestInfo, query: &Query) -> WatchGuard {
        // Of pods a watch of one node's is told only of that node's.
        let of_node = info.resource == "pods"
            && query.get("fieldSelector").unwrap_or_default().split(',').any(|term| {
                let term = term.trim();
                term.starts_with("spec.nodeName=") && !matches!(term, "spec.nodeName=" | "spec.nodeName==")
            });
        let watched: Option<Watched> = (!of_node).then(|| key(info, &info.namespace, &info.name));
        if let Some(watched) = &watched {
            *self.counts.lock().entry(watched.clone()).or_default() += 1;
        }
        WatchGuard { watches: self.clone(), watched }
    }

    /// Watches that may be told of a write.
    pub fn of(&self, info: &RequestInfo) -> u32 {
        let counts = self.counts.lock();
        if counts.is_empty() {
            return 0;
        }
        let count = |namespace: &str, name: &str| counts.get(&key(info, namespace, name)).copied().unwrap_or(0);
        let mut sum = count("", "");
        if !info.namespace.is_empty() {
            sum += count(&info.namespace, "");
        }
        if !info.name.is_empty() {
            sum += count(&info.namespace, &info.name);
        }
        sum
    }
}

fn key(info: &RequestInfo, namespace: &str, name: &str) -> Watched {
    (info.group.as_str().into(), info.resource.as_str().into(), namespace.into(), name.into())
}

impl Drop for WatchGuard {
    fn drop(&mut self) {
        let Some(watched) = self.watched.take() else { return };
        let mut counts = self.watches.counts.lock();
        if let Some(count) = counts.get_mut(&watched) {
            *count -= 1;
            if *count == 0 {
                counts.remove(&watched);
            }
        }
    }
}

/// What has been counted of resources; each is counted again when it is asked for and older than a minute.
#[derive(Default)]
pub struct Known {
    stored: Mutex<HashMap<Box<str>, (Time, Stored)>>,
}

const FRESH: Duration = Duration::from_secs(60);

impl Known {
    /// Of the resource whose keys begin with `prefix`. `count` looks.
    pub fn of(&self, prefix: &str, now: Time, count: impl FnOnce() -> Stored) -> Stored {
        if let Some((at, stored)) = self.stored.lock().get(prefix)
            && now.saturating_sub(*at) < FRESH
        {
            return *stored;
        }
        let stored = count();
        self.stored.lock().insert(prefix.into(), (now, stored));
        stored
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn info(verb: &str, namespace: &str, name: &str) -> RequestInfo {
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            resource: "pods".into(),
            namespace: namespace.into(),
            name: name.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn lists_take_seats_by_what_they_read() {
        let stored = Stored { count: 150, mean_bytes: 4000 };
        let seats = |query: &str, verb: &str, name: &str, widest: u32| {
            of_list(stored, &info(verb, "", name), &Query::parse(query), widest).seats
        };
        assert_eq!(seats("", "list", "", 0), 6);
        assert_eq!(seats("limit=50", "list", "", 0), 2);
        assert_eq!(seats("", "list", "one", 0), 1);
        assert_eq!(seats("", "list", "", 4), 4);
        assert_eq!(seats("watch=1", "watch", "", 0), 6);
        assert_eq!(seats("watch=1&resourceVersion=7", "watch", "", 0), 1);
        assert_eq!(seats("watch=1&resourceVersion=7&sendInitialEvents=true", "watch", "", 0), 6);
        let many = Stored { count: 1_000_000, mean_bytes: 4000 };
        assert_eq!(of_list(many, &info("list", "", ""), &Query::default(), 0).seats, 10, "it is streamed");
        assert_eq!(of_list(Stored::default(), &info("list", "", ""), &Query::default(), 0).seats, 1);
    }

    #[test]
    fn writes_take_seats_by_who_watches() {
        assert_eq!(of_write(9, 0), Estimate::ONE);
        assert_eq!(of_write(25, 0), Estimate { seats: 1, last_seats: 3, linger: TELLING });
        let wide = of_write(1000, 5);
        assert_eq!((wide.last_seats, wide.linger), (5, TELLING * 20), "the same work by fewer seats");
    }

    #[test]
    fn watches_are_counted_while_they_last() {
        let watches = Watches::default();
        let all = watches.begin(&info("watch", "", ""), &Query::default());
        let namespace = watches.begin(&info("watch", "a", ""), &Query::default());
        let one = watches.begin(&info("watch", "a", "x"), &Query::default());
        let node = watches.begin(&info("watch", "", ""), &Query::parse("fieldSelector=spec.nodeName%3Dn"));
        assert_eq!(watches.of(&info("update", "a", "x")), 3);
        assert_eq!(watches.of(&info("update", "b", "x")), 1);
        assert_eq!(watches.of(&info("create", "a", "")), 2);
        drop((all, namespace, one, node));
        assert_eq!(watches.of(&info("update", "a", "x")), 0);
        assert!(watches.counts.lock().is_empty());
    }

    #[test]
    fn what_is_stored_is_counted_once_a_minute() {
        let known = Known::default();
        let stored = |count| Stored { count, mean_bytes: 1 };
        let at = Duration::from_secs;
        assert_eq!(known.of("pods", at(0), || stored(1)), stored(1));
        assert_eq!(known.of("pods", at(59), || panic!("it is known")), stored(1));
        assert_eq!(known.of("pods", at(60), || stored(2)), stored(2));
    }
}
