//! Walks over values side by side with their schema: compare, merge, prune, and the set of an applied configuration.
//! Upstream's `structured-merge-diff/typed`.

use std::collections::{HashMap, HashSet};
use std::sync::LazyLock;

use serde_json::{Map, Value};

use super::set::{FieldSet, Node, attach, child, children, has_children, is_member, node};
use crate::schema::{List, ListKind, MAX_DEPTH, Object, Schema, Shape, TypeId};

/// Fields that hold plain structs in upstream's Go types, not pointers: there, the empty object has them already, so that setting
/// something in them does not make one the owner of the field itself.
const STRUCT_FIELDS: [&str; 11] = [
    "jobTemplate",
    "lastState",
    "metadata",
    "resources",
    "scaleTargetRef",
    "spec",
    "state",
    "status",
    "strategy",
    "template",
    "updateStrategy",
];

static EMPTY: LazyLock<Value> = LazyLock::new(|| Value::Object(Map::new()));

/// The type of a value: from the schema, or deduced from the value itself below free-form fields.
#[derive(Clone, Copy)]
pub(super) enum Type {
    Known(TypeId),
    Deduced,
}

/// How a value is divided among owners.
pub(super) enum Form<'s> {
    /// Owned whole: scalars and what is atomic.
    Leaf,
    Fields(&'s Object),
    Entries(Type),
    Items(&'s List),
}

/// What one side of a comparison has, or has otherwise, than the other.
#[derive(Default)]
pub(super) struct Delta {
    pub removed: FieldSet,
    pub modified: FieldSet,
    pub added: FieldSet,
}

/// The same for one node.
#[derive(Default)]
struct Change {
    removed: Option<Node>,
    modified: Option<Node>,
    added: Option<Node>,
}

#[derive(Default)]
struct Changes {
    removed: Node,
    modified: Node,
    added: Node,
}

impl Changes {
    fn push(&mut self, key: &str, change: Change) {
        attach(&mut self.removed, key, change.removed);
        attach(&mut self.modified, key, change.modified);
        attach(&mut self.added, key, change.added);
    }

    /// As the change of a node that `before` or `after` has; one that appears or goes does so itself, too.
    fn finish(self, before: bool, after: bool) -> Change {
        Change {
            removed: node(self.removed, before && !after),
            modified: node(self.modified, false),
            added: node(self.added, after && !before),
        }
    }
}

#[derive(Clone, Copy)]
pub(super) struct Typed<'s> {
    pub schema: &'s Schema,
    pub root: TypeId,
}

pub(super) fn is_blank(value: Option<&Value>) -> bool {
    match value {
        None | Some(Value::Null) => true,
        Some(Value::Object(map)) => map.is_empty(),
        Some(Value::Array(items)) => items.is_empty(),
        Some(_) => false,
    }
}

/// Neither of the two is a map where the other is something else.
fn is_alike(before: Option<&Value>, after: Option<&Value>) -> bool {
    match (before, after) {
        (Some(Value::Null), _) | (_, Some(Value::Null)) => true,
        (Some(before), Some(after)) => before.is_object() == after.is_object(),
        _ => true,
    }
}

/// Called with a key and its two values.
type Visit<'f> = &'f mut dyn FnMut(&str, Option<&Value>, Option<&Value>);

impl<'s> Typed<'s> {
    pub(super) fn form(&self, ty: Type, sample: Option<&Value>) -> Form<'s> {
        let schema = self.schema;
        let Type::Known(id) = ty else { return deduced(sample) };
        match &schema.get(id).shape {
            Shape::Object(object) if object.atomic => Form::Leaf,
            Shape::Object(object) => Form::Fields(object),
            Shape::Map { atomic: true, .. } | Shape::Scalar(_) => Form::Leaf,
            Shape::Map { value, .. } => Form::Entries(Type::Known(*value)),
            Shape::List(list) if list.kind == ListKind::Atomic => Form::Leaf,
            Shape::List(list) => Form::Items(list),
            Shape::Any if schema.structural => deduced(sample),
            Shape::Any => Form::Leaf,
        }
    }

    /// The type of a field; none if the schema does not allow it.
    pub(super) fn field_type(&self, object: &Object, name: &str) -> Option<Type> {
        match object.field(name) {
            Some(field) => Some(Type::Known(field.ty)),
            None => object.additional.map(Type::Known).or(object.preserve_unknown.then_some(Type::Deduced)),
        }
    }

    /// An absent struct field counts as present and empty, where upstream's does.
    fn or_struct<'v>(&self, object: &Object, name: &str, parent: bool, value: Option<&'v Value>) -> Option<&'v Value> {
        if value.is_some() || !parent || self.schema.structural || STRUCT_FIELDS.binary_search(&name).is_err() {
            return value;
        }
        let is_struct = |f: &crate::schema::Field| matches!(self.schema.get(f.ty).shape, Shape::Object(_));
        object.field(name).filter(|f| is_struct(f)).map(|_| &*EMPTY)
    }

    /// Removed, modified and added fields from `before` to `after`.
    pub fn compare(&self, before: &Value, after: &Value) -> Delta {
        if before == after {
            return Delta::default();
        }
        let change = self.compare_at(Type::Known(self.root), Some(before), Some(after), 0);
        let set = |node: Option<Node>| FieldSet(node.unwrap_or_default());
        Delta { removed: set(change.removed), modified: set(change.modified), added: set(change.added) }
    }

    /// The two sides differ: callers have looked, so that what is equal is walked but once.
    fn compare_at(&self, ty: Type, before: Option<&Value>, after: Option<&Value>, depth: usize) -> Change {
        let whole = (is_blank(before) && is_blank(after)) || depth > MAX_DEPTH || !is_alike(before, after);
        let form = if whole { Form::Leaf } else { self.form(ty, before.filter(|b| !b.is_null()).or(after)) };
        let mut changes = Changes::default();
        match form {
            Form::Leaf => {
                let leaf = |member: bool| member.then(Node::new);
                return Change {
                    removed: leaf(after.is_none()),
                    modified: leaf(before.is_some() && after.is_some()),
                    added: leaf(before.is_none()),
                };
            }
            Form::Fields(object) => self.zip(before, after, &mut |name, b, a| {
                let ty = self.field_type(object, name).unwrap_or(Type::Deduced);
                let b = self.or_struct(object, name, before.is_some(), b);
                let a = self.or_struct(object, name, after.is_some(), a);
                if a != b {
                    changes.push(&format!("f:{name}"), self.compare_at(ty, b, a, depth + 1));
                }
            }),
            Form::Entries(value) => self.zip(before, after, &mut |name, b, a| {
                changes.push(&format!("f:{name}"), self.compare_at(value, b, a, depth + 1));
            }),
            Form::Items(list) => self.compare_items(list, before, after, depth, &mut changes),
        }
        changes.finish(before.is_some(), after.is_some())
    }

    /// Visits every key that differs between two maps.
    fn zip(&self, before: Option<&Value>, after: Option<&Value>, visit: Visit<'_>) {
        let (before, after) = (before.and_then(Value::as_object), after.and_then(Value::as_object));
        for (key, b) in before.into_iter().flatten() {
            let a = after.and_then(|map| map.get(key));
            if a != Some(b) {
                visit(key, Some(b), a);
            }
        }
        for (key, a) in after.into_iter().flatten() {
            if before.is_none_or(|map| !map.contains_key(key)) {
                visit(key, None, Some(a));
            }
        }
    }

    fn compare_items(
        &self,
        list: &List,
        before: Option<&Value>,
        after: Option<&Value>,
        depth: usize,
        changes: &mut Changes,
    ) {
        let (before, after) = (self.index(list, before), self.index(list, after));
        let item = Type::Known(list.item);
        let keys = before.order.iter().chain(after.order.iter().filter(|key| !before.items.contains_key(*key)));
        for key in keys {
            let none: &[&Value] = &[];
            let b = before.items.get(key).map_or(none, Vec::as_slice);
            let a = after.items.get(key).map_or(none, Vec::as_slice);
            let mut change = match (b, a) {
                ([_, _, ..], [_, _, ..]) => Change { modified: (a != b).then(Node::new), ..Change::default() },
                ([_, _, ..], []) | ([], [_, _, ..]) => Change::default(),
                ([_, _, ..], _) => self.compare_at(item, None, a.first().copied(), depth + 1),
                (_, [_, _, ..]) => self.compare_at(item, b.first().copied(), None, depth + 1),
                _ if a == b => continue,
                _ => self.compare_at(item, b.first().copied(), a.first().copied(), depth + 1),
            };
            // Duplicates are owned together, as one member without children.
            if b.len() > 1 && a.len() <= 1 {
                change.removed.get_or_insert_default();
            } else if a.len() > 1 && b.len() <= 1 {
                change.added.get_or_insert_default();
            }
            changes.push(key, change);
        }
    }

    fn index<'v>(&self, list: &List, value: Option<&'v Value>) -> Index<'v> {
        let mut index = Index::default();
        for item in value.and_then(Value::as_array).into_iter().flatten() {
            let Ok(key) = self.element(list, item) else { continue };
            let places = index.items.entry(key.clone()).or_default();
            if places.is_empty() {
                index.order.push(key);
            }
            places.push(item);
        }
        index
    }

    /// The path element of a list item.
    pub(super) fn element(&self, list: &List, item: &Value) -> Result<String, String> {
        match &list.kind {
            ListKind::Map { keys } => self.keyed_element(list, keys, item),
            _ => match item {
                Value::Object(_) => Err("associative list without keys has an element that's a map type".to_owned()),
                Value::Array(_) => Err("not supported: associative list with lists as elements".to_owned()),
                Value::Null => Err("associative list without keys has an element that's an explicit null".to_owned()),
                scalar => Ok(format!("v:{scalar}")),
            },
        }
    }

    fn keyed_element(&self, list: &List, keys: &[Box<str>], item: &Value) -> Result<String, String> {
        let map = match item {
            Value::Object(map) => map,
            Value::Null => return Err("associative list with keys may not have a null element".to_owned()),
            _ => return Err("associative list with keys may not have non-map elements".to_owned()),
        };
        let default = |key: &str| self.schema.object(list.item)?.field(key)?.default.as_ref();
        let mut pairs: Vec<(&str, &Value)> =
            keys.iter().filter_map(|key| Some((&**key, map.get(&**key).or_else(|| default(key))?))).collect();
        if pairs.is_empty() {
            let keys: Vec<String> = keys.iter().map(|k| crate::field::quote(k)).collect();
            return Err(format!(
                "associative list with keys has an element that omits all key fields [{}] (and doesn't have default values for any key fields)",
                keys.join(" ")
            ));
        }
        pairs.sort_unstable_by_key(|(key, _)| *key);
        let mut element = String::from("k:{");
        for (i, (key, value)) in pairs.iter().enumerate() {
            element.push_str(if i > 0 { ",\"" } else { "\"" });
            element.push_str(key);
            element.push_str("\":");
            element.push_str(&value.to_string());
        }
        element.push('}');
        Ok(element)
    }

    /// Every field that an applied configuration mentions; it has passed [`Typed::validate`].
    pub fn field_set(&self, config: &Value) -> FieldSet {
        FieldSet(self.set_at(Type::Known(self.root), config, 0).unwrap_or_default())
    }

    fn set_at(&self, ty: Type, value: &Value, depth: usize) -> Option<Node> {
        let mut set = Node::new();
        match self.form(ty, Some(value)) {
            _ if depth > MAX_DEPTH => return Some(set),
            Form::Leaf => return Some(set),
            Form::Fields(object) => {
                for (name, inner) in value.as_object().into_iter().flatten() {
                    let ty = self.field_type(object, name).unwrap_or(Type::Deduced);
                    let mut below = self.set_at(ty, inner, depth + 1);
                    if inner.is_null() || inner.as_object().is_some_and(Map::is_empty) || object.field(name).is_none() {
                        below = node(below.unwrap_or_default(), true);
                    }
                    attach(&mut set, &format!("f:{name}"), below);
                }
            }
            Form::Entries(ty) => {
                for (name, inner) in value.as_object().into_iter().flatten() {
                    let below = self.set_at(ty, inner, depth + 1).unwrap_or_default();
                    attach(&mut set, &format!("f:{name}"), node(below, true));
                }
            }
            Form::Items(list) => {
                for item in value.as_array().into_iter().flatten() {
                    let Ok(key) = self.element(list, item) else { continue };
                    let below = self.set_at(Type::Known(list.item), item, depth + 1).unwrap_or_default();
                    attach(&mut set, &key, node(below, true));
                }
            }
        }
        (!set.is_empty()).then_some(set)
    }

    /// Collapses what a set owns below a field that is atomic by now (a changed CRD) into the field itself.
    pub fn reconcile(&self, set: &mut FieldSet) {
        self.reconcile_at(Type::Known(self.root), &mut set.0);
    }

    fn reconcile_at(&self, ty: Type, set: &mut Node) {
        let Type::Known(id) = ty else { return };
        let atomic_container = !matches!(self.schema.get(id).shape, Shape::Scalar(_) | Shape::Any);
        let form = self.form(ty, None);
        for (key, value) in set.iter_mut() {
            let (Some(name), Value::Object(inner)) = (key.get(2..), value) else { continue };
            let below = match &form {
                Form::Fields(object) => object.field(name).map(|f| Type::Known(f.ty)),
                Form::Entries(ty) => Some(*ty),
                Form::Items(list) => Some(Type::Known(list.item)),
                Form::Leaf => None,
            };
            if let Some(below) = below {
                self.reconcile_at(below, inner);
            }
        }
        if atomic_container && matches!(form, Form::Leaf) && has_children(set) {
            set.clear();
        }
    }

    /// Merges an applied configuration into the live object. Nothing is removed; lists take the configuration's order.
    pub fn merge(&self, live: &mut Value, config: &Value) {
        self.merge_at(Type::Known(self.root), live, config, 0);
    }

    fn merge_at(&self, ty: Type, live: &mut Value, config: &Value, depth: usize) {
        if live == config {
            return;
        }
        if (is_blank(Some(live)) && is_blank(Some(config))) || depth > MAX_DEPTH {
            *live = config.clone();
            return;
        }
        let sample = if config.is_null() { &*live } else { config };
        match self.form(ty, Some(sample)) {
            Form::Leaf => *live = config.clone(),
            Form::Fields(object) => {
                self.merge_maps(live, config, depth, |name| self.field_type(object, name).unwrap_or(Type::Deduced))
            }
            Form::Entries(value) => self.merge_maps(live, config, depth, |_| value),
            Form::Items(list) => match (live, config) {
                (_, Value::Null) => {}
                (Value::Array(items), Value::Array(config)) => *items = self.merge_items(list, items, config, depth),
                (live, _) => *live = config.clone(),
            },
        }
    }

    fn merge_maps(&self, live: &mut Value, config: &Value, depth: usize, ty: impl Fn(&str) -> Type) {
        match (live, config) {
            (_, Value::Null) => {}
            (Value::Object(live), Value::Object(config)) => {
                for (name, value) in config {
                    match live.get_mut(name) {
                        // In built-in types null is nothing but absence.
                        Some(_) if value.is_null() && !self.schema.structural && self.is_scalar(ty(name)) => {
                            live.remove(name);
                        }
                        Some(current) => self.merge_at(ty(name), current, value, depth + 1),
                        None if value.is_null() && !self.schema.structural => {}
                        None => {
                            live.insert(name.clone(), value.clone());
                        }
                    }
                }
            }
            (live, _) => *live = config.clone(),
        }
    }

    fn is_scalar(&self, ty: Type) -> bool {
        matches!(ty, Type::Known(id) if matches!(self.schema.get(id).shape, Shape::Scalar(_)))
    }

    /// Upstream's `visitListItems`: the configuration's items in its order, the others where they stand among the shared ones.
    fn merge_items(&self, list: &List, live: &mut Vec<Value>, config: &[Value], depth: usize) -> Vec<Value> {
        let keys = |items: &[Value]| -> Vec<String> {
            items.iter().map(|item| self.element(list, item).unwrap_or_default()).collect()
        };
        let (live_keys, config_keys) = (keys(live), keys(config));
        // Items that are there more than once are not merged with, so they have no place.
        let mut places: HashMap<&str, Option<usize>> = HashMap::with_capacity(live_keys.len());
        for (i, key) in live_keys.iter().enumerate() {
            places.entry(key).and_modify(|place| *place = None).or_insert(Some(i));
        }
        let wanted: HashSet<&str> = config_keys.iter().map(String::as_str).collect();
        let mut merged: HashSet<&str> = HashSet::with_capacity(wanted.len());
        let mut shared = config_keys.iter().map(String::as_str).filter(|key| places.contains_key(key));
        let mut next_shared = shared.next();
        let mut out = Vec::with_capacity(live.len().max(config.len()));
        let merge_with = |live: &mut Vec<Value>, key: &str, item: &Value| match places.get(key).copied().flatten() {
            Some(place) => {
                let mut current = std::mem::take(&mut live[place]);
                self.merge_at(Type::Known(list.item), &mut current, item, depth + 1);
                current
            }
            None => item.clone(),
        };
        let (mut l, mut r) = (0, 0);
        while l < live_keys.len() || r < config_keys.len() {
            if l < live_keys.len() {
                let key = live_keys[l].as_str();
                if r < config_keys.len() {
                    if key == config_keys[r] {
                        merged.insert(key);
                        out.push(merge_with(live, key, &config[r]));
                        (l, r) = (l + 1, r + 1);
                        next_shared = shared.next();
                        continue;
                    }
                    if wanted.contains(key) && next_shared.is_some_and(|next| next != key) {
                        l += 1;
                        continue;
                    }
                }
                if !wanted.contains(key) {
                    out.push(std::mem::take(&mut live[l]));
                    l += 1;
                    continue;
                }
                if merged.contains(key) {
                    l += 1;
                }
            }
            if r < config_keys.len() {
                let key = config_keys[r].as_str();
                merged.insert(key);
                out.push(merge_with(live, key, &config[r]));
                r += 1;
                if next_shared == Some(key) {
                    next_shared = shared.next();
                }
            }
        }
        out
    }

    /// Removes what `last` owned and nobody in `managed` (the applier's new set among them) owns now.
    pub fn prune(&self, value: &mut Value, last: &FieldSet, managed: &[&FieldSet]) {
        let managed: Vec<&Node> = managed.iter().map(|set| &set.0).collect();
        self.prune_at(Type::Known(self.root), value, &last.0, &managed);
    }

    fn prune_at(&self, ty: Type, value: &mut Value, last: &Node, managed: &[&Node]) {
        match self.form(ty, Some(value)) {
            Form::Leaf => {}
            Form::Fields(object) => self.prune_map(value, last, managed, |name| {
                (self.field_type(object, name).unwrap_or(Type::Deduced), object.field(name).is_some())
            }),
            Form::Entries(ty) => self.prune_map(value, last, managed, |_| (ty, false)),
            Form::Items(list) => {
                let Value::Array(items) = value else { return };
                items.retain_mut(|item| {
                    let Ok(key) = self.element(list, item) else { return true };
                    let Some(before) = child(last, &key) else { return true };
                    let now: Vec<&Node> = managed.iter().filter_map(|set| child(set, &key)).collect();
                    if is_member(before) && !now.iter().any(|node| is_member(node)) {
                        return false;
                    }
                    self.prune_at(Type::Known(list.item), item, before, &now);
                    true
                });
            }
        }
    }

    /// `describe` gives a key's type and whether it is a named field: those are owned by whoever owns something in them.
    fn prune_map(&self, value: &mut Value, last: &Node, managed: &[&Node], describe: impl Fn(&str) -> (Type, bool)) {
        let Value::Object(map) = value else { return };
        for (key, before) in children(last) {
            let Some(name) = key.strip_prefix("f:") else { continue };
            let Some(current) = map.get_mut(name) else { continue };
            let (ty, named) = describe(name);
            let now: Vec<&Node> = managed.iter().filter_map(|set| child(set, key)).collect();
            let kept = now.iter().any(|node| named || is_member(node));
            let was_blank = is_blank(Some(current));
            let gone = (named || is_member(before)) && !kept;
            // An empty list has no members, so nobody can have owned it.
            let ownable = !(was_blank && current.is_array() && matches!(self.form(ty, Some(current)), Form::Items(_)));
            if !gone {
                self.prune_at(ty, current, before, &now);
            }
            // What somebody owns as such stays, if empty, where upstream leaves a null.
            let emptied = !was_blank && is_blank(Some(current)) && !now.iter().any(|node| is_member(node));
            if (gone && ownable) || emptied {
                map.remove(name);
            }
        }
    }
}

/// List items by their path elements, with those that share one together.
#[derive(Default)]
struct Index<'v> {
    items: HashMap<String, Vec<&'v Value>>,
    order: Vec<String>,
}

/// Below free-form fields maps are divided and lists are not.
fn deduced(sample: Option<&Value>) -> Form<'static> {
    if sample.is_some_and(Value::is_object) { Form::Entries(Type::Deduced) } else { Form::Leaf }
}
