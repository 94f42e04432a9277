//! The binary: subcommands, configuration, PKI, wiring. No logic of its own.

mod agent;
mod audit;
mod authentication;
mod check;
mod clients;
mod config;
mod control_plane;
mod datastore;
mod files;
mod hollow;
mod host;
mod join;
mod kubeconfig;
mod logging;
mod node;
mod pause;
mod pki;
mod process;
mod progress;
mod server;
mod snapshot;

use std::process::ExitCode;

use clap::{Parser, Subcommand};

/// Objects are trees of small allocations: against glibc's allocator this saves a third of the processor time of a write.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// `v1.37.0` is the API level; what follows the plus is ours.
pub const GIT_VERSION: &str = concat!("v1.37.0+coxswain.", env!("CARGO_PKG_VERSION"));

#[derive(Parser)]
#[command(name = "coxswain", version = GIT_VERSION, about = "Kubernetes, whole, in one binary")]
struct Cli {
    #[command(subcommand)]
    command: Command,
}

#[derive(Subcommand)]
enum Command {
    /// Run a server: API, controllers and scheduler, and a node unless --disable-agent
    Server(Box<config::ServerArgs>),
    /// Run a node that joins a server on another machine
    Agent(Box<config::AgentArgs>),
    /// Simulate nodes, to try a control plane at a size that no machine at hand has
    Hollow(Box<hollow::HollowArgs>),
    /// Say what this machine lacks to run such a server, one line each with the mend
    Check(Box<config::ServerArgs>),
    /// Back up the embedded state store, and put a backup in its place
    #[command(subcommand)]
    Snapshot(snapshot::SnapshotCommand),
    /// What is to be done with a cluster's state while no server runs
    #[command(subcommand)]
    Datastore(DatastoreCommand),
}

#[derive(Subcommand)]
enum DatastoreCommand {
    /// Move a cluster: copy its state from one data store to another, empty one
    Copy(datastore::CopyArgs),
}

fn main() -> ExitCode {
    if network::cni::config::PLUGIN_NAMES.into_iter().any(called_as) {
        return cni();
    }
    let arguments = match config::with_file(std::env::args_os().collect()) {
        Ok(arguments) => arguments,
        Err(error) => return fail(&error),
    };
    match Cli::parse_from(arguments).command {
        Command::Server(args) => {
            with(config::Server::from_args(*args), |config| run(&config.host.clone(), server::run(config)))
        }
        Command::Agent(args) => {
            with(config::Agent::from_args(*args), |config| run(&config.host.clone(), agent::run(config)))
        }
        Command::Hollow(args) => hollow::run(*args),
        Command::Snapshot(command) => snapshot::run(command),
        Command::Datastore(DatastoreCommand::Copy(args)) => datastore::copy(args),
        Command::Check(args) => with(config::Server::from_args(*args), |config| check::run(&config)),
    }
}

/// The network plugin: one call of the container runtime.
fn cni() -> ExitCode {
    let mut stdin = Vec::new();
    if let Err(error) = std::io::Read::read_to_end(&mut std::io::stdin(), &mut stdin) {
        return fail(&anyhow::Error::new(error).context("cannot read the network configuration"));
    }
    let outcome = network::cni::main(|name| std::env::var(name).ok(), &stdin);
    print!("{}", outcome.stdout);
    ExitCode::from(u8::try_from(outcome.exit_code).unwrap_or(1))
}

/// Whether the program was executed under `name`: container runtimes call CNI plugins by file name.
fn called_as(name: &str) -> bool {
    let program = std::env::args_os().next().unwrap_or_default();
    std::path::Path::new(&program).file_name().is_some_and(|file| file == name)
}

fn with<C>(config: anyhow::Result<C>, run: impl FnOnce(C) -> ExitCode) -> ExitCode {
    match config {
        Ok(config) => run(config),
        Err(error) => fail(&error),
    }
}

/// Runs what is to go on until a signal stops it.
fn run(host: &config::Host, work: impl Future<Output = anyhow::Result<()>>) -> ExitCode {
    // Pods' files get their modes from code that says what others may do; a mask from some shell must not take that away, nor
    // an empty one give more. Secrets say 0600 themselves.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let filter = match logging::filter(&host.log_level) {
        Ok(filter) => filter,
        Err(error) => return fail(&error),
    };
    logging::start(filter, host.log_format);
    crate::host::raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    let outcome = runtime.block_on(work);
    // Tasks that ignore cancellation (a blocking read, say) must not hold up the end.
    runtime.shutdown_timeout(std::time::Duration::from_secs(2));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => fail(&error),
    }
}

/// One plain line on the terminal.
fn fail(error: &anyhow::Error) -> ExitCode {
    eprintln!("coxswain: {error:#}");
    ExitCode::FAILURE
}
