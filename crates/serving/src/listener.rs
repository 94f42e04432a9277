//! One task per connection, and no more connections than there are slots.

use std::sync::Arc;
use std::time::Duration;

use rustls::ServerConfig;
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::{OwnedSemaphorePermit, Semaphore};
use tokio_rustls::TlsAcceptor;
use tokio_rustls::server::TlsStream;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// How long to leave a listener alone that cannot accept: out of file descriptors, mostly, and others must end first.
const ACCEPT_PAUSE: Duration = Duration::from_millis(50);

#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// Open at a time; further ones wait to be accepted.
    pub connections: usize,
    /// A client that has not finished its TLS handshake by then is cut off.
    pub handshake: Duration,
}

/// Hands each connection whose handshake succeeds to `serve`, until `shutdown`. Returns the connections that are still open.
pub async fn accept<S, F>(
    listener: TcpListener,
    tls: Arc<ServerConfig>,
    limits: Limits,
    shutdown: CancellationToken,
    serve: S,
) -> TaskTracker
where
    S: Fn(TlsStream<TcpStream>) -> F + Clone + Send + 'static,
    F: Future<Output = ()> + Send + 'static,
{
    let acceptor = TlsAcceptor::from(tls);
    let slots = Arc::new(Semaphore::new(limits.connections));
    let connections = TaskTracker::new();
    while let Some(Some((socket, slot))) = shutdown.run_until_cancelled(next(&listener, &slots)).await {
        let (acceptor, serve) = (acceptor.clone(), serve.clone());
        connections.spawn(async move {
            // Keystrokes and watch events are not to wait for one another.
            let _ = socket.set_nodelay(true);
            match tokio::time::timeout(limits.handshake, acceptor.accept(socket)).await {
                Ok(Ok(stream)) => serve(stream).await,
                Ok(Err(error)) => tracing::debug!(%error, "TLS handshake failed"),
                Err(_) => tracing::debug!("TLS handshake timed out"),
            }
            drop(slot);
        });
    }
    connections
}

async fn next(listener: &TcpListener, slots: &Arc<Semaphore>) -> Option<(TcpStream, OwnedSemaphorePermit)> {
    let slot = slots.clone().acquire_owned().await.ok()?;
    loop {
        match listener.accept().await {
            Ok((socket, _)) => return Some((socket, slot)),
            Err(error) => {
                tracing::warn!(%error, "accept failed");
                tokio::time::sleep(ACCEPT_PAUSE).await;
            }
        }
    }
}

/// Waits for connections to end, so long at most; what streams on is cut off with the process.
pub async fn drain(connections: TaskTracker, limit: Duration) {
    connections.close();
    let _ = tokio::time::timeout(limit, connections.wait()).await;
}

#[cfg(test)]
mod tests {
    use super::*;
    use rustls::crypto::ring;
    use rustls::pki_types::ServerName;
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio_rustls::TlsConnector;

    fn server() -> Arc<ServerConfig> {
        let key = rcgen::generate_simple_self_signed(vec!["localhost".to_owned()]).unwrap();
        let provider = Arc::new(ring::default_provider());
        let config = ServerConfig::builder_with_provider(provider).with_safe_default_protocol_versions().unwrap();
        let (certificate, secret) = (key.cert.der().clone(), key.signing_key.serialize_der());
        Arc::new(config.with_no_client_auth().with_single_cert(vec![certificate], secret.try_into().unwrap()).unwrap())
    }

    #[tokio::test]
    async fn slots_come_back_and_silent_clients_lose_theirs() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        let shutdown = CancellationToken::new();
        let limits = Limits { connections: 1, handshake: Duration::from_millis(200) };
        let serve = |mut stream: TlsStream<TcpStream>| async move {
            let _ = stream.write_all(b"hello").await;
            let _ = stream.shutdown().await;
        };
        let running = tokio::spawn(accept(listener, server(), limits, shutdown.clone(), serve));
        // Takes the only slot, and says nothing.
        let _silent = TcpStream::connect(address).await.unwrap();
        for _ in 0..3 {
            let connector = TlsConnector::from(Arc::new(crate::unverified(Arc::new(ring::default_provider()))));
            let tcp = TcpStream::connect(address).await.unwrap();
            let mut stream = connector.connect(ServerName::try_from("whoever").unwrap(), tcp).await.unwrap();
            let mut said = String::new();
            stream.read_to_string(&mut said).await.unwrap();
            assert_eq!(said, "hello");
        }
        shutdown.cancel();
        drain(running.await.unwrap(), Duration::from_secs(5)).await;
        assert!(TcpStream::connect(address).await.is_err(), "nobody listens any more");
    }
}
