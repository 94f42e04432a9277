//! Checks every value against the [`Rule`]s of its field and type, worded as upstream's validators.
//!
//! Built-in kinds carry rules on fields. A structural schema's are on fields and types, are worded as upstream's OpenAPI validation,
//! and include the types themselves, which decoding of custom resources leaves alone. Rules over several fields are a strategy's.

mod compound;
mod rules;
mod structural;
#[cfg(test)]
mod tests;

use serde_json::{Map, Value};

use super::{Junction, List, ListKind, MAX_DEPTH, Object, Rule, Schema, Shape, TypeId};
use crate::field::{Error, ErrorList, Path};

/// All faults of `value` as a `root`, in the order of its fields. `value` has been through [`super::check`].
pub fn validate(schema: &Schema, root: TypeId, value: &Value) -> ErrorList {
    validate_at(schema, root, value, &Path::root())
}

/// [`validate`] for a value that lies at `path` of an object.
pub fn validate_at(schema: &Schema, root: TypeId, value: &Value, path: &Path) -> ErrorList {
    let mut walk = Walk { schema, errors: Vec::new() };
    walk.value(root, value, &Place { parent: Start::At(path), step: Step::Start, depth: 0 });
    walk.errors
}

/// Where the walk is, linked through the stack: paths are built for errors only.
struct Place<'a> {
    parent: Start<'a>,
    step: Step<'a>,
    depth: usize,
}

enum Start<'a> {
    At(&'a Path),
    Below(&'a Place<'a>),
}

#[derive(Clone, Copy)]
enum Step<'a> {
    Start,
    Field(&'a str),
    Key(&'a str),
    Index(usize),
}

impl<'a> Place<'a> {
    fn step(&'a self, step: Step<'a>) -> Place<'a> {
        Place { parent: Start::Below(self), step, depth: self.depth + 1 }
    }

    fn path(&self) -> Path {
        let parent = match self.parent {
            Start::At(path) => path.clone(),
            Start::Below(place) => place.path(),
        };
        match self.step {
            Step::Start => parent,
            Step::Field(name) => parent.child(name),
            Step::Key(key) => parent.key(key),
            Step::Index(index) => parent.index(index),
        }
    }
}

struct Walk<'s> {
    schema: &'s Schema,
    errors: ErrorList,
}

impl Walk<'_> {
    fn value(&mut self, id: TypeId, value: &Value, place: &Place<'_>) {
        if place.depth > MAX_DEPTH {
            return;
        }
        let ty = self.schema.get(id);
        let structural = ty.structural;
        if structural {
            if value.is_null() && ty.nullable {
                return;
            }
            if let Some(error) = structural::type_mismatch(&ty.shape, value, &place.path()) {
                self.errors.push(error);
                return;
            }
        }
        for rule in &ty.rules {
            self.rule(rule, value, place, structural);
        }
        match (&ty.shape, value) {
            (Shape::Object(object), Value::Object(map)) => self.object(object, map, place, structural),
            (Shape::Map { value: ty, .. }, Value::Object(map)) => {
                for (key, value) in map {
                    // A structural schema's maps are named like objects.
                    let step = if structural { Step::Field(key) } else { Step::Key(key) };
                    self.value(*ty, value, &place.step(step));
                }
            }
            (Shape::List(list), Value::Array(items)) => {
                if structural {
                    self.distinct(list, items, place);
                }
                for (index, item) in items.iter().enumerate() {
                    self.value(list.item, item, &place.step(Step::Index(index)));
                }
            }
            _ => {}
        }
    }

    fn object(&mut self, object: &Object, map: &Map<String, Value>, place: &Place<'_>, structural: bool) {
        for field in &object.fields {
            let place = place.step(Step::Field(&field.name));
            let value = map.get(&*field.name).filter(|v| field.nullable || structural || !v.is_null());
            let Some(value) = value else {
                if structural && field.required {
                    self.errors.push(Error::required(&place.path(), ""));
                }
                self.errors.extend(field.rules.iter().find_map(|rule| rules::absent(rule, field, &place)));
                continue;
            };
            if value.is_null() && field.nullable {
                continue;
            }
            for rule in &field.rules {
                let known = self.errors.len();
                self.rule(rule, value, &place, structural);
                // What is as good as absent is not judged further.
                if self.errors.len() > known && matches!(rule, Rule::Required | Rule::RequiredBecause(_)) {
                    break;
                }
            }
            self.value(field.ty, value, &place);
        }
        if structural && object.embedded {
            for name in ["apiVersion", "kind"] {
                if map.get(name).and_then(Value::as_str).unwrap_or_default().is_empty() {
                    let path = place.step(Step::Field(name)).path();
                    self.errors.push(Error::required(&path, "must not be empty"));
                }
            }
        }
        if let Some(ty) = object.additional {
            for (key, value) in map.iter().filter(|(key, _)| object.field(key).is_none()) {
                self.value(ty, value, &place.step(Step::Field(key)));
            }
        }
    }

    fn rule(&mut self, rule: &Rule, value: &Value, place: &Place<'_>, structural: bool) {
        if structural {
            if let Rule::Junction(junction, parts) = rule {
                self.junction(*junction, parts, value, place);
            }
            structural::rule(rule, value, place, &mut self.errors);
        } else {
            rules::rule(rule, value, place, &mut self.errors);
        }
    }

    fn junction(&mut self, junction: Junction, parts: &[TypeId], value: &Value, place: &Place<'_>) {
        let mut faults = parts.iter().map(|part| {
            let mut walk = Walk { schema: self.schema, errors: Vec::new() };
            walk.value(*part, value, &Place { parent: Start::Below(place), step: Step::Start, depth: place.depth + 1 });
            walk.errors
        });
        match junction {
            Junction::All => {
                let faults: ErrorList = faults.flatten().collect();
                self.errors.extend(faults);
            }
            Junction::Any => {
                let faults: Vec<ErrorList> = faults.collect();
                if faults.iter().all(|f| !f.is_empty()) {
                    self.errors.push(structural::junction_fault(junction, 0, &place.path()));
                    // The part that fits best says why.
                    self.errors.extend(faults.into_iter().min_by_key(Vec::len).unwrap_or_default());
                }
            }
            Junction::One => {
                let valid = faults.filter(Vec::is_empty).count();
                if valid != 1 {
                    self.errors.push(structural::junction_fault(junction, valid, &place.path()));
                }
            }
            Junction::Not => {
                if faults.any(|f| f.is_empty()) {
                    self.errors.push(structural::junction_fault(junction, 1, &place.path()));
                }
            }
        }
    }

    /// `x-kubernetes-list-type: set` and `map` of custom resources are enforced.
    fn distinct(&mut self, list: &List, items: &[Value], place: &Place<'_>) {
        let identity = |item: &Value| match &list.kind {
            ListKind::Atomic => None,
            ListKind::Set => Some(item.clone()),
            ListKind::Map { keys } => {
                let part = |key: &str| item.get(key).map(|value| (key.to_owned(), value.clone()));
                Some(Value::Object(keys.iter().filter_map(|key| part(key)).collect()))
            }
        };
        let mut seen = std::collections::HashSet::new();
        for (index, item) in items.iter().enumerate() {
            if let Some(identity) = identity(item)
                && !seen.insert(identity.to_string())
            {
                self.errors.push(Error::duplicate(&place.step(Step::Index(index)).path(), &identity));
            }
        }
    }
}
