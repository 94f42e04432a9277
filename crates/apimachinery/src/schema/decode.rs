//! Bytes to JSON values, keeping what field validation must know: which keys were given twice.
//!
//! Knows nothing of types; [`super::check`] compares the value with a schema.

use std::fmt;

use serde::de::{Deserialize, DeserializeSeed, Deserializer, Error as _, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use super::{MAX_DEPTH, gojson};
use crate::status::StatusError;

/// A decoded body. Of a key given twice the last value stands, as in Go.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Decoded {
    pub value: Value,
    pub duplicates: Duplicates,
}

/// Keys of a body that were given more than once.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Duplicates {
    /// Such as `spec.containers[0].name`, in the order of their parents' ends.
    paths: Vec<String>,
    /// Of each path, the line of the repeated key; empty for JSON, which upstream complains of by path.
    lines: Vec<u64>,
    /// Every path of a document of JSON that has duplicates, in its order: complaints come in the order of the document.
    order: Vec<String>,
}

impl Duplicates {
    pub fn is_empty(&self) -> bool {
        self.paths.is_empty()
    }

    /// Upstream's words for what a strict reader of YAML finds, which come before those of any decoding: a line for each key.
    pub fn of_yaml(&self) -> Vec<String> {
        let line = |(path, line): (&String, &u64)| {
            let key = path.rsplit('.').next().unwrap_or(path);
            format!("line {line}: key {key:?} already set in map")
        };
        let mut lines: Vec<(&String, &u64)> = self.paths.iter().zip(&self.lines).collect();
        lines.sort_by_key(|(_, line)| **line);
        lines.into_iter().map(line).collect()
    }

    /// As the error of a strict reader of YAML; none for JSON and where there are no duplicates.
    pub fn yaml_error(&self) -> Option<String> {
        let lines = self.of_yaml();
        let each = lines.iter().map(|line| format!("\n  {line}")).collect::<String>();
        (!lines.is_empty()).then(|| format!("error converting YAML to JSON: yaml: unmarshal errors:{each}"))
    }

    /// Paths of JSON, as upstream's decoding finds them.
    pub fn of_json(&self) -> &[String] {
        if self.lines.is_empty() { &self.paths } else { &[] }
    }

    /// Where in the document a path comes, the last time; the end for a path that it does not have.
    pub fn place(&self, path: &str) -> usize {
        self.order.iter().rposition(|known| known == path).unwrap_or(usize::MAX)
    }
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// In the words of Go's encoding/json.
    #[error("couldn't get version/kind; json parse error: {0}")]
    Json(String),
    #[error("yaml: {0}")]
    Yaml(String),
}

pub fn from_json(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let mut duplicates = Duplicates::default();
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let decoded = Seed { duplicates: &mut duplicates, yaml: false, depth: 0 }.deserialize(&mut deserializer);
    match decoded.and_then(|value| deserializer.end().map(|()| value)) {
        Ok(value) => {
            if !duplicates.is_empty() {
                // The body was read once already: it cannot fail now.
                let paths = Paths { at: String::new(), found: &mut duplicates.order };
                _ = paths.deserialize(&mut serde_json::Deserializer::from_slice(bytes));
            }
            Ok(Decoded { value, duplicates })
        }
        Err(e) => Err(DecodeError::Json(gojson::explain(bytes).unwrap_or_else(|| e.to_string()))),
    }
}

/// The first document of a YAML stream.
pub fn from_yaml(bytes: &[u8]) -> Result<Decoded, DecodeError> {
    let text =
        std::str::from_utf8(bytes).map_err(|_| DecodeError::Yaml("control characters are not allowed".into()))?;
    let mut duplicates = Duplicates::default();
    let options = serde_saphyr::options! {
        duplicate_keys: serde_saphyr::DuplicateKeyPolicy::LastWins,
        // YAML 1.1, which clients write: `defaultMode: 0644`.
        legacy_octal_numbers: true,
        with_snippet: false,
    };
    let text = first_document(text);
    let decoded = serde_saphyr::with_deserializer_from_str_with_options(text, options, |deserializer| {
        Seed { duplicates: &mut duplicates, yaml: true, depth: 0 }.deserialize(deserializer)
    });
    match decoded {
        Ok(value) => Ok(Decoded { value, duplicates }),
        Err(e) => Err(DecodeError::Yaml(e.to_string())),
    }
}

/// A value as one YAML document.
pub fn to_yaml(value: &Value) -> String {
    serde_saphyr::to_string(value).expect("a JSON value has no type that YAML lacks")
}

/// Upstream's answer to a body that cannot be read, where the kind it should have is not known.
impl From<DecodeError> for StatusError {
    fn from(error: DecodeError) -> Self {
        StatusError::bad_request(error.to_string())
    }
}

/// `text` up to its second `---`, as upstream's YAML reader takes it.
fn first_document(text: &str) -> &str {
    let mut seen_content = false;
    let mut at = 0;
    for line in text.split_inclusive('\n') {
        let marker = line.trim_end() == "---" || line.starts_with("--- ");
        if marker && seen_content {
            return &text[..at];
        }
        seen_content |= marker || !(line.trim().is_empty() || line.starts_with('#'));
        at += line.len();
    }
    text
}

/// Upstream's answer to a body that is no object of any kind: `expected` is the kind that the path serves.
pub fn unrecognized(expected: &str, why: &str, body: &[u8]) -> StatusError {
    const SHOWN: usize = 30;
    let hex = |bytes: &[u8]| bytes.iter().map(|b| format!("{b:02x}")).collect::<String>();
    let summary = match body.len() {
        0 => "<empty>".to_owned(),
        n if n > SHOWN => format!("{} ...", hex(&body[..SHOWN])),
        _ => hex(body),
    };
    StatusError::bad_request(format!(
        "the object provided is unrecognized (must be of type {expected}): {why} ({summary})"
    ))
}

/// Upstream's answer to a body of a known kind that does not fit: a type mismatch, or strict field validation.
pub fn cannot_be_handled(kind: &str, version: &str, expected: &str, why: impl fmt::Display) -> StatusError {
    StatusError::bad_request(format!("{kind} in version {version:?} cannot be handled as a {expected}: {why}"))
}

struct Seed<'a> {
    duplicates: &'a mut Duplicates,
    /// Whether keys have lines.
    yaml: bool,
    depth: usize,
}

impl Seed<'_> {
    fn inner<E: serde::de::Error>(&mut self) -> Result<Seed<'_>, E> {
        if self.depth >= MAX_DEPTH {
            return Err(E::custom("exceeded max depth"));
        }
        Ok(Seed { duplicates: self.duplicates, yaml: self.yaml, depth: self.depth + 1 })
    }
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, v: bool) -> Result<Value, E> {
        Ok(Value::Bool(v))
    }

    fn visit_i64<E>(self, v: i64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_u64<E>(self, v: u64) -> Result<Value, E> {
        Ok(Value::Number(v.into()))
    }

    fn visit_f64<E: serde::de::Error>(self, v: f64) -> Result<Value, E> {
        Number::from_f64(v).map(Value::Number).ok_or_else(|| E::custom("a number must be finite"))
    }

    fn visit_str<E>(self, v: &str) -> Result<Value, E> {
        Ok(Value::String(v.to_owned()))
    }

    fn visit_string<E>(self, v: String) -> Result<Value, E> {
        Ok(Value::String(v))
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_none<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_some<D: Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }

    fn visit_seq<A: SeqAccess<'de>>(mut self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let known = self.duplicates.paths.len();
            let Some(item) = seq.next_element_seed(self.inner()?)? else { break };
            prefix(&mut self.duplicates.paths[known..], &format_args!("[{}]", items.len()));
            items.push(item);
        }
        Ok(Value::Array(items))
    }

    fn visit_map<A: MapAccess<'de>>(mut self, mut entries: A) -> Result<Value, A::Error> {
        let mut map = Map::new();
        while let Some((key, line)) = entries.next_key_seed(Key { with_line: self.yaml })? {
            let known = self.duplicates.paths.len();
            let value = entries.next_value_seed(self.inner()?)?;
            prefix(&mut self.duplicates.paths[known..], &key);
            if map.contains_key(&key) {
                self.duplicates.paths.push(key.clone());
                self.duplicates.lines.extend(line);
            }
            map.insert(key, value);
        }
        if self.depth > MAX_DEPTH {
            return Err(A::Error::custom("exceeded max depth"));
        }
        Ok(Value::Object(map))
    }
}

/// Puts `parent` before paths that were found below it. Duplicates are rare, so paths are built on the way out only.
fn prefix(paths: &mut [String], parent: &dyn fmt::Display) {
    for path in paths {
        let dot = if path.starts_with('[') { "" } else { "." };
        *path = format!("{parent}{dot}{path}");
    }
}

/// The paths of all keys, in the order of a document of JSON.
struct Paths<'a> {
    at: String,
    found: &'a mut Vec<String>,
}

impl<'de> DeserializeSeed<'de> for Paths<'_> {
    type Value = ();

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<(), D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Paths<'_> {
    type Value = ();

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("any JSON value")
    }

    fn visit_bool<E>(self, _: bool) -> Result<(), E> {
        Ok(())
    }

    fn visit_i64<E>(self, _: i64) -> Result<(), E> {
        Ok(())
    }

    fn visit_u64<E>(self, _: u64) -> Result<(), E> {
        Ok(())
    }

    fn visit_f64<E>(self, _: f64) -> Result<(), E> {
        Ok(())
    }

    fn visit_str<E>(self, _: &str) -> Result<(), E> {
        Ok(())
    }

    fn visit_unit<E>(self) -> Result<(), E> {
        Ok(())
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<(), A::Error> {
        let mut index = 0_usize;
        while seq.next_element_seed(Paths { at: format!("{}[{index}]", self.at), found: self.found })?.is_some() {
            index += 1;
        }
        Ok(())
    }

    fn visit_map<A: MapAccess<'de>>(self, mut entries: A) -> Result<(), A::Error> {
        while let Some(key) = entries.next_key::<String>()? {
            let dot = if self.at.is_empty() { "" } else { "." };
            let at = format!("{}{dot}{key}", self.at);
            self.found.push(at.clone());
            entries.next_value_seed(Paths { at, found: self.found })?;
        }
        Ok(())
    }
}

/// A map key, with its line where asked for.
struct Key {
    with_line: bool,
}

impl<'de> DeserializeSeed<'de> for Key {
    type Value = (String, Option<u64>);

    fn deserialize<D: Deserializer<'de>>(self, deserializer: D) -> Result<Self::Value, D::Error> {
        if !self.with_line {
            return Ok((KeyText::deserialize(deserializer)?.0, None));
        }
        let key = serde_saphyr::Spanned::<KeyText>::deserialize(deserializer)?;
        Ok((key.value.0, Some(key.referenced.line())))
    }
}

/// YAML's scalars of other types become their text, as upstream's YAML to JSON conversion does.
struct KeyText(String);

impl<'de> Deserialize<'de> for KeyText {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        deserializer.deserialize_any(KeyVisitor).map(KeyText)
    }
}

struct KeyVisitor;

impl Visitor<'_> for KeyVisitor {
    type Value = String;

    fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("a key")
    }

    fn visit_str<E>(self, v: &str) -> Result<String, E> {
        Ok(v.to_owned())
    }

    fn visit_string<E>(self, v: String) -> Result<String, E> {
        Ok(v)
    }

    fn visit_bool<E>(self, v: bool) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_i64<E>(self, v: i64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_u64<E>(self, v: u64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_f64<E>(self, v: f64) -> Result<String, E> {
        Ok(v.to_string())
    }

    fn visit_unit<E>(self) -> Result<String, E> {
        Ok("null".to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn duplicates_are_found_with_their_paths() {
        let body = br#"{"a":1,"a":2,"spec":{"l":[{},{"x":1,"x":{"y":1,"y":2}}],"spec":1,"spec":2}}"#;
        let decoded = from_json(body).unwrap();
        assert_eq!(decoded.duplicates.of_json(), ["a", "spec.l[1].x.y", "spec.l[1].x", "spec.spec"]);
        assert!(decoded.duplicates.place("spec.l[1].x.y") < decoded.duplicates.place("spec.spec"));
        assert_eq!(decoded.duplicates.yaml_error(), None);
        assert_eq!(decoded.value["a"], 2);
    }

    #[test]
    fn yaml_is_decoded_like_json() {
        let decoded = from_yaml(b"---\na: 1\nb: [x, true, null, 1.5]\n8080: web\n---\nc: 2\n").unwrap();
        assert_eq!(decoded.value, json!({"a": 1, "b": ["x", true, null, 1.5], "8080": "web"}));
        let decoded = from_yaml(b"base: &b {x: 1}\nmode: 0644\nyep: yes\nm: {<<: *b, z: 08:30, q: '0644'}\n").unwrap();
        assert_eq!(
            decoded.value,
            json!({"base": {"x": 1}, "mode": 420, "yep": true, "m": {"x": 1, "z": "08:30", "q": "0644"}})
        );
        let decoded = from_yaml(b"m:\n  k: 1\n  k: 2\n").unwrap();
        assert_eq!(decoded.duplicates.of_yaml(), [r#"line 3: key "k" already set in map"#]);
        assert!(decoded.duplicates.of_json().is_empty());
        let value = json!({"a": "1", "b": [{"c": "x: y"}, "\n- 1\n", null, 1.5], "d": {}, "e": "on", "f": "0x1"});
        assert_eq!(from_yaml(to_yaml(&value).as_bytes()).unwrap().value, value);
        assert!(from_yaml(b"a: [").is_err());
        assert!(from_yaml(b"a: b: c").is_err());
    }

    #[test]
    fn numbers_keep_their_value() {
        let decoded = from_json(b"[9223372036854775807,18446744073709551615,-1,1.5]").unwrap();
        assert_eq!(decoded.value, json!([i64::MAX, u64::MAX, -1, 1.5]));
        // To the last bit: what is written is what is read, however often it goes round.
        let decoded =
            from_json(b"121210000000000000000000000000000000000000000000010385673352990221198").unwrap().value;
        assert_eq!(decoded, json!(1.2121e68));
        assert_eq!(from_json(decoded.to_string().as_bytes()).unwrap().value, decoded);
    }

    #[test]
    fn depth_is_limited() {
        let nested = |n: usize| format!("{}{}", "[".repeat(n), "]".repeat(n));
        assert!(from_json(nested(100).as_bytes()).is_ok());
        assert!(from_json(nested(10_000).as_bytes()).is_err());
        assert!(from_yaml(nested(10_000).as_bytes()).is_err());
        assert!(from_json(r#"{"a":"#.repeat(10_000).as_bytes()).is_err());
    }

    #[test]
    fn answers_to_unreadable_bodies() {
        let error = unrecognized("Pod", &from_json(b"{").unwrap_err().to_string(), b"{");
        assert_eq!(
            error.message,
            "the object provided is unrecognized (must be of type Pod): couldn't get version/kind; json parse error: \
             unexpected end of JSON input (7b)"
        );
        let why = |body: &[u8]| from_json(body).unwrap_err().to_string();
        assert!(why(b"").ends_with("; json parse error: unexpected end of JSON input"));
        assert!(why(b"{\"a\":}").ends_with("error: invalid character '}' looking for beginning of value"));
    }
}
