//! Who owns which field: the registry's side of `managedFields`.

use apimachinery::Value;
use apimachinery::apply::{self, FieldSet, Manager};
use apimachinery::resource::ResourceRow;
use apimachinery::schema::Shape;

use super::options::WriteOptions;
use crate::strategy::Part;

/// How a new state came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// PUT, POST: the sender names the version it started from, if any.
    Update,
    /// A patch on what is stored: repeated when somebody else was quicker.
    Patch,
    /// Server-side apply has kept the books already.
    Applied,
}

impl Change {
    pub fn pins_version(self) -> bool {
        self == Change::Update
    }
}

/// The facts of one writer, for [`Manager`] to borrow.
pub struct Writer<'a> {
    name: &'a str,
    api_version: String,
    subresource: &'static str,
    now: String,
    reset: FieldSet,
}

impl<'a> Writer<'a> {
    pub fn new(row: &ResourceRow, options: &'a WriteOptions, part: Part, now: i64) -> Self {
        Writer {
            name: &options.field_manager,
            api_version: row.api_version(),
            subresource: part.subresource(),
            now: super::meta::timestamp(now),
            reset: reset_fields(row, part),
        }
    }

    pub fn manager(&self) -> Manager<'_> {
        Manager {
            name: self.name,
            api_version: &self.api_version,
            subresource: self.subresource,
            now: &self.now,
            reset: &self.reset,
        }
    }
}

/// What this endpoint does not write, whatever is sent: nobody comes to own it this way.
fn reset_fields(row: &ResourceRow, part: Part) -> FieldSet {
    match part {
        Part::Main if row.has_status() => FieldSet::of_fields(&[&["status"]]),
        Part::Status => {
            let Shape::Object(object) = &row.schema.get(row.root).shape else { return FieldSet::default() };
            let others = object.fields.iter().map(|f| &*f.name).filter(|name| !matches!(*name, "status" | "metadata"));
            let paths: Vec<[&str; 1]> = others.map(|name| [name]).collect();
            FieldSet::of_fields(&paths.iter().map(|p| &p[..]).collect::<Vec<_>>())
        }
        _ => FieldSet::default(),
    }
}

/// Records that the writer of `options` made `object` out of `old`.
pub fn track(
    row: &ResourceRow,
    old: Option<&Value>,
    object: &mut Value,
    options: &WriteOptions,
    change: Change,
    part: Part,
    now: i64,
) {
    if change != Change::Applied {
        let writer = Writer::new(row, options, part, now);
        apply::track_update(&row.schema, row.root, old, object, &writer.manager());
    }
    if let Some(old) = old {
        apply::keep_timestamps(old, object);
    }
}
