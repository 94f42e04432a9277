//! Field paths and validation errors, worded as upstream's `k8s.io/apimachinery/pkg/util/validation/field`.
//!
//! Validation collects an [`ErrorList`]; [`crate::status::StatusError::invalid`] turns it into the API's answer.

use std::fmt::{self, Write as _};

use serde_json::Value;

/// A path such as `spec.containers[0].ports[name].protocol`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Path(String);

impl Path {
    /// The path of a top-level field.
    pub fn new(name: &str) -> Self {
        Path(name.to_owned())
    }

    pub fn root() -> Self {
        Path(String::new())
    }

    #[must_use]
    pub fn child(&self, name: &str) -> Self {
        if self.0.is_empty() {
            return Path(name.to_owned());
        }
        Path(format!("{}.{name}", self.0))
    }

    #[must_use]
    pub fn index(&self, index: usize) -> Self {
        Path(format!("{}[{index}]", self.0))
    }

    #[must_use]
    pub fn key(&self, key: &str) -> Self {
        Path(format!("{}[{key}]", self.0))
    }

    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Path {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(if self.0.is_empty() { "<nil>" } else { &self.0 })
    }
}

/// The kinds of upstream's `field.ErrorType`; [`ErrorKind::reason`] is the cause's `reason` on the wire.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ErrorKind {
    NotFound,
    Required,
    Duplicate,
    Invalid,
    NotSupported,
    Forbidden,
    TooLong,
    TooMany,
    Internal,
    TypeInvalid,
}

impl ErrorKind {
    pub fn reason(self) -> &'static str {
        match self {
            Self::NotFound => "FieldValueNotFound",
            Self::Required => "FieldValueRequired",
            Self::Duplicate => "FieldValueDuplicate",
            Self::Invalid => "FieldValueInvalid",
            Self::NotSupported => "FieldValueNotSupported",
            Self::Forbidden => "FieldValueForbidden",
            Self::TooLong => "FieldValueTooLong",
            Self::TooMany => "FieldValueTooMany",
            Self::Internal => "InternalError",
            Self::TypeInvalid => "FieldValueTypeInvalid",
        }
    }

    fn text(self) -> &'static str {
        match self {
            Self::NotFound => "Not found",
            Self::Required => "Required value",
            Self::Duplicate => "Duplicate value",
            Self::Invalid | Self::TypeInvalid => "Invalid value",
            Self::NotSupported => "Unsupported value",
            Self::Forbidden => "Forbidden",
            Self::TooLong => "Too long",
            Self::TooMany => "Too many",
            Self::Internal => "Internal error",
        }
    }
}

/// One validation failure. `body` is the text without the field, as upstream's `ErrorBody`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Error {
    pub kind: ErrorKind,
    pub field: Path,
    pub body: String,
}

pub type ErrorList = Vec<Error>;

impl fmt::Display for Error {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.field, self.body)
    }
}

impl Error {
    fn with(kind: ErrorKind, field: &Path, value: Option<String>, detail: &str) -> Self {
        let mut body = kind.text().to_owned();
        if let Some(value) = value {
            let _ = write!(body, ": {value}");
        }
        if !detail.is_empty() {
            let _ = write!(body, ": {detail}");
        }
        Error { kind, field: field.clone(), body }
    }

    pub fn required(field: &Path, detail: &str) -> Self {
        Self::with(ErrorKind::Required, field, None, detail)
    }

    pub fn invalid(field: &Path, value: &Value, detail: &str) -> Self {
        Self::with(ErrorKind::Invalid, field, Some(show(value)), detail)
    }

    pub fn type_invalid(field: &Path, value: &Value, detail: &str) -> Self {
        Self::with(ErrorKind::TypeInvalid, field, Some(show(value)), detail)
    }

    /// `Unsupported value: "x": supported values: "A", "B"`; values are listed as given (upstream sorts them at the call).
    pub fn not_supported(field: &Path, value: &Value, supported: &[&str]) -> Self {
        let quoted: Vec<String> = supported.iter().map(|s| quote(s)).collect();
        let detail = if quoted.is_empty() { String::new() } else { format!("supported values: {}", quoted.join(", ")) };
        Self::with(ErrorKind::NotSupported, field, Some(show(value)), &detail)
    }

    pub fn duplicate(field: &Path, value: &Value) -> Self {
        Self::with(ErrorKind::Duplicate, field, Some(show(value)), "")
    }

    pub fn not_found(field: &Path, value: &Value) -> Self {
        Self::with(ErrorKind::NotFound, field, Some(show(value)), "")
    }

    pub fn forbidden(field: &Path, detail: &str) -> Self {
        Self::with(ErrorKind::Forbidden, field, None, detail)
    }

    /// Upstream's `TooLong`: never shows the value. `max_bytes` in bytes.
    pub fn too_long(field: &Path, max_bytes: usize) -> Self {
        Self::with(ErrorKind::TooLong, field, None, &format!("may not be more than {max_bytes} bytes"))
    }

    pub fn too_many(field: &Path, actual: usize, max: usize) -> Self {
        let detail = format!("must have at most {max} {}", if max == 1 { "item" } else { "items" });
        Self::with(ErrorKind::TooMany, field, Some(actual.to_string()), &detail)
    }

    pub fn internal(field: &Path, detail: &str) -> Self {
        Self::with(ErrorKind::Internal, field, None, detail)
    }
}

/// A value as upstream prints it in errors: strings quoted, scalars bare, the rest as JSON.
fn show(value: &Value) -> String {
    match value {
        Value::String(s) => quote(s),
        other => other.to_string(),
    }
}

/// Whether Go shows a character as it is: both languages agree on what is printable, bar the escapes of quotes.
pub fn is_printable(c: char) -> bool {
    matches!(c, '"' | '\'' | '\\')
        || c.escape_debug().len() == 1
        || !c.is_ascii() && !c.escape_debug().eq(c.escape_unicode())
}

/// A string in quotes with Go's escapes, since messages are compared with upstream's.
pub fn quote(text: &str) -> String {
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' => quoted.push_str("\\\""),
            '\\' => quoted.push_str("\\\\"),
            '\n' => quoted.push_str("\\n"),
            '\r' => quoted.push_str("\\r"),
            '\t' => quoted.push_str("\\t"),
            '\u{7}' => quoted.push_str("\\a"),
            '\u{8}' => quoted.push_str("\\b"),
            '\u{b}' => quoted.push_str("\\v"),
            '\u{c}' => quoted.push_str("\\f"),
            c if is_printable(c) => quoted.push(c),
            c => {
                let _ = match u32::from(c) {
                    code @ ..0x80 => write!(quoted, "\\x{code:02x}"),
                    code @ ..0x1_0000 => write!(quoted, "\\u{code:04x}"),
                    code => write!(quoted, "\\U{code:08x}"),
                };
            }
        }
    }
    quoted.push('"');
    quoted
}

/// All errors in upstream's aggregate form: one bare, several as `[a, b]`, repeats dropped.
pub fn aggregate(errors: &[Error]) -> String {
    let mut texts: Vec<String> = Vec::new();
    for error in errors {
        let text = error.to_string();
        if !texts.contains(&text) {
            texts.push(text);
        }
    }
    if texts.len() == 1 { texts.remove(0) } else { format!("[{}]", texts.join(", ")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn quotes_as_go() {
        for (text, expected) in [
            ("plain 'x' é 漢", "\"plain 'x' é 漢\""),
            ("a\"b\\c\n\t\u{7}", r#""a\"b\\c\n\t\a""#),
            ("\u{0}\u{7f}\u{200b}\u{e0001}", r#""\x00\x7f\u200b\U000e0001""#),
        ] {
            assert_eq!(quote(text), expected);
        }
    }
}
