//! Asking a backend to leave HTTP.

use apimachinery::status::StatusError;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::upgrade::OnUpgrade;
use streaming::tunnel;

use super::{Body, Response, Target, respond, reverse};
use crate::audit::Hold;

/// Sends an upgrade on as it came and, where the backend agrees, connects the two sides.
pub(super) async fn raw<B>(mut request: Request<B>, target: Target) -> Response {
    let client = hyper::upgrade::on(&mut request);
    let held = request.extensions_mut().remove::<Hold>();
    match ask(target, request.method().clone(), reverse::clean(request.headers())).await {
        Ok(Asked::Upgraded(headers, backend)) => {
            tunnel::connect(client, backend, held);
            let mut response = http::Response::new(Body::default());
            *response.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
            *response.headers_mut() = headers;
            response
        }
        Ok(Asked::Refused(response)) => response,
        Err(error) => dial_failed(&error),
    }
}

pub(super) fn dial_failed(error: &str) -> Response {
    respond::error(&StatusError::new(500, "", format!("error dialing backend: {error}")))
}

/// A backend's answer to an upgrade.
pub(super) enum Asked {
    /// 101, with these headers.
    Upgraded(HeaderMap, OnUpgrade),
    /// Anything else, for the client to see.
    Refused(Response),
}

/// Asks `target` for the upgrade that `headers` describe. The error is that of dialling.
pub(super) async fn ask(target: Target, method: Method, mut headers: HeaderMap) -> Result<Asked, String> {
    headers.remove(AUTHORIZATION);
    headers.remove(HOST);
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = method;
    *request.headers_mut() = headers;
    let mut response = target.send(request).await?;
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let backend = hyper::upgrade::on(&mut response);
        return Ok(Asked::Upgraded(std::mem::take(response.headers_mut()), backend));
    }
    let (mut parts, body) = response.into_parts();
    parts.headers = reverse::end_to_end(&parts.headers);
    parts.extensions.clear();
    Ok(Asked::Refused(http::Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())))
}
