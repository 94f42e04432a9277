//! Pods: what the server sets, what may change through which subresource, graceful deletion.

mod binding;
mod defaults;
mod eviction;
mod status;
mod update;
mod validate;

use std::sync::Arc;

use apimachinery::field::{ErrorList, Path};
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta, names};
use serde_json::json;

pub use defaults::default_spec;
pub use validate::validate_template;

use super::common::items;
use super::{Context, Eviction, Family, Part, Posted, Strategy};

pub fn strategies() -> Family {
    vec![("", "pods", Arc::new(Pods))]
}

const CONTAINER_LISTS: [&str; 3] = ["initContainers", "containers", "ephemeralContainers"];

struct Pods;

impl Strategy for Pods {
    fn default(&self, object: &mut Value) {
        defaults::default_pod(object);
    }

    fn prepare_create(&self, _cx: &Context<'_>, object: &mut Value) {
        object["status"] = json!({ "phase": "Pending", "qosClass": defaults::qos_class(object) });
        if items(&object["spec"], "schedulingGates").next().is_some() {
            object["status"]["conditions"] = json!([{
                "type": "PodScheduled", "status": "False", "reason": "SchedulingGated",
                "observedGeneration": meta::generation(object), "lastProbeTime": null, "lastTransitionTime": null,
                "message": "Scheduling is blocked due to non-empty scheduling gates",
            }]);
        }
        defaults::merge_label_keys(object);
    }

    fn prepare_update(&self, _cx: &Context<'_>, part: Part, object: &mut Value, old: &Value) {
        match part {
            Part::Status => status::keep(object, old),
            Part::Other("ephemeralcontainers") => update::only_ephemeral_containers(object, old),
            Part::Other("resize") => update::only_resources(object, old),
            _ => {}
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let spec = Path::new("spec");
        match (part, old) {
            (_, None) => validate::new_pod(object, &mut errors),
            (Part::Main, Some(old)) => update::validate(object, old, &spec, &mut errors),
            (Part::Status, Some(old)) => status::validate(object, old, &mut errors),
            (Part::Other("ephemeralcontainers"), Some(old)) => {
                update::validate_ephemeral_containers(object, old, &spec, &mut errors);
            }
            (Part::Other("resize"), Some(old)) => update::validate_resize(object, old, &spec, &mut errors),
            _ => {}
        }
        errors
    }

    fn warnings(&self, object: &Value, old: Option<&Value>) -> Vec<String> {
        let problems = names::dns1123_label(meta::name(object));
        if old.is_some() || problems.is_empty() {
            return Vec::new();
        }
        let why =
            "this is used in the Pod's hostname, which can result in surprising behavior; a DNS label is recommended";
        vec![format!("metadata.name: {why}: [{}]", problems.join(" "))]
    }

    fn deletion_grace(&self, object: &Value, requested: Option<i64>) -> Option<i64> {
        let spec = meta::at(object, &["spec", "terminationGracePeriodSeconds"]).and_then(Value::as_i64);
        let unscheduled = meta::str_at(object, &["spec", "nodeName"]).is_empty();
        let finished = matches!(meta::str_at(object, &["status", "phase"]), "Succeeded" | "Failed");
        // No kubelet would ever confirm, or there is nothing to wait for.
        if unscheduled || finished {
            return Some(0);
        }
        let grace = requested.or(spec).unwrap_or(0);
        Some(if grace < 0 { 1 } else { grace })
    }

    fn post(&self, cx: &Context<'_>, subresource: &str, object: &Value, sent: &Value) -> Result<Posted> {
        match subresource {
            "binding" => Ok(Posted::Update { part: Part::Other("binding") }),
            "eviction" => eviction::options(cx, object, sent).map(|options| Posted::Delete { options }),
            _ => Err(StatusError::no_such_path()),
        }
    }

    fn posted(&self, cx: &Context<'_>, _subresource: &str, object: &Value, sent: &Value) -> Result<Value> {
        binding::bind(cx, object, sent)
    }

    fn evict(&self, cx: &Context<'_>, object: &Value) -> Result<Eviction> {
        eviction::evict(cx, object)
    }

    fn connect(&self, ask: &super::connect::Ask<'_>) -> Result<super::connect::Connection> {
        super::connect::pod(ask)
    }
}

/// Sets the condition of this type. Its transition time stays where the status does.
fn set_condition(pod: &mut Value, mut condition: Value) {
    let list = meta::map_mut(pod, "status").entry("conditions").or_insert_with(|| json!([]));
    let Some(list) = list.as_array_mut() else { return };
    match list.iter_mut().find(|c| c["type"] == condition["type"]) {
        Some(known) => {
            if known["status"] == condition["status"] {
                condition["lastTransitionTime"] = known["lastTransitionTime"].clone();
            }
            *known = condition;
        }
        None => list.push(condition),
    }
}
