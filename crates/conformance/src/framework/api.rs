//! The API of one kind, with dynamic objects.

use anyhow::{Context as _, Result, anyhow, bail};
use http::Request;
use kube::Client;
use kube::core::Status;
use percent_encoding::{NON_ALPHANUMERIC, utf8_percent_encode};
use serde_json::{Value, json};

use super::kinds::Kind;

/// Objects of one kind in one namespace, or in all.
#[derive(Clone)]
pub struct Api {
    pub client: Client,
    pub kind: Kind,
    pub namespace: Option<String>,
}

/// The content types of patches.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Patch {
    Json,
    Merge,
    Strategic,
    Apply,
}

impl Patch {
    fn content_type(self) -> &'static str {
        match self {
            Patch::Json => "application/json-patch+json",
            Patch::Merge => "application/merge-patch+json",
            Patch::Strategic => "application/strategic-merge-patch+json",
            Patch::Apply => "application/apply-patch+yaml",
        }
    }
}

/// Query parameters.
pub type Query<'a> = &'a [(&'a str, &'a str)];

/// The query of a list or watch of objects with a label.
pub fn labelled(selector: &str) -> [(&str, &str); 1] {
    [("labelSelector", selector)]
}

/// The field selector of one object.
pub fn named(name: &str) -> String {
    format!("metadata.name={name}")
}

impl Api {
    pub fn new(client: &Client, kind: &Kind, namespace: Option<&str>) -> Self {
        Api { client: client.clone(), kind: kind.clone(), namespace: namespace.map(str::to_owned) }
    }

    /// The path of the collection, or of an object, or of what is below an object.
    pub fn path(&self, below: &[&str]) -> String {
        let mut path = self.kind.root();
        if let Some(namespace) = &self.namespace {
            path.push_str(&format!("/namespaces/{namespace}"));
        }
        path.push('/');
        path.push_str(&self.kind.plural);
        for part in below {
            path.push('/');
            path.push_str(part);
        }
        path
    }

    /// Sends a request and returns the answer's object.
    pub async fn send(&self, method: &str, below: &[&str], query: Query<'_>, body: Option<&Value>) -> Result<Value> {
        let bytes = body.map(serde_json::to_vec).transpose()?.unwrap_or_default();
        self.send_as(method, below, query, "application/json", bytes).await
    }

    async fn send_as(
        &self,
        method: &str,
        below: &[&str],
        query: Query<'_>,
        content_type: &str,
        body: Vec<u8>,
    ) -> Result<Value> {
        let uri = with_query(&self.path(below), query);
        let request = Request::builder().method(method).uri(&uri).header("content-type", content_type).body(body)?;
        self.client.request(request).await.with_context(|| format!("{method} {uri}"))
    }

    /// The object with what the kind and the namespace say filled in.
    fn complete(&self, object: &Value) -> Value {
        let mut object = object.clone();
        if object.get("kind").is_none() {
            object["apiVersion"] = self.kind.api_version().into();
            object["kind"] = self.kind.kind.as_ref().into();
        }
        object
    }

    pub async fn create(&self, object: &Value) -> Result<Value> {
        self.create_with(object, &[]).await
    }

    pub async fn create_with(&self, object: &Value, query: Query<'_>) -> Result<Value> {
        self.send("POST", &[], query, Some(&self.complete(object))).await
    }

    pub async fn get(&self, name: &str) -> Result<Value> {
        self.send("GET", &[name], &[], None).await
    }

    /// The object, or none where there is none.
    pub async fn find(&self, name: &str) -> Result<Option<Value>> {
        match self.get(name).await {
            Ok(object) => Ok(Some(object)),
            Err(error) if failure(&error).is_some_and(|status| status.code == 404) => Ok(None),
            Err(error) => Err(error),
        }
    }

    /// The list object.
    pub async fn list(&self, query: Query<'_>) -> Result<Value> {
        self.send("GET", &[], query, None).await
    }

    /// Replaces a subresource of an object (PUT).
    pub async fn update_sub(&self, sub: &str, object: &Value) -> Result<Value> {
        self.send("PUT", &[super::name(object), sub], &[], Some(&self.complete(object))).await
    }

    /// Reads, changes and replaces, again as long as somebody else writes in between.
    pub async fn change(&self, name: &str, change: impl Fn(&mut Value)) -> Result<Value> {
        self.change_sub(name, None, change).await
    }

    /// The same with a subresource. A status is written into the object as read, as typed clients do.
    pub async fn change_sub(&self, name: &str, sub: Option<&str>, change: impl Fn(&mut Value)) -> Result<Value> {
        let below: Vec<&str> = [Some(name), sub].into_iter().flatten().collect();
        let read = if sub == Some("status") { &below[..1] } else { &below[..] };
        let mut last = anyhow!("never tried");
        for _ in 0..20 {
            let mut object = self.send("GET", read, &[], None).await?;
            change(&mut object);
            match self.send("PUT", &below, &[], Some(&object)).await {
                Err(error) if failure(&error).is_some_and(|status| status.code == 409) => last = error,
                other => return other,
            }
        }
        Err(last.context("conflicts without end"))
    }

    pub async fn patch(&self, name: &str, kind: Patch, patch: &Value) -> Result<Value> {
        self.patch_with(&[name], kind, patch, &[]).await
    }

    pub async fn patch_sub(&self, name: &str, sub: &str, kind: Patch, patch: &Value) -> Result<Value> {
        self.patch_with(&[name, sub], kind, patch, &[]).await
    }

    pub async fn patch_with(&self, below: &[&str], kind: Patch, patch: &Value, query: Query<'_>) -> Result<Value> {
        let patch = if kind == Patch::Apply { self.complete(patch) } else { patch.clone() };
        let mut query = query.to_vec();
        if kind == Patch::Apply && !query.iter().any(|(key, _)| *key == "fieldManager") {
            query.push(("fieldManager", "conformance"));
        }
        self.send_as("PATCH", below, &query, kind.content_type(), serde_json::to_vec(&patch)?).await
    }

    /// Sends a body as it is, for those that no JSON library would write.
    pub async fn send_text(
        &self,
        method: &str,
        below: &[&str],
        query: Query<'_>,
        content_type: &str,
        body: &str,
    ) -> Result<Value> {
        self.send_as(method, below, query, content_type, body.as_bytes().to_vec()).await
    }

    pub async fn delete(&self, name: &str) -> Result<Value> {
        self.delete_with(name, &json!({})).await
    }

    /// Deletes with `DeleteOptions`.
    pub async fn delete_with(&self, name: &str, options: &Value) -> Result<Value> {
        self.send("DELETE", &[name], &[], Some(options)).await
    }

    pub async fn delete_collection(&self, query: Query<'_>) -> Result<Value> {
        self.delete_collection_with(query, &json!({})).await
    }

    /// Deletes a collection with `DeleteOptions`, which count only in the body.
    pub async fn delete_collection_with(&self, query: Query<'_>, options: &Value) -> Result<Value> {
        self.send("DELETE", &[], query, Some(options)).await
    }

    /// A subresource whose answer is text, such as a pod's log.
    pub async fn text(&self, below: &[&str], query: Query<'_>) -> Result<String> {
        let uri = with_query(&self.path(below), query);
        let request = Request::get(&uri).body(Vec::new())?;
        self.client.request_text(request).await.with_context(|| format!("GET {uri}"))
    }
}

/// A path with a query string.
pub fn with_query(path: &str, query: Query<'_>) -> String {
    let mut uri = path.to_owned();
    for (index, (key, value)) in query.iter().enumerate() {
        uri.push(if index == 0 { '?' } else { '&' });
        uri.push_str(&format!("{key}={}", utf8_percent_encode(value, NON_ALPHANUMERIC)));
    }
    uri
}

/// The API's answer behind an error, where the error is one.
pub fn failure(error: &anyhow::Error) -> Option<&Status> {
    error.chain().find_map(|cause| match cause.downcast_ref::<kube::Error>() {
        Some(kube::Error::Api(status)) => Some(status.as_ref()),
        _ => None,
    })
}

/// The request must have been refused with this code; returns the answer.
pub fn expect_failure(result: Result<Value>, code: u16, what: &str) -> Result<Status> {
    match result {
        Ok(object) => bail!("{what}: accepted as {}, expected failure {code}", super::brief(&object)),
        Err(error) => match failure(&error) {
            Some(status) if status.code == code => Ok(status.clone()),
            Some(status) => bail!("{what}: failed with {} {}, expected {code}", status.code, status.message),
            None => Err(error.context(what.to_owned())),
        },
    }
}
