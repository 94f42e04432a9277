//! The documents as clients read them.

use std::collections::HashSet;

use serde_json::Value;

use super::{v2, v3};
use crate::resource::builtin;

fn references(value: &Value, found: &mut HashSet<String>) {
    match value {
        Value::Object(map) => {
            if let Some(Value::String(target)) = map.get("$ref") {
                found.insert(target.clone());
            }
            map.values().for_each(|value| references(value, found));
        }
        Value::Array(items) => items.iter().for_each(|item| references(item, found)),
        _ => {}
    }
}

fn operations(document: &Value) -> Vec<&Value> {
    let paths = document["paths"].as_object().unwrap();
    paths
        .values()
        .flat_map(|item| item.as_object().unwrap().values())
        .filter(|op| op.get("operationId").is_some())
        .collect()
}

#[test]
fn version_2_is_complete_and_refers_to_what_it_has() {
    let document = v2::document(builtin(), "v1.37.0");
    let mut found = HashSet::new();
    references(&document, &mut found);
    for target in found {
        let name = target.strip_prefix("#/definitions/").unwrap();
        assert!(document["definitions"][name].is_object(), "{target}");
    }
    let mut ids = HashSet::new();
    for operation in operations(&document) {
        assert!(ids.insert(operation["operationId"].as_str().unwrap()), "{} twice", operation["operationId"]);
    }
    for id in [
        "listCoreV1NamespacedPod",
        "listAppsV1DeploymentForAllNamespaces",
        "patchRbacAuthorizationV1ClusterRole",
        "deleteCoreV1CollectionNamespacedPod",
        "connectCoreV1PostNamespacedPodExec",
        "readCoreV1NamespacedPodLog",
        "createCoreV1NamespacedPodEviction",
        "createCoreV1NamespacedServiceAccountToken",
        "replaceAppsV1NamespacedDeploymentScale",
        "connectCoreV1GetNodeProxyWithPath",
        "getAppsV1APIResources",
    ] {
        assert!(ids.contains(id), "{id}");
    }
    let ports = &document["definitions"]["io.k8s.api.core.v1.ServiceSpec"]["properties"]["ports"];
    assert_eq!(ports["x-kubernetes-patch-merge-key"], "port");
    assert_eq!(ports["x-kubernetes-list-map-keys"], serde_json::json!(["port", "protocol"]));
    assert!(ports["description"].as_str().unwrap().len() > 10);
}

#[test]
fn version_3_documents_are_complete() {
    let table = builtin();
    let index = v3::index(table);
    for (path, entry) in index["paths"].as_object().unwrap() {
        let parts: Vec<&str> = path.split('/').collect();
        let (group, version) = if parts[0] == "api" { ("", parts[1]) } else { (parts[1], parts[2]) };
        assert!(entry["serverRelativeURL"].as_str().unwrap().starts_with(&format!("/openapi/v3/{path}?hash=")));
        let document = v3::document(table, group, version, "v1.37.0").unwrap();
        let mut found = HashSet::new();
        references(&document, &mut found);
        for target in found {
            let name = target.strip_prefix("#/components/schemas/").unwrap();
            assert!(document["components"]["schemas"][name].is_object(), "{path}: {target}");
        }
        for row in table.group_version(group, version) {
            let name = super::schemas::kind_name(row);
            let schema = &document["components"]["schemas"][&name];
            assert_eq!(schema["x-kubernetes-group-version-kind"][0]["kind"], *row.kind);
            assert!(schema["description"].is_string(), "{name} has no description");
        }
    }
    assert!(v3::document(table, "nope.example.com", "v1", "").is_none());
}

/// What kubectl looks for before it sends `fieldValidation`, `dryRun` or `force`.
#[test]
fn patches_take_the_parameters_that_kubectl_asks_about() {
    let document = v3::document(builtin(), "apps", "v1", "v1.37.0").unwrap();
    let patch = &document["paths"]["/apis/apps/v1/namespaces/{namespace}/deployments/{name}"]["patch"];
    let names: HashSet<&str> =
        patch["parameters"].as_array().unwrap().iter().map(|p| p["name"].as_str().unwrap()).collect();
    assert_eq!(names, HashSet::from(["dryRun", "fieldManager", "fieldValidation", "force"]));
    assert_eq!(patch["x-kubernetes-group-version-kind"]["kind"], "Deployment");
    assert_eq!(patch["x-kubernetes-action"], "patch");
    assert!(patch["requestBody"]["content"]["application/apply-patch+yaml"].is_object());
}
