//! The default FlowSchemas and PriorityLevelConfigurations of upstream's API Priority and Fairness.

use apimachinery::Value;
use serde_json::json;

const API_VERSION: &str = "flowcontrol.apiserver.k8s.io/v1";
/// Objects with this annotation `true` follow upstream's defaults.
pub const AUTOUPDATE: &str = "apf.kubernetes.io/autoupdate-spec";

/// A priority level: name, concurrency shares, lendable per cent, and queues as (number, hand size) or none for rejecting at once.
type Level = (&'static str, i64, i64, Option<(i64, i64)>);

const LEVELS: [Level; 7] = [
    ("catch-all", 5, 0, None),
    ("global-default", 20, 50, Some((128, 6))),
    ("leader-election", 10, 0, Some((16, 4))),
    ("node-high", 40, 25, Some((64, 6))),
    ("system", 30, 33, Some((64, 6))),
    ("workload-high", 40, 50, Some((128, 6))),
    ("workload-low", 100, 90, Some((128, 6))),
];

/// Verbs, group and resources in all namespaces; and whether cluster-scoped ones too.
type ResourceRule = (&'static [&'static str], &'static str, &'static [&'static str], bool);

/// Which requests of its subjects a schema is about.
#[derive(Clone, Copy)]
enum Requests {
    All,
    Resources(&'static [ResourceRule]),
    Paths(&'static [&'static str]),
}

struct Schema {
    name: &'static str,
    level: &'static str,
    /// Lower goes first.
    precedence: i64,
    /// `ByUser`, `ByNamespace`, or empty for one flow.
    flows: &'static str,
    /// As in the tables of roles: `user:`, `group:`, `sa:namespace/name`.
    subjects: &'static [&'static str],
    requests: Requests,
}

const EVERYBODY: &[&str] = &["group:system:unauthenticated", "group:system:authenticated"];
const LEASES: Requests =
    Requests::Resources(&[(&["get", "create", "update"], "coordination.k8s.io", &["leases"], false)]);

const SCHEMAS: [Schema; 11] = [
    schema("exempt", "exempt", 1, "", &["group:system:masters"], Requests::All),
    schema("probes", "exempt", 2, "", EVERYBODY, Requests::Paths(&["/healthz", "/readyz", "/livez"])),
    schema(
        "system-leader-election",
        "leader-election",
        100,
        "ByUser",
        &["user:system:kube-controller-manager", "user:system:kube-scheduler", "sa:kube-system/*"],
        LEASES,
    ),
    schema(
        "system-node-high",
        "node-high",
        400,
        "ByUser",
        &["group:system:nodes"],
        Requests::Resources(&[
            (&["*"], "", &["nodes", "nodes/status"], true),
            (&["*"], "coordination.k8s.io", &["leases"], false),
        ]),
    ),
    schema("system-nodes", "system", 500, "ByUser", &["group:system:nodes"], Requests::All),
    schema(
        "kube-controller-manager",
        "workload-high",
        800,
        "ByNamespace",
        &["user:system:kube-controller-manager"],
        Requests::All,
    ),
    schema("kube-scheduler", "workload-high", 800, "ByNamespace", &["user:system:kube-scheduler"], Requests::All),
    schema("kube-system-service-accounts", "workload-high", 900, "ByNamespace", &["sa:kube-system/*"], Requests::All),
    schema("service-accounts", "workload-low", 9000, "ByUser", &["group:system:serviceaccounts"], Requests::All),
    schema("global-default", "global-default", 9900, "ByUser", EVERYBODY, Requests::All),
    schema("catch-all", "catch-all", 10000, "ByUser", EVERYBODY, Requests::All),
];

const fn schema(
    name: &'static str,
    level: &'static str,
    precedence: i64,
    flows: &'static str,
    subjects: &'static [&'static str],
    requests: Requests,
) -> Schema {
    Schema { name, level, precedence, flows, subjects, requests }
}

pub fn objects() -> Vec<Value> {
    let exempt = json!({"type": "Exempt", "exempt": {"nominalConcurrencyShares": 0, "lendablePercent": 0}});
    let mut out = vec![object("PriorityLevelConfiguration", "exempt", exempt)];
    out.extend(LEVELS.iter().map(level));
    out.extend(SCHEMAS.iter().map(|schema| object("FlowSchema", schema.name, schema.spec())));
    out
}

fn object(kind: &str, name: &str, spec: Value) -> Value {
    let metadata = json!({"name": name, "annotations": {AUTOUPDATE: "true"}});
    json!({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata, "spec": spec})
}

fn level((name, shares, lendable, queues): &Level) -> Value {
    let response = match queues {
        Some((queues, hand)) => json!({
            "type": "Queue",
            "queuing": {"queues": queues, "handSize": hand, "queueLengthLimit": 50},
        }),
        None => json!({"type": "Reject"}),
    };
    let limited = json!({"nominalConcurrencyShares": shares, "lendablePercent": lendable, "limitResponse": response});
    object("PriorityLevelConfiguration", name, json!({"type": "Limited", "limited": limited}))
}

impl Schema {
    fn spec(&self) -> Value {
        let every_resource = json!([{
            "verbs": ["*"], "apiGroups": ["*"], "resources": ["*"], "namespaces": ["*"], "clusterScope": true,
        }]);
        let mut rules = json!({"subjects": self.subjects.iter().map(|text| subject(text)).collect::<Vec<_>>()});
        match self.requests {
            Requests::All => {
                rules["resourceRules"] = every_resource;
                rules["nonResourceRules"] = json!([{"verbs": ["*"], "nonResourceURLs": ["*"]}]);
            }
            Requests::Resources(list) => rules["resourceRules"] = list.iter().map(resource_rule).collect(),
            Requests::Paths(paths) => rules["nonResourceRules"] = json!([{"verbs": ["get"], "nonResourceURLs": paths}]),
        }
        let mut spec = json!({
            "priorityLevelConfiguration": {"name": self.level},
            "matchingPrecedence": self.precedence,
            "rules": [rules],
        });
        if !self.flows.is_empty() {
            spec["distinguisherMethod"] = json!({"type": self.flows});
        }
        spec
    }
}

fn resource_rule((verbs, group, resources, cluster): &ResourceRule) -> Value {
    let mut rule = json!({"verbs": verbs, "apiGroups": [group], "resources": resources, "namespaces": ["*"]});
    if *cluster {
        rule["clusterScope"] = json!(true);
    }
    rule
}

fn subject(text: &str) -> Value {
    let (kind, name) = text.split_once(':').unwrap_or(("user", text));
    match kind {
        "group" => json!({"kind": "Group", "group": {"name": name}}),
        "sa" => {
            let (namespace, name) = name.split_once('/').unwrap_or(("", name));
            json!({"kind": "ServiceAccount", "serviceAccount": {"namespace": namespace, "name": name}})
        }
        _ => json!({"kind": "User", "user": {"name": name}}),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_schema_names_a_level_that_exists() {
        let levels: Vec<&str> = std::iter::once("exempt").chain(LEVELS.iter().map(|level| level.0)).collect();
        for schema in &SCHEMAS {
            assert!(levels.contains(&schema.level), "{}", schema.name);
        }
    }
}
