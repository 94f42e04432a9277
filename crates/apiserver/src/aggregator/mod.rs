//! Aggregation: groups that other API servers serve, and the `APIService` objects that say so.
//!
//! A task follows the objects (`follow.rs`): it lists what this server serves itself, and finds out which of the others can be
//! reached (`status.rs`). Requests ask only what it found, so that nobody pays for aggregation who does not use it.

mod discovery;
mod follow;
mod local;
mod openapi;
mod status;

use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, OnceLock};

use apimachinery::{Value, meta};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use parking_lot::{Mutex, RwLock};
use rustls::client::ResolvesClientCert;
use tokio::sync::Notify;

pub use discovery::{in_groups, resources};
pub use follow::start;
pub use local::group_priority;

use crate::backend::{HttpClient, Trust, client_config, http_client};
use crate::view::View;

/// A group-version that another server serves.
#[derive(PartialEq)]
pub struct Remote {
    pub group: String,
    pub version: String,
    pub namespace: String,
    pub service: String,
    pub port: u16,
    /// `spec.groupPriorityMinimum` and `spec.versionPriority`.
    pub priority: (i64, i64),
    pub ca_bundle: Arc<[u8]>,
    pub unverified: bool,
    /// Whether its last check passed.
    pub available: bool,
    /// Its `APIResourceList`, as of the last check that passed.
    pub resources: Arc<Value>,
}

impl Remote {
    /// From an `APIService` that names a service, with what was known of it.
    fn of(object: &Value, known: Option<&Remote>) -> Option<Self> {
        let service = object["spec"].get("service").filter(|service| !service.is_null())?;
        // Nobody takes the group away in which this is taken back.
        if meta::str_at(object, &["spec", "group"]) == local::OWN_GROUP {
            return None;
        }
        let text = |path: &[&str]| meta::str_at(object, path).to_owned();
        let number = |key: &str| object["spec"][key].as_i64().unwrap_or(0);
        Some(Remote {
            group: text(&["spec", "group"]),
            version: text(&["spec", "version"]),
            namespace: text(&["spec", "service", "namespace"]),
            service: text(&["spec", "service", "name"]),
            port: service["port"].as_u64().and_then(|port| u16::try_from(port).ok()).unwrap_or(443),
            priority: (number("groupPriorityMinimum"), number("versionPriority")),
            ca_bundle: STANDARD.decode(text(&["spec", "caBundle"])).unwrap_or_default().into(),
            unverified: object["spec"]["insecureSkipTLSVerify"] == true,
            available: crate::crds::is_true(object, "Available"),
            resources: known.map(|known| known.resources.clone()).unwrap_or_default(),
        })
    }

    /// Where a path of it is. The host is the name that its certificate must carry.
    pub fn url(&self, path: &str) -> String {
        format!("https://{}.{}.svc:{}{path}", self.service, self.namespace, self.port)
    }
}

/// By group, then version.
pub type Remotes = BTreeMap<(String, String), Arc<Remote>>;

/// What is known of other API servers, and the connections to them.
pub struct Aggregator {
    view: View,
    any: AtomicBool,
    generation: AtomicU64,
    remotes: RwLock<Arc<Remotes>>,
    /// The front proxy's certificate: by it other servers believe what we say of users.
    identity: OnceLock<Arc<dyn ResolvesClientCert>>,
    clients: Mutex<Vec<Client>>,
    published: Mutex<Option<(u64, Arc<openapi::Published>)>>,
    /// Told when the rows that this server serves change.
    pub(crate) table_changed: Notify,
}

/// A pool of connections, and whom it believes: an authority's certificates, or anyone.
struct Client {
    ca_bundle: Arc<[u8]>,
    unverified: bool,
    pool: HttpClient,
}

/// Connections are kept for so many differently trusted servers.
const CLIENTS_MAX: usize = 100;

impl Aggregator {
    pub fn new(view: View) -> Self {
        Aggregator {
            view,
            any: AtomicBool::new(false),
            generation: AtomicU64::new(0),
            remotes: RwLock::default(),
            identity: OnceLock::new(),
            clients: Mutex::default(),
            published: Mutex::default(),
            table_changed: Notify::new(),
        }
    }

    /// With what this server makes itself known to other API servers. Takes effect once, before the first of them is asked.
    pub fn set_identity(&self, identity: Arc<dyn ResolvesClientCert>) {
        if self.identity.set(identity).is_err() {
            tracing::warn!("the front proxy's identity is set already");
        }
    }

    /// The server of a group-version, if it is another one.
    pub fn of(&self, group: &str, version: &str) -> Option<Arc<Remote>> {
        if !self.any.load(Ordering::Acquire) {
            return None;
        }
        self.remotes.read().get(&(group.to_owned(), version.to_owned())).cloned()
    }

    /// All group-versions of other servers; none for nearly every cluster.
    pub fn remotes(&self) -> Arc<Remotes> {
        self.remotes.read().clone()
    }

    /// Grows with every change of [`Aggregator::remotes`]; documents that are made of them can be kept by it.
    pub fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }

    fn set(&self, remotes: Remotes) {
        if **self.remotes.read() == remotes {
            return;
        }
        self.any.store(!remotes.is_empty(), Ordering::Release);
        *self.remotes.write() = Arc::new(remotes);
        self.generation.fetch_add(1, Ordering::AcqRel);
    }

    /// A client of a remote server: verified as its object says.
    pub fn client(&self, remote: &Remote) -> Result<HttpClient, String> {
        self.client_of(&remote.ca_bundle, remote.unverified)
    }

    fn client_of(&self, ca_bundle: &Arc<[u8]>, unverified: bool) -> Result<HttpClient, String> {
        let mut clients = self.clients.lock();
        if let Some(client) = clients.iter().find(|c| c.ca_bundle == *ca_bundle && c.unverified == unverified) {
            return Ok(client.pool.clone());
        }
        let trust = match (unverified, ca_bundle.is_empty()) {
            (true, _) => Trust::Anyone,
            (false, true) => Trust::Host,
            (false, false) => Trust::Bundle(ca_bundle),
        };
        let pool = http_client(&self.view, client_config(trust, self.identity.get().cloned())?, true);
        if clients.len() >= CLIENTS_MAX {
            clients.clear();
        }
        clients.push(Client { ca_bundle: ca_bundle.clone(), unverified, pool: pool.clone() });
        Ok(pool)
    }
}
