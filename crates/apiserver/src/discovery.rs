//! Discovery: which groups, versions and resources are served, plain and aggregated (`apidiscovery.k8s.io/v2`).

use apimachinery::Value;
use apimachinery::resource::{ResourceRow, ResourceTable, Verb};
use apimachinery::status::{Result, StatusError};
use serde_json::json;

use crate::aggregator::{Remote, in_groups};
use crate::http::negotiate::{Encoding, clauses};
use crate::http::{Response, respond};
use crate::server::ApiServer;

/// `/api`
pub fn legacy_versions(server: &ApiServer, accept: Option<&str>) -> Result<Response> {
    if wants_aggregated(accept) {
        return Ok(aggregated(server, &server.table(), true));
    }
    let body = json!({
        "kind": "APIVersions", "versions": ["v1"],
        "serverAddressByClientCIDRs": [{"clientCIDR": "0.0.0.0/0", "serverAddress": server.settings.advertise}],
    });
    Ok(respond::value(200, Encoding::Json, &body))
}

/// `/apis`
pub fn groups(server: &ApiServer, accept: Option<&str>) -> Result<Response> {
    let table = server.table();
    if wants_aggregated(accept) {
        return Ok(aggregated(server, &table, false));
    }
    let groups: Vec<Value> =
        table.groups().into_iter().filter(|g| !g.name.is_empty()).map(|g| group_value(g.name, &g.versions)).collect();
    let groups = with_others(server, groups);
    let body = json!({"kind": "APIGroupList", "apiVersion": "v1", "groups": groups});
    Ok(respond::value(200, Encoding::Json, &body))
}

/// `/apis/<group>`
pub fn group(server: &ApiServer, name: &str) -> Result<Response> {
    let table = server.table();
    let own = table.groups().into_iter().filter(|g| g.name == name && !name.is_empty());
    let own = own.map(|group| group_value(group.name, &group.versions)).collect();
    let found = with_others(server, own).into_iter().find(|group| group["name"] == name);
    let mut body = found.ok_or_else(StatusError::no_such_path)?;
    body["kind"] = json!("APIGroup");
    body["apiVersion"] = json!("v1");
    Ok(respond::value(200, Encoding::Json, &body))
}

/// Groups with those that other servers serve.
fn with_others(server: &ApiServer, groups: Vec<Value>) -> Vec<Value> {
    let name = |group: &Value| group["name"].as_str().unwrap_or_default().to_owned();
    let add = |group: &mut Value, remote: &Remote| {
        let version =
            json!({"groupVersion": format!("{}/{}", remote.group, remote.version), "version": remote.version});
        if group["preferredVersion"].is_null() {
            group["preferredVersion"] = version.clone();
        }
        if let Some(versions) = group["versions"].as_array_mut()
            && !versions.contains(&version)
        {
            versions.push(version);
        }
    };
    in_groups(&server.aggregator, groups, name, add, |name| json!({"name": name, "versions": []}))
}

fn group_value<S: AsRef<str>>(name: &str, versions: &[S]) -> Value {
    let version = |v: &S| json!({"groupVersion": format!("{name}/{}", v.as_ref()), "version": v.as_ref()});
    json!({
        "name": name,
        "versions": versions.iter().map(version).collect::<Vec<_>>(),
        "preferredVersion": versions.first().map(version),
    })
}

/// `/api/v1` and `/apis/<group>/<version>`
pub fn resources(server: &ApiServer, group: &str, version: &str) -> Result<Response> {
    let table = server.table();
    let mut resources: Vec<Value> = Vec::new();
    let mut found = false;
    for row in table.group_version(group, version) {
        found = true;
        resources.push(resource_value(row));
        for sub in &row.subresources {
            let mut value = json!({
                "name": format!("{}/{}", row.plural, sub.name), "singularName": "",
                "namespaced": row.is_namespaced(), "kind": sub.kind, "verbs": verbs(&sub.verbs),
            });
            if (&sub.group, &sub.version) != (&row.group, &row.version) {
                value["group"] = json!(sub.group);
                value["version"] = json!(sub.version);
            }
            resources.push(value);
        }
    }
    if !found {
        return Err(StatusError::no_such_path());
    }
    resources.sort_by(|a, b| a["name"].as_str().cmp(&b["name"].as_str()));
    let group_version = if group.is_empty() { version.to_owned() } else { format!("{group}/{version}") };
    let body =
        json!({"kind": "APIResourceList", "apiVersion": "v1", "groupVersion": group_version, "resources": resources});
    Ok(respond::value(200, Encoding::Json, &body))
}

fn resource_value(row: &ResourceRow) -> Value {
    let mut value = json!({
        "name": row.plural, "singularName": row.singular, "namespaced": row.is_namespaced(),
        "kind": row.kind, "verbs": verbs(&row.verbs),
    });
    if !row.short_names.is_empty() {
        value["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        value["categories"] = json!(row.categories);
    }
    if row.stored {
        value["storageVersionHash"] = json!(storage_hash(row));
    }
    value
}

/// Upstream's form: the start of a base64 SHA-256 of group, version and kind. Clients only compare it.
fn storage_hash(row: &ResourceRow) -> String {
    use base64::Engine as _;
    use sha2::Digest as _;
    let digest = sha2::Sha256::digest(format!("{}/{}/{}", row.group, row.storage_version, row.kind));
    base64::engine::general_purpose::STANDARD.encode(&digest[..8])
}

fn verbs(verbs: &[Verb]) -> Vec<&'static str> {
    let mut names: Vec<&str> = verbs.iter().map(|v| v.as_str()).collect();
    names.sort_unstable();
    names
}

fn wants_aggregated(accept: Option<&str>) -> bool {
    clauses(accept.unwrap_or_default()).iter().any(|clause| {
        clause.param("g") == Some("apidiscovery.k8s.io")
            && clause.param("as") == Some("APIGroupDiscoveryList")
            && clause.param("v") == Some("v2")
    })
}

fn aggregated(server: &ApiServer, table: &ResourceTable, legacy: bool) -> Response {
    let items: Vec<Value> = table
        .groups()
        .into_iter()
        .filter(|g| g.name.is_empty() == legacy)
        .map(|group| {
            let versions: Vec<Value> = group
                .versions
                .iter()
                .map(|version| {
                    let resources: Vec<Value> =
                        table.group_version(group.name, version).map(|row| aggregated_row(row)).collect();
                    json!({"version": version, "resources": resources, "freshness": "Current"})
                })
                .collect();
            json!({"metadata": {"name": group.name, "creationTimestamp": null}, "versions": versions})
        })
        .collect();
    let items = if legacy { items } else { with_others_aggregated(server, items) };
    let body = json!({
        "kind": "APIGroupDiscoveryList", "apiVersion": "apidiscovery.k8s.io/v2", "metadata": {}, "items": items,
    });
    respond::bytes(200, "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList", body.to_string())
}

fn with_others_aggregated(server: &ApiServer, groups: Vec<Value>) -> Vec<Value> {
    let name = |group: &Value| group["metadata"]["name"].as_str().unwrap_or_default().to_owned();
    let add = |group: &mut Value, remote: &Remote| {
        if let Some(versions) = group["versions"].as_array_mut() {
            versions.retain(|version| version["version"] != *remote.version);
            versions.push(crate::aggregator::resources(remote));
        }
    };
    let empty = |name: &str| json!({"metadata": {"name": name, "creationTimestamp": null}, "versions": []});
    in_groups(&server.aggregator, groups, name, add, empty)
}

fn aggregated_row(row: &ResourceRow) -> Value {
    let kind = |group: &str, version: &str, kind: &str| json!({"group": group, "version": version, "kind": kind});
    let mut value = json!({
        "resource": row.plural, "singularResource": row.singular, "verbs": verbs(&row.verbs),
        "responseKind": kind(&row.group, &row.version, &row.kind),
        "scope": if row.is_namespaced() { "Namespaced" } else { "Cluster" },
    });
    if !row.short_names.is_empty() {
        value["shortNames"] = json!(row.short_names);
    }
    if !row.categories.is_empty() {
        value["categories"] = json!(row.categories);
    }
    if !row.subresources.is_empty() {
        let subs: Vec<Value> = row
            .subresources
            .iter()
            .map(|s| {
                json!({"subresource": s.name, "responseKind": kind(&s.group, &s.version, &s.kind), "verbs": verbs(&s.verbs)})
            })
            .collect();
        value["subresources"] = json!(subs);
    }
    value
}
