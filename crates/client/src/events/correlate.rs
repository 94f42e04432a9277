//! Which occurrence becomes a new event, which one more count of an old one, and which none (upstream's event
//! correlator: aggregation of similar events, deduplication, spam filter). Pure: time comes with the occurrence.

use std::collections::{BTreeMap, HashMap, HashSet};
use std::hash::Hash;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Event, EventSource, ObjectReference};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::json;

use super::{EventType, Occurrence};

/// Distinct messages of one reason on one object within [`SIMILAR_WINDOW_SECONDS`] before they are told as one.
const SIMILAR_MAX: usize = 10;
const SIMILAR_WINDOW_SECONDS: i64 = 600;
/// Events of one source on one object: a burst, then one in five minutes.
const BURST: f64 = 25.0;
const REFILL_PER_SECOND: f64 = 1.0 / 300.0;
const REMEMBERED: usize = 4096;

/// What to do about an occurrence.
pub enum Decision {
    Create(Box<Event>),
    /// `patch` (a merge patch) counts once more; `event` is created instead if it is gone.
    Count {
        event: Box<Event>,
        patch: serde_json::Value,
    },
    Drop,
}

/// An object as it identifies events: not by its version.
#[derive(Clone, PartialEq, Eq, Hash)]
struct Subject {
    api_version: Option<String>,
    kind: Option<String>,
    namespace: Option<String>,
    name: Option<String>,
    uid: Option<String>,
    field_path: Option<String>,
}

impl Subject {
    fn of(object: &ObjectReference) -> Self {
        Subject {
            api_version: object.api_version.clone(),
            kind: object.kind.clone(),
            namespace: object.namespace.clone(),
            name: object.name.clone(),
            uid: object.uid.clone(),
            field_path: object.field_path.clone(),
        }
    }
}

type Group = (Subject, EventType, String);

struct Similar {
    messages: HashSet<String>,
    last: Timestamp,
}

struct Bucket {
    tokens: f64,
    filled: Timestamp,
}

pub struct Correlator {
    component: String,
    host: String,
    similar: Recent<Group, Similar>,
    written: Recent<(Group, String), Event>,
    buckets: Recent<Subject, Bucket>,
}

impl Correlator {
    pub fn new(component: &str, host: &str) -> Self {
        Correlator {
            component: component.to_owned(),
            host: host.to_owned(),
            similar: Recent::default(),
            written: Recent::default(),
            buckets: Recent::default(),
        }
    }

    pub fn decide(&mut self, occurrence: &Occurrence) -> Decision {
        let subject = Subject::of(&occurrence.object);
        let group: Group = (subject.clone(), occurrence.kind, occurrence.reason.clone());
        let aggregated = self.aggregates(&group, occurrence);
        let message = if aggregated {
            format!("(combined from similar events): {}", occurrence.message)
        } else {
            occurrence.message.clone()
        };
        if !self.allows(&subject, occurrence.at) {
            return Decision::Drop;
        }
        // Aggregated occurrences share one event whatever their message.
        let key = (group, if aggregated { String::new() } else { message.clone() });
        if let Some(event) = self.written.get_mut(&key) {
            let count = event.count.unwrap_or(1) + 1;
            event.count = Some(count);
            event.last_timestamp = Some(Time(occurrence.at));
            event.message = Some(message);
            let patch = json!({ "count": count, "lastTimestamp": event.last_timestamp, "message": event.message });
            return Decision::Count { event: Box::new(event.clone()), patch };
        }
        let event = self.event(occurrence, message);
        self.written.insert(key, event.clone());
        Decision::Create(Box::new(event))
    }

    /// Whether the group has had so many different messages lately that this one is told together with the others.
    fn aggregates(&mut self, group: &Group, occurrence: &Occurrence) -> bool {
        let fresh = || Similar { messages: HashSet::new(), last: occurrence.at };
        let similar = self.similar.get_or_insert_with(group, fresh);
        if occurrence.at.as_second() - similar.last.as_second() > SIMILAR_WINDOW_SECONDS {
            similar.messages.clear();
        }
        similar.last = occurrence.at;
        if similar.messages.len() < SIMILAR_MAX {
            similar.messages.insert(occurrence.message.clone());
        }
        similar.messages.len() >= SIMILAR_MAX
    }

    fn allows(&mut self, subject: &Subject, now: Timestamp) -> bool {
        let bucket = self.buckets.get_or_insert_with(subject, || Bucket { tokens: BURST, filled: now });
        let elapsed = now.duration_since(bucket.filled).as_secs_f64().max(0.0);
        bucket.tokens = (bucket.tokens + elapsed * REFILL_PER_SECOND).min(BURST);
        bucket.filled = now;
        let allowed = bucket.tokens >= 1.0;
        if allowed {
            bucket.tokens -= 1.0;
        }
        allowed
    }

    fn event(&self, occurrence: &Occurrence, message: String) -> Event {
        let object = &occurrence.object;
        let time = Some(Time(occurrence.at));
        let mut event = Event {
            involved_object: object.clone(),
            reason: Some(occurrence.reason.clone()),
            message: Some(message),
            source: Some(EventSource {
                component: Some(self.component.clone()),
                host: Some(self.host.clone()).filter(|host| !host.is_empty()),
            }),
            first_timestamp: time.clone(),
            last_timestamp: time,
            count: Some(1),
            type_: Some(occurrence.kind.to_string()),
            reporting_component: Some(self.component.clone()),
            reporting_instance: Some(self.host.clone()),
            ..Event::default()
        };
        let name = object.name.as_deref().unwrap_or_default();
        event.metadata.name = Some(format!("{name}.{:x}", occurrence.at.as_nanosecond()));
        let namespace = object.namespace.clone().filter(|namespace| !namespace.is_empty());
        event.metadata.namespace = Some(namespace.unwrap_or_else(|| "default".to_owned()));
        event
    }
}

/// A map of bounded size that forgets what was used least recently.
struct Recent<K, V> {
    entries: HashMap<K, (u64, V)>,
    order: BTreeMap<u64, K>,
    clock: u64,
}

impl<K, V> Default for Recent<K, V> {
    fn default() -> Self {
        Recent { entries: HashMap::new(), order: BTreeMap::new(), clock: 0 }
    }
}

impl<K: Clone + Eq + Hash, V> Recent<K, V> {
    fn get_mut(&mut self, key: &K) -> Option<&mut V> {
        let (used, value) = self.entries.get_mut(key)?;
        self.order.remove(used);
        self.clock += 1;
        *used = self.clock;
        self.order.insert(self.clock, key.clone());
        Some(value)
    }

    fn insert(&mut self, key: K, value: V) {
        self.clock += 1;
        if let Some((used, _)) = self.entries.insert(key.clone(), (self.clock, value)) {
            self.order.remove(&used);
        }
        self.order.insert(self.clock, key);
        if self.entries.len() > REMEMBERED
            && let Some((_, oldest)) = self.order.pop_first()
        {
            self.entries.remove(&oldest);
        }
    }

    fn get_or_insert_with(&mut self, key: &K, make: impl FnOnce() -> V) -> &mut V {
        if !self.entries.contains_key(key) {
            self.insert(key.clone(), make());
        }
        self.get_mut(key).expect("inserted above")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(correlator: &mut Correlator, message: &str, second: i64) -> String {
        let object = ObjectReference { name: Some("web-1".into()), namespace: Some("ns".into()), ..Default::default() };
        let at = Timestamp::from_second(1_700_000_000 + second).expect("in range");
        let occurrence =
            Occurrence { object, kind: EventType::Warning, reason: "BackOff".into(), message: message.into(), at };
        match correlator.decide(&occurrence) {
            Decision::Create(event) => format!("new {}", event.message.expect("set")),
            Decision::Count { event, .. } => format!("x{} {}", event.count.expect("set"), event.message.expect("set")),
            Decision::Drop => "dropped".to_owned(),
        }
    }

    #[test]
    fn a_repetition_is_counted() {
        let mut correlator = Correlator::new("kubelet", "node");
        assert_eq!(told(&mut correlator, "again", 0), "new again");
        assert_eq!(told(&mut correlator, "again", 1), "x2 again");
        assert_eq!(told(&mut correlator, "other", 2), "new other");
        assert_eq!(told(&mut correlator, "again", 3), "x3 again");
    }

    #[test]
    fn many_different_messages_become_one_event() {
        let mut correlator = Correlator::new("kubelet", "");
        for n in 0..9 {
            assert_eq!(told(&mut correlator, &format!("m{n}"), n), format!("new m{n}"));
        }
        assert_eq!(told(&mut correlator, "m9", 9), "new (combined from similar events): m9");
        assert_eq!(told(&mut correlator, "m10", 10), "x2 (combined from similar events): m10");
        assert_eq!(told(&mut correlator, "later", 1000), "new later", "the window has passed");
    }

    #[test]
    fn a_flood_is_cut_and_trickles_on() {
        let mut correlator = Correlator::new("kubelet", "");
        let kept = (0..100).filter(|_| told(&mut correlator, "same", 0) != "dropped").count();
        assert_eq!(kept, 25);
        assert_eq!(told(&mut correlator, "same", 301), "x26 same");
    }

    #[test]
    fn memory_is_bounded() {
        let mut recent: Recent<u64, ()> = Recent::default();
        (0..10_000).for_each(|n| recent.insert(n, ()));
        assert_eq!((recent.entries.len(), recent.order.len()), (REMEMBERED, REMEMBERED));
        assert!(recent.get_mut(&9_999).is_some() && recent.get_mut(&0).is_none());
    }
}
