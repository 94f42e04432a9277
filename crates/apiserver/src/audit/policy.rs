//! The audit policy (`audit.k8s.io/v1`, kind `Policy`): which requests are recorded, how much of them, and at which stages.
//!
//! Pure. Must not know: where events go.

use std::fmt;

use apimachinery::field::{Error, ErrorList, Path, aggregate};
use apimachinery::schema::decode::from_yaml;
use apimachinery::{Value, names};
use serde::{Deserialize, Serialize};
use serde_json::json;

use crate::request::{RequestInfo, UserInfo};

pub const API_VERSION: &str = "audit.k8s.io/v1";

/// How much of a request is recorded. Each level has what those before it have.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord, Serialize)]
pub enum Level {
    #[default]
    None,
    Metadata,
    Request,
    RequestResponse,
}

impl Level {
    pub const ALL: [Level; 4] = [Level::None, Level::Metadata, Level::Request, Level::RequestResponse];

    pub fn as_str(self) -> &'static str {
        match self {
            Level::None => "None",
            Level::Metadata => "Metadata",
            Level::Request => "Request",
            Level::RequestResponse => "RequestResponse",
        }
    }
}

/// How far a request has come when an event is made of it.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Stage {
    RequestReceived,
    /// Only of requests that go on for long: their answer has begun.
    ResponseStarted,
    ResponseComplete,
    Panic,
}

impl Stage {
    pub const ALL: [Stage; 4] = [Stage::RequestReceived, Stage::ResponseStarted, Stage::ResponseComplete, Stage::Panic];

    pub fn as_str(self) -> &'static str {
        match self {
            Stage::RequestReceived => "RequestReceived",
            Stage::ResponseStarted => "ResponseStarted",
            Stage::ResponseComplete => "ResponseComplete",
            Stage::Panic => "Panic",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

/// A set of stages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Stages(u8);

impl Stages {
    fn of(stages: &[String]) -> Self {
        let bit =
            |(index, stage): (usize, Stage)| if stages.iter().any(|s| s == stage.as_str()) { 1 << index } else { 0 };
        Stages(Stage::ALL.into_iter().enumerate().map(bit).sum())
    }

    pub fn contains(self, stage: Stage) -> bool {
        self.0 & (1 << stage as u8) != 0
    }
}

/// What the policy says of one request (upstream's `RequestAuditConfig`).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Verdict {
    pub level: Level,
    pub omitted: Stages,
    /// `metadata.managedFields` is left out of objects.
    pub omit_managed_fields: bool,
}

/// A checked policy. The first rule that matches decides; what none matches is not recorded.
#[derive(Debug)]
pub struct Policy {
    rules: Vec<Rule>,
}

#[derive(Debug)]
struct Rule {
    verdict: Verdict,
    said: PolicyRule,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PolicyFile {
    #[serde(deserialize_with = "nullable")]
    rules: Vec<PolicyRule>,
    #[serde(deserialize_with = "nullable")]
    omit_stages: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    omit_managed_fields: bool,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct PolicyRule {
    #[serde(deserialize_with = "nullable")]
    level: String,
    #[serde(deserialize_with = "nullable")]
    users: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    user_groups: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    verbs: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    resources: Vec<GroupResources>,
    #[serde(deserialize_with = "nullable")]
    namespaces: Vec<String>,
    #[serde(rename = "nonResourceURLs", deserialize_with = "nullable")]
    non_resource_urls: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    omit_stages: Vec<String>,
    omit_managed_fields: Option<bool>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct GroupResources {
    #[serde(deserialize_with = "nullable")]
    group: String,
    #[serde(deserialize_with = "nullable")]
    resources: Vec<String>,
    #[serde(deserialize_with = "nullable")]
    resource_names: Vec<String>,
}

/// An explicit null is as good as nothing.
fn nullable<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: serde::Deserializer<'de>,
    T: Deserialize<'de> + Default,
{
    Ok(Option::<T>::deserialize(deserializer)?.unwrap_or_default())
}

const POLICY_FIELDS: [&str; 6] = ["apiVersion", "kind", "metadata", "rules", "omitStages", "omitManagedFields"];
const RULE_FIELDS: [&str; 9] = [
    "level",
    "users",
    "userGroups",
    "verbs",
    "resources",
    "namespaces",
    "nonResourceURLs",
    "omitStages",
    "omitManagedFields",
];
const GROUP_FIELDS: [&str; 3] = ["group", "resources", "resourceNames"];

impl Policy {
    /// Reads and checks YAML or JSON. As upstream, a field that is unknown or there twice is only warned of; errors have upstream's
    /// words (`policy.LoadPolicyFromBytes`).
    pub fn parse(text: &[u8]) -> Result<Policy, String> {
        let decoded = from_yaml(text).map_err(|why| format!("failed decoding: {why}"))?;
        let value = &decoded.value;
        let kind_of = |key: &str| value.get(key).and_then(Value::as_str).unwrap_or_default();
        let (kind, version) = (kind_of("kind"), kind_of("apiVersion"));
        for (name, given) in [("Kind", kind), ("apiVersion", version)] {
            if given.is_empty() {
                return Err(format!("failed decoding: Object '{name}' is missing in '{value}'"));
            }
        }
        if version != API_VERSION || kind != "Policy" {
            return Err(format!("failed decoding: no kind {kind:?} is registered for version {version:?}"));
        }
        let mut faults: Vec<String> = decoded.duplicates.yaml_error().into_iter().collect();
        faults.extend(unknown_fields(value));
        if !faults.is_empty() {
            let faults = faults.join(", ");
            tracing::warn!(faults, "audit policy contains errors, which are passed over");
        }
        let said: PolicyFile =
            serde_json::from_value(decoded.value).map_err(|why| format!("failed decoding: {why}"))?;
        let errors = check(&said);
        if !errors.is_empty() {
            return Err(aggregate(&errors));
        }
        if said.rules.is_empty() {
            return Err("loaded illegal policy with 0 rules".to_owned());
        }
        Ok(Policy::of(said))
    }

    fn of(said: PolicyFile) -> Policy {
        let everywhere = Stages::of(&said.omit_stages);
        let rule = |rule: PolicyRule| Rule {
            verdict: Verdict {
                level: Level::ALL.into_iter().find(|level| level.as_str() == rule.level).unwrap_or_default(),
                omitted: Stages(everywhere.0 | Stages::of(&rule.omit_stages).0),
                omit_managed_fields: rule.omit_managed_fields.unwrap_or(said.omit_managed_fields),
            },
            said: rule,
        };
        Policy { rules: said.rules.into_iter().map(rule).collect() }
    }

    /// `user` is who was authenticated, before any impersonation; none where nobody was.
    pub fn evaluate(&self, user: Option<&UserInfo>, info: &RequestInfo) -> Verdict {
        let rule = self.rules.iter().find(|rule| rule.said.matches(user, info));
        rule.map_or_else(Verdict::default, |rule| rule.verdict)
    }
}

impl PolicyRule {
    fn matches(&self, user: Option<&UserInfo>, info: &RequestInfo) -> bool {
        let listed = |list: &[String], text: &str| list.iter().any(|item| item == text);
        if !self.users.is_empty() && !user.is_some_and(|user| listed(&self.users, &user.name)) {
            return false;
        }
        let in_group = |user: &UserInfo| user.groups.iter().any(|group| listed(&self.user_groups, group));
        if !self.user_groups.is_empty() && !user.is_some_and(in_group) {
            return false;
        }
        if !self.verbs.is_empty() && !listed(&self.verbs, &info.verb) {
            return false;
        }
        if !self.namespaces.is_empty() || !self.resources.is_empty() {
            return info.is_resource
                && (self.namespaces.is_empty() || listed(&self.namespaces, &info.namespace))
                && (self.resources.is_empty() || self.resources.iter().any(|group| group.matches(info)));
        }
        self.non_resource_urls.is_empty()
            || !info.is_resource && self.non_resource_urls.iter().any(|spec| path_matches(&info.path, spec))
    }
}

impl GroupResources {
    fn matches(&self, info: &RequestInfo) -> bool {
        if self.group != info.group && self.group != "*" {
            return false;
        }
        if self.resources.is_empty() {
            return true;
        }
        let named = self.resource_names.is_empty() || self.resource_names.contains(&info.name);
        named && self.resources.iter().any(|said| resource_matches(said, &info.resource, &info.subresource))
    }
}

/// `said` is `*`, `pods`, `pods/log`, `pods/*` or `*/log`. A resource alone is none of its subresources, but `pods/*` is pods too.
fn resource_matches(said: &str, resource: &str, subresource: &str) -> bool {
    match said.split_once('/') {
        _ if said == "*" => true,
        None => subresource.is_empty() && said == resource,
        Some((of, "*")) if of == resource => true,
        Some(("*", sub)) => !subresource.is_empty() && sub == subresource,
        Some((of, sub)) => !subresource.is_empty() && of == resource && sub == subresource,
    }
}

fn path_matches(path: &str, spec: &str) -> bool {
    spec == path || spec.ends_with('*') && path.starts_with(spec.trim_end_matches('*'))
}

/// `ValidatePolicy`
fn check(policy: &PolicyFile) -> ErrorList {
    let mut errors = ErrorList::new();
    check_stages(&policy.omit_stages, &Path::new("omitStages"), &mut errors);
    for (index, rule) in policy.rules.iter().enumerate() {
        check_rule(rule, &Path::new("rules").index(index), &mut errors);
    }
    errors
}

fn check_rule(rule: &PolicyRule, at: &Path, errors: &mut ErrorList) {
    let levels = Level::ALL.map(Level::as_str);
    if rule.level.is_empty() {
        errors.push(Error::required(&at.child("level"), ""));
    } else if !levels.contains(&rule.level.as_str()) {
        errors.push(Error::not_supported(&at.child("level"), &json!(rule.level), &levels));
    }
    let urls = at.child("nonResourceURLs");
    for (index, url) in rule.non_resource_urls.iter().enumerate().filter(|(_, url)| *url != "*") {
        if !url.starts_with('/') {
            let why = "non-resource URL rules must begin with a '/' character";
            errors.push(Error::invalid(&urls.index(index), &json!(url), why));
        }
        let mut letters = url.chars();
        letters.next_back();
        if letters.any(|letter| letter == '*') {
            let why = "non-resource URL wildcards '*' must be the final character of the rule";
            errors.push(Error::invalid(&urls.index(index), &json!(url), why));
        }
    }
    let resources = at.child("resources");
    for group in &rule.resources {
        if !group.group.is_empty() && group.group != "*" {
            let faults = names::dns1123_subdomain(&group.group);
            if !faults.is_empty() {
                errors.push(Error::invalid(&resources.child("group"), &json!(group.group), &faults.join(",")));
            }
        }
        if !group.resource_names.is_empty() && group.resources.is_empty() {
            let why = "using resourceNames requires at least one resource";
            errors.push(Error::invalid(&resources.child("resourceNames"), &json!(group.resource_names), why));
        }
    }
    check_stages(&rule.omit_stages, &at.child("omitStages"), errors);
    let of_resources = !rule.resources.is_empty() || !rule.namespaces.is_empty();
    if !rule.non_resource_urls.is_empty() && of_resources {
        let why = "rules cannot apply to both regular resources and non-resource URLs";
        errors.push(Error::invalid(&urls, &json!(rule.non_resource_urls), why));
    }
}

fn check_stages(stages: &[String], at: &Path, errors: &mut ErrorList) {
    let known = Stage::ALL.map(Stage::as_str);
    for (index, stage) in stages.iter().enumerate().filter(|(_, stage)| !known.contains(&stage.as_str())) {
        let why = format!("allowed stages are {}", known.join(","));
        errors.push(Error::invalid(&at.index(index), &json!(stage), &why));
    }
}

fn unknown_fields(policy: &Value) -> Vec<String> {
    let mut found = Vec::new();
    unknown(policy, "", &POLICY_FIELDS, &mut found);
    for (index, rule) in items(policy, "rules") {
        unknown(rule, &format!("rules[{index}]."), &RULE_FIELDS, &mut found);
        for (place, group) in items(rule, "resources") {
            unknown(group, &format!("rules[{index}].resources[{place}]."), &GROUP_FIELDS, &mut found);
        }
    }
    found
}

fn items<'a>(value: &'a Value, key: &str) -> impl Iterator<Item = (usize, &'a Value)> {
    value.get(key).and_then(Value::as_array).into_iter().flatten().enumerate()
}

fn unknown(value: &Value, at: &str, known: &[&str], found: &mut Vec<String>) {
    let keys = value.as_object().into_iter().flat_map(|map| map.keys());
    found.extend(keys.filter(|key| !known.contains(&key.as_str())).map(|key| format!("unknown field \"{at}{key}\"")));
}

#[cfg(test)]
mod tests {
    use super::*;

    const HEAD: &str = "apiVersion: audit.k8s.io/v1\nkind: Policy\n";

    fn policy(rules: &str) -> Policy {
        Policy::parse(format!("{HEAD}{rules}").as_bytes()).unwrap()
    }

    fn refused(text: &str) -> String {
        Policy::parse(text.as_bytes()).unwrap_err()
    }

    fn user() -> UserInfo {
        UserInfo::new("tim@k8s.io", &["humans", "developers"])
    }

    /// `verb group/resource[/subresource] namespace name`, or `verb /path`.
    fn request(line: &str) -> RequestInfo {
        let parts: Vec<&str> = line.split(' ').collect();
        let text = |index: usize| parts.get(index).filter(|part| **part != "-").copied().unwrap_or_default().to_owned();
        if parts[1].starts_with('/') {
            return RequestInfo { verb: text(0), path: text(1), ..RequestInfo::default() };
        }
        let mut path = parts[1].split('/').map(|part| if part == "-" { "" } else { part }.to_owned());
        RequestInfo {
            is_resource: true,
            verb: text(0),
            group: path.next().unwrap_or_default(),
            resource: path.next().unwrap_or_default(),
            subresource: path.next().unwrap_or_default(),
            namespace: text(2),
            name: text(3),
            ..RequestInfo::default()
        }
    }

    /// Whether a rule of this YAML flow matches.
    fn check(rule: &str, line: &str, matches: bool) {
        let policy = policy(&format!("rules: [{{level: Metadata, {rule}}}]"));
        let level = policy.evaluate(Some(&user()), &request(line)).level;
        assert_eq!(level == Level::Metadata, matches, "{rule} of {line}");
    }

    #[test]
    fn rules_match_users_groups_and_verbs() {
        let line = "get -/pods default busybox";
        check("users: []", line, true);
        check("users: [tim@k8s.io]", line, true);
        check("users: [ann]", line, false);
        check("userGroups: [developers, nobody]", line, true);
        check("userGroups: [nobody]", line, false);
        check("verbs: [get, list]", line, true);
        check("verbs: [create]", line, false);
        check("users: [tim@k8s.io], verbs: [create]", line, false);
        let policy = policy("rules: [{level: Metadata, users: [tim@k8s.io]}]");
        assert_eq!(policy.evaluate(None, &request(line)).level, Level::None);
    }

    #[test]
    fn rules_match_resources() {
        let (pods, logs) = ("get -/pods default busybox", "get -/pods/log default busybox");
        check("namespaces: [default]", pods, true);
        check("namespaces: [kube-system]", pods, false);
        check("namespaces: ['']", "get -/nodes - n", true);
        check("namespaces: ['']", pods, false);
        check("resources: [{}]", pods, true);
        check("resources: [{group: apps}]", pods, false);
        check("resources: [{group: '*'}]", "get apps/deployments default x", true);
        check("resources: [{resources: [pods]}]", pods, true);
        check("resources: [{resources: [pods]}]", logs, false);
        check("resources: [{resources: [pods/log]}]", logs, true);
        check("resources: [{resources: [pods/log]}]", pods, false);
        check("resources: [{resources: ['*']}]", logs, true);
        check("resources: [{resources: ['pods/*']}]", logs, true);
        check("resources: [{resources: ['pods/*']}]", pods, true);
        check("resources: [{resources: ['*/log']}]", logs, true);
        check("resources: [{resources: ['*/log']}]", pods, false);
        check("resources: [{resources: ['*/*']}]", logs, false);
        check("resources: [{resources: [pods], resourceNames: [edit]}]", pods, false);
        check("resources: [{resources: [pods], resourceNames: [edit, busybox]}]", pods, true);
        check("namespaces: [default], resources: [{resources: [secrets]}]", pods, false);
        check("resources: [{}]", "get /healthz", false);
        check("namespaces: ['']", "get /healthz", false);
    }

    #[test]
    fn rules_match_paths() {
        check("nonResourceURLs: [/logs*]", "get /logs/apiserver.log", true);
        check("nonResourceURLs: [/logs*]", "get /healthz", false);
        check("nonResourceURLs: ['*']", "get /healthz", true);
        check("nonResourceURLs: [/healthz]", "get /healthz", true);
        check("nonResourceURLs: [/healthz]", "get /healthz/etcd", false);
        check("nonResourceURLs: ['*']", "get -/pods default busybox", false);
        check("users: []", "get /healthz", true);
    }

    #[test]
    fn the_first_rule_decides_and_stages_add_up() {
        let policy = policy(
            "omitStages: [RequestReceived]\nomitManagedFields: true\nrules:\n\
             - {level: None, verbs: [watch]}\n\
             - {level: Request, verbs: [get], omitStages: [Panic], omitManagedFields: false}\n\
             - {level: RequestResponse, resources: [{}]}\n",
        );
        let of = |line: &str| policy.evaluate(Some(&user()), &request(line));
        assert_eq!(of("watch -/pods").level, Level::None);
        let got = of("get -/pods default x");
        assert_eq!((got.level, got.omit_managed_fields), (Level::Request, false));
        let omitted =
            |verdict: Verdict| Stage::ALL.into_iter().filter(move |s| verdict.omitted.contains(*s)).collect::<Vec<_>>();
        assert_eq!(omitted(got), [Stage::RequestReceived, Stage::Panic]);
        let listed = of("list -/pods default");
        assert_eq!((listed.level, listed.omit_managed_fields), (Level::RequestResponse, true));
        assert_eq!(omitted(listed), [Stage::RequestReceived]);
        assert_eq!(of("post /nowhere").level, Level::None);
    }

    #[test]
    fn what_is_no_policy_is_refused_in_upstreams_words() {
        assert_eq!(refused(HEAD), "loaded illegal policy with 0 rules");
        let missing = refused("rules: [{level: None}]");
        assert!(missing.starts_with("failed decoding: Object 'Kind' is missing in '"), "{missing}");
        let old = refused("apiVersion: audit.k8s.io/v1beta1\nkind: Policy\nrules: [{level: None}]");
        assert_eq!(old, "failed decoding: no kind \"Policy\" is registered for version \"audit.k8s.io/v1beta1\"");
        let of = |rule: &str| refused(&format!("{HEAD}rules: [{{{rule}}}]"));
        assert_eq!(of("users: [a]"), "rules[0].level: Required value");
        assert_eq!(
            of("level: All"),
            "rules[0].level: Unsupported value: \"All\": supported values: \"None\", \"Metadata\", \"Request\", \
             \"RequestResponse\""
        );
        assert_eq!(
            of("level: None, nonResourceURLs: [logs, /a*b]"),
            "[rules[0].nonResourceURLs[0]: Invalid value: \"logs\": non-resource URL rules must begin with a '/' character, \
             rules[0].nonResourceURLs[1]: Invalid value: \"/a*b\": non-resource URL wildcards '*' must be the final \
             character of the rule]"
        );
        assert_eq!(
            of("level: None, nonResourceURLs: [/a], namespaces: [x]"),
            "rules[0].nonResourceURLs: Invalid value: [\"/a\"]: rules cannot apply to both regular resources and \
             non-resource URLs"
        );
        assert_eq!(
            of("level: None, resources: [{resourceNames: [x]}]"),
            "rules[0].resources.resourceNames: Invalid value: [\"x\"]: using resourceNames requires at least one resource"
        );
        assert!(
            of("level: None, resources: [{group: apps/v1}]").starts_with("rules[0].resources.group: Invalid value")
        );
        assert_eq!(
            refused(&format!("{HEAD}omitStages: [Begun]\nrules: [{{level: None}}]")),
            "omitStages[0]: Invalid value: \"Begun\": allowed stages are \
             RequestReceived,ResponseStarted,ResponseComplete,Panic"
        );
    }

    #[test]
    fn unknown_fields_are_passed_over() {
        let policy = policy("rules: [{level: Metadata, colour: red}]\nfoo: 1");
        assert_eq!(policy.evaluate(None, &request("get /")).level, Level::Metadata);
        let value = json!({"foo": 1, "rules": [{"level": "None", "x": 1, "resources": [{"y": 2}]}]});
        let found = unknown_fields(&value);
        assert_eq!(
            found,
            ["unknown field \"foo\"", "unknown field \"rules[0].x\"", "unknown field \"rules[0].resources[0].y\""]
        );
    }
}
