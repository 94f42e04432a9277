//! What containers are given: config maps, secrets and the downward API as environment variables.

use std::net::IpAddr;
use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::framework::*;

tests! {
    "[sig-node] ConfigMap should be consumable as environment variable names with various prefixes [Conformance]" => prefixes, &kinds::CONFIG_MAP, "configMapRef";
    "[sig-node] ConfigMap should update ConfigMap successfully [Conformance] [NodeConformance]" => update;
    "[sig-node] Downward API should provide hostIPs as an env var [Conformance] [NodeConformance]" => host_ips;
    "[sig-node] Secrets should be consumable as environment variable names variable names with various prefixes [Conformance]" => prefixes, &kinds::SECRET, "secretRef";
}

async fn prefixes(cx: Arc<Cx>, kind: &'static Kind, reference: &'static str) -> Result<()> {
    let api = cx.api(kind);
    let mut source = json!({"metadata": {"name": "source"}});
    source["data"] = if kind.kind == "Secret" {
        // The same values, each with an end of line, as base64.
        json!({"data-1": "dmFsdWUtMQo=", "data-2": "dmFsdWUtMgo=", "data-3": "dmFsdWUtMwo="})
    } else {
        json!({"data-1": "value-1", "data-2": "value-2", "data-3": "value-3"})
    };
    api.create(&source).await?;
    let prefixes = ["", "1-", "$_-", "ABC_", "#@!"];
    // The container's process is the one that prints, so that no shell stands between it and its environment.
    let mut printing = container("main", BUSYBOX, &["env"]);
    let from = prefixes.iter().map(|prefix| json!({"prefix": prefix, reference: {"name": "source"}}));
    printing["envFrom"] = from.collect();
    let log = cx.run_to_end(&pod("subject", printing)).await?;
    for prefix in prefixes {
        for number in 1..=3 {
            let line = format!("{prefix}data-{number}=value-{number}");
            ensure!(log.lines().any(|l| l == line), "the environment lacks {line:?}: {log}");
        }
    }
    Ok(())
}

async fn update(cx: Arc<Cx>) -> Result<()> {
    let api = cx.api(&kinds::CONFIG_MAP);
    let mut map = json!({
        "apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": "subject"},
        "data": {"data-1": "value-1", "data-2": "value-2", "data-3": "value-3"},
    });
    api.create(&map).await?;
    // Sent as it was made, with other data: without a word on which state of it is meant.
    map["data"] = json!({"data": "value"});
    api.send("PUT", &["subject"], &[], Some(&map)).await?;
    expect(&api.get("subject").await?, "/data", map["data"].clone())
}

async fn host_ips(cx: Arc<Cx>) -> Result<()> {
    let mut printing = container("main", BUSYBOX, &["env"]);
    printing["env"] = json!([
        {"name": "HOST_IP", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.hostIP"}}},
        {"name": "HOST_IPS", "valueFrom": {"fieldRef": {"apiVersion": "v1", "fieldPath": "status.hostIPs"}}},
    ]);
    let (pod, log) = cx.run_to_any_end(&pod("subject", printing)).await?;
    let value = |name: &str| {
        let line = log.lines().find_map(|line| line.strip_prefix(&format!("{name}=")));
        line.map(str::to_owned).with_context(|| format!("no variable {name}: {log:?}; {}", pod_state(&pod)))
    };
    let one = value("HOST_IP")?;
    one.parse::<IpAddr>().with_context(|| format!("HOST_IP is {one:?}"))?;
    expect(&pod, "/status/hostIP", one.as_str())?;
    let all = value("HOST_IPS")?;
    let wanted: Vec<&str> = items(&pod, "/status/hostIPs").iter().map(|ip| text(ip, "/ip")).collect();
    ensure!(!wanted.is_empty() && all == wanted.join(","), "HOST_IPS is {all:?}, the status has {wanted:?}");
    Ok(())
}
