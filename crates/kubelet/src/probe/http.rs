//! HTTP probes and hooks: one connection, one request, redirects on the same host followed, as upstream does.

use std::time::Duration;

use http_body_util::{BodyExt as _, Empty, Limited};
use hyper::body::Bytes;
use hyper::header::{HeaderMap, HeaderName, HeaderValue};
use hyper::{Method, StatusCode, Uri};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::{Container, HTTPGetAction};
use tokio::io::{AsyncRead, AsyncWrite};

use super::{Outcome, cut, net, tls};

const USER_AGENT: &str = "kube-probe/1.37";
/// A longer body is not looked at, and is no failure.
const MAX_BODY_BYTES: usize = 10 * 1024;
const MAX_REDIRECTS: usize = 10;

#[derive(Clone, Debug)]
pub struct Request {
    https: bool,
    host: String,
    port: u16,
    /// Path and query.
    path: String,
    headers: HeaderMap,
    /// What the Host header says, if the user said so.
    host_header: Option<HeaderValue>,
}

struct Answer {
    status: StatusCode,
    body: String,
    location: Option<String>,
}

impl Request {
    /// `pod_ip` is asked unless the action names a host.
    pub fn of_action(action: &HTTPGetAction, container: &Container, pod_ip: &str) -> Result<Self, String> {
        let port = net::resolve_port(&action.port, container)?;
        let https = action.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        let host = action.host.clone().filter(|host| !host.is_empty()).unwrap_or_else(|| pod_ip.to_owned());
        let path = action.path.as_deref().unwrap_or_default();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        let mut headers = HeaderMap::new();
        let mut host_header = None;
        for header in action.http_headers.iter().flatten() {
            let invalid = || format!("invalid header \"{}\"", header.name);
            let name = HeaderName::try_from(&header.name).map_err(|_| invalid())?;
            let value = HeaderValue::try_from(&header.value).map_err(|_| invalid())?;
            if name == hyper::header::HOST {
                host_header = Some(value);
            } else {
                headers.append(name, value);
            }
        }
        if !headers.contains_key(hyper::header::ACCEPT) {
            headers.insert(hyper::header::ACCEPT, HeaderValue::from_static("*/*"));
        }
        if !headers.contains_key(hyper::header::USER_AGENT) {
            headers.insert(hyper::header::USER_AGENT, HeaderValue::from_static(USER_AGENT));
        }
        drop_emptied(&mut headers);
        Ok(Request { https, host, port, path, headers, host_header })
    }

    fn url(&self) -> String {
        let scheme = if self.https { "https" } else { "http" };
        format!("{scheme}://{}{}", net::join_host_port(&self.host, self.port), self.path)
    }

    /// The request that a redirect leads to; none if it leads to another host.
    fn redirected(&self, location: &str) -> Option<Request> {
        let target: Uri = location.parse().ok()?;
        let path = target.path_and_query().map_or("/", |path| path.as_str()).to_owned();
        let Some(host) = target.host() else {
            let path = if location.starts_with('/') { path } else { beside(&self.path, location) };
            return Some(Request { path, ..self.clone() });
        };
        let https = target.scheme_str() == Some("https");
        let port = target.port_u16().unwrap_or(if https { 443 } else { 80 });
        let host = host.trim_matches(['[', ']']);
        (host == self.host).then(|| Request { https, port, path, ..self.clone() })
    }
}

/// A user removes a default header by setting it to nothing.
fn drop_emptied(headers: &mut HeaderMap) {
    for name in [hyper::header::ACCEPT, hyper::header::USER_AGENT] {
        if headers.get(&name).is_some_and(HeaderValue::is_empty) {
            headers.remove(&name);
        }
    }
}

fn beside(path: &str, relative: &str) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let dir = path.rfind('/').map_or("", |at| &path[..at]);
    format!("{dir}/{relative}")
}

/// 200 to 399 is success. Redirects to other hosts are not followed and count as success with a warning.
pub async fn probe(request: &Request, timeout: Duration) -> Outcome {
    let url = request.url();
    let answer = match tokio::time::timeout(timeout, follow(request.clone())).await {
        Ok(Ok(answer)) => answer,
        Ok(Err(error)) => return Outcome::Failure(format!("Get \"{url}\": {error}")),
        Err(_) => {
            let why = "context deadline exceeded (Client.Timeout exceeded while awaiting headers)";
            return Outcome::Failure(format!("Get \"{url}\": {why}"));
        }
    };
    let status = answer.status;
    if status.is_redirection() {
        let body = answer.body;
        return Outcome::Warning(format!("Probe terminated redirects, Response body: {body}"));
    }
    if status.is_success() {
        Outcome::Success
    } else {
        Outcome::Failure(format!("HTTP probe failed with statuscode: {}", status.as_u16()))
    }
}

/// For lifecycle hooks any answer below 400 is good, and redirects are not followed.
pub async fn get_for_hook(request: &Request, timeout: Duration) -> Result<(), String> {
    match tokio::time::timeout(timeout, send(request)).await {
        Ok(Ok(answer)) if answer.status.as_u16() < 400 => Ok(()),
        Ok(Ok(answer)) => Err(format!("HTTP status {}: {}", answer.status.as_u16(), cut(&answer.body))),
        Ok(Err(error)) => Err(format!("Get \"{}\": {error}", request.url())),
        Err(_) => Err(format!("Get \"{}\": timed out", request.url())),
    }
}

async fn follow(mut request: Request) -> Result<Answer, String> {
    for _ in 0..MAX_REDIRECTS {
        let answer = send(&request).await?;
        let next = answer.location.as_deref().filter(|_| answer.status.is_redirection());
        match next.and_then(|location| request.redirected(location)) {
            Some(next) => request = next,
            None => return Ok(answer),
        }
    }
    Err(format!("stopped after {MAX_REDIRECTS} redirects"))
}

async fn send(request: &Request) -> Result<Answer, String> {
    let stream = net::connect(&request.host, request.port, Duration::from_secs(3600)).await?;
    if !request.https {
        return exchange(request, stream).await;
    }
    let name = rustls::pki_types::ServerName::try_from(request.host.clone()).map_err(|error| error.to_string())?;
    let connector = tokio_rustls::TlsConnector::from(tls::config());
    let stream = connector.connect(name, stream).await.map_err(|error| format!("tls: {error}"))?;
    exchange(request, stream).await
}

async fn exchange(
    request: &Request,
    stream: impl AsyncRead + AsyncWrite + Unpin + Send + 'static,
) -> Result<Answer, String> {
    let (mut sender, connection) =
        hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| error.to_string())?;
    let driver = AbortOnDrop(tokio::spawn(async move {
        let _ = connection.await;
    }));
    let default_port = if request.https { 443 } else { 80 };
    let own_host = if request.port == default_port && !request.host.contains(':') {
        request.host.clone()
    } else {
        net::join_host_port(&request.host, request.port)
    };
    let host = match &request.host_header {
        Some(value) => value.clone(),
        None => HeaderValue::try_from(own_host).map_err(|error| error.to_string())?,
    };
    let mut message = hyper::Request::builder()
        .method(Method::GET)
        .uri(&request.path)
        .body(Empty::<Bytes>::new())
        .map_err(|error| error.to_string())?;
    *message.headers_mut() = request.headers.clone();
    message.headers_mut().insert(hyper::header::HOST, host);
    message.headers_mut().insert(hyper::header::CONNECTION, HeaderValue::from_static("close"));
    let response = sender.send_request(message).await.map_err(|error| chain(&error))?;
    let status = response.status();
    let location =
        response.headers().get(hyper::header::LOCATION).and_then(|value| value.to_str().ok()).map(str::to_owned);
    let body = Limited::new(response.into_body(), MAX_BODY_BYTES).collect().await;
    let body = body.map(|body| body.to_bytes()).unwrap_or_default();
    drop(driver);
    Ok(Answer { status, body: String::from_utf8_lossy(&body).into_owned(), location })
}

struct AbortOnDrop(tokio::task::JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

fn chain(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        text = format!("{text}: {cause}");
        source = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

    /// Answers each connection with the next text; returns the port and the requests seen.
    async fn server(answers: Vec<String>) -> (u16, tokio::sync::mpsc::UnboundedReceiver<String>) {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (seen, requests) = tokio::sync::mpsc::unbounded_channel();
        tokio::spawn(async move {
            for answer in answers {
                let (mut stream, _) = listener.accept().await.unwrap();
                let mut buffer = vec![0; 4096];
                let length = stream.read(&mut buffer).await.unwrap();
                let _ = seen.send(String::from_utf8_lossy(&buffer[..length]).into_owned());
                let _ = stream.write_all(answer.as_bytes()).await;
            }
        });
        (port, requests)
    }

    fn request(port: u16, extra: serde_json::Value) -> Request {
        let mut action = serde_json::json!({"port": port, "path": "/healthz?x=1"});
        action.as_object_mut().unwrap().extend(extra.as_object().unwrap().clone());
        Request::of_action(&serde_json::from_value(action).unwrap(), &Container::default(), "127.0.0.1").unwrap()
    }

    fn answer(status: &str, headers: &str) -> String {
        format!("HTTP/1.1 {status}\r\n{headers}Content-Length: 2\r\n\r\nhi")
    }

    #[tokio::test]
    async fn statuses_and_headers() {
        let (port, mut requests) = server(vec![answer("200 OK", ""), answer("503 No", "")]).await;
        let headers =
            serde_json::json!({"httpHeaders": [{"name": "Host", "value": "me"}, {"name": "X-A", "value": "b"}]});
        assert_eq!(probe(&request(port, headers), Duration::from_secs(5)).await, Outcome::Success);
        let seen = requests.recv().await.unwrap().to_lowercase();
        assert!(seen.starts_with("get /healthz?x=1 http/1.1"), "{seen}");
        assert!(
            seen.contains("host: me\r\n") && seen.contains("x-a: b") && seen.contains("user-agent: kube-probe/"),
            "{seen}"
        );
        let failed = probe(&request(port, serde_json::json!({})), Duration::from_secs(5)).await;
        assert_eq!(failed, Outcome::Failure("HTTP probe failed with statuscode: 503".to_owned()));
    }

    #[tokio::test]
    async fn redirects_stay_on_the_host() {
        let elsewhere = answer("302 Found", "Location: http://198.51.100.1/\r\n");
        let answers = vec![answer("302 Found", "Location: /other\r\n"), answer("200 OK", ""), elsewhere];
        let (port, mut requests) = server(answers).await;
        let request = request(port, serde_json::json!({}));
        assert_eq!(probe(&request, Duration::from_secs(5)).await, Outcome::Success);
        requests.recv().await.unwrap();
        assert!(requests.recv().await.unwrap().starts_with("GET /other "));
        assert!(matches!(probe(&request, Duration::from_secs(5)).await, Outcome::Warning(_)));
    }

    #[tokio::test]
    async fn silence_is_a_failure_in_time() {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let outcome = probe(&request(port, serde_json::json!({})), Duration::from_millis(50)).await;
        assert!(matches!(outcome, Outcome::Failure(text) if text.contains("deadline exceeded")));
    }
}
