//! `APIService` objects of what this server serves itself. Pure.

use apimachinery::Value;
use apimachinery::resource::ResourceTable;
use serde_json::json;

/// Objects that the server keeps itself, and how: `onstart` are only made, `true` go with what they list.
pub const AUTOMANAGED: &str = "kube-aggregator.kubernetes.io/automanaged";

/// Upstream's `groupPriorityMinimum` of built-in groups.
const GROUPS: [(&str, i64); 22] = [
    ("", 18000),
    ("apps", 17800),
    ("events.k8s.io", 17750),
    ("authentication.k8s.io", 17700),
    ("authorization.k8s.io", 17600),
    ("autoscaling", 17500),
    ("batch", 17400),
    ("certificates.k8s.io", 17300),
    ("networking.k8s.io", 17200),
    ("policy", 17100),
    ("rbac.authorization.k8s.io", 17000),
    ("storage.k8s.io", 16800),
    ("apiextensions.k8s.io", 16700),
    ("admissionregistration.k8s.io", 16700),
    ("scheduling.k8s.io", 16600),
    ("coordination.k8s.io", 16500),
    ("node.k8s.io", 16300),
    ("discovery.k8s.io", 16200),
    ("flowcontrol.apiserver.k8s.io", 16100),
    ("internal.apiserver.k8s.io", 16000),
    ("resource.k8s.io", 15900),
    ("storagemigration.k8s.io", 15800),
];

/// That of custom groups.
const CUSTOM_GROUP: i64 = 1000;
const CUSTOM_VERSION: i64 = 100;
/// The aggregator's own group is in no list of upstream's: it is served before all others.
pub const OWN_GROUP: &str = "apiregistration.k8s.io";

/// The rank of a group that this server serves.
pub fn group_priority(group: &str) -> i64 {
    if group == OWN_GROUP {
        return 20000;
    }
    GROUPS.iter().find(|(name, _)| *name == group).map_or(CUSTOM_GROUP, |(_, priority)| *priority)
}

fn version_priority(group: &str, version: &str) -> i64 {
    match (group, version) {
        ("", _) => 1,
        ("autoscaling", "v2") => 30,
        ("flowcontrol.apiserver.k8s.io", "v1") => 21,
        (_, version) if version.contains("alpha") => 9,
        (_, version) if version.contains("beta") => 12,
        _ => 15,
    }
}

/// The objects that there should be for `table`.
pub fn wanted(table: &ResourceTable) -> Vec<Value> {
    let mut objects = Vec::new();
    for group in table.groups().into_iter().filter(|group| group.name != OWN_GROUP) {
        for version in &group.versions {
            let custom = table.group_version(group.name, version).all(|row| row.custom);
            let (managed, priority) =
                if custom { ("true", CUSTOM_VERSION) } else { ("onstart", version_priority(group.name, version)) };
            let mut spec = json!({
                "version": version, "groupPriorityMinimum": group_priority(group.name), "versionPriority": priority,
            });
            if !group.name.is_empty() {
                spec["group"] = json!(group.name);
            }
            objects.push(json!({
                "apiVersion": "apiregistration.k8s.io/v1", "kind": "APIService",
                "metadata": {"name": format!("{version}.{}", group.name), "labels": {AUTOMANAGED: managed}},
                "spec": spec,
            }));
        }
    }
    objects
}
