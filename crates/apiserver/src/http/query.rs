//! Query parameters, decoded once.

use apimachinery::status::{Result, StatusError};
use percent_encoding::percent_decode_str;

/// The decoded parameters in the order sent.
#[derive(Clone, Debug, Default)]
pub struct Query(Vec<(String, String)>);

impl Query {
    pub fn parse(raw: &str) -> Self {
        let decode = |s: &str| percent_decode_str(&s.replace('+', " ")).decode_utf8_lossy().into_owned();
        let pairs = raw.split('&').filter(|s| !s.is_empty()).map(|pair| {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            (decode(key), decode(value))
        });
        Query(pairs.collect())
    }

    /// The first value of `key`.
    pub fn get(&self, key: &str) -> Option<&str> {
        self.0.iter().find(|(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    pub fn all<'a>(&'a self, key: &'a str) -> impl Iterator<Item = &'a str> {
        self.0.iter().filter(move |(k, _)| k == key).map(|(_, v)| v.as_str())
    }

    /// Go's reading of a boolean parameter in `metav1` options: `false` and `0` are false, anything else present is true.
    pub fn flag(&self, key: &str) -> bool {
        self.get(key).is_some_and(|v| !matches!(v, "false" | "0"))
    }

    pub fn optional_flag(&self, key: &str) -> Option<bool> {
        self.get(key).map(|v| !matches!(v, "false" | "0"))
    }

    /// Whether the answer is to be indented: if asked for, or for clients that people type commands into.
    pub fn pretty(&self, user_agent: &str) -> bool {
        let by_hand = || ["curl", "Wget", "Mozilla/5.0"].iter().any(|name| user_agent.starts_with(name));
        self.optional_flag("pretty").unwrap_or_else(by_hand)
    }

    pub fn number(&self, key: &str) -> Result<Option<i64>> {
        match self.get(key) {
            None | Some("") => Ok(None),
            Some(text) => text.parse().map(Some).map_err(|_| {
                StatusError::bad_request(format!(
                    "unable to decode query parameter {key:?}: strconv.ParseInt: parsing {text:?}: invalid syntax"
                ))
            }),
        }
    }

    /// `dryRun=All`; any other value is refused as upstream does.
    pub fn dry_run(&self) -> Result<bool> {
        dry_run(self.all("dryRun"))
    }
}

/// Reads the values of a `dryRun` option.
pub fn dry_run<'a>(values: impl Iterator<Item = &'a str>) -> Result<bool> {
    let mut set = false;
    for value in values {
        if value != "All" {
            return Err(StatusError::new(
                422,
                "Invalid",
                format!(" \"\" is invalid: dryRun: Unsupported value: {value:?}: supported values: \"All\""),
            ));
        }
        set = true;
    }
    Ok(set)
}
