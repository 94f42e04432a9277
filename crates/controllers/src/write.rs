//! How controllers write: field manager and preconditions in one place.

use kube::api::{DeleteParams, PatchParams, PostParams, Preconditions};

/// The field manager of upstream's controller manager.
pub const MANAGER: &str = "kube-controller-manager";

pub fn post() -> PostParams {
    PostParams { dry_run: false, field_manager: Some(MANAGER.to_owned()) }
}

pub fn patch() -> PatchParams {
    PatchParams { field_manager: Some(MANAGER.to_owned()), ..PatchParams::default() }
}

/// Deletes only the object that was seen, never a successor of the same name.
pub fn delete_seen<K: kube::Resource>(object: &K) -> DeleteParams {
    let preconditions = Preconditions { uid: object.meta().uid.clone(), resource_version: None };
    DeleteParams::default().preconditions(preconditions)
}
