//! Who owns which field: the registry's side of `managedFields`.

use std::cell::OnceCell;
use std::sync::Arc;

use apimachinery::apply::{self, ApplyError, Filter, Manager, Unconverted, Versions};
use apimachinery::resource::{ResourceRow, ResourceTable};
use apimachinery::schema::{Schema, TypeId};
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::json;

use super::options::WriteOptions;
use crate::conversion::{self, Webhook};
use crate::server::ApiServer;
use crate::strategy::{Part, convert, reset};

/// How a new state came about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Change {
    /// PUT, POST: the sender names the version it started from, if any.
    Update,
    /// A patch on what is stored: repeated when somebody else was quicker.
    Patch,
    /// Server-side apply: the object is no state yet, but the configuration that is to be merged.
    Apply,
    /// The books have been kept already.
    Recorded,
}

/// The facts of one writer, for [`Manager`] to borrow.
struct Writer<'a> {
    name: &'a str,
    api_version: String,
    subresource: &'static str,
    now: String,
    reset: &'static Filter,
}

impl<'a> Writer<'a> {
    fn new(row: &ResourceRow, options: &'a WriteOptions, part: Part, now: i64) -> Self {
        Writer {
            name: &options.field_manager,
            api_version: row.api_version(),
            subresource: part.subresource(),
            now: super::meta::timestamp(now),
            reset: reset::filter(row, part.subresource()),
        }
    }

    fn manager(&self) -> Manager<'_> {
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
#[expect(clippy::too_many_arguments, reason = "one write's facts; a struct would only rename them")]
pub async fn track(
    server: &ApiServer,
    row: &ResourceRow,
    old: Option<&Value>,
    object: &mut Value,
    options: &WriteOptions,
    change: Change,
    part: Part,
    now: i64,
) {
    if matches!(change, Change::Apply | Change::Recorded) {
        return;
    }
    let writer = Writer::new(row, options, part, now);
    let mut versions = Others::new(server, row, part);
    loop {
        let manager = writer.manager();
        let Err(lacking) = apply::track_update(&row.schema, row.root, &versions, old, object, &manager) else { return };
        if let Err(error) = versions.fetch(lacking).await {
            // A write does not fail for its books: they stay as they were.
            tracing::error!(%error, name = meta::name(object), "cannot tell who owns the fields of an object");
            meta::remove(object, "managedFields");
            if let Some(kept) = old.and_then(|old| meta::at(old, &["metadata", "managedFields"])) {
                meta::metadata_mut(object).insert("managedFields".to_owned(), kept.clone());
            }
            return;
        }
    }
}

/// Merges an applied configuration into the live object, none if it is created. What comes out is yet to be defaulted.
pub async fn merged(
    server: &ApiServer,
    row: &ResourceRow,
    live: Option<&Value>,
    config: &Value,
    options: &WriteOptions,
    part: Part,
    now: i64,
) -> Result<Value> {
    let writer = Writer::new(row, options, part, now);
    let mut versions = Others::new(server, row, part);
    loop {
        let manager = writer.manager();
        match apply::apply(&row.schema, row.root, &versions, live, config, &manager, options.force) {
            Ok(merged) => return Ok(merged),
            Err(ApplyError::Unconverted(lacking)) => versions.fetch(lacking).await?,
            Err(error) => return Err(error.status()),
        }
    }
}

/// The versions of a row's kind besides its own, and objects that a webhook has converted.
struct Others<'a> {
    server: &'a ApiServer,
    row: &'a ResourceRow,
    part: Part,
    table: OnceCell<Arc<ResourceTable>>,
    converted: Vec<(Unconverted, Value)>,
}

impl<'a> Others<'a> {
    fn new(server: &'a ApiServer, row: &'a ResourceRow, part: Part) -> Self {
        Others { server, row, part, table: OnceCell::new(), converted: Vec::new() }
    }

    /// The row of the same objects in another version, which may be another group's.
    fn other(&self, api_version: &str) -> Option<&Arc<ResourceRow>> {
        let (group, version) = api_version.split_once('/').unwrap_or(("", api_version));
        let table = self.table.get_or_init(|| self.server.table());
        let row = table.get(group, version, &self.row.plural)?;
        (row.storage_prefix == self.row.storage_prefix).then_some(row)
    }

    fn webhook(&self) -> Option<Arc<Webhook>> {
        self.server.conversions.of(self.row)
    }

    async fn fetch(&mut self, lacking: Unconverted) -> Result<()> {
        let Some(webhook) = self.webhook() else { return Err(StatusError::internal(lacking)) };
        let objects = vec![(*lacking.object).clone()];
        let mut converted = conversion::convert(self.server, &webhook, &self.row.kind, objects, &lacking.to).await?;
        let mut object = converted.pop().ok_or_else(|| StatusError::internal("conversion lost the object"))?;
        if let Some(row) = self.other(&lacking.to) {
            apimachinery::schema::check::prune(&row.schema, row.root, &mut object);
        }
        self.converted.push((lacking, object));
        Ok(())
    }
}

impl Versions for Others<'_> {
    fn schema(&self, api_version: &str) -> Option<(&Schema, TypeId)> {
        self.other(api_version).map(|row| (&*row.schema, row.root))
    }

    fn filter(&self, api_version: &str) -> &Filter {
        self.other(api_version).map_or_else(
            || reset::filter(self.row, self.part.subresource()),
            |row| reset::filter_of_other(row, self.part.subresource()),
        )
    }

    fn convert(&self, object: &Value, to: &str) -> std::result::Result<Value, Unconverted> {
        let lacking = || Unconverted { object: Box::new(object.clone()), to: to.to_owned() };
        if self.webhook().is_some() {
            let found = self.converted.iter().find(|(asked, _)| asked.to == to && *asked.object == *object);
            return found.map(|(_, converted)| converted.clone()).ok_or_else(lacking);
        }
        let from = self.other(meta::str_at(object, &["apiVersion"]));
        let (Some(from), Some(to)) = (from, self.other(to)) else { return Err(lacking()) };
        Ok(convert::from_storage(to, convert::to_storage(from, object.clone())))
    }
}

/// Mutating webhooks may break the list of owners; it is then put back, with a warning, as upstream.
pub fn restored(object: &mut Value, before: Option<Value>) -> Option<String> {
    let list = meta::at(object, &["metadata", "managedFields"]).filter(|list| !list.is_null())?;
    let why = apply::validate_managed_fields(list).err()?;
    match before {
        Some(before) => meta::metadata_mut(object).insert("managedFields".to_owned(), before),
        None => meta::remove(object, "managedFields"),
    };
    Some(format!(
        ".metadata.managedFields was in an invalid state after admission; this could be caused by an outdated mutating admission \
         controller; please fix your requests: {why}"
    ))
}

/// The group, version and kind of a configuration as upstream prints them: `apps/v1, Kind=Deployment`, `/v1, Kind=Pod`.
pub fn printed_kind(config: &Value) -> String {
    let (version, kind) = (meta::str_at(config, &["apiVersion"]), meta::str_at(config, &["kind"]));
    match version.matches('/').count() {
        1 => format!("{version}, Kind={kind}"),
        0 => format!("/{version}, Kind={kind}"),
        _ => format!("/, Kind={kind}"),
    }
}

/// Checks that a configuration is of the kind that its endpoint takes.
pub fn check_kind(config: &Value, api_version: &str, kind: &str) -> Result<()> {
    if *config.get("apiVersion").unwrap_or(&Value::Null) == json!(api_version)
        && *config.get("kind").unwrap_or(&Value::Null) == json!(kind)
    {
        return Ok(());
    }
    Err(StatusError::bad_request(format!("invalid object type: {}", printed_kind(config))))
}
