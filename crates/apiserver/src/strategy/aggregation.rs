//! APIServices: names that fit, and what a local one and a remote one may say. What becomes of them is `crate::aggregator`'s work.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList};
use apimachinery::{Value, meta, names};
use serde_json::json;

use super::common::path_of;
use super::{Context, Family, Part, Strategy};
use crate::registry::timestamp;

pub fn strategies() -> Family {
    vec![("apiregistration.k8s.io", "apiservices", Arc::new(Services))]
}

struct Services;

impl Strategy for Services {
    /// A local one is available from the start.
    fn prepare_create(&self, cx: &Context<'_>, object: &mut Value) {
        if is_local(object) {
            object["status"] = json!({"conditions": [{
                "type": "Available", "status": "True", "reason": "Local",
                "message": "Local APIServices are always available", "lastTransitionTime": timestamp(cx.now),
            }]});
        }
    }

    /// Names end with a dot where the group is the core's.
    fn validate_name(&self, name: &str) -> Vec<String> {
        names::path_segment_name(name)
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, _old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        if part != Part::Main {
            return errors;
        }
        let text = |path: &[&str]| meta::str_at(object, path);
        let (group, version) = (text(&["spec", "group"]), text(&["spec", "version"]));
        let wanted = format!("{version}.{group}");
        if meta::name(object) != wanted {
            let why = format!("must be `spec.version+\".\"+spec.group`: {wanted:?}");
            errors.push(Error::invalid(&path_of(&["metadata", "name"]), &json!(meta::name(object)), &why));
        }
        if group.is_empty() && version != "v1" {
            let why = "only v1 may have an empty group and it better be legacy kube";
            errors.push(Error::required(&path_of(&["spec", "group"]), why));
        }
        if !group.is_empty() {
            let faults = names::dns1123_subdomain(group);
            errors.extend(faults.iter().map(|why| Error::invalid(&path_of(&["spec", "group"]), &json!(group), why)));
        }
        let faults = names::dns1035_label(version);
        errors.extend(faults.iter().map(|why| Error::invalid(&path_of(&["spec", "version"]), &json!(version), why)));
        for (key, most) in [("groupPriorityMinimum", 20000), ("versionPriority", 1000)] {
            let value = object["spec"][key].as_i64().unwrap_or(0);
            if value <= 0 {
                let why = format!("must be positive and less than {most}");
                errors.push(Error::invalid(&path_of(&["spec", key]), &json!(value), &why));
            }
        }
        validate_service(object, &mut errors);
        errors
    }
}

fn is_local(object: &Value) -> bool {
    object["spec"].get("service").is_none_or(Value::is_null)
}

fn validate_service(object: &Value, errors: &mut ErrorList) {
    let bundle = meta::str_at(object, &["spec", "caBundle"]);
    let skip = object["spec"]["insecureSkipTLSVerify"] == true;
    let skip_at = path_of(&["spec", "insecureSkipTLSVerify"]);
    if is_local(object) {
        if !bundle.is_empty() {
            let size = format!("{} bytes", bundle.trim_end_matches('=').len() * 3 / 4);
            let why = "local APIServices may not have a caBundle";
            errors.push(Error::invalid(&path_of(&["spec", "caBundle"]), &json!(size), why));
        }
        if skip {
            let why = "local APIServices may not have insecureSkipTLSVerify";
            errors.push(Error::invalid(&skip_at, &json!(true), why));
        }
        return;
    }
    for key in ["namespace", "name"] {
        if meta::str_at(object, &["spec", "service", key]).is_empty() {
            errors.push(Error::required(&path_of(&["spec", "service", key]), ""));
        }
    }
    if skip && !bundle.is_empty() {
        errors.push(Error::invalid(&skip_at, &json!(true), "may not be true if caBundle is present"));
    }
}
