//! Certificates that are renewed while they are in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::Result;
use parking_lot::RwLock;
use rustls::SignatureScheme;
use rustls::client::ResolvesClientCert;
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use super::leaf::{KeyPairPem, Leaf, Subject};
use super::{Authority, Pki};

/// Timers stand still while a machine sleeps, and clocks are set: the due time is looked at anew at least this often.
const LOOK: Duration = Duration::from_secs(12 * 3600);
/// A disk that is full now may not be soon.
const RETRY: Duration = Duration::from_secs(60);

/// A certificate that is exchanged under the TLS configurations that use it: they ask for it at each handshake.
pub struct Rotating {
    dir: PathBuf,
    authority: Arc<Authority>,
    subject: Subject,
    life: Duration,
    current: RwLock<Arc<Leaf>>,
}

impl Rotating {
    pub fn open(dir: &Path, authority: Arc<Authority>, subject: Subject, life: Duration) -> Result<Self> {
        let leaf = match Leaf::read(dir, &authority, &subject)? {
            Some(leaf) => leaf,
            None => Leaf::make(dir, &authority, &subject, life)?,
        };
        Ok(Rotating { dir: dir.to_owned(), authority, subject, life, current: RwLock::new(Arc::new(leaf)) })
    }

    pub fn name(&self) -> &str {
        self.subject.file
    }

    pub fn pem(&self) -> KeyPairPem {
        self.current.read().pem.clone()
    }

    pub fn renewal_due(&self) -> SystemTime {
        self.current.read().renewal_due
    }

    pub fn renew(&self) -> Result<()> {
        let leaf = Leaf::make(&self.dir, &self.authority, &self.subject, self.life)?;
        *self.current.write() = Arc::new(leaf);
        Ok(())
    }

    fn certified(&self) -> Arc<CertifiedKey> {
        self.current.read().certified.clone()
    }
}

impl std::fmt::Debug for Rotating {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Rotating").field("name", &self.name()).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Rotating {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }
}

impl ResolvesClientCert for Rotating {
    fn resolve(&self, _: &[&[u8]], _: &[SignatureScheme]) -> Option<Arc<CertifiedKey>> {
        Some(self.certified())
    }

    fn has_certs(&self) -> bool {
        true
    }
}

/// Renews certificates when they are due, until `shutdown`. `renewed` is called after each time.
pub async fn keep_renewed(pki: Arc<Pki>, shutdown: CancellationToken, renewed: impl Fn() -> Result<()> + Send) {
    let mut wait = wait_until(pki.renewal_due());
    while shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
        wait = match pki.renew(SystemTime::now()) {
            Ok(names) if names.is_empty() => wait_until(pki.renewal_due()),
            Ok(names) => {
                tracing::info!(certificates = names.join(", "), "renewed");
                if let Err(error) = renewed() {
                    tracing::error!(error = format_args!("{error:#}"), "after a renewal of certificates");
                }
                wait_until(pki.renewal_due())
            }
            Err(error) => {
                tracing::error!(error = format_args!("{error:#}"), "certificates cannot be renewed");
                RETRY
            }
        };
    }
}

/// How long to sleep before looking at a certificate again that is to be renewed then.
pub fn wait_until(due: SystemTime) -> Duration {
    due.duration_since(SystemTime::now()).unwrap_or_default().min(LOOK)
}
