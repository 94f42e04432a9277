//! Who owns the replicas of an object, as its `scale` subresource shows it and back; upstream's `ScaleHandler`.

use serde_json::{Value, json};

use super::managed::{self, Entry};
use super::set::FieldSet;
use crate::meta;

/// `autoscaling/v1`, which every Scale is of.
pub const SCALE_VERSION: &str = "autoscaling/v1";

/// Where each version of a kind keeps its replicas: the path's names, or none if that version has no `scale`.
pub type ReplicasPaths = Vec<(String, Option<Vec<String>>)>;

/// The owners of an object's replicas, as those of its Scale.
pub fn owners_of_scale(object: &Value, paths: &ReplicasPaths) -> Option<Value> {
    let entries = stored(object).into_iter().filter_map(|entry| {
        let (_, path) = paths.iter().find(|(version, _)| *version == entry.api_version)?;
        entry.set.has(path.as_deref()?).then(|| Entry {
            api_version: SCALE_VERSION.to_owned(),
            set: replicas(),
            ..entry
        })
    });
    managed::encode(entries.collect())
}

/// The owners of an object after a write through its Scale, whose owners are `scale`'s by now. `api_version` is the version that the
/// write spoke of.
pub fn owners_of_parent(object: &Value, scale: &Value, api_version: &str, paths: &ReplicasPaths) -> Option<Value> {
    let mut scaled = stored(scale);
    let mut entries = Vec::new();
    for mut entry in stored(object) {
        let Some((_, path)) = paths.iter().find(|(version, _)| *version == entry.api_version) else { continue };
        if let Some(path) = path.as_deref().filter(|path| entry.set.has(path)) {
            let is_same = |other: &Entry| is_same_in_scale(&entry, other);
            match scaled.iter().position(is_same) {
                Some(place) => {
                    scaled.swap_remove(place);
                }
                None => {
                    entry.set.subtract(&FieldSet::of_path(path));
                    if entry.set.is_empty() {
                        continue;
                    }
                }
            }
        }
        entries.push(entry);
    }
    let path = paths.iter().find(|(version, _)| version == api_version).and_then(|(_, path)| path.as_deref());
    for entry in scaled.into_iter().filter(|entry| entry.set.has(&["spec", "replicas"])) {
        let set = path.map(FieldSet::of_path).unwrap_or_default();
        // Upstream looks the time up among the object's own owners, where a new one is not.
        entries.push(Entry { api_version: api_version.to_owned(), set, time: None, ..entry });
    }
    managed::encode(entries)
}

/// Updaters keep their name in a Scale, and get its version.
fn is_same_in_scale(parent: &Entry, scale: &Entry) -> bool {
    parent.manager == scale.manager && parent.operation == scale.operation && parent.subresource == scale.subresource
}

fn stored(object: &Value) -> Vec<Entry> {
    let list = meta::at(object, &["metadata", "managedFields"]).cloned().unwrap_or_else(|| json!([]));
    managed::decode(list, |fields| FieldSet::parse(&fields)).unwrap_or_default()
}

fn replicas() -> FieldSet {
    FieldSet::of_path(&["spec", "replicas"])
}
