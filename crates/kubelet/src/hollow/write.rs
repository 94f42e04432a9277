//! The executor: carries writes out, and has no choices.

use http::{Method, Request, header};
use serde::Deserialize;
use serde_json::Value;

use super::fleet::Job;

const JSON: &str = "application/json";
pub const MERGE: &str = "application/merge-patch+json";
pub const STRATEGIC: &str = "application/strategic-merge-patch+json";

/// One request, or two that belong together.
pub struct Write {
    pub job: Job,
    pub first: Call,
    /// Sent when the first succeeded.
    pub second: Option<Call>,
}

pub struct Call {
    pub(super) method: Method,
    pub(super) path: String,
    media: &'static str,
    pub(super) body: Value,
}

impl Call {
    pub fn post(path: impl Into<String>, body: Value) -> Self {
        Call { method: Method::POST, path: path.into(), media: JSON, body }
    }

    pub fn put(path: impl Into<String>, body: Value) -> Self {
        Call { method: Method::PUT, path: path.into(), media: JSON, body }
    }

    pub fn patch(path: impl Into<String>, media: &'static str, body: Value) -> Self {
        Call { method: Method::PATCH, path: path.into(), media, body }
    }

    pub fn delete(path: impl Into<String>, body: Value) -> Self {
        Call { method: Method::DELETE, path: path.into(), media: JSON, body }
    }
}

/// What came of a write.
pub type Outcome = Result<Reply, kube::Error>;

/// What is read of the object in an answer.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Reply {
    pub metadata: ReplyMetadata,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct ReplyMetadata {
    pub resource_version: String,
}

pub async fn send(client: kube::Client, write: Write) -> (Job, Outcome) {
    let mut outcome = call(&client, write.first).await;
    if let (Ok(_), Some(second)) = (&outcome, write.second) {
        outcome = call(&client, second).await;
    }
    (write.job, outcome)
}

async fn call(client: &kube::Client, call: Call) -> Outcome {
    let request = Request::builder()
        .method(call.method)
        .uri(call.path)
        .header(header::CONTENT_TYPE, call.media)
        .body(call.body.to_string().into_bytes())
        .map_err(kube::Error::HttpError)?;
    client.request(request).await
}
