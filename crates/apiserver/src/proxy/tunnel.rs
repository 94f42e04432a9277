//! Asking a backend to leave HTTP, and passing bytes between two connections that have left it.

use std::time::Duration;

use apimachinery::status::StatusError;
use bytes::Bytes;
use http::header::{AUTHORIZATION, HOST};
use http::{HeaderMap, Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty};
use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use streaming::Io;
use tokio::io::{AsyncWriteExt as _, ReadHalf, WriteHalf};

use super::{Body, Response, Target, respond, reverse};

/// How long a side may take to see that the other has gone.
const GOODBYE: Duration = Duration::from_secs(5);

/// Sends an upgrade on as it came and, where the backend agrees, connects the two sides.
pub(super) async fn raw<B>(mut request: Request<B>, target: Target) -> Response {
    let client = hyper::upgrade::on(&mut request);
    match ask(target, request.method().clone(), reverse::clean(request.headers())).await {
        Ok(Asked::Upgraded(headers, backend)) => {
            connect(client, backend);
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

/// Connects the client's side of an upgrade, which completes once our 101 is out, with the backend's.
fn connect(client: OnUpgrade, backend: OnUpgrade) {
    tokio::spawn(async move {
        match tokio::try_join!(client, backend) {
            Ok((client, backend)) => pump(TokioIo::new(client), TokioIo::new(backend)).await,
            Err(error) => tracing::debug!(%error, "upgrade failed"),
        }
    });
}

/// Copies both ways until one side ends, as upstream: a connection that is half closed is closed.
pub(super) async fn pump(client: impl Io, backend: impl Io) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_backend, mut to_backend) = tokio::io::split(backend);
    let ended = tokio::select! {
        up = tokio::io::copy(&mut from_client, &mut to_backend) => up,
        down = tokio::io::copy(&mut from_backend, &mut to_client) => down,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "stream ended");
    }
    tokio::join!(part(from_client, to_client), part(from_backend, to_backend));
}

/// Says that no more comes, then reads what is still on its way: closing on unread bytes would make TCP throw away those that the
/// other side has not read yet.
async fn part<T: Io>(mut read: ReadHalf<T>, mut write: WriteHalf<T>) {
    let goodbye = async {
        write.shutdown().await?;
        tokio::io::copy(&mut read, &mut tokio::io::sink()).await
    };
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}
