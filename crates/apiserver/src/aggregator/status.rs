//! Whether another API server can be reached: the condition `Available`, in upstream's words.

use std::time::Duration;

use apimachinery::{Value, meta};
use http::{Request, header};
use http_body_util::{BodyExt as _, Limited};
use serde_json::json;

use super::{Aggregator, Remote};
use crate::backend::{resolve, service, words};
use crate::http::respond;
use crate::request::UserInfo;
use crate::strategy::connect::{endpoints, service_port};

/// As upstream's discovery check.
const PATIENCE: Duration = Duration::from_secs(5);
const ANSWER_BYTES_MAX: usize = 16 * 1024 * 1024;

/// What a check found.
pub struct Found {
    pub condition: Value,
    /// The server's `APIResourceList` where it answered.
    pub resources: Option<Value>,
}

/// Checks service, port, endpoints, and asks for discovery.
pub async fn check(aggregator: &Aggregator, remote: &Remote) -> Found {
    let unavailable =
        |reason: &str, message: String| Found { condition: condition(false, reason, &message), resources: None };
    let Remote { namespace, service: name, port, .. } = remote;
    let view = &aggregator.view;
    let Some(found) = service(view, namespace, name) else {
        return unavailable("ServiceNotFound", format!("service/{name} in {namespace:?} is not present"));
    };
    let kind = meta::str_at(&found, &["spec", "type"]);
    if matches!(kind, "" | "ClusterIP") {
        let Some(port_found) = service_port(&found, |p| p["port"].as_u64() == Some(u64::from(*port))) else {
            let message = format!("service/{name} in {namespace:?} is not listening on port {port}");
            return unavailable("ServicePortError", message);
        };
        let slices = view.list("endpointslices", namespace);
        if !slices.iter().any(|slice| slice.value.meta().label("kubernetes.io/service-name") == Some(name)) {
            let message = format!("cannot find endpointslices for service/{name} in {namespace:?}");
            return unavailable("EndpointsNotFound", message);
        }
        let port_name = meta::str_at(port_found, &["name"]);
        if endpoints(view, namespace, name, port_name).is_empty() {
            let message = format!(
                "endpointslices for service/{name} in {namespace:?} have no addresses with port name {port_name:?}"
            );
            return unavailable("MissingEndpoints", message);
        }
    }
    match tokio::time::timeout(PATIENCE, discover(aggregator, remote)).await {
        Ok(Ok(resources)) => {
            Found { condition: condition(true, "Passed", "all checks passed"), resources: Some(resources) }
        }
        Ok(Err(message)) => unavailable("FailedDiscoveryCheck", message),
        Err(_) => unavailable("FailedDiscoveryCheck", format!("timed out waiting for {}", remote.url(&path(remote)))),
    }
}

fn path(remote: &Remote) -> String {
    match remote.group.as_str() {
        "" => format!("/api/{}", remote.version),
        group => format!("/apis/{group}/{}", remote.version),
    }
}

/// As upstream, the certificate counts only when requests are passed on: this is about whether there is a server.
async fn discover(aggregator: &Aggregator, remote: &Remote) -> Result<Value, String> {
    // Says why there is nothing to connect to, before a connection is tried.
    resolve(&aggregator.view, &remote.namespace, &remote.service, remote.port)?;
    let client = aggregator.client_of(&[].into(), true)?;
    let (code, body) = get(&client, &remote.url(&path(remote)), "application/json").await?;
    if !(200..300).contains(&code) {
        let url = remote.url(&path(remote));
        return Err(format!("failing or missing response from {url}: bad status from {url}: {code}"));
    }
    Ok(serde_json::from_slice(&body).unwrap_or_default())
}

/// Asks a remote server as the aggregator itself.
pub async fn get(client: &crate::backend::HttpClient, url: &str, accept: &str) -> Result<(u16, bytes::Bytes), String> {
    let failing = |why: String| format!("failing or missing response from {url}: Get {url:?}: {why}");
    let mut request = Request::get(url)
        .header(header::ACCEPT, accept)
        .body(respond::full(bytes::Bytes::new()))
        .map_err(|error| error.to_string())?;
    let user = UserInfo::new("system:kube-aggregator", &["system:masters"]);
    crate::proxy::set_remote_user(request.headers_mut(), &user);
    let response = client.request(request).await.map_err(|error| failing(words(&error)))?;
    let code = response.status().as_u16();
    let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
    Ok((code, body.map_err(|error| failing(words(&*error)))?.to_bytes()))
}

fn condition(available: bool, reason: &str, message: &str) -> Value {
    json!({
        "type": "Available", "status": if available { "True" } else { "False" }, "reason": reason, "message": message,
    })
}
