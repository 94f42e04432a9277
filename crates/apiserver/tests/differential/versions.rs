//! What differs between upstream's older server and v1.37 everywhere: fields that are newer, and words that were changed.

use serde_json::Value;

#[derive(Default)]
pub struct Versions {
    /// Paths; `*` is any item or key, `**` at the start any depth.
    newer: Vec<String>,
    /// Old words, new words; `{}` stands for a number.
    words: Vec<(String, String)>,
}

impl Versions {
    /// Lines `newer PATH REASON` and `words OLD => NEW`.
    pub fn parse(text: &str) -> Self {
        let mut versions = Versions::default();
        for line in text.lines().map(str::trim).filter(|line| !line.is_empty() && !line.starts_with('#')) {
            let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
            match word {
                "newer" => versions.newer.push(rest.split(' ').next().unwrap_or_default().to_owned()),
                "words" => {
                    let (old, new) = rest.split_once(" => ").unwrap_or_else(|| panic!("no arrow: {line}"));
                    versions.words.push((old.to_owned(), new.to_owned()));
                }
                _ => panic!("versions: {line}"),
            }
        }
        versions
    }

    /// An answer without what is newer.
    pub fn older(&self, mut value: Value, also: &[String]) -> Value {
        for path in self.newer.iter().chain(also) {
            drop_path(&mut value, path);
        }
        value
    }

    /// Upstream's answer in today's words.
    pub fn reworded(&self, value: Value) -> Value {
        match value {
            Value::String(text) => {
                Value::String(self.words.iter().fold(text, |text, (old, new)| reword(&text, old, new)))
            }
            Value::Array(items) => items.into_iter().map(|item| self.reworded(item)).collect(),
            Value::Object(map) => map.into_iter().map(|(key, value)| (key, self.reworded(value))).collect(),
            other => other,
        }
    }
}

fn drop_path(value: &mut Value, path: &str) {
    if let Some(rest) = path.strip_prefix("**.") {
        drop_path(value, rest);
        match value {
            Value::Array(items) => items.iter_mut().for_each(|item| drop_path(item, path)),
            Value::Object(map) => map.values_mut().for_each(|value| drop_path(value, path)),
            _ => {}
        }
        return;
    }
    let (first, rest) = path.split_once('.').map_or((path, None), |(first, rest)| (first, Some(rest)));
    match (value, rest) {
        (Value::Object(map), None) if first == "*" => map.clear(),
        (Value::Object(map), None) => _ = map.remove(first),
        (Value::Object(map), Some(rest)) if first == "*" => map.values_mut().for_each(|v| drop_path(v, rest)),
        (Value::Object(map), Some(rest)) => _ = map.get_mut(first).map(|v| drop_path(v, rest)),
        (Value::Array(items), Some(rest)) if first == "*" => items.iter_mut().for_each(|v| drop_path(v, rest)),
        _ => {}
    }
}

fn reword(text: &str, old: &str, new: &str) -> String {
    let Some((before, after)) = old.split_once("{}") else { return text.replace(old, new) };
    let mut done = String::new();
    let mut rest = text;
    while let Some(start) = rest.find(before) {
        let tail = &rest[start + before.len()..];
        let digits = tail.find(|c: char| !c.is_ascii_digit()).unwrap_or(tail.len());
        done += &rest[..start];
        if digits > 0 && tail[digits..].starts_with(after) {
            done += &new.replace("{}", &tail[..digits]);
            rest = &tail[digits + after.len()..];
        } else {
            done += before;
            rest = tail;
        }
    }
    done + rest
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn what_is_newer_goes_and_words_change() {
        let versions = Versions::parse(
            "newer spec.a 1.21 x\nnewer **.deep 1.22\nnewer items.*.b x\nwords at most {} bytes => no more than {} bytes",
        );
        let value = json!({"spec": {"a": 1, "c": {"deep": 1}}, "items": [{"b": 1, "c": 2}]});
        assert_eq!(versions.older(value, &["spec.c".to_owned()]), json!({"spec": {}, "items": [{"c": 2}]}));
        let old = json!(["at most many, at most 63 bytes, and"]);
        assert_eq!(versions.reworded(old), json!(["at most many, no more than 63 bytes, and"]));
    }
}
