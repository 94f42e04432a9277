//! `coxswain server`: the order in which everything starts and stops.

use std::sync::Arc;

use anyhow::{Context as _, Result};
use apiserver::ApiServer;
use client::ClientFactory as _;
use tokio_util::sync::CancellationToken;

use crate::clients::InProcessClients;
use crate::config::Server;
use crate::datastore::{self, Datastore};
use crate::node::Node;
use crate::pki::{self, Names, Pki};
use crate::process::{Process, Signals};
use crate::progress::Progress;
use crate::{GIT_VERSION, control_plane, files, join, kubeconfig, node, snapshot};

/// Runs until SIGTERM or SIGINT.
pub async fn run(config: Server) -> Result<()> {
    let progress = Progress::start();
    progress.step(format_args!("coxswain {GIT_VERSION}, data in {}", config.host.data_dir.display()));
    files::make_dir(&config.host.data_dir)?;
    let _lock = files::lock(&config.host.data_dir)?;
    let listener = control_plane::listen(&config).await?;
    rustls::crypto::ring::default_provider().install_default().ok();

    let secret = join::secret(&config.host.data_dir, config.token.as_deref())?;
    let tls_dir = config.host.data_dir.join("tls");
    if let Datastore::Etcd(etcd) = &config.datastore {
        datastore::share(etcd, &tls_dir, &secret).await?;
    }
    let pki = Pki::open(&tls_dir, &names(&config)).context("cannot set up certificates")?;
    let pki = Arc::new(pki);
    join::write_token(&config.host.data_dir, &secret, &pki.server_ca.certificate)?;
    let store = config.datastore.open(&config.host.data_dir).await?;
    let api = control_plane::build(&config, &pki, &secret, store.clone())?;
    progress.step(format_args!("state store open at revision {}", store.revision()));

    // The API stops last: components say goodbye through it.
    let api_shutdown = CancellationToken::new();
    let tls = control_plane::api_tls(&pki)?;
    let serving = tokio::spawn(apiserver::http::listener::serve(api.clone(), listener, tls, api_shutdown.clone()));
    control_plane::bootstrap(&config, &pki, &api).await?;
    write_kubeconfig(&config, &pki)?;
    progress.step(format_args!("API server ready on {}", url(&config)));

    let shutdown = CancellationToken::new();
    let clients = Arc::new(InProcessClients::new(api.clone()));
    // One cache for all of the process.
    let reader = clients.client_as(control_plane::READER, &[]);
    let process = Process::new(clients, reader, shutdown.clone());
    let outcome = work(&config, &pki, &api, &process, &progress).await;

    progress.step("stopping; containers keep running");
    api.health.set_stopping();
    shutdown.cancel();
    process.finish().await;
    api_shutdown.cancel();
    let _ = serving.await;
    api.background.stop().await;
    control_plane::finish_audit(&api).await;
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
    if matches!(config.datastore, Datastore::Embedded) {
        let (store, shutdown) = (api.view.store().clone(), process.shutdown.clone());
        process.tasks.spawn(snapshot::keep(config.snapshots.clone(), store.clone(), shutdown.clone()));
        process.tasks.spawn(snapshot::serve(config.host.data_dir.clone(), store, shutdown));
    }
    progress.step("controllers and scheduler started");
    if config.agent {
        let node = Node {
            host: &config.host,
            cluster: &config.cluster,
            proxy: config.enabled("kube-proxy"),
            dns: config.enabled("dns"),
            tls: control_plane::kubelet_tls(pki)?,
        };
        tokio::select! {
            started = node::start(&node, process, progress) => started?,
            () = signals.stop() => return Ok(()),
        }
    }
    let kubeconfig = config.kubeconfig.display();
    progress.print(format_args!("\nKubeconfig: {kubeconfig}"));
    progress.print(format_args!("Try:        kubectl --kubeconfig {kubeconfig} get nodes\n"));
    signals.stop().await;
    Ok(())
}

fn names(config: &Server) -> Names {
    Names {
        node_name: config.host.node_name.clone(),
        node_ips: vec![config.host.node_ip],
        service_ip: config.service_ip.into(),
        cluster_domain: config.cluster.cluster_domain.clone(),
        extra: config.tls_san.clone(),
    }
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
    let address = if config.host.bind_address.is_unspecified() {
        std::net::Ipv4Addr::LOCALHOST.into()
    } else {
        config.host.bind_address
    };
    std::net::SocketAddr::new(address, config.port)
}
