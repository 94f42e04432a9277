//! One stream of a connection, as bytes to read and write. Shutting the writing side down half-closes it (FIN); dropping a stream
//! that is not finished on both sides resets it.

use std::io;
use std::pin::Pin;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU8, Ordering};
use std::task::{Context, Poll, ready};

use bytes::{Buf, Bytes};
use tokio::io::{AsyncRead, AsyncWrite, ReadBuf};
use tokio::sync::mpsc;
use tokio_util::sync::PollSemaphore;

use super::connection::{FrameQueue, Shared};
use super::frame::{Frame, reset};
use super::headers::Headers;
use crate::Result;

/// Bytes of one DATA frame at most.
const WRITE_BYTES_MAX: usize = 32 * 1024;

const FINISHED: u8 = 1;
const RESET: u8 = 2;
const LOST: u8 = 4;

/// What the peer has done to a stream, bit by bit: nothing is ever taken back. A stream that was finished and reset later still
/// has delivered all its data.
#[derive(Default)]
pub(super) struct State(AtomicU8);

impl State {
    pub(super) fn finish_remote(&self) {
        self.0.fetch_or(FINISHED, Ordering::AcqRel);
    }

    pub(super) fn reset(&self) {
        self.0.fetch_or(RESET, Ordering::AcqRel);
    }

    pub(super) fn lose(&self) {
        self.0.fetch_or(LOST, Ordering::AcqRel);
    }

    fn is(&self, bits: u8) -> bool {
        self.0.load(Ordering::Acquire) & bits != 0
    }
}

/// What both halves of a stream share; the last one to go takes the stream down.
pub(super) struct Core {
    id: u32,
    state: Arc<State>,
    finished_locally: AtomicBool,
    queue: FrameQueue,
    shared: Arc<Shared>,
}

impl Core {
    pub(super) fn new(id: u32, state: Arc<State>, queue: FrameQueue, shared: Arc<Shared>) -> Self {
        Core { id, state, finished_locally: AtomicBool::new(false), queue, shared }
    }

    pub(super) fn reply(&self) -> Result<()> {
        self.queue.send(Frame::SynReply { stream: self.id, fin: false, headers: Headers::default() })
    }

    fn finish(&self) {
        if !self.finished_locally.swap(true, Ordering::AcqRel) && !self.state.is(RESET | LOST) {
            // A closed connection has told the peer already.
            let _ = self.queue.send(Frame::Data { stream: self.id, fin: true, payload: Bytes::new() });
        }
    }
}

impl Drop for Core {
    fn drop(&mut self) {
        self.shared.forget(self.id);
        let finished = self.state.is(FINISHED) && *self.finished_locally.get_mut();
        if !finished && !self.state.is(RESET | LOST) {
            let _ = self.queue.send(Frame::RstStream { stream: self.id, status: reset::CANCEL });
        }
    }
}

/// A stream that both ends have agreed on.
pub struct Stream {
    read: ReadHalf,
    write: WriteHalf,
    headers: Headers,
}

impl Stream {
    pub(super) fn new(core: Core, data: mpsc::Receiver<Bytes>, headers: Headers) -> Self {
        let core = Arc::new(core);
        let budget = PollSemaphore::new(core.shared.budget.clone());
        Stream {
            read: ReadHalf { core: core.clone(), data, piece: Bytes::new() },
            write: WriteHalf { core, budget },
            headers,
        }
    }

    pub(super) fn core(&self) -> &Core {
        &self.read.core
    }

    /// The headers that the stream was opened with.
    pub fn headers(&self) -> &Headers {
        &self.headers
    }

    pub fn into_split(self) -> (ReadHalf, WriteHalf) {
        (self.read, self.write)
    }
}

/// The bytes that the peer sends. Ends at FIN; a reset stream or a lost connection is an error, after the data received before it.
pub struct ReadHalf {
    core: Arc<Core>,
    data: mpsc::Receiver<Bytes>,
    piece: Bytes,
}

impl ReadHalf {
    /// The next piece as it came, without a copy; `None` at the end. Cancel safe.
    pub async fn next(&mut self) -> io::Result<Option<Bytes>> {
        std::future::poll_fn(|cx| self.poll_piece(cx)).await
    }

    fn poll_piece(&mut self, cx: &mut Context<'_>) -> Poll<io::Result<Option<Bytes>>> {
        if !self.piece.is_empty() {
            return Poll::Ready(Ok(Some(std::mem::take(&mut self.piece))));
        }
        match ready!(self.data.poll_recv(cx)) {
            Some(piece) => Poll::Ready(Ok(Some(piece))),
            None if self.core.state.is(FINISHED) => Poll::Ready(Ok(None)),
            None if self.core.state.is(RESET) => {
                Poll::Ready(Err(io::Error::new(io::ErrorKind::ConnectionReset, "the peer reset the stream")))
            }
            None => Poll::Ready(Err(io::Error::new(io::ErrorKind::UnexpectedEof, "the connection is lost"))),
        }
    }
}

impl AsyncRead for ReadHalf {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        if let Some(mut piece) = ready!(self.poll_piece(cx))? {
            let length = piece.len().min(buf.remaining());
            buf.put_slice(&piece[..length]);
            piece.advance(length);
            self.piece = piece;
        }
        Poll::Ready(Ok(()))
    }
}

/// The bytes that we send. `shutdown` half-closes.
pub struct WriteHalf {
    core: Arc<Core>,
    budget: PollSemaphore,
}

impl AsyncWrite for WriteHalf {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        let broken = || io::Error::from(io::ErrorKind::BrokenPipe);
        if buf.is_empty() {
            return Poll::Ready(Ok(0));
        }
        let length = buf.len().min(WRITE_BYTES_MAX);
        let permit = ready!(self.budget.poll_acquire_many(cx, length as u32)).ok_or_else(broken)?;
        if self.core.state.is(RESET | LOST) || self.core.finished_locally.load(Ordering::Acquire) {
            return Poll::Ready(Err(broken()));
        }
        let payload = Bytes::copy_from_slice(&buf[..length]);
        let frame = Frame::Data { stream: self.core.id, fin: false, payload };
        Poll::Ready(self.core.queue.send_data(frame, permit).map(|()| length).map_err(|_| broken()))
    }

    /// Nothing waits here: what is queued, the connection writes.
    fn poll_flush(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        Poll::Ready(Ok(()))
    }

    fn poll_shutdown(self: Pin<&mut Self>, _: &mut Context<'_>) -> Poll<io::Result<()>> {
        self.core.finish();
        Poll::Ready(Ok(()))
    }
}

impl AsyncRead for Stream {
    fn poll_read(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &mut ReadBuf<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.read).poll_read(cx, buf)
    }
}

impl AsyncWrite for Stream {
    fn poll_write(mut self: Pin<&mut Self>, cx: &mut Context<'_>, buf: &[u8]) -> Poll<io::Result<usize>> {
        Pin::new(&mut self.write).poll_write(cx, buf)
    }

    fn poll_flush(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_flush(cx)
    }

    fn poll_shutdown(mut self: Pin<&mut Self>, cx: &mut Context<'_>) -> Poll<io::Result<()>> {
        Pin::new(&mut self.write).poll_shutdown(cx)
    }
}
