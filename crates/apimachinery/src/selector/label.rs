//! Label selectors: upstream's `k8s.io/apimachinery/pkg/labels` and `metav1.LabelSelectorAsSelector`.

use std::fmt;

use serde_json::Value;

use crate::field::{self, Path};
use crate::names;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Operator {
    In,
    NotIn,
    Equals,
    DoubleEquals,
    NotEquals,
    GreaterThan,
    LessThan,
    Exists,
    DoesNotExist,
}

/// One condition on one label. `values` are sorted and distinct when they come from text.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Requirement {
    pub key: String,
    pub operator: Operator,
    pub values: Vec<String>,
}

/// All of its requirements must hold; without any, everything matches.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LabelSelector {
    requirements: Vec<Requirement>,
    nothing: bool,
}

/// A selector's text or object is malformed; the message is upstream's.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{0}")]
pub struct ParseError(pub String);

impl LabelSelector {
    pub const EVERYTHING: LabelSelector = LabelSelector { requirements: Vec::new(), nothing: false };
    /// Matches nothing: what an absent `metav1.LabelSelector` means.
    pub const NOTHING: LabelSelector = LabelSelector { requirements: Vec::new(), nothing: true };

    /// `a=b,c!=d,e in (x,y),f notin (z),g,!h,i>1,j<2`
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let tokens = scan(text);
        let mut parser = Parser { tokens: &tokens, position: 0 };
        Ok(Self::from_requirements(parser.selector().map_err(ParseError)?))
    }

    /// The selector that matches all of the labels of a plain map (`spec.selector` of a Service). An empty one matches everything.
    pub fn from_map<'a>(labels: impl IntoIterator<Item = (&'a str, &'a str)>) -> Self {
        let equal = |(key, value): (&str, &str)| Requirement {
            key: key.to_owned(),
            operator: Operator::Equals,
            values: vec![value.to_owned()],
        };
        Self::from_requirements(labels.into_iter().map(equal).collect())
    }

    pub fn from_requirements(mut requirements: Vec<Requirement>) -> Self {
        requirements.sort_by(|a, b| a.key.cmp(&b.key));
        LabelSelector { requirements, nothing: false }
    }

    /// From a `metav1.LabelSelector`: null matches nothing, an empty object everything.
    pub fn from_value(selector: &Value) -> Result<Self, ParseError> {
        if selector.is_null() {
            return Ok(Self::NOTHING);
        }
        let mut requirements = Vec::new();
        for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
            let value = value.as_str().unwrap_or_default().to_owned();
            requirements.push(Requirement::new(key.clone(), Operator::Equals, vec![value])?);
        }
        for expression in selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten() {
            let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
            let operator = match text("operator") {
                "In" => Operator::In,
                "NotIn" => Operator::NotIn,
                "Exists" => Operator::Exists,
                "DoesNotExist" => Operator::DoesNotExist,
                other => {
                    return Err(ParseError(format!("{} is not a valid label selector operator", field::quote(other))));
                }
            };
            let values = crate::meta::strings(expression.get("values")).into_iter().map(str::to_owned).collect();
            requirements.push(Requirement::new(text("key").to_owned(), operator, values)?);
        }
        Ok(Self::from_requirements(requirements))
    }

    pub fn requirements(&self) -> &[Requirement] {
        &self.requirements
    }

    /// Does not restrict anything.
    pub fn is_empty(&self) -> bool {
        self.requirements.is_empty() && !self.nothing
    }

    pub fn matches_nothing(&self) -> bool {
        self.nothing
    }

    /// `lookup` gives a label's value, none if the label is absent.
    pub fn matches<'a>(&self, lookup: impl Fn(&str) -> Option<&'a str>) -> bool {
        !self.nothing && self.requirements.iter().all(|r| r.holds(lookup(&r.key)))
    }

    /// Matches the labels in `metadata.labels` of an object.
    pub fn matches_object(&self, object: &Value) -> bool {
        self.matches(|key| crate::meta::label(object, key))
    }

    /// Matches a map of labels as JSON.
    pub fn matches_map(&self, labels: Option<&Value>) -> bool {
        self.matches(|key| labels?.get(key)?.as_str())
    }
}

impl Requirement {
    /// Checks as upstream's `NewRequirement` does.
    pub fn new(key: String, operator: Operator, values: Vec<String>) -> Result<Self, ParseError> {
        let root = Path::root();
        let values_path = root.child("values");
        let mut errors: field::ErrorList = key_error(&key, &root.child("key")).into_iter().collect();
        if let Some(detail) = wrong_count(operator, values.len()) {
            errors.push(field::Error::invalid(&values_path, &values.clone().into(), detail));
        }
        if matches!(operator, Operator::GreaterThan | Operator::LessThan) {
            let detail = "for 'Gt', 'Lt' operators, the value must be an integer";
            let bad = values.iter().enumerate().filter(|(_, v)| v.parse::<i64>().is_err());
            errors.extend(bad.map(|(i, v)| field::Error::invalid(&values_path.index(i), &v.as_str().into(), detail)));
        }
        for (i, value) in values.iter().enumerate() {
            let messages = names::label_value(value);
            if !messages.is_empty() {
                let path = values_path.index(i).key(&key);
                errors.push(field::Error::invalid(&path, &value.as_str().into(), &messages.join("; ")));
            }
        }
        if errors.is_empty() {
            return Ok(Requirement { key, operator, values });
        }
        Err(ParseError(field::aggregate(&errors)))
    }

    fn holds(&self, label: Option<&str>) -> bool {
        let listed = |value: &str| self.values.iter().any(|v| v == value);
        match self.operator {
            Operator::In | Operator::Equals | Operator::DoubleEquals => label.is_some_and(listed),
            Operator::NotIn | Operator::NotEquals => !label.is_some_and(listed),
            Operator::Exists => label.is_some(),
            Operator::DoesNotExist => label.is_none(),
            Operator::GreaterThan => self.numbers(label).is_some_and(|(l, r)| l > r),
            Operator::LessThan => self.numbers(label).is_some_and(|(l, r)| l < r),
        }
    }

    fn numbers(&self, label: Option<&str>) -> Option<(i64, i64)> {
        Some((label?.parse().ok()?, self.values.first()?.parse().ok()?))
    }
}

fn wrong_count(operator: Operator, count: usize) -> Option<&'static str> {
    match operator {
        Operator::In | Operator::NotIn => {
            (count == 0).then_some("for 'in', 'notin' operators, values set can't be empty")
        }
        Operator::Equals | Operator::DoubleEquals | Operator::NotEquals => {
            (count != 1).then_some("exact-match compatibility requires one single value")
        }
        Operator::Exists | Operator::DoesNotExist => {
            (count != 0).then_some("values set must be empty for exists and does not exist")
        }
        Operator::GreaterThan | Operator::LessThan => {
            (count != 1).then_some("for 'Gt', 'Lt' operators, exactly one value is required")
        }
    }
}

fn key_error(key: &str, path: &Path) -> Option<field::Error> {
    let messages = names::qualified_name(key);
    (!messages.is_empty()).then(|| field::Error::invalid(path, &key.into(), &messages.join("; ")))
}

/// Upstream's `ValidateLabelSelector`: the field errors of a `metav1.LabelSelector` at `path`.
pub fn validate(selector: &Value, path: &Path) -> field::ErrorList {
    let mut errors = Vec::new();
    let labels = path.child("matchLabels");
    for (key, value) in selector.get("matchLabels").and_then(Value::as_object).into_iter().flatten() {
        errors
            .extend(names::qualified_name(key).iter().map(|m| field::Error::invalid(&labels, &key.as_str().into(), m)));
        let messages = names::label_value(value.as_str().unwrap_or_default());
        errors.extend(messages.iter().map(|m| field::Error::invalid(&labels, value, m)));
    }
    let expressions = selector.get("matchExpressions").and_then(Value::as_array).into_iter().flatten();
    for (i, expression) in expressions.enumerate() {
        validate_expression(expression, &path.child("matchExpressions").index(i), &mut errors);
    }
    errors
}

fn validate_expression(expression: &Value, path: &Path, errors: &mut field::ErrorList) {
    let text = |name: &str| expression.get(name).and_then(Value::as_str).unwrap_or_default();
    let values = expression.get("values").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let at_values = path.child("values");
    match text("operator") {
        "In" | "NotIn" if values.is_empty() => {
            errors.push(field::Error::required(&at_values, "must be specified when `operator` is 'In' or 'NotIn'"));
        }
        "Exists" | "DoesNotExist" if !values.is_empty() => {
            let detail = "may not be specified when `operator` is 'Exists' or 'DoesNotExist'";
            errors.push(field::Error::forbidden(&at_values, detail));
        }
        "In" | "NotIn" | "Exists" | "DoesNotExist" => {}
        other => {
            errors.push(field::Error::invalid(&path.child("operator"), &other.into(), "not a valid selector operator"));
        }
    }
    let key = text("key");
    let at_key = path.child("key");
    errors.extend(names::qualified_name(key).iter().map(|m| field::Error::invalid(&at_key, &key.into(), m)));
    for (i, value) in values.iter().enumerate() {
        let messages = names::label_value(value.as_str().unwrap_or_default());
        errors.extend(messages.iter().map(|m| field::Error::invalid(&at_values.index(i), value, m)));
    }
}

impl fmt::Display for LabelSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, requirement) in self.requirements.iter().enumerate() {
            if i > 0 {
                f.write_str(",")?;
            }
            write!(f, "{requirement}")?;
        }
        Ok(())
    }
}

impl fmt::Display for Requirement {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut values: Vec<&str> = self.values.iter().map(String::as_str).collect();
        values.sort_unstable();
        let values = values.join(",");
        let key = &self.key;
        match self.operator {
            Operator::In => write!(f, "{key} in ({values})"),
            Operator::NotIn => write!(f, "{key} notin ({values})"),
            Operator::Equals => write!(f, "{key}={values}"),
            Operator::DoubleEquals => write!(f, "{key}=={values}"),
            Operator::NotEquals => write!(f, "{key}!={values}"),
            Operator::GreaterThan => write!(f, "{key}>{values}"),
            Operator::LessThan => write!(f, "{key}<{values}"),
            Operator::Exists => f.write_str(key),
            Operator::DoesNotExist => write!(f, "!{key}"),
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Kind {
    End,
    Close,
    Comma,
    Not,
    DoubleEquals,
    Equals,
    Greater,
    Identifier,
    In,
    Less,
    NotEquals,
    NotIn,
    Open,
}

/// A token and its literal text.
type Token = (Kind, String);

fn symbol(text: &str) -> Option<Kind> {
    Some(match text {
        ")" => Kind::Close,
        "," => Kind::Comma,
        "!" => Kind::Not,
        "==" => Kind::DoubleEquals,
        "=" => Kind::Equals,
        ">" => Kind::Greater,
        "<" => Kind::Less,
        "!=" => Kind::NotEquals,
        "(" => Kind::Open,
        _ => return None,
    })
}

fn is_special(c: char) -> bool {
    matches!(c, '=' | '!' | '(' | ')' | ',' | '>' | '<')
}

/// The tokens of a selector; the last is always `End`. A NUL ends the text, as upstream.
fn scan(text: &str) -> Vec<Token> {
    let is_blank = |c: char| matches!(c, ' ' | '\t' | '\r' | '\n');
    let mut rest = text.split('\0').next().unwrap_or_default();
    let mut tokens = Vec::new();
    loop {
        rest = rest.trim_start_matches(is_blank);
        if rest.is_empty() {
            break;
        }
        let (kind, length) = special(rest).unwrap_or_else(|| {
            let end = rest.find(|c| is_special(c) || is_blank(c)).unwrap_or(rest.len());
            let kind = match &rest[..end] {
                "in" => Kind::In,
                "notin" => Kind::NotIn,
                _ => Kind::Identifier,
            };
            (kind, end)
        });
        tokens.push((kind, rest[..length].to_owned()));
        rest = &rest[length..];
    }
    tokens.push((Kind::End, String::new()));
    tokens
}

/// The longest operator at the start of `rest`, and its length; none if a word starts there.
fn special(rest: &str) -> Option<(Kind, usize)> {
    [2, 1].into_iter().find_map(|length| Some((symbol(rest.get(..length)?)?, length)))
}

struct Parser<'t> {
    tokens: &'t [Token],
    position: usize,
}

impl Parser<'_> {
    /// The token ahead, with `in` and `notin` read as plain words.
    fn peek(&self) -> (Kind, &str) {
        let (kind, text) = self.raw();
        (if matches!(kind, Kind::In | Kind::NotIn) { Kind::Identifier } else { kind }, text)
    }

    fn raw(&self) -> (Kind, &str) {
        let (kind, text) = &self.tokens[self.position.min(self.tokens.len() - 1)];
        (*kind, text)
    }

    fn next(&mut self) -> (Kind, String) {
        let (kind, text) = self.peek();
        let token = (kind, text.to_owned());
        self.position += 1;
        token
    }

    fn selector(&mut self) -> Result<Vec<Requirement>, String> {
        let mut requirements = Vec::new();
        loop {
            match self.peek() {
                (Kind::Identifier | Kind::Not, _) => {}
                (Kind::End, _) => return Ok(requirements),
                (_, text) => return Err(format!("found '{text}', expected: !, identifier, or 'end of string'")),
            }
            let requirement = self.requirement().map_err(|e| format!("unable to parse requirement: {e}"))?;
            requirements.push(requirement);
            match self.next() {
                (Kind::End, _) => return Ok(requirements),
                (Kind::Comma, _) => {
                    let (kind, text) = self.peek();
                    if !matches!(kind, Kind::Identifier | Kind::Not) {
                        return Err(format!("found '{text}', expected: identifier after ','"));
                    }
                }
                (_, text) => return Err(format!("found '{text}', expected: ',' or 'end of string'")),
            }
        }
    }

    fn requirement(&mut self) -> Result<Requirement, String> {
        let (mut kind, mut key) = self.next();
        let negated = kind == Kind::Not;
        if negated {
            (kind, key) = self.next();
        }
        if kind != Kind::Identifier {
            return Err(format!("found '{key}', expected: identifier"));
        }
        if let Some(error) = key_error(&key, &Path::root()) {
            return Err(error.to_string());
        }
        let (operator, values) = if negated {
            (Operator::DoesNotExist, Vec::new())
        } else if matches!(self.peek().0, Kind::End | Kind::Comma) {
            (Operator::Exists, Vec::new())
        } else {
            let operator = self.operator()?;
            let mut values = match operator {
                Operator::In | Operator::NotIn => self.values()?,
                _ => vec![self.exact_value()?],
            };
            values.sort_unstable();
            values.dedup();
            (operator, values)
        };
        Requirement::new(key, operator, values).map_err(|e| e.0)
    }

    fn operator(&mut self) -> Result<Operator, String> {
        let (kind, text) = self.raw();
        let operator = match kind {
            Kind::In => Operator::In,
            Kind::NotIn => Operator::NotIn,
            Kind::Equals => Operator::Equals,
            Kind::DoubleEquals => Operator::DoubleEquals,
            Kind::NotEquals => Operator::NotEquals,
            Kind::Greater => Operator::GreaterThan,
            Kind::Less => Operator::LessThan,
            _ => return Err(format!("found '{text}', expected: in, notin, =, ==, !=, gt, lt")),
        };
        self.position += 1;
        Ok(operator)
    }

    /// `(x,y)`; an empty place between commas or parentheses is the empty value.
    fn values(&mut self) -> Result<Vec<String>, String> {
        let (kind, text) = self.next();
        if kind != Kind::Open {
            return Err(format!("found '{text}' expected: '('"));
        }
        let mut values = Vec::new();
        match self.peek() {
            (Kind::Close, _) => values.push(String::new()),
            (Kind::Identifier | Kind::Comma, _) => self.identifiers(&mut values)?,
            (_, text) => return Err(format!("found '{text}', expected: ',', ')' or identifier")),
        }
        self.position += 1;
        Ok(values)
    }

    /// Stops before the closing parenthesis.
    fn identifiers(&mut self, values: &mut Vec<String>) -> Result<(), String> {
        loop {
            match self.next() {
                (Kind::Identifier, text) => {
                    values.push(text);
                    match self.peek() {
                        (Kind::Comma, _) => {}
                        (Kind::Close, _) => return Ok(()),
                        (_, text) => return Err(format!("found '{text}', expected: ',' or ')'")),
                    }
                }
                (Kind::Comma, _) => {
                    let ahead = self.peek().0;
                    if values.is_empty() || matches!(ahead, Kind::Close | Kind::Comma) {
                        values.push(String::new());
                    }
                    if ahead == Kind::Close {
                        return Ok(());
                    }
                }
                (_, text) => return Err(format!("found '{text}', expected: ',', or identifier")),
            }
        }
    }

    fn exact_value(&mut self) -> Result<String, String> {
        if matches!(self.peek().0, Kind::End | Kind::Comma) {
            return Ok(String::new());
        }
        match self.next() {
            (Kind::Identifier, text) => Ok(text),
            (_, text) => Err(format!("found '{text}', expected: identifier")),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn printed(text: &str) -> String {
        LabelSelector::parse(text).map_or_else(|e| format!("error: {e}"), |s| s.to_string())
    }

    #[test]
    fn parses_and_prints() {
        for (text, expected) in [
            ("", ""),
            ("a=b", "a=b"),
            (" x = a , y == b", "x=a,y==b"),
            ("b,a", "a,b"),
            ("!a", "!a"),
            ("x in (c,a,,a)", "x in (,a,c)"),
            ("x in ()", "x in ()"),
            ("x notin (in,notin)", "x notin (in,notin)"),
            ("in in (in)", "in in (in)"),
            (
                "a!=,b>1,c<-0",
                "error: unable to parse requirement: values[0][c]: Invalid value: \"-0\": a valid label must be an empty string or consist of alphanumeric characters, '-', '_' or '.', and must start and end with an alphanumeric character (e.g. 'MyValue',  or 'my_value',  or '12345', regex used for validation is '(([A-Za-z0-9][-A-Za-z0-9_.]*)?[A-Za-z0-9])?')",
            ),
            ("a!=,b>1", "a!=,b>1"),
            ("x==a==b", "error: found '==', expected: ',' or 'end of string'"),
            ("!x=a", "error: found '=', expected: ',' or 'end of string'"),
            ("x= ,z= ", "x=,z="),
            ("a=b,", "error: found '', expected: identifier after ','"),
            ("a b", "error: unable to parse requirement: found 'b', expected: in, notin, =, ==, !=, gt, lt"),
            ("a=b c", "error: found 'c', expected: ',' or 'end of string'"),
            ("x in a", "error: unable to parse requirement: found 'a' expected: '('"),
            ("x in (a", "error: unable to parse requirement: found '', expected: ',' or ')'"),
            ("=a", "error: found '=', expected: !, identifier, or 'end of string'"),
            (
                "x>a",
                "error: unable to parse requirement: values[0]: Invalid value: \"a\": for 'Gt', 'Lt' operators, the value must be an integer",
            ),
        ] {
            assert_eq!(printed(text), expected, "{text:?}");
        }
        assert!(
            printed("-=a")
                .starts_with("error: unable to parse requirement: <nil>: Invalid value: \"-\": name part must")
        );
    }

    #[test]
    fn matches_labels() {
        let object = json!({"metadata": {"labels": {"app": "web", "n": "5"}}});
        for (text, expected) in [
            ("", true),
            ("app=web", true),
            ("app==api", false),
            ("app!=api", true),
            ("none!=x", true),
            ("app in (web,api)", true),
            ("app notin (web)", false),
            ("none notin (web)", true),
            ("app", true),
            ("!app", false),
            ("!none,n>4,n<6", true),
            ("app>1", false),
            ("none>1", false),
        ] {
            assert_eq!(LabelSelector::parse(text).unwrap().matches_object(&object), expected, "{text}");
        }
    }

    #[test]
    fn converts_objects() {
        let object = json!({"metadata": {"labels": {"a": "1"}}});
        let matches = |selector: Value| LabelSelector::from_value(&selector).map(|s| s.matches_object(&object));
        assert_eq!(matches(Value::Null), Ok(false));
        assert_eq!(matches(json!({})), Ok(true));
        assert_eq!(
            matches(json!({"matchLabels": {"a": "1"}, "matchExpressions": [{"key": "b", "operator": "DoesNotExist"}]})),
            Ok(true)
        );
        let error = matches(json!({"matchExpressions": [{"key": "b", "operator": "Like"}]})).unwrap_err();
        assert_eq!(error.to_string(), "\"Like\" is not a valid label selector operator");
        let bad = json!({"matchExpressions": [{"key": "a", "operator": "In"}, {"key": "a", "operator": "Exists", "values": ["x"]}, {"key": "b", "operator": "x"}]});
        let errors = validate(&bad, &Path::new("spec").child("selector"));
        assert_eq!(
            field::aggregate(&errors),
            "[spec.selector.matchExpressions[0].values: Required value: must be specified when `operator` is 'In' or 'NotIn', \
             spec.selector.matchExpressions[1].values: Forbidden: may not be specified when `operator` is 'Exists' or 'DoesNotExist', \
             spec.selector.matchExpressions[2].operator: Invalid value: \"x\": not a valid selector operator]"
        );
    }

    proptest! {
        #[test]
        fn printing_round_trips(text in r"[!a-c,=<> ()int1é\x00]{0,24}") {
            if let Ok(selector) = LabelSelector::parse(&text) {
                prop_assert_eq!(LabelSelector::parse(&selector.to_string()), Ok(selector));
            }
        }
    }
}
