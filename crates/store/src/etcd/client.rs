//! Calls to the cluster: which member is asked, for how long, what is tried again, and what went wrong in our words.
//!
//! The rule of trying again: a call that reads, or that does the same however often it is done, goes to the next member until its
//! deadline. A call that writes does so only while it is certain that no member has it: from the moment that it may have been
//! sent, a broken connection means that nobody knows whether it happened, and that is what the caller is told.

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use http::uri::PathAndQuery;
use tokio::time::Instant;
use tonic::client::Grpc;
use tonic::transport::Channel;
use tonic_prost::ProstCodec;

use super::connect::{Address, Credentials, chain, connect};
use super::wire::{self, Answer, method};
use crate::{Error, Revision};

/// etcd gives up a request after five seconds and two elections, seven with its defaults.
const ATTEMPT_WITHIN: Duration = Duration::from_secs(10);
/// For all attempts of a call together.
pub(crate) const CALL_WITHIN: Duration = Duration::from_secs(15);
/// Between rounds over all members.
const PAUSE: Duration = Duration::from_millis(50);
const PAUSE_MAX: Duration = Duration::from_millis(800);
/// A member that could not be reached is left alone for so long.
const RECONNECT_AFTER: Duration = Duration::from_millis(300);

pub(crate) struct Client {
    members: Vec<Member>,
    credentials: Credentials,
    /// Index of the member that answered last.
    preferred: AtomicUsize,
    /// 0 until the first answer.
    cluster: AtomicU64,
    /// Why this cluster is not spoken to any more.
    refused: OnceLock<Error>,
}

struct Member {
    address: Address,
    text: String,
    link: tokio::sync::Mutex<Link>,
}

/// Made by the first call that needs it, while the others wait.
#[derive(Default)]
struct Link {
    channel: Option<Channel>,
    /// When connecting failed last, and why: whoever waited meanwhile does not try the same again.
    failed: Option<(Instant, String)>,
}

/// Why an attempt did not succeed.
#[derive(Debug)]
pub(crate) enum Failure {
    /// The member cannot have acted on it.
    NotSent(String),
    /// It may have, or will.
    Unknown(String),
    /// It answered, and every other member would say the same.
    Refused(Error),
}

impl Failure {
    pub(crate) fn into_error(self) -> Error {
        match self {
            Failure::NotSent(reason) => Error::Unavailable { reason },
            Failure::Unknown(reason) => Error::Uncertain { reason },
            Failure::Refused(error) => error,
        }
    }
}

impl Client {
    pub(crate) fn new(endpoints: &[String], credentials: Credentials) -> Result<Self, Error> {
        let member = |text: &String| {
            let address = Address::parse(text)?;
            Ok(Member { address, text: text.clone(), link: tokio::sync::Mutex::default() })
        };
        let members = endpoints.iter().map(member).collect::<Result<Vec<_>, Error>>()?;
        if members.is_empty() {
            return Err(Error::Configuration { reason: "no endpoint is given".to_owned() });
        }
        if members.iter().any(|member| matches!(member.address, Address::Tcp { tls: true, .. })) {
            // Now, rather than at each connection, and with the file's name.
            credentials.tls()?;
        }
        Ok(Client {
            members,
            credentials,
            preferred: AtomicUsize::new(0),
            cluster: AtomicU64::new(0),
            refused: OnceLock::new(),
        })
    }

    /// Stops speaking to this cluster for good. The first reason counts.
    pub(crate) fn refuse(&self, error: Error) -> Error {
        let first = self.refused.get().is_none();
        let error = self.refused.get_or_init(|| error).clone();
        if first {
            tracing::error!(%error, "the data store is refused");
        }
        error
    }

    pub(crate) fn check(&self) -> Result<(), Error> {
        self.refused.get().map_or(Ok(()), |error| Err(error.clone()))
    }

    /// Has the next call go to another member.
    pub(crate) fn avoid(&self, member: usize) {
        let next = (member + 1) % self.members.len();
        // Another call may have turned away already.
        let _ = self.preferred.compare_exchange(member, next, Ordering::Relaxed, Ordering::Relaxed);
    }

    /// A call that may be done twice.
    pub(crate) async fn repeatable<Req, Res>(&self, method: &'static str, request: &Req) -> Result<Res, Error>
    where
        Req: prost::Message + Clone + Send + Sync + 'static,
        Res: prost::Message + Default + Answer + Send + Sync + 'static,
    {
        self.call(method, request, true).await.map_err(Failure::into_error)
    }

    /// A call that must not be done twice.
    pub(crate) async fn once<Req, Res>(&self, method: &'static str, request: &Req) -> Result<Res, Failure>
    where
        Req: prost::Message + Clone + Send + Sync + 'static,
        Res: prost::Message + Default + Answer + Send + Sync + 'static,
    {
        self.call(method, request, false).await
    }

    async fn call<Req, Res>(&self, method: &'static str, request: &Req, again: bool) -> Result<Res, Failure>
    where
        Req: prost::Message + Clone + Send + Sync + 'static,
        Res: prost::Message + Default + Answer + Send + Sync + 'static,
    {
        let deadline = Instant::now() + CALL_WITHIN;
        let mut pause = PAUSE;
        let mut tried = 0;
        loop {
            self.check().map_err(Failure::Refused)?;
            let member = self.preferred.load(Ordering::Relaxed);
            let failure = match self.attempt(member, method, request, deadline).await {
                Ok(answer) => return Ok(answer),
                Err(failure @ Failure::Refused(_)) => return Err(failure),
                Err(failure) => failure,
            };
            self.avoid(member);
            if matches!(failure, Failure::Unknown(_)) && !again {
                return Err(failure);
            }
            tried += 1;
            if tried % self.members.len() == 0 {
                // Members that were asked at the same time by many are not asked again by all at once.
                tokio::time::sleep(pause.mul_f64(rand::random_range(0.5..1.0))).await;
                pause = (pause * 2).min(PAUSE_MAX);
            }
            if Instant::now() >= deadline {
                return Err(if again { Failure::NotSent(reason(failure)) } else { failure });
            }
            tracing::debug!(method, ?failure, "asking another member");
        }
    }

    async fn attempt<Req, Res>(
        &self,
        member: usize,
        method: &'static str,
        request: &Req,
        deadline: Instant,
    ) -> Result<Res, Failure>
    where
        Req: prost::Message + Clone + Send + Sync + 'static,
        Res: prost::Message + Default + Answer + Send + Sync + 'static,
    {
        let within = deadline.min(Instant::now() + ATTEMPT_WITHIN);
        let mut grpc = self.grpc(member).await?;
        grpc.ready().await.map_err(|error| self.unreachable(member, &error))?;
        let codec = ProstCodec::<Req, Res>::default();
        let mut message = tonic::Request::new(request.clone());
        message.set_timeout(within.saturating_duration_since(Instant::now()));
        // Boxed: the state of a call under way is large.
        let call = Box::pin(grpc.unary(message, PathAndQuery::from_static(method), codec));
        let answer = match tokio::time::timeout_at(within, call).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(classify(&self.members[member].text, &status)),
            Err(_) => return Err(Failure::Unknown(format!("{}: request timed out", self.members[member].text))),
        };
        self.note_cluster(answer.header()).map_err(Failure::Refused)?;
        Ok(answer)
    }

    async fn grpc(&self, member: usize) -> Result<Grpc<Channel>, Failure> {
        let member = &self.members[member];
        let mut link = member.link.lock().await;
        let channel = match (&link.channel, &link.failed) {
            (Some(channel), _) => channel.clone(),
            (None, Some((at, reason))) if at.elapsed() < RECONNECT_AFTER => {
                return Err(Failure::NotSent(reason.clone()));
            }
            (None, _) => match connect(&member.address, &self.credentials).await {
                Ok(made) => link.channel.insert(made).clone(),
                Err(error) => {
                    let reason = format!("{}: {error}", member.text);
                    link.failed = Some((Instant::now(), reason.clone()));
                    return Err(Failure::NotSent(reason));
                }
            },
        };
        // etcd bounds what it takes; what it sends was stored once.
        Ok(Grpc::new(channel).max_decoding_message_size(usize::MAX).max_encoding_message_size(usize::MAX))
    }

    fn unreachable(&self, member: usize, error: &tonic::transport::Error) -> Failure {
        Failure::NotSent(format!("{}: {}", self.members[member].text, chain(error)))
    }

    /// Two clusters never have one store: their revisions mean different things.
    fn note_cluster(&self, header: Option<&wire::ResponseHeader>) -> Result<(), Error> {
        let Some(header) = header else { return Ok(()) };
        match self.cluster.compare_exchange(0, header.cluster_id, Ordering::Relaxed, Ordering::Relaxed) {
            Err(known) if known != header.cluster_id => {
                let reason = format!("endpoints belong to different clusters, {known:x} and {:x}", header.cluster_id);
                Err(self.refuse(Error::Refused { reason }))
            }
            _ => Ok(()),
        }
    }

    /// Watches the whole key space from `start` on. The number is the member's, for [`Client::avoid`].
    pub(crate) async fn watch(
        &self,
        start: Revision,
    ) -> Result<(usize, tonic::Streaming<wire::WatchResponse>), Failure> {
        let member = self.preferred.load(Ordering::Relaxed);
        let opened = self.watch_member(member, start).await;
        if opened.is_err() {
            self.avoid(member);
        }
        opened.map(|stream| (member, stream))
    }

    async fn watch_member(
        &self,
        member: usize,
        start: Revision,
    ) -> Result<tonic::Streaming<wire::WatchResponse>, Failure> {
        let mut grpc = self.grpc(member).await?;
        grpc.ready().await.map_err(|error| self.unreachable(member, &error))?;
        let create = wire::WatchCreateRequest {
            key: wire::ALL.into(),
            range_end: wire::ALL.into(),
            start_revision: to_wire(start),
            fragment: true,
        };
        // The stream of requests stays open as long as the watch is to go on.
        let requests = futures::StreamExt::chain(
            futures::stream::iter([wire::WatchRequest { create_request: Some(create) }]),
            futures::stream::pending(),
        );
        let mut message = tonic::Request::new(requests);
        // A member that has lost its leader ends the watch instead of falling silent.
        message.metadata_mut().insert("hasleader", tonic::metadata::MetadataValue::from_static("true"));
        let codec = ProstCodec::<wire::WatchRequest, wire::WatchResponse>::default();
        let path = PathAndQuery::from_static(method::WATCH);
        let call = Box::pin(grpc.streaming(message, path, codec));
        let text = &self.members[member].text;
        match tokio::time::timeout(ATTEMPT_WITHIN, call).await {
            Ok(Ok(stream)) => Ok(stream.into_inner()),
            Ok(Err(status)) => Err(classify(text, &status)),
            Err(_) => Err(Failure::NotSent(format!("{text}: no answer to the watch"))),
        }
    }

    /// Holds what a stream says to what is known of the cluster.
    pub(crate) fn note(&self, answer: &impl Answer) -> Result<(), Error> {
        self.note_cluster(answer.header())
    }

    /// The newest revision of the cluster, asked of a majority: nothing that was acknowledged to anybody before this call began is
    /// newer.
    pub(crate) async fn newest_revision(&self) -> Result<Revision, Error> {
        // No such key exists: the answer is as small as the question.
        let request = wire::RangeRequest {
            key: b"\0coxswain".as_slice().into(),
            limit: 1,
            count_only: true,
            ..Default::default()
        };
        let answer: wire::RangeResponse = self.repeatable(method::RANGE, &request).await?;
        Ok(revision_of(answer.header.as_ref()))
    }
}

fn reason(failure: Failure) -> String {
    match failure {
        Failure::NotSent(reason) | Failure::Unknown(reason) => reason,
        Failure::Refused(error) => error.to_string(),
    }
}

pub(crate) fn revision_of(header: Option<&wire::ResponseHeader>) -> Revision {
    header.map_or(0, |header| from_wire(header.revision))
}

pub(crate) fn from_wire(number: i64) -> Revision {
    Revision::try_from(number).unwrap_or(0)
}

pub(crate) fn to_wire(revision: Revision) -> i64 {
    i64::try_from(revision).unwrap_or(i64::MAX)
}

/// What an error status means for the request that got it. etcd tells its own errors apart by their texts.
fn classify(member: &str, status: &tonic::Status) -> Failure {
    let text = status.message();
    let reason = format!("{member}: {text}");
    let says = |words: &str| text.contains(words);
    if says("database space exceeded") {
        return Failure::Refused(Error::DatastoreFull { reason: text.to_owned() });
    }
    if says("request is too large") || says("message larger than max") {
        return Failure::Refused(Error::RequestTooLarge { reason: text.to_owned() });
    }
    if says("too many operations") {
        return Failure::Refused(Error::RequestTooLarge { reason: text.to_owned() });
    }
    if says("required revision has been compacted") {
        return Failure::Refused(Error::Compacted { requested: 0, compacted: 0 });
    }
    // Turned away before it was proposed.
    if says("too many requests") || says("not capable") || says("not supported for learner") {
        return Failure::NotSent(reason);
    }
    if connecting_failed(status) {
        return Failure::NotSent(format!("{member}: {}", chain(status)));
    }
    match status.code() {
        tonic::Code::Unavailable
        | tonic::Code::DeadlineExceeded
        | tonic::Code::Cancelled
        | tonic::Code::Unknown
        | tonic::Code::Aborted
        | tonic::Code::Internal => Failure::Unknown(reason),
        _ => Failure::Refused(Error::Datastore { reason }),
    }
}

fn connecting_failed(status: &tonic::Status) -> bool {
    let mut source = std::error::Error::source(status);
    while let Some(cause) = source {
        if cause.is::<tonic::ConnectError>() {
            return true;
        }
        source = cause.source();
    }
    false
}
