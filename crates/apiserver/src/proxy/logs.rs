//! Container logs: the kubelet's answer as it comes, at the pace at which the client takes it.

use apimachinery::status::{Result, StatusError};
use bytes::Bytes;
use http::{Method, Request, StatusCode};
use http_body_util::{BodyExt as _, Empty, Limited};

use super::{Response, Target, respond};

/// How much of a kubelet's error is shown (upstream's `maxReadLength`).
const ERROR_BYTES_MAX: usize = 50_000;

/// Streams the log at `target`. When the client goes, dropping the answer's body closes the connection to the kubelet, which
/// ends a `follow`.
pub async fn logs(target: &Target) -> Result<Response> {
    let mut request = Request::new(Empty::<Bytes>::new());
    *request.method_mut() = Method::GET;
    let response = target
        .send(request)
        .await
        .map_err(|error| StatusError::new(500, "", format!("Get {:?}: {error}", target.url())))?;
    let status = response.status();
    if !status.is_success() {
        return Err(kubelet_error(status, &error_text(response.into_body()).await));
    }
    let body = response.into_body().map_err(Into::into).boxed_unsync();
    Ok(respond::with_body(200, "text/plain", body))
}

/// The text of an error answer, as far as it is shown.
pub(super) async fn error_text(body: hyper::body::Incoming) -> String {
    match Limited::new(body, ERROR_BYTES_MAX).collect().await {
        Ok(collected) => String::from_utf8_lossy(&collected.to_bytes()).into_owned(),
        Err(_) => "unable to read error from server response".to_owned(),
    }
}

/// A kubelet's refusal as the API's, by the rules of upstream's `GenericHttpResponseChecker`.
fn kubelet_error(status: StatusCode, text: &str) -> StatusError {
    let code = status.as_u16();
    match code {
        400 => StatusError::bad_request(text),
        401 => StatusError::new(code, "Unauthorized", "the server has asked for the client to provide credentials"),
        403 => StatusError::new(code, "Forbidden", text),
        404 => StatusError::no_such_path(),
        405 => {
            let message = "the server does not allow this method on the requested resource";
            StatusError::new(code, "MethodNotAllowed", message)
        }
        429 => {
            let message = "the server has received too many requests and has asked us to try again later";
            StatusError::new(code, "TooManyRequests", message)
        }
        500 => StatusError::internal(text),
        503 => StatusError::unavailable("the server is currently unable to handle the request"),
        501.. => StatusError::new(
            code,
            "InternalError",
            format!("an error on the server ({text:?}) has prevented the request from succeeding"),
        ),
        _ => StatusError::new(
            code,
            "",
            format!("the server responded with the status code {code} but did not return more information"),
        ),
    }
}
