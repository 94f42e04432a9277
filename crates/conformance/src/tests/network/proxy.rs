//! The API server's proxy to pods and services.

use std::sync::Arc;

use anyhow::{Context as _, Result, ensure};
use http::Request;
use http_body_util::BodyExt as _;
use kube::client::Body;
use serde_json::{Value, json};

use crate::framework::*;

tests! {
    "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service Proxy [Conformance]" => proxy, false;
    "[sig-network] Proxy version v1 A set of valid responses are returned for both pod and service ProxyWithPath [Conformance]" => proxy, true;
}

/// Sends a request through the proxy; the status and the body of the answer.
async fn ask(cx: &Cx, method: &str, uri: &str) -> Result<(u16, Vec<u8>)> {
    let request = Request::builder().method(method).uri(uri).body(Body::empty())?;
    let response = cx.client.send(request).await?;
    let status = response.status().as_u16();
    Ok((status, response.into_body().collect().await?.to_bytes().to_vec()))
}

async fn proxy(cx: Arc<Cx>, with_path: bool) -> Result<()> {
    cx.start(&pod("server", serving("server", &["echo", "--port", "80", "--body", "foo"]))).await?;
    let ports = json!([{"port": 80, "targetPort": 80, "protocol": "TCP"}]);
    let service = json!({"metadata": {"name": "server"}, "spec": {"selector": {"name": "server"}, "ports": ports}});
    cx.api(&kinds::SERVICE).create(&service).await?;
    let pods = cx.api(&kinds::POD).path(&["server", "proxy"]);
    let services = cx.api(&kinds::SERVICE).path(&["server", "proxy"]);
    for target in [pods, services] {
        for method in ["DELETE", "GET", "HEAD", "OPTIONS", "PATCH", "POST", "PUT"] {
            if with_path {
                let path = format!("/some/path/with/{method}");
                answers(&cx, method, &format!("{target}{path}"), Some(&path)).await?;
            } else if matches!(method, "GET" | "HEAD") {
                // Without a path these are sent to the path with a slash, so that relative links work.
                let uri = format!("{target}?method={method}");
                let (status, _) = ask(&cx, method, &uri).await?;
                ensure!(status == 301, "{method} {uri} answered {status}, expected 301");
            } else {
                answers(&cx, method, &format!("{target}?method={method}"), None).await?;
            }
        }
    }
    Ok(())
}

/// Waits until the server has answered, and that it saw the method (and path) that was sent.
async fn answers(cx: &Cx, method: &str, uri: &str, path: Option<&str>) -> Result<()> {
    cx.step(format!("{method} {uri}"));
    retry(SOON, &format!("{method} {uri}"), async || {
        let (status, body) = ask(cx, method, uri).await?;
        ensure!(status == 200, "answered {status}: {}", String::from_utf8_lossy(&body));
        if method == "HEAD" {
            return Ok(());
        }
        let seen: Value = serde_json::from_slice(&body).context("the answer is not the server's")?;
        ensure!(seen["method"] == method && seen["body"] == "foo", "the server saw {seen}");
        ensure!(path.is_none_or(|path| seen["path"] == path), "the server saw {seen}");
        Ok(())
    })
    .await
}
