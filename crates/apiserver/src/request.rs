//! Who asks for what: the user, and the request's meaning as upstream's `RequestInfo`.

use std::collections::BTreeMap;

/// An authenticated user (`user.Info`).
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct UserInfo {
    pub name: String,
    pub uid: String,
    pub groups: Vec<String>,
    pub extra: BTreeMap<String, Vec<String>>,
}

impl UserInfo {
    pub fn new(name: &str, groups: &[&str]) -> Self {
        UserInfo {
            name: name.to_owned(),
            groups: groups.iter().map(|g| (*g).to_owned()).collect(),
            ..UserInfo::default()
        }
    }

    pub fn in_group(&self, group: &str) -> bool {
        self.groups.iter().any(|g| g == group)
    }
}

/// What a request is about. For a non-resource request only `verb` (lower-case HTTP method) and `path` are set.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RequestInfo {
    pub is_resource: bool,
    pub path: String,
    /// `get`, `list`, `watch`, `create`, `update`, `patch`, `delete`, `deletecollection`, `proxy`; `impersonate`, `bind`, … in checks.
    pub verb: String,
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub resource: String,
    pub subresource: String,
    pub name: String,
    /// The path names a namespace itself (`/namespaces/<name>[/status|/finalize]`), not something in it.
    pub is_namespace_itself: bool,
    /// What follows resource, name and subresource (`proxy/a/b` has `a/b`).
    pub rest: String,
    /// The raw `fieldSelector` of a list, watch or deletecollection: the Node authoriser allows only a node's own objects by it.
    pub field_selector: String,
}
