//! `coxswain hollow`: simulated nodes against any API server.

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::{Context as _, Result, bail};
use clap::Args;
use client::https;
use kubelet::hollow;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::{GIT_VERSION, fail, logging};

#[derive(Args, Debug)]
pub struct HollowArgs {
    /// How many nodes
    #[arg(long, value_name = "N")]
    nodes: u32,
    /// Where the API server is and who to be there [default: $KUBECONFIG]
    #[arg(long, value_name = "FILE", env = "KUBECONFIG")]
    kubeconfig: Option<PathBuf>,
    /// The API server, `https://host:port`; goes before a kubeconfig
    #[arg(long, value_name = "URL", requires = "token", requires = "certificate_authority")]
    server: Option<String>,
    /// Bearer token of somebody who may write nodes, their leases, and the status of pods
    #[arg(long, env = "COXSWAIN_HOLLOW_TOKEN", hide_env_values = true)]
    token: Option<String>,
    /// Authority of the server's certificate
    #[arg(long, value_name = "FILE")]
    certificate_authority: Option<PathBuf>,
    /// Names are this and a number
    #[arg(long, default_value = "hollow-")]
    prefix: String,
    /// Processors of a node, a quantity
    #[arg(long, default_value = "32")]
    cpu: String,
    /// Memory of a node, a quantity
    #[arg(long, default_value = "256Gi")]
    memory: String,
    /// Pods that a node takes
    #[arg(long, default_value_t = 110)]
    pods: u32,
    /// Spread the nodes over so many zones
    #[arg(long, default_value_t = 0)]
    zones: u32,
    /// Network of which each node takes a part for its pods [default: what the cluster gives to nodes]
    #[arg(long, value_name = "CIDR")]
    pod_network: Option<hollow::Network>,
    /// Requests under way at any time
    #[arg(long, default_value_t = 32)]
    concurrency: usize,
    /// Level, or filter by module
    #[arg(long, default_value = "info")]
    log_level: String,
}

/// Runs until SIGTERM or SIGINT. One thread: what this takes is taken from the server on the same machine.
pub fn run(args: HollowArgs) -> ExitCode {
    let outcome = logging::filter(&args.log_level).and_then(|filter| {
        logging::start(filter, logging::LogFormat::Text);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        runtime.block_on(simulate(args))
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

async fn simulate(args: HollowArgs) -> Result<()> {
    rustls::crypto::ring::default_provider().install_default().ok();
    let client = connect(&args).await?;
    client.apiserver_version().await.context("cannot reach the API server")?;
    let config = hollow::Config {
        prefix: args.prefix,
        cpu: args.cpu,
        memory: args.memory,
        pods: args.pods,
        zones: args.zones,
        pod_network: args.pod_network,
        version: GIT_VERSION.to_owned(),
        concurrency: args.concurrency,
        ..hollow::Config::new(args.nodes)
    };
    let shutdown = CancellationToken::new();
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    tokio::select! {
        () = hollow::run(client, config, shutdown) => {}
        _ = terminate.recv() => {}
        _ = interrupt.recv() => {}
    }
    Ok(())
}

async fn connect(args: &HollowArgs) -> Result<kube::Client> {
    if let (Some(url), Some(token), Some(ca)) = (&args.server, &args.token, &args.certificate_authority) {
        return Ok(https::client_with_token(url, https::Pem::File(ca.clone()), token)?);
    }
    let Some(file) = &args.kubeconfig else {
        bail!("say where the API server is: --kubeconfig, or --server with --token and --certificate-authority");
    };
    https::client_from_kubeconfig(file).await.with_context(|| file.display().to_string())
}
