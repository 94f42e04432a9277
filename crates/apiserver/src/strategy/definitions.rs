//! CustomResourceDefinitions: names and versions that fit together. What becomes of them is `crate::crds`' work.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::resource::custom;
use apimachinery::{Value, meta};
use serde_json::json;

use super::common::{immutable, items, path_of, set_default};
use super::webhooks::validate_client;
use super::{Context, Family, Part, Strategy};
use crate::crds::{CLEANUP, condition, is_true};

pub fn strategies() -> Family {
    vec![("apiextensions.k8s.io", "customresourcedefinitions", Arc::new(Definitions))]
}

/// Groups of the project itself need this annotation.
const APPROVED: &str = "api-approved.kubernetes.io";

struct Definitions;

impl Strategy for Definitions {
    fn default(&self, object: &mut Value) {
        let Some(names) = object.pointer_mut("/spec/names").filter(|n| n.is_object()) else { return };
        let kind = meta::str_at(names, &["kind"]).to_owned();
        if !kind.is_empty() {
            set_default(names, "singular", kind.to_lowercase());
            set_default(names, "listKind", format!("{kind}List"));
        }
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object["status"] = json!({"conditions": [], "storedVersions": []});
        remember_stored(object);
    }

    fn prepare_update(&self, _cx: &Context<'_>, part: Part, object: &mut Value, _old: &Value) {
        if part == Part::Main {
            remember_stored(object);
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part == Part::Main {
            validate_names(object, old, &mut errors);
            validate_versions(object, &mut errors);
            validate_conversion(&object["spec"]["conversion"], &mut errors);
        }
        let served: Vec<&Value> = items(&object["spec"], "versions").map(|v| &v["name"]).collect();
        for (index, stored) in items(&object["status"], "storedVersions").enumerate() {
            if !served.contains(&stored) {
                let at = path_of(&["status", "storedVersions"]).index(index);
                errors.push(Error::invalid(&at, stored, "must appear in spec.versions"));
            }
        }
        if let Some(old) = old {
            let established = is_true(old, "Established");
            immutable(object, old, &["spec", "group"], &mut errors);
            immutable(object, old, &["spec", "names", "plural"], &mut errors);
            if established {
                immutable(object, old, &["spec", "scope"], &mut errors);
                immutable(object, old, &["spec", "names", "kind"], &mut errors);
            }
        }
        errors
    }

    /// The instances go first.
    fn holds_deletion(&self, object: &Value) -> bool {
        !meta::is_deleting(object)
    }

    fn prepare_delete(&self, object: &mut Value) {
        let mut finalizers = meta::finalizers(object);
        if is_true(object, "Terminating") {
            return;
        }
        if !finalizers.contains(&CLEANUP) {
            finalizers.push(CLEANUP);
        }
        let finalizers = json!(finalizers);
        let since = meta::str_at(object, &["metadata", "deletionTimestamp"]).to_owned();
        meta::metadata_mut(object).insert("finalizers".to_owned(), finalizers);
        let why = "CustomResourceDefinition marked for deletion; CustomResource deletion will begin soon";
        let terminating = condition("Terminating", true, "InstanceDeletionPending", why, &since);
        let conditions = meta::map_mut(object, "status").entry("conditions").or_insert_with(|| json!([]));
        conditions.as_array_mut().into_iter().for_each(|list| list.push(terminating.clone()));
    }
}

/// Every version that objects were ever stored in.
fn remember_stored(object: &mut Value) {
    let storage = items(&object["spec"], "versions").find(|v| v["storage"] == true).map(|v| v["name"].clone());
    let stored = meta::map_mut(object, "status").entry("storedVersions").or_insert_with(|| json!([]));
    if let (Some(name), Some(list)) = (storage, stored.as_array_mut())
        && !list.contains(&name)
    {
        list.push(name);
    }
}

fn validate_names(object: &Value, old: Option<&Value>, errors: &mut ErrorList) {
    let (plural, group) =
        (meta::str_at(object, &["spec", "names", "plural"]), meta::str_at(object, &["spec", "group"]));
    let name = meta::name(object);
    if old.is_none() && name != format!("{plural}.{group}") {
        let why = "must be spec.names.plural+\".\"+spec.group";
        errors.push(Error::invalid(&path_of(&["metadata", "name"]), &json!(name), why));
    }
    if old.is_none() && !group.contains('.') && !group.is_empty() {
        let why = "should be a domain with at least one dot";
        errors.push(Error::invalid(&path_of(&["spec", "group"]), &json!(group), why));
    }
    let protected = [".k8s.io", ".kubernetes.io"].iter().any(|end| format!(".{group}").ends_with(end));
    let approval = meta::annotation(object, APPROVED).unwrap_or_default();
    if old.is_none() && protected && approval.is_empty() {
        let why = format!(
            "protected groups must have approval annotation {APPROVED:?}, see https://github.com/kubernetes/enhancements/pull/1111"
        );
        errors.push(Error::required(&path_of(&["metadata", "annotations"]).key(APPROVED), &why));
    }
}

/// `ValidateCustomResourceConversion`, its paths included: they are those of the internal type.
fn validate_conversion(conversion: &Value, errors: &mut ErrorList) {
    let at = path_of(&["spec", "conversion"]);
    let client = conversion["webhook"].get("clientConfig").filter(|client| !client.is_null());
    let versions = meta::strings(conversion["webhook"].get("conversionReviewVersions"));
    let (client_at, versions_at) = (at.child("webhookClientConfig"), at.child("conversionReviewVersions"));
    if conversion["strategy"] != "Webhook" {
        let why = "should not be set when strategy is not set to Webhook";
        if client.is_some() {
            errors.push(Error::forbidden(&client_at, why));
        }
        if !versions.is_empty() {
            errors.push(Error::forbidden(&versions_at, why));
        }
        return;
    }
    match client {
        None => errors.push(Error::required(&client_at, "required when strategy is set to Webhook")),
        Some(client) => validate_client(client, &client_at, errors),
    }
    if versions.is_empty() {
        errors.push(Error::required(&versions_at, ""));
    } else if !versions.iter().any(|version| matches!(*version, "v1" | "v1beta1")) {
        errors.push(Error::invalid(&versions_at, &json!(versions), "must include at least one of v1, v1beta1"));
    }
}

fn validate_versions(object: &Value, errors: &mut ErrorList) {
    let path = path_of(&["spec", "versions"]);
    let versions = &object["spec"]["versions"];
    if items(&object["spec"], "versions").filter(|v| v["storage"] == true).count() != 1 {
        let why = "must have exactly one version marked as storage version";
        errors.push(Error::invalid(&path, versions, why));
    }
    if object["spec"]["preserveUnknownFields"] == true {
        let why = "must be false in order to use defaults in the schema";
        errors.push(Error::invalid(&Path::new("spec").child("preserveUnknownFields"), &json!(true), why));
    }
    if let Err(faults) = custom::rows(object) {
        errors.extend(faults);
    }
}
