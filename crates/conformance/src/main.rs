//! `conformance`: black-box tests of the Kubernetes conformance list that the newest buildable official suite does not have.
//!
//! Each test carries the codename of the upstream test whose checks it makes (`data/names.txt`), and sees the cluster only
//! through its API. Must not know: our server's crates.
//!
//! Images that the tests use: `docker.io/library/busybox:1`, `docker.io/coxswain/web:1`, `docker.io/coxswain/tools:1`,
//! `docker.io/coxswain/etcd:1`, and `docker.io/coxswain/conformance:1`, which is this program (`/conformance`, with the libraries
//! it is linked with) on top of busybox: it serves webhooks, echoes requests and is a small registry (`conformance serve …`, see
//! [`serve`]). Whoever runs the tests loads the five into the runtime of every node; nothing is pulled from outside.

mod framework;
mod junit;
mod runner;
mod serve;
mod tests;

use std::path::PathBuf;
use std::process::ExitCode;

use anyhow::Result;
use clap::Parser;

#[derive(Parser)]
#[command(about = "Run conformance tests against a cluster", args_conflicts_with_subcommands = true)]
struct Args {
    #[command(subcommand)]
    command: Option<Command>,
    #[command(flatten)]
    run: runner::Options,
    /// Print the codenames, one a line, and end
    #[arg(long)]
    list: bool,
}

#[derive(clap::Subcommand)]
enum Command {
    /// What runs inside the cluster
    #[command(subcommand)]
    Serve(serve::Serve),
}

/// The cluster of `KUBECONFIG` where none is named.
fn kubeconfig(given: Option<PathBuf>) -> Result<PathBuf> {
    match given.or_else(|| std::env::var_os("KUBECONFIG").map(PathBuf::from)) {
        Some(path) => Ok(path),
        None => anyhow::bail!("which cluster? Say --kubeconfig FILE"),
    }
}

fn main() -> ExitCode {
    let args = Args::parse();
    let outcome = match args.command {
        Some(Command::Serve(serve)) => runtime().and_then(|runtime| runtime.block_on(serve.run())).map(|()| true),
        None if args.list => list(&args.run),
        None => runtime().and_then(|runtime| runtime.block_on(runner::run(args.run))),
    };
    match outcome {
        Ok(true) => ExitCode::SUCCESS,
        Ok(false) => ExitCode::FAILURE,
        Err(error) => {
            eprintln!("conformance: {error:#}");
            ExitCode::from(2)
        }
    }
}

fn list(options: &runner::Options) -> Result<bool> {
    for test in runner::chosen(options)? {
        println!("{}", test.name);
    }
    Ok(true)
}

fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}
