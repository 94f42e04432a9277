//! `coxswain server`: the order in which everything starts and stops.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use apiserver::ApiServer;
use nix::fcntl::{Flock, FlockArg};
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::config::Server;
use crate::control_plane::{self, Process};
use crate::pki::{self, Names, Pki};
use crate::progress::Progress;
use crate::{GIT_VERSION, files, kubeconfig, node};

/// Components get this long to finish what they have in hand.
const STOP_WITHIN: Duration = Duration::from_secs(10);

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Server) -> Result<()> {
    let progress = Progress::start();
    progress.step(format_args!("coxswain {GIT_VERSION}, data in {}", config.data_dir.display()));
    files::make_dir(&config.data_dir)?;
    let _lock = lock(&config.data_dir)?;
    let listener = control_plane::listen(&config).await?;
    rustls::crypto::ring::default_provider().install_default().ok();

    let pki = Pki::open(&config.data_dir.join("tls"), &names(&config)).context("cannot set up certificates")?;
    let pki = Arc::new(pki);
    join_token(&config)?;
    let store = control_plane::open_store(&config)?;
    let api = control_plane::build(&config, &pki, store.clone())?;
    progress.step(format_args!("state store open at revision {}", store.revision()));

    // The API stops last: components say goodbye through it.
    let api_shutdown = CancellationToken::new();
    let tls = control_plane::api_tls(&pki)?;
    let serving = tokio::spawn(apiserver::http::listener::serve(api.clone(), listener, tls, api_shutdown.clone()));
    control_plane::bootstrap(&config, &pki, &api).await?;
    write_kubeconfig(&config, &pki)?;
    progress.step(format_args!("API server ready on {}", url(&config)));

    let shutdown = CancellationToken::new();
    let process = Process::new(&api, shutdown.clone());
    let outcome = work(&config, &pki, &api, &process, &progress).await;

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
    outcome
}

/// Starts the components on a serving API, and waits for the signal to stop.
async fn work(config: &Server, pki: &Arc<Pki>, api: &ApiServer, process: &Process, progress: &Progress) -> Result<()> {
    let mut signals = Signals::listen()?;
    let renewed = {
        let (config, pki) = (config.clone(), pki.clone());
        move || write_kubeconfig(&config, &pki)
    };
    process.tasks.spawn(pki::keep_renewed(pki.clone(), process.shutdown.clone(), renewed));
    control_plane::start(config, pki, api, process);
    progress.step("controllers and scheduler started");
    if config.agent {
        tokio::select! {
            started = node::start(config, pki, process, progress) => started?,
            () = signals.stop() => return Ok(()),
        }
    }
    let kubeconfig = config.kubeconfig.display();
    progress.print(format_args!("\nKubeconfig: {kubeconfig}"));
    progress.print(format_args!("Try:        kubectl --kubeconfig {kubeconfig} get nodes\n"));
    signals.stop().await;
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
    files::write_changed(&path, token.as_bytes())
}

/// The administrator's way in. The file changes only when what it says does.
fn write_kubeconfig(config: &Server, pki: &Pki) -> Result<()> {
    let content = kubeconfig::render(&url(config), &pki.server_ca.certificate, &pki.admin.pem());
    files::write_changed(&config.kubeconfig, content.as_bytes())
}

fn url(config: &Server) -> String {
    format!("https://{}", kubeconfig_address(config))
}

/// Loopback where the server listens on it, since that needs no route.
fn kubeconfig_address(config: &Server) -> std::net::SocketAddr {
    let address =
        if config.bind_address.is_unspecified() { std::net::Ipv4Addr::LOCALHOST.into() } else { config.bind_address };
    std::net::SocketAddr::new(address, config.port)
}

/// What asks the server to stop.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    fn listen() -> Result<Self> {
        let listen = |kind| signal(kind).context("cannot listen for signals");
        Ok(Signals { terminate: listen(SignalKind::terminate())?, interrupt: listen(SignalKind::interrupt())? })
    }

    async fn stop(&mut self) {
        tokio::select! { _ = self.terminate.recv() => {}, _ = self.interrupt.recv() => {} }
    }
}
