//! Checks of an applied configuration against the schema; upstream's `structured-merge-diff/typed` validation and its words.

use std::borrow::Cow;
use std::collections::HashSet;

use serde_json::Value;

use super::set::element_text;
use super::typed::{Type, Typed};
use crate::schema::{List, ListKind, MAX_DEPTH, Scalar, Shape};

impl Typed<'_> {
    /// Checks an applied configuration; the faults as upstream words them, joined.
    pub fn validate(&self, config: &Value) -> Result<(), String> {
        let faults = self.faults(Type::Known(self.root), config, 0);
        match faults.as_slice() {
            [] => Ok(()),
            [one] => Err(one.text()),
            many => {
                let lines: Vec<String> = many.iter().map(|fault| format!("  {}", fault.text())).collect();
                Err(format!("errors:\n{}", lines.join("\n")))
            }
        }
    }

    fn faults(&self, ty: Type, value: &Value, depth: usize) -> Vec<Fault> {
        let Type::Known(id) = ty else { return Vec::new() };
        if depth > MAX_DEPTH {
            return vec![Fault::new("nested too deeply".to_owned())];
        }
        let wrong = |expected: &str| vec![Fault::new(format!("expected {expected}, got &{{{}}}", plain(value)))];
        match (&self.schema.get(id).shape, value) {
            (_, Value::Null) | (Shape::Any, _) => Vec::new(),
            (Shape::Scalar(scalar), _) => scalar_fault(*scalar, value).into_iter().map(Fault::new).collect(),
            (Shape::Object(object), Value::Object(map)) => {
                let mut faults = Vec::new();
                for (name, inner) in map {
                    let found = match self.field_type(object, name) {
                        Some(ty) => self.faults(ty, inner, depth + 1),
                        None => vec![Fault::new("field not declared in schema".to_owned())],
                    };
                    faults.extend(found.into_iter().map(|fault| fault.below(&format!(".{name}"))));
                }
                faults
            }
            (Shape::Map { value: ty, .. }, Value::Object(map)) => {
                let each = |(name, inner): (&String, &Value)| {
                    let found = self.faults(Type::Known(*ty), inner, depth + 1);
                    found.into_iter().map(move |fault| fault.below(&format!(".{name}"))).collect::<Vec<_>>()
                };
                map.iter().flat_map(each).collect()
            }
            (Shape::Object(_) | Shape::Map { .. }, _) => wrong("map"),
            (Shape::List(list), Value::Array(items)) => self.item_faults(list, items, depth),
            (Shape::List(_), _) => wrong("list"),
        }
    }

    fn item_faults(&self, list: &List, items: &[Value], depth: usize) -> Vec<Fault> {
        let mut faults = Vec::new();
        let mut seen = HashSet::new();
        for (i, item) in items.iter().enumerate() {
            let place = if list.kind == ListKind::Atomic {
                Cow::Owned(format!("[{i}]"))
            } else {
                match self.element(list, item) {
                    Ok(key) => {
                        let text = element_text(&key);
                        if !seen.insert(key) {
                            faults.push(Fault::new(format!("duplicate entries for key {text}")));
                        }
                        Cow::Owned(text)
                    }
                    Err(why) => {
                        faults.push(Fault::new(format!("element {i}: {why}")));
                        return faults;
                    }
                }
            };
            let found = self.faults(Type::Known(list.item), item, depth + 1);
            faults.extend(found.into_iter().map(|fault| fault.below(&place)));
        }
        faults
    }
}

struct Fault {
    path: String,
    message: String,
}

impl Fault {
    fn new(message: String) -> Self {
        Fault { path: String::new(), message }
    }

    fn below(self, element: &str) -> Self {
        Fault { path: format!("{element}{}", self.path), ..self }
    }

    fn text(&self) -> String {
        if self.path.is_empty() { self.message.clone() } else { format!("{}: {}", self.path, self.message) }
    }
}

fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

fn scalar_fault(scalar: Scalar, value: &Value) -> Option<String> {
    let go_type = match value {
        Value::Null => return None,
        Value::Bool(_) => "bool",
        Value::Number(n) if n.is_f64() => "float64",
        Value::Number(_) => "int64",
        Value::String(_) => "string",
        Value::Array(_) => "[]interface {}",
        Value::Object(_) => "map[string]interface {}",
    };
    match scalar {
        Scalar::Int32 | Scalar::Int64 | Scalar::Double if !value.is_number() => {
            Some(format!("expected numeric (int or float), got {go_type}"))
        }
        Scalar::Bool if !value.is_boolean() => Some(format!("expected boolean, got &{{{}}}", plain(value))),
        Scalar::String | Scalar::Bytes | Scalar::Time | Scalar::MicroTime if !value.is_string() => {
            Some(format!("expected string, got &value.valueUnstructured{{Value:{value}}}"))
        }
        Scalar::Quantity | Scalar::IntOrString if value.is_array() || value.is_object() => {
            Some(format!("expected any scalar, got &{{{}}}", plain(value)))
        }
        _ => None,
    }
}
