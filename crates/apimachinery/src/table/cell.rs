//! Reading an object for its cells.

use std::collections::BTreeSet;

use serde_json::Value;

use super::duration;
use crate::meta;
use crate::quantity::Quantity;
use crate::selector::LabelSelector;

pub(super) const NONE: &str = "<none>";
pub(super) const UNSET: &str = "<unset>";
pub(super) const UNKNOWN: &str = "<unknown>";

/// An object and the time of the request. Paths are JSON pointers.
pub(super) struct Cells<'v> {
    pub object: &'v Value,
    pub now: i64,
}

impl<'v> Cells<'v> {
    pub fn name(&self) -> Value {
        meta::name(self.object).into()
    }

    pub fn age(&self) -> Value {
        self.since("/metadata/creationTimestamp").into()
    }

    pub fn get(&self, path: &str) -> Option<&'v Value> {
        self.object.pointer(path).filter(|value| !value.is_null())
    }

    pub fn text(&self, path: &str) -> &'v str {
        self.get(path).and_then(Value::as_str).unwrap_or_default()
    }

    /// The text, or `absent` if there is none or it is empty.
    pub fn text_or(&self, path: &str, absent: &'v str) -> &'v str {
        Some(self.text(path)).filter(|text| !text.is_empty()).unwrap_or(absent)
    }

    pub fn int(&self, path: &str) -> i64 {
        self.get(path).and_then(Value::as_i64).unwrap_or(0)
    }

    pub fn bool(&self, path: &str, absent: bool) -> bool {
        self.get(path).and_then(Value::as_bool).unwrap_or(absent)
    }

    pub fn list(&self, path: &str) -> &'v [Value] {
        list(self.object, path)
    }

    /// Entries of a map or items of a list.
    pub fn count(&self, path: &str) -> i64 {
        let length = match self.get(path) {
            Some(Value::Object(map)) => map.len(),
            Some(Value::Array(items)) => items.len(),
            _ => 0,
        };
        i64::try_from(length).unwrap_or(i64::MAX)
    }

    pub fn is_deleting(&self) -> bool {
        meta::is_deleting(self.object)
    }

    /// The time gone since the timestamp at `path`.
    pub fn since(&self, path: &str) -> String {
        self.since_time(self.text(path))
    }

    pub fn since_time(&self, timestamp: &str) -> String {
        seconds(timestamp).map_or_else(|| UNKNOWN.to_owned(), |time| duration::human(self.now.saturating_sub(time)))
    }

    /// An int-or-string or a number as text.
    pub fn plain_or(&self, path: &str, absent: &str) -> String {
        self.get(path).map_or_else(|| absent.to_owned(), plain)
    }

    /// A map of labels: `a=b,c=d`.
    pub fn labels(&self, path: &str) -> Value {
        let pairs = self.get(path).and_then(Value::as_object).into_iter().flatten();
        let texts: Vec<String> = pairs.map(|(key, value)| format!("{key}={}", plain(value))).collect();
        or_none(texts.join(",")).into()
    }

    /// A label selector, as upstream's `FormatLabelSelector`.
    pub fn selector(&self, path: &str) -> Value {
        match LabelSelector::from_value(self.get(path).unwrap_or(&Value::Null)) {
            Ok(selector) => or_none(selector.to_string()).into(),
            Err(_) => "<error>".into(),
        }
    }

    /// Names and images of the containers at `path`.
    pub fn containers(&self, path: &str) -> [Value; 2] {
        let join = |field: &str| {
            let texts: Vec<&str> = self.list(path).iter().map(|c| meta::str_at(c, &[field])).collect();
            Value::from(texts.join(","))
        };
        [join("name"), join("image")]
    }

    /// The status of the condition of that type, if there is one.
    pub fn condition(&self, kind: &str) -> Option<&'v str> {
        let conditions = self.list("/status/conditions");
        conditions.iter().find(|c| meta::str_at(c, &["type"]) == kind).map(|c| meta::str_at(c, &["status"]))
    }

    /// `a,b,c + 2 more...`: the first three of `items`.
    pub fn first_three(items: &[String]) -> String {
        const MAX: usize = 3;
        let shown = items[..items.len().min(MAX)].join(",");
        match items.len().saturating_sub(MAX) {
            0 => shown,
            more => format!("{shown} + {more} more..."),
        }
    }

    /// The addresses of a load balancer, sorted.
    pub fn load_balancer(&self) -> Vec<&'v str> {
        let address = |ingress: &'v Value| {
            let ip = meta::str_at(ingress, &["ip"]);
            if ip.is_empty() { meta::str_at(ingress, &["hostname"]) } else { ip }
        };
        let addresses = self.list("/status/loadBalancer/ingress").iter().map(address);
        addresses.filter(|text| !text.is_empty()).collect::<BTreeSet<_>>().into_iter().collect()
    }
}

pub(super) fn list<'v>(value: &'v Value, path: &str) -> &'v [Value] {
    value.pointer(path).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default()
}

/// A scalar without quotes.
pub(super) fn plain(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}

pub(super) fn or_none(text: String) -> String {
    if text.is_empty() { NONE.to_owned() } else { text }
}

/// A quantity in canonical form; `0` if there is none.
pub(super) fn quantity(value: Option<&Value>) -> String {
    value.map_or_else(
        || "0".to_owned(),
        |value| Quantity::from_value(value).map_or_else(|_| plain(value), |q| q.to_string()),
    )
}

/// Seconds since 1970, rounded down.
pub(super) fn seconds(timestamp: &str) -> Option<i64> {
    let time: jiff::Timestamp = timestamp.parse().ok()?;
    Some(time.as_nanosecond().div_euclid(1_000_000_000).try_into().unwrap_or(i64::MAX))
}
