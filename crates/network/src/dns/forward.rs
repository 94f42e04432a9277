//! Everything that is not the cluster's: asked of the host's resolvers.

use std::net::{IpAddr, SocketAddr};
use std::path::PathBuf;
use std::time::{Duration, Instant, SystemTime};

use hickory_proto::op::{Edns, Message, MessageType, OpCode, ResponseCode};
use hickory_proto::rr::{Name, RecordType};
use parking_lot::Mutex;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpStream, UdpSocket};
use tokio::time::timeout;

use super::cache::{Cache, Question};

/// How long one resolver may take before the next is asked, and all together.
const ONE_RESOLVER: Duration = Duration::from_secs(2);
const ALTOGETHER: Duration = Duration::from_secs(5);
const CACHE_CAPACITY: usize = 4096;
/// What passes every network in one piece (the DNS flag day's number).
pub const MAX_PAYLOAD: u16 = 1232;
const DNS_PORT: u16 = 53;
/// How old our reading of the resolvers' file may be. It is looked at only when somebody asks.
const RESOLVERS_AGE: Duration = Duration::from_secs(5);
const LOOP_PROBE_SUFFIX: &str = "loop-check.coxswain.invalid.";

/// Where the resolvers are named.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Upstreams {
    Fixed(Vec<SocketAddr>),
    /// A file in the form of `/etc/resolv.conf`, read again when it changes.
    File(PathBuf),
}

struct Resolvers {
    addresses: Vec<SocketAddr>,
    checked: Option<Instant>,
    modified: Option<SystemTime>,
    /// These lead back to us.
    looping: Vec<SocketAddr>,
    /// Outstanding probes for loops.
    probes: Vec<(Name, SocketAddr)>,
}

/// Asks the host's resolvers, and remembers their answers briefly.
pub struct Forwarder {
    upstreams: Upstreams,
    /// Addresses at which we answer ourselves.
    own: Vec<SocketAddr>,
    resolvers: Mutex<Resolvers>,
    cache: Mutex<Cache>,
}

impl Forwarder {
    pub fn new(upstreams: Upstreams, own: Vec<SocketAddr>) -> Self {
        let resolvers =
            Resolvers { addresses: Vec::new(), checked: None, modified: None, looping: Vec::new(), probes: Vec::new() };
        Forwarder { upstreams, own, resolvers: Mutex::new(resolvers), cache: Mutex::new(Cache::new(CACHE_CAPACITY)) }
    }

    /// The answer to a request with one question; SERVFAIL if nobody gives any. The caller sets the message's number.
    pub async fn resolve(&self, request: &Message) -> Message {
        let failure = || Message::error_msg(request.metadata.id, OpCode::Query, ResponseCode::ServFail);
        let Some(question) = Question::of(request) else { return failure() };
        if let Some(kept) = self.cache.lock().get(&question, Instant::now()) {
            return kept;
        }
        let outgoing = query_for(&question);
        let answer = timeout(ALTOGETHER, self.ask_in_turn(&outgoing)).await.ok().flatten();
        let Some(answer) = answer else { return failure() };
        self.cache.lock().put(question, answer.clone(), Instant::now());
        answer
    }

    async fn ask_in_turn(&self, outgoing: &Message) -> Option<Message> {
        let mut last = None;
        for resolver in self.current_resolvers() {
            match timeout(ONE_RESOLVER, exchange(resolver, outgoing)).await {
                Ok(Ok(answer)) => {
                    let helpful =
                        !matches!(answer.metadata.response_code, ResponseCode::ServFail | ResponseCode::Refused);
                    if helpful {
                        return Some(answer);
                    }
                    last = Some(answer);
                }
                Ok(Err(error)) => tracing::debug!(%resolver, %error, "resolver failed"),
                Err(_elapsed) => tracing::debug!(%resolver, "resolver does not answer"),
            }
        }
        last
    }

    fn current_resolvers(&self) -> Vec<SocketAddr> {
        let mut resolvers = self.resolvers.lock();
        let fresh = resolvers.checked.is_some_and(|checked| checked.elapsed() < RESOLVERS_AGE);
        if !fresh {
            resolvers.checked = Some(Instant::now());
            self.reread(&mut resolvers);
        }
        resolvers.addresses.iter().filter(|a| !resolvers.looping.contains(a)).copied().collect()
    }

    fn reread(&self, resolvers: &mut Resolvers) {
        let addresses = match &self.upstreams {
            Upstreams::Fixed(addresses) => addresses.clone(),
            Upstreams::File(path) => {
                let modified = std::fs::metadata(path).and_then(|m| m.modified()).ok();
                if modified.is_some() && modified == resolvers.modified {
                    return;
                }
                resolvers.modified = modified;
                parse_resolv_conf(&std::fs::read_to_string(path).unwrap_or_default())
            }
        };
        resolvers.addresses = addresses.into_iter().filter(|address| !self.own.contains(address)).collect();
    }

    /// Asks every resolver for a name of its own that does not exist. If the question comes back to us, that resolver asks
    /// us, and whatever we forwarded to it would go round until the node is busy with nothing else.
    pub async fn find_loops(&self) {
        for resolver in self.current_resolvers() {
            let name = format!("{:016x}.{LOOP_PROBE_SUFFIX}", rand::random::<u64>());
            let Ok(name) = Name::from_ascii(&name) else { continue };
            self.resolvers.lock().probes.push((name.clone(), resolver));
            let mut probe = Message::query();
            probe.metadata.recursion_desired = true;
            probe.add_query(hickory_proto::op::Query::query(name.clone(), RecordType::HINFO));
            let _ = timeout(ONE_RESOLVER, exchange(resolver, &probe)).await;
            self.resolvers.lock().probes.retain(|(probed, _)| *probed != name);
        }
    }

    /// Whether a question is one of our own probes come back; the resolver that it went to is not asked again.
    pub fn is_own_probe(&self, name: &Name) -> bool {
        let mut resolvers = self.resolvers.lock();
        let Some(resolver) = resolvers.probes.iter().find(|(probe, _)| probe == name).map(|(_, r)| *r) else {
            return false;
        };
        tracing::warn!(%resolver, "this resolver asks the cluster's DNS in turn; not forwarding to it");
        resolvers.looping.push(resolver);
        true
    }
}

fn query_for(question: &Question) -> Message {
    let mut outgoing = Message::query();
    outgoing.metadata.recursion_desired = true;
    outgoing.metadata.checking_disabled = question.checking_disabled;
    outgoing.add_query(question.query.clone());
    let mut edns = Edns::new();
    edns.set_max_payload(MAX_PAYLOAD);
    edns.set_dnssec_ok(question.dnssec_ok);
    outgoing.set_edns(edns);
    outgoing
}

/// One question to one resolver: by UDP from a port of its own, and by TCP if the answer is too long for that.
async fn exchange(resolver: SocketAddr, outgoing: &Message) -> std::io::Result<Message> {
    let bytes = outgoing.to_vec().map_err(std::io::Error::other)?;
    let any: SocketAddr = if resolver.is_ipv4() { ([0; 4], 0).into() } else { ([0u16; 8], 0).into() };
    let socket = UdpSocket::bind(any).await?;
    socket.connect(resolver).await?;
    socket.send(&bytes).await?;
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let len = socket.recv(&mut buffer).await?;
        // Whatever does not fit the question was sent by somebody who guesses.
        match Message::from_vec(&buffer[..len]) {
            Ok(answer) if answers(&answer, outgoing) => {
                return if answer.metadata.truncation {
                    exchange_tcp(resolver, &bytes, outgoing).await
                } else {
                    Ok(answer)
                };
            }
            _ => {}
        }
    }
}

async fn exchange_tcp(resolver: SocketAddr, bytes: &[u8], outgoing: &Message) -> std::io::Result<Message> {
    let mut stream = TcpStream::connect(resolver).await?;
    let len = u16::try_from(bytes.len()).map_err(std::io::Error::other)?;
    stream.write_all(&[&len.to_be_bytes(), bytes].concat()).await?;
    let len = stream.read_u16().await?;
    let mut buffer = vec![0; usize::from(len)];
    stream.read_exact(&mut buffer).await?;
    let answer = Message::from_vec(&buffer).map_err(std::io::Error::other)?;
    if answers(&answer, outgoing) { Ok(answer) } else { Err(std::io::Error::other("an answer to another question")) }
}

fn answers(answer: &Message, outgoing: &Message) -> bool {
    answer.metadata.message_type == MessageType::Response
        && answer.metadata.id == outgoing.metadata.id
        && answer.queries == outgoing.queries
}

/// The `nameserver` lines of a file in the form of `/etc/resolv.conf`. What is no address is left out.
pub fn parse_resolv_conf(text: &str) -> Vec<SocketAddr> {
    let mut addresses = Vec::new();
    for line in text.lines() {
        let mut words = line.split_whitespace();
        if words.next() != Some("nameserver") {
            continue;
        }
        // A link-local address may carry its link (`fe80::1%eth0`), which a socket address has as a number only.
        let address = words.next().and_then(|word| word.parse::<IpAddr>().ok());
        addresses.extend(address.map(|address| SocketAddr::new(address, DNS_PORT)).filter(|a| !addresses.contains(a)));
    }
    addresses
}
