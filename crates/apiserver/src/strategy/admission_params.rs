//! Who writes a policy or a binding must be able to read the params that it refers to: evaluation reads them as the server itself.

use apimachinery::resource::builtin;
use apimachinery::{Value, meta};

use super::Context;
use crate::authz::{Authorizer, MASTERS};
use crate::request::{RequestInfo, UserInfo};

/// Before a policy is written with a `paramKind` that its old state did not have.
pub fn authorize_policy(
    authorizer: &Authorizer,
    cx: &Context<'_>,
    policy: &Value,
    old: Option<&Value>,
) -> Result<(), String> {
    let kind = &policy["spec"]["paramKind"];
    if kind.is_null() || old.is_some_and(|old| old["spec"]["paramKind"] == *kind) || cx.user.in_group(MASTERS) {
        return Ok(());
    }
    let (group, version, resource) = resource_of(cx, kind);
    let asked = asked("get", (group, version, resource), "*", "*");
    if authorizer.allows(cx.user, &asked) {
        return Ok(());
    }
    Err(format!(
        "user {} must have \"get\" permission on all objects of the referenced paramKind (kind={}, apiVersion={})",
        printed(cx.user),
        meta::str_at(kind, &["kind"]),
        meta::str_at(kind, &["apiVersion"]),
    ))
}

/// Before a binding is written with a `paramRef` that its old state did not have.
pub fn authorize_binding(
    authorizer: &Authorizer,
    cx: &Context<'_>,
    mutating: bool,
    binding: &Value,
    old: Option<&Value>,
) -> Result<(), String> {
    let (spec, params) = (&binding["spec"], &binding["spec"]["paramRef"]);
    let same = |old: &Value| ["paramRef", "policyName"].iter().all(|key| old["spec"][*key] == spec[*key]);
    if params.is_null() || old.is_some_and(same) || cx.user.in_group(MASTERS) {
        return Ok(());
    }
    let policies = if mutating { "mutatingadmissionpolicies" } else { "validatingadmissionpolicies" };
    let policy = cx.view.get(policies, "", meta::str_at(spec, &["policyName"])).map(|found| found.value.value());
    // What is not known yet may turn out to be anything.
    let any = || ("*".to_owned(), "*".to_owned(), "*".to_owned());
    let kind = policy.as_ref().map(|policy| &policy["spec"]["paramKind"]).filter(|kind| !kind.is_null());
    let resource = kind.map_or_else(any, |kind| resource_of(cx, kind));
    let name = meta::str_at(params, &["name"]);
    let verb = if name.is_empty() { "list" } else { "get" };
    if authorizer.allows(cx.user, &asked(verb, resource, meta::str_at(params, &["namespace"]), name)) {
        return Ok(());
    }
    // User and verb stand in each other's place upstream.
    Err(format!("user {verb} does not have \"{}\" permission on the object referenced by paramRef", printed(cx.user)))
}

fn asked(verb: &str, (group, version, resource): (String, String, String), namespace: &str, name: &str) -> RequestInfo {
    RequestInfo {
        is_resource: true,
        verb: verb.to_owned(),
        group,
        version,
        resource,
        namespace: namespace.to_owned(),
        name: name.to_owned(),
        ..RequestInfo::default()
    }
}

/// Group, version and plural of a `paramKind`; of a kind that nobody knows, all resources of the group and version.
fn resource_of(cx: &Context<'_>, kind: &Value) -> (String, String, String) {
    let (api_version, kind) = (meta::str_at(kind, &["apiVersion"]), meta::str_at(kind, &["kind"]));
    let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
    let plural = match builtin().by_kind(group, version, kind) {
        Some(row) => row.plural.to_string(),
        None => custom_plural(cx, group, kind).unwrap_or_else(|| "*".to_owned()),
    };
    (group.to_owned(), version.to_owned(), plural)
}

fn custom_plural(cx: &Context<'_>, group: &str, kind: &str) -> Option<String> {
    let definitions = cx.view.list("apiextensions.k8s.io/customresourcedefinitions", "");
    let specs = definitions.iter().map(|found| found.value.value()["spec"].clone());
    let mut own = specs.filter(|spec| spec["group"] == group && spec["names"]["kind"] == kind);
    own.next().and_then(|spec| Some(spec["names"]["plural"].as_str()?.to_owned()))
}

/// As Go prints a `user.DefaultInfo`.
fn printed(user: &UserInfo) -> String {
    let extra = user.extra.iter().map(|(key, values)| format!("{key}:[{}]", values.join(" ")));
    let extra = extra.collect::<Vec<_>>().join(" ");
    format!("&{{{} {} [{}] map[{extra}]}}", user.name, user.uid, user.groups.join(" "))
}
