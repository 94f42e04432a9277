//! Developer tasks: `cargo xtask <task> [arguments]`.

mod bench;
mod bench_store;
mod codegen;
mod compare;
mod conformance;
mod differential;
mod e2e;
mod image;
mod layers;
mod protobuf;
mod prove;
mod suite;

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};

const USAGE: &str = "usage: cargo xtask <task> [arguments]

tasks:
  up [flags]          install what a node needs, build, and run `coxswain server` with these flags
  test                all checks and tests, as CI runs them
  codegen [--check]   generate the schema data of apimachinery from upstream's published OpenAPI
  protobuf [--check]  generate the protobuf field numbers of apimachinery
  layers              check the arrows between crates and the size of files
  e2e [--dev | --binary=FILE] [--datastore=etcd] [--clients] [--keep] [--repeat=N] [filter]
                      a real cluster, real containers, real kubectl: the end-to-end test;
                      with --clients helm and the clients of Python and JavaScript
  conformance [build | images | flags]
                      upstream's own conformance suite, and our tests of newer ones, against a new cluster; `--help` has the flags
  differential [--record] [--kind=NAME,...] [--upstream | --kubeconfig=FILE]
                      the corpus of requests: our answers by those checked in, or beside those of upstream's older API server
  bench [--kubeconfig FILE | --binary=FILE] [--only NAME] [--record] [flags]
                      the speed table, on a server and a node of its own or on that of a kubeconfig; `--help` has the other flags
  bench store [--record]
                      the store beside etcd
  prove [--minutes N] [--seed N]
                      the proofs of the store, long: crates/store/PROOFS.md
  compare [--small] [--only=WORK] [--side=SIDE] [--keep] [--table] [--binary=FILE] [--generator=FILE] [--record]
                      upstream's control plane and ours under the same work; upstream's comes from the cache of the suite";

fn main() -> ExitCode {
    match run() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("xtask: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run() -> Result<()> {
    let args: Vec<String> = std::env::args().skip(1).collect();
    let Some((task, rest)) = args.split_first() else { bail!("{USAGE}") };
    match task.as_str() {
        "up" => suite::up(rest),
        "test" => suite::test(),
        "codegen" => codegen::run(rest),
        "protobuf" => protobuf::run(rest),
        "layers" => layers::run(),
        "e2e" => e2e::run(rest),
        "bench" => bench::run(rest),
        "compare" => compare::run(rest),
        "prove" => prove::run(rest),
        "conformance" => conformance::run(rest),
        "differential" => differential::run(rest),
        _ => bail!("no task {task:?}\n\n{USAGE}"),
    }
}

/// The workspace's folder.
pub fn root() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_owned).unwrap_or_default()
}
