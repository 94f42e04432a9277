//! The server's loops: UDP and TCP, bounded in everything.

use std::net::SocketAddr;
use std::sync::Arc;
use std::time::Duration;

use hickory_proto::op::{Edns, Message, MessageType, Metadata, OpCode, Query, ResponseCode};
use hickory_proto::rr::{DNSClass, RecordType};
use rand::seq::SliceRandom as _;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::time::timeout;

use super::forward::{Forwarder, MAX_PAYLOAD};
use super::zone::{Facts, Reply, Zone};

/// Questions that may wait for other resolvers at once. One more is refused: its client asks again.
const MOST_WAITING: usize = 1024;
const MOST_CONNECTIONS: usize = 256;
const IDLE_CONNECTION: Duration = Duration::from_secs(10);
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);
const SMALLEST_PAYLOAD: u16 = 512;
const HEADER_LEN: usize = 12;

/// Answers messages: from the zone at once, from elsewhere by asking.
pub struct Responder<F> {
    pub zone: Zone,
    pub facts: F,
    pub forwarder: Forwarder,
}

enum Decision {
    /// Silence: what came is no question.
    Ignore,
    Answer(Box<Message>),
    /// To be asked elsewhere. The message is the request, the reply what is known already.
    Forward(Box<Message>, Box<Reply>),
}

impl<F: Facts + Send + Sync + 'static> Responder<F> {
    /// The answer to a datagram or a TCP message, encoded, at most `limit` bytes long if given. None: no answer at all.
    async fn respond(&self, bytes: &[u8], by_udp: bool) -> Option<Vec<u8>> {
        match self.decide(bytes) {
            Decision::Ignore => None,
            Decision::Answer(answer) => encode(*answer, limit_for(bytes, by_udp)),
            Decision::Forward(request, reply) => {
                let answer = self.forward(*request, *reply).await;
                encode(answer, limit_for(bytes, by_udp))
            }
        }
    }

    fn decide(&self, bytes: &[u8]) -> Decision {
        let request = match Message::from_vec(bytes) {
            Ok(request) => request,
            Err(_) => return malformed(bytes),
        };
        if request.metadata.message_type != MessageType::Query {
            return Decision::Ignore;
        }
        let refuse = |code| Decision::Answer(Box::new(answer_to(&request, Reply::of(code))));
        if request.metadata.op_code != OpCode::Query {
            return refuse(ResponseCode::NotImp);
        }
        if request.edns.as_ref().is_some_and(|edns| edns.version() > 0) {
            return refuse(ResponseCode::BADVERS);
        }
        let [query] = request.queries.as_slice() else { return refuse(ResponseCode::FormErr) };
        let transfer = matches!(query.query_type(), RecordType::AXFR | RecordType::IXFR);
        if transfer || query.query_class() != DNSClass::IN || self.forwarder.is_own_probe(query.name()) {
            return refuse(ResponseCode::Refused);
        }
        match self.zone.resolve(&self.facts, query) {
            Some(reply) if reply.continues.is_none() => {
                let mut answer = answer_to(&request, reply);
                answer.metadata.authoritative = true;
                // Clients take the first: let chance spread them.
                answer.answers.shuffle(&mut rand::rng());
                Decision::Answer(Box::new(answer))
            }
            Some(reply) => Decision::Forward(Box::new(request), Box::new(reply)),
            None => Decision::Forward(Box::new(request), Box::new(Reply::of(ResponseCode::NoError))),
        }
    }

    /// Asks elsewhere for the question, or for the name at which the cluster's own aliases end.
    async fn forward(&self, request: Message, known: Reply) -> Message {
        let mut asked = request.clone();
        if let (Some(target), [query]) = (&known.continues, request.queries.as_slice()) {
            asked.queries = vec![Query::query(target.clone(), query.query_type())];
        }
        let elsewhere = self.forwarder.resolve(&asked).await;
        let mut reply = known;
        reply.code = elsewhere.metadata.response_code;
        reply.answers.extend(elsewhere.answers);
        reply.authorities.extend(elsewhere.authorities);
        reply.additionals.extend(elsewhere.additionals);
        let mut answer = answer_to(&request, reply);
        answer.metadata.authentic_data = elsewhere.metadata.authentic_data;
        answer
    }
}

/// A request that cannot be read gets a plain refusal, so that its sender does not wait; unless it is an answer itself.
fn malformed(bytes: &[u8]) -> Decision {
    const RESPONSE_BIT: u8 = 0x80;
    match bytes.first_chunk::<HEADER_LEN>() {
        Some(header) if header[2] & RESPONSE_BIT == 0 => {
            let id = u16::from_be_bytes([header[0], header[1]]);
            Decision::Answer(Box::new(Message::error_msg(id, OpCode::Query, ResponseCode::FormErr)))
        }
        _ => Decision::Ignore,
    }
}

fn answer_to(request: &Message, reply: Reply) -> Message {
    let mut answer = Message::response(request.metadata.id, request.metadata.op_code);
    answer.metadata = Metadata::response_from_request(&request.metadata);
    answer.metadata.recursion_available = true;
    answer.metadata.response_code = reply.code;
    answer.queries.clone_from(&request.queries);
    answer.answers = reply.answers;
    answer.authorities = reply.authorities;
    answer.additionals = reply.additionals;
    if let Some(asked) = &request.edns {
        let mut edns = Edns::new();
        edns.set_max_payload(MAX_PAYLOAD);
        edns.set_version(0);
        edns.set_dnssec_ok(asked.flags().dnssec_ok);
        answer.set_edns(edns);
    }
    answer
}

/// How long the answer may be, in bytes.
fn limit_for(request: &[u8], by_udp: bool) -> usize {
    if !by_udp {
        return usize::from(u16::MAX);
    }
    let payload = Message::from_vec(request).ok().and_then(|m| m.edns).map_or(SMALLEST_PAYLOAD, |e| e.max_payload());
    usize::from(payload.clamp(SMALLEST_PAYLOAD, MAX_PAYLOAD))
}

/// Encodes, leaving out what is only helpful, then answers, until it fits. A shortened answer says so: its reader may ask
/// again by TCP, or make do with what came, as old C libraries must.
fn encode(mut answer: Message, limit: usize) -> Option<Vec<u8>> {
    let mut bytes = answer.to_vec().ok()?;
    if bytes.len() > limit {
        answer.additionals.clear();
        bytes = answer.to_vec().ok()?;
    }
    while bytes.len() > limit {
        answer.metadata.truncation = true;
        if answer.answers.is_empty() && answer.authorities.is_empty() {
            return answer.truncate().to_vec().ok();
        }
        answer.authorities.clear();
        // By proportion, so that few attempts do; at least one.
        let keep = answer.answers.len() * limit / bytes.len();
        answer.answers.truncate(keep.min(answer.answers.len().saturating_sub(1)));
        bytes = answer.to_vec().ok()?;
    }
    Some(bytes)
}

/// Serves datagrams until it is dropped. What the zone answers is answered here at once; what must be asked elsewhere waits
/// on a task of its own.
pub async fn serve_udp<F: Facts + Send + Sync + 'static>(
    socket: Arc<UdpSocket>,
    responder: Arc<Responder<F>>,
) -> std::io::Error {
    let waiting = Arc::new(Semaphore::new(MOST_WAITING));
    let mut buffer = vec![0; usize::from(u16::MAX)];
    loop {
        let (len, peer) = match socket.recv_from(&mut buffer).await {
            Ok(received) => received,
            // An earlier answer could not be delivered: that client's business.
            Err(error) if error.kind() == std::io::ErrorKind::ConnectionRefused => continue,
            Err(error) => return error,
        };
        let bytes = &buffer[..len];
        match responder.decide(bytes) {
            Decision::Ignore => {}
            Decision::Answer(answer) => send(&socket, peer, encode(*answer, limit_for(bytes, true))).await,
            Decision::Forward(request, reply) => {
                let limit = limit_for(bytes, true);
                let Ok(permit) = waiting.clone().try_acquire_owned() else {
                    let busy = answer_to(&request, Reply::of(ResponseCode::ServFail));
                    send(&socket, peer, encode(busy, limit)).await;
                    continue;
                };
                let (socket, responder) = (socket.clone(), responder.clone());
                tokio::spawn(async move {
                    let answer = responder.forward(*request, *reply).await;
                    send(&socket, peer, encode(answer, limit)).await;
                    drop(permit);
                });
            }
        }
    }
}

async fn send(socket: &UdpSocket, peer: SocketAddr, bytes: Option<Vec<u8>>) {
    let Some(bytes) = bytes else { return };
    if let Err(error) = socket.send_to(&bytes, peer).await {
        tracing::debug!(%peer, %error, "cannot send an answer");
    }
}

/// Serves connections until it is dropped.
pub async fn serve_tcp<F: Facts + Send + Sync + 'static>(listener: TcpListener, responder: Arc<Responder<F>>) {
    let connections = Arc::new(Semaphore::new(MOST_CONNECTIONS));
    loop {
        let permit = connections.clone().acquire_owned().await.expect("the semaphore is never closed");
        let (stream, peer) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                // That client's business, or the process is out of files: then a pause lets others finish.
                tracing::debug!(%error, "cannot accept a DNS connection");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        let responder = responder.clone();
        tokio::spawn(async move {
            if let Err(error) = serve_connection(stream, &responder).await {
                tracing::debug!(%peer, %error, "DNS connection ended");
            }
            drop(permit);
        });
    }
}

async fn serve_connection<F: Facts + Send + Sync + 'static>(
    mut stream: TcpStream,
    responder: &Responder<F>,
) -> std::io::Result<()> {
    loop {
        let request = async {
            let len = stream.read_u16().await?;
            let mut bytes = vec![0; usize::from(len)];
            stream.read_exact(&mut bytes).await?;
            Ok::<_, std::io::Error>(bytes)
        };
        let Ok(request) = timeout(IDLE_CONNECTION, request).await else { return Ok(()) };
        let request = match request {
            Err(error) if error.kind() == std::io::ErrorKind::UnexpectedEof => return Ok(()),
            other => other?,
        };
        let Some(answer) = responder.respond(&request, false).await else { return Ok(()) };
        let len = u16::try_from(answer.len()).map_err(std::io::Error::other)?;
        let message = [&len.to_be_bytes(), answer.as_slice()].concat();
        match timeout(IDLE_CONNECTION, stream.write_all(&message)).await {
            Ok(written) => written?,
            Err(_elapsed) => return Ok(()),
        }
    }
}
