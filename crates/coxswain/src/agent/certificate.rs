//! A certificate that the cluster signs: asked for by a CertificateSigningRequest, kept on disk, renewed while in use.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use futures::StreamExt as _;
use k8s_openapi::ByteString;
use k8s_openapi::api::certificates::v1::{CertificateSigningRequest, CertificateSigningRequestSpec};
use kube::api::{Api, ObjectMeta, PostParams};
use kube::runtime::{WatchStreamExt as _, watcher};
use parking_lot::RwLock;
use rcgen::{CertificateParams, KeyPair};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;
use tokio_util::sync::CancellationToken;

use crate::pki::{KeyPairPem, Leaf, distinguished_name, paths, wait_until};

/// An administrator may have to approve.
const PATIENCE: Duration = Duration::from_secs(15 * 60);
const RETRY: Duration = Duration::from_secs(60);

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Purpose {
    /// The node itself, as a client of the API.
    Client,
    /// The kubelet's server.
    Serving,
}

impl Purpose {
    fn file(self) -> &'static str {
        match self {
            Purpose::Client => "client",
            Purpose::Serving => "serving",
        }
    }

    fn signer(self) -> &'static str {
        match self {
            Purpose::Client => "kubernetes.io/kube-apiserver-client-kubelet",
            Purpose::Serving => "kubernetes.io/kubelet-serving",
        }
    }

    fn usages(self) -> Vec<String> {
        let purpose = match self {
            Purpose::Client => "client auth",
            Purpose::Serving => "server auth",
        };
        vec!["digital signature".to_owned(), purpose.to_owned()]
    }
}

/// One of this node's certificates.
pub struct Issued {
    dir: PathBuf,
    purpose: Purpose,
    common_name: String,
    names: Vec<String>,
    current: RwLock<Option<Arc<Leaf>>>,
}

impl Issued {
    /// `common_name` is `system:node:<name>`; `names` are those that a serving certificate must carry.
    pub fn new(dir: &Path, purpose: Purpose, common_name: &str, names: Vec<String>) -> Arc<Self> {
        let current =
            Leaf::from_files(dir, purpose.file()).ok().flatten().filter(|leaf| leaf.names_all(common_name, &names));
        Arc::new(Issued {
            dir: dir.to_owned(),
            purpose,
            common_name: common_name.to_owned(),
            names,
            current: RwLock::new(current.map(Arc::new)),
        })
    }

    /// Whether there is one that lasts for a while yet.
    pub fn is_good(&self) -> bool {
        self.renewal_due() > SystemTime::now()
    }

    fn renewal_due(&self) -> SystemTime {
        self.current.read().as_ref().map_or(SystemTime::UNIX_EPOCH, |leaf| leaf.renewal_due)
    }

    /// Certificate and key.
    pub fn files(&self) -> (PathBuf, PathBuf) {
        paths(&self.dir, self.purpose.file())
    }

    /// Asks for a certificate, waits until it is signed, writes it down and puts it into use.
    pub async fn obtain(&self, client: &kube::Client) -> Result<()> {
        let key = KeyPair::generate()?;
        let mut params = CertificateParams::new(self.names.clone())?;
        params.distinguished_name = distinguished_name(&self.common_name, Some("system:nodes"));
        let request = params.serialize_request(&key)?.pem()?;
        let certificate = tokio::time::timeout(PATIENCE, self.ask(client, request)).await;
        let certificate = certificate.context("nobody has approved it (kubectl get csr)")??;
        let pem = KeyPairPem { certificate, key: key.serialize_pem() };
        let leaf = Leaf::write(&self.dir, self.purpose.file(), pem)?;
        *self.current.write() = Some(Arc::new(leaf));
        Ok(())
    }

    async fn ask(&self, client: &kube::Client, request: String) -> Result<String> {
        let api: Api<CertificateSigningRequest> = Api::all(client.clone());
        let wanted = CertificateSigningRequest {
            metadata: ObjectMeta { generate_name: Some("csr-".to_owned()), ..ObjectMeta::default() },
            spec: CertificateSigningRequestSpec {
                request: ByteString(request.into_bytes()),
                signer_name: self.purpose.signer().to_owned(),
                usages: Some(self.purpose.usages()),
                ..CertificateSigningRequestSpec::default()
            },
            status: None,
        };
        let made = api.create(&PostParams::default(), &wanted).await?;
        let name = made.metadata.name.unwrap_or_default();
        let config = watcher::Config::default().fields(&format!("metadata.name={name}"));
        let mut changes = Box::pin(watcher(api, config).default_backoff().applied_objects());
        while let Some(change) = changes.next().await {
            // The watch is tried again by itself.
            let Ok(seen) = change else { continue };
            let status = seen.status.unwrap_or_default();
            let decided = |kind: &str| status.conditions.iter().flatten().find(|c| c.type_ == kind);
            if let Some(refusal) = decided("Denied").or_else(|| decided("Failed")) {
                bail!("{name} was refused: {}", refusal.message.as_deref().unwrap_or("no reason given"));
            }
            if let Some(certificate) = status.certificate {
                return String::from_utf8(certificate.0).context("the certificate is no text");
            }
        }
        bail!("the server ended the watch of {name}")
    }

    /// Renews the certificate when it is due, until `shutdown`. `client` is the node itself.
    pub async fn keep_renewed(self: Arc<Self>, client: kube::Client, shutdown: CancellationToken) {
        let mut wait = wait_until(self.renewal_due());
        while shutdown.run_until_cancelled(tokio::time::sleep(wait)).await.is_some() {
            if self.is_good() {
                wait = wait_until(self.renewal_due());
                continue;
            }
            let Some(obtained) = shutdown.run_until_cancelled(self.obtain(&client)).await else { return };
            wait = match obtained {
                Ok(()) => {
                    tracing::info!(certificate = self.purpose.file(), "renewed");
                    wait_until(self.renewal_due())
                }
                Err(error) => {
                    let error = format_args!("{error:#}");
                    tracing::error!(error, certificate = self.purpose.file(), "cannot be renewed");
                    RETRY
                }
            };
        }
    }
}

impl std::fmt::Debug for Issued {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Issued").field("purpose", &self.purpose).finish_non_exhaustive()
    }
}

impl ResolvesServerCert for Issued {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.read().as_ref().map(|leaf| leaf.certified.clone())
    }
}
