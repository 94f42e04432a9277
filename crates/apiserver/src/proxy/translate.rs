//! A remote command between a WebSocket client and a SPDY kubelet (upstream's `StreamTranslator`).

use std::time::Duration;

use bytes::Bytes;
use futures::stream::{SplitSink, SplitStream};
use futures::{SinkExt as _, StreamExt as _};
use http::{HeaderMap, HeaderValue, Method};
use http_body_util::BodyExt as _;
use hyper_util::rt::TokioIo;
use streaming::Io;
use streaming::remotecommand::{self, Options, Outcome, PROTOCOL_HEADER, PROTOCOL_V4, StreamType};
use streaming::spdy::{Connection, ReadHalf, Role, Stream, WriteHalf};
use streaming::upgrade;
use streaming::websocket::{ChannelEvent, ChannelProtocol, Message, WebSocketStream, normal_closure};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

use super::Target;
use super::tunnel::{Asked, ask};

/// How long the kubelet's runtime may take to accept a stream (upstream's `DefaultStreamCreationTimeout`).
const STREAM_PATIENCE: Duration = Duration::from_secs(30);
/// How long the client may take to answer our close.
const GOODBYE: Duration = Duration::from_secs(5);
/// A `Status` is never larger.
const STATUS_BYTES_MAX: u64 = 64 * 1024;

type Sink<T> = SplitSink<WebSocketStream<T>, Message>;
type Source<T> = SplitStream<WebSocketStream<T>>;

/// Runs the session to its end, whatever ends it.
pub(super) async fn run<T: Io>(
    socket: WebSocketStream<T>,
    protocol: ChannelProtocol,
    target: Target,
    options: Options,
) {
    let (mut sink, mut source) = socket.split();
    let status = match open(target, options).await {
        Ok((_connection, streams)) => {
            // Clients take the first message, even an empty one, as the sign that the session stands. It is sent now and not with
            // the answer to the upgrade: kubectl complains of a channel that it hears of before it has made its own ready.
            let first = match options {
                Options { stdout: true, .. } => StreamType::Stdout,
                Options { stderr: true, .. } => StreamType::Stderr,
                _ => StreamType::Error,
            };
            if sink.send(protocol.encode(first.channel(), b"")).await.is_err() {
                return;
            }
            let input = Input { protocol, stdin: writer(streams.stdin), resize: writer(streams.resize) };
            let output = Output { protocol, stdout: reader(streams.stdout), stderr: reader(streams.stderr) };
            tokio::select! {
                // The client has gone; dropping the connection tells the kubelet.
                () = input.run(&mut source) => return,
                status = output.run(&mut sink, streams.error) => status,
            }
        }
        Err(status) => Some(status),
    };
    if let Some(status) = status {
        finish(sink, source, protocol, &status).await;
    }
}

fn writer(stream: Option<Stream>) -> Option<WriteHalf> {
    stream.map(|stream| stream.into_split().1)
}

fn reader(stream: Option<Stream>) -> Option<ReadHalf> {
    stream.map(|stream| stream.into_split().0)
}

/// Opens the session with the kubelet. The error is the `Status` for the client.
async fn open(target: Target, options: Options) -> Result<(Connection, remotecommand::Streams), Bytes> {
    let failure = |error: String| Bytes::from(Outcome::Failure(error).to_status().to_string());
    let mut headers = HeaderMap::new();
    upgrade::ask_for(&mut headers, upgrade::SPDY);
    headers.insert(PROTOCOL_HEADER, HeaderValue::from_static(PROTOCOL_V4));
    let backend = match ask(target, Method::POST, headers).await {
        Ok(Asked::Upgraded(_, backend)) => backend.await.map_err(|error| failure(error.to_string()))?,
        Ok(Asked::Refused(response)) => return Err(refusal(response).await),
        Err(error) => return Err(failure(format!("error dialing backend: {error}"))),
    };
    let (connection, _incoming) = Connection::start(TokioIo::new(backend), Role::Client);
    match tokio::time::timeout(STREAM_PATIENCE, remotecommand::open(&connection, options)).await {
        Ok(Ok(streams)) => Ok((connection, streams)),
        Ok(Err(error)) => Err(failure(error.to_string())),
        Err(_) => Err(failure("timed out waiting for the streams of the command".to_owned())),
    }
}

/// What the kubelet said instead of 101: a `Status` as it is, a text in one.
async fn refusal(response: super::Response) -> Bytes {
    let mut body = response.into_body();
    let mut bytes = Vec::new();
    while let Some(Ok(frame)) = body.frame().await
        && bytes.len() < STATUS_BYTES_MAX as usize
    {
        bytes.extend_from_slice(&frame.into_data().unwrap_or_default());
    }
    let is_status = serde_json::from_slice::<serde_json::Value>(&bytes).is_ok_and(|value| value["kind"] == "Status");
    if is_status {
        return bytes.into();
    }
    let error = format!("unable to upgrade connection: {}", String::from_utf8_lossy(&bytes).trim());
    Outcome::Failure(error).to_status().to_string().into()
}

/// From the client to the command.
struct Input {
    protocol: ChannelProtocol,
    stdin: Option<WriteHalf>,
    resize: Option<WriteHalf>,
}

impl Input {
    /// Ends when the client does.
    async fn run<T: Io>(mut self, source: &mut Source<T>) {
        const STDIN: u8 = StreamType::Stdin as u8;
        const RESIZE: u8 = StreamType::Resize as u8;
        while let Some(Ok(message)) = source.next().await {
            match self.protocol.decode(message) {
                ChannelEvent::Data(STDIN, data) => write(&mut self.stdin, &data).await,
                ChannelEvent::Data(RESIZE, data) => write(&mut self.resize, &data).await,
                ChannelEvent::Close(STDIN) => close(&mut self.stdin).await,
                ChannelEvent::Close(RESIZE) => close(&mut self.resize).await,
                ChannelEvent::End => return,
                // Channels that nobody asked for are ignored.
                ChannelEvent::Data(..) | ChannelEvent::Close(_) | ChannelEvent::Nothing => {}
            }
        }
    }
}

/// A command that takes no more input is no error: its exit status is still to come.
async fn write(stream: &mut Option<WriteHalf>, data: &[u8]) {
    if let Some(open) = stream
        && open.write_all(data).await.is_err()
    {
        *stream = None;
    }
}

/// Half-closes. The stream is kept: dropped, it would be reset.
async fn close(stream: &mut Option<WriteHalf>) {
    if let Some(open) = stream {
        // Fails only where the stream is gone already.
        let _ = open.shutdown().await;
    }
}

/// From the command to the client.
struct Output {
    protocol: ChannelProtocol,
    stdout: Option<ReadHalf>,
    stderr: Option<ReadHalf>,
}

impl Output {
    /// Copies the output to its end; then the command's status. `None`: the client has gone.
    async fn run<T: Io>(mut self, sink: &mut Sink<T>, mut error: Stream) -> Option<Bytes> {
        while self.stdout.is_some() || self.stderr.is_some() {
            let (kind, data) = tokio::select! {
                data = next(&mut self.stdout) => (StreamType::Stdout, data),
                data = next(&mut self.stderr) => (StreamType::Stderr, data),
            };
            match data {
                Some(data) => sink.send(self.protocol.encode(kind.channel(), &data)).await.ok()?,
                None if kind == StreamType::Stdout => self.stdout = None,
                None => self.stderr = None,
            }
        }
        let mut status = Vec::new();
        // A runtime that closes the connection behind its last word resets the stream; what it said counts.
        if let Err(failed) = (&mut error).take(STATUS_BYTES_MAX).read_to_end(&mut status).await
            && status.is_empty()
        {
            return Some(
                Outcome::Failure(format!("error reading from error stream: {failed}")).to_status().to_string().into(),
            );
        }
        if status.is_empty() {
            return Some(Outcome::Success.to_status().to_string().into());
        }
        Some(status.into())
    }
}

/// The next piece of output; `None` at the end, however it came. Never ready for a stream that does not exist.
async fn next(stream: &mut Option<ReadHalf>) -> Option<Bytes> {
    match stream {
        Some(stream) => stream.next().await.ok().flatten(),
        None => std::future::pending().await,
    }
}

/// Tells the client how the command ended, and closes.
async fn finish<T: Io>(mut sink: Sink<T>, mut source: Source<T>, protocol: ChannelProtocol, status: &Bytes) {
    let channel = StreamType::Error.channel();
    let last = if protocol.status_object {
        Some(protocol.encode(channel, status))
    } else {
        // The oldest protocols say nothing of success, and of failure the text.
        match Outcome::from_status(status) {
            Outcome::Success => None,
            Outcome::ExitCode(code) => {
                let text = format!("command terminated with non-zero exit code: exit status {code}");
                Some(protocol.encode(channel, text.as_bytes()))
            }
            Outcome::Failure(text) => Some(protocol.encode(channel, text.as_bytes())),
        }
    };
    let goodbye = async {
        if let Some(last) = last {
            sink.send(last).await?;
        }
        sink.send(normal_closure()).await?;
        // Until the client has closed too: closing on unread pings would make TCP throw our last words away.
        while source.next().await.transpose()?.is_some() {}
        Ok::<_, streaming::Error>(())
    };
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}
