//! The Table form of objects: which columns a kind has, and the cells of an object. It is what `kubectl get` shows.
//!
//! Built-in kinds with columns of their own are rows of static tables, one for each area; all others show their name and when they
//! were made. Custom resources name their columns by JSONPath. Cells are JSON values typed as upstream's, and a row always has
//! the cells of wide output, as upstream's server sends them.
//!
//! Must not know: clocks. `now` comes in as seconds since 1970.

mod access;
mod cell;
pub mod duration;
pub mod jsonpath;
mod network;
mod storage;
mod system;
mod workloads;

use serde_json::{Value, json};

use crate::resource::{Column, ResourceRow};
use cell::Cells;
use jsonpath::JsonPath;

/// A column of a built-in kind: name, type, priority and description. The format of those named `Name` is `name`.
type Definition = (&'static str, &'static str, i32, &'static str);

/// How one kind prints.
struct Kind {
    group: &'static str,
    kind: &'static str,
    columns: &'static [Definition],
    cells: fn(&Cells<'_>) -> Vec<Value>,
}

const NAME: Definition = ("Name", "string", 0, "Name of the object, unique in its namespace.");
const AGE: Definition = ("Age", "string", 0, "Time since the object was created.");
const CONTAINERS: Definition = ("Containers", "string", 1, "Names of the containers in the template.");
const IMAGES: Definition = ("Images", "string", 1, "Images of the containers in the template.");
const SELECTOR: Definition = ("Selector", "string", 1, "Labels that select what belongs to the object.");
const CREATED: Definition = ("Created At", "date", 0, "When the object was created.");

/// What kinds without columns of their own show.
const DEFAULT: Kind = Kind {
    group: "",
    kind: "",
    columns: &[NAME, CREATED],
    cells: |c| vec![c.name(), c.text_or("/metadata/creationTimestamp", "<unknown>").into()],
};

fn built_in(group: &str, kind: &str) -> &'static Kind {
    let areas = [workloads::KINDS, network::KINDS, storage::KINDS, access::KINDS, system::KINDS];
    let found = areas.into_iter().flatten().find(|k| k.kind == kind && k.group == group);
    found.unwrap_or(&DEFAULT)
}

/// Prints the objects of one resource. Made once for a request: a custom resource's paths are parsed here.
pub struct Printer {
    inner: Inner,
}

enum Inner {
    BuiltIn(&'static Kind),
    /// A path that does not parse has no value.
    Custom(Vec<(Column, Option<JsonPath>)>),
}

impl Printer {
    pub fn new(row: &ResourceRow) -> Self {
        if !row.custom {
            return Printer { inner: Inner::BuiltIn(built_in(&row.group, &row.kind)) };
        }
        let age = [(column(&("Age", "date", 0, AGE.3)), JsonPath::parse(".metadata.creationTimestamp").ok())];
        let own = row.columns.iter().map(|column| (column.clone(), JsonPath::parse(&column.path).ok()));
        Printer { inner: Inner::Custom(if row.columns.is_empty() { age.into() } else { own.collect() }) }
    }

    /// The columns, the name's among them.
    pub fn columns(&self) -> Vec<Column> {
        match &self.inner {
            Inner::BuiltIn(kind) => kind.columns.iter().map(column).collect(),
            Inner::Custom(columns) => {
                std::iter::once(column(&NAME)).chain(columns.iter().map(|(column, _)| column.clone())).collect()
            }
        }
    }

    /// An object's cells, as many as there are columns. `now` in seconds since 1970.
    pub fn cells(&self, object: &Value, now: i64) -> Vec<Value> {
        match &self.inner {
            Inner::BuiltIn(kind) => (kind.cells)(&Cells { object, now }),
            Inner::Custom(columns) => {
                let cells = columns.iter().map(|(column, path)| {
                    let found = path.as_ref().and_then(|path| path.find(object).into_iter().next());
                    found.map_or(Value::Null, |value| custom_cell(&column.kind, value, now))
                });
                std::iter::once(crate::meta::name(object).into()).chain(cells).collect()
            }
        }
    }
}

fn column(definition: &Definition) -> Column {
    let (name, kind, priority, description) = *definition;
    Column {
        name: name.into(),
        kind: kind.into(),
        format: if name == NAME.0 { "name".into() } else { "".into() },
        description: description.into(),
        priority,
        path: "".into(),
    }
}

/// Upstream's `cellForJSONValue`: a value in the column's type, null if it has another.
fn custom_cell(kind: &str, value: &Value, now: i64) -> Value {
    match (kind, value) {
        ("string", Value::String(_)) => value.clone(),
        ("string", Value::Null) => "<no value>".into(),
        ("string", other) => other.to_string().into(),
        ("integer", Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => integer.into(),
            // Upstream truncates; a cast saturates.
            (None, Some(float)) => (float as i64).into(),
            _ => Value::Null,
        },
        // Go writes a whole float without a point.
        ("number", Value::Number(number)) => match (number.as_i64(), number.as_f64()) {
            (Some(integer), _) => integer.into(),
            (None, Some(float)) => json!(float),
            _ => Value::Null,
        },
        ("boolean", Value::Bool(_)) => value.clone(),
        ("date", Value::String(text)) => match cell::seconds(text) {
            Some(time) => duration::human(now.saturating_sub(time)).into(),
            None => "<invalid>".into(),
        },
        _ => Value::Null,
    }
}

/// The columns of a resource's tables.
pub fn columns(row: &ResourceRow) -> Vec<Column> {
    Printer::new(row).columns()
}

/// The cells of one object.
pub fn row(row: &ResourceRow, object: &Value, now: i64) -> Vec<Value> {
    Printer::new(row).cells(object, now)
}

/// The conditions of an object's row: a pod that is done for is `Completed`, so that clients may hide it.
pub fn conditions(row: &ResourceRow, object: &Value) -> Vec<Value> {
    if &*row.kind != "Pod" || !row.group.is_empty() {
        return Vec::new();
    }
    let (reason, message) = match crate::meta::str_at(object, &["status", "phase"]) {
        "Succeeded" => ("Succeeded", "The pod has completed successfully."),
        "Failed" => ("Failed", "The pod failed."),
        _ => return Vec::new(),
    };
    vec![json!({"type": "Completed", "status": "True", "reason": reason, "message": message})]
}

#[cfg(test)]
mod tests;
