//! Ownership by controller reference: who owns what by UID, adoption of orphans, release of what matches no longer
//! (upstream's ControllerRefManager). Deciding is pure; [`Claimer`] carries it out.

use std::collections::BTreeMap;
use std::sync::Arc;

use client::{Gate, Index, Informer, Kind, ObjectKey};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{LabelSelector, ObjectMeta, OwnerReference};
use kube::api::{Api, Patch, PatchParams};
use kube::core::{Selector, SelectorExt as _};
use serde_json::json;

use crate::error::{Error, Result};
use crate::write::MANAGER;

/// The reference of the one owner that manages the object.
pub fn controller_of(meta: &ObjectMeta) -> Option<&OwnerReference> {
    meta.owner_references.iter().flatten().find(|reference| reference.controller == Some(true))
}

/// The UID in the controller reference, or nothing.
pub fn controller_uid(meta: &ObjectMeta) -> Option<&str> {
    controller_of(meta).map(|reference| reference.uid.as_str())
}

/// The reference that makes `owner` the controller of an object.
pub fn reference_to<K: Kind>(owner: &K) -> OwnerReference {
    OwnerReference {
        api_version: K::api_version(&()).into_owned(),
        kind: K::kind(&()).into_owned(),
        name: owner.meta().name.clone().unwrap_or_default(),
        uid: owner.meta().uid.clone().unwrap_or_default(),
        controller: Some(true),
        block_owner_deletion: Some(true),
    }
}

/// A selector made from an object's; none if the object selects nothing.
pub fn selector_of(selector: &LabelSelector) -> Result<Selector> {
    Ok(selector.clone().try_into()?)
}

pub fn matches(selector: &Selector, labels: &Option<BTreeMap<String, String>>) -> bool {
    match labels {
        Some(labels) => selector.matches(labels),
        None => selector.matches(&BTreeMap::new()),
    }
}

/// The two indexes that finding an owner's objects takes: by controller UID, and orphans by namespace.
pub struct Owned<K> {
    by_controller: Index<K>,
    orphans: Index<K>,
}

impl<K> Clone for Owned<K> {
    fn clone(&self) -> Self {
        Owned { by_controller: self.by_controller.clone(), orphans: self.orphans.clone() }
    }
}

impl<K: Kind> Owned<K> {
    pub fn new(informer: &Informer<K>) -> Self {
        Owned {
            by_controller: informer.index("controllers/controller-uid", |object: &K| {
                controller_uid(object.meta()).map(str::to_owned).into_iter().collect()
            }),
            orphans: informer.index("controllers/orphan-namespace", |object: &K| match controller_of(object.meta()) {
                Some(_) => vec![],
                None => vec![object.meta().namespace.clone().unwrap_or_default()],
            }),
        }
    }

    pub fn by(&self, owner_uid: &str) -> Vec<Arc<K>> {
        self.by_controller.get(owner_uid)
    }

    pub fn orphans(&self, namespace: &str) -> Vec<Arc<K>> {
        self.orphans.get(namespace)
    }
}

/// What becomes of the objects that an owner might manage.
#[derive(Debug)]
pub struct Claim<K> {
    pub keep: Vec<Arc<K>>,
    pub adopt: Vec<Arc<K>>,
    pub release: Vec<Arc<K>>,
}

/// Sorts `candidates` (owned ones and orphans of the owner's namespace). An owner that is being deleted neither adopts
/// nor releases; an orphan that is being deleted is left alone.
pub fn claim<K: Kind>(owner: &ObjectMeta, selector: &Selector, candidates: Vec<Arc<K>>) -> Claim<K> {
    let mut claim = Claim { keep: vec![], adopt: vec![], release: vec![] };
    let owner_deleting = owner.deletion_timestamp.is_some();
    for object in candidates {
        let meta = object.meta();
        let matching = matches(selector, &meta.labels);
        match controller_uid(meta) {
            Some(uid) if Some(uid) != owner.uid.as_deref() => {}
            Some(_) if matching => claim.keep.push(object),
            Some(_) if !owner_deleting => claim.release.push(object),
            None if matching && !owner_deleting && meta.deletion_timestamp.is_none() => claim.adopt.push(object),
            Some(_) | None => {}
        }
    }
    claim
}

/// Carries claims of an owner of kind `O` on objects of kind `K` out.
pub struct Claimer<'a, O, K> {
    pub client: &'a kube::Client,
    pub owner: &'a O,
    pub gate: &'a Gate<K>,
    pub key: &'a ObjectKey,
}

impl<O, K> Claimer<'_, O, K>
where
    O: Kind + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
    K: Kind + kube::Resource<Scope = k8s_openapi::NamespaceResourceScope>,
{
    /// Returns the objects that the owner manages after adoption and release.
    pub async fn carry_out(&self, claim: Claim<K>) -> Result<Vec<Arc<K>>> {
        self.claim(claim, None).await
    }

    /// The same; what is adopted gets `finalizer`, what is released loses it.
    pub async fn carry_out_tracked(&self, claim: Claim<K>, finalizer: &str) -> Result<Vec<Arc<K>>> {
        self.claim(claim, Some(finalizer)).await
    }

    async fn claim(&self, claim: Claim<K>, finalizer: Option<&str>) -> Result<Vec<Arc<K>>> {
        let api: Api<K> = Api::namespaced(self.client.clone(), &self.key.0);
        let mut owned = claim.keep;
        if !claim.adopt.is_empty() {
            self.verify_owner().await?;
        }
        for object in claim.adopt {
            let mut patch =
                json!({ "metadata": { "uid": object.meta().uid, "ownerReferences": [reference_to(self.owner)] } });
            if let Some(finalizer) = finalizer {
                patch["metadata"]["finalizers"] = json!([finalizer]);
            }
            if let Some(adopted) = self.patch(&api, &object, patch).await? {
                owned.push(Arc::new(adopted));
            }
        }
        for object in claim.release {
            let reference = json!({ "$patch": "delete", "uid": self.owner.meta().uid });
            let mut patch = json!({ "metadata": { "uid": object.meta().uid, "ownerReferences": [reference] } });
            if let Some(finalizer) = finalizer {
                patch["metadata"]["$deleteFromPrimitiveList/finalizers"] = json!([finalizer]);
            }
            self.patch(&api, &object, patch).await?;
        }
        Ok(owned)
    }

    /// The cached owner may be gone or replaced by one of the same name: only the server knows.
    async fn verify_owner(&self) -> Result<()> {
        let api: Api<O> = Api::namespaced(self.client.clone(), &self.key.0);
        let live = client::found(api.get(&self.key.1).await)?;
        let same = live
            .is_some_and(|live| live.meta().uid == self.owner.meta().uid && live.meta().deletion_timestamp.is_none());
        if same { Ok(()) } else { Err(Error::Waiting("the owner's replacement or deletion to be seen")) }
    }

    /// None if the object is gone or no longer the one that was seen (its UID differs), which then concerns us no more.
    async fn patch(&self, api: &Api<K>, object: &K, patch: serde_json::Value) -> Result<Option<K>> {
        let name = object.meta().name.as_deref().unwrap_or_default();
        let params = PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() };
        match api.patch(name, &params, &Patch::Strategic(patch)).await {
            Ok(patched) => {
                self.gate.wrote(self.key, &patched);
                Ok(Some(patched))
            }
            Err(error) if client::is_not_found(&error) || client::is_invalid(&error) => Ok(None),
            // A differing UID is reported as a conflict; the informer will show what is there now.
            Err(error) => Err(error.into()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::{names, pods, yaml};

    #[test]
    fn objects_are_kept_adopted_released_or_left_alone() {
        let all = "
          { name: mine, labels: { app: web }, owner: u1 }
          { name: strayed, labels: { app: other }, owner: u1 }
          { name: foreign, labels: { app: web }, owner: u2 }
          { name: orphan, labels: { app: web } }
          { name: dying-orphan, labels: { app: web }, deleting: true }
          { name: unrelated, labels: { app: other } }";
        let selector: Selector = yaml::<LabelSelector>("matchLabels: { app: web }").try_into().expect("valid");
        let mut owner = ObjectMeta { uid: Some("u1".into()), ..ObjectMeta::default() };
        let sorted = claim(&owner, &selector, pods(all));
        assert_eq!(names(&sorted.keep), ["mine"]);
        assert_eq!(names(&sorted.adopt), ["orphan"]);
        assert_eq!(names(&sorted.release), ["strayed"]);

        owner.deletion_timestamp =
            Some(k8s_openapi::apimachinery::pkg::apis::meta::v1::Time(jiff::Timestamp::UNIX_EPOCH));
        let sorted = claim(&owner, &selector, pods(all));
        assert_eq!((sorted.keep.len(), sorted.adopt.len(), sorted.release.len()), (1, 0, 0));
    }
}
