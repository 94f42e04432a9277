//! Passing bytes between two connections that have left HTTP.

use std::time::Duration;

use hyper::upgrade::OnUpgrade;
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncWriteExt, ReadHalf, WriteHalf};

use crate::Io;

/// How long a side may take to see that the other has gone.
const GOODBYE: Duration = Duration::from_secs(5);

/// Connects the client's side of an upgrade, which completes once our 101 is out, with the backend's. `held` is dropped when both have
/// ended.
pub fn connect<H: Send + 'static>(client: OnUpgrade, backend: OnUpgrade, held: H) {
    tokio::spawn(async move {
        match tokio::try_join!(client, backend) {
            Ok((client, backend)) => pump(TokioIo::new(client), TokioIo::new(backend)).await,
            Err(error) => tracing::debug!(%error, "upgrade failed"),
        }
        drop(held);
    });
}

/// Copies both ways until one side ends, as upstream: a connection that is half closed is closed.
pub async fn pump(client: impl Io, backend: impl Io) {
    let (mut from_client, mut to_client) = tokio::io::split(client);
    let (mut from_backend, mut to_backend) = tokio::io::split(backend);
    let ended = tokio::select! {
        up = tokio::io::copy(&mut from_client, &mut to_backend) => up,
        down = tokio::io::copy(&mut from_backend, &mut to_client) => down,
    };
    if let Err(error) = ended {
        tracing::debug!(%error, "stream ended");
    }
    tokio::join!(part(from_client, to_client), part(from_backend, to_backend));
}

/// Says that no more comes, then reads what is still on its way: closing on unread bytes would make TCP throw away those that the
/// other side has not read yet.
async fn part<T: Io>(mut read: ReadHalf<T>, mut write: WriteHalf<T>) {
    let goodbye = async {
        write.shutdown().await?;
        tokio::io::copy(&mut read, &mut tokio::io::sink()).await
    };
    // A side that does not answer is closed all the same.
    let _ = tokio::time::timeout(GOODBYE, goodbye).await;
}
