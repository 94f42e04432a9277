//! ConfigMaps and Secrets.

use std::sync::Arc;

use apimachinery::field::{Error, ErrorList, Path};
use apimachinery::{Value, meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use serde_json::json;

use super::common::{immutable, path_of};
use super::{Context, Family, Part, Strategy};

pub fn strategies() -> Family {
    vec![("", "configmaps", Arc::new(Config { secret: false })), ("", "secrets", Arc::new(Config { secret: true }))]
}

/// Upstream's `MaxSecretSize`, for both kinds.
const MAX_DATA_BYTES: usize = 1024 * 1024;

/// ConfigMap and Secret.
struct Config {
    secret: bool,
}

impl Strategy for Config {
    fn default(&self, object: &mut Value) {
        if !self.secret {
            return;
        }
        // Write-only convenience: plain text that becomes data.
        let plain = object.as_object_mut().and_then(|map| map.remove("stringData"));
        for (key, text) in plain.as_ref().and_then(Value::as_object).into_iter().flatten() {
            let encoded = STANDARD.encode(text.as_str().unwrap_or_default());
            meta::map_mut(object, "data").insert(key.clone(), json!(encoded));
        }
    }

    fn validate(&self, _cx: &Context<'_>, _part: Part, object: &Value, old: Option<&Value>) -> ErrorList {
        let mut errors = ErrorList::new();
        let mut size = 0;
        for list in ["data", "binaryData"] {
            for (key, value) in object.get(list).and_then(Value::as_object).into_iter().flatten() {
                let at = Path::new(list).key(key);
                if list == "data" && object.get("binaryData").is_some_and(|d| d.get(key).is_some()) {
                    let why = "duplicate of key present in binaryData";
                    errors.push(Error::invalid(&at, &json!(key), why));
                }
                let length = value.as_str().map_or(0, str::len);
                size += if self.secret || list == "binaryData" { length / 4 * 3 } else { length };
            }
        }
        if size > MAX_DATA_BYTES {
            let path = if self.secret { Path::new("data") } else { Path::root() };
            errors.push(Error::too_long(&path, MAX_DATA_BYTES));
        }
        if let Some(old) = old {
            self.validate_update(object, old, &mut errors);
        } else if self.secret {
            validate_secret_type(object, &mut errors);
        }
        errors
    }
}

impl Config {
    fn validate_update(&self, object: &Value, old: &Value, errors: &mut ErrorList) {
        if self.secret {
            immutable(object, old, &["type"], errors);
        }
        if old.get("immutable").and_then(Value::as_bool) != Some(true) {
            return;
        }
        let why = "field is immutable when `immutable` is set";
        if object.get("immutable").and_then(Value::as_bool) != Some(true) {
            errors.push(Error::forbidden(&Path::new("immutable"), why));
        }
        for key in ["data", "binaryData"] {
            if object.get(key) != old.get(key) {
                errors.push(Error::forbidden(&Path::new(key), why));
            }
        }
    }
}

/// What each built-in secret type must hold.
fn validate_secret_type(object: &Value, errors: &mut ErrorList) {
    let needs: &[&str] = match meta::str_at(object, &["type"]) {
        "kubernetes.io/dockercfg" => &[".dockercfg"],
        "kubernetes.io/dockerconfigjson" => &[".dockerconfigjson"],
        "kubernetes.io/ssh-auth" => &["ssh-privatekey"],
        "kubernetes.io/tls" => &["tls.crt", "tls.key"],
        "kubernetes.io/service-account-token" => {
            if meta::annotation(object, "kubernetes.io/service-account.name").is_none_or(str::is_empty) {
                let path = path_of(&["metadata", "annotations"]).key("kubernetes.io/service-account.name");
                errors.push(Error::required(&path, ""));
            }
            &[]
        }
        "kubernetes.io/basic-auth" => {
            let has = |key: &str| object.get("data").is_some_and(|d| d.get(key).is_some());
            if !has("username") && !has("password") {
                errors.push(Error::required(&Path::new("data").key("username"), ""));
                errors.push(Error::required(&Path::new("data").key("password"), ""));
            }
            &[]
        }
        _ => &[],
    };
    for key in needs {
        if object.get("data").is_none_or(|d| d.get(*key).is_none()) {
            errors.push(Error::required(&Path::new("data").key(key), ""));
        }
    }
}
