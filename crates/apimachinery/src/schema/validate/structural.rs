//! The rules of a CustomResourceDefinition's schema, worded as upstream's `kube-openapi/pkg/validation`.

use serde_json::Value;

use super::Place;
use crate::field::{Error, ErrorKind, ErrorList, Path};
use crate::schema::{Junction, Rule, Scalar, Shape, scalar};

/// The error of a value whose JSON type is not the schema's.
pub fn type_mismatch(shape: &Shape, value: &Value, path: &Path) -> Option<Error> {
    let fits = match (shape, value) {
        (Shape::Any, _) => true,
        (Shape::Object(_) | Shape::Map { .. }, value) => value.is_object(),
        (Shape::List(_), value) => value.is_array(),
        (Shape::Scalar(kind), value) => scalar_fits(*kind, value),
    };
    if fits {
        return None;
    }
    if value.is_string() && matches!(shape, Shape::Scalar(Scalar::Time | Scalar::Bytes)) {
        let detail = format!("{path} in body must be of type {}: {value}", wanted(shape));
        return Some(Error::type_invalid(path, value, &detail));
    }
    let found = Value::from(type_of(value));
    let detail = format!("{path} in body must be of type {}: {found}", wanted(shape));
    Some(Error::type_invalid(path, &found, &detail))
}

fn scalar_fits(kind: Scalar, value: &Value) -> bool {
    match kind {
        Scalar::Bool => value.is_boolean(),
        Scalar::Int64 => is_whole(value),
        Scalar::Int32 => value.as_i64().map_or(is_whole(value), |n| i32::try_from(n).is_ok()),
        Scalar::Double => value.is_number(),
        Scalar::IntOrString => value.is_string() || is_whole(value),
        Scalar::Time | Scalar::MicroTime => value.as_str().is_some_and(|text| scalar::time(text).is_ok()),
        Scalar::Bytes => value.as_str().is_some_and(|text| scalar::base64(text).is_ok()),
        Scalar::String | Scalar::Quantity => value.is_string(),
    }
}

/// JSON has no integers: 1.0 is one.
fn is_whole(value: &Value) -> bool {
    value.is_i64() || value.is_u64() || value.as_f64().is_some_and(|n| n.fract() == 0.0)
}

fn type_of(value: &Value) -> &'static str {
    match value {
        Value::Null => "null",
        Value::Bool(_) => "boolean",
        Value::Number(_) if is_whole(value) => "integer",
        Value::Number(_) => "number",
        Value::String(_) => "string",
        Value::Array(_) => "array",
        Value::Object(_) => "object",
    }
}

fn wanted(shape: &Shape) -> &'static str {
    match shape {
        Shape::Object(_) | Shape::Map { .. } | Shape::Any => "object",
        Shape::List(_) => "array",
        Shape::Scalar(Scalar::Bool) => "boolean",
        Shape::Scalar(Scalar::Int32 | Scalar::Int64) => "integer",
        Shape::Scalar(Scalar::Double) => "number",
        Shape::Scalar(Scalar::IntOrString) => "integer,string",
        Shape::Scalar(Scalar::Time | Scalar::MicroTime) => "date-time",
        Shape::Scalar(Scalar::Bytes) => "byte",
        Shape::Scalar(Scalar::String | Scalar::Quantity) => "string",
    }
}

pub fn rule(rule: &Rule, value: &Value, place: &Place<'_>, errors: &mut ErrorList) {
    let path = || place.path();
    let body = |detail: String| {
        let path = place.path();
        let detail = format!("{path} in body {detail}");
        Error::invalid(&path, value, &detail)
    };
    let error = match (rule, value) {
        (Rule::Enum(values), _) => {
            let text = value.as_str().map_or_else(|| value.to_string(), str::to_owned);
            if values.iter().any(|v| **v == *text) {
                return;
            }
            let supported: Vec<&str> = values.iter().map(|v| &**v).collect();
            Error::not_supported(&path(), value, &supported)
        }
        (Rule::MaxLength(max), Value::String(text)) if text.chars().count() > *max => Error::too_long(&path(), *max),
        (Rule::MinLength(min), Value::String(text)) if text.chars().count() < *min => {
            body(format!("should be at least {min} chars long"))
        }
        (Rule::Pattern(pattern), Value::String(text)) => match pattern.is_match(text) {
            Some(true) => return,
            Some(false) => body(format!("should match '{}'", pattern.as_str())),
            None => body(format!("should match '{}', but pattern is invalid", pattern.as_str())),
        },
        (Rule::MaxItems(max), Value::Array(items)) if items.len() > *max => Error::too_many(&path(), items.len(), *max),
        (Rule::MinItems(min), Value::Array(items)) if items.len() < *min => {
            body(format!("should have at least {min} items"))
        }
        (Rule::MaxProperties(max), Value::Object(map)) if map.len() > *max => Error::too_many(&path(), map.len(), *max),
        (Rule::MinProperties(min), Value::Object(map)) if map.len() < *min => {
            body(format!("should have at least {min} properties"))
        }
        (Rule::UniqueItems, Value::Array(items)) if has_repeats(items) => {
            let path = place.path();
            Error {
                kind: ErrorKind::Duplicate,
                body: format!("Duplicate value: {path} in body shouldn't contain duplicates"),
                field: path,
            }
        }
        (_, Value::Number(number)) => match number_fault(rule, number.as_f64().unwrap_or_default()) {
            Some(fault) => body(fault),
            None => return,
        },
        _ => return,
    };
    errors.push(error);
}

/// The text of a failed `anyOf`, `oneOf` or `not`, of which `valid` parts hold.
pub fn junction_fault(junction: Junction, valid: usize, path: &Path) -> Error {
    let text = match (junction, valid) {
        (Junction::All, _) => "must validate all the schemas (allOf)".to_owned(),
        (Junction::Any, _) => "must validate at least one schema (anyOf)".to_owned(),
        (Junction::Not, _) => "must not validate the schema (not)".to_owned(),
        (Junction::One, 0) => "must validate one and only one schema (oneOf). Found none valid".to_owned(),
        (Junction::One, n) => format!("must validate one and only one schema (oneOf). Found {n} valid alternatives"),
    };
    Error::invalid(path, &Value::from(""), &format!("\"{}\" {text}", path.as_str()))
}

fn has_repeats(items: &[Value]) -> bool {
    let mut seen = std::collections::HashSet::new();
    !items.iter().all(|item| seen.insert(item.to_string()))
}

fn number_fault(rule: &Rule, number: f64) -> Option<String> {
    Some(match rule {
        Rule::Range { min: Some(min), .. } if number < *min => format!("should be greater than or equal to {min}"),
        Rule::Range { max: Some(max), .. } if number > *max => format!("should be less than or equal to {max}"),
        Rule::Between { above: Some(above), .. } if number <= *above => format!("should be greater than {above}"),
        Rule::Between { below: Some(below), .. } if number >= *below => format!("should be less than {below}"),
        Rule::MultipleOf(factor) if *factor > 0.0 && (number / factor).fract() != 0.0 => {
            format!("should be a multiple of {factor}")
        }
        _ => return None,
    })
}
