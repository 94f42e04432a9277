//! An answer without what no two servers share, and how it is written down.

use std::fmt::Write as _;

use serde_json::{Map, Value, json};

use crate::corpus::Request;

/// What came back.
#[derive(Clone, Debug, PartialEq)]
pub struct Answer {
    pub code: u16,
    pub warnings: Vec<String>,
    /// The body; text where it is no JSON.
    pub body: Value,
}

/// Clusters' networks of services, in which addresses are given.
const SERVICE_NETWORK: &str = "10.43.";
const NODE_PORTS: std::ops::RangeInclusive<i64> = 30000..=32767;
/// As long as a generated name's end.
const GENERATED: usize = 5;

impl Answer {
    /// Puts words in place of what is given by chance or clock.
    pub fn normalised(mut self, request: &Request) -> Self {
        let sent = request.body.to_string();
        let prefix = request.body["metadata"]["generateName"].as_str().unwrap_or_default().to_owned();
        let chance = Chance { sent, prefix, managed: request.managed, now: jiff::Timestamp::now() };
        chance.value("", &mut self.body);
        for warning in &mut self.warnings {
            *warning = chance.text(warning);
        }
        self
    }

    /// As lines of a golden file. `before` is what the answer is told relative to: what was sent, or the object as last seen.
    pub fn written(&self, before: &Value) -> String {
        let mut out = self.code.to_string();
        if self.body["kind"] == "Status" {
            status(&self.body, &mut out);
        } else if self.body.is_object() && before.is_object() {
            out.push('\n');
            changes(before, &self.body, "", &mut out);
        } else {
            let _ = writeln!(out, " {}", self.body);
        }
        for warning in &self.warnings {
            let _ = writeln!(out, "  warning: {warning}");
        }
        out
    }
}

/// Knows what to recognise as given by chance.
struct Chance {
    /// The request's body: what it says is not by chance.
    sent: String,
    /// `generateName`
    prefix: String,
    managed: bool,
    now: jiff::Timestamp,
}

impl Chance {
    fn value(&self, key: &str, value: &mut Value) {
        match value {
            Value::String(text) => *text = self.text(text),
            Value::Number(number) => {
                let port = number.as_i64().filter(|n| NODE_PORTS.contains(n) && !self.sent.contains(&n.to_string()));
                if matches!(key, "nodePort" | "healthCheckNodePort") && port.is_some() {
                    *value = json!("<port>");
                }
            }
            Value::Array(items) => items.iter_mut().for_each(|item| self.value(key, item)),
            Value::Object(map) => {
                if key == "metadata" {
                    for name in ["uid", "resourceVersion", "creationTimestamp", "selfLink"] {
                        map.remove(name);
                    }
                    if !self.managed {
                        map.remove("managedFields");
                    }
                }
                if key == "managedFields" {
                    map.remove("time");
                }
                for (key, value) in map {
                    self.value(key, value);
                }
            }
            _ => {}
        }
    }

    fn text(&self, text: &str) -> String {
        if let Ok(time) = text.parse::<jiff::Timestamp>()
            && (time.as_second() - self.now.as_second()).abs() < 86_400
        {
            return "<time>".to_owned();
        }
        let mut text = without_uids(text);
        if !self.prefix.is_empty()
            && let Some(start) = text.find(&self.prefix)
        {
            let end = start + self.prefix.len() + GENERATED;
            let by_chance = |part: &str| part.bytes().all(|b| b.is_ascii_lowercase() || b.is_ascii_digit());
            if text.get(start + self.prefix.len()..end).is_some_and(by_chance) {
                text.replace_range(start..end, "<generated>");
            }
        }
        if let Some(start) = text.find(SERVICE_NETWORK) {
            let length = text[start..].find(|c: char| !c.is_ascii_digit() && c != '.').unwrap_or(text.len() - start);
            let address = &text[start..start + length];
            if !self.sent.contains(address) && address.parse::<std::net::Ipv4Addr>().is_ok() {
                text.replace_range(start..start + length, "<ip>");
            }
        }
        text
    }
}

const UID: usize = 36;

fn without_uids(text: &str) -> String {
    let is_uid = |part: &str| {
        part.bytes().enumerate().all(|(index, byte)| match index {
            8 | 13 | 18 | 23 => byte == b'-',
            _ => byte.is_ascii_hexdigit(),
        })
    };
    let mut text = text.to_owned();
    while let Some(start) = (0..text.len()).find(|start| text.get(*start..start + UID).is_some_and(is_uid)) {
        text.replace_range(start..start + UID, "<uid>");
    }
    text
}

/// A `Status`, short where its message follows from its causes.
fn status(status: &Value, out: &mut String) {
    let text = |value: &Value| value.as_str().unwrap_or_default().to_owned();
    let details = &status["details"];
    let causes: &[Value] = details["causes"].as_array().map(Vec::as_slice).unwrap_or_default();
    let (name, kind, group) = (text(&details["name"]), text(&details["kind"]), text(&details["group"]));
    let _ = write!(out, " {} {kind}", text(&status["status"]));
    if !group.is_empty() {
        let _ = write!(out, ".{group}");
    }
    let _ = writeln!(out, " {name:?} {}", text(&status["reason"]));
    let cause = |cause: &Value| format!("{}: {}", text(&cause["field"]), text(&cause["message"]));
    let mut told: Vec<String> = Vec::new();
    for one in causes.iter().map(cause) {
        if !told.contains(&one) {
            told.push(one);
        }
    }
    let joined = if let [one] = &told[..] { one.clone() } else { format!("[{}]", told.join(", ")) };
    let dotted = if group.is_empty() { kind.clone() } else { format!("{kind}.{group}") };
    if text(&status["message"]) != format!("{dotted} {name:?} is invalid: {joined}") {
        let _ = writeln!(out, "  {}", text(&status["message"]));
    }
    for cause in causes {
        let _ = writeln!(out, "  {} {}: {}", text(&cause["reason"]), text(&cause["field"]), text(&cause["message"]));
    }
    let mut rest = status.clone();
    for key in ["kind", "apiVersion", "metadata", "status", "message", "reason", "code"] {
        rest.as_object_mut().map(|map| map.remove(key));
    }
    if let Some(details) = rest.get_mut("details").and_then(Value::as_object_mut) {
        for key in ["name", "kind", "group", "causes"] {
            details.remove(key);
        }
    }
    if rest != json!({"details": {}}) && rest != json!({}) {
        let _ = writeln!(out, "  {rest}");
    }
}

/// `PATH=JSON` for what is new or other, `PATH!` for what is gone.
fn changes(before: &Value, after: &Value, path: &str, out: &mut String) {
    match (before, after) {
        (Value::Object(before), Value::Object(after)) => {
            let empty = Map::new();
            let was = if before.is_empty() { &empty } else { before };
            for key in was.keys().filter(|key| !after.contains_key(*key)) {
                let _ = writeln!(out, "  {}!", below(path, key));
            }
            for (key, value) in after {
                match was.get(key) {
                    Some(old) => changes(old, value, &below(path, key), out),
                    None => _ = writeln!(out, "  {}={value}", below(path, key)),
                }
            }
        }
        (Value::Array(before), Value::Array(after)) if before.len() == after.len() => {
            for (index, (old, new)) in before.iter().zip(after).enumerate() {
                changes(old, new, &format!("{path}[{index}]"), out);
            }
        }
        _ if before == after => {}
        _ => _ = writeln!(out, "  {path}={after}"),
    }
}

fn below(path: &str, key: &str) -> String {
    match (path, key.contains(['.', '/'])) {
        (_, true) => format!("{path}[{key:?}]"),
        ("", false) => key.to_owned(),
        (_, false) => format!("{path}.{key}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_answer_is_written_as_what_the_server_changed() {
        let sent = json!({"a": 1, "gone": 2, "list": [{"x": 1}]});
        let body = json!({"a": 2, "list": [{"x": 1, "y": "z"}], "b.c/d": {}});
        let answer = Answer { code: 201, warnings: vec!["w".to_owned()], body };
        let written = answer.written(&sent);
        assert_eq!(written, "201\n  gone!\n  a=2\n  [\"b.c/d\"]={}\n  list[0].y=\"z\"\n  warning: w\n");
    }

    #[test]
    fn chance_is_taken_out() {
        let chance = Chance {
            sent: "10.43.0.9".to_owned(),
            prefix: "web-".to_owned(),
            managed: false,
            now: jiff::Timestamp::now(),
        };
        assert_eq!(chance.text("pods \"web-abc12\" is"), "pods \"<generated>\" is");
        assert_eq!(chance.text("at 10.43.7.8, or"), "at <ip>, or");
        assert_eq!(chance.text("10.43.0.9"), "10.43.0.9");
        assert_eq!(chance.text(&chance.now.to_string()), "<time>");
        assert_eq!(chance.text("2001-01-01T00:00:00Z"), "2001-01-01T00:00:00Z");
        assert_eq!(chance.text("UID 5f6d2f0e-8b0a-4b6e-9d57-0c3f4b1d2e3f."), "UID <uid>.");
    }
}
