//! Which flow a request belongs to.

use sha2::{Digest as _, Sha256};

use super::config::{Distinguisher, PathRule, ResourceRule, Schema, Subject, Words};
use crate::request::{RequestInfo, UserInfo};

const SERVICE_ACCOUNT: &str = "system:serviceaccount:";

impl Schema {
    /// Whether a request is of this schema's.
    pub fn matches(&self, user: &UserInfo, info: &RequestInfo) -> bool {
        self.rules.iter().any(|rule| {
            rule.subjects.iter().any(|subject| subject.matches(user))
                && match info.is_resource {
                    true => rule.resources.iter().any(|rule| rule.matches(info)),
                    false => rule.paths.iter().any(|rule| rule.matches(info)),
                }
        })
    }

    /// What tells the request's flow from others of this schema.
    pub fn flow<'a>(&self, user: &'a UserInfo, info: &'a RequestInfo) -> &'a str {
        match self.distinguisher {
            Distinguisher::None => "",
            Distinguisher::ByUser => &user.name,
            Distinguisher::ByNamespace => &info.namespace,
        }
    }
}

impl Subject {
    fn matches(&self, user: &UserInfo) -> bool {
        match self {
            Subject::User(names) => names.has(&user.name),
            Subject::Group(Words::All) => true,
            Subject::Group(groups) => user.groups.iter().any(|group| groups.has(group)),
            Subject::ServiceAccount(namespace, names) => user
                .name
                .strip_prefix(SERVICE_ACCOUNT)
                .and_then(|rest| rest.split_once(':'))
                .is_some_and(|(own, name)| own == namespace && names.has(name)),
        }
    }
}

impl ResourceRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(&info.verb)
            && has_resource(&self.resources, &info.resource, &info.subresource)
            && self.groups.has(&info.group)
            && if info.namespace.is_empty() { self.cluster_scope } else { self.namespaces.has(&info.namespace) }
    }
}

/// `pods` or `pods/status`, without putting the two words together.
fn has_resource(words: &Words, resource: &str, subresource: &str) -> bool {
    match words {
        Words::All => true,
        Words::These(words) => words.iter().any(|word| match word.split_once('/') {
            Some((main, sub)) => main == resource && sub == subresource,
            None => subresource.is_empty() && word == resource,
        }),
    }
}

impl PathRule {
    fn matches(&self, info: &RequestInfo) -> bool {
        self.verbs.has(&info.verb)
            && match &self.paths {
                Words::All => true,
                Words::These(paths) => paths.iter().any(|path| matches_path(path, &info.path)),
            }
    }
}

/// `/healthz` is about itself and all below it, with and without `/*` behind it.
fn matches_path(rule: &str, path: &str) -> bool {
    let start = rule.strip_suffix('*').unwrap_or(rule);
    let start = start.strip_suffix('/').unwrap_or(start);
    rule == path || path.strip_prefix(start).is_some_and(|rest| rest.starts_with('/'))
}

/// The flow's number, from which its queues follow; upstream's, so that servers agree.
pub fn hash(schema: &str, flow: &str) -> u64 {
    let mut digest = Sha256::new();
    digest.update(schema.as_bytes());
    digest.update([0]);
    digest.update(flow.as_bytes());
    let digest = digest.finalize();
    digest.first_chunk().map_or(0, |first| u64::from_le_bytes(*first))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bootstrap::flow;

    fn schemas() -> Vec<Schema> {
        let objects = flow::objects();
        let mut all: Vec<Schema> = objects.iter().filter(|o| o["kind"] == "FlowSchema").map(Schema::of).collect();
        all.sort_by(|a, b| (a.precedence, &a.name).cmp(&(b.precedence, &b.name)));
        all
    }

    fn resource(verb: &str, group: &str, namespace: &str, resource: &str, subresource: &str) -> RequestInfo {
        let text = str::to_owned;
        RequestInfo {
            is_resource: true,
            verb: text(verb),
            group: text(group),
            namespace: text(namespace),
            resource: text(resource),
            subresource: text(subresource),
            ..RequestInfo::default()
        }
    }

    fn path(path: &str) -> RequestInfo {
        RequestInfo { verb: "get".into(), path: path.into(), ..RequestInfo::default() }
    }

    #[test]
    fn requests_fall_where_upstreams_do() {
        let schemas = schemas();
        let find = |name: &str, groups: &[&str], info: &RequestInfo| {
            let user = UserInfo::new(name, groups);
            schemas.iter().find(|schema| schema.matches(&user, info)).map(|s| s.name.clone()).unwrap_or_default()
        };
        let pods = resource("list", "", "a", "pods", "");
        let lease = resource("update", "coordination.k8s.io", "kube-system", "leases", "");
        let status = resource("patch", "", "", "nodes", "status");
        let authenticated = ["system:authenticated"];
        let node = ["system:nodes", "system:authenticated"];
        let account = ["system:serviceaccounts", "system:authenticated"];
        let cases = [
            ("admin", &["system:masters"][..], &pods, "exempt"),
            ("nobody", &["system:unauthenticated"], &path("/healthz"), "probes"),
            ("nobody", &["system:unauthenticated"], &path("/livez/ping"), "probes"),
            ("nobody", &["system:unauthenticated"], &path("/livezoo"), "global-default"),
            ("system:kube-scheduler", &authenticated, &lease, "system-leader-election"),
            ("system:kube-scheduler", &authenticated, &pods, "kube-scheduler"),
            ("system:kube-controller-manager", &authenticated, &pods, "kube-controller-manager"),
            ("system:node:a", &node, &status, "system-node-high"),
            ("system:node:a", &node, &pods, "system-nodes"),
            ("system:serviceaccount:kube-system:x", &account, &lease, "system-leader-election"),
            ("system:serviceaccount:kube-system:x", &account, &pods, "kube-system-service-accounts"),
            ("system:serviceaccount:kube-system-2:x", &account, &pods, "service-accounts"),
            ("jane", &authenticated, &pods, "global-default"),
        ];
        for (user, groups, info, expected) in cases {
            assert_eq!(find(user, groups, info), expected, "{user} {info:?}");
        }
    }

    #[test]
    fn namespaces_and_scope_count() {
        let rule = ResourceRule {
            verbs: Words::All,
            groups: Words::All,
            resources: Words::These(vec!["pods".into(), "pods/log".into()]),
            namespaces: Words::These(vec!["a".into()]),
            cluster_scope: false,
        };
        assert!(rule.matches(&resource("get", "", "a", "pods", "")));
        assert!(rule.matches(&resource("get", "", "a", "pods", "log")));
        assert!(!rule.matches(&resource("get", "", "a", "pods", "status")));
        assert!(!rule.matches(&resource("get", "", "b", "pods", "")));
        assert!(!rule.matches(&resource("list", "", "", "pods", "")), "of all namespaces is cluster scope");
    }

    #[test]
    fn the_hash_is_upstreams() {
        // SHA-256 of "a", a zero byte and "b"; the first eight bytes, the least significant first.
        let digest = Sha256::digest(b"a\0b");
        assert_eq!(hash("a", "b").to_le_bytes(), digest[..8]);
        assert_ne!(hash("ab", ""), hash("a", "b"));
    }
}
