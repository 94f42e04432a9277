//! Field sets: which fields of an object somebody owns; upstream's `structured-merge-diff/fieldpath.Set`.
//!
//! A set is kept in its wire form, the trie of `fieldsV1`: a key is a path element (`f:name`, `k:{"name":"a"}`, `v:"x"`, `i:0`), a
//! leaf `{}` is a member, and a node with children is a member itself if it holds `.`. Reading and writing managedFields
//! therefore costs nothing, and what a request did not touch is never rebuilt.
//!
//! Invariants: no node is empty but a member leaf; `.` stands only beside children; keys are canonical (compact, sorted keys).

use serde_json::{Map, Value};

use crate::field::quote;
use crate::schema::MAX_DEPTH;

pub(super) type Node = Map<String, Value>;

const SELF: &str = ".";

/// A set of field paths.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct FieldSet(pub(super) Node);

impl FieldSet {
    /// The set of named fields, each given by the names on its path: `&[&["status"], &["metadata", "labels"]]`.
    pub fn of_fields(paths: &[&[&str]]) -> Self {
        let mut set = Node::new();
        for path in paths {
            let nested = path.iter().rev().fold(Node::new(), |inner, name| {
                let mut node = Node::new();
                node.insert(format!("f:{name}"), Value::Object(inner));
                node
            });
            unite(&mut set, &nested);
        }
        FieldSet(set)
    }

    /// The set of one named field.
    pub(super) fn of_path(path: &[impl AsRef<str>]) -> Self {
        let path: Vec<&str> = path.iter().map(AsRef::as_ref).collect();
        FieldSet::of_fields(&[&path])
    }

    /// Whether a named field is a member.
    pub(super) fn has(&self, path: &[impl AsRef<str>]) -> bool {
        let below = |node: &Node, name: &str| child(node, &format!("f:{name}")).cloned();
        path.iter().try_fold(self.0.clone(), |node, name| below(&node, name.as_ref())).is_some_and(|n| is_member(&n))
    }

    /// Reads `fieldsV1` from a client: checks it and makes it canonical. Path elements of unknown kinds are dropped, as upstream.
    pub fn parse(fields: &Value) -> Result<Self, String> {
        Ok(FieldSet(parse_node(fields, 0)?.0))
    }

    /// `fieldsV1` as it was stored, so canonical already.
    pub(super) fn stored(fields: Value) -> Self {
        match fields {
            Value::Object(node) => FieldSet(node),
            _ => FieldSet::default(),
        }
    }

    pub fn into_value(self) -> Value {
        Value::Object(self.0)
    }

    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub fn union(&mut self, other: &FieldSet) {
        unite(&mut self.0, &other.0);
    }

    /// Like [`FieldSet::union`], where `other` is of no more use.
    pub(super) fn absorb(&mut self, other: FieldSet) {
        if self.is_empty() {
            *self = other;
        } else {
            unite(&mut self.0, &other.0);
        }
    }

    /// Takes the members of `other` out.
    pub fn subtract(&mut self, other: &FieldSet) {
        subtract(&mut self.0, &other.0);
    }

    /// Takes the members of `other` out, and everything below them.
    pub fn subtract_recursively(&mut self, other: &FieldSet) {
        subtract_recursively(&mut self.0, &other.0);
    }

    #[must_use]
    pub fn intersection(&self, other: &FieldSet) -> FieldSet {
        FieldSet(intersect(&self.0, &other.0))
    }

    /// The members in upstream's order and notation: `.spec.containers[name="a"].image`.
    pub fn paths(&self) -> Vec<String> {
        let mut paths = Vec::new();
        list(&self.0, "", &mut paths);
        paths
    }

    pub(super) fn remove(&mut self, path: &[&str]) {
        let mut gone = Node::new();
        for name in path.iter().rev() {
            gone = Node::from_iter([((*name).to_owned(), Value::Object(gone))]);
        }
        subtract_recursively(&mut self.0, &gone);
    }
}

/// A node's children and membership as one value; none if it is neither.
pub(super) fn node(mut children: Node, member: bool) -> Option<Node> {
    if children.is_empty() {
        return member.then_some(children);
    }
    if member {
        children.insert(SELF.to_owned(), Value::Object(Node::new()));
    }
    Some(children)
}

pub(super) fn attach(parent: &mut Node, key: &str, child: Option<Node>) {
    if let Some(child) = child {
        parent.insert(key.to_owned(), Value::Object(child));
    }
}

pub(super) fn is_member(node: &Node) -> bool {
    node.is_empty() || node.contains_key(SELF)
}

pub(super) fn has_children(node: &Node) -> bool {
    node.len() > usize::from(node.contains_key(SELF))
}

/// The nodes under a node, with their path elements.
pub(super) fn children(node: &Node) -> impl Iterator<Item = (&str, &Node)> {
    node.iter().filter(|(key, _)| *key != SELF).filter_map(|(key, value)| Some((key.as_str(), value.as_object()?)))
}

pub(super) fn child<'n>(node: &'n Node, key: &str) -> Option<&'n Node> {
    node.get(key)?.as_object()
}

/// Restores the invariants of a node whose children have changed. False if nothing is left of it.
pub(super) fn settle(node: &mut Node, member: bool) -> bool {
    if !has_children(node) {
        node.clear();
        return member;
    }
    if member {
        node.entry(SELF).or_insert_with(|| Value::Object(Node::new()));
    } else {
        node.remove(SELF);
    }
    true
}

fn unite(set: &mut Node, other: &Node) {
    for (key, theirs) in children(other) {
        match set.get_mut(key) {
            Some(Value::Object(ours)) => {
                let member = is_member(ours) || is_member(theirs);
                unite(ours, theirs);
                settle(ours, member);
            }
            _ => {
                set.insert(key.to_owned(), Value::Object(theirs.clone()));
            }
        }
    }
}

fn subtract(set: &mut Node, other: &Node) {
    for (key, theirs) in children(other) {
        let Some(Value::Object(ours)) = set.get_mut(key) else { continue };
        let member = is_member(ours) && !is_member(theirs);
        subtract(ours, theirs);
        if !settle(ours, member) {
            set.remove(key);
        }
    }
}

fn subtract_recursively(set: &mut Node, other: &Node) {
    for (key, theirs) in children(other) {
        let Some(Value::Object(ours)) = set.get_mut(key) else { continue };
        let member = is_member(ours);
        let stays = !is_member(theirs) && {
            subtract_recursively(ours, theirs);
            settle(ours, member)
        };
        if !stays {
            set.remove(key);
        }
    }
}

fn intersect(left: &Node, right: &Node) -> Node {
    let mut both = Node::new();
    for (key, ours) in children(left) {
        if let Some(theirs) = child(right, key) {
            let member = is_member(ours) && is_member(theirs);
            attach(&mut both, key, node(intersect(ours, theirs), member));
        }
    }
    both
}

fn list(set: &Node, prefix: &str, paths: &mut Vec<String>) {
    paths.extend(children(set).filter(|(_, c)| is_member(c)).map(|(key, _)| format!("{prefix}{}", element_text(key))));
    for (key, inner) in children(set).filter(|(_, c)| has_children(c)) {
        list(inner, &format!("{prefix}{}", element_text(key)), paths);
    }
}

/// The node, and whether it is a member.
fn parse_node(fields: &Value, depth: usize) -> Result<(Node, bool), String> {
    let Value::Object(fields) = fields else {
        return Err("expected a map of path elements".to_owned());
    };
    if depth > MAX_DEPTH {
        return Err("nested too deeply".to_owned());
    }
    let mut parsed = Node::new();
    for (key, value) in fields.iter().filter(|(key, _)| *key != SELF) {
        let Some(key) = parse_element(key)? else { continue };
        let (inner, member) = parse_node(value, depth + 1)?;
        attach(&mut parsed, &key, node(inner, member));
    }
    let member = parsed.is_empty() || fields.contains_key(SELF);
    Ok((parsed, member))
}

/// A path element in canonical form; none if its kind is unknown.
fn parse_element(text: &str) -> Result<Option<String>, String> {
    if text.len() < 2 {
        return Err("key must be 2 characters long:".to_owned());
    }
    if text.as_bytes()[1] != b':' {
        return Err(format!("missing colon: {text}"));
    }
    let content = text.get(2..).unwrap_or_default();
    let parse = || serde_json::from_str::<Value>(content).map_err(|e| format!("parsing key as path element: {e}"));
    Ok(match text.as_bytes()[0] {
        b'f' => Some(text.to_owned()),
        b'v' => Some(format!("v:{}", parse()?)),
        b'k' => match parse()? {
            Value::Object(mut keys) => {
                keys.sort_keys();
                Some(format!("k:{}", Value::Object(keys)))
            }
            _ => return Err("parsing key as path element: expected an object".to_owned()),
        },
        b'i' => {
            let index: i64 = content.parse().map_err(|_| format!("invalid index {}", quote(content)))?;
            Some(format!("i:{index}"))
        }
        _ => None,
    })
}

/// A path element as upstream prints it: `.name`, `[name="a"]`, `[="x"]`, `[0]`.
pub(super) fn element_text(element: &str) -> String {
    let Some((kind, content)) = element.split_once(':') else { return element.to_owned() };
    match kind {
        "f" => format!(".{content}"),
        "k" => {
            let keys: Map<String, Value> = serde_json::from_str(content).unwrap_or_default();
            let keys: Vec<String> = keys.iter().map(|(key, value)| format!("{key}={}", value_text(value))).collect();
            format!("[{}]", keys.join(","))
        }
        "v" => format!("[={}]", serde_json::from_str(content).map_or_else(|_| content.to_owned(), |v| value_text(&v))),
        _ => format!("[{content}]"),
    }
}

fn value_text(value: &Value) -> String {
    match value {
        Value::String(text) => quote(text),
        other => other.to_string(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn set(fields: Value) -> FieldSet {
        FieldSet::parse(&fields).unwrap()
    }

    #[test]
    fn parses_and_lists() {
        let fields = json!({
            "f:metadata": {"f:labels": {".": {}, "f:app": {}}, "f:finalizers": {"v:\"x\"": {}}},
            "f:spec": {"f:ports": {"k:{\"protocol\":\"TCP\",\"port\": 80}": {".": {}, "f:port": {}}, "i:1": {".": {}}}},
            "x:unknown": {},
        });
        assert_eq!(
            set(fields).paths(),
            [
                ".metadata.labels",
                ".metadata.finalizers[=\"x\"]",
                ".metadata.labels.app",
                ".spec.ports[1]",
                ".spec.ports[port=80,protocol=\"TCP\"]",
                ".spec.ports[port=80,protocol=\"TCP\"].port",
            ]
        );
        for bad in
            [json!([]), json!({"f": {}}), json!({"fx": {}}), json!({"v:x": {}}), json!({"k:1": {}}), json!({"f:a": 1})]
        {
            assert!(FieldSet::parse(&bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn computes() {
        let a = set(json!({"f:a": {".": {}, "f:b": {}}, "f:c": {}}));
        let b = set(json!({"f:a": {"f:b": {}, "f:d": {}}}));
        let mut union = a.clone();
        union.union(&b);
        assert_eq!(union.clone().into_value(), json!({"f:a": {".": {}, "f:b": {}, "f:d": {}}, "f:c": {}}));
        let mut difference = a.clone();
        difference.subtract(&b);
        assert_eq!(difference.into_value(), json!({"f:a": {}, "f:c": {}}));
        assert_eq!(a.intersection(&b).into_value(), json!({"f:a": {"f:b": {}}}));
        let mut rest = union;
        rest.subtract_recursively(&set(json!({"f:a": {}})));
        assert_eq!(rest.into_value(), json!({"f:c": {}}));
    }

    fn any_set() -> impl Strategy<Value = FieldSet> {
        let path = prop::collection::vec("[a-c]", 1..4);
        prop::collection::vec(path, 0..8).prop_map(|paths| {
            let paths: Vec<Vec<&str>> = paths.iter().map(|p| p.iter().map(String::as_str).collect()).collect();
            let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
            FieldSet::of_fields(&paths)
        })
    }

    proptest! {
        #[test]
        fn obeys_set_laws(a in any_set(), b in any_set()) {
            // The members are a plain set of paths, so the operations must agree with those of a set of strings.
            use std::collections::BTreeSet;
            let members = |s: &FieldSet| s.paths().into_iter().collect::<BTreeSet<_>>();
            let (ma, mb) = (members(&a), members(&b));
            let (mut union, mut difference, mut recursive) = (a.clone(), a.clone(), a.clone());
            union.union(&b);
            difference.subtract(&b);
            recursive.subtract_recursively(&b);
            prop_assert_eq!(members(&union), &ma | &mb);
            prop_assert_eq!(members(&difference), &ma - &mb);
            prop_assert_eq!(members(&a.intersection(&b)), &ma & &mb);
            let below = |p: &String| mb.iter().any(|m| p == m || p.starts_with(&format!("{m}.")));
            prop_assert_eq!(members(&recursive), ma.iter().filter(|p| !below(p)).cloned().collect());
            for s in [union, difference, recursive] {
                prop_assert_eq!(FieldSet::parse(&s.clone().into_value()), Ok(s));
            }
        }
    }
}
