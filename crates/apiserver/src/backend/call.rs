//! One question to a webhook: a JSON object posted, a JSON object answered.

use std::time::Duration;

use apimachinery::{Value, meta};
use http::{HeaderValue, Request, header};
use http_body_util::{BodyExt as _, Limited};

use super::{Backends, Config, words};
use crate::http::respond;
use crate::server::MAX_BODY_BYTES;

/// An answer holds at most the objects that were sent, changed: no honest one is larger.
const ANSWER_BYTES_MAX: usize = 16 * MAX_BODY_BYTES;

/// Why there is no answer.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Failure {
    /// The configuration cannot be used.
    Client(String),
    /// Not reached, not in time, or an HTTP error.
    Call(String),
}

impl Backends {
    /// Posts `question` and waits so long at most. `timeout_parameter` is told to the server in the query, as upstream's.
    pub async fn ask(&self, config: &Config, question: &Value, timeout: Duration) -> Result<Value, Failure> {
        let client = self.client(config).map_err(Failure::Client)?;
        let url = config.url();
        let separator = if url.contains('?') { '&' } else { '?' };
        let url = format!("{url}{separator}timeout={}s", timeout.as_secs().max(1));
        let body = respond::full(question.to_string());
        let request = Request::post(&url)
            .header(header::CONTENT_TYPE, "application/json")
            .header(header::ACCEPT, "application/json, */*")
            .header(header::USER_AGENT, HeaderValue::from_static("kube-apiserver-admission"))
            .body(body)
            .map_err(|error| Failure::Client(error.to_string()))?;
        let failed = |why: String| Failure::Call(format!("Post {url:?}: {why}"));
        let exchange = async {
            let response = client.request(request).await.map_err(|error| failed(words(&error)))?;
            let code = response.status();
            let body = Limited::new(response.into_body(), ANSWER_BYTES_MAX).collect().await;
            let bytes = body.map_err(|error| failed(words(&*error)))?.to_bytes();
            if !code.is_success() {
                return Err(Failure::Call(refused(code.as_u16(), &bytes)));
            }
            serde_json::from_slice(&bytes).map_err(|error| Failure::Call(undecodable(&bytes, &error)))
        };
        match tokio::time::timeout(timeout, exchange).await {
            Ok(answer) => answer,
            Err(_) => Err(failed("context deadline exceeded".to_owned())),
        }
    }
}

/// A `Status` says what is wrong; anything else has only its code.
fn refused(code: u16, body: &[u8]) -> String {
    let status: Value = serde_json::from_slice(body).unwrap_or_default();
    match meta::str_at(&status, &["message"]) {
        "" => match code {
            404 => "the server could not find the requested resource".to_owned(),
            500 => {
                let text = String::from_utf8_lossy(body);
                format!("an error on the server ({:?}) has prevented the request from succeeding", text.trim())
            }
            503 => "the server is currently unable to handle the request".to_owned(),
            _ => format!("the server responded with the status code {code} but did not return more information"),
        },
        message => message.to_owned(),
    }
}

fn undecodable(bytes: &[u8], error: &serde_json::Error) -> String {
    if bytes.is_empty() {
        return "0-length response with status code: 200 and content type: ".to_owned();
    }
    format!("couldn't get version/kind; json parse error: {error}")
}
