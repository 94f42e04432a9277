//! The forms in which objects leave the server: the stored buffer as it is, a Table, or metadata only; JSON or YAML.

use apimachinery::resource::ResourceRow;
use apimachinery::status::Result;
use apimachinery::{Value, table};
use bytes::Bytes;
use serde_json::{Map, json};

use crate::http::negotiate::Shape;
use crate::http::{Response, respond};
use crate::object::{Entry, Object};
use crate::server::{ApiServer, Call};
use crate::strategy::convert;

/// What goes with each row of a Table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Include {
    None,
    Metadata,
    Object,
}

impl Include {
    pub fn of(call: &Call) -> Self {
        match call.query.get("includeObject") {
            Some("None") => Include::None,
            Some("Object") => Include::Object,
            _ => Include::Metadata,
        }
    }
}

/// The JSON of a stored object in the version of `row`: the shared buffer itself where it is stored so.
pub fn json_of(row: &ResourceRow, object: &Object) -> Bytes {
    if convert::is_stored_form(row, object.json()) {
        return object.json().clone();
    }
    convert::from_storage(row, object.value()).to_string().into()
}

/// Answers with one stored object.
pub async fn entry(server: &ApiServer, call: &Call, code: u16, entry: &Entry) -> Result<Response> {
    let entry = super::convert::entry(server, &call.row, entry.clone()).await?;
    match call.accepted.shape {
        Shape::Object => Ok(respond::json_bytes(code, call.accepted.encoding, json_of(&call.row, &entry.value))),
        Shape::Table | Shape::Partial => {
            let object = convert::from_storage(&call.row, entry.value.value());
            value(server, call, code, &object)
        }
    }
}

/// Answers with one object that is not (or not so) in the store.
pub fn value(server: &ApiServer, call: &Call, code: u16, object: &Value) -> Result<Response> {
    let shaped = match call.accepted.shape {
        Shape::Object => object.clone(),
        Shape::Partial => partial(object),
        Shape::Table => {
            let rows = vec![table_row(&call.row, object, Include::of(call), server)];
            table_of(&call.row, object.get("metadata"), rows, true)
        }
    };
    Ok(respond::value(code, call.accepted.encoding, &shaped))
}

/// `PartialObjectMetadata` of an object.
pub fn partial(object: &Value) -> Value {
    json!({
        "kind": "PartialObjectMetadata", "apiVersion": "meta.k8s.io/v1",
        "metadata": object.get("metadata").cloned().unwrap_or_else(|| json!({})),
    })
}

/// One row of a Table.
pub fn table_row(row: &ResourceRow, object: &Value, include: Include, _server: &ApiServer) -> Value {
    let cells = table::row(row, object, crate::server::now_seconds());
    let mut out = Map::new();
    out.insert("cells".to_owned(), json!(cells));
    match include {
        Include::None => {}
        Include::Metadata => {
            out.insert("object".to_owned(), partial(object));
        }
        Include::Object => {
            out.insert("object".to_owned(), object.clone());
        }
    }
    Value::Object(out)
}

/// A Table of rows; a watch repeats the column definitions only in its first event.
pub fn table_of(row: &ResourceRow, list_meta: Option<&Value>, rows: Vec<Value>, with_columns: bool) -> Value {
    let columns: Vec<Value> = if with_columns {
        table::columns(row)
            .iter()
            .map(|c| {
                json!({
                    "name": c.name, "type": c.kind, "format": c.format,
                    "description": c.description, "priority": c.priority,
                })
            })
            .collect()
    } else {
        Vec::new()
    };
    let version = list_meta.and_then(|m| m.get("resourceVersion")).cloned().unwrap_or_else(|| json!(""));
    let mut metadata = json!({ "resourceVersion": version });
    for key in ["continue", "remainingItemCount"] {
        if let Some(value) = list_meta.and_then(|m| m.get(key)) {
            metadata[key] = value.clone();
        }
    }
    json!({
        "kind": "Table", "apiVersion": "meta.k8s.io/v1", "metadata": metadata,
        "columnDefinitions": columns, "rows": rows,
    })
}
