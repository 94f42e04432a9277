//! From a CustomResourceDefinition to rows: one for each served version.

use std::sync::Arc;

use serde_json::Value;

use super::{Column, ResourceRow, Scope, Subresource, Verb};
use crate::field::{ErrorList, Path};
use crate::meta::{at, str_at, strings};
use crate::schema::compile_crd_schema;

/// The rows of `definition`'s served versions, in its order. Its names are those of `spec.names`; whether they are accepted is the
/// caller's to decide. Errors are those of its schemas.
pub fn rows(definition: &Value) -> Result<Vec<ResourceRow>, ErrorList> {
    let versions =
        at(definition, &["spec", "versions"]).and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    let storage = versions.iter().find(|v| v["storage"] == true).map(|v| str_at(v, &["name"])).unwrap_or_default();
    let mut rows = Vec::new();
    let mut errors = ErrorList::new();
    for (i, version) in versions.iter().enumerate() {
        let path = Path::new("spec").child("versions").index(i).child("schema").child("openAPIV3Schema");
        match compile_crd_schema(&version["schema"]["openAPIV3Schema"], &path) {
            Ok((schema, root)) if version["served"] == true => {
                let mut row = row(definition, version, storage);
                (row.schema, row.root) = (Arc::new(schema), root);
                rows.push(row);
            }
            Ok(_) => {}
            Err(faults) => errors.extend(faults),
        }
    }
    if errors.is_empty() { Ok(rows) } else { Err(errors) }
}

fn row(definition: &Value, version: &Value, storage: &str) -> ResourceRow {
    let names = &definition["spec"]["names"];
    let name = |key: &str| str_at(names, &[key]);
    let or = |text: &str, other: String| if text.is_empty() { other.into() } else { Box::from(text) };
    let boxed = |value: &Value| strings(Some(value)).into_iter().map(Into::into).collect();
    let group = str_at(definition, &["spec", "group"]);
    ResourceRow {
        group: group.into(),
        version: str_at(version, &["name"]).into(),
        kind: name("kind").into(),
        list_kind: or(name("listKind"), format!("{}List", name("kind"))),
        plural: name("plural").into(),
        singular: or(name("singular"), name("kind").to_lowercase()),
        short_names: boxed(&names["shortNames"]),
        categories: boxed(&names["categories"]),
        scope: if definition["spec"]["scope"] == "Cluster" { Scope::Cluster } else { Scope::Namespaced },
        verbs: Verb::ALL.to_vec(),
        subresources: subresources(group, version, name("kind")),
        columns: version["additionalPrinterColumns"].as_array().into_iter().flatten().map(column).collect(),
        schema: Arc::default(),
        root: crate::schema::TypeId(0),
        storage_version: storage.into(),
        storage_prefix: format!("{group}/{}", name("plural")).into(),
        selectable_fields: selectable_fields(version),
        stored: true,
        custom: true,
    }
}

fn subresources(group: &str, version: &Value, kind: &str) -> Vec<Subresource> {
    let declared = |name: &str| version["subresources"].get(name).is_some_and(|v| !v.is_null());
    let verbs = vec![Verb::Get, Verb::Patch, Verb::Update];
    let mut subresources = Vec::new();
    if declared("status") {
        let version = str_at(version, &["name"]).into();
        subresources.push(Subresource {
            name: "status".into(),
            group: group.into(),
            version,
            kind: kind.into(),
            verbs: verbs.clone(),
        });
    }
    if declared("scale") {
        let (group, version, kind) = ("autoscaling".into(), "v1".into(), "Scale".into());
        subresources.push(Subresource { name: "scale".into(), group, version, kind, verbs });
    }
    subresources
}

/// Paths without the leading dot of the definition's JSONPath.
fn selectable_fields(version: &Value) -> Vec<Box<str>> {
    let fields = version["selectableFields"].as_array().into_iter().flatten();
    fields.map(|field| str_at(field, &["jsonPath"]).trim_start_matches('.').into()).collect()
}

fn column(source: &Value) -> Column {
    let text = |key: &str| str_at(source, &[key]).into();
    Column {
        name: text("name"),
        kind: text("type"),
        format: text("format"),
        description: text("description"),
        priority: source["priority"].as_i64().and_then(|n| i32::try_from(n).ok()).unwrap_or(0),
        path: text("jsonPath"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::json;

    #[test]
    fn a_definition_becomes_rows() {
        let schema = json!({"openAPIV3Schema": {"type": "object", "properties": {
            "spec": {"type": "object", "properties": {"cron": {"type": "string", "description": "When."}}},
        }}});
        let definition = json!({"spec": {
            "group": "stable.example.com", "scope": "Namespaced",
            "names": {"plural": "crontabs", "kind": "CronTab", "shortNames": ["ct"]},
            "versions": [
                {"name": "v1", "served": true, "storage": true, "schema": schema, "subresources": {"status": {}, "scale": {}},
                 "selectableFields": [{"jsonPath": ".spec.cron"}]},
                {"name": "v1alpha1", "served": false, "storage": false, "schema": schema},
            ],
        }});
        let rows = rows(&definition).unwrap();
        assert_eq!(rows.len(), 1);
        let row = &rows[0];
        assert_eq!(
            (&*row.list_kind, &*row.singular, &*row.storage_prefix),
            ("CronTabList", "crontab", "stable.example.com/crontabs")
        );
        assert_eq!(row.selected_value(&json!({"spec": {"cron": "x"}}), "spec.cron").as_deref(), Some("x"));

        let mut table = crate::resource::builtin().clone();
        table.insert(Arc::new(row.clone()));
        let document = crate::openapi::v3::document(&table, "stable.example.com", "v1", "v").unwrap();
        let cron = &document["components"]["schemas"]["com.example.stable.v1.CronTab"]["properties"]["spec"]["properties"]
            ["cron"];
        assert_eq!(*cron, json!({"type": "string", "description": "When."}));
        let metadata = &document["components"]["schemas"]["com.example.stable.v1.CronTab"]["properties"]["metadata"];
        assert!(metadata["description"].as_str().unwrap().starts_with("Standard object's metadata"));
        assert!(document["components"]["schemas"].get("io.k8s.api.core.v1.ConfigMap").is_none());
        let list = &document["paths"]["/apis/stable.example.com/v1/namespaces/{namespace}/crontabs"]["get"];
        assert_eq!(list["operationId"], "listStableExampleComV1NamespacedCronTab");

        let mut broken = definition;
        broken["spec"]["versions"][1]["schema"] = json!({});
        let errors = super::rows(&broken).unwrap_err();
        assert_eq!(
            errors[0].to_string(),
            "spec.versions[1].schema.openAPIV3Schema.type: Required value: must not be empty at the root"
        );
    }
}
