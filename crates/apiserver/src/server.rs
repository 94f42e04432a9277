//! The request pipeline: who → what → may they → limits → dispatch → answer. One function, one layer a line.

use std::net::SocketAddr;
use std::panic::AssertUnwindSafe;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant, SystemTime};

use apimachinery::resource::{ResourceRow, ResourceTable};
use apimachinery::status::{Result, StatusError};
use bytes::{Bytes, BytesMut};
use futures::FutureExt as _;
use futures::future::BoxFuture;
use http::request::Parts;
use http::{HeaderMap, header};
use http_body::Body as _;
use http_body_util::BodyExt as _;
use parking_lot::RwLock;

use crate::admission::Chain;
use crate::admission::policies::Policies;
use crate::admission::webhooks::Webhooks;
use crate::aggregator::{Aggregator, Remote};
use crate::audit::{Arrival, Auditor, Micros, Record};
use crate::authn::{Authenticator, Credentials, Peer};
use crate::authz::{Authorizer, Decision};
use crate::background::Background;
use crate::conversion::Conversions;
use crate::gate::{self, Gate, Limits};
use crate::http::negotiate::{self, Accepted};
use crate::http::parse::request_info;
use crate::http::query::Query;
use crate::http::socket::Socket;
use crate::http::{Body, BoxError, Response, respond};
use crate::metrics::Metrics;
use crate::object::ObjectStore;
use crate::proxy::Dialer;
use crate::request::{RequestInfo, UserInfo};
use crate::strategy::{Settings, Strategies};
use crate::view::View;
use crate::warnings::Warnings;
use crate::{health, nonresource, registry};

/// Upstream's limit on request bodies.
pub const MAX_BODY_BYTES: usize = 3 * 1024 * 1024;
/// A body that goes on beyond this is cut off.
const MAX_DISCARDED_BYTES: usize = 4 * MAX_BODY_BYTES;

/// Who sends a request.
#[derive(Clone)]
pub enum Caller {
    /// A component of this process; its identity was fixed when its transport was made.
    Known(Arc<UserInfo>),
    /// A client on the network, with the certificate of its TLS connection, if it showed one, and the connection's other end, where
    /// that is known.
    Remote { peer: Option<Arc<Peer>>, address: Option<SocketAddr> },
}

/// What a server is made of.
pub struct Components {
    pub store: ObjectStore,
    pub table: ResourceTable,
    pub authenticator: Arc<Authenticator>,
    pub authorizer: Arc<Authorizer>,
    pub admission: Chain,
    pub strategies: Strategies,
    pub settings: Settings,
    pub dialer: Dialer,
    pub version: nonresource::Version,
}

pub struct Inner {
    pub view: View,
    table: RwLock<Arc<ResourceTable>>,
    pub authenticator: Arc<Authenticator>,
    pub authorizer: Arc<Authorizer>,
    pub admission: Chain,
    pub webhooks: Webhooks,
    pub policies: Policies,
    pub aggregator: Aggregator,
    pub(crate) conversions: Conversions,
    pub strategies: Strategies,
    pub settings: Settings,
    /// How to reach kubelets and pods.
    pub dialer: Dialer,
    pub version: nonresource::Version,
    pub metrics: Metrics,
    pub health: health::Health,
    pub documents: nonresource::Documents,
    pub gate: Gate,
    /// To be stopped before the store is closed.
    pub background: Background,
    /// Records requests, if the server was told to; to be set before it serves.
    pub audit: OnceLock<Arc<Auditor>>,
}

/// The API server. Cloning shares it.
#[derive(Clone)]
pub struct ApiServer {
    inner: Arc<Inner>,
}

impl std::ops::Deref for ApiServer {
    type Target = Inner;
    fn deref(&self) -> &Inner {
        &self.inner
    }
}

/// One authorised request for a resource, on its way through the registry.
#[derive(Clone)]
pub struct Call {
    pub user: Arc<UserInfo>,
    pub info: RequestInfo,
    pub row: Arc<ResourceRow>,
    pub query: Query,
    pub accepted: Accepted,
    pub head: Parts,
    pub warnings: Warnings,
    /// Of a request that is audited.
    pub audit: Option<Arc<Record>>,
}

impl Call {
    pub fn header(&self, name: header::HeaderName) -> Option<&str> {
        header_text(&self.head.headers, name)
    }
}

impl ApiServer {
    pub fn new(parts: Components) -> Self {
        ApiServer::with_limits(parts, Limits::default())
    }

    pub fn with_limits(parts: Components, limits: Limits) -> Self {
        let view = View::new(parts.store);
        let inner = Inner {
            webhooks: Webhooks::new(view.clone()),
            policies: Policies::new(view.clone()),
            aggregator: Aggregator::new(view.clone()),
            conversions: Conversions::default(),
            view,
            table: RwLock::new(Arc::new(parts.table)),
            authenticator: parts.authenticator,
            authorizer: parts.authorizer,
            admission: parts.admission,
            strategies: parts.strategies,
            settings: parts.settings,
            dialer: parts.dialer,
            version: parts.version,
            metrics: Metrics::default(),
            health: health::Health::default(),
            documents: nonresource::Documents::default(),
            gate: Gate::new(limits),
            background: Background::default(),
            audit: OnceLock::new(),
        };
        ApiServer { inner: Arc::new(inner) }
    }

    /// The rows now served.
    pub fn table(&self) -> Arc<ResourceTable> {
        self.inner.table.read().clone()
    }

    /// Serves other rows from now on: what `change` makes of a copy of those that are served.
    pub(crate) fn change_table(&self, change: impl FnOnce(&mut ResourceTable)) {
        let mut current = self.inner.table.write();
        let mut next = ResourceTable::clone(&current);
        change(&mut next);
        *current = Arc::new(next);
        self.aggregator.table_changed.notify_one();
    }

    /// Answers one request. Never fails and never panics: a panic below is a bug, answered as an internal error.
    pub async fn handle<B>(&self, request: http::Request<B>, caller: Caller) -> Response
    where
        B: http_body::Body<Data = Bytes> + Send + 'static,
        B::Error: Into<BoxError>,
    {
        let request = request.map(|body| body.map_err(into_box::<B>).boxed_unsync());
        // Boxed as a trait object here, so that the pipeline is compiled once and not for each kind of body.
        let answer: BoxFuture<'static, Response> = Box::pin(self.clone().answer(request, caller));
        match AssertUnwindSafe(answer).catch_unwind().await {
            Ok(response) => response,
            Err(_) => {
                tracing::error!("a request made the API server panic; this is a bug");
                gate::plain(500, "This request caused apiserver to panic. Look in the logs for details.")
            }
        }
    }

    async fn answer(self, request: http::Request<Body>, caller: Caller) -> Response {
        let started = Instant::now();
        let (head, body) = request.into_parts();
        let query = Query::parse(head.uri.query().unwrap_or_default());
        let info = request_info(&head.method, head.uri.path(), &query);
        let audit_id = header_text(&head.headers, header::HeaderName::from_static("audit-id"));
        let audit_id = audit_id.filter(|id| !id.is_empty()).map(str::to_owned);
        let audit_id = audit_id.unwrap_or_else(|| uuid::Uuid::new_v4().to_string());
        let received = self.audit.get().map(|_| Micros::now());
        let label = if self.serves(&info) { self.metrics.label(&info) } else { None };
        let agent = header_text(&head.headers, header::USER_AGENT).unwrap_or_default();
        let pretty = info.is_resource && !is_long_running(&info) && query.pretty(agent);
        let warnings = Warnings::default();
        let mut record = None;
        let note = Note { record: &mut record, received, audit_id: &audit_id };
        let mut response = match self.checked(head, body, query, info, caller, warnings.clone(), note).await {
            Ok(response) => response,
            Err(error) => respond::error(&error),
        };
        if let Some(record) = record {
            response = Box::pin(record.answered(response)).await;
        }
        if pretty {
            response = respond::indented(response);
        }
        respond::add_warnings(&mut response, &warnings.take());
        if let Ok(value) = audit_id.parse() {
            response.headers_mut().insert("audit-id", value);
        }
        self.metrics.observe(label, response.status().as_u16(), started.elapsed());
        response
    }

    #[allow(clippy::too_many_arguments, reason = "the parts of one request, each of which goes its own way from here")]
    async fn checked(
        &self,
        head: Parts,
        body: Body,
        query: Query,
        info: RequestInfo,
        caller: Caller,
        warnings: Warnings,
        mut note: Note<'_>,
    ) -> Result<Response> {
        let user = self.authenticate(&head.headers, &caller);
        if let Some(auditor) = self.audit.get()
            // Boxed, so that a request which nobody audits carries no room for it.
            && let Some(refused) = Box::pin(note.begin(self, auditor, &user, &head, &info, &caller, &warnings)).await
        {
            return Ok(refused);
        }
        let record = note.record.clone();
        let user = user?;
        refuse_slashes(&info)?;
        let user = self.impersonate(user, &head.headers, record.as_deref())?;
        let time = self.gate.time_for(&query)?;
        let began = Instant::now();
        let pass = match self.turn(&user, &info, &query, time).await {
            Ok(pass) => pass,
            Err(refused) => return Ok(refused),
        };
        let time = time.saturating_sub(began.elapsed());
        let lasting = gate::Lasting::of(&info);
        let outcome = self.authorised(head, body, query, info, user, warnings, time, record, note.audit_id).await;
        Ok(pass.answer(lasting, outcome.unwrap_or_else(|error| respond::error(&error))))
    }

    /// Carries out what a user asks for whose turn it is, if they may.
    #[allow(clippy::too_many_arguments, reason = "the parts of one request, each of which goes its own way from here")]
    async fn authorised(
        &self,
        mut head: Parts,
        body: Body,
        query: Query,
        info: RequestInfo,
        user: Arc<UserInfo>,
        warnings: Warnings,
        time: Duration,
        audit: Option<Arc<Record>>,
        audit_id: &str,
    ) -> Result<Response> {
        self.authorize(&user, &info, audit.as_deref())?;
        if let Some(remote) = self.remote(&info) {
            if let Some(record) = &audit {
                record.passed_on();
                head.extensions.insert(record.hold());
            }
            // What the other server records of the request is found by the same name.
            if let Ok(id) = audit_id.parse() {
                head.headers.insert("audit-id", id);
            }
            let streams = is_long_running(&info) || streaming::upgrade::is_upgrade(&head.headers);
            let work = crate::proxy::aggregated(&self.aggregator, &remote, &user, head, body);
            return in_time((!streams).then_some(time), work).await;
        }
        if !info.is_resource {
            return nonresource::answer(self, &head, &info).await;
        }
        let row = self.find_row(&info)?;
        refuse_misplaced(&row, &info)?;
        let streams = is_long_running(&info);
        let accepted = if is_connect(&info) {
            Accepted { encoding: negotiate::Encoding::Json, shape: negotiate::Shape::Object }
        } else {
            negotiate::accept(header_text(&head.headers, header::ACCEPT), row.stored)?
        };
        let socket = Socket::of(&mut head, &info)?;
        let held = audit.clone().filter(|_| socket.is_some());
        let call = Call { user, info, row, query, accepted, head, warnings, audit };
        let work = Box::pin(registry::dispatch(self, call, body));
        if streams {
            let response = work.await?;
            return Ok(match socket {
                Some(socket) => socket.deliver(gate::guarded_by(response, held)),
                None => response,
            });
        }
        in_time(Some(time), work).await?
    }

    fn authenticate(&self, headers: &HeaderMap, caller: &Caller) -> Result<Arc<UserInfo>> {
        match caller {
            Caller::Known(user) => Ok(user.clone()),
            Caller::Remote { peer, .. } => {
                let bearer = crate::authn::bearer_token(headers);
                let credentials = Credentials { peer: peer.as_deref(), bearer: bearer.as_deref(), now: now_seconds() };
                self.authenticator.authenticate(&credentials)
            }
        }
    }

    /// The other API server that a path belongs to, if it does: a resource of its group-version, or that group-version's discovery.
    fn remote(&self, info: &RequestInfo) -> Option<Arc<Remote>> {
        if info.is_resource {
            return self.aggregator.of(&info.group, &info.version);
        }
        match info.path.trim_matches('/').split('/').collect::<Vec<_>>().as_slice() {
            ["apis", group, version] | ["openapi", "v3", "apis", group, version] => self.aggregator.of(group, version),
            _ => None,
        }
    }

    /// Acts as another user where the caller asks for that and may.
    fn impersonate(&self, user: Arc<UserInfo>, headers: &HeaderMap, audit: Option<&Record>) -> Result<Arc<UserInfo>> {
        if !headers.keys().any(|k| k.as_str().starts_with("impersonate-")) {
            return Ok(user);
        }
        let other = crate::authn::impersonate(&self.authorizer, &user, headers).map(Arc::new)?;
        if let Some(record) = audit
            && *other != *user
        {
            record.impersonated(&other);
        }
        Ok(other)
    }

    fn authorize(&self, user: &UserInfo, info: &RequestInfo, audit: Option<&Record>) -> Result<()> {
        let note = |decision: &str, reason: &str| {
            if let Some(record) = audit {
                record.annotate("authorization.k8s.io/decision", decision);
                record.annotate("authorization.k8s.io/reason", reason);
            }
        };
        match self.authorizer.authorize(user, info) {
            Decision::Allow { reason } => {
                note("allow", &reason);
                Ok(())
            }
            Decision::NoOpinion { reason } | Decision::Deny { reason } => {
                note("forbid", &reason);
                Err(crate::authz::forbidden(user, info, &reason))
            }
        }
    }

    /// Whether there is such a resource; counters are kept of no others, or clients could grow them without bound.
    fn serves(&self, info: &RequestInfo) -> bool {
        let table = self.table();
        let row = table.get(&info.group, &info.version, &info.resource);
        row.is_some_and(|row| info.subresource.is_empty() || row.subresource(&info.subresource).is_some())
    }

    pub(crate) fn find_row(&self, info: &RequestInfo) -> Result<Arc<ResourceRow>> {
        self.table().get(&info.group, &info.version, &info.resource).cloned().ok_or_else(StatusError::no_such_path)
    }
}

/// Where a request's record goes once it has begun, and what it begins with.
struct Note<'a> {
    record: &'a mut Option<Arc<Record>>,
    received: Option<Micros>,
    audit_id: &'a str,
}

impl Note<'_> {
    /// Begins to record a request. An answer, if it goes no further.
    #[allow(clippy::too_many_arguments, reason = "what is known of a request before anything is done")]
    async fn begin(
        &mut self,
        server: &Inner,
        auditor: &Arc<Auditor>,
        user: &Result<Arc<UserInfo>>,
        head: &Parts,
        info: &RequestInfo,
        caller: &Caller,
        notes: &Warnings,
    ) -> Option<Response> {
        let address = if let Caller::Remote { address, .. } = caller { *address } else { None };
        let known = user.as_ref().ok();
        if matches!(caller, Caller::Remote { .. })
            && let Some(token) = crate::authn::bearer_token(&head.headers)
            && let Some((key, value)) = server.authenticator.note_of(&token, known.map(|user| &**user), now_seconds())
        {
            notes.annotate(key, &value);
        }
        let arrival = Arrival {
            user: known,
            info,
            uri: &head.uri,
            headers: &head.headers,
            address,
            received: self.received.unwrap_or_else(Micros::now),
            audit_id: self.audit_id,
            notes,
        };
        if let Err(error) = user {
            return Some(auditor.unauthenticated(arrival, respond::error(error)).await);
        }
        match auditor.begin(arrival).await {
            Ok(record) => {
                *self.record = record;
                None
            }
            Err(refused) => Some(refused),
        }
    }
}

/// What `work` comes to, within the time that a request has; streams have all of it.
async fn in_time<T>(time: Option<Duration>, work: impl Future<Output = T>) -> Result<T> {
    let Some(time) = time else { return Ok(work.await) };
    let late = |_| StatusError::timeout("Timeout: request did not complete within the allotted timeout", 0);
    tokio::time::timeout(time, work).await.map_err(late)
}

fn into_box<B>(error: B::Error) -> BoxError
where
    B: http_body::Body<Error: Into<BoxError>>,
{
    error.into()
}

/// Reads a body of at most upstream's limit. What is sent beyond it is read and dropped, within reason: a client that is still
/// sending would otherwise see its connection break, and not the answer.
pub async fn collect(mut body: Body) -> Result<Bytes> {
    let mut collected = BytesMut::new();
    let mut total = 0;
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|e| StatusError::bad_request(format!("unable to read the request body: {e}")))?;
        let Ok(data) = frame.into_data() else { continue };
        total += data.len();
        if total <= MAX_BODY_BYTES {
            if collected.is_empty() && body.is_end_stream() {
                return Ok(data);
            }
            collected.extend_from_slice(&data);
        } else if total > MAX_DISCARDED_BYTES {
            break;
        }
    }
    if total > MAX_BODY_BYTES {
        return Err(StatusError::request_too_large(format!("Request entity too large: limit is {MAX_BODY_BYTES}")));
    }
    Ok(collected.freeze())
}

/// An encoded slash would let one path segment pass for two, in keys and in checks by namespace.
fn refuse_slashes(info: &RequestInfo) -> Result<()> {
    let segments = [&info.group, &info.version, &info.namespace, &info.resource, &info.name, &info.subresource];
    if info.is_resource && segments.iter().any(|segment| segment.contains('/')) {
        return Err(StatusError::no_such_path());
    }
    Ok(())
}

/// What is in no namespace is not reached through one: rights in a namespace would count for it.
fn refuse_misplaced(row: &ResourceRow, info: &RequestInfo) -> Result<()> {
    if !row.is_namespaced() && !info.namespace.is_empty() && !info.is_namespace_itself {
        Err(StatusError::no_such_path())
    } else {
        Ok(())
    }
}

/// Subresources that connect to something else and stream.
pub fn is_connect(info: &RequestInfo) -> bool {
    matches!(info.subresource.as_str(), "log" | "exec" | "attach" | "portforward" | "proxy")
}

pub fn is_long_running(info: &RequestInfo) -> bool {
    info.verb == "watch" || is_connect(info)
}

pub fn header_text(headers: &HeaderMap, name: header::HeaderName) -> Option<&str> {
    headers.get(name).and_then(|v| v.to_str().ok())
}

/// Seconds since the epoch.
pub fn now_seconds() -> i64 {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).map_or(0, |d| d.as_secs() as i64)
}
