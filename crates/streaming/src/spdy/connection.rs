//! One connection: a task that reads frames and hands them to streams, and a task that writes what streams queue.

use std::collections::HashMap;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use futures::{SinkExt, StreamExt};
use parking_lot::Mutex;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::sync::mpsc::{self, UnboundedReceiver, UnboundedSender, WeakUnboundedSender};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, oneshot};
use tokio_util::codec::{FramedRead, FramedWrite};
use tokio_util::sync::CancellationToken;

use super::frame::{Frame, FrameDecoder, FrameEncoder, goaway, reset};
use super::headers::Headers;
use super::stream::{Core, State, Stream};
use crate::{Error, Io, Result};

/// Bytes of data that may wait to be written, over all streams of a connection.
const QUEUED_BYTES_MAX: usize = 256 * 1024;
/// Answers (to pings, to streams that cannot be) that may wait; a peer that makes more and reads none is cut off.
const QUEUED_ANSWERS_MAX: usize = 256;
/// Pieces of data (32 KiB at most each) that wait for the reader of one stream before the connection stops reading.
const INBOUND_PIECES_MAX: usize = 16;
/// Streams offered by the peer that wait to be accepted.
const OFFERS_MAX: usize = 32;
/// Streams that a peer may have open at once.
const PEER_STREAMS_MAX: usize = 4096;
/// How long a connection that we close keeps reading, for the peer to close its side.
const LINGER: Duration = Duration::from_secs(1);
/// Stream identifiers have 31 bits.
const STREAM_ID_MAX: u32 = 0x7fff_ffff;

/// Which end of the connection this is: clients open odd streams, servers even ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Role {
    Client,
    Server,
}

/// A frame on its way out. The permit goes back when the frame is written or given up.
pub(super) struct Queued {
    frame: Frame,
    _permit: Option<OwnedSemaphorePermit>,
}

/// What one stream's frames are handed to.
struct Entry {
    inbound: Option<mpsc::Sender<Bytes>>,
    reply: Option<oneshot::Sender<Headers>>,
    state: Arc<State>,
    from_peer: bool,
}

struct Table {
    streams: HashMap<u32, Entry>,
    next_id: u32,
    last_peer_id: u32,
    /// No stream may be opened any more: one side said GOAWAY, or the connection is lost.
    going_away: bool,
}

pub(super) struct Shared {
    table: Mutex<Table>,
    role: Role,
    pub(super) budget: Arc<Semaphore>,
    answers: Arc<Semaphore>,
    closed: CancellationToken,
}

impl Shared {
    pub(super) fn forget(&self, id: u32) {
        self.table.lock().streams.remove(&id);
    }

    /// The connection is over: every stream learns it, and nothing can be opened.
    fn lose(&self) {
        let streams = {
            let mut table = self.table.lock();
            table.going_away = true;
            std::mem::take(&mut table.streams)
        };
        for entry in streams.into_values() {
            entry.state.lose();
        }
        self.closed.cancel();
    }
}

/// Sends frames in order. As long as one exists, the connection stays up.
#[derive(Clone)]
pub(super) struct FrameQueue(UnboundedSender<Queued>);

impl FrameQueue {
    /// For frames of which the application makes a bounded number.
    pub(super) fn send(&self, frame: Frame) -> Result<()> {
        self.0.send(Queued { frame, _permit: None }).map_err(|_| Error::Closed)
    }

    pub(super) fn send_data(&self, frame: Frame, permit: OwnedSemaphorePermit) -> Result<()> {
        self.0.send(Queued { frame, _permit: Some(permit) }).map_err(|_| Error::Closed)
    }
}

/// A handle that opens streams. The connection ends when all handles and streams are gone, or by [`Connection::close`].
#[derive(Clone)]
pub struct Connection {
    queue: FrameQueue,
    shared: Arc<Shared>,
}

impl Connection {
    /// Starts to speak SPDY over `io`. Must be called within a tokio runtime: two tasks carry the connection.
    pub fn start(io: impl Io, role: Role) -> (Connection, Incoming) {
        let (read, write) = tokio::io::split(io);
        let (queue, queued) = mpsc::unbounded_channel();
        let (offers, offered) = mpsc::channel(OFFERS_MAX);
        let next_id = if role == Role::Client { 1 } else { 2 };
        let shared = Arc::new(Shared {
            table: Mutex::new(Table { streams: HashMap::new(), next_id, last_peer_id: 0, going_away: false }),
            role,
            budget: Arc::new(Semaphore::new(QUEUED_BYTES_MAX)),
            answers: Arc::new(Semaphore::new(QUEUED_ANSWERS_MAX)),
            closed: CancellationToken::new(),
        });
        tokio::spawn(write_task(write, queued, shared.clone()));
        let reader = Reader { shared: shared.clone(), queue: queue.downgrade(), offers };
        tokio::spawn(reader.run(read));
        let connection = Connection { queue: FrameQueue(queue), shared };
        (connection.clone(), Incoming { offered, _connection: connection })
    }

    /// Opens a stream and waits for the peer to accept it.
    pub async fn open(&self, headers: Headers) -> Result<Stream> {
        let (reply, replied) = oneshot::channel();
        let (inbound, data) = mpsc::channel(INBOUND_PIECES_MAX);
        let state = Arc::new(State::default());
        let (core, sent) = {
            // Under the lock, so that identifiers reach the wire in ascending order.
            let mut table = self.shared.table.lock();
            if table.going_away || table.next_id > STREAM_ID_MAX {
                return Err(Error::Closed);
            }
            let id = table.next_id;
            table.next_id += 2;
            let entry = Entry { inbound: Some(inbound), reply: Some(reply), state: state.clone(), from_peer: false };
            table.streams.insert(id, entry);
            let syn = Frame::SynStream {
                stream: id,
                associated: 0,
                priority: 0,
                fin: false,
                unidirectional: false,
                headers: headers.clone(),
            };
            (Core::new(id, state, self.queue.clone(), self.shared.clone()), self.queue.send(syn))
        };
        // Outside the lock, which a stream that goes takes too.
        let stream = Stream::new(core, data, headers);
        sent?;
        match replied.await {
            Ok(_reply_headers) => Ok(stream),
            Err(_) if self.shared.closed.is_cancelled() => Err(Error::Closed),
            Err(_) => Err(Error::Refused),
        }
    }

    /// Says GOAWAY after everything queued so far, then closes.
    pub fn close(&self) {
        let mut table = self.shared.table.lock();
        table.going_away = true;
        // A queue that is gone has closed already.
        let _ = self.queue.send(Frame::GoAway { last_good: table.last_peer_id, status: goaway::OK });
    }

    /// Resolves when the connection is over, whoever ended it.
    pub async fn closed(&self) {
        self.shared.closed.cancelled().await;
    }
}

/// The streams that the peer opens, in order. Keeps the connection up.
pub struct Incoming {
    offered: mpsc::Receiver<Offer>,
    _connection: Connection,
}

impl Incoming {
    /// The next stream; `None` when the connection is over. Cancel safe.
    pub async fn next(&mut self) -> Option<Offer> {
        self.offered.recv().await
    }
}

/// A stream that the peer has opened and that waits for our answer. Dropped, it is refused.
pub struct Offer(Stream);

impl Offer {
    pub fn headers(&self) -> &Headers {
        self.0.headers()
    }

    pub fn accept(self) -> Result<Stream> {
        self.0.core().reply()?;
        Ok(self.0)
    }
}

async fn write_task(io: impl AsyncWrite + Unpin, mut queued: UnboundedReceiver<Queued>, shared: Arc<Shared>) {
    let mut frames = FramedWrite::new(io, FrameEncoder::new());
    let write = async {
        while let Some(first) = queued.recv().await {
            let mut next = Some(first);
            let mut last = false;
            while let Some(Queued { frame, _permit }) = next {
                last = matches!(frame, Frame::GoAway { .. });
                frames.feed(frame).await?;
                next = if last { None } else { queued.try_recv().ok() };
            }
            frames.flush().await?;
            if last {
                break;
            }
        }
        frames.close().await
    };
    let result = tokio::select! {
        biased;
        result = write => result,
        () = shared.closed.cancelled() => Ok(()),
    };
    match result {
        // Closing while the peer's frames are still unread would make TCP throw away what we have just written.
        Ok(()) => drop(tokio::time::timeout(LINGER, shared.closed.cancelled()).await),
        Err(error) => tracing::debug!(%error, "spdy: write failed"),
    }
    shared.lose();
}

struct Reader {
    shared: Arc<Shared>,
    /// Weak: reading alone keeps no connection up.
    queue: WeakUnboundedSender<Queued>,
    offers: mpsc::Sender<Offer>,
}

impl Reader {
    async fn run(self, io: impl AsyncRead + Unpin) {
        let mut frames = FramedRead::new(io, FrameDecoder::new());
        let read = async {
            while let Some(frame) = frames.next().await {
                self.handle(frame?).await?;
            }
            Ok::<_, Error>(())
        };
        let result = tokio::select! {
            result = read => result,
            () = self.shared.closed.cancelled() => Ok(()),
        };
        match result {
            Err(error @ Error::Protocol(_)) => {
                tracing::debug!(%error, "spdy: peer violates the protocol");
                let last_good = self.shared.table.lock().last_peer_id;
                if self.answer(Frame::GoAway { last_good, status: goaway::PROTOCOL_ERROR }).is_ok() {
                    // The writer closes the connection behind the GOAWAY.
                    return;
                }
            }
            Err(error) => tracing::debug!(%error, "spdy: read failed"),
            Ok(()) => {}
        }
        self.shared.lose();
    }

    async fn handle(&self, frame: Frame) -> Result<()> {
        match frame {
            Frame::SynStream { stream, fin, headers, .. } => self.offered(stream, fin, headers).await,
            Frame::SynReply { stream, fin, headers } => {
                self.replied(stream, fin, headers);
                Ok(())
            }
            Frame::Data { stream, fin, payload } => self.data(stream, fin, payload).await,
            Frame::Headers { stream, fin, .. } => self.data(stream, fin, Bytes::new()).await,
            Frame::RstStream { stream, .. } => {
                if let Some(entry) = self.shared.table.lock().streams.remove(&stream) {
                    entry.state.reset();
                }
                Ok(())
            }
            // Whoever began the ping has our parity or theirs: ours come back, theirs go back.
            Frame::Ping(id) if (id % 2 == 1) == (self.shared.role == Role::Server) => self.answer(Frame::Ping(id)),
            Frame::GoAway { .. } => {
                self.shared.table.lock().going_away = true;
                Ok(())
            }
            Frame::Ping(_) | Frame::Settings(_) | Frame::WindowUpdate { .. } => Ok(()),
        }
    }

    async fn offered(&self, id: u32, fin: bool, headers: Headers) -> Result<()> {
        let Some(queue) = self.queue.upgrade() else { return Err(Error::Closed) };
        let peer_parity = if self.shared.role == Role::Server { 1 } else { 0 };
        let (inbound, data) = mpsc::channel(INBOUND_PIECES_MAX);
        let state = Arc::new(State::default());
        let refusal = {
            let mut table = self.shared.table.lock();
            if id == 0 || id % 2 != peer_parity || id <= table.last_peer_id {
                Some(reset::PROTOCOL_ERROR)
            } else {
                table.last_peer_id = id;
                let open = table.streams.values().filter(|entry| entry.from_peer).count();
                if table.going_away || open >= PEER_STREAMS_MAX {
                    Some(reset::REFUSED_STREAM)
                } else {
                    if fin {
                        state.finish_remote();
                    }
                    let inbound = (!fin).then_some(inbound);
                    table.streams.insert(id, Entry { inbound, reply: None, state: state.clone(), from_peer: true });
                    None
                }
            }
        };
        if let Some(status) = refusal {
            return self.answer(Frame::RstStream { stream: id, status });
        }
        let core = Core::new(id, state, FrameQueue(queue), self.shared.clone());
        // Where nobody takes offers, dropping the stream resets it.
        let _ = self.offers.send(Offer(Stream::new(core, data, headers))).await;
        Ok(())
    }

    fn replied(&self, id: u32, fin: bool, headers: Headers) {
        let mut table = self.shared.table.lock();
        let Some(entry) = table.streams.get_mut(&id) else { return };
        if let Some(reply) = entry.reply.take() {
            // Whoever opened the stream may have given up.
            let _ = reply.send(headers);
        }
        if fin {
            entry.finish_remote();
        }
    }

    async fn data(&self, id: u32, fin: bool, payload: Bytes) -> Result<()> {
        let inbound = match self.shared.table.lock().streams.get(&id) {
            Some(entry) => entry.inbound.clone(),
            // Frames in flight when the stream was reset.
            None => return Ok(()),
        };
        if let Some(inbound) = inbound
            && !payload.is_empty()
        {
            // A stream whose reader has gone loses its data; the other streams go on.
            let _ = inbound.send(payload).await;
        }
        if fin && let Some(entry) = self.shared.table.lock().streams.get_mut(&id) {
            entry.finish_remote();
        }
        Ok(())
    }

    /// Queues an answer that the peer's frames bring about, a bounded number at a time.
    fn answer(&self, frame: Frame) -> Result<()> {
        let permit = self.shared.answers.clone().try_acquire_owned();
        let permit = permit.map_err(|_| Error::Protocol("answers are not read"))?;
        let Some(queue) = self.queue.upgrade() else { return Err(Error::Closed) };
        queue.send(Queued { frame, _permit: Some(permit) }).map_err(|_| Error::Closed)
    }
}

impl Entry {
    fn finish_remote(&mut self) {
        self.state.finish_remote();
        self.inbound = None;
    }
}
