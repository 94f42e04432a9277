//! Other servers' OpenAPI documents, among ours.

use std::collections::BTreeSet;
use std::sync::Arc;

use apimachinery::Value;
use futures::future::join_all;
use serde_json::{Map, json};

use super::{Aggregator, Remote, status};

/// What other servers publish, as far as they answer.
#[derive(Default)]
pub struct Published {
    /// Group and its server's document of version 2.
    v2: Vec<(String, Value)>,
    /// Path and entry of the index of version 3.
    v3: Map<String, Value>,
}

impl Aggregator {
    /// What all other servers publish; asked for once for each change of [`Aggregator::remotes`].
    pub async fn published(&self) -> Arc<Published> {
        let generation = self.generation();
        if let Some((of, published)) = &*self.published.lock()
            && *of == generation
        {
            return published.clone();
        }
        let remotes = self.remotes();
        let available = remotes.values().filter(|remote| remote.available);
        let asked = available.map(async |remote| {
            let v2 = fetch(self, remote, "/openapi/v2").await;
            let v3 = fetch(self, remote, "/openapi/v3").await;
            (remote, v2, v3)
        });
        let mut published = Published::default();
        let mut groups = BTreeSet::new();
        for (remote, v2, v3) in join_all(asked).await {
            let path = format!("apis/{}/{}", remote.group, remote.version);
            if let Some(entry) = v3.as_ref().and_then(|index| index["paths"].get(&path)) {
                published.v3.insert(path, entry.clone());
            }
            if let Some(document) = v2
                && groups.insert(&remote.group)
            {
                published.v2.push((remote.group.clone(), document));
            }
        }
        let published = Arc::new(published);
        *self.published.lock() = Some((generation, published.clone()));
        published
    }
}

async fn fetch(aggregator: &Aggregator, remote: &Remote, path: &str) -> Option<Value> {
    let client = aggregator.client(remote).ok()?;
    let (code, body) = status::get(&client, &remote.url(path), "application/json").await.ok()?;
    if code == 200 { serde_json::from_slice(&body).ok() } else { None }
}

impl Published {
    /// Adds the paths of other servers' groups to a document of version 2, with the definitions that it lacks.
    pub fn merge_v2(&self, document: &mut Value) {
        for (group, other) in &self.v2 {
            let ours = format!("/apis/{group}/");
            let of_group = |path: &str| path.starts_with(&ours);
            copy(other, document, "paths", of_group);
            copy(other, document, "definitions", |_| true);
        }
    }

    /// Adds other servers' group-versions to the index of version 3.
    pub fn merge_v3(&self, index: &mut Value) {
        for (path, entry) in &self.v3 {
            index["paths"][path] = entry.clone();
        }
    }
}

fn copy(from: &Value, to: &mut Value, key: &str, wanted: impl Fn(&str) -> bool) {
    if !to[key].is_object() {
        to[key] = json!({});
    }
    let Some(map) = to[key].as_object_mut() else { return };
    for (name, value) in from[key].as_object().into_iter().flatten().filter(|(name, _)| wanted(name)) {
        map.entry(name.clone()).or_insert_with(|| value.clone());
    }
}
