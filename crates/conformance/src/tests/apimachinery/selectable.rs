//! Custom resources selected by their own fields, in two versions that a webhook converts.

use std::collections::BTreeSet;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};
use tokio::time::Instant;

use super::fields::established;
use super::{Server, await_conversion};
use crate::framework::*;

tests! {
    "[sig-api-machinery] CustomResourceFieldSelectors [Privileged:ClusterAdmin] CustomResourceFieldSelectors MUST list and watch custom resources matching the field selector [Conformance]" => selectors;
}

fn definition(cx: &Cx, server: &Server, plural: &str, kind: &str) -> Value {
    let version = |name: &str, fields: &[&str]| {
        let properties: serde_json::Map<String, Value> =
            fields.iter().map(|field| ((*field).to_owned(), json!({"type": "string"}))).collect();
        let selectable: Vec<Value> = fields.iter().map(|field| json!({"jsonPath": format!(".{field}")})).collect();
        json!({
            "name": name, "served": true, "storage": name == "v1", "selectableFields": selectable,
            "schema": {"openAPIV3Schema": {"type": "object", "properties": properties}},
        })
    };
    json!({
        "metadata": {"name": format!("{plural}.{}.example.com", cx.ns)},
        "spec": {
            "group": format!("{}.example.com", cx.ns), "scope": "Namespaced",
            "names": {"plural": plural, "singular": "selectable", "kind": kind, "listKind": format!("{kind}List")},
            "versions": [version("v1", &["hostPort"]), version("v2", &["host", "port"])],
            "conversion": {"strategy": "Webhook", "webhook": {
                "clientConfig": server.client_config("/crdconvert"), "conversionReviewVersions": ["v1"],
            }},
        },
    })
}

/// A watcher with a selector, and whom it saw come and go.
struct Seen {
    what: String,
    watch: Watch,
    added: BTreeSet<String>,
    deleted: BTreeSet<String>,
}

impl Seen {
    async fn start(api: &Api, selector: &str) -> Result<Self> {
        let watch = api.watch(&[("fieldSelector", selector)]).await?;
        let what = format!("{} with {selector}", api.kind.version);
        Ok(Seen { what, watch, added: BTreeSet::new(), deleted: BTreeSet::new() })
    }

    /// A watcher as an informer is one: from the revision of a list on.
    async fn after_list(api: &Api, selector: &str) -> Result<Self> {
        let query = [("fieldSelector", selector)];
        let list = api.list(&query).await?;
        ensure!(items(&list, "/items").is_empty(), "objects before any was made: {list}");
        let watch = api.watch_since(&list, &query).await?;
        let what = format!("{} with {selector}, after a list", api.kind.version);
        Ok(Seen { what, watch, added: BTreeSet::new(), deleted: BTreeSet::new() })
    }

    /// Reads events until exactly these have come and gone.
    async fn expect(&mut self, added: &[&str], deleted: &[&str]) -> Result<()> {
        let set = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<BTreeSet<_>>();
        let (added, deleted) = (set(added), set(deleted));
        let until = Instant::now() + SOON;
        while self.added != added || self.deleted != deleted {
            let event = self.watch.next(until.saturating_duration_since(Instant::now())).await;
            let seen = || format!("watch of {}: came {:?}, went {:?}", self.what, self.added, self.deleted);
            let event = event.with_context(seen)?.with_context(seen)?;
            match event.kind {
                "ADDED" => self.added.insert(name(&event.object).to_owned()),
                "DELETED" => self.deleted.insert(name(&event.object).to_owned()),
                _ => false,
            };
            let extra = !self.added.is_subset(&added) || !self.deleted.is_subset(&deleted);
            ensure!(!extra, "watch of {}: came {:?}, went {:?}", self.what, self.added, self.deleted);
        }
        Ok(())
    }
}

async fn listed(api: &Api, selector: &str, expected: &[&str]) -> Result<()> {
    let list = api.list(&[("fieldSelector", selector)]).await?;
    let names: Vec<&str> = items(&list, "/items").iter().map(name).collect();
    ensure!(names == expected, "{} with {selector}: listed {names:?}, expected {expected:?}", api.kind.version);
    Ok(())
}

async fn selectors(cx: Arc<Cx>) -> Result<()> {
    let server = Server::start(&cx).await?;
    let (plural, kind) = ("selectables", "Selectable");
    let made = cx.create_for_test(&kinds::CRD, &definition(&cx, &server, plural, kind)).await?;
    established(&cx, name(&made)).await?;
    let group = format!("{}.example.com", cx.ns);
    let v1 = cx.api(&Kind::custom(&group, "v1", kind, plural, true));
    let v2 = cx.api(&Kind::custom(&group, "v2", kind, plural, true));
    cx.step("waiting for the conversion webhook");
    // An empty list needs no conversion, so the probe is an object.
    let probe = retry(SOON, "an object", async || {
        v1.create(&json!({"metadata": {"generateName": "probe-"}, "hostPort": "probe:1"})).await
    });
    let probe = probe.await?;
    await_conversion(&v2).await?;
    v1.delete(name(&probe)).await?;
    v1.wait_gone(name(&probe), SOON).await?;

    cx.step("watching");
    let mut by_host = vec![Seen::start(&v2, "host=host1").await?, Seen::after_list(&v2, "host=host1").await?];
    let mut by_both = vec![
        Seen::start(&v2, "host=host1,port=80").await?,
        Seen::after_list(&v2, "host=host1,port=80").await?,
        Seen::start(&v1, "hostPort=host1:80").await?,
    ];
    for (name, host, port) in [("a", "host1", "80"), ("b", "host1", "8080"), ("c", "host2", "")] {
        let mut object = json!({"metadata": {"name": name}, "host": host});
        if !port.is_empty() {
            object["port"] = port.into();
        }
        v2.create(&object).await?;
    }
    cx.step("lists by field");
    listed(&v2, "host=host1", &["a", "b"]).await?;
    listed(&v2, "host=host1,port=80", &["a"]).await?;
    listed(&v1, "hostPort=host1:80", &["a"]).await?;
    listed(&v1, "hostPort=host1:8080", &["b"]).await?;
    cx.step("watches by field");
    for seen in &mut by_host {
        seen.expect(&["a", "b"], &[]).await?;
    }
    for seen in &mut by_both {
        seen.expect(&["a"], &[]).await?;
    }
    cx.step("one is deleted, one changes its host");
    v2.delete_collection(&[("fieldSelector", "host=host1,port=80")]).await?;
    v2.change("b", |object| object["host"] = "host2".into()).await?;
    listed(&v2, "host=host1", &[]).await?;
    listed(&v2, "host=host1,port=80", &[]).await?;
    for seen in &mut by_host {
        seen.expect(&["a", "b"], &["a", "b"]).await?;
    }
    for seen in &mut by_both {
        seen.expect(&["a"], &["a"]).await?;
    }
    Ok(())
}
