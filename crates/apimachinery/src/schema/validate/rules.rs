//! The rules of built-in kinds, worded as `k8s.io/kubernetes/pkg/apis/*/validation`.

use serde_json::Value;

use super::{Place, Step, compound};
use crate::field::{Error, ErrorList};
use crate::schema::{Field, Rule};
use crate::{names, quantity, selector};

/// Total size of keys and values of one object's annotations.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

/// What a rule says of a field that is not there.
pub fn absent(rule: &Rule, field: &Field, place: &Place<'_>) -> Option<Error> {
    match rule {
        // A port that is no pointer in Go reads as 0.
        Rule::PortNumber | Rule::PortNameOrNumber if field.required => {
            Some(Error::invalid(&place.path(), &0.into(), &names::port_number(0).join("; ")))
        }
        _ => required(rule, place),
    }
}

fn required(rule: &Rule, place: &Place<'_>) -> Option<Error> {
    match rule {
        Rule::Required | Rule::Present => Some(Error::required(&place.path(), "")),
        Rule::RequiredBecause(detail) => Some(Error::required(&place.path(), detail)),
        _ => None,
    }
}

/// Applies `rule` to a value that is there. Rules on scalars hold for each item where the field is a list of them.
pub fn rule(rule: &Rule, value: &Value, place: &Place<'_>, errors: &mut ErrorList) {
    if let Rule::Compound(compound) = rule {
        match value {
            Value::Object(map) => compound::check(*compound, map, place, errors),
            Value::Array(items) => {
                for (index, item) in items.iter().enumerate().filter_map(|(i, v)| Some((i, v.as_object()?))) {
                    compound::check(*compound, item, &place.step(Step::Index(index)), errors);
                }
            }
            _ => {}
        }
        return;
    }
    if let (Value::Array(items), true) = (value, is_of_items(rule)) {
        for (index, item) in items.iter().enumerate() {
            scalar(rule, item, &place.step(Step::Index(index)), errors);
        }
        return;
    }
    match rule {
        Rule::Required | Rule::RequiredBecause(_) if is_zero(value) => errors.extend(required(rule, place)),
        Rule::MaxItems(max) => {
            if let Some(count) = value.as_array().map(Vec::len).filter(|count| count > max) {
                errors.push(Error::too_many(&place.path(), count, *max));
            }
        }
        Rule::MinItems(min) => {
            if value.as_array().is_some_and(|items| items.len() < *min) {
                errors.push(Error::required(&place.path(), &format!("must have at least {min} items")));
            }
        }
        Rule::UniqueBy(key) => unique(key, value, place, errors),
        Rule::Labels => labels(value, place, errors),
        Rule::AnnotationKeys => annotations(value, place, errors),
        Rule::ConfigMapKey if value.is_object() => {
            for key in value.as_object().into_iter().flatten().map(|(key, _)| key) {
                let place = place.step(Step::Key(key));
                errors.extend(
                    names::config_map_key(key).iter().map(|m| Error::invalid(&place.path(), &key.as_str().into(), m)),
                );
            }
        }
        Rule::NonNegativeQuantity if value.is_object() => {
            for (key, amount) in value.as_object().into_iter().flatten() {
                scalar(rule, amount, &place.step(Step::Key(key)), errors);
            }
        }
        Rule::LabelSelector => errors.extend(selector::label::validate(value, &place.path())),
        _ => scalar(rule, value, place, errors),
    }
}

fn is_of_items(rule: &Rule) -> bool {
    !matches!(
        rule,
        Rule::Required
            | Rule::RequiredBecause(_)
            | Rule::Present
            | Rule::MaxItems(_)
            | Rule::MinItems(_)
            | Rule::UniqueBy(_)
    )
}

/// Values that Go's decoding leaves as it found them: an omitted field looks the same.
fn is_zero(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::String(text) => text.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Number(number) => number.as_i64() == Some(0),
        Value::Bool(_) => false,
    }
}

fn scalar(rule: &Rule, value: &Value, place: &Place<'_>, errors: &mut ErrorList) {
    match value {
        // Whether a value must be there is said by `required` alone.
        Value::String(text) if text.is_empty() => {}
        Value::String(text) => string(rule, text, value, place, errors),
        Value::Number(number) => {
            let messages = number_messages(rule, number.as_i64(), number.as_f64().unwrap_or_default());
            errors.extend(messages.iter().map(|m| Error::invalid(&place.path(), value, m)));
        }
        _ => {}
    }
}

fn string(rule: &Rule, text: &str, value: &Value, place: &Place<'_>, errors: &mut ErrorList) {
    let messages = match rule {
        Rule::Enum(values) => {
            if !values.iter().any(|v| **v == *text) {
                let supported: Vec<&str> = values.iter().map(|v| &**v).filter(|v| !v.is_empty()).collect();
                errors.push(Error::not_supported(&place.path(), value, &supported));
            }
            return;
        }
        Rule::OneOf { values, detail } if !values.iter().any(|v| **v == *text) => vec![detail.to_string()],
        Rule::MaxLength(max) => {
            if text.len() > *max {
                errors.push(Error::too_long(&place.path(), *max));
            }
            return;
        }
        Rule::DnsLabel => names::dns1123_label(text),
        Rule::DnsSubdomain => names::dns1123_subdomain(text),
        Rule::Dns1035Label => names::dns1035_label(text),
        Rule::QualifiedName => names::qualified_name(text),
        Rule::LabelValue => names::label_value(text),
        Rule::EnvVarName => names::relaxed_env_var_name(text),
        Rule::PortName | Rule::PortNameOrNumber => names::port_name(text),
        Rule::HttpHeaderName => names::http_header_name(text),
        Rule::ConfigMapKey => names::config_map_key(text),
        Rule::IpAddress => names::ip(text),
        Rule::Cidr => names::cidr(text),
        Rule::CountOrPercent => names::percent(text),
        Rule::WildcardHost if text.contains('*') => names::wildcard_dns1123_subdomain(text),
        Rule::WildcardHost => names::dns1123_subdomain(text),
        Rule::AbsolutePath if !text.starts_with('/') => vec!["must be an absolute path".to_owned()],
        Rule::NonNegativeQuantity => match quantity::Quantity::parse(text) {
            Ok(amount) if amount.signum() < 0 => vec![AT_LEAST_ZERO.to_owned()],
            _ => return,
        },
        _ => return,
    };
    errors.extend(messages.iter().map(|m| Error::invalid(&place.path(), value, m)));
}

const AT_LEAST_ZERO: &str = "must be greater than or equal to 0";

fn number_messages(rule: &Rule, whole: Option<i64>, number: f64) -> Vec<String> {
    let message = match rule {
        Rule::Range { min: Some(min), max: Some(max) } if number < *min || number > *max => {
            format!("must be between {min} and {max}, inclusive")
        }
        Rule::Range { min: Some(min), max: None } if number < *min => {
            format!("must be greater than or equal to {min}")
        }
        Rule::Range { min: None, max: Some(max) } if number > *max => format!("must be less than or equal to {max}"),
        Rule::Between { above: Some(above), .. } if number <= *above => format!("must be greater than {above}"),
        Rule::Between { below: Some(below), .. } if number >= *below => format!("must be less than {below}"),
        Rule::Bounded { min, max, detail } if whole.is_none_or(|n| n < *min || n > *max) => detail.to_string(),
        Rule::PortNumber | Rule::PortNameOrNumber => return names::port_number(whole.unwrap_or(-1)),
        Rule::CountOrPercent if number < 0.0 => AT_LEAST_ZERO.to_owned(),
        Rule::UserId => return names::user_id(whole.unwrap_or(-1)),
        _ => return Vec::new(),
    };
    vec![message]
}

fn unique(key: &str, value: &Value, place: &Place<'_>, errors: &mut ErrorList) {
    let mut seen = std::collections::HashSet::new();
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        let found = if key.is_empty() { Some(item) } else { item.get(key) };
        let Some(text) = found.and_then(Value::as_str).filter(|text| !text.is_empty()) else { continue };
        if !seen.insert(text) {
            let at = place.step(Step::Index(index));
            let path = if key.is_empty() { at.path() } else { at.path().child(key) };
            errors.push(Error::duplicate(&path, &text.into()));
        }
    }
}

fn labels(value: &Value, place: &Place<'_>, errors: &mut ErrorList) {
    for (key, value) in value.as_object().into_iter().flatten() {
        let path = || place.path();
        errors.extend(names::qualified_name(key).iter().map(|m| Error::invalid(&path(), &key.as_str().into(), m)));
        let text = value.as_str().unwrap_or_default();
        errors.extend(names::label_value(text).iter().map(|m| Error::invalid(&path(), value, m)));
    }
}

fn annotations(value: &Value, place: &Place<'_>, errors: &mut ErrorList) {
    let mut size = 0;
    for (key, value) in value.as_object().into_iter().flatten() {
        let messages = names::qualified_name(&key.to_ascii_lowercase());
        errors.extend(messages.iter().map(|m| Error::invalid(&place.path(), &key.as_str().into(), m)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS_BYTES {
        errors.push(Error::too_long(&place.path(), MAX_ANNOTATIONS_BYTES));
    }
}
