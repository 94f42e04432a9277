//! Commands inside running containers, by the WebSocket form of exec (`v5.channel.k8s.io`, falling back to `v4`).

use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use kube::client::Body;
use serde_json::Value;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;
use tokio_tungstenite::tungstenite::handshake::client::generate_key;
use tokio_tungstenite::tungstenite::protocol::Role;

use super::api::with_query;
use super::{Cx, kinds, text};

const LIMIT: Duration = Duration::from_secs(30);

/// First byte of a message: which stream it belongs to.
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const OUTCOME: u8 = 3;

impl Cx {
    /// Runs a shell script in a container and returns what it printed. Fails where it does, with both outputs.
    pub async fn exec(&self, pod: &str, container: &str, script: &str) -> Result<String> {
        let run = self.exec_in(pod, container, script);
        let result = tokio::time::timeout(LIMIT, run).await.context("exec took too long").and_then(|r| r);
        result.with_context(|| format!("exec in {pod}/{container}: {script}"))
    }

    async fn exec_in(&self, pod: &str, container: &str, script: &str) -> Result<String> {
        let path = self.api(&kinds::POD).path(&[pod, "exec"]);
        let query = [("container", container), ("stdout", "true"), ("stderr", "true"), ("command", "sh")];
        let query: Vec<_> = query.into_iter().chain([("command", "-c"), ("command", script)]).collect();
        let request = Request::get(with_query(&path, &query))
            .header("connection", "Upgrade")
            .header("upgrade", "websocket")
            .header("sec-websocket-version", "13")
            .header("sec-websocket-key", generate_key())
            .header("sec-websocket-protocol", "v5.channel.k8s.io, v4.channel.k8s.io")
            .body(Body::empty())?;
        let response = self.client.send(request).await?;
        if response.status() != StatusCode::SWITCHING_PROTOCOLS {
            let status = response.status();
            let body = response.into_body().collect().await?.to_bytes();
            bail!("answered {status}: {}", String::from_utf8_lossy(&body));
        }
        let upgraded = TokioIo::new(hyper::upgrade::on(response).await?);
        let mut socket = WebSocketStream::from_raw_socket(upgraded, Role::Client, None).await;
        let (mut stdout, mut stderr, mut outcome) = (Vec::new(), Vec::new(), Vec::new());
        while let Some(message) = socket.next().await {
            match message? {
                Message::Binary(data) => match data.split_first() {
                    Some((&STDOUT, rest)) => stdout.extend_from_slice(rest),
                    Some((&STDERR, rest)) => stderr.extend_from_slice(rest),
                    Some((&OUTCOME, rest)) => outcome.extend_from_slice(rest),
                    _ => {}
                },
                Message::Close(_) => break,
                _ => {}
            }
        }
        let stdout = String::from_utf8_lossy(&stdout).into_owned();
        let outcome: Value = serde_json::from_slice(&outcome).context("no outcome was sent")?;
        if text(&outcome, "/status") == "Success" {
            return Ok(stdout);
        }
        bail!("{}; it printed {stdout:?} and {:?}", text(&outcome, "/message"), String::from_utf8_lossy(&stderr))
    }
}
