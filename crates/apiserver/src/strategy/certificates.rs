//! Certificate signing requests: who asks is what the server saw, approval and signing are two people's work.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::{Map, json};
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::prelude::FromDer as _;

use super::common::{copy_field, items, path_of};
use super::{Context, Family, Part, Strategy};
use crate::registry::timestamp;

pub fn strategies() -> Family {
    vec![("certificates.k8s.io", "certificatesigningrequests", Arc::new(Requests))]
}

struct Requests;

/// Conditions that decide. They are set through `approval` (the first two) or by the signer, and never taken back.
const APPROVED: &str = "Approved";
const DENIED: &str = "Denied";
const FAILED: &str = "Failed";

impl Strategy for Requests {
    fn prepare_create(&self, cx: &Context<'_>, object: &mut Value) {
        let spec = meta::map_mut(object, "spec");
        let user = cx.user;
        let mut set = |key: &str, value: Value, given: bool| match given {
            true => spec.insert(key.to_owned(), value),
            false => spec.remove(key),
        };
        set("username", json!(user.name), !user.name.is_empty());
        set("uid", json!(user.uid), !user.uid.is_empty());
        set("groups", json!(user.groups), !user.groups.is_empty());
        set("extra", json!(user.extra), !user.extra.is_empty());
    }

    fn prepare_update(&self, cx: &Context<'_>, part: Part, object: &mut Value, old: &Value) {
        object["spec"] = old["spec"].clone();
        match part {
            Part::Main => object["status"] = old["status"].clone(),
            Part::Other("approval") => {
                let conditions = object["status"].get("conditions").cloned();
                object["status"] = old["status"].clone();
                if let Some(conditions) = conditions {
                    meta::map_mut(object, "status").insert("conditions".to_owned(), conditions);
                }
                date_conditions(cx.now, object, old);
            }
            _ => {
                keep_decisions(object, old);
                date_conditions(cx.now, object, old);
            }
        }
    }

    fn validate(&self, _cx: &Context<'_>, part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        validate_request(object, &mut errors);
        let Some(old) = old else { return errors };
        validate_conditions(object, &mut errors);
        if part == Part::Main {
            return errors;
        }
        let path = path_of(&["status", "conditions"]);
        for kind in [APPROVED, DENIED, FAILED] {
            let (before, after) = (of_kind(old, kind), of_kind(object, kind));
            // A failure may come with the signer's status, a decision only with its approval.
            let may_add = kind == FAILED || part == Part::Other("approval");
            if !before.is_empty() && before != after {
                errors.push(Error::forbidden(&path, &format!("updates may not remove a condition of type {kind:?}")));
            } else if before.is_empty() && !after.is_empty() && !may_add {
                errors.push(Error::forbidden(&path, &format!("updates may not add a condition of type {kind:?}")));
            }
        }
        let certificate = |object: &'_ Value| meta::str_at(object, &["status", "certificate"]).to_owned();
        let (before, after) = (certificate(old), certificate(object));
        if !before.is_empty() && before != after {
            let why = "updates may not change certificate content";
            errors.push(Error::forbidden(&path_of(&["status", "certificate"]), why));
        }
        errors
    }
}

fn of_kind<'a>(object: &'a Value, kind: &str) -> Vec<&'a Value> {
    items(&object["status"], "conditions").filter(|c| c["type"] == *kind).collect()
}

/// A signer that has not seen the newest approval does not take it away by leaving it out.
fn keep_decisions(object: &mut Value, old: &Value) {
    for kind in [APPROVED, DENIED, FAILED] {
        let missing: Vec<Value> = match of_kind(object, kind).as_slice() {
            [] => of_kind(old, kind).into_iter().cloned().collect(),
            _ => continue,
        };
        if missing.is_empty() {
            continue;
        }
        let conditions = meta::map_mut(object, "status").entry("conditions").or_insert_with(|| json!([]));
        conditions.as_array_mut().into_iter().for_each(|list| list.extend(missing.iter().cloned()));
    }
}

/// `populateConditionTimestamps`
fn date_conditions(now: i64, object: &mut Value, old: &Value) {
    let now = json!(timestamp(now));
    let Some(list) = object.pointer_mut("/status/conditions").and_then(Value::as_array_mut) else { return };
    let absent = |c: &Value, key: &str| c.get(key).is_none_or(Value::is_null);
    for condition in list {
        if absent(condition, "lastUpdateTime") {
            condition["lastUpdateTime"] = now.clone();
        }
        if !absent(condition, "lastTransitionTime") {
            continue;
        }
        let same = |c: &&Value| c["type"] == condition["type"] && c["status"] == condition["status"];
        match items(&old["status"], "conditions").find(same).filter(|c| !absent(c, "lastTransitionTime")).cloned() {
            Some(known) => copy_field(&known, condition, "lastTransitionTime"),
            None => condition["lastTransitionTime"] = now.clone(),
        }
    }
}

/// The request must be a certificate request whose signature proves the key.
fn validate_request(object: &Value, errors: &mut ErrorList) {
    let request = meta::str_at(object, &["spec", "request"]);
    if request.is_empty() {
        return;
    }
    if let Err(why) = check_request(request) {
        errors.push(Error::invalid(&path_of(&["spec", "request"]), &json!(request), &why));
    }
    let usages: Vec<&Value> = items(&object["spec"], "usages").collect();
    for (index, usage) in usages.iter().enumerate() {
        let at = path_of(&["spec", "usages"]).index(index);
        if !usage.as_str().is_some_and(|u| USAGES.contains(&u)) {
            errors.push(Error::not_supported(&at, usage, &USAGES));
        }
        if usages[..index].contains(usage) {
            errors.push(Error::duplicate(&at, usage));
        }
    }
    validate_signer(meta::str_at(object, &["spec", "signerName"]), errors);
}

fn check_request(text: &str) -> Result<(), String> {
    let pem = STANDARD.decode(text).map_err(|error| error.to_string())?;
    let (_, block) =
        x509_parser::pem::parse_x509_pem(&pem).map_err(|_| "PEM block type must be CERTIFICATE REQUEST".to_owned())?;
    if block.label != "CERTIFICATE REQUEST" {
        return Err("PEM block type must be CERTIFICATE REQUEST".to_owned());
    }
    let (_, request) = X509CertificationRequest::from_der(&block.contents).map_err(|error| error.to_string())?;
    request.verify_signature().map_err(|error| error.to_string())
}

/// `domain/path`, the domain with at least one dot.
fn validate_signer(name: &str, errors: &mut ErrorList) {
    let path = path_of(&["spec", "signerName"]);
    let fits = |(domain, rest): (&str, &str)| {
        domain.contains('.')
            && apimachinery::names::dns1123_subdomain(domain).is_empty()
            && !rest.is_empty()
            && rest.split('.').all(|part| apimachinery::names::dns1123_subdomain(part).is_empty())
    };
    if !name.is_empty() && !name.split_once('/').is_some_and(fits) {
        let why = "must be a fully qualified domain and path of the form 'example.com/signer-name'";
        errors.push(Error::invalid(&path, &json!(name), why));
    }
    if name == "kubernetes.io/legacy-unknown" {
        let why = "the legacy signerName is not allowed via this API version";
        errors.push(Error::invalid(&path, &json!(name), why));
    }
}

const USAGES: [&str; 23] = [
    "any",
    "cert sign",
    "client auth",
    "code signing",
    "content commitment",
    "crl sign",
    "data encipherment",
    "decipher only",
    "digital signature",
    "email protection",
    "encipher only",
    "ipsec end system",
    "ipsec tunnel",
    "ipsec user",
    "key agreement",
    "key encipherment",
    "microsoft sgc",
    "netscape sgc",
    "ocsp signing",
    "s/mime",
    "server auth",
    "signing",
    "timestamping",
];

fn validate_conditions(object: &Value, errors: &mut ErrorList) {
    let path = path_of(&["status", "conditions"]);
    let mut seen: Map<String, Value> = Map::new();
    for (index, condition) in items(&object["status"], "conditions").enumerate() {
        let (at, kind) = (path.index(index), meta::str_at(condition, &["type"]));
        if matches!(kind, APPROVED | DENIED | FAILED) && condition["status"] != "True" {
            errors.push(Error::not_supported(&at.child("status"), &condition["status"], &["True"]));
        }
        let rival = match kind {
            APPROVED => DENIED,
            DENIED => APPROVED,
            _ => "",
        };
        if seen.contains_key(rival) {
            let why = "Approved and Denied conditions are mutually exclusive";
            errors.push(Error::invalid(&at.child("type"), &json!(kind), why));
        }
        if seen.insert(kind.to_owned(), Value::Null).is_some() {
            errors.push(Error::duplicate(&at.child("type"), &json!(kind)));
        }
    }
    let certificate = meta::str_at(object, &["status", "certificate"]);
    if !certificate.is_empty() && !is_chain(certificate) {
        let why = "must contain one or more PEM blocks";
        errors.push(Error::invalid(&Path::new("status").child("certificate"), &json!("<certificate data>"), why));
    }
}

fn is_chain(text: &str) -> bool {
    let Ok(pem) = STANDARD.decode(text) else { return false };
    let mut blocks = x509_parser::pem::Pem::iter_from_buffer(&pem).peekable();
    blocks.peek().is_some()
        && blocks.all(|block| block.is_ok_and(|b| b.label == "CERTIFICATE" && b.parse_x509().is_ok()))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn decisions_are_kept_dated_and_exclusive() {
        let approved = json!({"type": APPROVED, "status": "True"});
        let old = json!({"spec": {}, "status": {"conditions": [approved]}});
        let mut signed = json!({"status": {"certificate": "x"}});
        keep_decisions(&mut signed, &old);
        date_conditions(0, &mut signed, &old);
        assert_eq!(signed["status"]["conditions"][0]["lastUpdateTime"], "1970-01-01T00:00:00Z");
        let both = json!({"status": {"conditions": [approved, {"type": DENIED, "status": "True"}]}});
        let mut errors = ErrorList::new();
        validate_conditions(&both, &mut errors);
        assert_eq!(
            errors[0].to_string(),
            "status.conditions[1].type: Invalid value: \"Denied\": Approved and Denied conditions are mutually exclusive"
        );
    }

    #[test]
    fn signers_and_requests_are_what_they_should_be() {
        let signer = |name: &str| {
            let mut errors = ErrorList::new();
            validate_signer(name, &mut errors);
            errors.len()
        };
        assert_eq!(signer("kubernetes.io/kubelet-serving"), 0);
        assert_eq!((signer("kubernetes/x"), signer("plain"), signer("kubernetes.io/legacy-unknown")), (1, 1, 1));
        assert_eq!(check_request("bm8=").unwrap_err(), "PEM block type must be CERTIFICATE REQUEST");
    }
}
