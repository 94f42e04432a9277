//! `AdmissionReview`: the question to a webhook and its answer.

use apimachinery::resource::ResourceRow;
use apimachinery::{Value, meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::Attempt;

/// The `request` of a review: `row` is the one that the hook is called for, the call's own row the one that was asked for.
pub fn request(attempt: &Attempt<'_>, row: &ResourceRow, uid: &str, object: &Value, old: Option<&Value>) -> Value {
    let user = &attempt.call.user;
    let mut request = json!({
        "uid": uid,
        "kind": kind_of(row, attempt.subresource),
        "resource": resource_of(row),
        "requestKind": kind_of(attempt.row(), attempt.subresource),
        "requestResource": resource_of(attempt.row()),
        "operation": attempt.operation.as_str(),
        "userInfo": user_info(user),
        "object": object,
        "oldObject": old,
        "dryRun": attempt.dry_run,
        "options": attempt.options,
    });
    let texts = [
        ("subResource", attempt.subresource),
        ("requestSubResource", attempt.subresource),
        ("name", attempt.name.as_str()),
        ("namespace", attempt.namespace()),
    ];
    for (key, text) in texts.into_iter().filter(|(_, text)| !text.is_empty()) {
        request[key] = json!(text);
    }
    request
}

fn kind_of(row: &ResourceRow, subresource: &str) -> Value {
    match row.subresource(subresource) {
        Some(sub) => json!({"group": sub.group, "version": sub.version, "kind": sub.kind}),
        None => json!({"group": row.group, "version": row.version, "kind": row.kind}),
    }
}

fn resource_of(row: &ResourceRow) -> Value {
    json!({"group": row.group, "version": row.version, "resource": row.plural})
}

fn user_info(user: &crate::request::UserInfo) -> Value {
    let mut info = json!({"username": user.name});
    if !user.uid.is_empty() {
        info["uid"] = json!(user.uid);
    }
    if !user.groups.is_empty() {
        info["groups"] = json!(user.groups);
    }
    if !user.extra.is_empty() {
        info["extra"] = json!(user.extra);
    }
    info
}

/// The whole question.
pub fn question(version: &str, request: &Value) -> Value {
    json!({"kind": "AdmissionReview", "apiVersion": format!("admission.k8s.io/{version}"), "request": request})
}

/// What a webhook said.
#[derive(Debug, PartialEq)]
pub struct Answer {
    pub allowed: bool,
    /// A `Status`, or null.
    pub status: Value,
    pub warnings: Vec<String>,
    /// For the audit log; keys without the hook's name.
    pub annotations: Vec<(String, String)>,
    /// The bytes of a JSON patch; empty for none.
    pub patch: Vec<u8>,
}

/// Checks an answer's form. Faults are worded as upstream's `VerifyAdmissionResponse`.
pub fn answer(version: &str, uid: &str, mutating: bool, review: &Value) -> Result<Answer, String> {
    let response = review.get("response").filter(|r| !r.is_null()).ok_or("webhook response was absent");
    let strict = version == "v1";
    let (api_version, kind) = (meta::str_at(review, &["apiVersion"]), meta::str_at(review, &["kind"]));
    if strict && (api_version, kind) != ("admission.k8s.io/v1", "AdmissionReview") {
        let expected = "admission.k8s.io/v1, Kind=AdmissionReview";
        let found = if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") };
        return Err(format!("expected webhook response of {expected}, got {found}, Kind={kind}"));
    }
    let response = response?;
    let found = meta::str_at(response, &["uid"]);
    if strict && found != uid {
        return Err(format!("expected response.uid={uid:?}, got {found:?}"));
    }
    let patch = STANDARD.decode(meta::str_at(response, &["patch"]).replace(['\n', '\r'], ""));
    let patch = patch.map_err(|error| format!("response.patch is not base64: {error}"))?;
    if strict {
        check_patch(mutating, !patch.is_empty(), response.get("patchType").and_then(Value::as_str))?;
    }
    Ok(Answer {
        allowed: response["allowed"] == true,
        status: response["status"].clone(),
        annotations: annotations(response),
        warnings: meta::strings(response.get("warnings")).into_iter().map(str::to_owned).collect(),
        patch,
    })
}

fn annotations(response: &Value) -> Vec<(String, String)> {
    let said = response.get("auditAnnotations").and_then(Value::as_object).into_iter().flatten();
    said.filter_map(|(key, value)| Some((key.clone(), value.as_str()?.to_owned()))).collect()
}

fn check_patch(mutating: bool, patched: bool, patch_type: Option<&str>) -> Result<(), String> {
    let fault = match (mutating, patched, patch_type) {
        (false, true, _) | (false, _, Some(_)) => {
            "validating webhook may not return response.patch or response.patchType"
        }
        (true, true, None) => "webhook returned response.patch but not response.patchType",
        (true, false, Some(_)) => "webhook returned response.patchType but not response.patch",
        (true, _, Some(kind)) if kind != "JSONPatch" => {
            return Err(format!("webhook returned invalid response.patchType of {kind:?}"));
        }
        _ => return Ok(()),
    };
    Err(fault.to_owned())
}
