//! `cargo xtask differential`: the corpus of requests in `crates/apiserver/tests/differential`, on our server in process, on that of a
//! kubeconfig, or on upstream's API server of the conformance suite's version beside ours.

use std::fs;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::bench::private_loopback;
use crate::compare::side::{self, Side};
use crate::compare::upstream;
use crate::conformance::build;
use crate::conformance::cache::Cache;
use crate::e2e::host;

const READY_LIMIT: Duration = Duration::from_secs(60);

#[derive(Debug, Default, PartialEq, Eq)]
struct Options {
    record: bool,
    upstream: bool,
    kinds: String,
    kubeconfig: Option<PathBuf>,
}

fn options(args: &[String]) -> Result<Options> {
    let mut options = Options::default();
    for arg in args {
        match arg.split_once('=').unwrap_or((arg, "")) {
            ("--record", "") => options.record = true,
            ("--upstream", "") => options.upstream = true,
            ("--kind", kinds) if !kinds.is_empty() => kinds.clone_into(&mut options.kinds),
            ("--kubeconfig", file) if !file.is_empty() => options.kubeconfig = Some(PathBuf::from(file)),
            _ => bail!("{arg}: there are --record, --kind=NAME,..., --upstream and --kubeconfig=FILE"),
        }
    }
    if usize::from(options.record) + usize::from(options.upstream) + usize::from(options.kubeconfig.is_some()) > 1 {
        bail!("only one of --record, --upstream and --kubeconfig");
    }
    Ok(options)
}

pub fn run(args: &[String]) -> Result<()> {
    let options = options(args)?;
    let mut command = tests();
    command.env("DIFFERENTIAL_KINDS", &options.kinds);
    if options.record {
        command.env("DIFFERENTIAL_RECORD", "yes");
    }
    if options.upstream {
        return beside_upstream(command);
    }
    match options.kubeconfig {
        Some(file) => foreign(command, &fs::canonicalize(&file).with_context(|| file.display().to_string())?),
        None => host::run(&mut command),
    }
}

fn tests() -> Command {
    let mut command = Command::new("cargo");
    command.args(["test", "--quiet", "--package", "apiserver", "--test", "differential"]).current_dir(crate::root());
    command.env("RUST_BACKTRACE", "0");
    command
}

fn foreign(mut command: Command, kubeconfig: &std::path::Path) -> Result<()> {
    command.env("DIFFERENTIAL_KUBECONFIG", kubeconfig);
    host::run(command.args(["--", "--ignored", "--nocapture", "answers_of_another_server"]))
}

fn beside_upstream(mut command: Command) -> Result<()> {
    let cache = Cache::open()?;
    build::upstream(&cache)?;
    // While there is a network.
    host::run(tests().arg("--no-run"))?;
    let work = crate::root().join("target/differential");
    side::end(&work);
    let _ = fs::remove_dir_all(&work);
    fs::create_dir_all(&work)?;
    private_loopback()?;
    let side = upstream::api_alone(&cache, &work)?;
    host::run(&mut Command::new(side.starter()))?;
    ready(&cache, &side)?;
    command.env("DIFFERENTIAL_UPSTREAM", "yes");
    foreign(command, &side.kubeconfig)
}

fn ready(cache: &Cache, side: &Side) -> Result<()> {
    let begun = Instant::now();
    loop {
        let mut command = Command::new(cache.program("kubectl"));
        command.arg("--kubeconfig").arg(&side.kubeconfig).args(["get", "--raw", "/readyz"]);
        if command.output().context("cannot run kubectl")?.status.success() {
            return Ok(());
        }
        if begun.elapsed() > READY_LIMIT {
            bail!("upstream's API server is not ready: see the logs in {}", side.work.display());
        }
        std::thread::sleep(Duration::from_millis(200));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn flags_are_known_or_refused() {
        let parse = |words: &[&str]| options(&words.iter().map(|word| (*word).to_owned()).collect::<Vec<_>>());
        let some = parse(&["--kind=core-pods,core-services", "--upstream"]).unwrap();
        assert_eq!(some, Options { upstream: true, kinds: "core-pods,core-services".to_owned(), ..Options::default() });
        for wrong in [&["--kind="][..], &["--all"], &["--record", "--upstream"], &["--kubeconfig=a", "--record"]] {
            assert!(parse(wrong).is_err(), "{wrong:?}");
        }
    }
}
