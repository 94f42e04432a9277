//! The history of a pod template as ControllerRevisions, for rollback: of daemon sets and stateful sets.
//!
//! What is needed is planned by pure functions; [`Keeper`] carries it out. Must not know: pods.

use std::sync::Arc;

use client::{Gate, Kind, ObjectKey};
use k8s_openapi::api::apps::v1::{ControllerRevision, DaemonSet, StatefulSet};
use k8s_openapi::api::core::v1::PodTemplateSpec;
use k8s_openapi::apimachinery::pkg::runtime::RawExtension;
use kube::api::Api;
use serde_json::{Value, json};

use crate::error::Result;
use crate::owner::controller_uid;
use crate::{template, write};

/// A kind whose template has a history.
pub trait Revised: Kind {
    /// The label by which a revision tells its hash.
    const HASH_LABEL: &'static str;

    fn template(&self) -> &PodTemplateSpec;
    /// How often the name of a new revision was found taken.
    fn collisions(&self) -> Option<i32>;
    /// Revisions kept that no pod is of.
    fn limit(&self) -> Option<i32>;
}

impl Revised for DaemonSet {
    const HASH_LABEL: &'static str = "controller-revision-hash";

    fn template(&self) -> &PodTemplateSpec {
        &self.spec.template
    }

    fn collisions(&self) -> Option<i32> {
        self.status.as_ref()?.collision_count
    }

    fn limit(&self) -> Option<i32> {
        self.spec.revision_history_limit
    }
}

impl Revised for StatefulSet {
    const HASH_LABEL: &'static str = "controller.kubernetes.io/hash";

    fn template(&self) -> &PodTemplateSpec {
        &self.spec.template
    }

    fn collisions(&self) -> Option<i32> {
        self.status.as_ref()?.collision_count
    }

    fn limit(&self) -> Option<i32> {
        self.spec.revision_history_limit
    }
}

/// The patch that restores the template, as `kubectl rollout undo` applies it.
fn data_of<O: Revised>(set: &O) -> Value {
    let mut template = serde_json::to_value(set.template()).expect("API types serialise to JSON");
    template["$patch"] = json!("replace");
    json!({ "spec": { "template": template } })
}

/// The template that a revision keeps; none if its data is not ours.
pub fn template_of(revision: &ControllerRevision) -> Option<PodTemplateSpec> {
    let mut template = revision.data.0.pointer("/spec/template")?.clone();
    template.as_object_mut()?.remove("$patch");
    serde_json::from_value(template).ok()
}

pub fn name_of(revision: &ControllerRevision) -> &str {
    revision.metadata.name.as_deref().unwrap_or_default()
}

pub fn hash_of<O: Revised>(revision: &ControllerRevision) -> &str {
    revision.metadata.labels.as_ref().and_then(|labels| labels.get(O::HASH_LABEL)).map_or("", String::as_str)
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
pub fn newest<O: Revised>(set: &O, revisions: &[Arc<ControllerRevision>]) -> Newest {
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
    let hash = template::hash(set.template(), set.collisions());
    let meta = set.meta();
    let mut revision = ControllerRevision { data: RawExtension(wanted), ..ControllerRevision::default() };
    revision.metadata.name = Some(format!("{}-{hash}", meta.name.as_deref().unwrap_or_default()));
    revision.metadata.namespace = meta.namespace.clone();
    let mut labels = set.template().metadata.as_ref().and_then(|meta| meta.labels.clone()).unwrap_or_default();
    labels.insert(O::HASH_LABEL.to_owned(), hash);
    revision.metadata.labels = Some(labels);
    revision.metadata.annotations = meta.annotations.clone();
    revision.metadata.owner_references = Some(vec![crate::owner::reference_to(set)]);
    revision.revision = Some(highest.saturating_add(1));
    Newest::Create(Box::new(revision))
}

/// The oldest revisions beyond the limit that are not live.
pub fn expired<O: Revised>(
    set: &O,
    revisions: &[Arc<ControllerRevision>],
    is_live: &dyn Fn(&ControllerRevision) -> bool,
) -> Vec<Arc<ControllerRevision>> {
    // A negative limit keeps all.
    let limit = usize::try_from(set.limit().unwrap_or(10)).unwrap_or(usize::MAX);
    let mut idle: Vec<Arc<ControllerRevision>> =
        revisions.iter().filter(|revision| !is_live(revision)).cloned().collect();
    idle.sort_by_key(|revision| revision.revision);
    let excess = idle.len().saturating_sub(limit);
    idle.truncate(excess);
    idle
}

/// What came of looking for the revision of the present template.
#[derive(Debug)]
pub enum Found {
    Revision(Arc<ControllerRevision>),
    /// Another object has its name: the set's status has to count one more collision.
    Taken,
    /// Its name is that of a revision of ours that the cache did not show: look again.
    Late,
    /// The namespace is being deleted.
    Ended,
}

/// Writes the history of one set.
pub struct Keeper<'a, O> {
    pub client: &'a kube::Client,
    pub set: &'a O,
    pub gate: &'a Gate<ControllerRevision>,
    pub key: &'a ObjectKey,
}

impl<O: Revised> Keeper<'_, O> {
    fn api(&self) -> Api<ControllerRevision> {
        Api::namespaced(self.client.clone(), &self.key.0)
    }

    /// Makes sure that the present template has a revision, and that it is the newest.
    pub async fn ensure(&self, revisions: &[Arc<ControllerRevision>]) -> Result<Found> {
        match newest(self.set, revisions) {
            Newest::Current(revision) => Ok(Found::Revision(revision)),
            Newest::Renumber(revision) => {
                let written = self.api().replace(name_of(&revision), &write::post(), &revision).await?;
                self.gate.wrote(self.key, &written);
                Ok(Found::Revision(Arc::new(written)))
            }
            Newest::Create(revision) => match self.api().create(&write::post(), &revision).await {
                Ok(created) => {
                    self.gate.wrote(self.key, &created);
                    Ok(Found::Revision(Arc::new(created)))
                }
                Err(error) if client::is_namespace_terminating(&error) => Ok(Found::Ended),
                Err(error) if client::is_already_exists(&error) => self.look_at(&revision).await,
                Err(error) => Err(error.into()),
            },
        }
    }

    /// The name exists. If the revision is ours the cache was late; if not, the next hash counts the collision.
    async fn look_at(&self, wanted: &ControllerRevision) -> Result<Found> {
        let Some(existing) = client::found(self.api().get(name_of(wanted)).await)? else { return Ok(Found::Late) };
        self.gate.wrote(self.key, &existing);
        let ours = controller_uid(&existing.metadata) == self.set.meta().uid.as_deref();
        Ok(if ours && existing.data == wanted.data { Found::Late } else { Found::Taken })
    }

    pub async fn delete(&self, expired: &[Arc<ControllerRevision>]) -> Result<()> {
        for revision in expired {
            let params = write::delete_seen(&**revision);
            if client::found(self.api().delete(name_of(revision), &params).await)?.is_some() {
                self.gate.deleted(self.key, revision);
            }
        }
        Ok(())
    }
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
        let live = |revision: &ControllerRevision| name_of(revision) == name_of(&third);
        let gone = expired(&set("v3"), &[first.clone(), second, third.clone()], &live);
        assert!(gone.len() == 1 && Arc::ptr_eq(&gone[0], &first));
    }

    #[test]
    fn a_revision_gives_its_template_back() {
        let set = set("v1");
        assert_eq!(template_of(&create(&set, &[])).as_ref(), Some(&set.spec.template));
    }

    #[test]
    fn a_collision_gives_another_name() {
        let mut set = set("v1");
        let first = create(&set, &[]);
        set.status.get_or_insert_default().collision_count = Some(1);
        assert_ne!(name_of(&first), name_of(&create(&set, &[])));
    }
}
