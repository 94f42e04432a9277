//! Volumes of images.

use std::sync::Arc;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::framework::*;

tests! {
    "[sig-node] ImageVolume should succeed with pod and pull policy of Always [LinuxOnly] [MinimumKubeletVersion:1.35] [Conformance]" => always;
}

/// Where the registry listens on the node's own address, so that runtimes take it without TLS.
const PORT: u16 = 5999;

/// Pull policy Always needs somebody to pull from: a registry with one image on the node where the pod runs.
async fn always(cx: Arc<Cx>) -> Result<()> {
    let nodes = cx.ready_nodes().await?;
    let node = name(&nodes[0]);
    let mut registry = pod("registry", serving("registry", &["registry", "--port", &PORT.to_string()]));
    registry["spec"]["hostNetwork"] = true.into();
    registry["spec"]["nodeName"] = node.into();
    registry["spec"]["containers"][0]["readinessProbe"] =
        json!({"httpGet": {"path": "/v2/", "port": PORT}, "periodSeconds": 1});
    cx.start(&registry).await?;
    let mut reader = idle("reader");
    reader["volumeMounts"] = json!([{"name": "volume", "mountPath": "/volume"}]);
    let mut subject = pod("subject", reader);
    subject["spec"]["nodeName"] = node.into();
    let image = json!({"reference": format!("localhost:{PORT}/conformance/volume:1"), "pullPolicy": "Always"});
    subject["spec"]["volumes"] = json!([{"name": "volume", "image": image}]);
    cx.start(&subject).await?;
    for (file, content) in crate::serve::VOLUME_FILES {
        let read = cx.exec("subject", "reader", &format!("cat /volume/{file}")).await?;
        ensure!(read == content, "{file} of the volume is {read:?}, expected {content:?}");
    }
    Ok(())
}
