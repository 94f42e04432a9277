//! OpenAPI 2.0 (swagger): everything that is served, in one document.

use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;
use super::schemas::{Definitions, Dialect};
use super::{META, bearer_token, info, paths, roots};
use crate::resource::ResourceTable;
use crate::schema::builtin;

/// `/openapi/v2`
pub fn document(table: &ResourceTable, server_version: &str) -> Value {
    let mut roots = roots(table.rows().map(|row| &**row));
    roots.extend(["APIGroup", "APIGroupList", "APIVersions"].map(|name| format!("{META}.{name}")));
    roots.push("io.k8s.apimachinery.pkg.version.Info".into());
    let mut definitions = Definitions::new(Dialect::V2, Descriptions::of(roots.iter().map(String::as_str)));
    table.rows().for_each(|row| definitions.add_row(row));
    roots.iter().for_each(|name| definitions.add_named(builtin(), name));
    definitions.add_named(builtin(), &format!("{META}.WatchEvent"));
    let mut paths = Map::new();
    for group in table.groups() {
        for version in group.versions {
            let rows = table.group_version(group.name, version).map(|row| &**row);
            paths::group_version(group.name, version, rows, Dialect::V2, &mut paths);
        }
    }
    json!({
        "swagger": "2.0", "info": info(server_version), "paths": paths, "definitions": definitions.schemas,
        "securityDefinitions": bearer_token(), "security": [{"BearerToken": []}],
    })
}
