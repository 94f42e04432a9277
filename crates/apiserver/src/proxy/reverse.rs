//! The HTTP proxy to pods, services and nodes (upstream's `UpgradeAwareHandler`).

use apimachinery::status::StatusError;
use bytes::Bytes;
use futures::StreamExt as _;
use http::header::{self, HeaderMap, HeaderName, HeaderValue};
use http::{Request, StatusCode};
use http_body_util::{BodyExt as _, BodyStream, StreamBody};
use hyper::body::{Frame, Incoming};
use streaming::upgrade;

use super::rewrite::{HtmlRewriter, Links};
use super::{Body, BoxError, Response, Target, respond, tunnel};

/// Headers that speak of one connection only.
const HOP_BY_HOP: [HeaderName; 9] = [
    header::CONNECTION,
    HeaderName::from_static("proxy-connection"),
    HeaderName::from_static("keep-alive"),
    header::PROXY_AUTHENTICATE,
    header::PROXY_AUTHORIZATION,
    header::TE,
    header::TRAILER,
    header::TRANSFER_ENCODING,
    header::UPGRADE,
];

/// Passes a request on to `target`, and its answer back with links that lead through the proxy. `path` is that of the client's
/// request behind `/proxy`: empty, or with a leading slash.
pub async fn forward<B>(request: Request<B>, target: Target, path: &str, links: Links) -> Response
where
    B: http_body::Body<Data = Bytes> + Send + 'static,
    B::Error: Into<BoxError>,
{
    if upgrade::is_upgrade(request.headers()) {
        return tunnel::raw(request, target).await;
    }
    if path.is_empty() && matches!(*request.method(), http::Method::GET | http::Method::HEAD) {
        return redirect_to_folder(request.uri());
    }
    let (parts, body) = request.into_parts();
    let mut onward = Request::new(body);
    *onward.method_mut() = parts.method;
    *onward.headers_mut() = clean(&end_to_end(&parts.headers));
    let forwarded = format!("{}{}", links.prefix, path);
    if let Ok(uri) = HeaderValue::from_str(&forwarded) {
        onward.headers_mut().insert("x-forwarded-uri", uri);
    }
    if let Ok(host) = HeaderValue::from_str(&links.request_host) {
        onward.headers_mut().insert(header::HOST, host);
    }
    match target.send(onward).await {
        Ok(response) => answer(response, links),
        Err(error) => unreachable_service(&error),
    }
}

fn unreachable_service(error: &str) -> Response {
    respond::error(&StatusError::unavailable(format!("Error trying to reach service: '{error}'")))
}

/// Relative links of a page at `…/proxy` would lose the last segment.
fn redirect_to_folder(uri: &http::Uri) -> Response {
    let query = uri.query().map(|query| format!("?{query}")).unwrap_or_default();
    let mut response = http::Response::new(Body::default());
    *response.status_mut() = StatusCode::MOVED_PERMANENTLY;
    if let Ok(location) = HeaderValue::try_from(format!("{}/{query}", uri.path())) {
        response.headers_mut().insert(header::LOCATION, location);
    }
    response
}

fn answer(response: http::Response<Incoming>, links: Links) -> Response {
    let (mut parts, body) = response.into_parts();
    parts.version = http::Version::default();
    parts.extensions.clear();
    parts.headers = end_to_end(&parts.headers);
    // Pages of a workload must not open the API to other origins.
    for name in [
        header::ACCESS_CONTROL_ALLOW_CREDENTIALS,
        header::ACCESS_CONTROL_ALLOW_HEADERS,
        header::ACCESS_CONTROL_ALLOW_METHODS,
        header::ACCESS_CONTROL_ALLOW_ORIGIN,
    ] {
        parts.headers.remove(name);
    }
    if let Some(location) = parts.headers.get(header::LOCATION).and_then(|location| location.to_str().ok())
        && let Ok(location) = HeaderValue::try_from(links.rewrite(location))
    {
        parts.headers.insert(header::LOCATION, location);
    }
    let content_type =
        parts.headers.get(header::CONTENT_TYPE).and_then(|value| value.to_str().ok()).unwrap_or_default();
    // Compressed pages pass as they are.
    if content_type.starts_with("text/html") && !parts.headers.contains_key(header::CONTENT_ENCODING) {
        parts.headers.remove(header::CONTENT_LENGTH);
        return http::Response::from_parts(parts, rewritten(body, HtmlRewriter::new(links)));
    }
    http::Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

/// The body with its links rewritten as it passes.
fn rewritten(body: Incoming, rewriter: HtmlRewriter) -> Body {
    let chunks = futures::stream::unfold((BodyStream::new(body), Some(rewriter)), |(mut body, rewriter)| async move {
        let mut rewriter = rewriter?;
        match body.next().await {
            Some(Ok(frame)) => {
                let data = frame.into_data().unwrap_or_default();
                let chunk = Frame::data(Bytes::from(rewriter.push(&data)));
                Some((Ok(chunk), (body, Some(rewriter))))
            }
            Some(Err(error)) => Some((Err(BoxError::from(error)), (body, None))),
            None => Some((Ok(Frame::data(Bytes::from(rewriter.finish()))), (body, None))),
        }
    });
    StreamBody::new(chunks).boxed_unsync()
}

/// The headers without those of the connection.
pub(super) fn end_to_end(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    let named: Vec<HeaderName> = headers
        .get_all(header::CONNECTION)
        .iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|value| value.split(','))
        .filter_map(|name| name.trim().parse().ok())
        .collect();
    for name in named.iter().chain(&HOP_BY_HOP) {
        kept.remove(name);
    }
    kept
}

/// The headers without what makes the client known to the API server: a workload could use it.
pub(super) fn clean(headers: &HeaderMap) -> HeaderMap {
    let mut kept = headers.clone();
    kept.remove(header::AUTHORIZATION);
    let own: Vec<HeaderName> = kept.keys().filter(|name| name.as_str().starts_with("impersonate-")).cloned().collect();
    for name in own {
        kept.remove(name);
    }
    kept
}

#[cfg(test)]
mod tests {
    use super::*;

    fn headers(pairs: &[(&'static str, &'static str)]) -> HeaderMap {
        pairs.iter().map(|(name, value)| (name.parse().unwrap(), HeaderValue::from_static(value))).collect()
    }

    #[test]
    fn headers_of_the_connection_and_of_the_user_stay_here() {
        let request = headers(&[
            ("accept", "*/*"),
            ("authorization", "Bearer secret"),
            ("connection", "close, X-Session"),
            ("impersonate-user", "admin"),
            ("te", "trailers"),
            ("transfer-encoding", "chunked"),
            ("x-session", "1"),
        ]);
        assert_eq!(clean(&end_to_end(&request)), headers(&[("accept", "*/*")]));
    }

    #[test]
    fn folders_get_their_slash() {
        let response = redirect_to_folder(&"/api/v1/namespaces/a/pods/b/proxy?c=d".parse().unwrap());
        assert_eq!(response.status(), 301);
        assert_eq!(response.headers()["location"], "/api/v1/namespaces/a/pods/b/proxy/?c=d");
    }
}
