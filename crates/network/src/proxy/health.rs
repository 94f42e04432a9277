//! What load balancers ask: is this node's proxy well, and has this node endpoints of a service
//! (`spec.healthCheckNodePort`)?

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::net::{Ipv6Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

use http::{Response, StatusCode};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::service::service_fn;
use hyper_util::rt::{TokioIo, TokioTimer};
use parking_lot::Mutex;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::Semaphore;
use tokio::task::JoinHandle;

use super::plan::HealthCheck;
use super::table::ServiceName;

const MOST_CONNECTIONS: usize = 64;
const HEADER_TIMEOUT: Duration = Duration::from_secs(5);
/// How soon a port that somebody else holds is tried again.
const BIND_PAUSE: Duration = Duration::from_secs(5);

/// Ends a task with its owner.
pub struct AbortOnDrop(pub JoinHandle<()>);

impl Drop for AbortOnDrop {
    fn drop(&mut self) {
        self.0.abort();
    }
}

struct Served {
    check: HealthCheck,
    _server: AbortOnDrop,
}

#[derive(Default)]
struct State {
    synced: AtomicBool,
    services: Mutex<BTreeMap<ServiceName, Served>>,
}

/// The health checks of one node. Cloning shares them.
#[derive(Clone, Default)]
pub struct HealthChecks {
    state: Arc<State>,
}

impl HealthChecks {
    /// Whether the kernel has the rules that the API asks for.
    pub fn set_synced(&self, synced: bool) {
        self.state.synced.store(synced, Ordering::Relaxed);
    }

    /// Starts, changes or stops the server of one service. Must be called within a tokio runtime.
    pub fn set(&self, name: &ServiceName, check: Option<&HealthCheck>) {
        let mut services = self.state.services.lock();
        let Some(check) = check else {
            services.remove(name);
            return;
        };
        match services.get_mut(name) {
            Some(served) if served.check.port == check.port => served.check = check.clone(),
            _ => {
                let address = SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), check.port);
                let (checks, of) = (self.clone(), name.clone());
                let server = tokio::spawn(serve(address, move |_path| checks.answer_service(&of)));
                services.insert(name.clone(), Served { check: check.clone(), _server: AbortOnDrop(server) });
            }
        }
    }

    /// Serves `/healthz` and `/livez` until it is dropped.
    pub async fn serve_healthz(self, address: SocketAddr) {
        serve(address, move |path| self.answer_healthz(path)).await;
    }

    fn answer_healthz(&self, path: &str) -> (StatusCode, Value) {
        let well = self.state.synced.load(Ordering::Relaxed);
        match path {
            "/healthz" | "/livez" => {
                let now = jiff::Timestamp::now().to_string();
                (code_for(well), json!({ "lastUpdated": now, "currentTime": now, "nodeEligible": true }))
            }
            _ => (StatusCode::NOT_FOUND, Value::Null),
        }
    }

    fn answer_service(&self, name: &ServiceName) -> (StatusCode, Value) {
        let well = self.state.synced.load(Ordering::Relaxed);
        let local = self.state.services.lock().get(name).map_or(0, |served| served.check.local_endpoints.len());
        let body = json!({
            "service": { "namespace": name.0, "name": name.1 },
            "localEndpoints": local,
            "serviceProxyHealthy": well,
        });
        (code_for(well && local > 0), body)
    }
}

fn code_for(well: bool) -> StatusCode {
    if well { StatusCode::OK } else { StatusCode::SERVICE_UNAVAILABLE }
}

async fn serve(address: SocketAddr, answer: impl Fn(&str) -> (StatusCode, Value) + Clone + Send + 'static) {
    let listener = loop {
        match TcpListener::bind(address).await {
            Ok(listener) => break listener,
            Err(error) => tracing::warn!(%address, %error, "cannot serve health checks, will retry"),
        }
        tokio::time::sleep(BIND_PAUSE).await;
    };
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await.expect("the semaphore is never closed");
        let Ok((stream, _peer)) = listener.accept().await else {
            // Out of files: a pause lets others finish.
            tokio::time::sleep(Duration::from_millis(50)).await;
            continue;
        };
        let answer = answer.clone();
        tokio::spawn(async move {
            let service = service_fn(move |request: http::Request<hyper::body::Incoming>| {
                let (code, body) = answer(request.uri().path());
                async move { Ok::<_, Infallible>(render(code, &body)) }
            });
            let mut server = hyper::server::conn::http1::Builder::new();
            server.timer(TokioTimer::new()).header_read_timeout(HEADER_TIMEOUT).keep_alive(false);
            // A client that breaks off is no news.
            let _ = server.serve_connection(TokioIo::new(stream), service).await;
            drop(permit);
        });
    }
}

fn render(code: StatusCode, body: &Value) -> Response<Full<Bytes>> {
    let text = if body.is_null() { String::new() } else { body.to_string() };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = code;
    let headers = response.headers_mut();
    headers.insert(http::header::CONTENT_TYPE, http::HeaderValue::from_static("application/json"));
    headers.insert("x-content-type-options", http::HeaderValue::from_static("nosniff"));
    response
}
