//! Nobody gives away more than they hold: checks before a role or a binding is written. `rbac/*/policybased` storages upstream.

use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};

use super::rules::{Rule, compact, quoted, rules_of, uncovered};
use super::{Authorizer, MASTERS};
use crate::request::{RequestInfo, UserInfo};
use apimachinery::status::GroupResource;

const GROUP: &str = "rbac.authorization.k8s.io";

/// Before a Role (`namespace` given) or ClusterRole (`namespace` empty) is created or updated.
pub fn check_role_write(
    authorizer: &Authorizer,
    user: &UserInfo,
    namespace: &str,
    role: &Value,
    old: Option<&Value>,
) -> Result<()> {
    let resource = if namespace.is_empty() { "clusterroles" } else { "roles" };
    let name = meta::name(role);
    if user.in_group(MASTERS) || old.is_some_and(|old| only_collected(role, old)) {
        return Ok(());
    }
    if permitted(authorizer, user, "escalate", resource, namespace, name) {
        return Ok(());
    }
    let forbidden = |why: &str| StatusError::forbidden(&GroupResource::new(GROUP, resource), name, why);
    let aggregates = |role: &Value| role.get("aggregationRule").is_some_and(|rule| !rule.is_null());
    if aggregates(role) || old.is_some_and(aggregates) {
        let (held, _) = authorizer.rules_for(user, namespace);
        if !uncovered(&held, &Rule::full_authority()).is_empty() {
            return Err(forbidden("must have cluster-admin privileges to use the aggregationRule"));
        }
    }
    confirm(authorizer, user, namespace, &rules_of(role)).map_err(|why| forbidden(&why))
}

/// Before a RoleBinding (`namespace` given) or ClusterRoleBinding is created or updated: the user needs `bind` on the role, or all
/// that the role grants.
pub fn check_binding_write(
    authorizer: &Authorizer,
    user: &UserInfo,
    namespace: &str,
    binding: &Value,
    old: Option<&Value>,
) -> Result<()> {
    let resource = if namespace.is_empty() { "clusterrolebindings" } else { "rolebindings" };
    if user.in_group(MASTERS) || old.is_some_and(|old| only_collected(binding, old)) {
        return Ok(());
    }
    let role = meta::str_at(binding, &["roleRef", "name"]);
    let (role_resource, role_namespace) =
        if meta::str_at(binding, &["roleRef", "kind"]) == "Role" { ("roles", namespace) } else { ("clusterroles", "") };
    if permitted(authorizer, user, "bind", role_resource, namespace, role) {
        return Ok(());
    }
    let Some(rules) = authorizer.role(role_namespace, role) else {
        return Err(StatusError::not_found(&GroupResource::new(GROUP, role_resource), role));
    };
    confirm(authorizer, user, namespace, &rules)
        .map_err(|why| StatusError::forbidden(&GroupResource::new(GROUP, resource), meta::name(binding), &why))
}

fn permitted(
    authorizer: &Authorizer,
    user: &UserInfo,
    verb: &str,
    resource: &str,
    namespace: &str,
    name: &str,
) -> bool {
    let info = RequestInfo {
        is_resource: true,
        verb: verb.to_owned(),
        group: GROUP.to_owned(),
        version: "v1".to_owned(),
        namespace: namespace.to_owned(),
        resource: resource.to_owned(),
        name: name.to_owned(),
        ..RequestInfo::default()
    };
    authorizer.allows(user, &info)
}

/// Whether `user` holds all of `rules`; else upstream's words for what is missing.
fn confirm(authorizer: &Authorizer, user: &UserInfo, namespace: &str, rules: &[Rule]) -> Result<(), String> {
    let (held, unresolved) = authorizer.rules_for(user, namespace);
    let missing = compact(uncovered(&held, rules));
    if missing.is_empty() {
        return Ok(());
    }
    let mut lines: Vec<String> = missing.iter().map(ToString::to_string).collect();
    lines.sort();
    lines.dedup();
    let mut message = format!(
        "user {:?} (groups={}) is attempting to grant RBAC permissions not currently held:\n{}",
        user.name,
        quoted(&user.groups),
        lines.join("\n")
    );
    if !unresolved.is_empty() {
        message.push_str(&format!("; resolution errors: [{}]", unresolved.join(" ")));
    }
    Err(message)
}

/// Whether only finalizers and owner references differ: the garbage collector's writes (`IsOnlyMutatingGCFields`).
fn only_collected(new: &Value, old: &Value) -> bool {
    let stripped = |object: &Value| {
        let mut object = object.clone();
        for field in ["finalizers", "ownerReferences", "managedFields", "resourceVersion"] {
            meta::remove(&mut object, field);
        }
        object
    };
    stripped(new) == stripped(old)
}
