//! `coxswain agent`: a node that joins a server on another machine.
//!
//! Everything goes through the API: the token only serves to ask for the node's client certificate (a CertificateSigningRequest, which
//! the server approves by itself), and that certificate asks for everything else. What was got is kept under `<data-dir>/agent`, so that a
//! restart needs no token, and no server that is up at the time.

mod certificate;
mod discovery;

use std::path::PathBuf;
use std::sync::Arc;

use anyhow::{Context as _, Result, bail};
use client::https::{self, Credentials, Pem};
use rustls::pki_types::pem::PemObject as _;
use rustls::server::WebPkiClientVerifier;
use rustls::{RootCertStore, pki_types::CertificateDer};
use tokio_util::sync::CancellationToken;

use certificate::{Issued, Purpose};

use crate::clients::NodeClient;
use crate::config::{Agent, Cluster};
use crate::join::{self, Token};
use crate::node::{self, Node};
use crate::process::{Process, Signals};
use crate::progress::Progress;
use crate::{GIT_VERSION, files};

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Agent) -> Result<()> {
    let progress = Progress::start();
    let host = &config.host;
    progress.step(format_args!("coxswain {GIT_VERSION}, data in {}", host.data_dir.display()));
    files::make_dir(&host.data_dir)?;
    let _lock = files::lock(&host.data_dir)?;
    rustls::crypto::ring::default_provider().install_default().ok();
    let mut signals = Signals::listen()?;
    let shutdown = CancellationToken::new();
    let joined = tokio::select! {
        joined = join(&config, &progress) => joined?,
        () = signals.stop() => return Ok(()),
    };
    let clients = Arc::new(NodeClient(joined.client.clone()));
    let process = Process::new(clients, joined.client.clone(), shutdown.clone());
    for certificate in [&joined.identity, &joined.serving] {
        process.tasks.spawn(certificate.clone().keep_renewed(joined.client.clone(), shutdown.clone()));
    }
    let node = Node { host, cluster: &joined.cluster, proxy: true, dns: false, tls: joined.tls };
    tokio::select! {
        started = node::start(&node, &process, &progress) => started?,
        () = signals.stop() => {}
    }
    signals.stop().await;
    progress.step("stopping; containers keep running");
    shutdown.cancel();
    process.finish().await;
    progress.step("stopped");
    Ok(())
}

/// What a node has when it belongs to the cluster.
struct Joined {
    /// Acts as `system:node:<name>`.
    client: kube::Client,
    identity: Arc<Issued>,
    serving: Arc<Issued>,
    cluster: Cluster,
    tls: Arc<rustls::ServerConfig>,
}

async fn join(config: &Agent, progress: &Progress) -> Result<Joined> {
    let dir = config.host.data_dir.join("agent");
    files::private_dir(&dir)?;
    let token = config.token.as_deref().map(Token::parse).transpose()?;
    let authority = authority(config, &dir.join("server-ca.crt"), token.as_ref()).await?;
    progress.step(format_args!("joining {}", config.server));
    let name = format!("system:node:{}", config.host.node_name);

    let identity = Issued::new(&dir, Purpose::Client, &name, Vec::new());
    if !identity.is_good() {
        let Some(token) = &token else {
            bail!("this node has no certificate yet: give it the server's node-token with --token")
        };
        let client = https::client_with_token(&config.server, Pem::File(authority.clone()), &token.secret)?;
        identity.obtain(&client).await.context("the server does not give this node a certificate")?;
    }
    let (certificate, key) = identity.files();
    let client = https::client(&config.server, Credentials::from_files(&authority, &certificate, &key))?;
    let (cluster, client_authority) = facts(&client, &dir.join("cluster.json")).await?;

    let names = vec![config.host.node_name.clone(), config.host.node_ip.to_string(), "127.0.0.1".to_owned()];
    let serving = Issued::new(&dir, Purpose::Serving, &name, names);
    if !serving.is_good() {
        serving.obtain(&client).await.context("the server does not give the kubelet a serving certificate")?;
    }
    let tls = kubelet_tls(&serving, &client_authority)?;
    progress.step(format_args!("certificates of {name} are in {}", dir.display()));
    Ok(Joined { client, identity, serving, cluster, tls })
}

/// The file with the authority that signs the server: kept from the first join, or asked for and held against the token.
async fn authority(config: &Agent, kept: &std::path::Path, token: Option<&Token>) -> Result<PathBuf> {
    let pem = match files::read_optional(kept)? {
        Some(pem) => pem,
        None => discovery::authority(&config.server).await?,
    };
    match token.and_then(|token| token.believes(&pem)) {
        Some(false) => bail!(
            "{} shows another authority than the token names: it is not the server that made the token (or remove {})",
            config.server,
            kept.display()
        ),
        None if token.is_some() => {
            tracing::warn!("the token does not say which server it is for: believing the one that answered")
        }
        _ => {}
    }
    files::write_changed(kept, pem.as_bytes())?;
    Ok(kept.to_owned())
}

/// The cluster's facts: the server's, or those of the last time while it does not answer.
async fn facts(client: &kube::Client, kept: &std::path::Path) -> Result<(Cluster, String)> {
    match join::read_facts(client).await {
        Ok(facts) => {
            files::write_changed(kept, &serde_json::to_vec(&facts)?)?;
            Ok(facts)
        }
        Err(error) => match files::read_optional(kept)? {
            Some(text) => {
                tracing::warn!(
                    error = format_args!("{error:#}"),
                    "the server does not answer; starting with what it said last"
                );
                serde_json::from_str(&text).with_context(|| format!("{} is damaged", kept.display()))
            }
            None => Err(error).context("cannot learn the cluster's networks"),
        },
    }
}

/// The kubelet's half of TLS: the API server's own client certificate is what it believes.
fn kubelet_tls(serving: &Arc<Issued>, client_authority_pem: &str) -> Result<Arc<rustls::ServerConfig>> {
    let mut roots = RootCertStore::empty();
    roots.add(CertificateDer::from_pem_slice(client_authority_pem.as_bytes()).context("the clients' authority")?)?;
    let verifier = WebPkiClientVerifier::builder(Arc::new(roots)).allow_unauthenticated().build()?;
    let tls = rustls::ServerConfig::builder().with_client_cert_verifier(verifier).with_cert_resolver(serving.clone());
    Ok(Arc::new(tls))
}
