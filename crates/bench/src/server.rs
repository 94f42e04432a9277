//! A server of our own, started for the measurement and stopped after it.

use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::client::{Call, Protocol, Target};
use crate::kubeconfig;
use crate::process::Process;

const PORT: u16 = 16443;
/// A server that is not ready by then never will be.
const START_LIMIT: Duration = Duration::from_secs(30);
/// How often a starting server is asked; the measured time is that exact.
const ASK_EVERY: Duration = Duration::from_millis(2);

/// What runs beside the API.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Parts {
    /// Store, API, controllers and scheduler.
    ControlPlane,
    /// Store and API, as upstream's kube-apiserver with its etcd.
    ApiOnly,
}

pub struct Server {
    child: Child,
    target: Target,
    /// From the start of the process to the first success of `/readyz`.
    pub ready_after: Duration,
    /// Goes when the server has stopped.
    _data: tempfile::TempDir,
}

impl Server {
    pub async fn start(binary: &Path, parts: Parts, protocol: Protocol) -> Result<Self> {
        let data = tempfile::Builder::new().prefix("bench-").tempdir_in(disk(binary))?;
        let kubeconfig = data.path().join("kubeconfig.yaml");
        let mut command = Command::new(binary);
        command
            .args(["server", "--disable-agent", "--bind-address=127.0.0.1", "--node-ip=127.0.0.1"])
            .args(["--log-level=warn", &format!("--https-listen-port={PORT}")])
            .arg(format!("--data-dir={}", data.path().display()))
            .stdout(Stdio::null());
        if parts == Parts::ApiOnly {
            command.arg("--disable=controllers,scheduler");
        }
        let started = Instant::now();
        let child = command.spawn().with_context(|| format!("cannot start {}", binary.display()))?;
        let mut starting = Starting(Some(child));
        let target = loop {
            if let Some(target) = ready(&kubeconfig, protocol).await {
                break target;
            }
            if let Some(status) = starting.child().try_wait()? {
                bail!("the server ended before it was ready: {status}");
            }
            if started.elapsed() > START_LIMIT {
                bail!("the server is not ready after {} s", START_LIMIT.as_secs());
            }
            tokio::time::sleep(ASK_EVERY).await;
        };
        let ready_after = started.elapsed();
        Ok(Server { child: starting.0.take().context("a started server")?, target, ready_after, _data: data })
    }

    pub fn target(&self) -> Target {
        self.target.clone()
    }

    pub fn process(&self) -> Process {
        Process::of(self.child.id())
    }

    pub async fn stop(mut self) -> Result<()> {
        let status = tokio::task::spawn_blocking(move || {
            terminate(&self.child)?;
            let status = self.child.wait().context("waiting for the server's end");
            drop(self);
            status
        })
        .await??;
        if status.success() { Ok(()) } else { bail!("the server ended badly: {status}") }
    }
}

/// A server that does not get ready does not stay either.
struct Starting(Option<Child>);

impl Starting {
    fn child(&mut self) -> &mut Child {
        self.0.as_mut().expect("taken only when start-up is over")
    }
}

impl Drop for Starting {
    fn drop(&mut self) {
        if let Some(mut child) = self.0.take() {
            // It may have ended by itself.
            child.kill().ok();
            child.wait().ok();
        }
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            // A measurement that failed; nothing of this server is of use any more.
            self.child.kill().ok();
            self.child.wait().ok();
        }
    }
}

fn terminate(child: &Child) -> Result<()> {
    let pid = i32::try_from(child.id()).context("process ids are small")?;
    kill(Pid::from_raw(pid), Signal::SIGTERM).context("cannot stop the server")
}

/// Beside the binary, since the usual place for temporary files may be memory, where durable writes cost nothing.
fn disk(binary: &Path) -> &Path {
    binary.parent().unwrap_or(Path::new("."))
}

async fn ready(kubeconfig: &Path, protocol: Protocol) -> Option<Target> {
    let access = kubeconfig::read(kubeconfig).ok()?;
    let target = Target::new(&access, protocol).ok()?;
    let mut connection = target.connect().await.ok()?;
    connection.drain(Call::get("/readyz")).await.ok().map(|_| target)
}
