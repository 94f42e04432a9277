//! Rules of roles: what one allows, and whether some rules together cover another.
//!
//! Knows nothing of who holds a rule. Behaviour of upstream's `rbac/v1` evaluation helpers and `rbac/validation`.

use std::fmt;

use apimachinery::Value;
use serde::{Deserialize, Serialize};

use crate::request::RequestInfo;

/// A `rbac.authorization.k8s.io/v1` PolicyRule.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Rule {
    #[serde(deserialize_with = "list")]
    pub verbs: Vec<Box<str>>,
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub api_groups: Vec<Box<str>>,
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub resources: Vec<Box<str>>,
    #[serde(deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub resource_names: Vec<Box<str>>,
    #[serde(rename = "nonResourceURLs", deserialize_with = "list", skip_serializing_if = "Vec::is_empty")]
    pub non_resource_urls: Vec<Box<str>>,
}

/// A list that may be null.
fn list<'de, D: serde::Deserializer<'de>>(de: D) -> Result<Vec<Box<str>>, D::Error> {
    Ok(Option::deserialize(de)?.unwrap_or_default())
}

/// The rules of a role object; what is malformed grants nothing.
pub fn rules_of(role: &Value) -> Vec<Rule> {
    let rules = role.get("rules").and_then(Value::as_array);
    rules.into_iter().flatten().filter_map(|rule| Rule::deserialize(rule).ok()).collect()
}

fn has(list: &[Box<str>], wanted: &str) -> bool {
    list.iter().any(|item| &**item == "*" || &**item == wanted)
}

impl Rule {
    /// `* on *.*` and every path: the authority of `cluster-admin`.
    pub fn full_authority() -> Vec<Rule> {
        let all = || vec!["*".into()];
        vec![
            Rule { verbs: all(), api_groups: all(), resources: all(), ..Rule::default() },
            Rule { verbs: all(), non_resource_urls: all(), ..Rule::default() },
        ]
    }

    pub fn allows(&self, request: &RequestInfo) -> bool {
        if !has(&self.verbs, &request.verb) {
            return false;
        }
        if !request.is_resource {
            return self.non_resource_urls.iter().any(|url| url_matches(url, &request.path));
        }
        has(&self.api_groups, &request.group)
            && self.resources.iter().any(|r| resource_matches(r, &request.resource, &request.subresource))
            && (self.resource_names.is_empty() || self.resource_names.iter().any(|n| **n == *request.name))
    }

    /// Whether this rule alone allows everything that `other`, a rule of one verb on one thing, allows.
    fn covers_one(&self, other: &Rule) -> bool {
        let every = |mine: &[Box<str>], theirs: &[Box<str>]| theirs.iter().all(|t| has(mine, t));
        let names = match (self.resource_names.is_empty(), other.resource_names.is_empty()) {
            (true, _) => true,
            (false, true) => false,
            (false, false) => other.resource_names.iter().all(|n| self.resource_names.contains(n)),
        };
        names
            && every(&self.verbs, &other.verbs)
            && every(&self.api_groups, &other.api_groups)
            && other.resources.iter().all(|r| self.covers_resource(r))
            && other.non_resource_urls.iter().all(|u| self.non_resource_urls.iter().any(|mine| url_matches(mine, u)))
    }

    fn covers_resource(&self, wanted: &str) -> bool {
        let (resource, subresource) = wanted.split_once('/').unwrap_or((wanted, ""));
        self.resources.iter().any(|mine| resource_matches(mine, resource, subresource))
    }

    /// One rule for each verb on each thing that this rule names.
    fn broken_down(&self) -> Vec<Rule> {
        let one = |s: &str| vec![Box::from(s)];
        let mut out = Vec::new();
        for verb in &self.verbs {
            for url in &self.non_resource_urls {
                out.push(Rule { verbs: one(verb), non_resource_urls: one(url), ..Rule::default() });
            }
        }
        for group in &self.api_groups {
            for resource in &self.resources {
                for verb in &self.verbs {
                    let rule =
                        Rule { verbs: one(verb), api_groups: one(group), resources: one(resource), ..Rule::default() };
                    if self.resource_names.is_empty() {
                        out.push(rule.clone());
                    }
                    out.extend(self.resource_names.iter().map(|n| Rule { resource_names: one(n), ..rule.clone() }));
                }
            }
        }
        out
    }
}

/// `pods`, `pods/log`, `*` (everything), or `*/scale` (that subresource of everything).
fn resource_matches(rule: &str, resource: &str, subresource: &str) -> bool {
    if rule == "*" {
        return true;
    }
    if subresource.is_empty() {
        return rule == resource;
    }
    rule.split_once('/').is_some_and(|(r, s)| s == subresource && (r == "*" || r == resource))
}

/// Exact, or everything that starts with what stands before a trailing `*`.
fn url_matches(rule: &str, path: &str) -> bool {
    rule == path || rule.strip_suffix('*').is_some_and(|prefix| path.starts_with(prefix.trim_end_matches('*')))
}

/// What of `wanted` is not allowed by `held`, broken down to single verbs; empty if all is covered. `validation.Covers`.
pub fn uncovered(held: &[Rule], wanted: &[Rule]) -> Vec<Rule> {
    let pieces = wanted.iter().flat_map(Rule::broken_down);
    pieces.filter(|piece| !held.iter().any(|rule| rule.covers_one(piece))).collect()
}

/// Joins the verbs of rules about the same single thing. `validation.CompactRules`.
pub fn compact(rules: Vec<Rule>) -> Vec<Rule> {
    let mut out: Vec<Rule> = Vec::new();
    for rule in rules {
        let simple = rule.non_resource_urls.is_empty()
            && rule.api_groups.len() == 1
            && rule.resources.len() == 1
            && rule.resource_names.len() <= 1;
        let same = out.iter_mut().find(|other| {
            simple
                && other.api_groups == rule.api_groups
                && other.resources == rule.resources
                && other.resource_names == rule.resource_names
                && other.non_resource_urls.is_empty()
        });
        match same {
            Some(other) => {
                let new: Vec<_> = rule.verbs.into_iter().filter(|v| !other.verbs.contains(v)).collect();
                other.verbs.extend(new);
            }
            None => out.push(rule),
        }
    }
    out
}

/// `{APIGroups:["apps"], Resources:["deployments"], Verbs:["get" "list"]}`, upstream's `CompactString`.
impl fmt::Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let parts = [
            ("APIGroups", &self.api_groups),
            ("Resources", &self.resources),
            ("NonResourceURLs", &self.non_resource_urls),
            ("ResourceNames", &self.resource_names),
            ("Verbs", &self.verbs),
        ];
        let parts = parts.iter().filter(|(_, list)| !list.is_empty());
        let text: Vec<String> = parts.map(|(name, list)| format!("{name}:{}", quoted(list))).collect();
        write!(f, "{{{}}}", text.join(", "))
    }
}

/// A list of strings as upstream prints it: `["a" "b"]`.
pub fn quoted<S: AsRef<str>>(list: &[S]) -> String {
    let items: Vec<String> = list.iter().map(|s| format!("{:?}", s.as_ref())).collect();
    format!("[{}]", items.join(" "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rule(text: &str) -> Rule {
        let mut fields = text.split_whitespace();
        let mut next = || -> Vec<Box<str>> {
            fields.next().map(|f| f.split(',').map(|s| s.replace("core", "").into()).collect()).unwrap_or_default()
        };
        let verbs = next();
        let second = next();
        if second.first().is_some_and(|s| s.starts_with('/')) || (&*second[0] == "*" && text.split(' ').count() == 2) {
            return Rule { verbs, non_resource_urls: second, ..Rule::default() };
        }
        Rule { verbs, api_groups: second, resources: next(), resource_names: next(), ..Rule::default() }
    }

    fn asks(verb: &str, group: &str, resource: &str, name: &str) -> RequestInfo {
        let (resource, subresource) = resource.split_once('/').unwrap_or((resource, ""));
        RequestInfo {
            is_resource: true,
            verb: verb.into(),
            group: group.into(),
            resource: resource.into(),
            subresource: subresource.into(),
            name: name.into(),
            ..RequestInfo::default()
        }
    }

    #[test]
    fn rules_match_as_upstream() {
        let table = [
            ("get core pods", asks("get", "", "pods", "x"), true),
            ("get core pods", asks("get", "", "pods/log", "x"), false),
            ("get core pods", asks("list", "", "pods", ""), false),
            ("get core pods", asks("get", "metrics.k8s.io", "pods", "x"), false),
            ("get core pods/log", asks("get", "", "pods/log", "x"), true),
            ("get core pods/log", asks("get", "", "pods", "x"), false),
            ("* * *", asks("bind", "any", "thing/sub", "x"), true),
            ("update * */scale", asks("update", "apps", "deployments/scale", "x"), true),
            ("update * */scale", asks("update", "apps", "deployments", "x"), false),
            // No wildcard for all subresources of one resource exists.
            ("get core pods/*", asks("get", "", "pods/log", "x"), false),
            ("get core configmaps a,b", asks("get", "", "configmaps", "b"), true),
            ("get core configmaps a,b", asks("get", "", "configmaps", "c"), false),
            ("create core configmaps a", asks("create", "", "configmaps", ""), false),
        ];
        for (text, request, expected) in table {
            assert_eq!(rule(text).allows(&request), expected, "{text}: {request:?}");
        }
    }

    #[test]
    fn paths_match_by_trailing_star() {
        let path = |p: &str| RequestInfo { verb: "get".into(), path: p.into(), ..RequestInfo::default() };
        for (text, asked, expected) in [
            ("get /healthz", "/healthz", true),
            ("get /healthz", "/healthz/etcd", false),
            ("get /healthz/*", "/healthz/etcd", true),
            ("get /healthz/*", "/healthz", false),
            ("get *", "/metrics", true),
            ("get /*", "/metrics", true),
            ("post /healthz", "/healthz", false),
        ] {
            assert_eq!(rule(text).allows(&path(asked)), expected, "{text} {asked}");
        }
    }

    #[test]
    fn what_is_missing_is_named_compactly() {
        let held = [rule("get,list core pods,services"), rule("* apps deployments web")];
        let missing = |text: &str| -> Vec<String> {
            compact(uncovered(&held, &[rule(text)])).iter().map(ToString::to_string).collect()
        };
        assert!(missing("get core pods a").is_empty());
        assert!(missing("delete apps deployments web").is_empty());
        assert_eq!(
            missing("get,delete,patch core pods,secrets"),
            [
                r#"{APIGroups:[""], Resources:["pods"], Verbs:["delete" "patch"]}"#,
                r#"{APIGroups:[""], Resources:["secrets"], Verbs:["get" "delete" "patch"]}"#,
            ]
        );
        assert_eq!(
            missing("get apps deployments"),
            [r#"{APIGroups:["apps"], Resources:["deployments"], Verbs:["get"]}"#]
        );
        assert_eq!(missing("get /a"), [r#"{NonResourceURLs:["/a"], Verbs:["get"]}"#]);
        assert_eq!(uncovered(&Rule::full_authority(), &[rule("* * *"), rule("* *")]), []);
    }

    mod laws {
        use super::*;
        use proptest::prelude::*;

        fn some(of: &'static [&'static str]) -> impl Strategy<Value = Vec<Box<str>>> {
            prop::collection::vec(prop::sample::select(of).prop_map(Box::from), 1..3)
        }

        fn any_rule() -> impl Strategy<Value = Rule> {
            let verbs = || some(&["get", "list", "*"]);
            let groups = some(&["", "apps", "*"]);
            let resources = some(&["pods", "pods/log", "deployments", "*/log", "*"]);
            let names = prop_oneof![Just(Vec::new()), some(&["a", "b"])];
            let things =
                (verbs(), groups, resources, names).prop_map(|(verbs, api_groups, resources, resource_names)| Rule {
                    verbs,
                    api_groups,
                    resources,
                    resource_names,
                    ..Rule::default()
                });
            let paths = (verbs(), some(&["/a", "/a/*", "/a*", "*"]));
            let paths =
                paths.prop_map(|(verbs, non_resource_urls)| Rule { verbs, non_resource_urls, ..Rule::default() });
            prop_oneof![4 => things, 1 => paths]
        }

        fn any_request() -> impl Strategy<Value = RequestInfo> {
            let verb = || prop::sample::select(&["get", "list", "delete"][..]);
            let resource =
                prop::sample::select(&["pods", "pods/log", "deployments", "deployments/log", "services"][..]);
            let name = prop::sample::select(&["", "a", "b", "c"][..]);
            let group = prop::sample::select(&["", "apps", "batch"][..]);
            let path = prop::sample::select(&["/", "/a", "/a/b", "/ab"][..]);
            prop_oneof![
                4 => (verb(), group, resource, name).prop_map(|(verb, group, resource, name)| asks(verb, group, resource, name)),
                1 => (verb(), path).prop_map(|(verb, path)| RequestInfo {
                    verb: verb.into(), path: path.into(), ..RequestInfo::default()
                }),
            ]
        }

        proptest! {
            /// Nobody gains a permission by granting what is covered.
            #[test]
            fn covered_rules_allow_nothing_new(
                held in prop::collection::vec(any_rule(), 0..4),
                wanted in any_rule(),
                requests in prop::collection::vec(any_request(), 20),
            ) {
                if uncovered(&held, std::slice::from_ref(&wanted)).is_empty() {
                    for request in requests.iter().filter(|request| wanted.allows(request)) {
                        prop_assert!(held.iter().any(|rule| rule.allows(request)), "{request:?}");
                    }
                }
            }

            #[test]
            fn every_rule_covers_itself_and_compacting_keeps_its_meaning(
                rules in prop::collection::vec(any_rule(), 1..4),
                request in any_request(),
            ) {
                prop_assert_eq!(uncovered(&rules, &rules), []);
                let allows = |rules: &[Rule]| rules.iter().any(|rule| rule.allows(&request));
                prop_assert_eq!(allows(&compact(rules.clone())), allows(&rules));
            }
        }
    }
}
