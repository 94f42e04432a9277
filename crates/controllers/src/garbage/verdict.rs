//! What becomes of an object, given what the server says of its owners. Pure.

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{ObjectMeta, OwnerReference};

use super::graph::{FOREGROUND, ORPHAN};

/// The state of one owner as the server tells it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OwnerState {
    /// Exists, and is not waiting for its dependents.
    Solid,
    /// Does not exist, or another object has its name.
    Absent,
    /// Being deleted in the foreground.
    WaitingForDependents,
}

/// Reads the state of the owner `reference` off the object that has its name now.
pub fn owner_state(reference: &OwnerReference, live: Option<&ObjectMeta>) -> OwnerState {
    let Some(live) = live.filter(|live| live.uid.as_deref() == Some(&reference.uid)) else { return OwnerState::Absent };
    let waits = live.deletion_timestamp.is_some() && live.finalizers.iter().flatten().any(|f| f == FOREGROUND);
    if waits { OwnerState::WaitingForDependents } else { OwnerState::Solid }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Policy {
    Background,
    Foreground,
    Orphan,
}

#[derive(Debug, PartialEq)]
pub enum Verdict {
    Keep,
    /// Somebody still owns it: these references remain.
    DropReferences(Vec<OwnerReference>),
    Delete(Policy),
    /// As [`Policy::Foreground`], but first its own references stop blocking, since its dependents wait in a circle.
    UnblockAndDelete,
}

/// `owners` are the object's references with their states. `dependents` tells whether it has any, and
/// `circular` whether one of them is itself being deleted in the foreground.
pub fn judge(live: &ObjectMeta, owners: &[(OwnerReference, OwnerState)], dependents: bool, circular: bool) -> Verdict {
    if owners.is_empty() {
        return Verdict::Keep;
    }
    let any = |state| owners.iter().any(|(_, owner)| *owner == state);
    if any(OwnerState::Solid) {
        let solid = owners.iter().filter(|(_, state)| *state == OwnerState::Solid);
        let remaining: Vec<OwnerReference> = solid.map(|(reference, _)| reference.clone()).collect();
        return if remaining.len() == owners.len() { Verdict::Keep } else { Verdict::DropReferences(remaining) };
    }
    if any(OwnerState::WaitingForDependents) && dependents {
        return if circular { Verdict::UnblockAndDelete } else { Verdict::Delete(Policy::Foreground) };
    }
    // Absent owners, or ones that wait for this object alone; how it is deleted is its own affair.
    let has = |finalizer: &str| live.finalizers.iter().flatten().any(|present| present == finalizer);
    Verdict::Delete(if has(ORPHAN) {
        Policy::Orphan
    } else if has(FOREGROUND) {
        Policy::Foreground
    } else {
        Policy::Background
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn judged(owners: &[OwnerState], finalizers: &[&str], dependents: bool, circular: bool) -> String {
        let live = ObjectMeta {
            finalizers: Some(finalizers.iter().map(|f| f.to_string()).collect()),
            ..ObjectMeta::default()
        };
        let reference = |n: usize| OwnerReference { uid: n.to_string(), ..OwnerReference::default() };
        let owners: Vec<_> = owners.iter().enumerate().map(|(n, state)| (reference(n), *state)).collect();
        match judge(&live, &owners, dependents, circular) {
            Verdict::DropReferences(rest) => {
                format!("keep {}", rest.iter().map(|o| o.uid.as_str()).collect::<String>())
            }
            other => format!("{other:?}"),
        }
    }

    #[test]
    fn one_solid_owner_is_enough() {
        use OwnerState::{Absent, Solid, WaitingForDependents};
        assert_eq!(judged(&[], &[], true, false), "Keep");
        assert_eq!(judged(&[Solid], &[], false, false), "Keep");
        assert_eq!(judged(&[Absent, Solid, WaitingForDependents], &[], false, false), "keep 1");
        assert_eq!(judged(&[Absent], &[], true, false), "Delete(Background)");
        assert_eq!(judged(&[Absent], &[ORPHAN], true, false), "Delete(Orphan)");
        assert_eq!(judged(&[Absent], &[FOREGROUND], true, false), "Delete(Foreground)");
        assert_eq!(judged(&[WaitingForDependents], &[], false, false), "Delete(Background)");
        assert_eq!(judged(&[WaitingForDependents, Absent], &[], true, false), "Delete(Foreground)");
        assert_eq!(judged(&[WaitingForDependents], &[], true, true), "UnblockAndDelete");
    }

    #[test]
    fn an_owner_of_the_same_name_is_another_object() {
        let reference = OwnerReference { uid: "1".into(), ..OwnerReference::default() };
        let live = |uid: &str| ObjectMeta { uid: Some(uid.into()), ..ObjectMeta::default() };
        assert_eq!(owner_state(&reference, None), OwnerState::Absent);
        assert_eq!(owner_state(&reference, Some(&live("2"))), OwnerState::Absent);
        assert_eq!(owner_state(&reference, Some(&live("1"))), OwnerState::Solid);
        let mut waiting = live("1");
        waiting.finalizers = Some(vec![FOREGROUND.into()]);
        assert_eq!(owner_state(&reference, Some(&waiting)), OwnerState::Solid, "not being deleted");
        waiting.deletion_timestamp = Some(crate::fixture::ago(1));
        assert_eq!(owner_state(&reference, Some(&waiting)), OwnerState::WaitingForDependents);
    }
}
