//! OpenAPI documents of the served resources, made on demand: version 3 per group-version, version 2 in one piece, and gnostic's
//! protobuf form of the latter, which older clients ask for.
//!
//! Callers keep the bytes by the table's [`generation`](crate::resource::ResourceTable::generation); nothing is kept here.

mod custom;
mod descriptions;
pub mod gnostic;
mod paths;
mod schemas;
#[cfg(test)]
mod tests;
pub mod v2;
pub mod v3;

use serde_json::{Value, json};

use self::schemas::META;

/// Definitions that every document has, whatever its rows refer to.
const COMMON: [&str; 4] = ["APIResourceList", "DeleteOptions", "Patch", "Status"];

fn info(version: &str) -> Value {
    json!({"title": "Kubernetes", "version": version})
}

fn bearer_token() -> Value {
    json!({
        "BearerToken": {
            "type": "apiKey", "in": "header", "name": "authorization", "description": "Bearer Token authentication",
        },
    })
}

/// Definition names of what rows and their subresources are, for their texts.
fn roots<'a>(rows: impl Iterator<Item = &'a crate::resource::ResourceRow>) -> Vec<String> {
    let schema = crate::schema::builtin();
    let mut roots: Vec<String> = COMMON.iter().map(|name| format!("{META}.{name}")).collect();
    roots.push(format!("{META}.ListMeta"));
    for row in rows {
        roots.push(if row.custom { custom::TEXTS_FROM.to_owned() } else { schemas::kind_name(row) });
        let bodies = row.subresources.iter().filter_map(|s| schema.by_kind(&s.group, &s.version, &s.kind));
        roots.extend(bodies.map(|id| schema.get(id).name.to_string()));
    }
    roots
}
