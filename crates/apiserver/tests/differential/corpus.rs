//! A corpus file: requests, one a line, with names for bodies that come again. `README.md` has the format.

use std::collections::HashMap;

use serde_json::{Map, Value};

/// The requests on one kind.
pub struct Corpus {
    pub name: String,
    pub requests: Vec<Request>,
    /// Paths of fields that upstream's older server does not know, of this kind alone.
    pub newer: Vec<String>,
}

/// One request, and what is known of how upstream's older server answers it.
pub struct Request {
    /// As it is written, on one line: its name in the golden file.
    pub source: String,
    pub method: &'static str,
    pub media: &'static str,
    /// With the query.
    pub path: String,
    pub body: Value,
    /// Whether `managedFields` are part of the answer.
    pub managed: bool,
    pub mark: Mark,
}

/// Why an answer differs from that of upstream's older server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Mark {
    /// It must not.
    None,
    /// Upstream has changed since.
    Since(String),
    /// Ours is wrong, and known to be.
    Gap(String),
}

const JSON: &str = "application/json";
const VERBS: [(&str, &str, &str); 9] = [
    ("try", "POST", JSON),
    ("POST", "POST", JSON),
    ("PUT", "PUT", JSON),
    ("MERGE", "PATCH", "application/merge-patch+json"),
    ("JSON", "PATCH", "application/json-patch+json"),
    ("STRATEGIC", "PATCH", "application/strategic-merge-patch+json"),
    ("APPLY", "PATCH", "application/apply-patch+yaml"),
    ("GET", "GET", JSON),
    ("DELETE", "DELETE", JSON),
];

impl Corpus {
    /// The name is the namespace too, in place of `$NS`.
    pub fn parse(name: &str, text: &str) -> Self {
        let mut reader = Reader {
            corpus: Corpus { name: name.to_owned(), requests: Vec::new(), newer: Vec::new() },
            base: String::new(),
            bodies: HashMap::new(),
            managed: false,
        };
        for (number, line) in logical_lines(&text.replace("$NS", name)) {
            reader.line(&line).unwrap_or_else(|why| panic!("{name}.txt, line {number}: {why}: {line}"));
        }
        reader.corpus
    }
}

/// Lines with those that continue them, which are indented; without comments.
fn logical_lines(text: &str) -> Vec<(usize, String)> {
    let mut lines: Vec<(usize, String)> = Vec::new();
    for (index, line) in text.lines().enumerate() {
        let bare = line.trim();
        if bare.is_empty() || bare.starts_with('#') {
            continue;
        }
        let mark = bare.starts_with("since ") || bare.starts_with("gap ");
        match lines.last_mut() {
            Some((_, last)) if line.starts_with(' ') && !mark => {
                last.push(' ');
                last.push_str(bare);
            }
            _ => lines.push((index + 1, bare.to_owned())),
        }
    }
    lines
}

struct Reader {
    corpus: Corpus,
    /// What paths begin with.
    base: String,
    bodies: HashMap<String, Value>,
    managed: bool,
}

type Read<T> = Result<T, String>;

impl Reader {
    fn line(&mut self, line: &str) -> Read<()> {
        let (word, rest) = line.split_once(' ').unwrap_or((line, ""));
        let rest = rest.trim();
        match word {
            "in" => self.base = rest.to_owned(),
            "managed" => self.managed = rest == "on",
            "newer" => self.corpus.newer.push(rest.split(' ').next().unwrap_or_default().to_owned()),
            "let" => {
                let (name, body) = rest.split_once(' ').ok_or("let NAME BODY")?;
                let body = self.body(body)?;
                self.bodies.insert(name.to_owned(), body);
            }
            "since" | "gap" => {
                let request = self.corpus.requests.last_mut().ok_or("a mark follows a request")?;
                let why = rest.to_owned();
                request.mark = if word == "gap" { Mark::Gap(why) } else { Mark::Since(why) };
            }
            _ => self.request(word, rest, line)?,
        }
        Ok(())
    }

    fn request(&mut self, verb: &str, rest: &str, line: &str) -> Read<()> {
        let (_, method, media) = VERBS.into_iter().find(|(name, ..)| *name == verb).ok_or("no such verb")?;
        let (below, body) = match rest.split_once(' ') {
            _ if !rest.starts_with(['/', '?']) => ("", rest),
            Some((below, body)) => (below, body.trim()),
            None => (rest, ""),
        };
        // A path from the root stands for itself.
        let absolute = below.starts_with("/api");
        let mut path = if absolute { below.to_owned() } else { format!("{}{below}", self.base) };
        if verb == "try" {
            path.push_str(if path.contains('?') { "&dryRun=All" } else { "?dryRun=All" });
        }
        let body = if body.is_empty() { Value::Null } else { self.body(body)? };
        let (source, managed) = (line.to_owned(), self.managed);
        self.corpus.requests.push(Request { source, method, media, path, body, managed, mark: Mark::None });
        Ok(())
    }

    /// A JSON value or the name of one, and changes to it.
    fn body(&self, text: &str) -> Read<Value> {
        let (mut value, mut rest) = if text.starts_with(['{', '[', '"']) {
            json(text)?
        } else {
            let (name, rest) = text.split_once(' ').unwrap_or((text, ""));
            (self.bodies.get(name).cloned().ok_or("no such body")?, rest)
        };
        loop {
            rest = rest.trim_start();
            if rest.is_empty() {
                return Ok(value);
            }
            let end = steps_end(rest)?;
            let steps = steps(&rest[..end])?;
            let (operator, after) = rest[end..].split_at(1);
            let wanted = match operator {
                "=" => {
                    let (wanted, after) = json(after)?;
                    rest = after;
                    Some(wanted)
                }
                _ => {
                    rest = after;
                    None
                }
            };
            edit(&mut value, &steps, wanted)?;
        }
    }
}

/// The JSON value that a text begins with, and the rest of the text.
fn json(text: &str) -> Read<(Value, &str)> {
    let mut stream = serde_json::Deserializer::from_str(text).into_iter::<Value>();
    let value = stream.next().ok_or("a JSON value is missing")?.map_err(|error| error.to_string())?;
    let end = stream.byte_offset();
    Ok((value, &text[end..]))
}

enum Step {
    Key(String),
    Index(usize),
}

/// Where a path ends: at `=` (set) or `!` (remove), outside of quotes.
fn steps_end(text: &str) -> Read<usize> {
    let mut quoted = false;
    for (index, byte) in text.bytes().enumerate() {
        match byte {
            b'"' => quoted = !quoted,
            b'=' | b'!' if !quoted => return Ok(index),
            b' ' if !quoted => break,
            _ => {}
        }
    }
    Err("a change is PATH=JSON or PATH!".to_owned())
}

/// `spec.containers[0].name`, `metadata.labels["a.b/c"]`
fn steps(text: &str) -> Read<Vec<Step>> {
    let mut steps = Vec::new();
    let mut rest = text;
    while !rest.is_empty() {
        rest = rest.strip_prefix('.').unwrap_or(rest);
        if let Some(bracket) = rest.strip_prefix('[') {
            let (inner, after) = bracket.split_once(']').ok_or("a bracket is not closed")?;
            steps.push(match inner.parse() {
                Ok(index) => Step::Index(index),
                Err(_) => Step::Key(inner.trim_matches('"').to_owned()),
            });
            rest = after;
        } else {
            let end = rest.find(['.', '[']).unwrap_or(rest.len());
            steps.push(Step::Key(rest[..end].to_owned()));
            rest = &rest[end..];
        }
    }
    Ok(steps)
}

fn edit(value: &mut Value, steps: &[Step], wanted: Option<Value>) -> Read<()> {
    let Some((first, rest)) = steps.split_first() else {
        *value = wanted.unwrap_or_default();
        return Ok(());
    };
    match first {
        Step::Key(key) => {
            if !value.is_object() {
                *value = Value::Object(Map::new());
            }
            let map = value.as_object_mut().ok_or("not an object")?;
            if rest.is_empty() && wanted.is_none() {
                map.remove(key).map(|_| ()).ok_or_else(|| format!("there is no {key}"))
            } else {
                edit(map.entry(key.as_str()).or_insert(Value::Null), rest, wanted)
            }
        }
        Step::Index(index) => {
            if !value.is_array() {
                *value = Value::Array(Vec::new());
            }
            let list = value.as_array_mut().ok_or("not a list")?;
            if *index > list.len() {
                return Err(format!("there is no item {index}"));
            }
            if rest.is_empty() && wanted.is_none() {
                list.remove(*index);
                return Ok(());
            }
            if *index == list.len() {
                list.push(Value::Null);
            }
            edit(&mut list[*index], rest, wanted)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_line_is_a_request() {
        let text = "in /api/v1/namespaces/$NS/pods\n\
            let pod {\"spec\": {\"a\": [1]},\n  \"x\": 1}\n\
            # comment\n\
            try pod spec.a[1]={\"b\": \"c d\"} x! metadata.labels[\"a.b/c\"]=\"=\"\n  since 1.30 because\n\
            JSON /p?force=true [{\"op\": \"remove\"}]\n\
            GET /api/v1/nodes\n";
        let corpus = Corpus::parse("n", text);
        let [tried, patch, get] = &corpus.requests[..] else { panic!("{}", corpus.requests.len()) };
        assert_eq!(tried.path, "/api/v1/namespaces/n/pods?dryRun=All");
        assert_eq!(tried.body, json!({"spec": {"a": [1, {"b": "c d"}]}, "metadata": {"labels": {"a.b/c": "="}}}));
        assert_eq!(tried.mark, Mark::Since("1.30 because".to_owned()));
        assert_eq!((patch.method, &*patch.path), ("PATCH", "/api/v1/namespaces/n/pods/p?force=true"));
        assert_eq!(patch.media, "application/json-patch+json");
        assert_eq!((&*get.path, &get.body), ("/api/v1/nodes", &Value::Null));
    }
}
