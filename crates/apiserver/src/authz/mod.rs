//! Authorisation: may this user do this? The union of the Node authoriser and RBAC, both answered from indexes in memory that follow
//! the store, so that a decision costs microseconds and sees every write that was acknowledged before it.
//!
//! Knows nothing of HTTP. Reviews (`SubjectAccessReview` and its kin) are answered here too.

pub mod aggregate;
pub mod escalation;
pub(crate) mod follow;
mod index;
mod node;
mod node_graph;
pub mod reviews;
pub mod rules;

use std::sync::Arc;

use apimachinery::status::{GroupResource, Result, StatusError};
use parking_lot::Mutex;

use crate::object::Object;
use crate::request::{RequestInfo, UserInfo};
use crate::view::View;
pub use node::name_of as node_name;

use follow::Followed;
use index::{Index, Kind};
use node_graph::NodeGraph;
use rules::Rule;

/// The group whose members may do anything, whatever the roles say (`user.SystemPrivilegedGroup`).
pub const MASTERS: &str = "system:masters";

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Decision {
    Allow { reason: String },
    NoOpinion { reason: String },
    Deny { reason: String },
}

impl Decision {
    pub fn is_allowed(&self) -> bool {
        matches!(self, Decision::Allow { .. })
    }
}

/// Decides by the objects of one store. Share it: the indexes are large.
pub struct Authorizer {
    view: View,
    rbac: Mutex<Followed<Index>>,
    nodes: Mutex<Followed<NodeGraph>>,
}

impl Authorizer {
    pub fn new(view: View) -> Arc<Self> {
        Arc::new(Authorizer { view, rbac: Mutex::default(), nodes: Mutex::default() })
    }

    /// Whether `user` may do what `info` says. Never denies outright: what nothing allows is without opinion.
    pub fn authorize(&self, user: &UserInfo, info: &RequestInfo) -> Decision {
        if user.in_group(MASTERS) {
            return Decision::Allow { reason: String::new() };
        }
        let node_reason = match self.authorize_node(user, info) {
            Decision::NoOpinion { reason } => reason,
            decided => return decided,
        };
        match self.authorize_rbac(user, info) {
            Decision::NoOpinion { reason } => {
                let reasons = [node_reason, reason].into_iter().filter(|reason| !reason.is_empty());
                Decision::NoOpinion { reason: reasons.collect::<Vec<_>>().join("\n") }
            }
            decided => decided,
        }
    }

    pub fn allows(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.authorize(user, info).is_allowed()
    }

    fn authorize_node(&self, user: &UserInfo, info: &RequestInfo) -> Decision {
        if !user.in_group(node::GROUP) {
            return Decision::NoOpinion { reason: String::new() };
        }
        let Some(name) = node::name_of(user) else {
            return Decision::NoOpinion { reason: format!("unknown node for user {:?}", user.name) };
        };
        node::authorize(name, info, |referred| self.nodes.lock().fresh(&self.view).reaches(name, referred))
    }

    fn authorize_rbac(&self, user: &UserInfo, info: &RequestInfo) -> Decision {
        let mut rbac = self.rbac.lock();
        let mut reason = String::new();
        let mut missing: Vec<String> = Vec::new();
        let allowed = rbac.fresh(&self.view).visit(user, &info.namespace, |grant| match grant.rules {
            Some(rules) if rules.iter().any(|rule| rule.allows(info)) => {
                reason = format!("RBAC: allowed by {grant}");
                true
            }
            Some(_) => false,
            None => {
                missing.push(grant.missing_role());
                false
            }
        });
        if allowed {
            return Decision::Allow { reason };
        }
        let reason = match missing.as_slice() {
            [] => String::new(),
            [one] => format!("RBAC: {one}"),
            several => format!("RBAC: [{}]", several.join(", ")),
        };
        Decision::NoOpinion { reason }
    }

    /// All rules that `user` holds in `namespace` (empty: cluster-wide only), and what could not be resolved.
    pub fn rules_for(&self, user: &UserInfo, namespace: &str) -> (Vec<Rule>, Vec<String>) {
        let (mut rules, mut missing) = (Vec::new(), Vec::new());
        self.rbac.lock().fresh(&self.view).visit(user, namespace, |grant| {
            match grant.rules {
                Some(held) => rules.extend_from_slice(held),
                None => missing.push(grant.missing_role()),
            }
            false
        });
        (rules, missing)
    }

    /// The rules of a role (`namespace` empty: a ClusterRole).
    fn role(&self, namespace: &str, name: &str) -> Option<Arc<[Rule]>> {
        self.rbac.lock().fresh(&self.view).role(namespace, name).cloned()
    }
}

impl follow::Indexed for Index {
    const PREFIXES: &'static [&'static str] =
        &[Kind::ALL[0].prefix(), Kind::ALL[1].prefix(), Kind::ALL[2].prefix(), Kind::ALL[3].prefix()];

    fn apply(&mut self, prefix: usize, namespace: &str, name: &str, object: Option<&Object>) {
        let value = object.map(Object::value);
        Index::apply(self, Kind::ALL[prefix], (namespace.into(), name.into()), value.as_ref());
    }
}

impl follow::Indexed for NodeGraph {
    const PREFIXES: &'static [&'static str] = node_graph::PREFIXES;

    fn apply(&mut self, prefix: usize, namespace: &str, name: &str, object: Option<&Object>) {
        NodeGraph::apply(self, prefix, namespace, name, object.map(|object| &object.json()[..]));
    }
}

/// The refusal, worded as upstream: `pods is forbidden: User "x" cannot list resource "pods" in API group "" in the namespace "default"`.
pub fn forbidden(user: &UserInfo, info: &RequestInfo, reason: &str) -> StatusError {
    let mut message = refusal(user, info);
    if !reason.is_empty() {
        message = format!("{message}: {reason}");
    }
    let resource = if info.is_resource { &info.resource } else { "" };
    StatusError::forbidden(&GroupResource::new(&info.group, resource), &info.name, &message)
}

fn refusal(user: &UserInfo, info: &RequestInfo) -> String {
    let RequestInfo { verb, group, resource, subresource, namespace, path, .. } = info;
    let user = &user.name;
    if !info.is_resource {
        return format!("User {user:?} cannot {verb} path {path:?}");
    }
    let resource = if subresource.is_empty() { resource.clone() } else { format!("{resource}/{subresource}") };
    let place = if namespace.is_empty() {
        "at the cluster scope".to_owned()
    } else {
        format!("in the namespace {namespace:?}")
    };
    format!("User {user:?} cannot {verb} resource {resource:?} in API group {group:?} {place}")
}

/// Checks one permission and answers as the API would refuse it.
pub fn require(authorizer: &Authorizer, user: &UserInfo, info: &RequestInfo) -> Result<()> {
    match authorizer.authorize(user, info) {
        Decision::Allow { .. } => Ok(()),
        Decision::NoOpinion { reason } | Decision::Deny { reason } => Err(forbidden(user, info, &reason)),
    }
}

#[cfg(test)]
mod tests;
