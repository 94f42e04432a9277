//! `metadata`: what the system sets, what an update may not change, and its validation.

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta, names};
use serde_json::{Map, json};

use crate::server::Call;
use crate::strategy::Strategy;

/// Upstream's limit on all annotations of an object together.
const MAX_ANNOTATIONS_BYTES: usize = 256 * 1024;

/// RFC 3339 in whole seconds, as `metav1.Time`.
pub fn timestamp(seconds: i64) -> String {
    let seconds = seconds.clamp(jiff::Timestamp::MIN.as_second(), jiff::Timestamp::MAX.as_second());
    jiff::Timestamp::from_second(seconds).unwrap_or_default().to_string()
}

/// Checks name and namespace against the URL and sets what every new object gets.
pub fn prepare_create(call: &Call, object: &mut Value, now: i64, random: u64) -> Result<()> {
    match_namespace(call, object)?;
    let metadata = meta::metadata_mut(object);
    let text =
        |map: &Map<String, Value>, key: &str| map.get(key).and_then(Value::as_str).unwrap_or_default().to_owned();
    if !text(metadata, "resourceVersion").is_empty() {
        return Err(StatusError::bad_request("resourceVersion should not be set on objects to be created"));
    }
    for key in ["resourceVersion", "selfLink", "deletionTimestamp", "deletionGracePeriodSeconds", "generation"] {
        metadata.remove(key);
    }
    let base = text(metadata, "generateName");
    if text(metadata, "name").is_empty() && !base.is_empty() {
        metadata.insert("name".to_owned(), json!(names::generate_name(&base, random)));
    }
    metadata.insert("uid".to_owned(), json!(uuid::Uuid::new_v4().to_string()));
    metadata.insert("creationTimestamp".to_owned(), json!(timestamp(now)));
    if call.row.is_namespaced() {
        metadata.insert("namespace".to_owned(), json!(call.info.namespace));
    } else {
        metadata.remove("namespace");
    }
    Ok(())
}

fn match_namespace(call: &Call, object: &Value) -> Result<()> {
    let sent = meta::namespace(object);
    if call.row.is_namespaced() && !sent.is_empty() && sent != call.info.namespace {
        return Err(StatusError::bad_request(
            "the namespace of the provided object does not match the namespace sent on the request",
        ));
    }
    Ok(())
}

/// Carries over from `old` what no update may change, and checks what the client says about identity.
pub fn prepare_update(call: &Call, object: &mut Value, old: &Value) -> Result<()> {
    match_namespace(call, object)?;
    let name = meta::name(object).to_owned();
    if !name.is_empty() && name != call.info.name {
        return Err(StatusError::bad_request(format!(
            "the name of the object ({name}) does not match the name on the URL ({})",
            call.info.name
        )));
    }
    let uid = meta::uid(object);
    if !uid.is_empty() && uid != meta::uid(old) {
        let why = format!("Precondition failed: UID in precondition: {uid}, UID in object meta: {}", meta::uid(old));
        return Err(StatusError::conflict(&call.row.group_resource(), &call.info.name, &why));
    }
    let kept = old.get("metadata").and_then(Value::as_object);
    let metadata = meta::metadata_mut(object);
    for key in [
        "name",
        "namespace",
        "uid",
        "creationTimestamp",
        "deletionTimestamp",
        "deletionGracePeriodSeconds",
        "generation",
        "generateName",
        "selfLink",
    ] {
        match kept.and_then(|kept| kept.get(key)) {
            Some(value) => metadata.insert(key.to_owned(), value.clone()),
            None => metadata.remove(key),
        };
    }
    Ok(())
}

/// Owners that are named twice are kept once, with a warning, as upstream.
pub fn drop_repeated_owners(call: &Call, object: &mut Value) {
    let Some(Value::Array(owners)) = object.get_mut("metadata").and_then(|m| m.get_mut("ownerReferences")) else {
        return;
    };
    let before = owners.len();
    let mut kept: Vec<Value> = Vec::with_capacity(before);
    for owner in owners.drain(..) {
        if !kept.contains(&owner) {
            kept.push(owner);
        }
    }
    *owners = kept;
    if owners.len() < before {
        let text = ".metadata.ownerReferences contains duplicate entries; API server dedups owner references in 1.20+, \
                    and may reject such requests as early as 1.24; please fix your requests";
        call.warnings.extend([text.to_owned()]);
    }
}

/// `ValidateObjectMeta` and, with `old`, `ValidateObjectMetaUpdate`.
pub fn validate(strategy: Option<&dyn Strategy>, object: &Value, old: Option<&Value>) -> ErrorList {
    let path = Path::new("metadata");
    let mut errors = ErrorList::new();
    if old.is_none() {
        validate_name(strategy, object, &path, &mut errors);
    }
    let Some(metadata) = object.get("metadata") else { return errors };
    validate_labels(metadata, &path.child("labels"), &mut errors);
    validate_annotations(metadata, &path.child("annotations"), &mut errors);
    validate_finalizers(object, old, &path.child("finalizers"), &mut errors);
    validate_owners(metadata, &path.child("ownerReferences"), &mut errors);
    errors
}

fn validate_name(strategy: Option<&dyn Strategy>, object: &Value, path: &Path, errors: &mut ErrorList) {
    let name = meta::name(object);
    if name.is_empty() {
        errors.push(Error::required(&path.child("name"), "name or generateName is required"));
        return;
    }
    let problems = match strategy {
        Some(strategy) => strategy.validate_name(name),
        None => names::dns1123_subdomain(name),
    };
    errors.extend(problems.iter().map(|p| Error::invalid(&path.child("name"), &json!(name), p)));
}

fn validate_labels(metadata: &Value, path: &Path, errors: &mut ErrorList) {
    for (key, value) in metadata.get("labels").and_then(Value::as_object).into_iter().flatten() {
        errors.extend(names::qualified_name(key).iter().map(|p| Error::invalid(path, &json!(key), p)));
        let value = value.as_str().unwrap_or_default();
        errors.extend(names::label_value(value).iter().map(|p| Error::invalid(path, &json!(value), p)));
    }
}

fn validate_annotations(metadata: &Value, path: &Path, errors: &mut ErrorList) {
    let mut size = 0;
    for (key, value) in metadata.get("annotations").and_then(Value::as_object).into_iter().flatten() {
        let problems = names::qualified_name(&key.to_ascii_lowercase());
        errors.extend(problems.iter().map(|p| Error::invalid(path, &json!(key), p)));
        size += key.len() + value.as_str().map_or(0, str::len);
    }
    if size > MAX_ANNOTATIONS_BYTES {
        errors.push(Error::too_long(path, MAX_ANNOTATIONS_BYTES));
    }
}

fn validate_finalizers(object: &Value, old: Option<&Value>, path: &Path, errors: &mut ErrorList) {
    let finalizers = meta::finalizers(object);
    for finalizer in &finalizers {
        let problems = names::qualified_name(finalizer);
        errors.extend(problems.iter().map(|p| Error::invalid(path, &json!(finalizer), p)));
    }
    let standard = |name: &str| finalizers.contains(&name);
    if standard("orphan") && standard("foregroundDeletion") {
        let message = "finalizer orphan and foregroundDeletion cannot be both set";
        errors.push(Error::invalid(path, &json!(finalizers), message));
    }
    if let Some(old) = old.filter(|old| meta::is_deleting(old)) {
        let before = meta::finalizers(old);
        let added: Vec<&str> = finalizers.iter().copied().filter(|f| !before.contains(f)).collect();
        if !added.is_empty() {
            let why = format!(
                "no new finalizers can be added if the object is being deleted, found new finalizers {:?}",
                added
            );
            errors.push(Error::forbidden(path, &why));
        }
    }
}

fn validate_owners(metadata: &Value, path: &Path, errors: &mut ErrorList) {
    let mut controllers: Vec<String> = Vec::new();
    let owners = metadata.get("ownerReferences").and_then(Value::as_array);
    for (index, owner) in owners.into_iter().flatten().enumerate() {
        let at = path.index(index);
        let text = |key: &str| meta::str_at(owner, &[key]);
        for (key, what) in [("apiVersion", "version"), ("kind", "kind"), ("name", "name"), ("uid", "uid")] {
            if text(key).is_empty() {
                let detail = if key == "apiVersion" {
                    "version must not be empty"
                } else {
                    &format!("{what} must not be empty")
                };
                errors.push(Error::invalid(&at.child(key), &json!(text(key)), detail));
            }
        }
        if text("apiVersion") == "v1" && text("kind") == "Event" {
            errors.push(Error::invalid(&at, owner, "/v1, Kind=Event is disallowed from being an owner"));
        }
        if owner.get("controller").and_then(Value::as_bool) == Some(true) {
            controllers.push(format!("{}/{}", text("kind"), text("name")));
        }
    }
    if let [first, second, ..] = controllers.as_slice() {
        let why = format!(
            "Only one reference can have Controller set to true. Found \"true\" in references for {first} and {second}"
        );
        errors.push(Error::invalid(path, &json!(owners), &why));
    }
}
