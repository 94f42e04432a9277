//! Supervision of a containerd of our own: generated configuration, start, adoption, restart.
//!
//! The process gets its own session, so that neither our end nor a terminal's signal reaches it or its shims: containers
//! outlive the daemon. The next start finds it by its pid file and takes it over. It is stopped on request only.

use std::fmt::Write as _;
use std::os::fd::{FromRawFd as _, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::time::Duration;

use tokio::io::unix::AsyncFd;
use tokio::process::{Child, Command};
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

use crate::client::Client;
use crate::error::{Error, Result};

/// How long containerd may take from start to its first answer; slow disks and many containers to recover need it.
const READY_WITHIN: Duration = Duration::from_secs(60);
/// How long it may take to end after SIGTERM.
const STOP_WITHIN: Duration = Duration::from_secs(20);
const FIRST_RESTART_DELAY: Duration = Duration::from_millis(100);
/// The longest wait between two starts of a containerd that keeps dying.
const MAX_RESTART_DELAY: Duration = Duration::from_secs(30);

/// Where a supervised containerd lives and what it uses.
#[derive(Clone, Debug)]
pub struct Settings {
    pub binary: PathBuf,
    /// Images and containers; survives a reboot.
    pub root_dir: PathBuf,
    /// Sockets, bundles, pid file and configuration. Keep the path short: a unix socket's has at most 107 bytes.
    pub state_dir: PathBuf,
    /// The image of the pause container, which must be present or pullable.
    pub sandbox_image: String,
    pub cni_conf_dir: PathBuf,
    pub cni_bin_dir: PathBuf,
    /// Where its own output goes (appended).
    pub log_file: PathBuf,
}

impl Settings {
    pub fn socket(&self) -> PathBuf {
        self.state_dir.join("containerd.sock")
    }

    fn config_file(&self) -> PathBuf {
        self.state_dir.join("config.toml")
    }

    fn pid_file(&self) -> PathBuf {
        self.state_dir.join("containerd.pid")
    }
}

/// The installed containerd, from `$PATH` and the usual directories.
pub fn find_binary() -> Option<PathBuf> {
    let path = std::env::var_os("PATH").unwrap_or_default();
    let usual = ["/usr/local/bin", "/usr/bin", "/usr/local/sbin", "/usr/sbin", "/bin"].map(PathBuf::from);
    std::env::split_paths(&path).chain(usual).map(|dir| dir.join("containerd")).find(|file| file.is_file())
}

/// The configuration, in containerd's format version 2, which releases 1.x read and 2.x migrate.
pub fn render_config(settings: &Settings, snapshotter: &str) -> String {
    let mut text = String::new();
    let mut line = |args: std::fmt::Arguments<'_>| {
        let _ = text.write_fmt(args);
        text.push('\n');
    };
    line(format_args!("# Written by coxswain at each start of containerd; changes are lost."));
    line(format_args!("version = 2"));
    line(format_args!("root = {}", quoted(&settings.root_dir)));
    line(format_args!("state = {}", quoted(&settings.state_dir)));
    line(format_args!("[grpc]"));
    line(format_args!("  address = {}", quoted(&settings.socket())));
    line(format_args!("[plugins.\"io.containerd.internal.v1.opt\"]"));
    line(format_args!("  path = {}", quoted(&settings.root_dir.join("opt"))));
    line(format_args!("[plugins.\"io.containerd.grpc.v1.cri\"]"));
    line(format_args!("  sandbox_image = {}", quoted(Path::new(&settings.sandbox_image))));
    // Lowering a score below our own needs a capability that containers lack; failing the pod for it helps nobody.
    line(format_args!("  restrict_oom_score_adj = true"));
    line(format_args!("  netns_mounts_under_state_dir = true"));
    line(format_args!("  enable_unprivileged_ports = true"));
    line(format_args!("  enable_unprivileged_icmp = true"));
    line(format_args!("  [plugins.\"io.containerd.grpc.v1.cri\".cni]"));
    line(format_args!("    conf_dir = {}", quoted(&settings.cni_conf_dir)));
    line(format_args!("    bin_dir = {}", quoted(&settings.cni_bin_dir)));
    line(format_args!("  [plugins.\"io.containerd.grpc.v1.cri\".containerd]"));
    line(format_args!("    snapshotter = \"{snapshotter}\""));
    line(format_args!("    default_runtime_name = \"runc\""));
    line(format_args!("    [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc]"));
    line(format_args!("      runtime_type = \"io.containerd.runc.v2\""));
    line(format_args!("      [plugins.\"io.containerd.grpc.v1.cri\".containerd.runtimes.runc.options]"));
    line(format_args!("        SystemdCgroup = false"));
    line(format_args!("        Root = {}", quoted(&settings.state_dir.join("runc"))));
    text
}

fn quoted(value: &Path) -> String {
    let text = value.to_string_lossy();
    let mut quoted = String::with_capacity(text.len() + 2);
    quoted.push('"');
    for c in text.chars() {
        match c {
            '"' | '\\' => quoted.extend(['\\', c]),
            c if c.is_control() => {
                let _ = write!(quoted, "\\u{:04X}", u32::from(c));
            }
            c => quoted.push(c),
        }
    }
    quoted.push('"');
    quoted
}

/// A running containerd: started by us, or found from an earlier run.
enum Process {
    Child(Child),
    /// Not our child any more: its end is seen through a pidfd.
    Adopted(AsyncFd<OwnedFd>),
}

impl Process {
    async fn ended(&mut self) {
        match self {
            Process::Child(child) => {
                let _ = child.wait().await;
            }
            Process::Adopted(pidfd) => {
                let _ = pidfd.readable().await;
            }
        }
    }
}

/// Keeps one containerd alive.
pub struct Supervisor {
    settings: Settings,
    process: Process,
    pid: i32,
    adopted: bool,
}

impl Supervisor {
    /// Takes over the containerd that an earlier run left, or starts one; returns when it answers. One that was started with other
    /// settings (by an older release, say) makes way for a new one, which takes over its containers.
    pub async fn start(settings: Settings) -> Result<Self> {
        for dir in [&settings.root_dir, &settings.state_dir] {
            std::fs::create_dir_all(dir).map_err(file("create directory", dir))?;
        }
        if let Some((process, pid)) = adopt(&settings) {
            let supervisor = Supervisor { settings: settings.clone(), process, pid, adopted: true };
            if runs_as_configured(&settings) {
                supervisor.ready().await?;
                return Ok(supervisor);
            }
            tracing::info!(pid, "containerd runs with an older configuration; starting it again");
            supervisor.stop().await?;
        }
        let (process, pid) = launch(&settings)?;
        let mut supervisor = Supervisor { settings, process, pid, adopted: false };
        tokio::select! {
            ready = async { wait_ready(&supervisor.settings).await } => ready?,
            () = supervisor.process.ended() => return Err(died_early(&supervisor.settings)),
        }
        Ok(supervisor)
    }

    /// Whether containerd was already running.
    pub fn adopted(&self) -> bool {
        self.adopted
    }

    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// `unix://…` of its socket.
    pub fn endpoint(&self) -> String {
        format!("unix://{}", self.settings.socket().display())
    }

    async fn ready(&self) -> Result<()> {
        wait_ready(&self.settings).await
    }

    /// Starts containerd anew each time it dies, until `shutdown`; then leaves it running.
    pub async fn run(mut self, shutdown: CancellationToken) {
        let mut launched = Instant::now();
        let mut delay = FIRST_RESTART_DELAY;
        while shutdown.run_until_cancelled(self.process.ended()).await.is_some() {
            if launched.elapsed() > READY_WITHIN {
                delay = FIRST_RESTART_DELAY;
            }
            tracing::warn!(pid = self.pid, after = ?delay, "containerd has ended; starting it again");
            if shutdown.run_until_cancelled(tokio::time::sleep(delay)).await.is_none() {
                return;
            }
            delay = (delay * 2).min(MAX_RESTART_DELAY);
            launched = Instant::now();
            match launch(&self.settings) {
                Ok((process, pid)) => (self.process, self.pid) = (process, pid),
                Err(error) => tracing::error!(%error, "containerd cannot be started"),
            }
        }
    }

    /// Ends containerd. Shims and containers go on running until they are stopped through it.
    pub async fn stop(mut self) -> Result<()> {
        let pid = nix::unistd::Pid::from_raw(self.pid);
        let _ = nix::sys::signal::kill(pid, nix::sys::signal::Signal::SIGTERM);
        if tokio::time::timeout(STOP_WITHIN, self.process.ended()).await.is_err() {
            return Err(Error::Supervisor(format!("process {pid} did not end within {STOP_WITHIN:?} of SIGTERM")));
        }
        let pid_file = self.settings.pid_file();
        std::fs::remove_file(&pid_file).map_err(file("remove", &pid_file))
    }
}

/// The process that the pid file names, if it is still our containerd (pids are reused).
fn adopt(settings: &Settings) -> Option<(Process, i32)> {
    let pid: i32 = std::fs::read_to_string(settings.pid_file()).ok()?.trim().parse().ok()?;
    // Opened before the check, so that what was checked is what is held.
    let pidfd = pidfd_open(pid).ok()?;
    let command_line = std::fs::read(format!("/proc/{pid}/cmdline")).ok()?;
    let config = settings.config_file();
    let ours = command_line
        .split(|byte| *byte == 0)
        .any(|argument| argument == std::os::unix::ffi::OsStrExt::as_bytes(config.as_os_str()));
    if !ours {
        return None;
    }
    // SAFETY: `OwnedFd` keeps its descriptor open, and the same, for as long as it lives.
    let pidfd = unsafe { AsyncFd::register(pidfd) }.ok()?;
    Some((Process::Adopted(pidfd), pid))
}

/// Whether the configuration that containerd was started with is the one it would be started with now.
fn runs_as_configured(settings: &Settings) -> bool {
    let written = std::fs::read_to_string(settings.config_file()).unwrap_or_default();
    ["overlayfs", "native"].iter().any(|snapshotter| render_config(settings, snapshotter) == written)
}

fn pidfd_open(pid: i32) -> std::io::Result<OwnedFd> {
    // SAFETY: the call takes two integers and returns a new descriptor that nobody else owns, or -1.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    if fd < 0 {
        return Err(std::io::Error::last_os_error());
    }
    let fd = i32::try_from(fd).map_err(std::io::Error::other)?;
    // SAFETY: `fd` was just returned to us and is owned by nobody else.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

fn launch(settings: &Settings) -> Result<(Process, i32)> {
    let snapshotter = if overlay_works(&settings.root_dir) { "overlayfs" } else { "native" };
    let config_file = settings.config_file();
    std::fs::write(&config_file, render_config(settings, snapshotter)).map_err(file("write", &config_file))?;
    let log = std::fs::OpenOptions::new()
        .create(true)
        .append(true)
        .open(&settings.log_file)
        .map_err(file("open", &settings.log_file))?;
    let log_too = log.try_clone().map_err(file("open", &settings.log_file))?;

    let mut command = Command::new(&settings.binary);
    command.arg("--config").arg(&config_file).stdin(Stdio::null()).stdout(log).stderr(log_too).current_dir("/");
    // A supervisor's notify socket is meant for us, not for our child.
    command.env_remove("NOTIFY_SOCKET");
    // SAFETY: setsid is async-signal-safe and touches no memory of ours.
    unsafe {
        command.pre_exec(|| nix::unistd::setsid().map(drop).map_err(std::io::Error::from));
    }
    let child = command.spawn().map_err(file("start", &settings.binary))?;
    let pid = child.id().and_then(|pid| i32::try_from(pid).ok());
    let pid = pid.ok_or_else(|| died_early(settings))?;
    let pid_file = settings.pid_file();
    std::fs::write(&pid_file, format!("{pid}\n")).map_err(file("write", &pid_file))?;
    Ok((Process::Child(child), pid))
}

/// Until the CRI plugin answers. The socket accepts connections before the plugin is ready, so there is no one event to wait
/// for; the steps are small because every pod of the node waits here.
async fn wait_ready(settings: &Settings) -> Result<()> {
    let endpoint = format!("unix://{}", settings.socket().display());
    let deadline = Instant::now() + READY_WITHIN;
    let mut delay = Duration::from_millis(5);
    loop {
        // A new client each time: a failed connection's back-off would otherwise rule the pace.
        let last = match Client::new(&endpoint)?.version().await {
            Ok(_) => return Ok(()),
            Err(error) => error,
        };
        if Instant::now() > deadline {
            let log = settings.log_file.display();
            return Err(Error::Supervisor(format!("not ready within {READY_WITHIN:?}: {last}; its log is {log}")));
        }
        tokio::time::sleep(delay).await;
        delay = (delay * 2).min(Duration::from_millis(100));
    }
}

fn died_early(settings: &Settings) -> Error {
    let log = std::fs::read_to_string(&settings.log_file).unwrap_or_default();
    let last = log.lines().rev().find(|line| !line.trim().is_empty()).unwrap_or("no output");
    Error::Supervisor(format!("ended while starting: {last} (log: {})", settings.log_file.display()))
}

/// Whether the file system under `dir` can carry overlay mounts (another overlay cannot).
fn overlay_works(dir: &Path) -> bool {
    use nix::mount::{MntFlags, MsFlags, mount, umount2};
    let probe = dir.join(format!("overlay-probe-{}", std::process::id()));
    let sub = |name: &str| probe.join(name);
    let made = ["lower", "upper", "work", "merged"].iter().all(|name| std::fs::create_dir_all(sub(name)).is_ok());
    let options = format!(
        "lowerdir={},upperdir={},workdir={}",
        sub("lower").display(),
        sub("upper").display(),
        sub("work").display()
    );
    let merged = sub("merged");
    let works = made
        && mount(Some("overlay"), &merged, Some("overlay"), MsFlags::empty(), Some(options.as_str())).is_ok()
        && umount2(&merged, MntFlags::MNT_DETACH).is_ok();
    let _ = std::fs::remove_dir_all(&probe);
    works
}

fn file<'a>(what: &'static str, path: &'a Path) -> impl Fn(std::io::Error) -> Error + 'a {
    move |source| Error::File { what, path: path.to_owned(), source }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn settings(dir: &Path) -> Settings {
        Settings {
            binary: PathBuf::from("/nonexistent/containerd"),
            root_dir: dir.join("root"),
            state_dir: dir.join("state"),
            sandbox_image: "coxswain/pause:1".to_owned(),
            cni_conf_dir: dir.join("cni \"quoted\""),
            cni_bin_dir: dir.join("bin"),
            log_file: dir.join("containerd.log"),
        }
    }

    #[test]
    fn paths_cannot_break_out_of_the_configuration() {
        let text = render_config(&settings(Path::new("/d")), "native");
        assert!(text.contains(r#"conf_dir = "/d/cni \"quoted\"""#), "{text}");
        assert!(text.contains("snapshotter = \"native\"") && text.contains("restrict_oom_score_adj = true"));
    }

    #[tokio::test]
    async fn a_pid_file_that_names_some_other_process_is_not_adopted() {
        let dir = tempfile::tempdir().unwrap();
        let settings = settings(dir.path());
        std::fs::create_dir_all(&settings.state_dir).unwrap();
        std::fs::write(settings.pid_file(), std::process::id().to_string()).unwrap();
        assert!(adopt(&settings).is_none());
    }

    #[tokio::test]
    async fn a_missing_program_is_one_plain_error() {
        let dir = tempfile::tempdir().unwrap();
        let error = Supervisor::start(settings(dir.path())).await.err().unwrap().to_string();
        assert!(error.starts_with("start /nonexistent/containerd:"), "{error}");
    }
}
