//! Update: the compare-and-swap loop that PUT, every patch and every writing subresource share.

use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};

use super::create::Stored;
use super::options::WriteOptions;
use super::prepare::{self, Moment};
use super::{body, commit, create, find, managed, render};
use crate::http::{Body, Response};
use crate::object::Entry;
use crate::server::{ApiServer, Call};
use crate::strategy::{Part, convert};

/// Tries against concurrent writers before giving up.
pub const MAX_TRIES: usize = 64;

pub async fn put(server: &ApiServer, mut call: Call, sent: Body, part: Part) -> Result<Response> {
    let options = WriteOptions::of(&call)?;
    let decoded = body::read(&call, sent).await?;
    let object = body::conform(server, &mut call, &options, decoded)?;
    if let Some(record) = &call.audit {
        record.request_object(&object);
    }
    if find(server, &call).is_none() && part == Part::Main && server.strategies.traits(&call.row).created_by_update {
        return upsert(server, call, options, object).await;
    }
    if meta::resource_version(&object).is_empty() && server.strategies.traits(&call.row).update_names_version {
        let path = apimachinery::field::Path::new("metadata").child("resourceVersion");
        let error = apimachinery::field::Error::invalid(&path, &Value::from(0), "must be specified for an update");
        return Err(StatusError::invalid(&call.row.group_kind(), &call.info.name, &[error]));
    }
    let make = move |_: &mut Call, _: &Value| Ok((object.clone(), managed::Change::Update));
    let stored = modify(server, &mut call, &options, part, make).await?;
    answer(server, &call, 200, stored).await
}

async fn upsert(server: &ApiServer, mut call: Call, options: WriteOptions, mut object: Value) -> Result<Response> {
    super::require_create(server, &call)?;
    let name = meta::name(&object);
    if !name.is_empty() && name != call.info.name {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    let uid = meta::uid(&object);
    if !uid.is_empty() {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: ");
        return Err(StatusError::conflict(&call.row.group_resource(), &call.info.name, &why));
    }
    meta::remove(&mut object, "resourceVersion");
    if meta::name(&object).is_empty() {
        meta::metadata_mut(&mut object).insert("name".to_owned(), Value::from(call.info.name.as_str()));
    }
    let stored = create::insert(server, &mut call, &options, object, managed::Change::Update).await?;
    answer(server, &call, 201, stored).await
}

pub async fn answer(server: &ApiServer, call: &Call, code: u16, stored: Stored) -> Result<Response> {
    match stored {
        Stored::Entry(entry) => render::entry(server, call, code, &entry).await,
        Stored::Dry(object) => render::value(server, call, code, &object),
    }
}

/// Reads the object, lets `make` say its next state, prepares, validates and swaps it in; from the start again when somebody
/// else was quicker, unless the new state names the version it was made from.
pub async fn modify<F>(
    server: &ApiServer,
    call: &mut Call,
    options: &WriteOptions,
    part: Part,
    mut make: F,
) -> Result<Stored>
where
    F: FnMut(&mut Call, &Value) -> Result<(Value, managed::Change)>,
{
    let mut turn = None;
    for _ in 0..MAX_TRIES {
        let moment = Moment::take();
        let entry = super::current(server, call).await?;
        let old = convert::from_storage(&call.row, entry.value.value());
        let (object, manager) = make(call, &old)?;
        let version = meta::resource_version(&object);
        // An applied configuration is first told of its conflicts.
        let pinned = manager != managed::Change::Apply && !version.is_empty();
        if pinned && version != meta::resource_version(&old) {
            return Err(StatusError::modified(&call.row.group_resource(), &call.info.name));
        }
        let next = prepare::update(server, call, options, moment, part, object, &old, manager).await?;
        if let Some(stored) = swap(server, call, options, moment, &entry, &old, next).await? {
            return Ok(stored);
        }
        // It may have lost only what it claims; if so, then not again to those who create.
        if turn.is_none() {
            turn = server.admission.turn(&server.view, &call.row, super::namespace_of(call)).await;
        }
    }
    Err(StatusError::modified(&call.row.group_resource(), &call.info.name))
}

/// Commits `next` in place of `old`. `None`: somebody else was quicker.
async fn swap(
    server: &ApiServer,
    call: &Call,
    options: &WriteOptions,
    moment: Moment,
    entry: &Entry,
    old: &Value,
    mut next: Value,
) -> Result<Option<Stored>> {
    let strategy = server.strategies.get(&call.row);
    let gone = released(&next) && !strategy.is_some_and(|s| s.holds_deletion(&next));
    let wanted = if gone { None } else { Some(&mut next) };
    let claims = commit::claims(server, call, moment, wanted, Some(old))?;
    if !gone {
        // Compared without the version, which only a commit gives.
        let version = meta::remove(&mut next, "resourceVersion");
        let unchanged = same_but_version(&next, old);
        if options.dry_run {
            if let Some(version) = version {
                meta::metadata_mut(&mut next).insert("resourceVersion".to_owned(), version);
            }
            return Ok(Some(Stored::Dry(next)));
        }
        if unchanged {
            return Ok(Some(Stored::Entry(entry.clone())));
        }
    } else if options.dry_run {
        return Ok(Some(Stored::Dry(next)));
    }
    let next =
        if gone { None } else { Some(super::encoded(&super::convert::to_storage(server, &call.row, next).await?)?) };
    Ok(commit::replace(server, call, entry, next, claims).await?.map(Stored::Entry))
}

/// An object marked for deletion goes when its last finalizer does and no grace is left.
fn released(object: &Value) -> bool {
    let grace = meta::at(object, &["metadata", "deletionGracePeriodSeconds"]).and_then(Value::as_i64).unwrap_or(0);
    meta::is_deleting(object) && grace == 0 && meta::finalizers(object).is_empty()
}

fn same_but_version(next: &Value, old: &Value) -> bool {
    let (Some(next), Some(old)) = (next.as_object(), old.as_object()) else { return false };
    next.len() == old.len()
        && next.iter().all(|(key, value)| match (key.as_str(), value, old.get(key)) {
            ("metadata", Value::Object(new), Some(Value::Object(old))) => {
                new.iter().all(|(k, v)| old.get(k) == Some(v))
                    && old.keys().all(|k| k == "resourceVersion" || new.contains_key(k))
            }
            (_, value, before) => before == Some(value),
        })
}
