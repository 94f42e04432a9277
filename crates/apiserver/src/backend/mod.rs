//! Servers that the API server is a client of by somebody's configuration: admission and conversion webhooks, aggregated API
//! servers. Finds them, believes only whom the configuration says, and keeps connections for the next request.
//!
//! Must not know: what is asked of them.

mod call;
mod connect;
mod resolve;
mod trust;

use std::collections::HashMap;
use std::sync::Arc;

use apimachinery::{Value, meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use hyper_rustls::HttpsConnector;
use hyper_util::client::legacy::Client;
use hyper_util::rt::{TokioExecutor, TokioTimer};
use parking_lot::Mutex;
use rustls::ClientConfig;

pub use call::Failure;
pub use connect::{dial, words};
pub use resolve::{Place, resolve, service};
pub use trust::{Trust, client_config};

use crate::http::Body;
use crate::view::View;
use connect::Connector;

/// A pool of connections to whoever a trust lets in. HTTP/1.1 only, as upstream's webhook clients: one connection of HTTP/2 would
/// keep all requests at one of a service's endpoints.
pub type HttpClient = Client<HttpsConnector<Connector>, Body>;

/// As upstream: clients are kept for so many different configurations.
const CLIENTS_MAX: usize = 200;

/// `clientConfig` of a webhook, or what an `APIService` says of its server.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Config {
    pub target: Target,
    /// PEM; empty: the host's own authorities.
    pub ca_bundle: Arc<[u8]>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Target {
    Url(String),
    Service { namespace: String, name: String, path: String, port: u16 },
}

impl Config {
    /// From a `WebhookClientConfig`. None if it names nobody.
    pub fn parse(config: &Value) -> Option<Self> {
        let text = |path: &[&str]| meta::str_at(config, path).to_owned();
        let ca_bundle = STANDARD.decode(text(&["caBundle"])).unwrap_or_default().into();
        let target = match (config.get("service").filter(|s| !s.is_null()), meta::str_at(config, &["url"])) {
            (Some(service), _) => Target::Service {
                namespace: text(&["service", "namespace"]),
                name: text(&["service", "name"]),
                path: text(&["service", "path"]),
                port: service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
            },
            (None, "") => return None,
            (None, url) => Target::Url(url.to_owned()),
        };
        Some(Config { target, ca_bundle })
    }

    /// Where requests go. The host of a service is the name that its certificate must carry.
    pub fn url(&self) -> String {
        match &self.target {
            Target::Url(url) => url.clone(),
            Target::Service { namespace, name, path, port } => {
                let slash = if path.is_empty() || path.starts_with('/') { "" } else { "/" };
                format!("https://{name}.{namespace}.svc:{port}{slash}{path}")
            }
        }
    }
}

#[derive(Clone, PartialEq, Eq, Hash)]
struct Key {
    ca_bundle: Arc<[u8]>,
    service: bool,
}

/// The clients of all webhooks.
pub struct Backends {
    view: View,
    clients: Mutex<HashMap<Key, HttpClient>>,
}

impl Backends {
    pub fn new(view: View) -> Self {
        Backends { view, clients: Mutex::default() }
    }

    fn client(&self, config: &Config) -> Result<HttpClient, String> {
        let service = matches!(config.target, Target::Service { .. });
        let key = Key { ca_bundle: config.ca_bundle.clone(), service };
        if let Some(client) = self.clients.lock().get(&key) {
            return Ok(client.clone());
        }
        let trust = if config.ca_bundle.is_empty() { Trust::Host } else { Trust::Bundle(&config.ca_bundle) };
        let client = http_client(&self.view, client_config(trust, None)?, service);
        let mut clients = self.clients.lock();
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.insert(key, client.clone());
        Ok(client)
    }
}

/// A pool of connections under one TLS configuration. `services`: hosts are `name.namespace.svc`, and found in the store.
pub fn http_client(view: &View, tls: ClientConfig, services: bool) -> HttpClient {
    client(Connector::new(services.then(|| view.clone())), tls, false)
}

/// The same for servers of any place, with or without TLS.
pub fn any_scheme_client(tls: ClientConfig) -> HttpClient {
    client(Connector::new(None), tls, true)
}

fn client(connector: Connector, tls: ClientConfig, plain: bool) -> HttpClient {
    let https = hyper_rustls::HttpsConnectorBuilder::new().with_tls_config(tls);
    let https = if plain { https.https_or_http() } else { https.https_only() }.enable_http1();
    Client::builder(TokioExecutor::new()).pool_timer(TokioTimer::new()).build(https.wrap_connector(connector))
}
