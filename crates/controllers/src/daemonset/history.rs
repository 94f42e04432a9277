//! Revisions of a daemon set's template, kept as ControllerRevisions for rollback. Pure.

use std::sync::Arc;

use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet};
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use serde_json::{Value, json};

use super::plan::HASH_LABEL;
use crate::template;

/// The patch that restores the template, as `kubectl rollout undo` applies it.
fn data_of(set: &DaemonSet) -> Value {
    let mut template = serde_json::to_value(&set.spec.template).expect("API types serialise to JSON");
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

#[derive(Debug)]
pub enum Newest {
    /// It exists and is the newest.
    Current(Arc<ControllerRevision>),
    /// It exists, but its number has to be raised: a rollback made it the newest again.
    Renumber(Box<ControllerRevision>),
    Create(Box<ControllerRevision>),
}

/// The revision of the set's template among those that the set owns.
pub fn newest(set: &DaemonSet, revisions: &[Arc<ControllerRevision>]) -> Newest {
    let wanted = data_of(set);
    let highest = revisions.iter().filter_map(|revision| revision.revision).max().unwrap_or(0);
    let same = revisions.iter().filter(|revision| revision.data.0 == wanted);
    if let Some(current) = same.max_by_key(|revision| revision.revision) {
        if current.revision == Some(highest) {
            return Newest::Current(current.clone());
        }
        let mut renumbered = (**current).clone();
        renumbered.revision = Some(highest.saturating_add(1));
        return Newest::Renumber(Box::new(renumbered));
    }
    let collisions = set.status.as_ref().and_then(|status| status.collision_count);
    let hash = template::hash(&set.spec.template, collisions);
    let mut revision = ControllerRevision { data: RawExtension(wanted), ..ControllerRevision::default() };
    revision.metadata.name = Some(format!("{}-{hash}", set.metadata.name.as_deref().unwrap_or_default()));
    revision.metadata.namespace = set.metadata.namespace.clone();
    let mut labels = set.spec.template.metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(HASH_LABEL.to_owned(), hash);
    revision.metadata.labels = Some(labels);
    revision.metadata.annotations = set.metadata.annotations.clone();
    revision.metadata.owner_references = Some(vec![crate::owner::reference_to(set)]);
    revision.revision = Some(highest.saturating_add(1));
    Newest::Create(Box::new(revision))
}

/// The oldest revisions beyond the limit that no pod is of.
pub fn expired(
    set: &DaemonSet,
    revisions: &[Arc<ControllerRevision>],
    is_live: &dyn Fn(&str) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    let limit = set.spec.revision_history_limit.and_then(|limit| usize::try_from(limit).ok()).unwrap_or(10);
    let mut idle: Vec<Arc<ControllerRevision>> =
        revisions.iter().filter(|revision| !is_live(hash_of(revision))).cloned().collect();
    idle.sort_by_key(|revision| revision.revision);
    let excess = idle.len().saturating_sub(limit);
    idle.truncate(excess);
    idle
}

pub fn hash_of(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.as_ref().and_then(|labels| labels.get(HASH_LABEL)).map_or("", String::as_str)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    fn set(image: &str) -> DaemonSet {
        yaml(&format!(
            "{{ metadata: {{ name: d }}, spec: {{ selector: {{}}, revisionHistoryLimit: 1, template: {{ spec: {{ containers: [{{ name: c, image: {image} }}] }} }} }} }}"
        ))
    }

    fn create(set: &DaemonSet, revisions: &[Arc<ControllerRevision>]) -> Arc<ControllerRevision> {
        match newest(set, revisions) {
            Newest::Create(revision) => Arc::new(*revision),
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn templates_get_numbers_and_a_rollback_the_next() {
        let first = create(&set("v1"), &[]);
        let second = create(&set("v2"), std::slice::from_ref(&first));
        let both = [first.clone(), second.clone()];
        assert_eq!((first.revision, second.revision), (Some(1), Some(2)));
        assert!(matches!(newest(&set("v2"), &both), Newest::Current(found) if Arc::ptr_eq(&found, &second)));
        assert!(matches!(newest(&set("v1"), &both), Newest::Renumber(found) if found.revision == Some(3)));
        let third = create(&set("v3"), &both);
        let gone = expired(&set("v3"), &[first.clone(), second, third.clone()], &|hash| hash == hash_of(&third));
        assert!(gone.len() == 1 && Arc::ptr_eq(&gone[0], &first));
    }
}
