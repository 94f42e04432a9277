//! Faults in a text, and how cel-go shows where they are.

use std::fmt::Write as _;

/// A fault at a place.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Issue {
    /// In characters from the start of the text.
    pub at: u32,
    pub message: String,
}

impl Issue {
    pub fn new(at: u32, message: impl Into<String>) -> Self {
        Issue { at, message: message.into() }
    }
}

/// As many faults as are told.
const MAX_ISSUES: usize = 100;
/// The longest line that is shown, in bytes.
const MAX_LINE: usize = 16_384;

/// All faults, in the order of their places, each with its line and a mark below it.
pub(crate) fn render(source: &str, mut issues: Vec<Issue>) -> String {
    let more = issues.len().saturating_sub(MAX_ISSUES);
    issues.truncate(MAX_ISSUES);
    issues.sort_by_key(|issue| issue.at);
    let mut out: Vec<String> = issues.iter().map(|issue| one(source, issue)).collect();
    if more > 0 {
        out.push(format!("{more} more errors were truncated"));
    }
    out.join("\n")
}

fn one(source: &str, issue: &Issue) -> String {
    let at = issue.at as usize;
    let offset = source.char_indices().nth(at).map_or(source.len(), |(offset, _)| offset);
    let start = source[..offset].rfind('\n').map_or(0, |end| end + 1);
    let line = source[..start].matches('\n').count() + 1;
    let column = source[start..offset].chars().count();
    let text = source[start..].split('\n').next().unwrap_or_default();
    let mut out = format!("ERROR: <input>:{line}:{}: {}", column + 1, issue.message);
    if text.len() > MAX_LINE {
        return out;
    }
    let wide = |c: char| c.len_utf8() > 1;
    let dots: String = text.chars().take(column).map(|c| if wide(c) { '\u{ff0e}' } else { '.' }).collect();
    let mark = if text.chars().nth(column).is_some_and(wide) { '\u{ff3e}' } else { '^' };
    let _ = write!(out, "\n | {}\n | {dots}{mark}", text.replace('\t', " "));
    out
}
