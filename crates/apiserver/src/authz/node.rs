//! The Node authoriser: a node may do what upstream's `system:node` rules say, narrowed to its own objects and to what its pods need.

use std::sync::LazyLock;

use apimachinery::selector::FieldSelector;

use super::Decision;
use super::node_graph::{Kind, Referred};
use super::rules::Rule;
use crate::request::{RequestInfo, UserInfo};

pub const GROUP: &str = "system:nodes";
const USER_PREFIX: &str = "system:node:";

/// The rules of the bootstrap role `system:node`, without the resources that are decided one by one below.
static STATIC_RULES: LazyLock<Vec<Rule>> = LazyLock::new(crate::bootstrap::node_rules);

/// The node that a user is, by name and group (`NodeIdentifier`).
pub fn name_of(user: &UserInfo) -> Option<&str> {
    if !user.in_group(GROUP) {
        return None;
    }
    user.name.strip_prefix(USER_PREFIX).filter(|name| !name.is_empty())
}

fn no_opinion(reason: impl Into<String>) -> Decision {
    Decision::NoOpinion { reason: reason.into() }
}

fn allow() -> Decision {
    Decision::Allow { reason: String::new() }
}

/// Decides for `node`; `reaches` asks the graph.
pub fn authorize(node: &str, info: &RequestInfo, reaches: impl Fn(&Referred) -> bool) -> Decision {
    if !info.is_resource {
        return by_rules(node, info);
    }
    let request = NodeRequest { node, info, reaches: &reaches };
    match (info.group.as_str(), info.resource.as_str()) {
        ("", "secrets") => request.read_referred(Kind::Secret),
        ("", "configmaps") => request.read_referred(Kind::ConfigMap),
        ("", "persistentvolumeclaims") if info.subresource == "status" => request.claim_status(),
        ("", "persistentvolumeclaims") => request.get_referred(Kind::Claim),
        ("", "persistentvolumes") => request.get_referred(Kind::Volume),
        ("resource.k8s.io", "resourceclaims") => request.get_referred(Kind::ResourceClaim),
        ("storage.k8s.io", "volumeattachments") => request.get_referred(Kind::Attachment),
        ("certificates.k8s.io", "podcertificaterequests") => request.certificate_request(),
        ("", "serviceaccounts") => request.service_account(),
        ("coordination.k8s.io", "leases") => request.lease(),
        ("storage.k8s.io", "csinodes") => request.csi_node(),
        ("resource.k8s.io", "resourceslices") => request.resource_slice(),
        ("", "nodes") => request.own_node(),
        ("", "pods") => request.own_pod(),
        _ => by_rules(node, info),
    }
}

fn by_rules(_node: &str, info: &RequestInfo) -> Decision {
    if STATIC_RULES.iter().any(|rule| rule.allows(info)) { allow() } else { no_opinion("") }
}

struct NodeRequest<'a> {
    node: &'a str,
    info: &'a RequestInfo,
    reaches: &'a dyn Fn(&Referred) -> bool,
}

impl NodeRequest<'_> {
    fn verb(&self) -> &str {
        &self.info.verb
    }

    /// Secrets and config maps: read, one by name (a list or watch names it by field selector).
    fn read_referred(&self, kind: Kind) -> Decision {
        if !matches!(self.verb(), "get" | "list" | "watch") {
            return no_opinion("can only read resources of this type");
        }
        if !self.info.subresource.is_empty() {
            return no_opinion("cannot read subresource");
        }
        if self.info.namespace.is_empty() {
            return no_opinion("can only read namespaced object of this type");
        }
        self.related(kind)
    }

    fn get_referred(&self, kind: Kind) -> Decision {
        if self.verb() != "get" {
            return no_opinion("can only get individual resources of this type");
        }
        if !self.info.subresource.is_empty() {
            return no_opinion("cannot get subresource");
        }
        self.related(kind)
    }

    fn related(&self, kind: Kind) -> Decision {
        if self.info.name.is_empty() {
            return no_opinion("No Object name found");
        }
        if (self.reaches)(&Referred::new(kind, &self.info.namespace, &self.info.name)) {
            return allow();
        }
        no_opinion(format!("no relationship found between node '{}' and this object", self.node))
    }

    fn claim_status(&self) -> Decision {
        match self.verb() {
            "get" | "update" | "patch" => self.related(Kind::Claim),
            _ => no_opinion("can only get/update/patch this type"),
        }
    }

    fn certificate_request(&self) -> Decision {
        match self.verb() {
            "create" if self.info.subresource.is_empty() => allow(),
            "list" | "watch" if self.selects("spec.nodeName") => allow(),
            _ => self.get_referred(Kind::PodCertificateRequest),
        }
    }

    fn service_account(&self) -> Decision {
        match (self.verb(), self.info.subresource.as_str()) {
            ("create", "token") | ("get", "") => self.related(Kind::ServiceAccount),
            (_, "token") => no_opinion("can only create tokens"),
            _ => {
                no_opinion("can only create tokens for individual service accounts and get individual service accounts")
            }
        }
    }

    /// The node's heartbeat: the lease of its name in the namespace of leases.
    fn lease(&self) -> Decision {
        if !matches!(self.verb(), "get" | "create" | "update" | "patch" | "delete") {
            return no_opinion("can only get, create, update, patch, or delete a node lease");
        }
        if self.info.namespace != "kube-node-lease" {
            return no_opinion("can only access leases in the \"kube-node-lease\" system namespace");
        }
        // A create has no name yet; NodeRestriction compares it with the object's.
        if self.verb() != "create" && self.info.name != self.node {
            return no_opinion("can only access node lease with the same name as the requesting node");
        }
        allow()
    }

    fn csi_node(&self) -> Decision {
        if !matches!(self.verb(), "get" | "create" | "update" | "patch" | "delete") {
            return no_opinion("can only get, create, update, patch, or delete a CSINode");
        }
        if !self.info.subresource.is_empty() {
            return no_opinion("cannot authorize CSINode subresources");
        }
        if self.verb() != "create" && self.info.name != self.node {
            return no_opinion("can only access CSINode with the same name as the requesting node");
        }
        allow()
    }

    fn resource_slice(&self) -> Decision {
        if !self.info.subresource.is_empty() {
            return no_opinion("cannot authorize ResourceSlice subresources");
        }
        match self.verb() {
            "create" => allow(),
            "get" | "update" | "patch" | "delete" => self.related(Kind::ResourceSlice),
            "list" | "watch" | "deletecollection" if self.selects("spec.nodeName") => allow(),
            "list" | "watch" | "deletecollection" => {
                no_opinion("can only list/watch/deletecollection resourceslices with nodeName field selector")
            }
            _ => no_opinion(
                "only the following verbs are allowed for a ResourceSlice: get, watch, list, create, update, patch, delete, deletecollection",
            ),
        }
    }

    fn own_node(&self) -> Decision {
        if matches!(self.verb(), "get" | "list" | "watch") && self.info.subresource.is_empty() {
            if self.info.name == self.node {
                return allow();
            }
            return no_opinion(format!(
                "node '{}' cannot read '{}', only its own Node object",
                self.node, self.info.name
            ));
        }
        by_rules(self.node, self.info)
    }

    /// Reads are of the node's own pods; writes are narrowed by NodeRestriction.
    fn own_pod(&self) -> Decision {
        let reads = matches!(self.verb(), "get" | "list" | "watch") && self.info.subresource.is_empty();
        if !reads {
            return by_rules(self.node, self.info);
        }
        if !self.info.name.is_empty() {
            return self.related(Kind::Pod);
        }
        if self.selects("spec.nodeName") {
            return allow();
        }
        no_opinion("can only list/watch pods with spec.nodeName field selector")
    }

    /// Whether the field selector asks for `field` to be this node.
    fn selects(&self, field: &str) -> bool {
        let selector = FieldSelector::parse(&self.info.field_selector);
        selector.is_ok_and(|selector| selector.required_value(field) == Some(self.node))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn ask(verb: &str, resource: &str, namespace: &str, name: &str, selector: &str) -> RequestInfo {
        let (group, resource) = resource.split_once(':').unwrap_or(("", resource));
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            namespace: namespace.into(),
            name: name.into(),
            field_selector: selector.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn a_node_keeps_to_its_own() {
        let reaches = |r: &Referred| &*r.name == "mine" && &*r.namespace == "ns";
        let table = [
            (ask("get", "secrets", "ns", "mine", ""), true),
            (ask("watch", "configmaps", "ns", "mine", "metadata.name=mine"), true),
            (ask("get", "secrets", "ns", "other", ""), false),
            (ask("list", "secrets", "ns", "", ""), false),
            (ask("update", "secrets", "ns", "mine", ""), false),
            (ask("get", "nodes", "", "n1", ""), true),
            (ask("get", "nodes", "", "n2", ""), false),
            (ask("create", "nodes", "", "", ""), true),
            (ask("patch", "nodes/status", "", "n2", ""), true),
            (ask("delete", "nodes", "", "n1", ""), false),
            (ask("list", "pods", "", "", "spec.nodeName=n1"), true),
            (ask("list", "pods", "", "", "spec.nodeName==n1,status.phase!=Failed"), true),
            (ask("list", "pods", "", "", "spec.nodeName!=n1"), false),
            (ask("list", "pods", "", "", ""), false),
            (ask("get", "pods", "ns", "mine", ""), true),
            (ask("patch", "pods/status", "ns", "any", ""), true),
            (ask("create", "pods/binding", "ns", "any", ""), false),
            (ask("create", "serviceaccounts/token", "ns", "mine", ""), true),
            (ask("create", "serviceaccounts/token", "ns", "other", ""), false),
            (ask("update", "coordination.k8s.io:leases", "kube-node-lease", "n1", ""), true),
            (ask("update", "coordination.k8s.io:leases", "kube-node-lease", "n2", ""), false),
            (ask("update", "coordination.k8s.io:leases", "kube-system", "n1", ""), false),
            (ask("list", "services", "", "", ""), true),
            (ask("create", "events", "ns", "", ""), true),
            (ask("get", "apps:deployments", "ns", "d", ""), false),
        ];
        for (info, expected) in table {
            assert_eq!(authorize("n1", &info, reaches).is_allowed(), expected, "{info:?}");
        }
    }
}
