//! The list in `metadata.managedFields`: reading, writing, order and the cap on entries.

use serde_json::{Map, Value};

use super::set::FieldSet;

/// Upstream's `DefaultMaxUpdateManagers`: more Update entries than these are merged, the oldest first.
const MAX_UPDATE_MANAGERS: usize = 10;
const ANCIENT_CHANGES: &str = "ancient-changes";

// Ordered as upstream orders entries.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Operation {
    Apply,
    Update,
}

impl Operation {
    fn as_str(self) -> &'static str {
        match self {
            Operation::Apply => "Apply",
            Operation::Update => "Update",
        }
    }
}

/// One entry of managedFields.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Entry {
    pub manager: String,
    pub operation: Operation,
    pub api_version: String,
    /// RFC 3339 in UTC, whole seconds; such texts order as the times do.
    pub time: Option<String>,
    pub subresource: String,
    pub set: FieldSet,
}

impl Entry {
    /// Whether two entries are one manager's: for appliers, whatever the version.
    pub fn is_same_manager(&self, other: &Entry) -> bool {
        self.manager == other.manager
            && self.operation == other.operation
            && self.subresource == other.subresource
            && (self.operation == Operation::Apply || self.api_version == other.api_version)
    }

    /// The manager as conflicts name it: `"kubectl" using apps/v1`.
    pub fn describe(&self) -> String {
        let mut text = crate::field::quote(&self.manager);
        if !self.subresource.is_empty() {
            text.push_str(" with subresource ");
            text.push_str(&crate::field::quote(&self.subresource));
        }
        if self.operation == Operation::Update {
            text.push_str(" using ");
            text.push_str(&self.api_version);
        }
        text
    }

    fn into_value(self) -> Value {
        let mut entry = Map::new();
        let mut put = |key: &str, text: String| {
            if !text.is_empty() {
                entry.insert(key.to_owned(), Value::String(text));
            }
        };
        put("manager", self.manager);
        put("operation", self.operation.as_str().to_owned());
        put("apiVersion", self.api_version);
        put("time", self.time.unwrap_or_default());
        put("fieldsType", "FieldsV1".to_owned());
        put("subresource", self.subresource);
        entry.insert("fieldsV1".to_owned(), self.set.into_value());
        Value::Object(entry)
    }
}

/// Whether a list of owners can be read, as upstream's `ValidateManagedFields`; the fault if not.
pub fn validate(list: &Value) -> Result<(), String> {
    decode(list.clone(), |fields| FieldSet::parse(&fields)).map(|_| ())
}

/// Reads managedFields; `read_set` is [`FieldSet::parse`] for what a client sent, and a plain move for what was stored.
pub(super) fn decode(list: Value, read_set: impl Fn(Value) -> Result<FieldSet, String>) -> Result<Vec<Entry>, String> {
    let Value::Array(list) = list else { return Ok(Vec::new()) };
    let mut entries: Vec<Entry> = Vec::with_capacity(list.len());
    for (i, item) in list.into_iter().enumerate() {
        let Value::Object(mut item) = item else { return Err("expected a map".to_owned()) };
        let mut take = |key: &str| match item.remove(key) {
            Some(Value::String(text)) => text,
            _ => String::new(),
        };
        let operation = match take("operation").as_str() {
            "Apply" => Operation::Apply,
            "Update" => Operation::Update,
            _ => return Err("operation must be `Apply` or `Update`".to_owned()),
        };
        let api_version = take("apiVersion");
        if api_version.is_empty() {
            return Err("apiVersion must not be empty".to_owned());
        }
        match take("fieldsType").as_str() {
            "FieldsV1" => {}
            "" => return Err(format!("missing fieldsType in managed fields entry {i}")),
            other => {
                return Err(format!("invalid fieldsType {} in managed fields entry {i}", crate::field::quote(other)));
            }
        }
        let (manager, subresource) = (take("manager"), take("subresource"));
        let time = Some(take("time")).filter(|time| !time.is_empty());
        let set = match item.remove("fieldsV1") {
            Some(fields) if !fields.is_null() => read_set(fields)?,
            _ => FieldSet::default(),
        };
        let entry = Entry { manager, operation, api_version, time, subresource, set };
        match entries.iter_mut().find(|e| e.is_same_manager(&entry)) {
            Some(earlier) => *earlier = entry,
            None => entries.push(entry),
        }
    }
    Ok(entries)
}

/// The list to store; none if there is nothing to say.
pub(super) fn encode(mut entries: Vec<Entry>) -> Option<Value> {
    if entries.is_empty() {
        return None;
    }
    entries.sort_by(|a, b| order(a).cmp(&order(b)));
    Some(Value::Array(entries.into_iter().map(Entry::into_value).collect()))
}

fn order(entry: &Entry) -> (Operation, &Option<String>, &str, &str, &str) {
    (entry.operation, &entry.time, &entry.manager, &entry.api_version, &entry.subresource)
}

/// Merges the oldest Update entries into one `ancient-changes` for each version until few enough remain.
pub(super) fn cap_updates(entries: &mut Vec<Entry>) {
    let mut excess = entries.iter().filter(|e| e.operation == Operation::Update).count();
    if excess <= MAX_UPDATE_MANAGERS {
        return;
    }
    entries.sort_by(|a, b| order(a).cmp(&order(b)));
    let mut kept: Vec<Entry> = Vec::with_capacity(entries.len());
    // Per version, the place of the entry that the others of that version go into.
    let mut buckets: Vec<(String, usize)> = Vec::new();
    for entry in std::mem::take(entries) {
        if entry.operation != Operation::Update || excess <= MAX_UPDATE_MANAGERS {
            kept.push(entry);
            continue;
        }
        match buckets.iter().find(|(version, _)| *version == entry.api_version) {
            Some(&(_, place)) => {
                let bucket = &mut kept[place];
                ANCIENT_CHANGES.clone_into(&mut bucket.manager);
                bucket.subresource.clear();
                bucket.set.union(&entry.set);
                bucket.time = entry.time;
                excess -= 1;
            }
            None => {
                buckets.push((entry.api_version.clone(), kept.len()));
                kept.push(entry);
            }
        }
    }
    *entries = merged_twins(kept);
}

/// A bucket may have become the twin of an `ancient-changes` entry that was there before.
fn merged_twins(entries: Vec<Entry>) -> Vec<Entry> {
    let mut merged: Vec<Entry> = Vec::with_capacity(entries.len());
    for entry in entries {
        match merged.iter_mut().find(|e| e.is_same_manager(&entry)) {
            Some(twin) => {
                twin.set.union(&entry.set);
                twin.time = entry.time.max(twin.time.take());
            }
            None => merged.push(entry),
        }
    }
    merged
}
