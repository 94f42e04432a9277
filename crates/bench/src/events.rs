//! A watch as a stream of events, of which only what rows ask for is read.

use anyhow::{Context as _, Result, bail};
use bytes::BytesMut;
use http_body_util::BodyExt as _;
use hyper::body::Incoming;
use serde::Deserialize;

use crate::client::{Call, Connection, Target, explain};

/// What a change tells of an object.
#[derive(Debug, Deserialize)]
pub struct Event {
    /// `ADDED`, `MODIFIED`, `DELETED`, `BOOKMARK` or `ERROR`
    #[serde(rename = "type")]
    pub kind: String,
    pub object: Object,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Object {
    pub metadata: Metadata,
    pub spec: Spec,
    pub status: Status,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Metadata {
    pub name: String,
    pub resource_version: String,
    /// Of a list that was cut short; not every server tells.
    pub remaining_item_count: Option<usize>,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default, rename_all = "camelCase")]
pub struct Spec {
    pub node_name: String,
}

#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct Status {
    pub phase: String,
    pub conditions: Vec<Condition>,
}

#[derive(Debug, Deserialize)]
pub struct Condition {
    #[serde(rename = "type")]
    pub kind: String,
    pub status: String,
}

impl Object {
    /// Whether the condition `Ready` is true, of a pod or a node.
    pub fn is_ready(&self) -> bool {
        self.status.conditions.iter().any(|condition| condition.kind == "Ready" && condition.status == "True")
    }
}

/// Objects of a collection and the version of the list.
#[derive(Debug, Default, Deserialize)]
#[serde(default)]
pub struct List {
    pub metadata: Metadata,
    pub items: Vec<Object>,
}

pub async fn list(connection: &mut Connection, path: &str) -> Result<List> {
    let response = connection.open(Call::get(path)).await?;
    if !response.status().is_success() {
        bail!("{}", explain(response).await);
    }
    Ok(serde_json::from_slice(&response.into_body().collect().await?.to_bytes())?)
}

/// An open watch. It ends when this goes.
pub struct Watch {
    body: Incoming,
    unread: BytesMut,
    _connection: Connection,
}

impl Watch {
    /// Watches the collection at `path` from `version` on (exclusive).
    pub async fn open(target: &Target, path: &str, version: &str) -> Result<Self> {
        let mut connection = target.connect().await?;
        let response = connection.open(Call::get(format!("{path}?watch=true&resourceVersion={version}"))).await?;
        if !response.status().is_success() {
            bail!("{}", explain(response).await);
        }
        Ok(Watch { body: response.into_body(), unread: BytesMut::new(), _connection: connection })
    }

    /// Watches from now on.
    pub async fn from_now(target: &Target, path: &str) -> Result<Self> {
        let now = list(&mut target.connect().await?, &format!("{path}?limit=1")).await?;
        Watch::open(target, path, &now.metadata.resource_version).await
    }

    /// The next event; fails when the watch ends.
    pub async fn next(&mut self) -> Result<Event> {
        loop {
            if let Some(end) = self.unread.iter().position(|byte| *byte == b'\n') {
                let line = self.unread.split_to(end + 1);
                let event: Event = serde_json::from_slice(&line)?;
                if event.kind == "ERROR" {
                    bail!("watch: {}", String::from_utf8_lossy(&line));
                }
                return Ok(event);
            }
            let frame = self.body.frame().await.context("a watch ended")??;
            if let Some(data) = frame.data_ref() {
                self.unread.extend_from_slice(data);
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_an_event_only_what_rows_need_is_read() {
        let line = r#"{"type":"MODIFIED","object":{"kind":"Pod","metadata":{"name":"a","resourceVersion":"7","labels":{}},
            "spec":{"nodeName":"n"},"status":{"phase":"Running","conditions":[{"type":"Ready","status":"True"}]}}}"#;
        let event: Event = serde_json::from_str(line).unwrap();
        assert_eq!((event.kind.as_str(), event.object.spec.node_name.as_str()), ("MODIFIED", "n"));
        assert!(event.object.is_ready());
        let bare: Event = serde_json::from_str(r#"{"type":"BOOKMARK","object":{}}"#).unwrap();
        assert!(!bare.object.is_ready());
    }
}
