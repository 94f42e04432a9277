//! Objects of one resource in its several versions: by the strategy's rules, or where a definition says so by a webhook.
//!
//! What comes out of the store is converted before anything else looks at it. Rows without a webhook pay a look at a flag.

use std::sync::Arc;

use apimachinery::resource::ResourceRow;
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use store::{Change, Event};

use crate::conversion;
use crate::object::{Entry, Object, encode};
use crate::server::ApiServer;
use crate::strategy::convert;

/// An object of the row `from` as one of the row `to`, which is another version of the same resource.
pub async fn between(
    server: &ApiServer,
    from: &Arc<ResourceRow>,
    to: &Arc<ResourceRow>,
    object: Value,
) -> Result<Value> {
    match server.conversions.of(from) {
        Some(webhook) => one(server, &webhook, object, &to.api_version()).await,
        None => Ok(convert::from_storage(to, convert::to_storage(from, object))),
    }
}

/// An object of `row` in the version that is stored.
pub async fn to_storage(server: &ApiServer, row: &ResourceRow, object: Value) -> Result<Value> {
    match server.conversions.of(row) {
        Some(webhook) => {
            let wanted = format!("{}/{}", row.group, row.storage_version);
            let mut stored = one(server, &webhook, object, &wanted).await?;
            // What the stored version does not know is not stored.
            if let Some(storage) = server.table().get(&row.group, &row.storage_version, &row.plural) {
                apimachinery::schema::check::prune(&storage.schema, storage.root, &mut stored);
            }
            Ok(stored)
        }
        None => Ok(convert::to_storage(row, object)),
    }
}

/// A stored entry in the version of `row`.
pub async fn entry(server: &ApiServer, row: &ResourceRow, entry: Entry) -> Result<Entry> {
    let Some(webhook) = server.conversions.of(row) else { return Ok(entry) };
    let mut converted = entries_by(server, &webhook, row, vec![entry]).await?;
    converted.pop().ok_or_else(|| StatusError::internal("conversion lost the object"))
}

/// Stored entries in the version of `row`: those that are not in it yet are converted by one call.
pub async fn entries(server: &ApiServer, row: &ResourceRow, entries: Vec<Entry>) -> Result<Vec<Entry>> {
    match server.conversions.of(row) {
        Some(webhook) => entries_by(server, &webhook, row, entries).await,
        None => Ok(entries),
    }
}

/// Events with their objects in the version of `row`.
pub async fn events(
    server: &ApiServer,
    row: &ResourceRow,
    events: Vec<Arc<Event<Object>>>,
) -> Result<Vec<Arc<Event<Object>>>> {
    let Some(webhook) = server.conversions.of(row) else { return Ok(events) };
    let all = events.iter().flat_map(|event| event.previous.iter().chain([event.entry()])).cloned().collect();
    let mut converted = entries_by(server, &webhook, row, all).await?.into_iter();
    let mut next = || converted.next().ok_or_else(|| StatusError::internal("conversion lost an object"));
    let event = |event: Arc<Event<Object>>| {
        let previous = event.previous.is_some().then(&mut next).transpose()?;
        let change = match &event.change {
            Change::Put(_) => Change::Put(next()?),
            Change::Delete(_) => Change::Delete(next()?),
        };
        Ok(Arc::new(Event { revision: event.revision, previous, change }))
    };
    events.into_iter().map(event).collect()
}

async fn entries_by(
    server: &ApiServer,
    webhook: &conversion::Webhook,
    row: &ResourceRow,
    mut entries: Vec<Entry>,
) -> Result<Vec<Entry>> {
    let other: Vec<usize> =
        (0..entries.len()).filter(|index| !convert::has_version(row, entries[*index].value.json())).collect();
    if other.is_empty() {
        return Ok(entries);
    }
    let objects = other.iter().map(|index| entries[*index].value.value()).collect();
    let kind = if entries.len() == 1 { &row.kind } else { &row.list_kind };
    let converted = conversion::convert(server, webhook, kind, objects, &row.api_version()).await?;
    for (index, mut object) in other.into_iter().zip(converted) {
        apimachinery::schema::check::prune(&row.schema, row.root, &mut object);
        let version = meta::resource_version(&object).parse().unwrap_or(entries[index].mod_revision);
        let object = <Object as store::Value>::committed(encode(&object), version);
        entries[index] = Arc::new(entries[index].with_value(object));
    }
    Ok(entries)
}

async fn one(server: &ApiServer, webhook: &conversion::Webhook, object: Value, api_version: &str) -> Result<Value> {
    if meta::str_at(&object, &["apiVersion"]) == api_version {
        return Ok(object);
    }
    let kind = meta::str_at(&object, &["kind"]).to_owned();
    let mut converted = conversion::convert(server, webhook, &kind, vec![object], api_version).await?;
    converted.pop().ok_or_else(|| StatusError::internal("conversion lost the object"))
}
