//! Owners who wrote in another version of the kind: what a change means in their version, and what they keep when an applier gives
//! fields up.
//!
//! Conversion may be a webhook's work, so it is asked for: a call that lacks a converted object fails with [`Unconverted`], and is
//! repeated once whoever called has it.

use serde_json::{Map, Value};

use super::filter::Filter;
use super::managed::Entry;
use super::set::{FieldSet, Node, attach, child, children, has_children, is_member, node};
use super::typed::{Delta, Form, Type, Typed, is_blank};
use super::{Manager, compare};
use crate::meta;
use crate::schema::{Schema, TypeId};

/// An object that has to be in another version before the books can be kept.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the object is not there in version {to}")]
pub struct Unconverted {
    pub object: Box<Value>,
    /// `example.com/v1`
    pub to: String,
}

/// The versions of a kind besides the one that a request speaks.
pub trait Versions {
    /// The schema of a version. None if there is no such version (any more): what was owned in it is forgotten.
    fn schema(&self, api_version: &str) -> Option<(&Schema, TypeId)>;

    /// What the request's endpoint writes, in terms of that version.
    fn filter(&self, api_version: &str) -> &Filter;

    /// `object`, whose version is its `apiVersion`, in another version.
    fn convert(&self, object: &Value, to: &str) -> Result<Value, Unconverted>;
}

/// A kind that is known in the request's version only.
pub struct OneVersion;

impl Versions for OneVersion {
    fn schema(&self, _api_version: &str) -> Option<(&Schema, TypeId)> {
        None
    }

    fn filter(&self, _api_version: &str) -> &Filter {
        static ALL: std::sync::LazyLock<Filter> = std::sync::LazyLock::new(Filter::all);
        &ALL
    }

    fn convert(&self, object: &Value, to: &str) -> Result<Value, Unconverted> {
        Err(Unconverted { object: Box::new(object.clone()), to: to.to_owned() })
    }
}

/// A request's version of a kind, and the others.
#[derive(Clone, Copy)]
pub(super) struct Kind<'a> {
    pub typed: Typed<'a>,
    pub api_version: &'a str,
    pub versions: &'a dyn Versions,
}

impl<'a> Kind<'a> {
    pub fn new(schema: &'a Schema, root: TypeId, versions: &'a dyn Versions, manager: &Manager<'a>) -> Self {
        Kind { typed: Typed { schema, root }, api_version: manager.api_version, versions }
    }

    fn typed_in(&self, api_version: &str) -> Option<Typed<'a>> {
        if api_version == self.api_version {
            return Some(self.typed);
        }
        let (schema, root) = self.versions.schema(api_version)?;
        Some(Typed { schema, root })
    }

    fn convert(&self, object: &Value, to: &str) -> Result<Value, Unconverted> {
        if meta::str_at(object, &["apiVersion"]) == to {
            return Ok(object.clone());
        }
        self.versions.convert(object, to)
    }

    /// Drops owners in versions that are not known any more, and fits the others' sets to schemas that have changed: only those of
    /// CustomResourceDefinitions do.
    pub fn reconcile(&self, entries: &mut Vec<Entry>) {
        entries.retain_mut(|entry| {
            if entry.api_version == self.api_version && !self.typed.schema.structural {
                return true;
            }
            let Some(typed) = self.typed_in(&entry.api_version) else { return false };
            if typed.schema.structural {
                typed.reconcile(&mut entry.set);
            }
            true
        });
    }

    /// The change from `old` to `new` in the request's version, without what the endpoint resets, and in every other in which
    /// somebody owns something.
    pub fn changes(
        &self,
        old: Option<&Value>,
        new: &Value,
        entries: &[Entry],
        manager: &Manager<'_>,
    ) -> Result<Changes, Unconverted> {
        let mut changes = Changes(vec![(self.api_version.to_owned(), compare(self.typed, old, new, manager.reset))]);
        for entry in entries {
            let version = &entry.api_version;
            if changes.0.iter().any(|(known, _)| known == version) {
                continue;
            }
            let Some(typed) = self.typed_in(version) else { continue };
            let old = old.map(|old| self.convert(&bare(old), version)).transpose()?;
            let new = self.convert(&bare(new), version)?;
            changes.0.push((version.clone(), compare(typed, old.as_ref(), &new, self.versions.filter(version))));
        }
        Ok(changes)
    }

    /// Removes from `merged` what `last` owned and nobody owns any more; `entries` are all owners, the applier's new set among them.
    pub fn prune(&self, merged: Value, last: &Entry, entries: &[&Entry]) -> Result<Value, Unconverted> {
        let mut merged = merged;
        if entries.iter().all(|entry| entry.api_version == last.api_version) && last.api_version == self.api_version {
            let owners: Vec<&FieldSet> = entries.iter().map(|entry| &entry.set).collect();
            self.typed.prune(&mut merged, &last.set, &owners);
            return Ok(merged);
        }
        // A version that is not known any more cannot tell what there was to remove.
        let Some(typed) = self.typed_in(&last.api_version) else { return Ok(merged) };
        let merged = self.convert(&merged, &last.api_version)?;
        let given_up = typed.with_named(&last.set);
        let mut pruned = typed.without(&merged, &given_up);
        let mut versions: Vec<&str> = vec![&last.api_version];
        for entry in entries {
            if !versions.contains(&entry.api_version.as_str()) {
                versions.push(&entry.api_version);
            }
        }
        for version in versions {
            pruned = self.owned_back(&merged, pruned, version, entries)?;
        }
        let pruned = self.convert(&pruned, &last.api_version)?;
        let mut gone = typed.with_named(&typed.field_set(&merged));
        gone.subtract(&typed.with_named(&typed.field_set(&pruned)));
        let rest = typed.without(&merged, &gone.intersection(&given_up));
        self.convert(&rest, self.api_version)
    }

    /// Puts back into `pruned` what somebody owns of `merged` in a version.
    fn owned_back(
        &self,
        merged: &Value,
        pruned: Value,
        version: &str,
        entries: &[&Entry],
    ) -> Result<Value, Unconverted> {
        let Some(typed) = self.typed_in(version) else { return Ok(pruned) };
        let merged = self.convert(merged, version)?;
        let pruned = self.convert(&pruned, version)?;
        let mut owned = FieldSet::default();
        entries.iter().filter(|entry| entry.api_version == version).for_each(|entry| owned.union(&entry.set));
        let mut gone = typed.with_named(&typed.field_set(&merged));
        gone.subtract(&typed.with_named(&typed.field_set(&pruned)));
        gone.subtract(&typed.with_named(&owned));
        Ok(typed.without(&merged, &gone))
    }
}

/// An object without the list of its owners, which is nothing to convert.
fn bare(object: &Value) -> Value {
    let mut object = object.clone();
    meta::remove(&mut object, "managedFields");
    object
}

/// A change in several versions, the request's first.
pub(super) struct Changes(Vec<(String, Delta)>);

impl Changes {
    /// What has become another value or come to be, in a version.
    fn of(&self, api_version: &str) -> Option<&Delta> {
        self.0.iter().find(|(version, _)| version == api_version).map(|(_, delta)| delta)
    }

    /// What of an owner's fields has another value now.
    pub fn contested(&self, entry: &Entry) -> FieldSet {
        let Some(delta) = self.of(&entry.api_version) else { return FieldSet::default() };
        let mut set = entry.set.intersection(&delta.modified);
        set.union(&entry.set.intersection(&delta.added));
        set
    }

    /// Takes from an owner what has changed or gone.
    pub fn take_from(&self, entry: &mut Entry) {
        let Some(delta) = self.of(&entry.api_version) else { return };
        for set in [&delta.modified, &delta.added, &delta.removed] {
            entry.set.subtract(set);
        }
    }

    /// What is changed or new in the request's version.
    pub fn into_written(mut self) -> FieldSet {
        let (_, Delta { mut modified, added, .. }) = self.0.swap_remove(0);
        modified.absorb(added);
        modified
    }
}

impl Typed<'_> {
    /// The set, with every named field (of a struct, not a map's key) under which something is owned as a member of its own.
    fn with_named(&self, set: &FieldSet) -> FieldSet {
        FieldSet(self.named_at(Type::Known(self.root), &set.0))
    }

    fn named_at(&self, ty: Type, set: &Node) -> Node {
        let form = self.form(ty, None);
        let mut out = Node::new();
        for (key, inner) in children(set) {
            let (below, named) = match (&form, key.strip_prefix("f:")) {
                (Form::Fields(object), Some(name)) => {
                    (self.field_type(object, name).unwrap_or(Type::Deduced), object.field(name).is_some())
                }
                (Form::Entries(ty), Some(_)) => (*ty, false),
                (Form::Items(list), _) => (Type::Known(list.item), false),
                _ => (Type::Deduced, false),
            };
            attach(&mut out, key, node(self.named_at(below, inner), named || is_member(inner)));
        }
        out
    }

    /// `value` without the members of `gone` and what is below them.
    fn without(&self, value: &Value, gone: &FieldSet) -> Value {
        let mut value = value.clone();
        self.drop_at(Type::Known(self.root), &mut value, &gone.0);
        value
    }

    fn drop_at(&self, ty: Type, value: &mut Value, gone: &Node) {
        let form = self.form(ty, Some(value));
        match (form, value) {
            (Form::Fields(object), Value::Object(map)) => {
                self.drop_keys(map, gone, |name| self.field_type(object, name).unwrap_or(Type::Deduced));
            }
            (Form::Entries(ty), Value::Object(map)) => self.drop_keys(map, gone, |_| ty),
            (Form::Items(list), Value::Array(items)) => items.retain_mut(|item| {
                let Ok(key) = self.element(list, item) else { return true };
                let Some(inner) = child(gone, &key) else { return true };
                if is_member(inner) {
                    return false;
                }
                self.drop_at(Type::Known(list.item), item, inner);
                true
            }),
            _ => {}
        }
    }

    fn drop_keys(&self, map: &mut Map<String, Value>, gone: &Node, ty: impl Fn(&str) -> Type) {
        for (key, inner) in children(gone) {
            let Some(name) = key.strip_prefix("f:") else { continue };
            let Some(current) = map.get_mut(name) else { continue };
            let was_blank = is_blank(Some(current));
            if !is_member(inner) && has_children(inner) {
                self.drop_at(ty(name), current, inner);
            }
            if is_member(inner) || (!was_blank && is_blank(Some(current))) {
                map.remove(name);
            }
        }
    }
}
