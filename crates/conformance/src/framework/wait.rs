//! Waiting for the cluster by list and watch.

use std::pin::Pin;
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use futures::{Stream, StreamExt as _};
use http::Request;
use kube::core::WatchEvent;
use serde_json::Value;
use tokio::time::Instant;

use super::api::{Api, Query, failure, named, with_query};
use super::{Objects, name, resource_version, text};

/// An event of a watch.
#[derive(Clone, Debug)]
pub struct Event {
    /// ADDED, MODIFIED, DELETED or BOOKMARK
    pub kind: &'static str,
    pub object: Value,
}

/// A watch from some revision on.
pub struct Watch {
    events: Pin<Box<dyn Stream<Item = Result<Event>> + Send>>,
}

/// "Not yet", with the reason, or done.
type Look<'a> = &'a mut (dyn FnMut(&Objects) -> Result<(), String> + Send);

impl Watch {
    /// The next event; none at the watch's end. Fails where nothing comes within the limit.
    pub async fn next(&mut self, limit: Duration) -> Result<Option<Event>> {
        match tokio::time::timeout(limit, self.events.next()).await {
            Ok(event) => event.transpose(),
            Err(_) => bail!("no event within {} s", limit.as_secs()),
        }
    }

    /// The next event that fits. The events that did not are said where none does within the limit.
    pub async fn expect(
        &mut self,
        kind: &str,
        what: &str,
        limit: Duration,
        fits: impl Fn(&Value) -> bool + Send,
    ) -> Result<Value> {
        let until = Instant::now() + limit;
        let mut seen = Vec::new();
        loop {
            let left = until.saturating_duration_since(Instant::now());
            let event = self.next(left).await;
            let event = event.with_context(|| format!("waiting for {kind} of {what}; seen {seen:?}"))?;
            let event = event.with_context(|| format!("the watch ended before {kind} of {what}; seen {seen:?}"))?;
            if event.kind == kind && fits(&event.object) {
                return Ok(event.object);
            }
            seen.push(format!("{} {}", event.kind, name(&event.object)));
        }
    }
}

impl Api {
    /// Watches from the revision in the query, or from now on with what there is first.
    pub async fn watch(&self, query: Query<'_>) -> Result<Watch> {
        let mut query = query.to_vec();
        query.push(("watch", "true"));
        let uri = with_query(&self.path(&[]), &query);
        let stream = self.client.request_events::<Value>(Request::get(&uri).body(Vec::new())?).await;
        let stream = stream.with_context(|| format!("GET {uri}"))?;
        let events = stream.map(|event| match event? {
            WatchEvent::Added(object) => Ok(Event { kind: "ADDED", object }),
            WatchEvent::Modified(object) => Ok(Event { kind: "MODIFIED", object }),
            WatchEvent::Deleted(object) => Ok(Event { kind: "DELETED", object }),
            WatchEvent::Bookmark(bookmark) => Ok(Event { kind: "BOOKMARK", object: serde_json::to_value(bookmark)? }),
            WatchEvent::Error(status) => Err(anyhow::Error::new(kube::Error::Api(status)).context("the watch failed")),
        });
        Ok(Watch { events: Box::pin(events) })
    }

    /// Watches what changes after a list or an object was read.
    pub async fn watch_since(&self, seen: &Value, query: Query<'_>) -> Result<Watch> {
        let mut query = query.to_vec();
        query.push(("resourceVersion", resource_version(seen)));
        self.watch(&query).await
    }

    /// Waits until the objects that the query selects are as wished; `look` says what is missing. Returns them.
    pub async fn wait(
        &self,
        query: Query<'_>,
        limit: Duration,
        what: &str,
        mut look: impl FnMut(&Objects) -> Result<(), String> + Send,
    ) -> Result<Objects> {
        self.wait_dyn(query, limit, what, &mut look).await
    }

    async fn wait_dyn(&self, query: Query<'_>, limit: Duration, what: &str, look: Look<'_>) -> Result<Objects> {
        let mut missing = String::from("nothing seen");
        match tokio::time::timeout(limit, self.follow(query, look, &mut missing)).await {
            Ok(result) => result.with_context(|| format!("waiting for {what}")),
            Err(_) => Err(anyhow!("{what}: not within {} s: {missing}", limit.as_secs())),
        }
    }

    /// Lists and watches, again whenever a watch ends, until `look` is content.
    async fn follow(&self, query: Query<'_>, look: Look<'_>, missing: &mut String) -> Result<Objects> {
        loop {
            let list = self.list(query).await?;
            let listed = super::items(&list, "/items").iter();
            let mut objects: Objects = listed.map(|object| (self.key(object), object.clone())).collect();
            match look(&objects) {
                Ok(()) => return Ok(objects),
                Err(reason) => *missing = reason,
            }
            let mut watch = self.watch_since(&list, query).await?;
            while let Some(event) = watch.events.next().await {
                let event = match event {
                    Ok(event) => event,
                    // The revision is gone: list again.
                    Err(error) if failure(&error).is_some_and(|status| status.code == 410) => break,
                    Err(error) => return Err(error),
                };
                match event.kind {
                    "BOOKMARK" => continue,
                    "DELETED" => objects.remove(&self.key(&event.object)),
                    _ => objects.insert(self.key(&event.object), event.object),
                };
                match look(&objects) {
                    Ok(()) => return Ok(objects),
                    Err(reason) => *missing = reason,
                }
            }
        }
    }

    fn key(&self, object: &Value) -> String {
        if self.kind.namespaced && self.namespace.is_none() {
            return format!("{}/{}", text(object, "/metadata/namespace"), name(object));
        }
        name(object).to_owned()
    }

    /// Waits until the object of a name exists and is as wished. Returns it.
    pub async fn wait_one(
        &self,
        name: &str,
        limit: Duration,
        what: &str,
        mut look: impl FnMut(&Value) -> Result<(), String> + Send,
    ) -> Result<Value> {
        let kind = self.kind.kind.clone();
        let mut see = |objects: &Objects| match objects.values().next() {
            Some(object) => look(object),
            None => Err(format!("there is no {kind} {name}")),
        };
        let selector = named(name);
        let objects = self.wait_dyn(&[("fieldSelector", &selector)], limit, what, &mut see).await?;
        objects.into_values().next().context("seen, but not there")
    }

    /// Waits until there is no object of the name.
    pub async fn wait_gone(&self, name: &str, limit: Duration) -> Result<()> {
        let what = format!("{} {name} gone", self.kind.kind);
        let mut see = |objects: &Objects| match objects.values().next() {
            Some(object) => Err(format!("it is there, with finalizers {}", super::at(object, "/metadata/finalizers"))),
            None => Ok(()),
        };
        let selector = named(name);
        self.wait_dyn(&[("fieldSelector", &selector)], limit, &what, &mut see).await?;
        Ok(())
    }

    /// Waits until the query selects nothing.
    pub async fn wait_none(&self, query: Query<'_>, limit: Duration) -> Result<()> {
        let what = format!("no {} left", self.kind.plural);
        let mut see = |objects: &Objects| {
            super::when(objects.is_empty(), || format!("there are {:?}", objects.keys().collect::<Vec<_>>()))
        };
        self.wait_dyn(query, limit, &what, &mut see).await?;
        Ok(())
    }
}

/// Tries again every quarter of a second until it succeeds: for what cannot be watched.
pub async fn retry<T, F>(limit: Duration, what: &str, mut attempt: impl FnMut() -> F) -> Result<T>
where
    F: Future<Output = Result<T>>,
{
    let until = Instant::now() + limit;
    loop {
        match attempt().await {
            Ok(value) => return Ok(value),
            Err(error) if Instant::now() >= until => {
                return Err(error.context(format!("{what}: not within {} s", limit.as_secs())));
            }
            Err(_) => tokio::time::sleep(Duration::from_millis(250)).await,
        }
    }
}
