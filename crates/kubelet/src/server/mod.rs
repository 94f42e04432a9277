//! The kubelet's HTTPS server: logs, exec, attach, port-forward, and what the node knows of its pods and their use of resources.
//!
//! Reads the pods' table and asks the runtime; changes nothing. Must not know how pods are run.

mod auth;
mod hostlogs;
mod listener;
mod logs;
mod pods;
mod request;
mod sessions;
mod stats;
#[cfg(test)]
mod tests;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use cri::messages::container::ContainerState;
use cri::messages::image::FilesystemUsage;
use cri::messages::stats::ContainerStats;
use cri::messages::streaming::{AttachRequest, ExecRequest, ExecSyncResponse};
use futures::future::BoxFuture;
use http::{HeaderValue, Request, StatusCode, header};
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use percent_encoding::percent_decode_str;

pub use auth::{Access, ApiAuthority, Authority, User};
pub use listener::{run, tls};
use request::Endpoint;

use crate::config::Config;
use crate::pods::PodStore;

pub type BoxError = Box<dyn std::error::Error + Send + Sync>;
pub type Body = http_body_util::combinators::UnsyncBoxBody<Bytes, BoxError>;
pub type Response = http::Response<Body>;

/// Where hosts keep their logs.
const HOST_LOG_DIR: &str = "/var/log";

/// What the server asks of the container runtime.
pub trait Runtime: Send + Sync + 'static {
    /// The URL of the runtime's streaming server for a session.
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, cri::Result<String>>;
    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, cri::Result<String>>;
    fn port_forward<'a>(&'a self, sandbox_id: &'a str, ports: Vec<i32>) -> BoxFuture<'a, cri::Result<String>>;
    fn exec_sync<'a>(
        &'a self,
        container_id: &'a str,
        command: Vec<String>,
    ) -> BoxFuture<'a, cri::Result<ExecSyncResponse>>;
    fn is_running<'a>(&'a self, container_id: &'a str) -> BoxFuture<'a, cri::Result<bool>>;
    fn container_stats(&self) -> BoxFuture<'_, cri::Result<Vec<ContainerStats>>>;
    fn image_filesystems(&self) -> BoxFuture<'_, cri::Result<Vec<FilesystemUsage>>>;
    /// What has been asked so far, by the path of the call.
    fn operations(&self) -> Vec<(&'static str, cri::operations::Operation)> {
        Vec::new()
    }
}

impl Runtime for cri::Client {
    fn exec(&self, request: ExecRequest) -> BoxFuture<'_, cri::Result<String>> {
        Box::pin(self.exec(request))
    }

    fn attach(&self, request: AttachRequest) -> BoxFuture<'_, cri::Result<String>> {
        Box::pin(self.attach(request))
    }

    fn port_forward<'a>(&'a self, sandbox_id: &'a str, ports: Vec<i32>) -> BoxFuture<'a, cri::Result<String>> {
        Box::pin(self.port_forward(sandbox_id, ports))
    }

    fn exec_sync<'a>(
        &'a self,
        container_id: &'a str,
        command: Vec<String>,
    ) -> BoxFuture<'a, cri::Result<ExecSyncResponse>> {
        Box::pin(self.exec_sync(container_id, command, std::time::Duration::ZERO))
    }

    fn is_running<'a>(&'a self, container_id: &'a str) -> BoxFuture<'a, cri::Result<bool>> {
        Box::pin(async move {
            match self.container_status(container_id).await {
                Ok(status) => Ok(status.state == ContainerState::Running as i32),
                Err(error) if error.is_not_found() => Ok(false),
                Err(error) => Err(error),
            }
        })
    }

    fn container_stats(&self) -> BoxFuture<'_, cri::Result<Vec<ContainerStats>>> {
        Box::pin(self.list_container_stats(&[]))
    }

    fn image_filesystems(&self) -> BoxFuture<'_, cri::Result<Vec<FilesystemUsage>>> {
        Box::pin(self.image_fs_info())
    }

    fn operations(&self) -> Vec<(&'static str, cri::operations::Operation)> {
        self.operations()
    }
}

/// What the server is made of.
pub struct Components {
    pub node_name: String,
    pub pods: PodStore,
    pub runtime: Arc<dyn Runtime>,
    pub authority: Arc<dyn Authority>,
    /// The file system that pods' volumes and logs lie on (`nodefs`).
    pub root_dir: PathBuf,
    /// The host's logs, served under `/logs/`.
    pub host_log_dir: PathBuf,
    /// The `KubeletConfiguration` in force, for `/configz`.
    pub configuration: serde_json::Value,
}

pub struct Server {
    parts: Components,
    sampler: stats::Sampler,
}

impl Server {
    pub fn new(parts: Components) -> Self {
        Server { parts, sampler: stats::Sampler::default() }
    }

    /// The server of a kubelet with this configuration, with the API server as authority on its clients. `api` acts as the node.
    pub fn of(config: &Config, pods: PodStore, runtime: cri::Client, api: kube::Client) -> Self {
        Server::new(Components {
            node_name: config.node_name.clone(),
            pods,
            runtime: Arc::new(runtime),
            authority: Arc::new(ApiAuthority::new(api, &config.node_name)),
            root_dir: config.root_dir.clone(),
            host_log_dir: PathBuf::from(HOST_LOG_DIR),
            configuration: configuration(config),
        })
    }

    /// Answers one request. `certified` is who the client's certificate says it is.
    pub async fn handle(&self, request: Request<Incoming>, certified: Option<&User>) -> Response {
        match self.answer(request, certified).await {
            Ok(response) => response,
            Err(refusal) => refusal.into_response(),
        }
    }

    async fn answer(&self, request: Request<Incoming>, certified: Option<&User>) -> Result<Response, Refusal> {
        if request.uri().path() == "/healthz" {
            return Ok(text(StatusCode::OK, "ok"));
        }
        let user = self.authenticate(&request, certified).await?;
        self.authorize(&user, &request).await?;
        let endpoint = request::route(request.method(), request.uri().path())?;
        let query = Query::parse(request.uri().query().unwrap_or_default());
        match endpoint {
            Endpoint::Pods => Ok(json(&pods::list(&self.parts.pods.list()))),
            Endpoint::RunningPods => Ok(json(&pods::running(&self.parts.pods.list()))),
            Endpoint::Configz => Ok(json(&serde_json::json!({"kubeletconfig": self.parts.configuration}))),
            Endpoint::Logs(container) => self.container_logs(&container, &query).await,
            Endpoint::HostLogs(path) => hostlogs::serve(&self.parts.host_log_dir, &path).await,
            Endpoint::Session(session) => self.session(request, session, &query).await,
            Endpoint::Run(container) => self.run(&container, &query).await,
            Endpoint::Summary => {
                let sample = self.sample().await?;
                Ok(json(&stats::summary(&self.parts.node_name, &sample)))
            }
            Endpoint::ResourceMetrics => Ok(metrics(stats::resource_metrics(&self.sample().await?))),
            Endpoint::CadvisorMetrics => Ok(metrics(stats::cadvisor_metrics(&self.sample().await?))),
            Endpoint::ProbeMetrics => Ok(metrics(stats::probe_metrics(&self.parts.pods.metrics.all()))),
            Endpoint::Metrics => Ok(metrics(self.own_metrics().await)),
        }
    }

    async fn authenticate(&self, request: &Request<Incoming>, certified: Option<&User>) -> Result<User, Refusal> {
        if let Some(user) = certified {
            return Ok(user.clone());
        }
        let unauthorized = || Refusal::new(StatusCode::UNAUTHORIZED, "Unauthorized");
        let credentials = request.headers().get(header::AUTHORIZATION).and_then(|value| value.to_str().ok());
        let token =
            credentials.and_then(|text| text.split_once(' ')).filter(|(kind, _)| kind.eq_ignore_ascii_case("bearer"));
        let (_, token) = token.ok_or_else(unauthorized)?;
        match self.parts.authority.authenticate(token.trim()).await {
            Ok(user) => user.ok_or_else(unauthorized),
            Err(error) => {
                tracing::warn!(%error, "token cannot be reviewed");
                Err(unauthorized())
            }
        }
    }

    async fn authorize(&self, user: &User, request: &Request<Incoming>) -> Result<(), Refusal> {
        let verb = request::verb(request.method());
        let subresources = request::subresources(request.uri().path());
        for subresource in subresources {
            match self.parts.authority.authorize(user, Access { verb, subresource }).await {
                Ok(true) => return Ok(()),
                Ok(false) => {}
                Err(error) => {
                    let text = format!(
                        "Authorization error (user={}, verb={verb}, resource=nodes, subresource={subresource})",
                        user.name
                    );
                    tracing::warn!(%error, "{text}");
                    return Err(Refusal::new(StatusCode::INTERNAL_SERVER_ERROR, text));
                }
            }
        }
        let text =
            format!("Forbidden (user={}, verb={verb}, resource=nodes, subresource(s)={subresources:?})", user.name);
        Err(Refusal::new(StatusCode::FORBIDDEN, text))
    }

    async fn own_metrics(&self) -> String {
        let parts = &self.parts;
        let pods = parts.pods.list();
        let volumes = self.sampler.volumes(&pods).await;
        let counts = parts.pods.metrics.all();
        let own = stats::Own {
            node_name: &parts.node_name,
            pods: &pods,
            counts: &counts,
            operations: &parts.runtime.operations(),
            volumes: &volumes,
        };
        stats::own_metrics(&own)
    }

    async fn sample(&self) -> Result<stats::Sample, Refusal> {
        let parts = &self.parts;
        self.sampler.take(&parts.pods, parts.runtime.as_ref(), &parts.root_dir).await.map_err(Refusal::runtime)
    }
}

/// The configuration in the names of upstream's `KubeletConfiguration`.
fn configuration(config: &Config) -> serde_json::Value {
    let seconds = |duration: std::time::Duration| format!("{}s", duration.as_secs());
    serde_json::json!({
        "kind": "KubeletConfiguration",
        "apiVersion": "kubelet.config.k8s.io/v1beta1",
        "port": config.port,
        "authentication": {"anonymous": {"enabled": false}, "webhook": {"enabled": true}},
        "authorization": {"mode": "Webhook"},
        "clusterDNS": config.cluster_dns,
        "clusterDomain": config.cluster_domain,
        "containerLogMaxFiles": config.container_log_max_files,
        "containerLogMaxSize": config.container_log_max_bytes.to_string(),
        "containerRuntimeEndpoint": config.runtime_endpoint,
        "imageGCHighThresholdPercent": config.image_gc_high_percent,
        "imageGCLowThresholdPercent": config.image_gc_low_percent,
        "maxPods": config.max_pods,
        "nodeLeaseDurationSeconds": config.node_lease_duration.as_secs(),
        "nodeStatusReportFrequency": seconds(config.node_status_report_frequency),
        "resolvConf": config.resolv_conf,
    })
}

/// An answer other than what was asked for, as plain text: that is what upstream's kubelet answers.
#[derive(Debug)]
pub struct Refusal {
    status: StatusCode,
    text: String,
}

impl Refusal {
    fn new(status: StatusCode, text: impl Into<String>) -> Self {
        Refusal { status, text: text.into() }
    }

    fn bad_request(text: impl Into<String>) -> Self {
        Self::new(StatusCode::BAD_REQUEST, text)
    }

    fn not_found(text: impl Into<String>) -> Self {
        Self::new(StatusCode::NOT_FOUND, text)
    }

    fn internal(text: impl std::fmt::Display) -> Self {
        Self::new(StatusCode::INTERNAL_SERVER_ERROR, text.to_string())
    }

    fn runtime(error: cri::Error) -> Self {
        let status = if error.is_not_found() { StatusCode::NOT_FOUND } else { StatusCode::INTERNAL_SERVER_ERROR };
        Self::new(status, error.to_string())
    }

    fn into_response(self) -> Response {
        text(self.status, self.text)
    }
}

fn with_type(status: StatusCode, content_type: &'static str, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() = status;
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response
}

fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

fn text(status: StatusCode, text: impl Into<String>) -> Response {
    with_type(status, "text/plain; charset=utf-8", full(text.into()))
}

fn json(value: &serde_json::Value) -> Response {
    with_type(StatusCode::OK, "application/json", full(value.to_string()))
}

fn metrics(exposition: String) -> Response {
    with_type(StatusCode::OK, "text/plain; version=0.0.4; charset=utf-8", full(exposition))
}

/// The decoded query parameters of a request.
struct Query(HashMap<String, Vec<String>>);

impl Query {
    fn parse(raw: &str) -> Self {
        let decode = |text: &str| percent_decode_str(&text.replace('+', " ")).decode_utf8_lossy().into_owned();
        let mut values: HashMap<String, Vec<String>> = HashMap::new();
        for pair in raw.split('&').filter(|pair| !pair.is_empty()) {
            let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
            values.entry(decode(key)).or_default().push(decode(value));
        }
        Query(values)
    }

    fn get(&self, key: &str) -> Option<&str> {
        self.all(key).first().map(String::as_str)
    }

    fn all(&self, key: &str) -> &[String] {
        self.0.get(key).map(Vec::as_slice).unwrap_or_default()
    }

    /// As upstream's kubelet reads flags: `1` and `true`.
    fn flag(&self, key: &str) -> bool {
        matches!(self.get(key), Some("1" | "true"))
    }
}
