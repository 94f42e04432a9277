//! Server-side apply and the tracking of field owners, as upstream's `managedfields` and `structured-merge-diff`.
//!
//! [`apply`] merges a configuration into an object; [`track_update`] records who changed what in any other write. Both are pure:
//! the clock comes in as text, and the object goes out with its `metadata.managedFields`.
//!
//! Must not know: HTTP, admission, storage, how a kind's versions are converted ([`Versions`] is asked).

mod filter;
mod managed;
mod mutation;
pub mod scale;
mod set;
mod typed;
mod validate;
mod versions;

#[cfg(test)]
mod other_versions;
#[cfg(test)]
mod tests;

use std::sync::LazyLock;

use serde_json::{Map, Value};

use crate::schema::{Schema, TypeId};
use crate::status::{Cause, Details, StatusError};
use crate::{field, meta};
use managed::{Entry, Operation};
use typed::{Delta, Typed};
use versions::Kind;

pub use filter::Filter;
pub use managed::validate as validate_managed_fields;
pub use mutation::merge_mutation;
pub use set::FieldSet;
pub use versions::{OneVersion, Unconverted, Versions};

/// The annotation that client-side apply keeps its last configuration in.
pub const LAST_APPLIED: &str = "kubectl.kubernetes.io/last-applied-configuration";
/// Upstream's `TotalAnnotationSizeLimitB`.
const ANNOTATIONS_MAX: usize = 256 * 1024;
const UNKNOWN_MANAGER: &str = "unknown";
const BEFORE_FIRST_APPLY: &str = "before-first-apply";
/// The one manager for which upstream carries client-side apply over.
const KUBECTL: &str = "kubectl";

/// Fields that belong to nobody.
static STRIPPED: LazyLock<FieldSet> = LazyLock::new(|| {
    FieldSet::of_fields(&[
        &["apiVersion"],
        &["kind"],
        &["metadata"],
        &["metadata", "name"],
        &["metadata", "namespace"],
        &["metadata", "creationTimestamp"],
        &["metadata", "selfLink"],
        &["metadata", "uid"],
        &["metadata", "clusterName"],
        &["metadata", "generation"],
        &["metadata", "managedFields"],
        &["metadata", "resourceVersion"],
    ])
});

/// Who writes, through which version and subresource, and when.
#[derive(Clone, Copy, Debug)]
pub struct Manager<'a> {
    /// `fieldManager`, or the user agent's first part.
    pub name: &'a str,
    /// `apps/v1`
    pub api_version: &'a str,
    /// Empty for the object itself.
    pub subresource: &'a str,
    /// The time of the request: RFC 3339 in UTC, whole seconds.
    pub now: &'a str,
    /// What this endpoint writes: changes in other fields are nobody's.
    pub reset: &'a Filter,
}

/// Upstream's `ValidateFieldManager`: at most 128 bytes, all printable.
pub fn validate_manager(name: &str, path: &field::Path) -> field::ErrorList {
    const MAX: usize = 128;
    let too_long = (name.len() > MAX).then(|| field::Error::too_long(path, MAX));
    let unprintable = name.char_indices().filter(|(_, c)| !field::is_printable(*c)).map(|(i, c)| {
        let detail = format!("invalid character U+{:04X} (at position {i})", u32::from(c));
        field::Error::invalid(path, &name.into(), &detail)
    });
    too_long.into_iter().chain(unprintable).collect()
}

/// A field that somebody else owns and the configuration would change.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Conflict {
    /// `"kubectl-client-side-apply" using apps/v1`
    pub manager: String,
    /// `.spec.replicas`
    pub path: String,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ApplyError {
    /// 400.
    #[error("{0}")]
    BadRequest(String),
    /// 409, a cause for each field. Ordered by manager.
    #[error("{}", conflict_message(.0))]
    Conflicts(Vec<Conflict>),
    /// The configuration does not fit the schema. Upstream answers 500.
    #[error("{0}")]
    Schema(String),
    /// Nothing is wrong; to be called again.
    #[error(transparent)]
    Unconverted(#[from] Unconverted),
}

impl ApplyError {
    pub fn status(&self) -> StatusError {
        let message = self.to_string();
        match self {
            Self::BadRequest(_) => StatusError::bad_request(message),
            Self::Schema(_) | Self::Unconverted(_) => StatusError::new(500, "", message),
            Self::Conflicts(conflicts) => {
                let causes = conflicts.iter().map(|conflict| Cause {
                    reason: "FieldManagerConflict".to_owned(),
                    message: format!("conflict with {}", conflict.manager),
                    field: conflict.path.clone(),
                });
                let details = Details { causes: causes.collect(), ..Details::default() };
                StatusError::new(409, "Conflict", message).with_details(details)
            }
        }
    }
}

fn conflict_message(conflicts: &[Conflict]) -> String {
    if let [conflict] = conflicts {
        return format!("Apply failed with 1 conflict: conflict with {}: {}", conflict.manager, conflict.path);
    }
    let mut lines: Vec<String> = Vec::new();
    let mut manager = None;
    for conflict in conflicts {
        if manager != Some(&conflict.manager) {
            manager = Some(&conflict.manager);
            lines.push(format!("conflicts with {}:", conflict.manager));
        }
        lines.push(format!("- {}", conflict.path));
    }
    format!("Apply failed with {} conflicts: {}", conflicts.len(), lines.join("\n"))
}

impl Manager<'_> {
    fn entry(&self, operation: Operation) -> Entry {
        Entry {
            manager: if self.name.is_empty() { UNKNOWN_MANAGER } else { self.name }.to_owned(),
            operation,
            api_version: self.api_version.to_owned(),
            time: Some(self.now.to_owned()),
            subresource: self.subresource.to_owned(),
            set: FieldSet::default(),
        }
    }
}

/// Records in `new` who owns its fields after a create (`old` is none), update or patch. `new` may carry managedFields of its
/// own: they stand for the old ones, and an empty list, or a list of one empty entry, ends the tracking.
///
/// If a converted object is lacking, `new` is as it was, for the next call.
pub fn track_update(
    schema: &Schema,
    root: TypeId,
    versions: &dyn Versions,
    old: Option<&Value>,
    new: &mut Value,
    manager: &Manager<'_>,
) -> Result<(), Unconverted> {
    let kind = Kind::new(schema, root, versions, manager);
    let given = meta::remove(new, "managedFields");
    let mut entries = entries_of_update(old, given, manager);
    if entries.is_empty() && old.is_some() {
        return Ok(());
    }
    let recorded = record_update(kind, old, new, &mut entries, manager);
    store(new, entries);
    recorded
}

fn entries_of_update(old: Option<&Value>, given: Option<Value>, manager: &Manager<'_>) -> Vec<Entry> {
    let live = old.and_then(|old| meta::at(old, &["metadata", "managedFields"]));
    let stored = || live.map(|live| decode_stored(live.clone())).unwrap_or_default();
    // A subresource's body says nothing about owners.
    let Some(given) = given.filter(|_| manager.subresource.is_empty()) else { return stored() };
    if Some(&given) == live {
        return decode_stored(given);
    }
    if is_reset(&given) {
        return Vec::new();
    }
    match managed::decode(given, |fields| FieldSet::parse(&fields)) {
        Ok(entries) if !entries.is_empty() => entries,
        _ => stored(),
    }
}

/// What cannot be read is dropped, as upstream does on updates.
fn decode_stored(list: Value) -> Vec<Entry> {
    managed::decode(list, |fields| Ok(FieldSet::stored(fields))).unwrap_or_default()
}

fn is_reset(list: &Value) -> bool {
    match list.as_array().map(Vec::as_slice) {
        Some([]) => true,
        Some([one]) => one.as_object().is_some_and(Map::is_empty),
        _ => false,
    }
}

/// On failure the entries are as they were, but for versions that are not known any more.
fn record_update(
    kind: Kind<'_>,
    old: Option<&Value>,
    new: &Value,
    entries: &mut Vec<Entry>,
    manager: &Manager<'_>,
) -> Result<(), Unconverted> {
    kind.reconcile(entries);
    let changes = kind.changes(old, new, entries, manager)?;
    for entry in entries.iter_mut() {
        changes.take_from(entry);
    }
    entries.retain(|entry| !entry.set.is_empty());
    let mut written = changes.into_written();
    written.subtract(&STRIPPED);
    if !written.is_empty() {
        let mut mine = manager.entry(Operation::Update);
        mine.set = written;
        match entries.iter_mut().find(|entry| entry.is_same_manager(&mine)) {
            Some(entry) => {
                entry.set.absorb(mine.set);
                entry.time = mine.time;
            }
            None => entries.push(mine),
        }
    }
    managed::cap_updates(entries);
    Ok(())
}

/// The difference without what the endpoint resets.
fn compare(typed: Typed<'_>, old: Option<&Value>, new: &Value, reset: &Filter) -> Delta {
    let nothing = Value::Object(Map::new());
    let mut delta = typed.compare(old.unwrap_or(&nothing), new);
    for set in [&mut delta.removed, &mut delta.modified, &mut delta.added] {
        set.remove(&["f:metadata", "f:managedFields"]);
        reset.cut(set);
    }
    delta
}

fn store(object: &mut Value, entries: Vec<Entry>) {
    match managed::encode(entries) {
        Some(list) => {
            meta::metadata_mut(object).insert("managedFields".to_owned(), list);
        }
        None => {
            meta::remove(object, "managedFields");
        }
    }
}

/// Merges `config` into the live object (none: it is created) and answers with the result, which is yet to be defaulted and
/// validated. Without `force`, changing what others own fails.
pub fn apply(
    schema: &Schema,
    root: TypeId,
    versions: &dyn Versions,
    live: Option<&Value>,
    config: &Value,
    manager: &Manager<'_>,
    force: bool,
) -> Result<Value, ApplyError> {
    let kind = Kind::new(schema, root, versions, manager);
    let typed = kind.typed;
    check_config(typed, config, manager)?;
    let nothing = Value::Object(Map::new());
    let base = live.unwrap_or(&nothing);
    let mut merged = base.clone();
    let mut entries = meta::remove(&mut merged, "managedFields").map(decode_stored).unwrap_or_default();
    if entries.is_empty() && live.is_some() {
        let before = Manager { name: BEFORE_FIRST_APPLY, ..*manager };
        record_update(kind, None, &merged, &mut entries, &before)?;
    }
    kind.reconcile(&mut entries);

    let mut mine = manager.entry(Operation::Apply);
    mine.set = typed.field_set(config);
    manager.reset.cut(&mut mine.set);
    let place = entries.iter().position(|entry| entry.is_same_manager(&mine));
    let last = place.map(|place| entries.swap_remove(place));

    typed.merge(&mut merged, config);
    if let Some(last) = &last {
        let mut unapplied = last.set.clone();
        unapplied.subtract(&mine.set);
        if !unapplied.is_empty() || last.api_version != mine.api_version {
            let owners: Vec<&Entry> = entries.iter().chain([&mine]).collect();
            merged = kind.prune(merged, last, &owners)?;
        }
    }
    yield_fields(kind, base, &merged, &mut entries, manager, force)?;

    mine.set.subtract(&STRIPPED);
    // Who only comes to share what is there already has changed nothing, at no time.
    if live.is_some() && is_same_otherwise(base, &merged) {
        mine.time = last.and_then(|last| last.time);
    }
    entries.push(mine);
    entries.retain(|entry| !entry.set.is_empty());
    if manager.name == KUBECTL {
        update_last_applied(&mut merged, config);
    }
    store(&mut merged, entries);
    Ok(merged)
}

/// Whether an applied configuration fits the schema as it was sent, before anything makes it canonical: an unknown field is an error
/// here, whatever the request asks of field validation.
pub fn fits(schema: &Schema, root: TypeId, config: &Value) -> Result<(), ApplyError> {
    check_fields(Typed { schema, root }, config)
}

fn check_config(typed: Typed<'_>, config: &Value, manager: &Manager<'_>) -> Result<(), ApplyError> {
    let version = meta::str_at(config, &["apiVersion"]);
    if version != manager.api_version {
        return Err(ApplyError::BadRequest(format!(
            "Incorrect version specified in apply patch. Specified patch version: {version}, expected: {}",
            manager.api_version
        )));
    }
    if meta::at(config, &["metadata", "managedFields"]).is_some_and(|v| !v.is_null()) {
        return Err(ApplyError::BadRequest("metadata.managedFields must be nil".to_owned()));
    }
    check_fields(typed, config)
}

fn check_fields(typed: Typed<'_>, config: &Value) -> Result<(), ApplyError> {
    typed.validate(config).map_err(|faults| {
        let (namespace, name) = (meta::namespace(config), meta::name(config));
        let (version, kind) = (meta::str_at(config, &["apiVersion"]), meta::str_at(config, &["kind"]));
        // The core group has no name, and upstream prints it all the same.
        let slash = if version.contains('/') { "" } else { "/" };
        ApplyError::Schema(format!(
            "failed to create typed patch object ({namespace}/{name}; {slash}{version}, Kind={kind}): {faults}"
        ))
    })
}

/// Takes from the other managers what the merge changed, or fails with the conflicts.
fn yield_fields(
    kind: Kind<'_>,
    base: &Value,
    merged: &Value,
    entries: &mut [Entry],
    manager: &Manager<'_>,
    force: bool,
) -> Result<(), ApplyError> {
    let changes = kind.changes(Some(base), merged, entries, manager)?;
    if !force {
        let mut contested: Vec<(&Entry, FieldSet)> =
            entries.iter().map(|entry| (entry, changes.contested(entry))).filter(|(_, set)| !set.is_empty()).collect();
        if manager.name == KUBECTL && !contested.is_empty() {
            excuse_client_side_apply(kind.typed, base, manager, &mut contested);
        }
        if !contested.is_empty() {
            contested.sort_by(|(a, _), (b, _)| (&a.manager, a.operation).cmp(&(&b.manager, b.operation)));
            let each = |(entry, set): (&Entry, FieldSet)| {
                let manager = entry.describe();
                set.paths().into_iter().map(move |path| Conflict { manager: manager.clone(), path }).collect::<Vec<_>>()
            };
            return Err(ApplyError::Conflicts(contested.into_iter().flat_map(each).collect()));
        }
    }
    for entry in entries {
        changes.take_from(entry);
    }
    Ok(())
}

/// Upstream's `lastAppliedManager`: what client-side apply last set, and nobody changed since, kubectl may take over.
fn excuse_client_side_apply(
    typed: Typed<'_>,
    live: &Value,
    manager: &Manager<'_>,
    contested: &mut Vec<(&Entry, FieldSet)>,
) {
    let Some(last) = meta::annotation(live, LAST_APPLIED).and_then(|text| serde_json::from_str::<Value>(text).ok())
    else {
        return;
    };
    if meta::str_at(&last, &["apiVersion"]) != manager.api_version || typed.validate(&last).is_err() {
        return;
    }
    let mut allowed = typed.field_set(&last);
    let delta = typed.compare(&last, live);
    for set in [&delta.modified, &delta.added, &delta.removed] {
        allowed.subtract(set);
    }
    for (_, set) in contested.iter_mut() {
        set.subtract(&allowed);
    }
    contested.retain(|(_, set)| !set.is_empty());
}

/// Upstream's `lastAppliedUpdater`: keeps the annotation of client-side apply in step, where there is one.
fn update_last_applied(object: &mut Value, config: &Value) {
    if meta::annotation(object, LAST_APPLIED).is_none_or(str::is_empty) {
        return;
    }
    let mut config = config.clone();
    if let Some(Value::Object(annotations)) = config.pointer_mut("/metadata/annotations") {
        annotations.remove(LAST_APPLIED);
    }
    let Some(Value::Object(annotations)) = object.pointer_mut("/metadata/annotations") else { return };
    annotations.insert(LAST_APPLIED.to_owned(), Value::String(format!("{config}\n")));
    let size: usize = annotations.iter().map(|(k, v)| k.len() + v.as_str().map_or(0, str::len)).sum();
    if size > ANNOTATIONS_MAX {
        annotations.remove(LAST_APPLIED);
    }
}

/// Upstream's `IgnoreManagedFieldsTimestampsTransformer`: where nothing but times in managedFields differs from the old object, the
/// old times stay, so that the write is none.
pub fn keep_timestamps(old: &Value, new: &mut Value) {
    let (Some(before), Some(after)) = (managers(old), managers(new)) else { return };
    if before.len() != after.len() || before == after {
        return;
    }
    let known = |entry: &Value| before.iter().any(|b| is_same_but_time(b, entry));
    if after.iter().all(known) && is_same_otherwise(old, new) {
        let kept = before.clone();
        meta::metadata_mut(new).insert("managedFields".to_owned(), Value::Array(kept));
    }
}

fn managers(object: &Value) -> Option<&Vec<Value>> {
    meta::at(object, &["metadata", "managedFields"])?.as_array()
}

fn is_same_but_time(left: &Value, right: &Value) -> bool {
    match (left, right) {
        (Value::Object(left), Value::Object(right)) => {
            left.iter().filter(|(key, _)| *key != "time").eq(right.iter().filter(|(key, _)| *key != "time"))
        }
        _ => left == right,
    }
}

/// Equal but for managedFields.
fn is_same_otherwise(old: &Value, new: &Value) -> bool {
    let keys =
        |object: &Value| object.as_object().map_or(0, |map| map.len() - usize::from(map.contains_key("managedFields")));
    let all_in = |left: &Value, right: &Value, skipped: &str| {
        let fields = left.as_object().into_iter().flatten();
        keys(left) == keys(right) && fields.filter(|(key, _)| *key != skipped).all(|(key, v)| right.get(key) == Some(v))
    };
    let (old_metadata, new_metadata) = (old.get("metadata"), new.get("metadata"));
    all_in(old, new, "metadata")
        && match (old_metadata, new_metadata) {
            (Some(old), Some(new)) => all_in(old, new, "managedFields"),
            _ => old_metadata == new_metadata,
        }
}
