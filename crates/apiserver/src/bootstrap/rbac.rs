//! Reads the tables of default roles and bindings (`rbac.txt` describes the form) into objects.

use apimachinery::{Value, meta};
use serde_json::{Map, json};

use crate::authz::aggregate::aggregated;
use crate::authz::rules::Rule;

const API_VERSION: &str = "rbac.authorization.k8s.io/v1";
const GROUP: &str = "rbac.authorization.k8s.io";
/// Roles of upstream, then our own.
const TABLES: [&str; 2] = [include_str!("rbac.txt"), include_str!("own.txt")];

/// All default roles and bindings. Aggregated roles have their rules from the start, so that they never lack them.
pub fn objects() -> Vec<Value> {
    let mut out = Vec::new();
    for table in TABLES {
        parse(table, &mut out).expect("the tables are part of the program and tested");
    }
    let mut roles: Vec<Value> = out.iter().filter(|object| object["kind"] == "ClusterRole").cloned().collect();
    roles.sort_by(|a, b| meta::name(a).cmp(meta::name(b)));
    for role in aggregated(roles) {
        let same = |other: &&mut Value| other["kind"] == role["kind"] && meta::name(other) == meta::name(&role);
        if let Some(place) = out.iter_mut().find(same) {
            *place = role;
        }
    }
    out
}

fn parse(table: &str, out: &mut Vec<Value>) -> Result<(), String> {
    let mut bindings = Vec::new();
    for (number, line) in table.lines().enumerate() {
        let at = |problem: &str| format!("line {}: {problem}", number + 1);
        let words: Vec<&str> = line.split_whitespace().collect();
        if words.is_empty() || line.starts_with('#') {
            continue;
        }
        if line.starts_with(' ') {
            let role = out.last_mut().ok_or_else(|| at("a rule before any role"))?;
            let rule = rule(&words).ok_or_else(|| at("not a rule"))?;
            role["rules"].as_array_mut().ok_or_else(|| at("an aggregated role has no rules of its own"))?.push(rule);
            continue;
        }
        match words.as_slice() {
            ["role", name, options @ ..] => out.push(cluster_role(name, options).ok_or_else(|| at("unknown option"))?),
            ["controller", name] => {
                let role = format!("system:controller:{name}");
                out.push(object("ClusterRole", "", &role, json!({"rules": []})));
                let account = format!("sa:kube-system/{name}");
                bindings.push(binding("", &role, "ClusterRole", &role, &[&account]).ok_or_else(|| at("bad name"))?);
            }
            ["role-in", namespace, name] => out.push(object("Role", namespace, name, json!({"rules": []}))),
            ["bind", name, subjects @ ..] => {
                bindings.push(binding("", name, "ClusterRole", name, subjects).ok_or_else(|| at("unknown subject"))?);
            }
            ["bind-as", name, role, subjects @ ..] => {
                bindings.push(binding("", name, "ClusterRole", role, subjects).ok_or_else(|| at("unknown subject"))?);
            }
            ["bind-in", namespace, name, role, subjects @ ..] => {
                bindings.push(binding(namespace, name, "Role", role, subjects).ok_or_else(|| at("unknown subject"))?);
            }
            _ => return Err(at("unknown word")),
        }
    }
    out.append(&mut bindings);
    Ok(())
}

fn cluster_role(name: &str, options: &[&str]) -> Option<Value> {
    let mut role = object("ClusterRole", "", name, json!({"rules": []}));
    for option in options {
        match option.split_once('=')? {
            ("aggregate-to", target) => {
                role["metadata"]["labels"][format!("rbac.authorization.k8s.io/aggregate-to-{target}")] = json!("true");
            }
            ("aggregates", source) => {
                let label = format!("rbac.authorization.k8s.io/aggregate-to-{source}");
                role["aggregationRule"] = json!({"clusterRoleSelectors": [{"matchLabels": {label: "true"}}]});
                role["rules"] = Value::Null;
            }
            _ => return None,
        }
    }
    Some(role)
}

fn object(kind: &str, namespace: &str, name: &str, rest: Value) -> Value {
    let mut metadata = json!({
        "name": name,
        "labels": {"kubernetes.io/bootstrapping": "rbac-defaults"},
        "annotations": {super::AUTOUPDATE: "true"},
    });
    if !namespace.is_empty() {
        metadata["namespace"] = json!(namespace);
    }
    let mut object = json!({"apiVersion": API_VERSION, "kind": kind, "metadata": metadata});
    if let (Value::Object(object), Value::Object(rest)) = (&mut object, rest) {
        object.extend(rest);
    }
    object
}

fn binding(namespace: &str, name: &str, role_kind: &str, role: &str, subjects: &[&str]) -> Option<Value> {
    let kind = if namespace.is_empty() { "ClusterRoleBinding" } else { "RoleBinding" };
    let mut rest = Map::new();
    rest.insert("roleRef".to_owned(), json!({"apiGroup": GROUP, "kind": role_kind, "name": role}));
    if !subjects.is_empty() {
        rest.insert("subjects".to_owned(), subjects.iter().map(|text| subject(text)).collect::<Option<_>>()?);
    }
    Some(object(kind, namespace, name, Value::Object(rest)))
}

fn subject(text: &str) -> Option<Value> {
    match text.split_once(':')? {
        ("user", name) => Some(json!({"apiGroup": GROUP, "kind": "User", "name": name})),
        ("group", name) => Some(json!({"apiGroup": GROUP, "kind": "Group", "name": name})),
        ("sa", account) => {
            let (namespace, name) = account.split_once('/')?;
            Some(json!({"kind": "ServiceAccount", "name": name, "namespace": namespace}))
        }
        _ => None,
    }
}

fn rule(words: &[&str]) -> Option<Value> {
    let list = |text: &str| -> Vec<Box<str>> { text.split(',').map(|item| item.replace("core", "").into()).collect() };
    let mut verbs: Vec<Box<str>> = Vec::new();
    for verb in words.first()?.split(',') {
        match verb {
            "read" => verbs.extend(["get", "list", "watch"].map(Box::from)),
            "write" => verbs.extend(["create", "delete", "deletecollection", "patch", "update"].map(Box::from)),
            verb => verbs.push(verb.into()),
        }
    }
    verbs.sort();
    let rule = match words {
        [_, urls] => Rule { verbs, non_resource_urls: list(urls), ..Rule::default() },
        [_, groups, resources, names @ ..] if names.len() <= 1 => Rule {
            verbs,
            api_groups: list(groups),
            resources: list(resources),
            resource_names: names.first().map(|names| list(names)).unwrap_or_default(),
            ..Rule::default()
        },
        _ => return None,
    };
    serde_json::to_value(rule).ok()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn the_tables_are_consistent() {
        let objects = objects();
        let mut seen = HashSet::new();
        for object in &objects {
            let id = (object["kind"].to_string(), meta::namespace(object).to_owned(), meta::name(object).to_owned());
            assert!(seen.insert(id.clone()), "twice: {id:?}");
        }
        for object in objects.iter().filter(|object| object.get("roleRef").is_some()) {
            let (kind, name) = (&object["roleRef"]["kind"], meta::str_at(object, &["roleRef", "name"]));
            let namespace = if kind == "Role" { meta::namespace(object) } else { "" };
            assert!(seen.contains(&(kind.to_string(), namespace.to_owned(), name.to_owned())), "no role for {object}");
        }
        for object in &objects {
            assert_ne!(object.get("rules"), Some(&json!([])), "no rules: {object}");
        }
        for rule in objects.iter().filter_map(|object| object["rules"].as_array()).flatten() {
            for list in rule.as_object().unwrap().values() {
                let items = meta::strings(Some(list));
                assert!(items.is_sorted() && items.len() == items.iter().collect::<HashSet<_>>().len(), "{rule}");
            }
        }
    }

    #[test]
    fn a_table_reads_as_it_is_written() {
        let mut out = Vec::new();
        parse("role r aggregate-to=x\n  read,update core,apps pods n\n  get /a,/b/*\nbind r sa:ns/bot", &mut out)
            .unwrap();
        assert_eq!(
            out[0]["rules"],
            json!([
                {"verbs": ["get", "list", "update", "watch"], "apiGroups": ["", "apps"], "resources": ["pods"], "resourceNames": ["n"]},
                {"verbs": ["get"], "nonResourceURLs": ["/a", "/b/*"]},
            ])
        );
        assert_eq!(out[0]["metadata"]["labels"]["rbac.authorization.k8s.io/aggregate-to-x"], "true");
        assert_eq!(out[1]["subjects"], json!([{"kind": "ServiceAccount", "name": "bot", "namespace": "ns"}]));
        assert_eq!(parse("  get core pods", &mut Vec::new()), Err("line 1: a rule before any role".to_owned()));
        assert_eq!(parse("bind x robot:y", &mut Vec::new()), Err("line 1: unknown subject".to_owned()));
    }
}
