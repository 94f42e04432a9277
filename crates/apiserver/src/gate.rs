//! What stands between a known user and what is asked for: the time that there is, whether the server is stopping, and whose turn it is.
//!
//! Must not know: what requests do. What a request may is decided elsewhere.

use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicI64, Ordering};
use std::task::{Context, Poll};
use std::time::Duration;

use apimachinery::cron;
use apimachinery::status::{Result, StatusError};
use bytes::Bytes;
use http::{HeaderValue, header};
use http_body::{Frame, SizeHint};
use http_body_util::BodyExt as _;
use tokio::sync::{Notify, Semaphore, SemaphorePermit};

use crate::fairness::{Arrival, Fairness, Ticket, WatchGuard};
use crate::http::query::Query;
use crate::http::{Body, BoxError, Response, respond};
use crate::request::{RequestInfo, UserInfo};
use crate::server::{ApiServer, is_long_running};

/// Bounds of a server, under the names and with the defaults of upstream's flags.
#[derive(Clone, Debug, PartialEq)]
pub struct Limits {
    /// With priority and fairness their sum is what there is; without, each bounds its kind of requests. 0 is no bound.
    pub max_requests_inflight: u32,
    pub max_mutating_requests_inflight: u32,
    pub enable_priority_and_fairness: bool,
    /// Of requests that do not go on for long.
    pub request_timeout: Duration,
    /// How likely an answer over HTTP/2 asks the client to connect anew, so that clients spread over several servers.
    pub goaway_chance: f64,
    /// How long the server goes on as before once it is to stop; `/readyz` says so meanwhile.
    pub shutdown_delay: Duration,
    /// While requests in hand are finished, new ones are told to come back, instead of finding nobody.
    pub shutdown_send_retry_after: bool,
    /// How long streams may take to end by themselves.
    pub shutdown_watch_grace: Duration,
}

impl Default for Limits {
    fn default() -> Self {
        Limits {
            max_requests_inflight: 400,
            max_mutating_requests_inflight: 200,
            enable_priority_and_fairness: true,
            request_timeout: Duration::from_secs(60),
            goaway_chance: 0.0,
            shutdown_delay: Duration::ZERO,
            shutdown_send_retry_after: false,
            shutdown_watch_grace: Duration::from_secs(5),
        }
    }
}

/// Marks an answer after which the client is to leave the connection.
#[derive(Clone, Copy, Debug)]
pub struct GoAway;

/// The turn of a request: what it holds until it has been answered.
pub struct Pass<'a> {
    ticket: Option<Ticket>,
    _slot: Option<SemaphorePermit<'a>>,
    _counted: Counted,
}

/// Requests that are being carried out; and those that wait for it are not among them.
#[derive(Default)]
pub struct InFlight {
    counts: [AtomicI64; 2],
    changed: Notify,
}

/// One of [`InFlight`], until this is dropped.
pub struct Counted {
    all: Arc<InFlight>,
    kind: usize,
}

impl InFlight {
    fn begin(self: &Arc<Self>, info: &RequestInfo) -> Counted {
        let kind = usize::from(!is_read(&info.verb));
        self.counts[kind].fetch_add(1, Ordering::AcqRel);
        Counted { all: self.clone(), kind }
    }

    /// Of requests that only read, and of others.
    pub fn now(&self) -> [i64; 2] {
        [0, 1].map(|kind| self.counts[kind].load(Ordering::Acquire))
    }

    /// Until none is left. New ones may come meanwhile; whoever calls this has seen to it that they do not.
    pub async fn none(&self) {
        loop {
            let changed = self.changed.notified();
            if self.now().iter().sum::<i64>() <= 0 {
                return;
            }
            changed.await;
        }
    }
}

impl Drop for Counted {
    fn drop(&mut self) {
        self.all.counts[self.kind].fetch_sub(1, Ordering::AcqRel);
        self.all.changed.notify_waiters();
    }
}

/// All slots of a kind are taken.
struct TooMany;

/// Decides about requests before they are looked at.
pub struct Gate {
    pub limits: Limits,
    pub fairness: Fairness,
    pub in_flight: Arc<InFlight>,
    reads: Option<Semaphore>,
    writes: Option<Semaphore>,
}

impl Gate {
    pub fn new(limits: Limits) -> Self {
        let slots = |count: u32| (count > 0).then(|| Semaphore::new(count as usize));
        Gate {
            fairness: Fairness::new(limits.max_requests_inflight + limits.max_mutating_requests_inflight),
            in_flight: Arc::default(),
            reads: slots(limits.max_requests_inflight),
            writes: slots(limits.max_mutating_requests_inflight),
            limits,
        }
    }

    /// How long a request has: what it asks for with `timeout`, at most what the server gives.
    pub fn time_for(&self, query: &Query) -> Result<Duration> {
        let longest = self.limits.request_timeout;
        let Some(text) = query.get("timeout").filter(|text| !text.is_empty()) else { return Ok(longest) };
        // A negative one is no wish, as zero is none.
        let asked = match text.strip_prefix('-') {
            Some(rest) => cron::duration(rest).map(|_| Duration::ZERO),
            None => cron::duration(text),
        };
        let refused = |why| StatusError::bad_request(format!("invalid timeout specified in the request URL - {why}"));
        let asked = asked.map_err(refused)?;
        Ok(if asked.is_zero() { longest } else { asked.min(longest) })
    }

    fn slot(&self, user: &UserInfo, info: &RequestInfo) -> std::result::Result<Option<SemaphorePermit<'_>>, TooMany> {
        let pool = if is_read(&info.verb) { &self.reads } else { &self.writes };
        let Some(pool) = pool else { return Ok(None) };
        match pool.try_acquire() {
            Ok(slot) => Ok(Some(slot)),
            Err(_) if user.in_group(crate::authz::MASTERS) => Ok(None),
            Err(_) => Err(TooMany),
        }
    }
}

impl ApiServer {
    /// Waits for the request's turn. What cannot be served now is answered with 429.
    pub(crate) async fn turn(
        &self,
        user: &Arc<UserInfo>,
        info: &RequestInfo,
        query: &Query,
        time: Duration,
    ) -> std::result::Result<Pass<'_>, Response> {
        let gate = &self.gate;
        let is_watch = info.verb == "watch";
        let counted = |server: &ApiServer| server.gate.in_flight.begin(info);
        if !gate.limits.enable_priority_and_fairness {
            let slot = if is_long_running(info) { Ok(None) } else { gate.slot(user, info) };
            let slot = slot.map_err(|TooMany| come_back("Too many requests, please try again later.", 1))?;
            return Ok(Pass { ticket: None, _slot: slot, _counted: counted(self) });
        }
        if is_long_running(info) && !is_watch {
            return Ok(Pass { ticket: None, _slot: None, _counted: counted(self) });
        }
        let row = if matches!(info.verb.as_str(), "list" | "watch") { self.find_row(info).ok() } else { None };
        let prefix = row.as_ref().map_or("", |row| &*row.storage_prefix);
        // A quarter of its time it may wait.
        let patience = (time / 4).min(Duration::from_secs(60));
        let arrival = Arrival { user, info, query, patience, prefix };
        match gate.fairness.enter(&self.view, arrival).await {
            Ok(ticket) => Ok(Pass { ticket: Some(ticket), _slot: None, _counted: counted(self) }),
            Err(refused) => {
                let mut response = come_back("Too many requests, please try again later.", refused.seconds);
                refused.stamp(response.headers_mut());
                Err(response)
            }
        }
    }
}

impl Pass<'_> {
    /// Gives an answer the marks of its level. A list keeps its seats until it has been sent; a watch goes on without any, but
    /// counted; all others give theirs back.
    pub fn answer(mut self, lasting: Lasting, mut response: Response) -> Response {
        let Some(mut ticket) = self.ticket.take() else { return response };
        ticket.stamp(response.headers_mut());
        let watch: Option<WatchGuard> = ticket.watch.take();
        match lasting {
            Lasting::List => guarded(response, ticket),
            Lasting::Watch if response.status().is_success() => guarded(response, watch),
            Lasting::Watch | Lasting::No => response,
        }
    }
}

/// What goes on after an answer has begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    No,
    List,
    Watch,
}

impl Lasting {
    pub fn of(info: &RequestInfo) -> Self {
        match info.verb.as_str() {
            "list" => Lasting::List,
            "watch" => Lasting::Watch,
            _ => Lasting::No,
        }
    }
}

/// Verbs that upstream does not count as mutating.
pub fn is_read(verb: &str) -> bool {
    matches!(verb, "get" | "list" | "watch")
}

/// Whether a request is served though the server is about to stop: health, metrics, and what the server asks itself.
pub fn is_served_to_the_end(info: &RequestInfo, agent: &str) -> bool {
    let paths = ["/readyz", "/livez", "/healthz", "/metrics"];
    agent.starts_with("kube-apiserver/") || paths.iter().any(|path| info.path.starts_with(path))
}

/// 429 in plain text, as upstream's filters answer.
pub fn come_back(why: &str, seconds: u64) -> Response {
    let mut response = plain(429, why);
    response.headers_mut().insert(header::RETRY_AFTER, HeaderValue::from(seconds));
    response
}

/// An answer of the server's own frame, not of the API: plain text with a line end.
pub fn plain(code: u16, text: &str) -> Response {
    let mut response = respond::text(code, format!("{text}\n"));
    response.headers_mut().insert(header::X_CONTENT_TYPE_OPTIONS, HeaderValue::from_static("nosniff"));
    response
}

/// An answer that holds something until its body has been sent or given up.
pub fn guarded<G: Send + Unpin + 'static>(response: Response, guard: G) -> Response {
    response.map(|body| Guarded { body, _guard: guard }.boxed_unsync())
}

/// The same, where there is something to hold.
pub fn guarded_by<G: Send + Unpin + 'static>(response: Response, guard: Option<G>) -> Response {
    match guard {
        Some(guard) => guarded(response, guard),
        None => response,
    }
}

struct Guarded<G> {
    body: Body,
    _guard: G,
}

impl<G: Send + Unpin> http_body::Body for Guarded<G> {
    type Data = Bytes;
    type Error = BoxError;

    fn poll_frame(
        self: Pin<&mut Self>,
        context: &mut Context<'_>,
    ) -> Poll<Option<std::result::Result<Frame<Bytes>, BoxError>>> {
        Pin::new(&mut self.get_mut().body).poll_frame(context)
    }

    fn is_end_stream(&self) -> bool {
        self.body.is_end_stream()
    }

    fn size_hint(&self) -> SizeHint {
        self.body.size_hint()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_request_has_the_time_it_asks_for_up_to_the_servers() {
        let gate = Gate::new(Limits::default());
        let time = |query: &str| gate.time_for(&Query::parse(query)).map_err(|error| error.message);
        assert_eq!(time(""), Ok(Duration::from_secs(60)));
        assert_eq!(time("timeout=5s"), Ok(Duration::from_secs(5)));
        assert_eq!(time("timeout=0"), Ok(Duration::from_secs(60)));
        assert_eq!(time("timeout=-5s"), Ok(Duration::from_secs(60)));
        assert_eq!(time("timeout=1h"), Ok(Duration::from_secs(60)));
        let refused = "invalid timeout specified in the request URL - time: invalid duration \"soon\"";
        assert_eq!(time("timeout=soon"), Err(refused.to_owned()));
    }

    #[tokio::test]
    async fn requests_in_hand_are_waited_for() {
        let all = Arc::new(InFlight::default());
        let info = |verb: &str| RequestInfo { verb: verb.into(), ..RequestInfo::default() };
        let (read, write) = (all.begin(&info("get")), all.begin(&info("create")));
        assert_eq!(all.now(), [1, 1]);
        let none = tokio::spawn({
            let all = all.clone();
            async move { all.none().await }
        });
        drop(read);
        tokio::task::yield_now().await;
        assert!(!none.is_finished());
        drop(write);
        none.await.unwrap();
    }
}
