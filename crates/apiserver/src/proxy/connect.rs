//! Carries out what a strategy decided for a connecting request.

use apimachinery::status::{Result, StatusError};
use http::Request;

use super::{Links, logs, stream};
use crate::authz::{Decision, forbidden};
use crate::http::{Body, Response, respond};
use crate::registry::connect_admission;
use crate::request::RequestInfo;
use crate::server::{ApiServer, Call};
use crate::strategy::connect::{Ask, Connection};

/// Answers logs, exec, attach, port-forward and proxy requests.
pub async fn connect(server: &ApiServer, mut call: Call, body: Body) -> Result<Response> {
    let Some(subresource) = call.row.subresource(&call.info.subresource).cloned() else {
        return Err(StatusError::no_such_path());
    };
    // The right to one verb must not open what another one does. OPTIONS is no verb of the API, but passed on as any request.
    let passed_on = &*subresource.name == "proxy" && call.head.method == http::Method::OPTIONS;
    if !passed_on && !subresource.verbs.iter().any(|verb| verb.as_str() == call.info.verb) {
        return Err(StatusError::method_not_supported(&call.row.group_resource(), &call.info.verb));
    }
    authorize_session(server, &call)?;
    connect_admission(server, &mut call, &subresource.name, &subresource.kind).await?;
    if let Some(record) = &call.audit {
        call.head.extensions.insert(record.hold());
    }
    let path = proxied_path(&call);
    let strategy = server.strategies.get(&call.row).ok_or_else(StatusError::no_such_path)?;
    let ask = Ask {
        view: &server.view,
        namespace: &call.info.namespace,
        name: &call.info.name,
        subresource: &call.info.subresource,
        query: &call.query,
        rest: &path,
    };
    let connection = strategy.connect(&ask)?;
    let query = call.head.uri.query().map(|q| format!("?{q}")).unwrap_or_default();
    let onward = format!("{}{query}", if path.is_empty() { "/" } else { &path });
    let dialer = &server.dialer;
    let target = match connection {
        Connection::Nothing => return Ok(respond::bytes(200, "text/plain", "")),
        Connection::Logs { kubelet, path, verify } => {
            let target = if verify {
                dialer.kubelet(&kubelet.host, kubelet.port, &path)?
            } else {
                dialer.unverified_kubelet(&kubelet.host, kubelet.port, &path)?
            };
            return logs(&target).await;
        }
        Connection::Stream { kubelet, path, kind } => {
            let target = dialer.kubelet(&kubelet.host, kubelet.port, &path)?;
            return Ok(stream(Request::from_parts(call.head, body), target, kind).await);
        }
        Connection::Workload { scheme, host, port } => dialer.workload(scheme, &host, port, &onward)?,
        Connection::Kubelet(kubelet) => dialer.kubelet(&kubelet.host, kubelet.port, &onward)?,
    };
    let prefix = call.info.path.strip_suffix(path.as_str()).unwrap_or(&call.info.path).to_owned();
    let request_host =
        call.head.uri.host().map(str::to_owned).or_else(|| call.header(http::header::HOST).map(str::to_owned));
    let links = Links { prefix, target_host: target.authority(), request_host: request_host.unwrap_or_default() };
    Ok(super::forward(Request::from_parts(call.head, body), target, &path, links).await)
}

/// A WebSocket begins with GET, but does as much as the POST of other clients: who opens a session must have the right to
/// `create` one (upstream's `AuthorizePodWebsocketUpgradeCreatePermission`).
fn authorize_session(server: &ApiServer, call: &Call) -> Result<()> {
    let is_session = matches!(call.info.subresource.as_str(), "exec" | "attach" | "portforward");
    if !is_session || call.info.verb == "create" {
        return Ok(());
    }
    let info = RequestInfo { verb: "create".to_owned(), ..call.info.clone() };
    match server.authorizer.authorize(&call.user, &info) {
        Decision::Allow { .. } => Ok(()),
        Decision::NoOpinion { reason } | Decision::Deny { reason } => Err(forbidden(&call.user, &info, &reason)),
    }
}

/// The path behind `/proxy`, leading slash included; empty if the URL ends there.
fn proxied_path(call: &Call) -> String {
    let info = &call.info;
    let bare = info.rest.is_empty() && !info.path.ends_with('/');
    if bare { String::new() } else { format!("/{}", info.rest) }
}
