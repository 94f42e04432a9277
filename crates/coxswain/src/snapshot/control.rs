//! How `coxswain snapshot save` asks the server that runs: a socket in a folder that only the server's user may enter. The server asks
//! the kernel, too, who is at the other end. A request is a line of JSON, and so is its answer.

use std::io::{BufRead as _, BufReader, Write as _};
use std::os::unix::net::UnixStream as StdStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use apiserver::object::ObjectStore;
use nix::unistd::geteuid;
use serde::{Deserialize, Serialize};
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{UnixListener, UnixStream};
use tokio_util::sync::CancellationToken;

use super::folder::Folder;
use crate::files;

const SOCKET: &str = "server.sock";
const MAX_REQUEST_BYTES: u64 = 64 << 10;
/// For the line to come.
const REQUEST_WITHIN: Duration = Duration::from_secs(10);

#[derive(Serialize, Deserialize)]
struct Request {
    /// Absolute, as are all paths here.
    dir: PathBuf,
    name: String,
}

#[derive(Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
enum Answer {
    Saved(Saved),
    Failed(String),
}

#[derive(Serialize, Deserialize)]
pub struct Saved {
    pub path: PathBuf,
    pub revision: u64,
    pub keys: u64,
}

fn socket_dir(data_dir: &Path) -> PathBuf {
    data_dir.join("control")
}

/// The socket by a path that is short enough for any data folder: the kernel takes 108 bytes.
fn short_path(dir: &std::fs::File) -> PathBuf {
    use std::os::fd::AsRawFd as _;
    PathBuf::from(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))
}

/// Asks the server on `data_dir`; none if none runs there.
pub fn ask(data_dir: &Path, folder: &Folder, name: &str) -> Result<Option<Saved>> {
    let Ok(dir) = std::fs::File::open(socket_dir(data_dir)) else { return Ok(None) };
    use std::io::ErrorKind::{ConnectionRefused, NotFound};
    let mut stream = match StdStream::connect(short_path(&dir)) {
        Ok(stream) => stream,
        // No server, or one that was killed.
        Err(error) if matches!(error.kind(), NotFound | ConnectionRefused) => return Ok(None),
        Err(error) => return Err(error).context("cannot reach the server"),
    };
    let request = Request { dir: folder.path().to_owned(), name: name.to_owned() };
    let mut line = serde_json::to_vec(&request)?;
    line.push(b'\n');
    stream.write_all(&line).context("cannot ask the server")?;
    let mut answer = String::new();
    BufReader::new(stream).read_line(&mut answer).context("the server's answer did not come")?;
    match serde_json::from_str(&answer).context("the server stopped before it answered")? {
        Answer::Saved(saved) => Ok(Some(saved)),
        Answer::Failed(why) => bail!("{why}"),
    }
}

/// Answers such questions until `shutdown`.
pub async fn serve(data_dir: PathBuf, store: ObjectStore, shutdown: CancellationToken) {
    let listener = match listen(&data_dir) {
        Ok(listener) => listener,
        Err(error) => return tracing::error!("snapshots cannot be asked for: {error:#}"),
    };
    while let Some(accepted) = shutdown.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, _)) => {
                let (store, shutdown) = (store.clone(), shutdown.clone());
                tokio::spawn(async move { shutdown.run_until_cancelled(answer(stream, &store)).await });
            }
            Err(error) => {
                // Such as too many open files: others need the time to close theirs.
                tracing::warn!(%error, "cannot accept a connection");
                tokio::time::sleep(Duration::from_secs(1)).await;
            }
        }
    }
    // The next server removes what stays.
    let _ = std::fs::remove_file(socket_dir(&data_dir).join(SOCKET));
}

fn listen(data_dir: &Path) -> Result<UnixListener> {
    let dir = socket_dir(data_dir);
    files::private_dir(&dir)?;
    let opened = std::fs::File::open(&dir).with_context(|| dir.display().to_string())?;
    // The data folder's lock is ours, so nobody listens on one that is there.
    let _ = std::fs::remove_file(dir.join(SOCKET));
    UnixListener::bind(short_path(&opened)).with_context(|| format!("cannot listen in {}", dir.display()))
}

async fn answer(mut stream: UnixStream, store: &ObjectStore) {
    let answer = match handle(&mut stream, store).await {
        Ok(saved) => Answer::Saved(saved),
        Err(error) => Answer::Failed(format!("{error:#}")),
    };
    let mut line = serde_json::to_vec(&answer).unwrap_or_default();
    line.push(b'\n');
    // Who has gone away does not want to know.
    let _ = stream.write_all(&line).await;
}

async fn handle(stream: &mut UnixStream, store: &ObjectStore) -> Result<Saved> {
    let peer = stream.peer_cred().context("cannot ask who it is that asks")?.uid();
    if peer != 0 && peer != geteuid().as_raw() {
        bail!("user {peer} may not take snapshots");
    }
    let mut line = String::new();
    let mut reader = tokio::io::BufReader::new(stream).take(MAX_REQUEST_BYTES);
    let read = tokio::time::timeout(REQUEST_WITHIN, reader.read_line(&mut line)).await;
    read.context("no request came")?.context("cannot read the request")?;
    let request: Request = serde_json::from_str(&line).context("the request makes no sense")?;
    if !request.dir.is_absolute() {
        bail!("{} is not absolute", request.dir.display());
    }
    let path = Folder(request.dir).next_path(&request.name)?;
    let taken = store.snapshot(&path).await?;
    tracing::info!(path = %path.display(), revision = taken.revision, "snapshot taken");
    Ok(Saved { path, revision: taken.revision, keys: taken.keys })
}
