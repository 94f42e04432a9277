//! Volumes, claims and classes: what is fixed once others rely on it.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::quantity::Quantity;
use apimachinery::{Value, meta};
use serde_json::json;

use super::common::{Fixed, copy_field, immutable, path_of};
use super::{Context, Family, Part, Strategy};

const GROUP: &str = "storage.k8s.io";

pub fn strategies() -> Family {
    // A class says where volumes come from; those that exist would no longer be true to it.
    let class: Fixed = Fixed(&[&["parameters"], &["provisioner"], &["reclaimPolicy"], &["volumeBindingMode"]]);
    vec![
        ("", "persistentvolumeclaims", Arc::new(Claims)),
        ("", "persistentvolumes", Arc::new(Volumes)),
        (GROUP, "storageclasses", Arc::new(class)),
        (GROUP, "volumeattributesclasses", Arc::new(Fixed(&[&["driverName"], &["parameters"]]))),
        (GROUP, "volumeattachments", Arc::new(Fixed(&[&["spec"]]))),
        (GROUP, "csistoragecapacities", Arc::new(Fixed(&[&["nodeTopology"], &["storageClassName"]]))),
        (GROUP, "csidrivers", Arc::new(Drivers)),
    ]
}

/// The class by its annotation, older than the field.
const CLASS_ANNOTATION: &str = "volume.beta.kubernetes.io/storage-class";

struct Claims;

impl Strategy for Claims {
    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            return errors;
        }
        match old {
            None => validate_size(object, &mut errors),
            Some(old) => validate_claim_update(object, old, &mut errors),
        }
        errors
    }
}

const REQUEST: [&str; 4] = ["spec", "resources", "requests", "storage"];

fn size(object: &Value) -> Option<Quantity> {
    meta::at(object, &REQUEST).and_then(|value| Quantity::from_value(value).ok())
}

fn validate_size(object: &Value, errors: &mut ErrorList) {
    let path = path_of(&["spec", "resources"]);
    match size(object) {
        None => errors.push(Error::required(&path.key("storage"), "")),
        Some(size) if size.signum() <= 0 => {
            let value = meta::at(object, &REQUEST).cloned().unwrap_or_default();
            errors.push(Error::invalid(&path.child("requests").key("storage"), &value, "must be greater than zero"));
        }
        Some(_) => {}
    }
    let modes = object["spec"].get("accessModes").and_then(Value::as_array).map(Vec::as_slice).unwrap_or_default();
    if modes.len() > 1 && modes.iter().any(|m| m == "ReadWriteOncePod") {
        let why = "may not use ReadWriteOncePod with other access modes";
        errors.push(Error::forbidden(&path_of(&["spec", "accessModes"]), why));
    }
}

/// A claim is fixed but for what binding sets, the request's growth once bound, and the class of attributes.
fn validate_claim_update(object: &Value, old: &Value, errors: &mut ErrorList) {
    let why =
        "spec is immutable after creation except resources.requests and volumeAttributesClassName for bound claims";
    let mut allowed = old["spec"].clone();
    let new = &object["spec"];
    let bound = old["status"]["phase"] == "Bound";
    if meta::str_at(old, &["spec", "volumeName"]).is_empty() {
        copy_field(new, &mut allowed, "volumeName");
    }
    // A claim from before there was a default class may be given one.
    let had_class = old["spec"].get("storageClassName").is_some() || meta::annotation(old, CLASS_ANNOTATION).is_some();
    if !had_class {
        copy_field(new, &mut allowed, "storageClassName");
    }
    copy_field(new, &mut allowed, "volumeAttributesClassName");
    if bound && let (Some(from), Some(to)) = (new.get("resources"), allowed.get_mut("resources")) {
        copy_field(from, to, "requests");
        if let (Some(wanted), Some(before)) = (size(object), size(old))
            && wanted < before
            && shrinks_below_capacity(&wanted, old)
        {
            let path = path_of(&["spec", "resources", "requests", "storage"]);
            errors.push(Error::forbidden(&path, "field can not be less than status.capacity"));
        }
    }
    if *new != allowed {
        errors.push(Error::forbidden(&Path::new("spec"), why));
    }
    immutable_annotation(object, old, errors);
}

/// A failed growth may be taken back, down to what the volume has.
fn shrinks_below_capacity(wanted: &Quantity, old: &Value) -> bool {
    let capacity = meta::at(old, &["status", "capacity", "storage"]).and_then(|value| Quantity::from_value(value).ok());
    capacity.is_none_or(|capacity| *wanted <= capacity)
}

fn immutable_annotation(object: &Value, old: &Value, errors: &mut ErrorList) {
    let (new, before) = (meta::annotation(object, CLASS_ANNOTATION), meta::annotation(old, CLASS_ANNOTATION));
    if new != before {
        let path = path_of(&["metadata", "annotations"]).key(CLASS_ANNOTATION);
        errors.push(Error::invalid(&path, &json!(new), "field is immutable"));
    }
}

struct Volumes;

/// Fields of a volume's spec that are not its source.
const COMMON: [&str; 9] = [
    "accessModes",
    "capacity",
    "claimRef",
    "mountOptions",
    "nodeAffinity",
    "persistentVolumeReclaimPolicy",
    "storageClassName",
    "volumeAttributesClassName",
    "volumeMode",
];

fn sources(object: &Value) -> Vec<(&String, &Value)> {
    let spec = object["spec"].as_object().into_iter().flatten();
    spec.filter(|(key, value)| !COMMON.contains(&key.as_str()) && !value.is_null()).collect()
}

impl Strategy for Volumes {
    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"phase": "Pending"});
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Status {
            return errors;
        }
        let path = Path::new("spec");
        match sources(object).as_slice() {
            [] => errors.push(Error::required(&path, "must specify a volume type")),
            [_] => {}
            [_, others @ ..] => {
                for (key, _) in others {
                    errors.push(Error::forbidden(&path.child(key), "may not specify more than 1 volume type"));
                }
            }
        }
        if meta::at(object, &["spec", "capacity", "storage"]).is_none() {
            errors.push(Error::not_supported(&path.child("capacity"), &object["spec"]["capacity"], &["storage"]));
        }
        let local = object["spec"].get("local").is_some_and(|l| !l.is_null());
        if local && meta::at(object, &["spec", "nodeAffinity", "required"]).is_none_or(Value::is_null) {
            let why = "Local volume requires node affinity";
            errors.push(Error::required(&path_of(&["metadata", "annotations"]), why));
        }
        if let Some(old) = old {
            if sources(object) != sources(old) {
                let why = "spec.persistentvolumesource is immutable after creation";
                errors.push(Error::forbidden(&path.child("persistentvolumesource"), why));
            }
            immutable(object, old, &["spec", "volumeMode"], &mut errors);
            if meta::at(old, &["spec", "nodeAffinity"]).is_some_and(|a| !a.is_null()) {
                immutable(object, old, &["spec", "nodeAffinity"], &mut errors);
            }
        }
        errors
    }
}

struct Drivers;

impl Strategy for Drivers {
    /// Upstream counts the changes of a driver, but not its creation.
    fn prepare_update(&self, _cx: &Context<'_>, _part: Part, object: &mut Value, old: &Value) {
        if object["spec"] != old["spec"] {
            let generation = meta::generation(old) + 1;
            meta::metadata_mut(object).insert("generation".to_owned(), json!(generation));
        }
    }

    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if let Some(old) = old {
            for field in ["attachRequired", "fsGroupPolicy", "volumeLifecycleModes"] {
                immutable(object, old, &["spec", field], &mut errors);
            }
        }
        errors
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn update(old: Value, new: Value) -> Vec<String> {
        let mut errors = ErrorList::new();
        validate_claim_update(&new, &old, &mut errors);
        errors.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_claim_grows_once_bound_and_changes_no_otherwise() {
        let claim = |size: &str, phase: &str| {
            json!({"spec": {"storageClassName": "a", "resources": {"requests": {"storage": size}}},
                "status": {"phase": phase, "capacity": {"storage": "1Gi"}}})
        };
        assert!(update(claim("1Gi", "Bound"), claim("2Gi", "Bound")).is_empty());
        assert_eq!(update(claim("1Gi", "Pending"), claim("2Gi", "Pending")).len(), 1);
        assert_eq!(update(claim("2Gi", "Bound"), claim("500Mi", "Bound")).len(), 1);
        let mut bound = claim("1Gi", "Pending");
        bound["spec"]["volumeName"] = json!("v");
        assert!(update(claim("1Gi", "Pending"), bound.clone()).is_empty());
        let mut moved = bound.clone();
        moved["spec"]["volumeName"] = json!("w");
        assert_eq!(update(bound, moved).len(), 1);
        let mut errors = ErrorList::new();
        validate_size(&json!({"spec": {}}), &mut errors);
        assert_eq!(errors[0].to_string(), "spec.resources[storage]: Required value");
    }
}
