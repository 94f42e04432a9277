//! Kinds of this group whose API operations are tested.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::framework::*;
use crate::tests::lifecycle::{Row, annotated, discovered, operations, overlay};

tests! {
    "[sig-network] EndpointSlice should support creating EndpointSlice API operations [Conformance]" => operations, &ENDPOINT_SLICES;
    "[sig-network] ServiceCIDR and IPAddress API should support IPAddress API operations [Conformance]" => operations, &IP_ADDRESSES;
    "[sig-network] ServiceCIDR and IPAddress API should support ServiceCIDR API operations [Conformance]" => service_cidrs;
}

static ENDPOINT_SLICES: Row = Row {
    kind: &kinds::ENDPOINT_SLICE,
    object: |_, _| {
        json!({"metadata": {}, "addressType": "IPv4", "endpoints": [
            {"addresses": ["1.2.3.4", "5.6.7.8"]}, {"addresses": ["2.2.3.4", "6.6.7.8"]},
        ]})
    },
    patch: || json!({}),
    update: || json!({}),
    status: None,
};

static IP_ADDRESSES: Row = Row {
    kind: &kinds::IP_ADDRESS,
    object: |_, number| {
        let address = ["255.255.255.254", "fe80::42:1dff:fe84:f9e2", "255.255.255.255"][number];
        let parent = json!({"group": "mygroup", "resource": "myresources", "namespace": "foo", "name": "bar"});
        json!({"metadata": {"name": address}, "spec": {"parentRef": parent}})
    },
    patch: || json!({}),
    update: || json!({}),
    status: None,
};

/// Of the default range, which every cluster has: others would be used by services of other tests.
async fn service_cidrs(cx: Arc<Cx>) -> Result<()> {
    const DEFAULT: &str = "kubernetes";
    discovered(&cx, &kinds::SERVICE_CIDR, true).await?;
    let api = cx.api(&kinds::SERVICE_CIDR);
    let read = api.get(DEFAULT).await?;
    ensure!(!items(&read, "/spec/cidrs").is_empty(), "the default range has no networks: {read}");
    let list = api.list(&[]).await?;
    ensure!(items(&list, "/items").iter().any(|cidr| name(cidr) == DEFAULT), "the default range is not listed: {list}");
    let mut watch = api.watch_since(&list, &[]).await?;
    let patched = api.patch(DEFAULT, Patch::Merge, &annotated("patched")).await?;
    expect(&patched, "/metadata/annotations/patched", "true")?;
    watch.expect("MODIFIED", "the patched range", SOON, |cidr| name(cidr) == DEFAULT).await?;
    let updated = api.change(DEFAULT, |cidr| overlay(cidr, &annotated("updated"))).await?;
    expect(&updated, "/metadata/annotations/updated", "true")?;
    let read = api.send("GET", &[DEFAULT, "status"], &[], None).await.context("status")?;
    ensure!(holds(&read, "Ready"), "the default range is not ready: {}", read["status"]);
    // Left as it was found.
    api.patch(DEFAULT, Patch::Merge, &json!({"metadata": {"annotations": {"patched": null, "updated": null}}})).await?;
    Ok(())
}
