//! `/containerLogs`: a container's log, from the file that the runtime writes.

mod format;
mod reader;
mod watch;

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use http_body_util::{BodyExt as _, StreamBody};
use hyper::body::Frame;
use tokio::sync::mpsc;

use format::{Filter, Progress};
pub use format::{LogOptions, Wanted};
use reader::LineReader;
use watch::{Changes, Watch};

use super::{Body, Runtime};

/// Pieces of output that wait for a slow reader.
const PIECES_MAX: usize = 4;
/// Output is gathered up to this size before it is passed on.
const PIECE_BYTES: usize = 32 * 1024;
/// How long a rotated file may still be written to.
const ROTATION_GRACE: Duration = Duration::from_millis(500);
/// How soon to ask whether a container whose log was closed has ended, and how rarely in the end: runtimes close the log a moment
/// before they say so, and a runtime that restarts closes the logs of containers that run on.
const END_CHECK_FIRST: Duration = Duration::from_millis(20);
const END_CHECK_LAST: Duration = Duration::from_secs(30);

/// A log that a reader wants, and that exists.
pub struct Log {
    pub path: PathBuf,
    pub container_id: String,
}

/// Opens a log and streams it. The body ends where the log does or, with `follow`, when the container ends.
pub async fn stream(log: Log, options: LogOptions, runtime: Arc<dyn Runtime>) -> io::Result<Body> {
    // Watched before the first read, so that nothing falls between reading and waiting.
    let watch = if options.follow { Some(Watch::new(&log.path)?) } else { None };
    let reader = LineReader::open(&log.path, options.tail_lines).await?;
    let (sender, mut receiver) = mpsc::channel(PIECES_MAX);
    let tailer = Tailer { reader, filter: Filter::new(options), sender, out: Vec::new() };
    tokio::spawn(async move {
        let path = log.path.clone();
        let result = match watch {
            None => tailer.read_once().await,
            Some(watch) => Follower { tailer, watch, runtime, log }.run().await,
        };
        if let Err(Stop::Failed(error)) = result {
            tracing::warn!(%error, path = %path.display(), "log cannot be read on");
        }
    });
    let pieces = futures::stream::poll_fn(move |cx| receiver.poll_recv(cx));
    Ok(StreamBody::new(futures::StreamExt::map(pieces, |piece: Bytes| Ok(Frame::data(piece)))).boxed_unsync())
}

/// Why reading stops before the end of the log.
enum Stop {
    /// The reader has gone, or has all that it asked for.
    Satisfied,
    Failed(io::Error),
}

impl From<io::Error> for Stop {
    fn from(error: io::Error) -> Self {
        Stop::Failed(error)
    }
}

/// Reads lines and passes on what is wanted of them.
struct Tailer {
    reader: LineReader,
    filter: Filter,
    sender: mpsc::Sender<Bytes>,
    out: Vec<u8>,
}

impl Tailer {
    async fn read_once(mut self) -> Result<(), Stop> {
        self.drain().await?;
        self.drain_rest().await
    }

    /// Passes on every whole line that there is now.
    async fn drain(&mut self) -> Result<(), Stop> {
        if self.filter.is_done() {
            return Err(Stop::Satisfied);
        }
        loop {
            let progress = match self.reader.next().await? {
                None => return self.flush().await,
                Some(line) => self.filter.line(line, &mut self.out),
            };
            if progress == Progress::Done {
                self.flush().await?;
                return Err(Stop::Satisfied);
            }
            if self.out.len() >= PIECE_BYTES {
                self.flush().await?;
            }
        }
    }

    /// A last line that was never finished is shown all the same.
    async fn drain_rest(&mut self) -> Result<(), Stop> {
        let rest = self.reader.rest();
        if !rest.is_empty() {
            self.filter.line(rest, &mut self.out);
        }
        self.flush().await
    }

    async fn flush(&mut self) -> Result<(), Stop> {
        if self.out.is_empty() {
            return Ok(());
        }
        let piece = Bytes::from(std::mem::take(&mut self.out));
        self.sender.send(piece).await.map_err(|_| Stop::Satisfied)
    }
}

struct Follower {
    tailer: Tailer,
    watch: Watch,
    runtime: Arc<dyn Runtime>,
    log: Log,
}

impl Follower {
    async fn run(mut self) -> Result<(), Stop> {
        self.tailer.drain().await?;
        let mut ended = !self.is_running().await;
        while !ended {
            let changes = self.changed().await?;
            if changes.replaced {
                self.turn_over(changes).await?;
            }
            self.tailer.drain().await?;
            ended = changes.gone || (changes.closed && !changes.replaced && self.has_ended().await?);
        }
        self.tailer.drain().await?;
        self.tailer.drain_rest().await
    }

    /// Waits for the log to change or the reader to go.
    async fn changed(&mut self) -> Result<Changes, Stop> {
        tokio::select! {
            changes = self.watch.changed() => Ok(changes?),
            () = self.tailer.sender.closed() => Err(Stop::Satisfied),
        }
    }

    /// The log was rotated: reads the old file to its end, then turns to the new one.
    async fn turn_over(&mut self, changes: Changes) -> Result<(), Stop> {
        if !changes.closed {
            // The runtime opens the new file before it lets go of the old one.
            let closed = async {
                while !self.watch.changed().await?.closed {}
                Ok::<_, io::Error>(())
            };
            let _ = tokio::time::timeout(ROTATION_GRACE, closed).await;
        }
        self.tailer.drain().await?;
        let path: &Path = &self.log.path;
        match LineReader::open(path, None).await {
            Ok(reader) => self.tailer.reader = reader,
            // Replaced once more in this moment, or removed: another event tells.
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            Err(error) => return Err(error.into()),
        }
        self.watch.turn_to_new_file()?;
        Ok(())
    }

    /// The log was closed: has the container ended, or does somebody write on?
    async fn has_ended(&mut self) -> Result<bool, Stop> {
        let mut wait = END_CHECK_FIRST;
        while self.is_running().await {
            match tokio::time::timeout(wait, self.changed()).await {
                Ok(Ok(changes)) if changes.replaced => {
                    self.turn_over(changes).await?;
                    return Ok(false);
                }
                Ok(Ok(changes)) if changes.gone => return Ok(true),
                Ok(Ok(changes)) => {
                    self.tailer.drain().await?;
                    if !changes.closed {
                        return Ok(false);
                    }
                    wait = END_CHECK_FIRST;
                }
                Ok(Err(stop)) => return Err(stop),
                Err(_) => wait = (wait * 2).min(END_CHECK_LAST),
            }
        }
        Ok(true)
    }

    /// A runtime that cannot be asked may be restarting; its containers run on.
    async fn is_running(&self) -> bool {
        match self.runtime.is_running(&self.log.container_id).await {
            Ok(running) => running,
            Err(error) => error.is_unavailable(),
        }
    }
}
