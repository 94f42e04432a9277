//! Conversion of custom resources by webhooks (`spec.conversion.strategy: Webhook`).

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use apimachinery::resource::ResourceRow;
use apimachinery::status::{Result, StatusError};
use apimachinery::{Value, meta};
use parking_lot::RwLock;
use serde_json::json;

use crate::backend::{Config, Failure};
use crate::server::ApiServer;

/// Upstream's client waits so long.
const TIMEOUT: Duration = Duration::from_secs(30);

/// Who converts objects of a definition.
#[derive(Debug, PartialEq, Eq)]
pub struct Webhook {
    client: Config,
    /// The first listed version of `ConversionReview` that we speak.
    review_version: Option<&'static str>,
}

impl Webhook {
    /// From a definition; none if its versions differ in their name only.
    pub fn of(definition: &Value) -> Option<Self> {
        let conversion = &definition["spec"]["conversion"];
        if conversion["strategy"] != "Webhook" {
            return None;
        }
        let listed = meta::strings(conversion["webhook"].get("conversionReviewVersions"));
        let review_version = listed.iter().find_map(|version| ["v1", "v1beta1"].into_iter().find(|v| v == version));
        Some(Webhook { client: Config::parse(&conversion["webhook"]["clientConfig"])?, review_version })
    }
}

/// Group and plural.
type Resource = (Box<str>, Box<str>);

/// The webhooks of all definitions that have one, by group and plural.
#[derive(Default)]
pub struct Conversions {
    any: AtomicBool,
    webhooks: RwLock<HashMap<Resource, Arc<Webhook>>>,
}

impl Conversions {
    /// Who converts objects of a row. Rows without a webhook cost one look at a flag.
    pub fn of(&self, row: &ResourceRow) -> Option<Arc<Webhook>> {
        if !row.custom || !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.webhooks.read().get(&(row.group.clone(), row.plural.clone())).cloned()
    }

    pub fn set(&self, group: &str, plural: &str, webhook: Option<Webhook>) {
        let mut webhooks = self.webhooks.write();
        let key = (group.into(), plural.into());
        match webhook {
            Some(webhook) => webhooks.insert(key, Arc::new(webhook)),
            None => webhooks.remove(&key),
        };
        self.any.store(!webhooks.is_empty(), Ordering::Release);
    }
}

/// Objects as the webhook makes them; none of them is in the wanted version already. `kind` is that of the object or of the list that
/// is converted, for the words of errors, which are upstream's.
pub async fn convert(
    server: &ApiServer,
    webhook: &Webhook,
    kind: &str,
    objects: Vec<Value>,
    api_version: &str,
) -> Result<Vec<Value>> {
    let from = objects.first().map(|object| meta::str_at(object, &["apiVersion"])).unwrap_or_default();
    let subject = format!("{from}, Kind={kind}");
    let failed = |why: String| unknown(format!("conversion webhook for {subject} failed: {why}"));
    let Some(version) = webhook.review_version else {
        return Err(unknown("no supported conversion review versions".to_owned()));
    };
    let uid = uuid::Uuid::new_v4().to_string();
    let question = json!({
        "kind": "ConversionReview", "apiVersion": format!("apiextensions.k8s.io/{version}"),
        "request": {"uid": uid, "desiredAPIVersion": api_version, "objects": objects},
    });
    let reply = server.webhooks.backends.ask(&webhook.client, &question, TIMEOUT).await;
    let reply = reply.map_err(|failure| match failure {
        Failure::Client(why) | Failure::Call(why) => failed(why),
    })?;
    let converted = answered(version, &uid, reply).map_err(failed)?;
    if converted.len() != objects.len() {
        let (found, expected) = (converted.len(), objects.len());
        return Err(unknown(format!("conversion webhook for {subject} returned {found} objects, expected {expected}")));
    }
    let pairs = objects.into_iter().zip(converted).enumerate();
    pairs
        .map(|(index, (before, after))| {
            restored(before, after, api_version).map_err(|why| {
                unknown(format!(
                    "conversion webhook for {subject} returned invalid converted object at index {index}: {why}"
                ))
            })
        })
        .collect()
}

/// Upstream has no reason to give for these.
fn unknown(message: String) -> StatusError {
    StatusError::new(500, "", message)
}

fn answered(version: &str, uid: &str, mut review: Value) -> Result<Vec<Value>, String> {
    let (api_version, kind) = (meta::str_at(&review, &["apiVersion"]), meta::str_at(&review, &["kind"]));
    if version == "v1" && (api_version, kind) != ("apiextensions.k8s.io/v1", "ConversionReview") {
        let found = if api_version.contains('/') { api_version.to_owned() } else { format!("/{api_version}") };
        return Err(format!(
            "expected webhook response of apiextensions.k8s.io/v1, Kind=ConversionReview, got {found}, Kind={kind}"
        ));
    }
    let response = &mut review["response"];
    if response.is_null() {
        return Err("no response provided".to_owned());
    }
    let found = meta::str_at(response, &["uid"]);
    if version == "v1" && found != uid {
        return Err(format!("expected response.uid={uid:?}, got {found:?}"));
    }
    let (status, message) =
        (meta::str_at(response, &["result", "status"]), meta::str_at(response, &["result", "message"]));
    match (status, message) {
        ("Success", _) => {}
        (status, "") => return Err(format!("response.result.status was '{status}', not 'Success'")),
        (_, message) => return Err(message.to_owned()),
    }
    match response["convertedObjects"].take() {
        Value::Array(objects) => Ok(objects),
        _ => Ok(Vec::new()),
    }
}

/// The converted object with the metadata that it had: a webhook may change labels and annotations, nothing else.
fn restored(before: Value, mut after: Value, api_version: &str) -> Result<Value, String> {
    let found = meta::str_at(&after, &["apiVersion"]);
    if found != api_version {
        return Err(format!("invalid groupVersion (expected {api_version}, received {found})"));
    }
    let (expected, found) = (meta::str_at(&before, &["kind"]), meta::str_at(&after, &["kind"]));
    if expected != found {
        return Err(format!("invalid kind (expected {expected}, received {found})"));
    }
    for (key, what) in [("name", "name"), ("namespace", "namespace"), ("uid", "UID")] {
        let (expected, found) = (meta::str_at(&before, &["metadata", key]), meta::str_at(&after, &["metadata", key]));
        if expected != found {
            return Err(format!("must have the same {what}: {expected} != {found}"));
        }
    }
    let mut metadata = before["metadata"].clone();
    for key in ["labels", "annotations"] {
        if let Some(map) = metadata.as_object_mut() {
            map.remove(key);
        }
        match after.pointer_mut(&format!("/metadata/{key}")).map(Value::take) {
            None | Some(Value::Null) => {}
            Some(Value::Object(texts)) if texts.values().all(Value::is_string) => metadata[key] = Value::Object(texts),
            Some(_) => return Err(format!("invalid metadata of type {key} in object")),
        }
    }
    after["metadata"] = metadata;
    Ok(after)
}
