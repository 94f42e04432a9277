//! The binary: subcommands, configuration, PKI, wiring. No logic of its own.

mod check;
mod clients;
mod config;
mod control_plane;
mod files;
mod host;
mod kubeconfig;
mod logging;
mod node;
mod pause;
mod pki;
mod progress;
mod server;

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
    /// Say what this machine lacks to run such a server, one line each with the mend
    Check(Box<config::ServerArgs>),
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
        Command::Server(args) => with_config(*args, run_server),
        Command::Check(args) => with_config(*args, |config| check::run(&config)),
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

fn with_config(args: config::ServerArgs, run: impl FnOnce(config::Server) -> ExitCode) -> ExitCode {
    match config::Server::from_args(args) {
        Ok(config) => run(config),
        Err(error) => fail(&error),
    }
}

fn run_server(config: config::Server) -> ExitCode {
    // Pods' files get their modes from code that says what others may do; a mask from some shell must not take that away, nor
    // an empty one give more. Secrets say 0600 themselves.
    nix::sys::stat::umask(nix::sys::stat::Mode::from_bits_truncate(0o022));
    let filter = match logging::filter(&config.log_level) {
        Ok(filter) => filter,
        Err(error) => return fail(&error),
    };
    logging::start(filter, config.log_format);
    host::raise_file_limit();
    let runtime = match tokio::runtime::Builder::new_multi_thread().enable_all().build() {
        Ok(runtime) => runtime,
        Err(error) => return fail(&anyhow::Error::new(error).context("cannot start the async runtime")),
    };
    let outcome = runtime.block_on(server::run(config));
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
