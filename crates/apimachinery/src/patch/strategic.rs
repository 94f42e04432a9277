//! Strategic merge patch: upstream's `strategicpatch.StrategicMergeMapPatch`, driven by the schema.
//!
//! Lists whose field has a merge key are merged element by element; `$patch`, `$retainKeys`, `$setElementOrder/<list>` and
//! `$deleteFromPrimitiveList/<list>` direct the merge. Order of a merged list: `$setElementOrder` before the patch's order before
//! the live order.

use std::collections::{HashMap, HashSet};

use serde_json::{Map, Value};

use super::PatchError;
use crate::schema::{MAX_DEPTH, PatchStrategy, Schema, Shape, TypeId};

const DIRECTIVE: &str = "$patch";
const RETAIN_KEYS: &str = "$retainKeys";
const SET_ORDER: &str = "$setElementOrder";
const DELETE_FROM: &str = "$deleteFromPrimitiveList";

const BAD_PRIMITIVE_LIST: &str = "invalid patch format of primitive list";
const BAD_RETAIN_KEYS: &str = "invalid patch format of retainKeys";
const BAD_SET_ORDER: &str = "invalid patch format of setElementOrder list";
const LIST_OF_LISTS: &str = "lists of lists are not supported";

type Result<T, E = PatchError> = std::result::Result<T, E>;
type Object = Map<String, Value>;

/// Merges `patch` into `document`, an object of the type `root`.
pub fn apply(schema: &Schema, root: TypeId, document: Value, patch: Value) -> Result<Value> {
    let (Value::Object(mut document), Value::Object(patch)) = (document, patch) else {
        return Err(PatchError::Malformed("invalid JSON document".to_owned()));
    };
    let place = Place { schema, ty: Some(root), depth: 0 };
    merge_map(&mut document, patch, place)?;
    Ok(Value::Object(document))
}

/// Where in the schema the merge is; below free-form JSON there is no type.
#[derive(Clone, Copy)]
struct Place<'s> {
    schema: &'s Schema,
    ty: Option<TypeId>,
    depth: usize,
}

/// How the value of one key merges, and where its values (or its elements) are in the schema.
struct Lookup<'s> {
    inner: Place<'s>,
    strategy: Option<&'s PatchStrategy>,
}

impl<'s> Place<'s> {
    fn inside(self, ty: Option<TypeId>) -> Result<Self> {
        if self.depth >= MAX_DEPTH {
            return Err(PatchError::Malformed("exceeded max depth".to_owned()));
        }
        Ok(Place { ty, depth: self.depth + 1, ..self })
    }

    fn lookup(self, key: &str) -> Result<Lookup<'s>> {
        let schema = self.schema;
        let Some(ty) = self.ty.map(|id| schema.get(id)) else {
            return Ok(Lookup { inner: self.inside(None)?, strategy: None });
        };
        match &ty.shape {
            Shape::Object(object) => match object.field(key) {
                Some(field) => Ok(Lookup { inner: self.inside(Some(field.ty))?, strategy: Some(&field.patch) }),
                None if object.preserve_unknown || object.additional.is_some() => {
                    Ok(Lookup { inner: self.inside(object.additional)?, strategy: None })
                }
                None => {
                    let name = ty.name.rsplit('.').next().unwrap_or_default();
                    let text = format!("unable to find api field in struct {name} for the json field {key:?}");
                    Err(PatchError::Other(text))
                }
            },
            Shape::Map { value, .. } => Ok(Lookup { inner: self.inside(Some(*value))?, strategy: None }),
            _ => Ok(Lookup { inner: self.inside(None)?, strategy: None }),
        }
    }
}

impl<'s> Lookup<'s> {
    fn merges(&self) -> bool {
        self.strategy.is_some_and(|s| s.merge)
    }

    fn merge_key(&self) -> Option<&'s str> {
        self.strategy.and_then(|s| s.merge_key.as_deref())
    }

    /// The same for the elements, where the value is a list.
    fn element(self) -> Self {
        let item = self.inner.ty.and_then(|id| match &self.inner.schema.get(id).shape {
            Shape::List(list) => Some(list.item),
            _ => None,
        });
        Lookup { inner: Place { ty: item, ..self.inner }, strategy: self.strategy }
    }
}

fn merge_map(original: &mut Object, mut patch: Object, place: Place<'_>) -> Result<()> {
    if let Some(directive) = patch.remove(DIRECTIVE) {
        *original = match directive.as_str() {
            Some("replace") => plain_map(patch),
            Some("delete") => Object::new(),
            _ => {
                patch.insert(DIRECTIVE.to_owned(), directive.clone());
                return Err(bad_directive(&directive, &patch));
            }
        };
        return Ok(());
    }
    retain_keys(original, &mut patch)?;
    order_lists(original, &mut patch, place)?;
    for (key, value) in patch {
        let (key, deletes) = if key.starts_with(DELETE_FROM) {
            (directive_target(&key, DELETE_FROM, BAD_PRIMITIVE_LIST)?.to_owned(), true)
        } else {
            (key, false)
        };
        if value.is_null() {
            original.remove(&key);
            continue;
        }
        match (original.get_mut(&key), value) {
            (Some(Value::Object(current)), Value::Object(value)) => {
                let lookup = place.lookup(&key)?;
                if lookup.strategy.is_some_and(|s| s.replace) {
                    *current = plain_map(value);
                } else {
                    merge_map(current, value, lookup.inner)?;
                }
            }
            (Some(Value::Array(current)), Value::Array(value)) => {
                let lookup = place.lookup(&key)?.element();
                let merged = merge_list(std::mem::take(current), value, &lookup, deletes)?;
                *current = merged;
            }
            (_, _) if deletes => {}
            (_, value) => match plain(value) {
                Some(value) => {
                    original.insert(key, value);
                }
                None => {
                    original.remove(&key);
                }
            },
        }
    }
    Ok(())
}

/// The list that a parallel directive (`$setElementOrder/<list>`) is about.
fn directive_target<'k>(key: &'k str, prefix: &str, error: &str) -> Result<&'k str> {
    match key.split_once('/') {
        Some((head, list)) if head == prefix => Ok(list),
        _ => Err(PatchError::Malformed(error.to_owned())),
    }
}

/// `$retainKeys`: everything in the live object that it does not list goes.
fn retain_keys(original: &mut Object, patch: &mut Object) -> Result<()> {
    let Some(retained) = patch.remove(RETAIN_KEYS) else { return Ok(()) };
    let bad = || PatchError::Malformed(BAD_RETAIN_KEYS.to_owned());
    let retained: HashSet<&str> = retained.as_array().ok_or_else(bad)?.iter().filter_map(Value::as_str).collect();
    let stray = |(key, value): (&String, &Value)| {
        !value.is_null()
            && !key.starts_with(DELETE_FROM)
            && !key.starts_with(SET_ORDER)
            && !retained.contains(key.as_str())
    };
    if patch.iter().any(stray) {
        return Err(bad());
    }
    original.retain(|key, _| retained.contains(key.as_str()));
    Ok(())
}

/// `$setElementOrder/<list>`: merges that list here and now, and puts it in the order asked for.
fn order_lists(original: &mut Object, patch: &mut Object, place: Place<'_>) -> Result<()> {
    let directives: Vec<String> = patch.keys().filter(|key| key.starts_with(SET_ORDER)).cloned().collect();
    for directive in directives {
        let Some(order) = patch.remove(&directive) else { continue };
        let order = into_list(order)?;
        let key = directive_target(&directive, SET_ORDER, BAD_SET_ORDER)?;
        let live = original.get(key).map(as_list).transpose()?;
        let change = patch.get(key).map(as_list).transpose()?;
        let lookup = place.lookup(key)?.element();
        let merge_key = lookup.merge_key();
        check_order(change.unwrap_or_default(), &order, merge_key)?;
        if live.is_none() && change.is_none() {
            continue;
        }
        let element_kind = element_type(live.unwrap_or_default(), change.unwrap_or_default())?;
        let live_order = live_ranks(live.unwrap_or_default(), change.unwrap_or_default(), merge_key);
        let live = original.remove(key).map(into_list).transpose()?;
        let change = patch.remove(key).map(into_list).transpose()?;
        let merged = match (live, change) {
            (Some(live), None) => live,
            (None, Some(change)) => change.into_iter().filter_map(plain).collect(),
            (Some(live), Some(change)) => merge_list(live, change, &lookup, false)?,
            (None, None) => continue,
        };
        if element_kind == Some(ElementType::Map) {
            need_merge_keys(&merged, merge_key)?;
            need_merge_keys(&order, merge_key)?;
        }
        let ordered = arrange(merged, &Ranks::of(&order, merge_key), &live_order, merge_key);
        original.insert(key.to_owned(), Value::Array(ordered));
    }
    Ok(())
}

/// The patch's elements must stand in the order of the `$setElementOrder` list and all be in it; deletions do not count.
fn check_order(change: &[Value], order: &[Value], merge_key: Option<&str>) -> Result<()> {
    if order.is_empty() || change.is_empty() {
        return Ok(());
    }
    if merge_key.is_some() {
        for item in change.iter().chain(order) {
            as_map(item)?;
        }
    }
    let mut wanted = order.iter();
    for item in change.iter().filter(|item| item.get(DIRECTIVE).is_none()) {
        let identity = identity(item, merge_key);
        if let Some(key) = merge_key.filter(|_| identity.is_none()) {
            return Err(no_merge_key(item, key));
        }
        if !wanted.any(|o| self::identity(o, merge_key) == identity) {
            let text = format!(
                "The order in patch list:\n{}\n doesn't match {SET_ORDER} list:\n{}\n",
                go_list(change),
                go_list(order)
            );
            return Err(PatchError::Other(text));
        }
    }
    Ok(())
}

fn merge_list(original: Vec<Value>, patch: Vec<Value>, lookup: &Lookup<'_>, deletes: bool) -> Result<Vec<Value>> {
    if !lookup.merges() && !deletes {
        return Ok(patch.into_iter().filter_map(plain).collect());
    }
    match element_type(&original, &patch)? {
        None => Ok(original),
        Some(ElementType::Map) => merge_maps(original, patch, lookup),
        Some(_) if deletes => {
            let gone: HashSet<String> = patch.iter().map(Value::to_string).collect();
            Ok(original.into_iter().filter(|item| !gone.contains(&item.to_string())).collect())
        }
        Some(_) => {
            let (ranks, live) = (Ranks::of(&patch, None), Ranks::of(&original, None));
            let mut seen = HashSet::new();
            let all = original.into_iter().chain(patch);
            let merged = all.filter(|item| seen.insert(item.to_string())).collect();
            Ok(arrange(merged, &ranks, &live, None))
        }
    }
}

fn merge_maps(original: Vec<Value>, patch: Vec<Value>, lookup: &Lookup<'_>) -> Result<Vec<Value>> {
    let Some(key) = lookup.merge_key() else {
        let text = "cannot merge lists without merge key for struct";
        return Err(PatchError::Other(text.to_owned()));
    };
    let (mut original, patch) = list_directives(original, patch, key)?;
    need_merge_keys(&original, Some(key))?;
    need_merge_keys(&patch, Some(key))?;
    let (ranks, live) = (Ranks::of(&patch, Some(key)), Ranks::of(&original, Some(key)));
    let mut places: HashMap<String, usize> = HashMap::with_capacity(original.len());
    for (i, item) in original.iter().enumerate() {
        places.entry(identity(item, Some(key)).unwrap_or_default()).or_insert(i);
    }
    for item in patch {
        let identity = identity(&item, Some(key)).unwrap_or_default();
        match (places.get(&identity).map(|&i| &mut original[i]), item) {
            (Some(Value::Object(current)), Value::Object(item)) => merge_map(current, item, lookup.inner)?,
            (_, item) => {
                places.insert(identity, original.len());
                original.extend(plain(item));
            }
        }
    }
    Ok(arrange(original, &ranks, &live, Some(key)))
}

/// Carries out elements with `$patch`; answers with the live list and the rest of the patch.
fn list_directives(original: Vec<Value>, patch: Vec<Value>, key: &str) -> Result<(Vec<Value>, Vec<Value>)> {
    let mut gone: HashSet<String> = HashSet::new();
    let mut rest = Vec::with_capacity(patch.len());
    let mut replaces = false;
    for item in patch {
        let Some(directive) = item.get(DIRECTIVE) else {
            rest.push(item);
            continue;
        };
        match directive.as_str() {
            Some("delete") => {
                gone.insert(identity(&item, Some(key)).ok_or_else(|| no_merge_key(&item, key))?);
            }
            Some("replace") => replaces = true,
            Some("merge") => {
                return Err(PatchError::Other("merging lists cannot yet be specified in the patch".to_owned()));
            }
            _ => return Err(bad_directive(directive, as_map(&item)?)),
        }
    }
    if replaces {
        return Ok((rest, Vec::new()));
    }
    let stays = |item: &Value| identity(item, Some(key)).is_none_or(|identity| !gone.contains(&identity));
    Ok((original.into_iter().filter(stays).collect(), rest))
}

/// What tells elements apart: the merge key's value, or the scalar itself. JSON text, so that 1 and "1" differ.
fn identity(item: &Value, merge_key: Option<&str>) -> Option<String> {
    match merge_key {
        Some(key) => item.get(key).map(Value::to_string),
        None => Some(item.to_string()),
    }
}

/// The first place of each element in a list.
struct Ranks(HashMap<String, usize>);

impl Ranks {
    fn of(list: &[Value], merge_key: Option<&str>) -> Self {
        let mut ranks = HashMap::with_capacity(list.len());
        for (i, item) in list.iter().enumerate() {
            if let Some(identity) = identity(item, merge_key) {
                ranks.entry(identity).or_insert(i);
            }
        }
        Ranks(ranks)
    }
}

/// The live order while a list is put in the order asked for. In upstream's slices an element that the patch adds takes the place at
/// the end that one it deletes has vacated, and so counts as live; results depend on it.
fn live_ranks(live: &[Value], change: &[Value], merge_key: Option<&str>) -> Ranks {
    let is_deleted = |item: &Value| item.get(DIRECTIVE).and_then(Value::as_str) == Some("delete");
    let deleted: HashSet<_> =
        change.iter().filter(|item| is_deleted(item)).map(|item| identity(item, merge_key)).collect();
    let (mut order, gone): (Vec<Value>, Vec<Value>) =
        live.iter().cloned().partition(|item| !deleted.contains(&identity(item, merge_key)));
    if gone.is_empty() {
        return Ranks::of(live, merge_key);
    }
    let kept: HashSet<_> = order.iter().map(|item| identity(item, merge_key)).collect();
    let added =
        change.iter().filter(|item| item.get(DIRECTIVE).is_none() && !kept.contains(&identity(item, merge_key)));
    order.extend(added.take(gone.len()).cloned());
    Ranks::of(&order, merge_key)
}

/// Upstream's `normalizeElementOrder`: elements that `order` ranks stand as it says, the others as they stood live, and the two
/// runs interleave by their live places.
fn arrange(merged: Vec<Value>, order: &Ranks, live: &Ranks, merge_key: Option<&str>) -> Vec<Value> {
    struct Ranked {
        item: Value,
        order: Option<usize>,
        live: Option<usize>,
    }
    let ranked = merged.into_iter().map(|item| {
        let identity = identity(&item, merge_key).unwrap_or_default();
        Ranked { order: order.0.get(&identity).copied(), live: live.0.get(&identity).copied(), item }
    });
    let (mut ours, mut theirs): (Vec<Ranked>, Vec<Ranked>) = ranked.partition(|r| r.order.is_some());
    ours.sort_by_key(|r| r.order);
    theirs.sort_by_key(|r| r.live.unwrap_or(usize::MAX));
    let mut arranged = Vec::with_capacity(ours.len() + theirs.len());
    let mut theirs = theirs.into_iter().peekable();
    for our in ours {
        while let Some(their) = theirs.next_if(|their| matches!((their.live, our.live), (Some(t), Some(o)) if t < o)) {
            arranged.push(their.item);
        }
        arranged.push(our.item);
    }
    arranged.extend(theirs.map(|r| r.item));
    arranged
}

/// A new value as it is stored: without nulls and directives; none if it is but a directive.
fn plain(value: Value) -> Option<Value> {
    match value {
        Value::Object(map) if map.contains_key(DIRECTIVE) => None,
        Value::Object(map) => Some(Value::Object(plain_map(map))),
        Value::Array(items) => Some(Value::Array(items.into_iter().filter_map(plain).collect())),
        scalar => Some(scalar),
    }
}

fn plain_map(map: Object) -> Object {
    let directs = |key: &str| key == RETAIN_KEYS || key.starts_with(SET_ORDER) || key.starts_with(DELETE_FROM);
    let kept = map.into_iter().filter(|(key, value)| !value.is_null() && !directs(key));
    kept.filter_map(|(key, value)| Some((key, plain(value)?))).collect()
}

#[derive(Clone, Copy, PartialEq, Eq)]
enum ElementType {
    Null,
    Bool,
    Integer,
    Float,
    String,
    Map,
}

/// The one type that all elements of both lists have; none without elements.
fn element_type(left: &[Value], right: &[Value]) -> Result<Option<ElementType>> {
    let mut found = None;
    for item in left.iter().chain(right) {
        let ty = match item {
            Value::Null => ElementType::Null,
            Value::Bool(_) => ElementType::Bool,
            Value::Number(n) if n.is_f64() => ElementType::Float,
            Value::Number(_) => ElementType::Integer,
            Value::String(_) => ElementType::String,
            Value::Object(_) => ElementType::Map,
            Value::Array(_) => return Err(PatchError::Unprocessable(LIST_OF_LISTS.to_owned())),
        };
        if found.is_some_and(|f| f != ty) {
            let text = format!("list element types are not identical: [{} {}]", go_list(left), go_list(right));
            return Err(PatchError::Other(text));
        }
        found = Some(ty);
    }
    Ok(found)
}

fn need_merge_keys(list: &[Value], merge_key: Option<&str>) -> Result<()> {
    let Some(key) = merge_key else { return Ok(()) };
    for item in list {
        if as_map(item)?.get(key).is_none() {
            return Err(no_merge_key(item, key));
        }
    }
    Ok(())
}

fn as_map(value: &Value) -> Result<&Object> {
    value.as_object().ok_or_else(|| bad_type("map[string]interface {}", value))
}

fn as_list(value: &Value) -> Result<&[Value]> {
    value.as_array().map(Vec::as_slice).ok_or_else(|| bad_type("[]interface {}", value))
}

fn into_list(value: Value) -> Result<Vec<Value>> {
    match value {
        Value::Array(items) => Ok(items),
        other => Err(bad_type("[]interface {}", &other)),
    }
}

fn no_merge_key(item: &Value, key: &str) -> PatchError {
    PatchError::Other(format!("map: {} does not contain declared merge key: {key}", go_value(item)))
}

fn bad_directive(directive: &Value, map: &Object) -> PatchError {
    let map = go_value(&Value::Object(map.clone()));
    PatchError::Other(format!("unknown patch type: {} in map: {map}", go_value(directive)))
}

fn bad_type(expected: &str, actual: &Value) -> PatchError {
    let actual = match actual {
        Value::Null => "%!s(<nil>)",
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    PatchError::Other(format!("expected a {expected}, but received a {actual}"))
}

/// A value as Go's `%v` prints it, which is what upstream's messages show.
fn go_value(value: &Value) -> String {
    match value {
        Value::Null => "<nil>".to_owned(),
        Value::String(text) => text.clone(),
        Value::Array(items) => go_list(items),
        Value::Object(map) => {
            let fields: Vec<String> = map.iter().map(|(key, value)| format!("{key}:{}", go_value(value))).collect();
            format!("map[{}]", fields.join(" "))
        }
        scalar => scalar.to_string(),
    }
}

fn go_list(items: &[Value]) -> String {
    format!("[{}]", items.iter().map(go_value).collect::<Vec<_>>().join(" "))
}

#[cfg(test)]
mod tests;
