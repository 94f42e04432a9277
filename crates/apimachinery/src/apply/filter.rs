//! What an endpoint writes: fields that it resets whatever is sent, so that nobody comes to own them through it.

use super::set::{FieldSet, Node, child, children, is_member, settle};

/// Upstream's `GetResetFields` and `GetResetFieldsFilter` of a strategy.
#[derive(Clone, Debug)]
pub enum Filter {
    /// All but these and what is below them.
    Except(FieldSet),
    /// Nothing but these and what is below them. Each is the names on its path; `*` is any element.
    Only(Vec<Vec<&'static str>>),
}

impl Filter {
    /// An endpoint that resets nothing.
    pub fn all() -> Self {
        Filter::Except(FieldSet::default())
    }

    /// An endpoint that resets the given fields ([`FieldSet::of_fields`]).
    pub fn except(paths: &[&[&str]]) -> Self {
        Filter::Except(FieldSet::of_fields(paths))
    }

    pub(super) fn cut(&self, set: &mut FieldSet) {
        match self {
            Filter::Except(fields) => set.subtract_recursively(fields),
            Filter::Only(paths) => {
                let paths: Vec<&[&str]> = paths.iter().map(Vec::as_slice).collect();
                keep(&mut set.0, &paths);
            }
        }
    }
}

/// Keeps of a node's children what one of the paths leads to or through.
fn keep(node: &mut Node, paths: &[&[&str]]) {
    let keys: Vec<String> = children(node).map(|(key, _)| key.to_owned()).collect();
    for key in keys {
        let fits =
            |path: &&[&str]| path.first().is_some_and(|name| *name == "*" || key.strip_prefix("f:") == Some(name));
        let further: Vec<&[&str]> =
            paths.iter().copied().filter(fits).map(|path| path.get(1..).unwrap_or_default()).collect();
        if further.is_empty() {
            node.remove(&key);
            continue;
        }
        if further.iter().any(|path| path.is_empty()) {
            continue;
        }
        let member = child(node, &key).is_some_and(is_member);
        let stays = node.get_mut(&key).and_then(serde_json::Value::as_object_mut).is_some_and(|inner| {
            keep(inner, &further);
            settle(inner, member)
        });
        if !stays {
            node.remove(&key);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn cuts_what_the_endpoint_does_not_write() {
        let fields = json!({
            "f:metadata": {"f:labels": {".": {}, "f:a": {}}},
            "f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:image": {}, "f:resources": {"f:limits": {"f:cpu": {}}}}}},
            "f:status": {"f:phase": {}},
        });
        let cut = |filter: Filter| {
            let mut set = FieldSet::parse(&fields).unwrap();
            filter.cut(&mut set);
            set.into_value()
        };
        assert_eq!(cut(Filter::all()), fields);
        assert_eq!(cut(Filter::except(&[&["spec"], &["metadata", "labels"]])), json!({"f:status": {"f:phase": {}}}));
        let resources = vec![vec!["spec", "containers", "*", "resources"]];
        assert_eq!(
            cut(Filter::Only(resources)),
            json!({"f:spec": {"f:containers": {"k:{\"name\":\"a\"}": {".": {}, "f:resources": {"f:limits": {"f:cpu": {}}}}}}})
        );
    }
}
