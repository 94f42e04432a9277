//! From a decoded object to one that may be stored: admission, strategy, validation, field ownership.
//!
//! The order is upstream's: field ownership of what the client sent, mutating admission, prepare, validate, validating admission. Nothing here touches the store.

use apimachinery::resource::ResourceRow;
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::json;

use super::admit::Attributes;
use super::options::WriteOptions;
use super::{body, managed};
use crate::admission::Operation;
use crate::server::{ApiServer, Call};
use crate::strategy::{Context, Part};

/// When and with what luck a write happens; fixed per attempt, so that everything below is a function of its arguments.
#[derive(Clone, Copy, Debug)]
pub struct Moment {
    pub now: i64,
    pub seed: u64,
}

impl Moment {
    pub fn take() -> Self {
        Moment { now: crate::server::now_seconds(), seed: rand::random() }
    }
}

pub fn context<'a>(server: &'a ApiServer, call: &'a Call, moment: Moment) -> Context<'a> {
    let Moment { now, seed, .. } = moment;
    let (view, config, warnings) = (&server.view, &server.settings, &call.warnings);
    Context { user: &call.user, view, now, seed, config, warnings }
}

/// Prepares and validates a new object. Its metadata is filled already.
pub async fn create(
    server: &ApiServer,
    call: &mut Call,
    options: &WriteOptions,
    moment: Moment,
    mut object: Value,
    manager: managed::Change,
) -> Result<Value> {
    let row = call.row.clone();
    super::meta::drop_repeated_owners(call, &mut object);
    managed::track(server, &row, None, &mut object, options, manager, Part::Main, moment.now).await;
    let attributes = Attributes::new(Operation::Create, "", options.dry_run, moment);
    attributes.admit(server, call, &mut object, None).await?;
    body::set_defaults(server, &row, &mut object);
    let strategy = server.strategies.get(&row);
    if row.has_status() {
        reset_status(&row, &mut object);
    }
    if server.strategies.traits(&row).counts_generation {
        meta::metadata_mut(&mut object).insert("generation".to_owned(), json!(1));
    }
    if let Some(strategy) = strategy {
        strategy.prepare_create(&context(server, call, moment), &mut object);
    }
    validate(server, call, moment, Part::Main, &object, None)?;
    if let Some(strategy) = strategy {
        call.warnings.extend(strategy.warnings(&object, None));
    }
    attributes.validate(server, call, &mut object, None).await?;
    Ok(object)
}

/// Prepares and validates the next state of an object. Returns it with `old`'s identity and with what `part` may not change.
#[expect(clippy::too_many_arguments, reason = "one write's facts; a struct would only rename them")]
pub async fn update(
    server: &ApiServer,
    call: &mut Call,
    options: &WriteOptions,
    moment: Moment,
    part: Part,
    mut object: Value,
    old: &Value,
    manager: managed::Change,
) -> Result<Value> {
    let row = call.row.clone();
    if manager == managed::Change::Apply {
        object = apply(server, call, options, moment, part, &object, old).await?;
    }
    super::meta::prepare_update(call, &mut object, old)?;
    super::meta::drop_repeated_owners(call, &mut object);
    managed::track(server, &row, Some(old), &mut object, options, manager, part, moment.now).await;
    let attributes = Attributes::new(Operation::Update, part.subresource(), options.dry_run, moment);
    attributes.admit(server, call, &mut object, Some(old)).await?;
    body::set_defaults(server, &row, &mut object);
    keep_other_parts(&row, part, &mut object, old);
    let strategy = server.strategies.get(&row);
    if let Some(strategy) = strategy {
        strategy.prepare_update(&context(server, call, moment), part, &mut object, old);
    }
    if server.strategies.traits(&row).counts_generation && part.changes_wish() && wish_changed(&row, &object, old) {
        let next = meta::generation(old) + 1;
        meta::metadata_mut(&mut object).insert("generation".to_owned(), json!(next));
    }
    apimachinery::apply::keep_timestamps(old, &mut object);
    validate(server, call, moment, part, &object, Some(old))?;
    if let Some(strategy) = strategy {
        call.warnings.extend(strategy.warnings(&object, Some(old)));
    }
    attributes.validate(server, call, &mut object, Some(old)).await?;
    Ok(object)
}

/// The next state that an applied configuration asks for.
async fn apply(
    server: &ApiServer,
    call: &Call,
    options: &WriteOptions,
    moment: Moment,
    part: Part,
    config: &Value,
    old: &Value,
) -> Result<Value> {
    let row = &call.row;
    let mut merged = managed::merged(server, row, Some(old), config, options, part, moment.now).await?;
    let version = meta::resource_version(config);
    if version.is_empty() {
        meta::remove(&mut merged, "resourceVersion");
    } else if version != meta::resource_version(old) {
        return Err(StatusError::modified(&row.group_resource(), &call.info.name));
    }
    body::set_defaults(server, row, &mut merged);
    Ok(merged)
}

/// Built-in kinds answer `status: {}` where nothing is known yet, as a Go struct does; a custom resource has none.
fn reset_status(row: &ResourceRow, object: &mut Value) {
    if let Some(map) = object.as_object_mut() {
        map.remove("status");
        if !row.custom {
            map.insert("status".to_owned(), json!({}));
        }
    }
}

/// Main and status each change their own part of an object only.
fn keep_other_parts(row: &ResourceRow, part: Part, object: &mut Value, old: &Value) {
    let (Some(new), Some(before)) = (object.as_object_mut(), old.as_object()) else { return };
    match part {
        Part::Main if row.has_status() => {
            match before.get("status") {
                Some(status) => new.insert("status".to_owned(), status.clone()),
                None => new.remove("status"),
            };
        }
        Part::Status => {
            let status = new.remove("status");
            let metadata = if row.custom { None } else { new.remove("metadata") };
            let managed = new.get("metadata").and_then(|m| m.get("managedFields")).cloned();
            *new = before.clone();
            if let Some(status) = status {
                new.insert("status".to_owned(), status);
            }
            if let Some(metadata) = metadata {
                new.insert("metadata".to_owned(), metadata);
            } else if let (Some(managed), Some(Value::Object(metadata))) = (managed, new.get_mut("metadata")) {
                metadata.insert("managedFields".to_owned(), managed);
            }
        }
        Part::Main | Part::Other(_) => {}
    }
}

/// Whether anything differs but `metadata` and what the `status` subresource writes.
fn wish_changed(row: &ResourceRow, object: &Value, old: &Value) -> bool {
    let (Some(new), Some(old)) = (object.as_object(), old.as_object()) else { return false };
    let wish = |key: &str| match key {
        "metadata" | "apiVersion" | "kind" => false,
        "status" => !row.has_status(),
        _ => true,
    };
    let count = |map: &serde_json::Map<String, Value>| map.keys().filter(|k| wish(k)).count();
    count(new) != count(old) || new.iter().filter(|(k, _)| wish(k)).any(|(k, v)| old.get(k) != Some(v))
}

fn validate(
    server: &ApiServer,
    call: &Call,
    moment: Moment,
    part: Part,
    object: &Value,
    old: Option<&Value>,
) -> Result<()> {
    let row = &call.row;
    let strategy = server.strategies.get(row);
    let mut errors = super::meta::validate(strategy, object, old);
    // An object stored under laxer rules may keep what it has: field rules are checked where the object changed.
    if old.is_none_or(|old| wish_changed(row, object, old) || old.get("status") != object.get("status")) {
        errors.extend(apimachinery::schema::validate::validate(&row.schema, row.root, object));
    }
    if let Some(strategy) = strategy {
        errors.extend(strategy.validate(&context(server, call, moment), part, object, old));
    }
    if errors.is_empty() {
        return strategy.map_or(Ok(()), |s| s.authorize(&context(server, call, moment), object, old));
    }
    Err(StatusError::invalid(&row.group_kind(), meta::name(object), &errors))
}
