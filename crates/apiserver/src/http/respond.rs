//! Making answers.

use apimachinery::Value;
use apimachinery::status::StatusError;
use bytes::Bytes;
use futures::Stream;
use http::{HeaderValue, StatusCode, header};
use http_body::Frame;
use http_body_util::{BodyExt as _, Full, StreamBody};

use super::indent::Indenter;
use super::negotiate::Encoding;
use super::{Body, BoxError, Response};

pub fn full(bytes: impl Into<Bytes>) -> Body {
    Full::new(bytes.into()).map_err(|never| match never {}).boxed_unsync()
}

/// A body of chunks made as the client takes them.
pub fn streamed(chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static) -> Body {
    use futures::TryStreamExt as _;
    StreamBody::new(chunks.map_ok(Frame::data)).boxed_unsync()
}

pub fn bytes(code: u16, content_type: &'static str, body: impl Into<Bytes>) -> Response {
    with_body(code, content_type, full(body))
}

pub fn with_body(code: u16, content_type: &'static str, body: Body) -> Response {
    let mut response = http::Response::new(body);
    *response.status_mut() = StatusCode::from_u16(code).unwrap_or(StatusCode::INTERNAL_SERVER_ERROR);
    response.headers_mut().insert(header::CONTENT_TYPE, HeaderValue::from_static(content_type));
    response.headers_mut().insert(header::CACHE_CONTROL, HeaderValue::from_static("no-cache, private"));
    response
}

pub fn text(code: u16, body: impl Into<String>) -> Response {
    bytes(code, "text/plain; charset=utf-8", body.into())
}

/// JSON bytes, turned into YAML where the client wants that.
pub fn json_bytes(code: u16, encoding: Encoding, json: Bytes) -> Response {
    match encoding {
        Encoding::Json => bytes(code, "application/json", json),
        Encoding::Yaml => {
            let value: Value = serde_json::from_slice(&json).unwrap_or_default();
            self::value(code, encoding, &value)
        }
    }
}

pub fn value(code: u16, encoding: Encoding, value: &Value) -> Response {
    match encoding {
        Encoding::Json => bytes(code, "application/json", value.to_string()),
        Encoding::Yaml => bytes(code, "application/yaml", apimachinery::schema::decode::to_yaml(value)),
    }
}

/// JSON for human eyes: indented by two, as upstream does for `pretty=true` and for the clients people type in.
pub fn indented(response: Response) -> Response {
    let is_json =
        response.headers().get(header::CONTENT_TYPE).is_some_and(|t| t.as_bytes().starts_with(b"application/json"));
    if !is_json {
        return response;
    }
    let mut indenter = Indenter::default();
    response.map(|body| body.map_frame(move |frame| frame.map_data(|data| indenter.feed(&data))).boxed_unsync())
}

/// The one place where an error becomes an HTTP answer.
pub fn error(error: &StatusError) -> Response {
    let mut response = bytes(error.code, "application/json", error.to_value().to_string());
    if let Some(seconds) = error.details.as_ref().map(|d| d.retry_after_seconds).filter(|s| *s > 0) {
        response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    }
    response
}

/// Adds `Warning: 299` headers, as upstream's: quoted, no control characters, bounded in number and length.
pub fn add_warnings(response: &mut Response, warnings: &[String]) {
    let mut seen: Vec<&str> = Vec::new();
    for warning in warnings {
        if seen.contains(&warning.as_str()) || seen.len() >= 32 {
            continue;
        }
        seen.push(warning);
        let clean: String = warning
            .chars()
            .filter(|c| !c.is_control())
            .take(256)
            .flat_map(|c| if c == '"' || c == '\\' { vec!['\\', c] } else { vec![c] })
            .collect();
        if let Ok(header) = HeaderValue::from_bytes(format!("299 - \"{clean}\"").as_bytes()) {
            response.headers_mut().append(header::WARNING, header);
        }
    }
}
