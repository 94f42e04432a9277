//! Who owns which field: the registry's side of `managedFields`.

use apimachinery::Value;
use apimachinery::apply::{self, FieldSet, Manager};
use apimachinery::resource::ResourceRow;

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

/// The facts of one writer, for [`Manager`] to borrow.
pub struct Writer<'a> {
    name: &'a str,
    api_version: String,
    subresource: &'static str,
    now: String,
    /// What this endpoint does not write, whatever is sent: nobody comes to own it this way.
    reset: &'static FieldSet,
}

impl<'a> Writer<'a> {
    pub fn new(row: &ResourceRow, options: &'a WriteOptions, part: Part, now: i64) -> Self {
        Writer {
            name: &options.field_manager,
            api_version: row.api_version(),
            subresource: part.subresource(),
            now: super::meta::timestamp(now),
            reset: apply::reset_fields(row.custom, row.has_status(), part.subresource()),
        }
    }

    pub fn manager(&self) -> Manager<'_> {
        Manager {
            name: self.name,
            api_version: &self.api_version,
            subresource: self.subresource,
            now: &self.now,
            reset: self.reset,
        }
    }
}

/// Records that the writer of `options` made `object` out of `old`. To be called with what the client sent, before the server itself
/// changes any of it: what admission and strategies set belongs to nobody.
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
}
