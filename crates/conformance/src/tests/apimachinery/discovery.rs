//! Discovery: the plain documents and the aggregated ones.

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Result, bail, ensure};
use http::Request;
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-api-machinery] AggregatedDiscovery should support aggregated discovery interface [Conformance]" => interface;
    "[sig-api-machinery] AggregatedDiscovery should support aggregated discovery interface for CRDs [Conformance]" => interface_for_crds;
    "[sig-api-machinery] AggregatedDiscovery should support raw aggregated discovery endpoint Accept headers [Conformance]" => raw;
    "[sig-api-machinery] AggregatedDiscovery should support raw aggregated discovery request for CRDs [Conformance]" => raw_for_crds;
    "[sig-api-machinery] Discovery should locate the groupVersion and a resource within each APIGroup [Conformance]" => every_group;
}

const AGGREGATED: &str = "application/json;g=apidiscovery.k8s.io;v=v2;as=APIGroupDiscoveryList";

/// How long upstream waits for a new definition to be in discovery.
const APPEARS: Duration = Duration::from_secs(30);

/// Group, version and resource of kinds that must be there.
const EXPECTED: &[(&str, &str, &str)] = &[
    ("", "v1", "namespaces"),
    ("admissionregistration.k8s.io", "v1", "validatingwebhookconfigurations"),
    ("apiextensions.k8s.io", "v1", "customresourcedefinitions"),
    ("apiregistration.k8s.io", "v1", "apiservices"),
    ("apps", "v1", "deployments"),
    ("authentication.k8s.io", "v1", "tokenreviews"),
    ("authorization.k8s.io", "v1", "selfsubjectaccessreviews"),
    ("autoscaling", "v1", "horizontalpodautoscalers"),
    ("autoscaling", "v2", "horizontalpodautoscalers"),
    ("batch", "v1", "jobs"),
    ("certificates.k8s.io", "v1", "certificatesigningrequests"),
    ("coordination.k8s.io", "v1", "leases"),
    ("discovery.k8s.io", "v1", "endpointslices"),
    ("events.k8s.io", "v1", "events"),
    ("networking.k8s.io", "v1", "ingresses"),
    ("node.k8s.io", "v1", "runtimeclasses"),
    ("policy", "v1", "poddisruptionbudgets"),
    ("scheduling.k8s.io", "v1", "priorityclasses"),
    ("storage.k8s.io", "v1", "csinodes"),
];

/// Group, version and resource of everything in a document.
type Served = BTreeSet<(String, String, String)>;

fn served(document: &Value) -> Served {
    let mut served = Served::new();
    for group in items(document, "/items") {
        for version in items(group, "/versions") {
            for resource in items(version, "/resources") {
                let (version, resource) = (text(version, "/version"), text(resource, "/resource"));
                served.insert((name(group).to_owned(), version.to_owned(), resource.to_owned()));
            }
        }
    }
    served
}

fn has(served: &Served, (group, version, resource): (&str, &str, &str)) -> bool {
    served.contains(&(group.to_owned(), version.to_owned(), resource.to_owned()))
}

async fn document(cx: &Cx, path: &str, accept: &str) -> Result<Value> {
    let request = Request::get(path).header("accept", accept).body(Vec::new())?;
    Ok(cx.client.request(request).await?)
}

/// Asks for the aggregated form; anything else is a failure.
async fn aggregated(cx: &Cx, path: &str) -> Result<Served> {
    let document = document(cx, path, AGGREGATED).await?;
    expect(&document, "/kind", "APIGroupDiscoveryList")?;
    expect(&document, "/apiVersion", "apidiscovery.k8s.io/v2")?;
    Ok(served(&document))
}

async fn raw(cx: Arc<Cx>) -> Result<()> {
    let (groups, core) = (aggregated(&cx, "/apis").await?, aggregated(&cx, "/api").await?);
    for expected in EXPECTED {
        let from = if expected.0.is_empty() { &core } else { &groups };
        ensure!(has(from, *expected), "{expected:?} is not in the aggregated document");
    }
    Ok(())
}

/// What the client's discovery makes of the aggregated documents, offering the plain form as well as clients do.
async fn client_view(cx: &Cx) -> Result<Served> {
    let mut all = Served::new();
    for list in [cx.client.list_core_api_versions_aggregated().await?, cx.client.list_api_groups_aggregated().await?] {
        all.extend(served(&serde_json::to_value(list)?));
    }
    Ok(all)
}

async fn interface(cx: Arc<Cx>) -> Result<()> {
    let all = client_view(&cx).await?;
    for expected in EXPECTED {
        ensure!(has(&all, *expected), "{expected:?} is not in what the client discovered");
    }
    Ok(())
}

/// Makes a definition with a group of its own, and says what it serves.
async fn new_definition(cx: &Cx) -> Result<(String, String, String)> {
    let group = format!("{}.example.com", cx.unique("group"));
    let schema = json!({"type": "object", "x-kubernetes-preserve-unknown-fields": true});
    let definition = json!({
        "metadata": {"name": format!("testcrds.{group}")},
        "spec": {
            "group": group, "scope": "Namespaced",
            "names": {"plural": "testcrds", "singular": "testcrd", "kind": "testcrd", "listKind": "testcrdList"},
            "versions": [{"name": "v1", "served": true, "storage": true, "schema": {"openAPIV3Schema": schema}}],
        },
    });
    cx.create_for_test(&kinds::CRD, &definition).await?;
    Ok((group, "v1".to_owned(), "testcrds".to_owned()))
}

async fn raw_for_crds(cx: Arc<Cx>) -> Result<()> {
    let wanted = new_definition(&cx).await?;
    retry(APPEARS, "custom resource in the aggregated document", async || {
        ensure!(aggregated(&cx, "/apis").await?.contains(&wanted), "{wanted:?} is not there");
        Ok(())
    })
    .await
}

async fn interface_for_crds(cx: Arc<Cx>) -> Result<()> {
    let wanted = new_definition(&cx).await?;
    retry(APPEARS, "custom resource in what the client discovers", async || {
        ensure!(client_view(&cx).await?.contains(&wanted), "{wanted:?} is not there");
        Ok(())
    })
    .await
}

async fn every_group(cx: Arc<Cx>) -> Result<()> {
    let list = document(&cx, "/apis", "application/json").await?;
    for (group, version, resource) in EXPECTED {
        let (root, of) =
            if group.is_empty() { ("/api", (*version).to_owned()) } else { ("/apis", format!("{group}/{version}")) };
        let resources = document(&cx, &format!("{root}/{of}"), "application/json").await?;
        expect(&resources, "/groupVersion", of.as_str())?;
        let found = items(&resources, "/resources").iter().any(|r| text(r, "/name") == *resource);
        ensure!(found, "{root}/{of} does not have {resource}");
        if group.is_empty() {
            continue;
        }
        let Some(listed) = items(&list, "/groups").iter().find(|g| text(g, "/name") == *group) else {
            bail!("/apis does not have group {group}")
        };
        let preferred = text(listed, "/preferredVersion/groupVersion");
        let single = document(&cx, &format!("/apis/{group}"), "application/json").await?;
        let versions = items(&single, "/versions").iter().any(|v| text(v, "/groupVersion") == preferred);
        ensure!(versions, "/apis/{group} does not have its preferred version {preferred}: {single}");
    }
    Ok(())
}
