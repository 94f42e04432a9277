//! JSONPath as custom resources' columns use it: upstream's `k8s.io/client-go/util/jsonpath`, within one expression.
//!
//! `.spec.replicas`, `.status.conditions[?(@.type=="Ready")].status`, `.items[0]`, `[-1]`, `[1:3]`, `[*]`, `['a.b']`, `['a','b']`,
//! `.metadata.annotations.a\.b`, `..name`. Missing keys have no value.

use std::cmp::Ordering;

use serde_json::Value;

/// Steps and nesting beyond any sensible path.
const MAX_STEPS: usize = 64;

#[derive(Clone, Debug, PartialEq)]
pub struct JsonPath {
    steps: Vec<Step>,
}

#[derive(Clone, Debug, PartialEq)]
enum Step {
    Field(String),
    Wildcard,
    /// What follows applies at every depth.
    Recursive,
    /// Bounds and step as written; absent ones are the list's ends.
    Slice(Option<i64>, Option<i64>, i64),
    Index(i64),
    Union(Vec<String>),
    Filter(Box<Filter>),
}

#[derive(Clone, Debug, PartialEq)]
struct Filter {
    left: Operand,
    /// Without one, the left side must have a value.
    comparison: Option<(Comparison, Operand)>,
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Comparison {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Clone, Debug, PartialEq)]
enum Operand {
    Literal(Value),
    Path(JsonPath),
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(String);

impl JsonPath {
    /// Parses a path, with or without braces around it.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let text = text.trim();
        let inner = text.strip_prefix('{').and_then(|t| t.strip_suffix('}')).unwrap_or(text);
        parse(inner, 0).map_err(ParseError)
    }

    /// All values that the path leads to, in order.
    pub fn find<'v>(&self, root: &'v Value) -> Vec<&'v Value> {
        self.steps.iter().fold(vec![root], |values, step| step.apply(&values))
    }
}

impl Step {
    fn apply<'v>(&self, values: &[&'v Value]) -> Vec<&'v Value> {
        let mut found = Vec::new();
        for value in values {
            match self {
                Step::Field(name) => found.extend(value.get(name)),
                Step::Union(names) => found.extend(names.iter().filter_map(|name| value.get(name))),
                Step::Wildcard => found.extend(inner(value)),
                Step::Recursive => descend(value, &mut found),
                Step::Index(index) => found.extend(at(value, *index)),
                Step::Slice(start, end, step) => found.extend(slice(value, *start, *end, *step)),
                Step::Filter(filter) => found.extend(inner(value).filter(|item| filter.holds(item))),
            }
        }
        found
    }
}

/// The items of a list or the values of a map.
fn inner(value: &Value) -> Box<dyn Iterator<Item = &Value> + '_> {
    match value {
        Value::Array(items) => Box::new(items.iter()),
        Value::Object(map) => Box::new(map.values()),
        _ => Box::new(std::iter::empty()),
    }
}

fn descend<'v>(value: &'v Value, found: &mut Vec<&'v Value>) {
    found.push(value);
    for item in inner(value) {
        descend(item, found);
    }
}

fn at(value: &Value, index: i64) -> Option<&Value> {
    let items = value.as_array()?;
    let length = i64::try_from(items.len()).ok()?;
    let place = if index < 0 { index.checked_add(length)? } else { index };
    items.get(usize::try_from(place).ok()?)
}

fn slice(value: &Value, start: Option<i64>, end: Option<i64>, step: i64) -> Vec<&Value> {
    let Some(items) = value.as_array() else { return Vec::new() };
    let length = i64::try_from(items.len()).unwrap_or(i64::MAX);
    let bound = |given: i64| (if given < 0 { given.saturating_add(length) } else { given }).clamp(0, length);
    let (start, end) = (bound(start.unwrap_or(0)), bound(end.unwrap_or(length)));
    let place = |i: i64| usize::try_from(i).unwrap_or(usize::MAX);
    let step = place(step.max(1));
    items.get(place(start)..place(end)).unwrap_or_default().iter().step_by(step).collect()
}

impl Filter {
    fn holds(&self, item: &Value) -> bool {
        let left = self.left.values(item);
        let Some((comparison, right)) = &self.comparison else { return !left.is_empty() };
        match (left.first(), right.values(item).first()) {
            (Some(left), Some(right)) => comparison.holds(left, right),
            _ => false,
        }
    }
}

impl Operand {
    fn values<'v>(&'v self, item: &'v Value) -> Vec<&'v Value> {
        match self {
            Operand::Literal(value) => vec![value],
            Operand::Path(path) => path.find(item),
        }
    }
}

impl Comparison {
    fn holds(self, left: &Value, right: &Value) -> bool {
        let order = match (left, right) {
            (Value::Number(l), Value::Number(r)) => l.as_f64().partial_cmp(&r.as_f64()),
            (Value::String(l), Value::String(r)) => Some(l.cmp(r)),
            (l, r) => (l == r).then_some(Ordering::Equal),
        };
        match self {
            Comparison::Equal => order == Some(Ordering::Equal),
            Comparison::NotEqual => order != Some(Ordering::Equal),
            Comparison::Less => order == Some(Ordering::Less),
            Comparison::LessOrEqual => matches!(order, Some(Ordering::Less | Ordering::Equal)),
            Comparison::Greater => order == Some(Ordering::Greater),
            Comparison::GreaterOrEqual => matches!(order, Some(Ordering::Greater | Ordering::Equal)),
        }
    }
}

fn parse(text: &str, depth: usize) -> Result<JsonPath, String> {
    let mut rest = text.trim_start_matches(['$', '@']);
    let mut steps = Vec::new();
    while !rest.is_empty() {
        if steps.len() > MAX_STEPS || depth > MAX_STEPS {
            return Err("path is too long".to_owned());
        }
        if let Some(after) = rest.strip_prefix("..") {
            steps.push(Step::Recursive);
            rest = after;
            if rest.starts_with('[') {
                continue;
            }
            rest = name(rest, &mut steps)?;
        } else if let Some(after) = rest.strip_prefix('.') {
            // A lone dot is the object itself.
            rest = if after.is_empty() || after.starts_with('[') { after } else { name(after, &mut steps)? };
        } else if rest.starts_with('[') {
            let end = closing(rest).ok_or("unterminated array")?;
            steps.push(bracket(rest[1..end].trim(), depth)?);
            rest = &rest[end + 1..];
        } else if steps.is_empty() {
            rest = name(rest, &mut steps)?;
        } else {
            return Err(format!("unrecognized character in action: {rest}"));
        }
    }
    Ok(JsonPath { steps })
}

/// A field's name up to the next dot or bracket; a backslash takes away the next character's meaning.
fn name<'t>(text: &'t str, steps: &mut Vec<Step>) -> Result<&'t str, String> {
    let mut field = String::new();
    let mut chars = text.char_indices();
    let mut end = text.len();
    while let Some((i, c)) = chars.next() {
        match c {
            '\\' => field.extend(chars.next().map(|(_, c)| c)),
            '.' | '[' => {
                end = i;
                break;
            }
            c => field.push(c),
        }
    }
    match field.as_str() {
        "" => return Err("empty field name".to_owned()),
        "*" => steps.push(Step::Wildcard),
        _ => steps.push(Step::Field(field)),
    }
    Ok(&text[end..])
}

/// The bracket that closes the one at the start; those in quotes do not count.
fn closing(text: &str) -> Option<usize> {
    let (mut depth, mut quote, mut escaped) = (0usize, None, false);
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            c if quote == Some(c) => quote = None,
            _ if quote.is_some() => {}
            '\'' | '"' => quote = Some(c),
            '[' => depth += 1,
            ']' if depth == 1 => return Some(i),
            ']' => depth -= 1,
            _ => {}
        }
    }
    None
}

fn bracket(text: &str, depth: usize) -> Result<Step, String> {
    if text == "*" {
        return Ok(Step::Wildcard);
    }
    if let Some(filter) = text.strip_prefix("?(").and_then(|t| t.strip_suffix(')')) {
        return parse_filter(filter, depth).map(|filter| Step::Filter(Box::new(filter)));
    }
    if text.starts_with(['\'', '"']) {
        let names: Option<Vec<String>> = text.split(',').map(|part| unquote(part.trim())).collect();
        let mut names = names.ok_or_else(|| format!("invalid array index {text}"))?;
        return Ok(if names.len() == 1 { Step::Field(names.remove(0)) } else { Step::Union(names) });
    }
    let invalid = || format!("invalid array index {text}");
    let number = |part: &str| part.trim().parse::<i64>().map_err(|_| invalid());
    let optional = |part: &str| if part.trim().is_empty() { Ok(None) } else { number(part).map(Some) };
    match text.split(':').collect::<Vec<_>>()[..] {
        [index] => number(index).map(Step::Index),
        [start, end] => Ok(Step::Slice(optional(start)?, optional(end)?, 1)),
        [start, end, step] => Ok(Step::Slice(optional(start)?, optional(end)?, optional(step)?.unwrap_or(1))),
        _ => Err(invalid()),
    }
}

fn unquote(text: &str) -> Option<String> {
    let quote = text.chars().next().filter(|c| matches!(c, '\'' | '"'))?;
    let inner = text.strip_prefix(quote)?.strip_suffix(quote)?;
    let mut plain = String::with_capacity(inner.len());
    let mut chars = inner.chars();
    while let Some(c) = chars.next() {
        plain.extend(if c == '\\' { chars.next() } else { Some(c) });
    }
    Some(plain)
}

fn parse_filter(text: &str, depth: usize) -> Result<Filter, String> {
    let operators = [
        ("==", Comparison::Equal),
        ("!=", Comparison::NotEqual),
        ("<=", Comparison::LessOrEqual),
        (">=", Comparison::GreaterOrEqual),
        ("<", Comparison::Less),
        (">", Comparison::Greater),
    ];
    let mut quote = None;
    for (i, c) in text.char_indices() {
        match c {
            c if quote == Some(c) => quote = None,
            _ if quote.is_some() => {}
            '\'' | '"' => quote = Some(c),
            _ => {
                if let Some((sign, comparison)) = operators.iter().find(|(sign, _)| text[i..].starts_with(sign)) {
                    let right = operand(&text[i + sign.len()..], depth)?;
                    return Ok(Filter { left: operand(&text[..i], depth)?, comparison: Some((*comparison, right)) });
                }
            }
        }
    }
    Ok(Filter { left: operand(text, depth)?, comparison: None })
}

fn operand(text: &str, depth: usize) -> Result<Operand, String> {
    let text = text.trim();
    if let Some(literal) = unquote(text) {
        return Ok(Operand::Literal(Value::String(literal)));
    }
    if let Ok(literal @ (Value::Number(_) | Value::Bool(_))) = serde_json::from_str(text) {
        return Ok(Operand::Literal(literal));
    }
    if !text.starts_with(['@', '.', '$', '[']) {
        return Err(format!("unrecognized operand: {text}"));
    }
    parse(text, depth + 1).map(Operand::Path)
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    #[test]
    fn finds() {
        let object = json!({
            "metadata": {"annotations": {"a.b/c": "x"}},
            "spec": {"n": 1, "list": [1, 2, 3], "items": [{"name": "a", "v": 1}, {"name": "b", "v": 2}]},
            "status": {"conditions": [{"type": "Ready", "status": "True"}, {"type": "Other", "status": "False"}]},
        });
        for (path, expected) in [
            (".spec.n", json!([1])),
            ("{.spec.n}", json!([1])),
            (".spec.missing.more", json!([])),
            (".spec.list[0]", json!([1])),
            (".spec.list[-1]", json!([3])),
            (".spec.list[1:]", json!([2, 3])),
            (".spec.list[:-1]", json!([1, 2])),
            (".spec.list[::2]", json!([1, 3])),
            (".spec.list[9]", json!([])),
            (".spec.items[*].name", json!(["a", "b"])),
            (".spec.items.*.name", json!(["a", "b"])),
            (r#".status.conditions[?(@.type=="Ready")].status"#, json!(["True"])),
            (r#".status.conditions[?(@.type != 'Ready')].status"#, json!(["False"])),
            (".spec.items[?(@.v>1)].name", json!(["b"])),
            (".spec.items[?(@.v<=1)].name", json!(["a"])),
            (".spec.items[?(@.v)].name", json!(["a", "b"])),
            (".spec.items[?(@.z)].name", json!([])),
            (r".metadata.annotations.a\.b/c", json!(["x"])),
            (".metadata.annotations['a.b/c']", json!(["x"])),
            (".spec['n','list']", json!([1, [1, 2, 3]])),
            ("..name", json!(["a", "b"])),
        ] {
            let found = JsonPath::parse(path).unwrap().find(&object).into_iter().cloned().collect::<Vec<_>>();
            assert_eq!(Value::Array(found), expected, "{path}");
        }
        for bad in [".spec[", ".a..", ".a[x]", ".a[?(b)]", ".a[1:2:3:4]", ".a[0]b"] {
            assert!(JsonPath::parse(bad).is_err(), "{bad}");
        }
    }

    proptest! {
        #[test]
        fn never_panics(path in r#"[.a\[\]?()@=<>'"\\*:0-9é{}$-]{0,24}"#) {
            if let Ok(path) = JsonPath::parse(&path) {
                path.find(&json!({"a": [{"a": 1}, [2, {"a": "3"}]]}));
            }
        }
    }
}
