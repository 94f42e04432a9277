//! Other servers' groups in discovery: among ours, by rank.

use apimachinery::{Value, meta};
use serde_json::json;

use super::{Aggregator, Remote};

/// A group as discovery lists it.
struct Ranked {
    priority: i64,
    group: Value,
}

/// `groups` with those of other servers among them, by priority; `name` finds a group's name in its entry, `entry` makes one of a
/// group's other versions, best first.
pub fn in_groups(
    aggregator: &Aggregator,
    groups: Vec<Value>,
    name: impl Fn(&Value) -> String,
    add: impl Fn(&mut Value, &Remote),
    empty: impl Fn(&str) -> Value,
) -> Vec<Value> {
    let remotes = aggregator.remotes();
    if remotes.is_empty() {
        return groups;
    }
    let rank = |group: Value| Ranked { priority: super::group_priority(&name(&group)), group };
    let mut ranked: Vec<Ranked> = groups.into_iter().map(rank).collect();
    let mut others: Vec<&Remote> = remotes.values().map(|remote| &**remote).collect();
    others.sort_by(|a, b| (b.priority.1, &a.version).cmp(&(a.priority.1, &b.version)));
    for remote in others.into_iter().filter(|remote| !remote.group.is_empty()) {
        let found = ranked.iter().position(|ranked| name(&ranked.group) == remote.group);
        let at = found.unwrap_or_else(|| {
            ranked.push(Ranked { priority: remote.priority.0, group: empty(&remote.group) });
            ranked.len() - 1
        });
        ranked[at].priority = ranked[at].priority.max(remote.priority.0);
        add(&mut ranked[at].group, remote);
    }
    // Stable: what has the same rank stays as it was.
    ranked.sort_by_key(|ranked| std::cmp::Reverse(ranked.priority));
    ranked.into_iter().map(|ranked| ranked.group).collect()
}

/// A remote `APIResourceList` as `APIVersionDiscovery`.
pub fn resources(remote: &Remote) -> Value {
    let listed = remote.resources["resources"].as_array().map(Vec::as_slice).unwrap_or_default();
    let text = |value: &Value, key: &str| meta::str_at(value, &[key]).to_owned();
    let kind = |r: &Value| {
        let or = |key: &str, other: &str| match meta::str_at(r, &[key]) {
            "" => other.to_owned(),
            found => found.to_owned(),
        };
        json!({"group": or("group", &remote.group), "version": or("version", &remote.version), "kind": r["kind"]})
    };
    let mut out: Vec<Value> = Vec::new();
    for resource in listed.iter().filter(|r| !text(r, "name").contains('/')) {
        let scope = if resource["namespaced"] == true { "Namespaced" } else { "Cluster" };
        let mut entry = json!({
            "resource": resource["name"], "singularResource": text(resource, "singularName"), "scope": scope,
            "responseKind": kind(resource), "verbs": resource["verbs"],
        });
        for key in ["shortNames", "categories"] {
            if let Some(names) = resource.get(key) {
                entry[key] = names.clone();
            }
        }
        let prefix = format!("{}/", text(resource, "name"));
        let subresources = listed.iter().filter_map(|sub| {
            let name = meta::str_at(sub, &["name"]).strip_prefix(&prefix)?;
            Some(json!({"subresource": name, "responseKind": kind(sub), "verbs": sub["verbs"]}))
        });
        let subresources: Vec<Value> = subresources.collect();
        if !subresources.is_empty() {
            entry["subresources"] = json!(subresources);
        }
        out.push(entry);
    }
    let freshness = if remote.available { "Current" } else { "Stale" };
    json!({"version": remote.version, "resources": out, "freshness": freshness})
}
