//! Who holds which rules: roles and bindings, indexed by namespace and subject, so that a decision touches only the bindings
//! of the asking user and never all of them.
//!
//! Pure: fed with changed objects, asked about users. Knows nothing of the store.

use std::collections::HashMap;
use std::fmt;
use std::sync::Arc;

use apimachinery::{Value, meta};

use super::rules::{Rule, rules_of};
use crate::request::UserInfo;

/// The four kinds the index is made of.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Kind {
    ClusterRole,
    Role,
    ClusterRoleBinding,
    RoleBinding,
}

impl Kind {
    pub const ALL: [Kind; 4] = [Kind::ClusterRole, Kind::Role, Kind::ClusterRoleBinding, Kind::RoleBinding];

    /// The storage prefix of the kind's row, which is its plural.
    pub const fn prefix(self) -> &'static str {
        match self {
            Kind::ClusterRole => "clusterroles",
            Kind::Role => "roles",
            Kind::ClusterRoleBinding => "clusterrolebindings",
            Kind::RoleBinding => "rolebindings",
        }
    }
}

/// A namespace (empty for cluster scope) and a name.
pub type Key = (Box<str>, Box<str>);

/// A service account counts as the user whose name it authenticates with.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
enum Holder {
    User(Box<str>),
    Group(Box<str>),
}

#[derive(Clone, Debug)]
struct Subject {
    holder: Holder,
    /// As upstream's reasons print it: `User "x"`, `ServiceAccount "name/namespace"`.
    text: Box<str>,
}

#[derive(Debug)]
struct Binding {
    key: Key,
    /// The role's namespace is empty for a ClusterRole.
    role: Key,
    subjects: Vec<Subject>,
}

/// One binding that applies to a user.
pub struct Grant<'a> {
    binding: &'a Binding,
    subject: &'a Subject,
    /// `None` if the role does not exist.
    pub rules: Option<&'a Arc<[Rule]>>,
}

impl Grant<'_> {
    /// `clusterrole.rbac.authorization.k8s.io "x" not found`: the binding's role is missing.
    pub fn missing_role(&self) -> String {
        let kind = if self.binding.role.0.is_empty() { "clusterrole" } else { "role" };
        format!("{kind}.rbac.authorization.k8s.io {:?} not found", self.binding.role.1)
    }
}

/// `RoleBinding "b/ns" of ClusterRole "r" to User "u"`, as upstream describes it.
impl fmt::Display for Grant<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (namespace, name) = &self.binding.key;
        if namespace.is_empty() {
            write!(f, "ClusterRoleBinding {name:?}")?;
        } else {
            write!(f, "RoleBinding \"{name}/{namespace}\"")?;
        }
        let kind = if self.binding.role.0.is_empty() { "ClusterRole" } else { "Role" };
        write!(f, " of {kind} {:?} to {}", self.binding.role.1, self.subject.text)
    }
}

#[derive(Debug, Default)]
pub struct Index {
    roles: HashMap<Key, Arc<[Rule]>>,
    bindings: HashMap<Key, Arc<Binding>>,
    /// By namespace (empty for cluster-wide bindings), then by subject.
    held: HashMap<Box<str>, HashMap<Holder, Vec<Arc<Binding>>>>,
}

impl Index {
    /// Takes in the state of one object; `None` is its absence.
    pub fn apply(&mut self, kind: Kind, key: Key, object: Option<&Value>) {
        match kind {
            Kind::ClusterRole | Kind::Role => match object {
                Some(role) => {
                    self.roles.insert(key, rules_of(role).into());
                }
                None => {
                    self.roles.remove(&key);
                }
            },
            Kind::ClusterRoleBinding | Kind::RoleBinding => {
                self.unbind(&key);
                if let Some(binding) = object.and_then(|object| Binding::read(key, object)) {
                    self.bind(binding);
                }
            }
        }
    }

    fn bind(&mut self, binding: Binding) {
        let binding = Arc::new(binding);
        let held = self.held.entry(binding.key.0.clone()).or_default();
        for subject in &binding.subjects {
            held.entry(subject.holder.clone()).or_default().push(binding.clone());
        }
        self.bindings.insert(binding.key.clone(), binding);
    }

    fn unbind(&mut self, key: &Key) {
        let Some(binding) = self.bindings.remove(key) else { return };
        let Some(held) = self.held.get_mut(&key.0) else { return };
        for subject in &binding.subjects {
            if let Some(list) = held.get_mut(&subject.holder) {
                list.retain(|other| other.key != *key);
                if list.is_empty() {
                    held.remove(&subject.holder);
                }
            }
        }
        if held.is_empty() {
            self.held.remove(&key.0);
        }
    }

    pub fn role(&self, namespace: &str, name: &str) -> Option<&Arc<[Rule]>> {
        self.roles.get(&(namespace.into(), name.into()))
    }

    /// The bindings that apply to `user` in `namespace`: cluster-wide ones first, then the namespace's. Stops when `visit` returns
    /// true, and says whether it did.
    pub fn visit(&self, user: &UserInfo, namespace: &str, mut visit: impl FnMut(Grant<'_>) -> bool) -> bool {
        let scopes = if namespace.is_empty() { &[""][..] } else { &["", namespace][..] };
        let holders: Vec<Holder> = std::iter::once(Holder::User(user.name.as_str().into()))
            .chain(user.groups.iter().map(|group| Holder::Group(group.as_str().into())))
            .collect();
        for held in scopes.iter().filter_map(|scope| self.held.get(*scope)) {
            for holder in &holders {
                for binding in held.get(holder).into_iter().flatten() {
                    let subject = binding.subjects.iter().find(|s| s.holder == *holder);
                    let grant = Grant {
                        binding,
                        subject: subject.expect("a binding is listed under its own subjects"),
                        rules: self.roles.get(&binding.role),
                    };
                    if visit(grant) {
                        return true;
                    }
                }
            }
        }
        false
    }
}

impl Binding {
    fn read(key: Key, object: &Value) -> Option<Binding> {
        let role = object.get("roleRef")?;
        let name: Box<str> = meta::str_at(role, &["name"]).into();
        let namespace: Box<str> = match meta::str_at(role, &["kind"]) {
            "ClusterRole" => "".into(),
            "Role" if !key.0.is_empty() => key.0.clone(),
            _ => return None,
        };
        let mut subjects: Vec<Subject> = Vec::new();
        for subject in object.get("subjects").and_then(Value::as_array).into_iter().flatten() {
            if let Some(subject) = Subject::read(subject)
                && subjects.iter().all(|known| known.holder != subject.holder)
            {
                subjects.push(subject);
            }
        }
        Some(Binding { key, role: (namespace, name), subjects })
    }
}

impl Subject {
    fn read(subject: &Value) -> Option<Subject> {
        let name = meta::str_at(subject, &["name"]);
        let (holder, text) = match meta::str_at(subject, &["kind"]) {
            "User" => (Holder::User(name.into()), format!("User {name:?}")),
            "Group" => (Holder::Group(name.into()), format!("Group {name:?}")),
            "ServiceAccount" => {
                let namespace = meta::str_at(subject, &["namespace"]);
                let user = format!("system:serviceaccount:{namespace}:{name}");
                (Holder::User(user.into()), format!("ServiceAccount \"{name}/{namespace}\""))
            }
            _ => return None,
        };
        Some(Subject { holder, text: text.into() })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    fn binding(role_kind: &str, role: &str, subjects: Value) -> Value {
        json!({"roleRef": {"kind": role_kind, "name": role}, "subjects": subjects})
    }

    fn grants(index: &Index, user: &UserInfo, namespace: &str) -> Vec<String> {
        let mut out = Vec::new();
        index.visit(user, namespace, |grant| {
            out.push(if grant.rules.is_some() { grant.to_string() } else { grant.missing_role() });
            false
        });
        out
    }

    #[test]
    fn bindings_apply_by_subject_and_namespace_and_go_away() {
        let mut index = Index::default();
        let role = json!({"rules": [{"verbs": ["get"], "apiGroups": [""], "resources": ["pods"]}]});
        index.apply(Kind::ClusterRole, ("".into(), "reader".into()), Some(&role));
        let subjects =
            json!([{"kind": "Group", "name": "devs"}, {"kind": "ServiceAccount", "name": "bot", "namespace": "ns"}]);
        index.apply(Kind::RoleBinding, ("ns".into(), "b".into()), Some(&binding("ClusterRole", "reader", subjects)));
        let user = json!([{"kind": "User", "name": "ann"}]);
        index.apply(Kind::ClusterRoleBinding, ("".into(), "all".into()), Some(&binding("ClusterRole", "gone", user)));

        let ann = UserInfo::new("ann", &["devs"]);
        assert_eq!(
            grants(&index, &ann, "ns"),
            [
                r#"clusterrole.rbac.authorization.k8s.io "gone" not found"#,
                r#"RoleBinding "b/ns" of ClusterRole "reader" to Group "devs""#,
            ]
        );
        assert_eq!(grants(&index, &ann, "other").len(), 1);
        let bot = UserInfo::new("system:serviceaccount:ns:bot", &[]);
        assert_eq!(
            grants(&index, &bot, "ns"),
            [r#"RoleBinding "b/ns" of ClusterRole "reader" to ServiceAccount "bot/ns""#]
        );
        assert!(grants(&index, &bot, "").is_empty());

        index.apply(Kind::RoleBinding, ("ns".into(), "b".into()), None);
        assert!(grants(&index, &bot, "ns").is_empty());
        assert_eq!(index.held.len(), 1, "no empty entries stay behind");
    }
}
