//! The time of the change that made endpoints change, for measuring latency (upstream's TriggerTimeTracker). Pure.

use std::collections::HashMap;
use std::sync::Arc;

use jiff::Timestamp;
use k8s_openapi::api::core::v1::{Pod, Service};

use crate::pods;

#[derive(Default)]
struct Known {
    service: Option<Timestamp>,
    pods: HashMap<String, Timestamp>,
}

/// Remembers, for each service, the trigger times that were accounted for.
#[derive(Default)]
pub struct TriggerTimes {
    known: HashMap<client::ObjectKey, Known>,
}

impl TriggerTimes {
    /// The earliest new trigger: the service's creation, or a pod's becoming ready or unready.
    pub fn observe(&mut self, key: &client::ObjectKey, service: &Service, pods: &[Arc<Pod>]) -> Option<Timestamp> {
        let old = self.known.remove(key).unwrap_or_default();
        let mut new =
            Known { service: service.metadata.creation_timestamp.as_ref().map(|time| time.0), ..Known::default() };
        let mut earliest = new.service.filter(|created| Some(*created) > old.service);
        for pod in pods {
            let ready = pods::condition(pod, "Ready").and_then(|ready| ready.last_transition_time.as_ref());
            let (Some(at), Some(uid)) = (ready.map(|time| time.0), pod.metadata.uid.clone()) else { continue };
            if Some(&at) > old.pods.get(&uid) {
                earliest = Some(earliest.map_or(at, |earliest| earliest.min(at)));
            }
            new.pods.insert(uid, at);
        }
        self.known.insert(key.clone(), new);
        earliest
    }

    pub fn forget(&mut self, key: &client::ObjectKey) {
        self.known.remove(key);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{now, pods, yaml};

    #[test]
    fn the_earliest_new_trigger_counts() {
        let service: Service = yaml("{ metadata: { creationTimestamp: '2020-01-01T00:00:00Z' } }");
        let key = ("ns".to_owned(), "web".to_owned());
        let mut times = TriggerTimes::default();
        let created = times.observe(&key, &service, &[]).expect("the service is new");
        assert_eq!(created.to_string(), "2020-01-01T00:00:00Z");
        let two = pods("{ name: a, ready: 10 }\n{ name: b, ready: 5 }");
        let seconds = |at: Option<Timestamp>| at.map(|at| now().as_second() - at.as_second());
        assert_eq!(seconds(times.observe(&key, &service, &two)), Some(10));
        assert_eq!(seconds(times.observe(&key, &service, &two)), None);
        let later = pods("{ name: a, ready: 10 }\n{ name: b, ready: 1 }");
        assert_eq!(seconds(times.observe(&key, &service, &later)), Some(1));
    }
}
