//! `pods/binding`: a scheduler's decision.

use apimachinery::field::{Error, Path};
use apimachinery::status::{GroupResource, Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::json;

use super::super::Context;
use super::super::common::items;
use super::set_condition;
use crate::registry::timestamp;

/// The pod on its node.
pub fn bind(cx: &Context<'_>, pod: &Value, binding: &Value) -> Result<Value> {
    validate(pod, binding)?;
    refuse_bound(pod, binding)?;
    let mut next = pod.clone();
    next["spec"]["nodeName"] = binding["target"]["name"].clone();
    let metadata = meta::metadata_mut(&mut next);
    for list in ["annotations", "labels"] {
        let Some(given) = meta::at(binding, &["metadata", list]).and_then(Value::as_object) else { continue };
        let into = metadata.entry(list).or_insert_with(|| json!({}));
        for (key, value) in given.iter().filter(|(_, value)| value.is_string()) {
            into[key] = value.clone();
        }
    }
    let generation = meta::generation(pod);
    let scheduled = json!({
        "type": "PodScheduled", "status": "True", "observedGeneration": generation,
        "lastProbeTime": null, "lastTransitionTime": timestamp(cx.now),
    });
    set_condition(&mut next, scheduled);
    // The nomination has been honoured or overtaken.
    meta::map_mut(&mut next, "status").remove("nominatedNodeName");
    meta::remove(&mut next, "resourceVersion");
    Ok(next)
}

/// `ValidatePodBinding`
fn validate(pod: &Value, binding: &Value) -> Result<()> {
    let target = |key: &str| meta::str_at(binding, &["target", key]);
    let path = Path::new("target");
    let error = if target("name").is_empty() {
        Error::required(&path.child("name"), "")
    } else if !matches!(target("kind"), "" | "Node") {
        Error::not_supported(&path.child("kind"), &json!(target("kind")), &["Node", "<empty>"])
    } else {
        return Ok(());
    };
    Err(StatusError::invalid(&GroupResource::new("", "Binding"), meta::name(pod), &[error]))
}

fn refuse_bound(pod: &Value, binding: &Value) -> Result<()> {
    let name = meta::name(pod);
    let precondition = |what: &str, wanted: &str, found: &str| {
        (!wanted.is_empty() && wanted != found)
            .then(|| format!("Precondition failed: {what} in precondition: {wanted}, {what} in object meta: {found}"))
    };
    let node = meta::str_at(pod, &["spec", "nodeName"]);
    let why = precondition("UID", meta::uid(binding), meta::uid(pod))
        .or_else(|| precondition("ResourceVersion", meta::resource_version(binding), meta::resource_version(pod)))
        .or_else(|| {
            meta::is_deleting(pod).then(|| format!("pod {name} is being deleted, cannot be assigned to a host"))
        })
        .or_else(|| (!node.is_empty()).then(|| format!("pod {name} is already assigned to node {node:?}")))
        .or_else(|| {
            let gated = items(&pod["spec"], "schedulingGates").next().is_some();
            gated.then(|| format!("pod {name} has non-empty .spec.schedulingGates"))
        });
    match why {
        Some(why) => Err(StatusError::conflict(&GroupResource::new("", "pods/binding"), name, &why)),
        None => Ok(()),
    }
}
