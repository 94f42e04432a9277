//! Text into tokens.

use std::str::CharIndices;

use crate::ast::Literal;
use crate::source::Issue;

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Kind {
    End,
    Ident,
    Escaped,
    Int,
    Uint,
    Float,
    String,
    Bytes,
    True,
    False,
    Null,
    In,
    /// An operator or a bracket; the token's text says which.
    Mark,
}

#[derive(Clone, Copy, Debug)]
pub(crate) struct Token<'s> {
    pub kind: Kind,
    /// In characters.
    pub at: u32,
    pub text: &'s str,
}

impl Token<'_> {
    pub fn is(&self, mark: &str) -> bool {
        self.kind == Kind::Mark && self.text == mark
    }
}

/// Longest first.
const MARKS: [&str; 24] = [
    "==", "!=", "<=", ">=", "&&", "||", "<", ">", "[", "]", "{", "}", "(", ")", ".", ",", "-", "!", "?", ":", "+", "*",
    "/", "%",
];

/// The tokens of `source`, the last one an [`Kind::End`]; what is no token is left out and told.
pub(crate) fn tokens<'s>(source: &'s str, issues: &mut Vec<Issue>) -> Vec<Token<'s>> {
    let mut lexer = Lexer { source, rest: source, at: 0 };
    let mut out = Vec::new();
    loop {
        lexer.skip_space();
        let before = lexer.at;
        match lexer.next() {
            Some(token) => {
                let end = token.kind == Kind::End;
                out.push(token);
                if end {
                    return out;
                }
            }
            None => {
                let wrong = lexer.skip_unknown();
                issues.push(Issue::new(before, format!("Syntax error: token recognition error at: '{wrong}'")));
            }
        }
    }
}

struct Lexer<'s> {
    source: &'s str,
    rest: &'s str,
    at: u32,
}

impl<'s> Lexer<'s> {
    fn take(&mut self, bytes: usize) -> &'s str {
        let (text, rest) = self.rest.split_at(bytes);
        self.at += u32::try_from(text.chars().count()).unwrap_or(u32::MAX);
        self.rest = rest;
        text
    }

    fn skip_space(&mut self) {
        loop {
            let space = self.rest.find(|c| !matches!(c, ' ' | '\t' | '\r' | '\n' | '\u{c}')).unwrap_or(self.rest.len());
            self.take(space);
            if !self.rest.starts_with("//") {
                return;
            }
            self.take(self.rest.find('\n').unwrap_or(self.rest.len()));
        }
    }

    fn next(&mut self) -> Option<Token<'s>> {
        let at = self.at;
        let Some(first) = self.rest.chars().next() else {
            let text = &self.source[self.source.len()..];
            return Some(Token { kind: Kind::End, at, text });
        };
        let (kind, bytes) = match first {
            '0'..='9' => number(self.rest),
            '.' if self.rest[1..].starts_with(|c: char| c.is_ascii_digit()) => number(self.rest),
            '`' => (Kind::Escaped, escaped(self.rest)?),
            '"' | '\'' => (Kind::String, string(self.rest, false)?),
            'a'..='z' | 'A'..='Z' | '_' => match prefixed(self.rest) {
                Some(found) => found,
                None => word(self.rest),
            },
            _ => (Kind::Mark, MARKS.iter().find(|mark| self.rest.starts_with(**mark))?.len()),
        };
        let text = self.take(bytes);
        Some(Token { kind, at, text })
    }

    /// What a token could have begun with, or one character.
    fn skip_unknown(&mut self) -> &'s str {
        let quote = self.rest.chars().next().filter(|c| matches!(c, '"' | '\''));
        let bytes = match quote {
            Some(_) => broken_string(self.rest),
            None => {
                let first = self.rest.chars().next().map_or(0, char::len_utf8);
                let second = self.rest[first..].chars().next().map_or(0, char::len_utf8);
                // `&` and `|` begin a longer token that does not come.
                first + if matches!(self.rest.as_bytes().first(), Some(b'&' | b'|')) { second } else { 0 }
            }
        };
        self.take(bytes)
    }
}

fn digits(text: &str) -> usize {
    text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len())
}

fn number(text: &str) -> (Kind, usize) {
    let unsigned = |at: usize| text[at..].starts_with(['u', 'U']);
    if let Some(hex) = text.strip_prefix("0x") {
        let length = hex.find(|c: char| !c.is_ascii_hexdigit()).unwrap_or(hex.len());
        if length > 0 {
            let at = length + 2;
            return if unsigned(at) { (Kind::Uint, at + 1) } else { (Kind::Int, at) };
        }
    }
    let whole = digits(text);
    let mut at = whole;
    let mut float = false;
    if text[at..].starts_with('.') && digits(&text[at + 1..]) > 0 {
        at += 1 + digits(&text[at + 1..]);
        float = true;
    }
    if text[at..].starts_with(['e', 'E']) {
        let sign = usize::from(text[at + 1..].starts_with(['+', '-']));
        let length = digits(&text[at + 1 + sign..]);
        if length > 0 {
            at += 1 + sign + length;
            float = true;
        }
    }
    match float {
        true => (Kind::Float, at),
        false if unsigned(at) => (Kind::Uint, at + 1),
        false => (Kind::Int, at),
    }
}

fn escaped(text: &str) -> Option<usize> {
    let fits = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '.' | '-' | '/' | ' ');
    let end = text[1..].find(|c| !fits(c))? + 1;
    (end > 1 && text[end..].starts_with('`')).then_some(end + 1)
}

fn word(text: &str) -> (Kind, usize) {
    let end = text.find(|c: char| !(c.is_ascii_alphanumeric() || c == '_')).unwrap_or(text.len());
    let kind = match &text[..end] {
        "true" => Kind::True,
        "false" => Kind::False,
        "null" => Kind::Null,
        "in" => Kind::In,
        _ => Kind::Ident,
    };
    (kind, end)
}

/// A string with `r`, `b` or both before it.
fn prefixed(text: &str) -> Option<(Kind, usize)> {
    let mut at = 0;
    let bytes = text.starts_with(['b', 'B']);
    at += usize::from(bytes);
    let raw = text[at..].starts_with(['r', 'R']);
    at += usize::from(raw);
    if at == 0 || !text[at..].starts_with(['"', '\'']) {
        return None;
    }
    let kind = if bytes { Kind::Bytes } else { Kind::String };
    string(&text[at..], raw).map(|length| (kind, at + length))
}

/// The length of the quoted string that `text` begins with.
fn string(text: &str, raw: bool) -> Option<usize> {
    for long in ["\"\"\"", "'''"] {
        if let Some(body) = text.strip_prefix(long) {
            return until(body, long, raw, true).map(|length| length + 6);
        }
    }
    let quote = &text[..1];
    until(&text[1..], quote, raw, false).map(|length| length + 2)
}

fn until(body: &str, quote: &str, raw: bool, lines: bool) -> Option<usize> {
    let mut chars = body.char_indices();
    while let Some((at, c)) = chars.next() {
        if body[at..].starts_with(quote) {
            return Some(at);
        }
        match c {
            '\n' | '\r' if !lines => return None,
            '\\' if !raw => skip_escape(&mut chars)?,
            _ => {}
        }
    }
    None
}

/// Goes past the escape whose backslash was taken; none if it is none of CEL's.
fn skip_escape(chars: &mut CharIndices<'_>) -> Option<()> {
    let (_, c) = chars.next()?;
    let mut take =
        |count: usize, fits: fn(char) -> bool| (0..count).all(|_| chars.next().is_some_and(|(_, c)| fits(c)));
    let hex: fn(char) -> bool = |c| c.is_ascii_hexdigit();
    let good = match c {
        'a' | 'b' | 'f' | 'n' | 'r' | 't' | 'v' | '"' | '\'' | '\\' | '?' | '`' => true,
        'x' | 'X' => take(2, hex),
        'u' => take(4, hex),
        'U' => take(8, hex),
        '0'..='3' => take(2, |c| c.is_digit(8)),
        _ => false,
    };
    good.then_some(())
}

/// How far a string goes that does not become one.
fn broken_string(text: &str) -> usize {
    let mut chars = text[1..].char_indices();
    let quote = text.chars().next().unwrap_or('"');
    while let Some((at, c)) = chars.next() {
        if c == '\\' {
            let mut ahead = chars.clone();
            if skip_escape(&mut ahead).is_none() {
                let next = ahead.as_str();
                return text.len() - next.len();
            }
            chars = ahead;
        } else if c == quote || c == '\n' {
            return at + 1;
        }
    }
    text.len()
}

/// What a token of a string or of bytes means.
pub(crate) fn unquote(token: &str) -> Result<Literal, &'static str> {
    let bytes = token.starts_with(['b', 'B']);
    let rest = if bytes { &token[1..] } else { token };
    let raw = rest.starts_with(['r', 'R']);
    let rest = if raw { &rest[1..] } else { rest };
    let quotes = if rest.starts_with("\"\"\"") || rest.starts_with("'''") { 3 } else { 1 };
    let body = &rest[quotes..rest.len() - quotes];
    // Line ends of any kind are one.
    let body = body.replace("\r\n", "\n").replace('\r', "\n");
    let mut text = Vec::with_capacity(body.len());
    let mut chars = body.chars();
    while let Some(c) = chars.next() {
        if c != '\\' || raw {
            text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
            continue;
        }
        let kind = chars.next().ok_or("unable to unescape string")?;
        let mut code = |digits: usize, radix: u32, start: u32| {
            let mut value = start;
            for _ in 0..digits {
                value =
                    value * radix + chars.next().and_then(|c| c.to_digit(radix)).ok_or("unable to unescape string")?;
            }
            Ok::<u32, &'static str>(value)
        };
        let (value, is_byte) = match kind {
            'a' => (7, false),
            'b' => (8, false),
            'f' => (12, false),
            'n' => (10, false),
            'r' => (13, false),
            't' => (9, false),
            'v' => (11, false),
            'x' | 'X' => (code(2, 16, 0)?, true),
            'u' => (code(4, 16, 0)?, false),
            'U' => (code(8, 16, 0)?, false),
            '0'..='3' => (code(2, 8, kind.to_digit(8).unwrap_or(0))?, true),
            other => (u32::from(other), false),
        };
        if is_byte && bytes {
            text.push(u8::try_from(value).map_err(|_| "unable to unescape string")?);
        } else {
            let c = char::from_u32(value).ok_or("invalid unicode code point")?;
            text.extend_from_slice(c.encode_utf8(&mut [0; 4]).as_bytes());
        }
    }
    if bytes {
        return Ok(Literal::Bytes(text.into()));
    }
    String::from_utf8(text).map(|text| Literal::String(text.into())).map_err(|_| "unable to unescape string")
}
