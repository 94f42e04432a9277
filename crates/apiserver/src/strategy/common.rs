//! Small pieces that several strategies share.

use apimachinery::Value;
use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::meta;
use serde_json::json;

use super::{Context, Part, Strategy};

/// `field is immutable` if `path` differs between the two.
pub fn immutable(object: &Value, old: &Value, path: &[&str], errors: &mut ErrorList) {
    let (new, before) = (meta::at(object, path), meta::at(old, path));
    if new != before {
        errors.push(Error::invalid(&path_of(path), new.unwrap_or(&Value::Null), "field is immutable"));
    }
}

pub fn path_of(path: &[&str]) -> Path {
    path.iter().fold(Path::root(), |at, name| at.child(name))
}

/// `object[key]` is set to `value` if it is absent or null.
pub fn set_default(object: &mut Value, key: &str, value: impl Into<Value>) {
    if let Some(map) = object.as_object_mut()
        && map.get(key).is_none_or(Value::is_null)
    {
        map.insert(key.to_owned(), value.into());
    }
}

pub fn items<'a>(object: &'a Value, key: &str) -> impl Iterator<Item = &'a Value> {
    object.get(key).and_then(Value::as_array).into_iter().flatten()
}

pub fn items_mut<'a>(object: &'a mut Value, key: &str) -> impl Iterator<Item = &'a mut Value> {
    object.get_mut(key).and_then(Value::as_array_mut).into_iter().flatten()
}

/// `Duplicate value` for each repeat of `name` among the items.
pub fn unique_names(object: &Value, list: &str, path: &Path, errors: &mut ErrorList) {
    let mut seen: Vec<&str> = Vec::new();
    for (index, item) in items(object, list).enumerate() {
        let name = meta::str_at(item, &["name"]);
        if name.is_empty() {
            continue;
        }
        if seen.contains(&name) {
            errors.push(Error::duplicate(&path.child(list).index(index).child("name"), &json!(name)));
        }
        seen.push(name);
    }
}

/// `to[key]` becomes what `from[key]` is, absence included.
pub fn copy_field(from: &Value, to: &mut Value, key: &str) {
    if let Some(map) = to.as_object_mut() {
        match from.get(key) {
            Some(value) => map.insert(key.to_owned(), value.clone()),
            None => map.remove(key),
        };
    }
}

/// A kind of which the listed fields never change.
pub struct Fixed(pub &'static [&'static [&'static str]]);

impl Strategy for Fixed {
    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if let (Some(old), Part::Main) = (old, part) {
            self.0.iter().for_each(|path| immutable(object, old, path, &mut errors));
        }
        errors
    }
}
