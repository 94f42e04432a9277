//! `pods/eviction`: a deletion that a disruption budget must allow.
//!
//! The budget's count, the pod's condition and its deletion are one transaction: two evictions can never spend the same disruption.

use apimachinery::selector::label::LabelSelector;
use apimachinery::status::{Cause, Details, GroupResource, Result, StatusError};
use apimachinery::{Value, meta};
use serde_json::json;
use store::{Compare, Expect, Op};

use super::super::common::items;
use super::super::{Claim, Context, Eviction};
use super::set_condition;
use crate::object::{Entry, encode};
use crate::registry::{DeleteOptions, timestamp};

/// Upstream's `MaxDisruptedPodSize`: evictions that a budget's controller has not noticed yet.
const MAX_UNNOTICED: usize = 2000;

/// The options that an eviction's body gives to the deletion.
pub fn options(_cx: &Context<'_>, pod: &Value, eviction: &Value) -> Result<DeleteOptions> {
    let name = meta::name(eviction);
    if !name.is_empty() && name != meta::name(pod) {
        return Err(StatusError::bad_request("name in URL does not match name in Eviction object"));
    }
    match eviction.get("deleteOptions").filter(|o| !o.is_null()) {
        Some(options) => serde_json::from_value(options.clone())
            .map_err(|e| StatusError::bad_request(format!("cannot decode DeleteOptions: {e}"))),
        None => Ok(DeleteOptions::default()),
    }
}

pub fn evict(cx: &Context<'_>, pod: &Value) -> Result<Eviction> {
    let mut object = pod.clone();
    if !meta::is_deleting(pod) {
        let target = json!({
            "type": "DisruptionTarget", "status": "True", "reason": "EvictionByEvictionAPI",
            "message": "Eviction API: evicting", "observedGeneration": meta::generation(pod),
            "lastProbeTime": null, "lastTransitionTime": timestamp(cx.now),
        });
        set_condition(&mut object, target);
    }
    let harmless = matches!(meta::str_at(pod, &["status", "phase"]), "Succeeded" | "Failed" | "Pending");
    if harmless || meta::is_deleting(pod) {
        return Ok(Eviction { object, claims: Vec::new() });
    }
    let mut budgets = cx.view.list("poddisruptionbudgets", meta::namespace(pod));
    budgets.retain(|entry| selects(&entry.value.value(), pod));
    let claims = match budgets.as_slice() {
        [] => Vec::new(),
        [budget] => spend(cx, budget, pod)?.into_iter().collect(),
        _ => {
            let why =
                "This pod has more than one PodDisruptionBudget, which the eviction subresource does not support.";
            return Err(StatusError::new(500, "InternalError", why));
        }
    };
    Ok(Eviction { object, claims })
}

fn selects(budget: &Value, pod: &Value) -> bool {
    meta::at(budget, &["spec", "selector"])
        .and_then(|s| LabelSelector::from_value(s).ok())
        .is_some_and(|selector| selector.matches_object(pod))
}

fn is_ready(pod: &Value) -> bool {
    items(&pod["status"], "conditions").any(|c| c["type"] == "Ready" && c["status"] == "True")
}

/// Takes one disruption from a budget, or refuses with 429. A pod that is not healthy anyway may cost nothing.
fn spend(cx: &Context<'_>, entry: &Entry, pod: &Value) -> Result<Option<Claim>> {
    let mut budget = entry.value.value();
    let number = |path: &[&str]| meta::at(&budget, path).and_then(Value::as_i64).unwrap_or(0);
    let (wanted, found) = (number(&["status", "desiredHealthy"]), number(&["status", "currentHealthy"]));
    if !is_ready(pod) {
        let always = meta::str_at(&budget, &["spec", "unhealthyPodEvictionPolicy"]) == "AlwaysAllow";
        if always || (wanted > 0 && found >= wanted) {
            return Ok(None);
        }
    }
    let name = meta::name(&budget).to_owned();
    let forbidden =
        |why: &str| Err(StatusError::forbidden(&GroupResource::new("policy", "poddisruptionbudget"), &name, why));
    if number(&["status", "observedGeneration"]) < meta::generation(&budget) {
        return Err(refusal(format!("The disruption budget {name} is still being processed by the server."), 10));
    }
    let unnoticed = meta::at(&budget, &["status", "disruptedPods"]).and_then(Value::as_object).map_or(0, |m| m.len());
    match number(&["status", "disruptionsAllowed"]) {
        ..0 => return forbidden("pdb disruptions allowed is negative"),
        _ if unnoticed > MAX_UNNOTICED => {
            return forbidden("DisruptedPods map too big - too many evictions not confirmed by PDB controller");
        }
        0 => {
            return Err(refusal(why_none(&budget, wanted, found), 0));
        }
        allowed => count(&mut budget, meta::name(pod), allowed - 1, cx.now),
    }
    let compare = Compare { key: entry.key.to_string(), expect: Expect::ModRevision(entry.mod_revision) };
    Ok(Some((Some(compare), Op::Put { key: entry.key.to_string(), value: encode(&budget), ttl: None })))
}

/// Why a budget allows nothing.
fn why_none(budget: &Value, wanted: i64, found: i64) -> String {
    let name = meta::name(budget);
    let failed = items(&budget["status"], "conditions")
        .find(|c| c["type"] == "DisruptionAllowed" && c["status"] == "False" && c["reason"] == "SyncFailed");
    let currently = format!("The disruption budget {name} does not allow evicting pods currently");
    match failed {
        Some(condition) => format!("{currently} because it failed sync: {}", meta::str_at(condition, &["message"])),
        None if found <= wanted => {
            format!("The disruption budget {name} needs {wanted} healthy pods and has {found} currently")
        }
        None => currently,
    }
}

fn count(budget: &mut Value, pod: &str, left: i64, now: i64) {
    let generation = meta::generation(budget);
    let status = meta::map_mut(budget, "status");
    status.insert("disruptionsAllowed".to_owned(), json!(left));
    status.entry("disruptedPods").or_insert_with(|| json!({}))[pod] = json!(timestamp(now));
    if left > 0 {
        return;
    }
    let conditions = status.entry("conditions").or_insert_with(|| json!([]));
    if let Some(list) = conditions.as_array_mut() {
        list.retain(|c| c["type"] != "DisruptionAllowed");
        list.push(json!({
            "type": "DisruptionAllowed", "status": "False", "reason": "InsufficientPods", "message": "",
            "observedGeneration": generation, "lastTransitionTime": timestamp(now),
        }));
    }
}

fn refusal(message: String, seconds: u32) -> StatusError {
    StatusError::too_many_requests("Cannot evict pod as it would violate the pod's disruption budget.", seconds)
        .with_details(Details {
            causes: vec![Cause { reason: "DisruptionBudget".to_owned(), message, field: String::new() }],
            retry_after_seconds: seconds,
            ..Details::default()
        })
}
