//! Who owns the claims of a stateful set: nobody if they are kept, the set if they go with it, the pod if it is one too
//! many and its claims go with it (`spec.persistentVolumeClaimRetentionPolicy`). Pure.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::api::core::v1::{PersistentVolumeClaim, Pod};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::identity::{is_wanted, ordinal_of};
use crate::owner::reference_to;

/// Whether claims go with pods that are scaled away, and with the set.
fn goes_with(set: &StatefulSet) -> (bool, bool) {
    let policy = set.spec.persistent_volume_claim_retention_policy.as_ref();
    let deletes = |when: Option<&String>| when.is_some_and(|when| when == "Delete");
    (
        deletes(policy.and_then(|policy| policy.when_scaled.as_ref())),
        deletes(policy.and_then(|policy| policy.when_deleted.as_ref())),
    )
}

/// Whether the set and the pod should own the pod's claims.
fn wanted(set: &StatefulSet, pod: &Pod) -> (bool, bool) {
    let surplus = ordinal_of(set, pod).is_none_or(|ordinal| !is_wanted(set, ordinal));
    match goes_with(set) {
        (true, with_set) if surplus => (false, with_set || surplus),
        (_, with_set) => (with_set, false),
    }
}

fn is_of(reference: &OwnerReference, kind: &str, meta: &ObjectMeta) -> bool {
    reference.kind == kind && Some(&reference.uid) == meta.uid.as_ref()
}

/// The claim with the owners that it should have; none if it has them. Claims that somebody else controls are left alone.
pub fn corrected(set: &StatefulSet, pod: &Pod, claim: &PersistentVolumeClaim) -> Option<PersistentVolumeClaim> {
    let references = claim.metadata.owner_references.clone().unwrap_or_default();
    let ours = |reference: &OwnerReference| {
        is_of(reference, "StatefulSet", &set.metadata) || is_of(reference, "Pod", &pod.metadata)
    };
    if references.iter().any(|reference| reference.controller == Some(true) && !ours(reference)) {
        return None;
    }
    let (by_set, by_pod) = wanted(set, pod);
    let is_right = |kind: &str, meta: &ObjectMeta, wanted: bool| {
        let mut found = references.iter().filter(|reference| is_of(reference, kind, meta));
        if wanted { found.any(|reference| reference.controller == Some(true)) } else { found.next().is_none() }
    };
    if is_right("StatefulSet", &set.metadata, by_set) && is_right("Pod", &pod.metadata, by_pod) {
        return None;
    }
    let mut owners: Vec<OwnerReference> = references.iter().filter(|reference| !ours(reference)).cloned().collect();
    owners.extend(by_set.then(|| reference_to(set)));
    owners.extend(by_pod.then(|| reference_to(pod)));
    let mut claim = claim.clone();
    claim.metadata.owner_references = Some(owners).filter(|owners| !owners.is_empty());
    Some(claim)
}

/// Whether a claim still belongs to an earlier pod of this name, with which it is about to go.
pub fn is_stale(set: &StatefulSet, pod_name: &str, claim: &PersistentVolumeClaim) -> bool {
    let earlier = |reference: &OwnerReference| reference.kind == "Pod" && reference.name == pod_name;
    goes_with(set).0 && claim.metadata.owner_references.iter().flatten().any(earlier)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fixture::yaml;

    fn set(scaled: &str, deleted: &str) -> StatefulSet {
        yaml(&format!(
            "{{ metadata: {{ name: web, uid: s }}, spec: {{ selector: {{}}, replicas: 1, template: {{}}, persistentVolumeClaimRetentionPolicy: {{ whenScaled: {scaled}, whenDeleted: {deleted} }} }} }}"
        ))
    }

    fn owners(claim: &PersistentVolumeClaim) -> String {
        let kinds = claim.metadata.owner_references.iter().flatten().map(|owner| owner.kind.as_str());
        kinds.collect::<Vec<_>>().join(",")
    }

    #[test]
    fn claims_are_owned_by_what_they_go_with() {
        let wanted: Pod = yaml("{ metadata: { name: web-0, uid: p0 } }");
        let surplus: Pod = yaml("{ metadata: { name: web-1, uid: p1 } }");
        for (scaled, deleted, of_wanted, of_surplus) in [
            ("Retain", "Retain", "", ""),
            ("Retain", "Delete", "StatefulSet", "StatefulSet"),
            ("Delete", "Retain", "", "Pod"),
            ("Delete", "Delete", "StatefulSet", "Pod"),
        ] {
            let set = set(scaled, deleted);
            for (pod, owned_by) in [(&wanted, of_wanted), (&surplus, of_surplus)] {
                for before in [vec![], vec![reference_to(&set)], vec![reference_to(pod)]] {
                    let mut claim = PersistentVolumeClaim::default();
                    claim.metadata.owner_references = Some(before);
                    let after = corrected(&set, pod, &claim).unwrap_or(claim);
                    assert_eq!(owners(&after), owned_by, "{scaled} {deleted}");
                    assert_eq!(corrected(&set, pod, &after), None, "settled");
                }
            }
        }
    }

    #[test]
    fn what_others_control_is_left_alone() {
        let pod: Pod = yaml("{ metadata: { name: web-0, uid: p0 } }");
        let claim: PersistentVolumeClaim = yaml(
            "{ metadata: { ownerReferences: [{ apiVersion: v1, kind: Backup, name: b, uid: x, controller: true }] } }",
        );
        assert_eq!(corrected(&set("Retain", "Delete"), &pod, &claim), None);
        let old: PersistentVolumeClaim =
            yaml("{ metadata: { ownerReferences: [{ apiVersion: v1, kind: Pod, name: web-0, uid: gone }] } }");
        assert!(is_stale(&set("Delete", "Retain"), "web-0", &old));
        assert!(!is_stale(&set("Retain", "Retain"), "web-0", &old));
    }
}
