//! OpenAPI 3.0: one document for each group-version, and the index of them.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};

use serde_json::{Map, Value, json};

use super::descriptions::Descriptions;
use super::schemas::{Definitions, Dialect};
use super::{COMMON, META, bearer_token, info, paths, roots};
use crate::resource::{ResourceRow, ResourceTable};
use crate::schema::builtin;

/// `/openapi/v3`: where each group-version's document is, with a hash that changes with its content, for clients' caches.
pub fn index(table: &ResourceTable) -> Value {
    let mut paths = Map::new();
    for group in table.groups() {
        for version in group.versions {
            let path =
                if group.name.is_empty() { format!("api/{version}") } else { format!("apis/{}/{version}", group.name) };
            let hash = hash(table.group_version(group.name, version).map(|row| &**row));
            let url = format!("/openapi/v3/{path}?hash={hash}");
            paths.insert(path, json!({ "serverRelativeURL": url }));
        }
    }
    json!({ "paths": paths })
}

/// A fingerprint of what the document of `rows` is made from. Built-in rows change with the program only.
fn hash<'a>(rows: impl Iterator<Item = &'a ResourceRow>) -> String {
    let mut hasher = DefaultHasher::new();
    (env!("CARGO_PKG_VERSION"), crate::schema::builtin_fingerprint()).hash(&mut hasher);
    for row in rows {
        (&row.plural, &row.kind, &row.list_kind, row.is_namespaced()).hash(&mut hasher);
        row.subresources.iter().for_each(|sub| sub.name.hash(&mut hasher));
        row.schema.source.hash(&mut hasher);
    }
    format!("{:016X}", hasher.finish())
}

/// `/openapi/v3/apis/GROUP/VERSION`; `None` if nothing of that group-version is served.
pub fn document(table: &ResourceTable, group: &str, version: &str, server_version: &str) -> Option<Value> {
    let rows: Vec<_> = table.group_version(group, version).collect();
    if rows.is_empty() {
        return None;
    }
    let roots = roots(rows.iter().map(|row| &***row));
    let mut definitions = Definitions::new(Dialect::V3, Descriptions::of(roots.iter().map(String::as_str)));
    rows.iter().for_each(|row| definitions.add_row(row));
    let named = roots.iter().filter(|name| *name != super::custom::TEXTS_FROM || group.is_empty());
    named.for_each(|name| definitions.add_named(builtin(), name));
    COMMON.iter().for_each(|name| definitions.add_named(builtin(), &format!("{META}.{name}")));
    let mut paths = Map::new();
    paths::group_version(group, version, rows.iter().map(|row| &***row), Dialect::V3, &mut paths);
    Some(json!({
        "openapi": "3.0.0", "info": info(server_version), "paths": paths,
        "components": {"schemas": definitions.schemas, "securitySchemes": bearer_token()},
    }))
}
