//! Requests for groups that another API server serves: passed on with the user's name, by the front proxy's authority (upstream's
//! `handler_proxy`).

use http::header::{HeaderMap, HeaderName, HeaderValue};
use http::request::Parts;
use http::{Request, StatusCode};
use http_body_util::BodyExt as _;
use percent_encoding::{AsciiSet, NON_ALPHANUMERIC, utf8_percent_encode};
use streaming::{tunnel, upgrade};

use super::reverse::{clean, end_to_end};
use super::{Body, Response, respond};
use crate::aggregator::{Aggregator, Remote};
use crate::audit::Hold;
use crate::backend::words;
use crate::request::UserInfo;

/// What may stand in a header's name as it is (Go's `headerKeyEscape`).
const HEADER_KEY: &AsciiSet = &NON_ALPHANUMERIC
    .remove(b'!')
    .remove(b'#')
    .remove(b'$')
    .remove(b'&')
    .remove(b'\'')
    .remove(b'*')
    .remove(b'+')
    .remove(b'-')
    .remove(b'.')
    .remove(b'^')
    .remove(b'_')
    .remove(b'`')
    .remove(b'|')
    .remove(b'~');

/// Passes a request on, and the answer back as it comes.
pub async fn aggregated(
    aggregator: &Aggregator,
    remote: &Remote,
    user: &UserInfo,
    head: Parts,
    body: Body,
) -> Response {
    if !remote.available {
        return refused(503, "service unavailable");
    }
    let client = match aggregator.client(remote) {
        Ok(client) => client,
        Err(why) => return refused(500, &why),
    };
    let path = head.uri.path_and_query().map_or("/", |path| path.as_str());
    let mut request = Request::new(body);
    let Ok(uri) = remote.url(path).parse() else { return refused(500, "invalid path") };
    *request.uri_mut() = uri;
    *request.method_mut() = head.method.clone();
    let upgrading = upgrade::is_upgrade(&head.headers);
    let mut headers = clean(&if upgrading { head.headers.clone() } else { end_to_end(&head.headers) });
    headers.remove(http::header::HOST);
    set_remote_user(&mut headers, user);
    *request.headers_mut() = headers;
    let mut client_side = Request::from_parts(head, ());
    let mut response = match client.request(request).await {
        Ok(response) => response,
        Err(error) => return refused(503, &format!("error trying to reach service: {}", words(&error))),
    };
    if response.status() == StatusCode::SWITCHING_PROTOCOLS {
        let backend = hyper::upgrade::on(&mut response);
        let held = client_side.extensions_mut().remove::<Hold>();
        tunnel::connect(hyper::upgrade::on(&mut client_side), backend, held);
        let mut answer = http::Response::new(Body::default());
        *answer.status_mut() = StatusCode::SWITCHING_PROTOCOLS;
        *answer.headers_mut() = std::mem::take(response.headers_mut());
        return answer;
    }
    let (mut parts, body) = response.into_parts();
    parts.version = http::Version::default();
    parts.extensions.clear();
    parts.headers = end_to_end(&parts.headers);
    http::Response::from_parts(parts, body.map_err(Into::into).boxed_unsync())
}

/// A refusal as Go's `http.Error`.
fn refused(code: u16, why: &str) -> Response {
    respond::text(code, format!("{why}\n"))
}

/// Says who asks; whatever the client claimed itself is gone.
pub fn set_remote_user(headers: &mut HeaderMap, user: &UserInfo) {
    let claimed: Vec<HeaderName> =
        headers.keys().filter(|name| name.as_str().starts_with("x-remote-")).cloned().collect();
    for name in claimed {
        headers.remove(name);
    }
    let mut say = |name: &str, text: &str| {
        if let (Ok(name), Ok(value)) = (name.parse::<HeaderName>(), HeaderValue::from_str(text)) {
            headers.append(name, value);
        }
    };
    say("x-remote-user", &user.name);
    if !user.uid.is_empty() {
        say("x-remote-uid", &user.uid);
    }
    for group in &user.groups {
        say("x-remote-group", group);
    }
    for (key, values) in &user.extra {
        let name = format!("x-remote-extra-{}", utf8_percent_encode(key, HEADER_KEY));
        values.iter().for_each(|value| say(&name, value));
    }
}
