//! Field selectors: upstream's `k8s.io/apimachinery/pkg/fields`.

use std::fmt;

/// One term: the field, as a dotted path, equals (or differs from) the value.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Term {
    pub field: String,
    pub value: String,
    /// False for `!=`.
    pub equal: bool,
}

/// All of its terms must hold; without any, everything matches.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSelector {
    terms: Vec<Term>,
}

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum ParseError {
    #[error("invalid selector: '{selector}'; can't understand '{term}'")]
    Term { selector: String, term: String },
    #[error("invalid field selector: invalid escape sequence: {0}")]
    Escape(String),
    /// The character's number, as upstream prints it.
    #[error("invalid field selector: unescaped character in value: {0}")]
    Unescaped(u32),
    /// The kind has no such selectable field.
    #[error("field label not supported: {0}")]
    Unsupported(String),
}

impl FieldSelector {
    /// `a=b,c!=d`; in values, `\`, `,` and `=` are written with a backslash before them.
    pub fn parse(text: &str) -> Result<Self, ParseError> {
        let mut parts = split_terms(text);
        parts.sort_unstable();
        let mut terms = Vec::with_capacity(parts.len());
        for part in parts.into_iter().filter(|p| !p.is_empty()) {
            let Some((field, equal, value)) = split_term(part) else {
                return Err(ParseError::Term { selector: text.to_owned(), term: part.to_owned() });
            };
            terms.push(Term { field: field.to_owned(), value: unescape(value)?, equal });
        }
        Ok(FieldSelector { terms })
    }

    /// The selector of one field's one value.
    pub fn equal(field: &str, value: &str) -> Self {
        FieldSelector { terms: vec![Term { field: field.to_owned(), value: value.to_owned(), equal: true }] }
    }

    /// Fails on a field that the kind does not offer. Every kind offers its name, and its namespace if it has one.
    pub fn check(&self, supported: impl Fn(&str) -> bool) -> Result<(), ParseError> {
        match self.terms.iter().find(|t| !supported(&t.field)) {
            Some(term) => Err(ParseError::Unsupported(term.field.clone())),
            None => Ok(()),
        }
    }

    pub fn terms(&self) -> &[Term] {
        &self.terms
    }

    pub fn is_empty(&self) -> bool {
        self.terms.is_empty()
    }

    /// The one value that a field must have, if the selector demands one.
    pub fn required_value(&self, field: &str) -> Option<&str> {
        self.terms.iter().find(|t| t.equal && t.field == field).map(|t| t.value.as_str())
    }

    /// `lookup` gives a field's value; a field that is absent is empty, as upstream.
    pub fn matches<S: AsRef<str>>(&self, lookup: impl Fn(&str) -> S) -> bool {
        self.terms.iter().all(|t| (lookup(&t.field).as_ref() == t.value) == t.equal)
    }
}

/// Cuts at commas that no backslash stands before.
fn split_terms(text: &str) -> Vec<&str> {
    let mut terms = Vec::new();
    let mut start = 0;
    let mut escaped = false;
    for (i, c) in text.char_indices() {
        match c {
            _ if escaped => escaped = false,
            '\\' => escaped = true,
            ',' => {
                terms.push(&text[start..i]);
                start = i + 1;
            }
            _ => {}
        }
    }
    terms.push(&text[start..]);
    terms
}

/// Field, whether equal, and the value still escaped; cut at the first operator.
fn split_term(term: &str) -> Option<(&str, bool, &str)> {
    let not_equal = term.find("!=");
    let equal = term.find('=')?;
    if let Some(at) = not_equal.filter(|&at| at < equal) {
        return Some((&term[..at], false, &term[at + 2..]));
    }
    let value = &term[equal + 1..];
    Some((&term[..equal], true, value.strip_prefix('=').unwrap_or(value)))
}

fn unescape(value: &str) -> Result<String, ParseError> {
    let mut plain = String::with_capacity(value.len());
    let mut chars = value.chars();
    while let Some(c) = chars.next() {
        match c {
            '\\' => match chars.next() {
                Some(c @ ('\\' | ',' | '=')) => plain.push(c),
                Some(c) => return Err(ParseError::Escape(format!("\\{c}"))),
                None => return Err(ParseError::Escape("\\".to_owned())),
            },
            ',' | '=' => return Err(ParseError::Unescaped(u32::from(c))),
            c => plain.push(c),
        }
    }
    Ok(plain)
}

impl fmt::Display for FieldSelector {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (i, term) in self.terms.iter().enumerate() {
            let comma = if i > 0 { "," } else { "" };
            let operator = if term.equal { "=" } else { "!=" };
            write!(f, "{comma}{}{operator}", term.field)?;
            for c in term.value.chars() {
                if matches!(c, '\\' | ',' | '=') {
                    f.write_str("\\")?;
                }
                write!(f, "{c}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn parses_and_prints() {
        for (text, expected) in [
            ("", ""),
            (",", ""),
            ("b=2,a==1", "a=1,b=2"),
            ("status.phase!=Running", "status.phase!=Running"),
            (r"a=x\,y\=z\\", r"a=x\,y\=z\\"),
            ("a=", "a="),
            ("a", "error: invalid selector: 'a'; can't understand 'a'"),
            ("a=b=c", "error: invalid field selector: unescaped character in value: 61"),
            (r"a=\x", r"error: invalid field selector: invalid escape sequence: \x"),
        ] {
            let printed = FieldSelector::parse(text).map_or_else(|e| format!("error: {e}"), |s| s.to_string());
            assert_eq!(printed, expected, "{text:?}");
        }
    }

    #[test]
    fn matches_fields() {
        let selector = FieldSelector::parse("metadata.name=a,spec.nodeName!=").unwrap();
        let with = |node: &'static str| move |field: &str| if field == "metadata.name" { "a" } else { node };
        assert!(selector.matches(with("n1")));
        assert!(!selector.matches(with("")));
        assert_eq!(selector.required_value("metadata.name"), Some("a"));
        assert_eq!(selector.required_value("spec.nodeName"), None);
        let error = selector.check(|f| f == "metadata.name").unwrap_err();
        assert_eq!(error.to_string(), "field label not supported: spec.nodeName");
    }

    proptest! {
        #[test]
        fn printing_round_trips(text in r"[a-b.=!,\\é]{0,16}") {
            if let Ok(selector) = FieldSelector::parse(&text) {
                prop_assert_eq!(FieldSelector::parse(&selector.to_string()).map(|s| s.terms.len()), Ok(selector.terms.len()));
            }
        }
    }
}
