//! The annotations by which a deployment and its replica sets remember: revisions for rollback, sizes for scaling. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::{Deployment, ReplicaSet};

pub const REVISION: &str = "deployment.kubernetes.io/revision";
const REVISION_HISTORY: &str = "deployment.kubernetes.io/revision-history";
const DESIRED: &str = "deployment.kubernetes.io/desired-replicas";
const MAX: &str = "deployment.kubernetes.io/max-replicas";
/// Characters of revision history kept on a replica set.
const HISTORY_MAX_CHARS: usize = 2000;

/// Annotations of a deployment that are not copied to its sets.
const OWN: [&str; 6] = [
    "kubectl.kubernetes.io/last-applied-configuration",
    REVISION,
    REVISION_HISTORY,
    DESIRED,
    MAX,
    "deprecated.deployment.rollback.to",
];

fn annotation<'a>(set: &'a ReplicaSet, name: &str) -> Option<&'a str> {
    set.metadata.annotations.as_ref()?.get(name).map(String::as_str)
}

fn put(annotations: &mut BTreeMap<String, String>, name: &str, value: String) {
    annotations.insert(name.to_owned(), value);
}

/// Zero if absent or malformed.
pub fn revision_of(set: &ReplicaSet) -> i64 {
    annotation(set, REVISION).and_then(|text| text.parse().ok()).unwrap_or(0)
}

pub fn revision_text(set: &ReplicaSet) -> Option<&str> {
    annotation(set, REVISION)
}

/// The size of the deployment for which the set was last scaled.
pub fn desired_of(set: &ReplicaSet) -> Option<i32> {
    annotation(set, DESIRED)?.parse().ok()
}

/// The same with surge.
pub fn max_of(set: &ReplicaSet) -> Option<i32> {
    annotation(set, MAX)?.parse().ok()
}

pub fn sizes_differ(set: &ReplicaSet, desired: i32, max: i32) -> bool {
    desired_of(set) != Some(desired) || max_of(set) != Some(max)
}

pub fn set_sizes(set: &mut ReplicaSet, desired: i32, max: i32) {
    let annotations = set.metadata.annotations.get_or_insert_default();
    put(annotations, DESIRED, desired.to_string());
    put(annotations, MAX, max.to_string());
}

/// Brings the annotations of the new set up to date: those of the deployment, and `revision` if it is higher than the
/// set's own (a rollback makes an old set the newest again; its former revisions stay in its history).
pub fn sync_annotations(set: &mut ReplicaSet, deployment: &Deployment, revision: i64) {
    let old = annotation(set, REVISION).map(str::to_owned);
    let annotations = set.metadata.annotations.get_or_insert_default();
    for (name, value) in deployment.metadata.annotations.iter().flatten() {
        if !OWN.contains(&name.as_str()) {
            put(annotations, name, value.clone());
        }
    }
    let old_number: i64 = old.as_deref().and_then(|text| text.parse().ok()).unwrap_or(0);
    if old_number >= revision {
        return;
    }
    put(annotations, REVISION, revision.to_string());
    if let Some(old) = old.filter(|old| !old.is_empty()) {
        let history = annotations.get(REVISION_HISTORY).map(String::as_str).unwrap_or_default();
        let mut entries: Vec<&str> = history.split(',').filter(|entry| !entry.is_empty()).collect();
        entries.push(&old);
        while entries.len() > 1 && entries.join(",").len() > HISTORY_MAX_CHARS {
            entries.remove(0);
        }
        let history = entries.join(",");
        put(annotations, REVISION_HISTORY, history);
    }
    if annotations.is_empty() {
        set.metadata.annotations = None;
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    #[test]
    fn a_rollback_raises_the_revision_and_keeps_the_history() {
        let mut set: ReplicaSet = yaml(
            "{ metadata: { annotations: { deployment.kubernetes.io/revision: '2', deployment.kubernetes.io/revision-history: '1' } }, spec: { selector: {} } }",
        );
        let deployment: Deployment = yaml(
            "{ metadata: { annotations: { kubernetes.io/change-cause: undo, deployment.kubernetes.io/revision: '4' } }, spec: { selector: {}, template: {} } }",
        );
        sync_annotations(&mut set, &deployment, 5);
        let annotations = set.metadata.annotations.clone().expect("set");
        assert_eq!(annotations[REVISION], "5");
        assert_eq!(annotations[REVISION_HISTORY], "1,2");
        assert_eq!(annotations["kubernetes.io/change-cause"], "undo");
        sync_annotations(&mut set, &deployment, 3);
        assert_eq!(revision_of(&set), 5, "never lowered");
    }
}
