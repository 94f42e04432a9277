//! `coxswain server`: the order in which everything starts and stops.

use std::path::Path;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Server;
use crate::control_plane::{self, Process};
use crate::pki::{Names, Pki};
use crate::progress::Progress;
use crate::{GIT_VERSION, files, kubeconfig, node};

/// Components get this long to finish what they have in hand.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Server) -> Result<()> {
    let progress = Progress::start();
    progress.step(format_args!("coxswain {GIT_VERSION}, data in {}", config.data_dir.display()));
    files::private_dir(&config.data_dir)?;
    let _lock = lock(&config.data_dir)?;
    let listener = control_plane::listen(&config).await?;
    rustls::crypto::ring::default_provider().install_default().ok();

    let pki = Pki::open(&config.data_dir.join("tls"), &names(&config)).context("cannot set up certificates")?;
    join_token(&config)?;
    let store = control_plane::open_store(&config)?;
    let api = control_plane::build(&config, &pki, store.clone())?;
    progress.step(format_args!("state store open at revision {}", store.revision()));

    // The API stops last: components say goodbye through it.
    let api_shutdown = CancellationToken::new();
    let tls = control_plane::server_tls(&pki.api, &pki.client_ca)?;
    let serving = tokio::spawn(apiserver::http::listener::serve(api.clone(), listener, tls, api_shutdown.clone()));
    control_plane::bootstrap(&config, &pki, &api).await?;
    let url = format!("https://{}", kubeconfig_address(&config));
    let admin = kubeconfig::render(&url, &pki.server_ca.certificate, &pki.admin);
    files::write_private(&config.kubeconfig, admin.as_bytes())?;
    progress.step(format_args!("API server ready on {url}"));

    let shutdown = CancellationToken::new();
    let process = Process::new(&api, shutdown.clone());
    control_plane::start(&config, &pki, &api, &process);
    progress.step("controllers and scheduler started");
    if config.agent {
        node::start(&config, &pki, &process, &progress).await?;
    }
    println!("\nKubeconfig: {}", config.kubeconfig.display());
    println!("Try:        kubectl --kubeconfig {} get nodes\n", config.kubeconfig.display());

    stopped().await?;
    progress.step("stopping; containers keep running");
    api.health.set_stopping();
    shutdown.cancel();
    process.tasks.close();
    if tokio::time::timeout(STOP_WITHIN, process.tasks.wait()).await.is_err() {
        tracing::warn!("some components did not stop in time");
    }
    api_shutdown.cancel();
    let _ = serving.await;
    store.shutdown().await;
    progress.step("stopped");
    Ok(())
}

/// One server per data folder.
fn lock(data_dir: &Path) -> Result<Flock<std::fs::File>> {
    let path = data_dir.join("lock");
    let file = std::fs::File::create(&path).with_context(|| format!("cannot create {}", path.display()))?;
    match Flock::lock(file, FlockArg::LockExclusiveNonblock) {
        Ok(lock) => Ok(lock),
        Err((_, nix::errno::Errno::EWOULDBLOCK)) => {
            bail!("another coxswain server is running on {}", data_dir.display())
        }
        Err((_, errno)) => Err(errno).with_context(|| format!("cannot lock {}", path.display())),
    }
}

fn names(config: &Server) -> Names {
    Names {
        node_name: config.node_name.clone(),
        node_ips: vec![config.node_ip],
        service_ip: config.service_ip.into(),
        cluster_domain: config.cluster_domain.clone(),
        extra: config.tls_san.clone(),
    }
}

/// The secret for agents: given, or made once.
fn join_token(config: &Server) -> Result<()> {
    let path = config.data_dir.join("token");
    let token = match (&config.token, files::read_optional(&path)?) {
        (Some(token), _) => token.clone(),
        (None, Some(_)) => return Ok(()),
        (None, None) => {
            let bytes: [u8; 24] = rand::random();
            bytes.iter().map(|b| format!("{b:02x}")).collect()
        }
    };
    files::write_private(&path, token.as_bytes())
}

/// Loopback where the server listens on it, since that needs no route.
fn kubeconfig_address(config: &Server) -> std::net::SocketAddr {
    let address =
        if config.bind_address.is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { config.bind_address };
    std::net::SocketAddr::new(address, config.port)
}

async fn stopped() -> Result<()> {
    let mut terminate = signal(SignalKind::terminate())?;
    let mut interrupt = signal(SignalKind::interrupt())?;
    tokio::select! { _ = terminate.recv() => {}, _ = interrupt.recv() => {} }
    Ok(())
}
