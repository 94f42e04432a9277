//! A site to run servers at, the server itself, and a client of it.

use std::fs;
use std::io::{BufRead as _, BufReader};
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdout, Command, ExitStatus, Stdio};
use std::sync::Arc;
use std::time::{Duration, Instant};

use bytes::Bytes;
use http_body_util::{BodyExt as _, Full};
use hyper::body::Incoming;
use hyper::client::conn::http2::SendRequest;
use hyper_util::rt::{TokioExecutor, TokioIo};
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sched::{CloneFlags, unshare};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer, ServerName};
use serde_json::{Value, json};
use tokio::net::TcpStream;
use tokio_rustls::TlsConnector;
use tokio_rustls::client::TlsStream;

pub const PORT: u16 = 6443;
const BINARY: &str = env!("CARGO_BIN_EXE_coxswain");
/// Debug builds on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// Namespaces of the calling thread, from which servers and sockets inherit them, and a folder.
pub struct Site {
    dir: tempfile::TempDir,
    runtime: tokio::runtime::Runtime,
}

impl Site {
    pub fn new() -> Self {
        unshare(CloneFlags::CLONE_NEWNET | CloneFlags::CLONE_NEWNS).expect("these tests need root");
        mount(None::<&str>, "/", None::<&str>, MsFlags::MS_REC | MsFlags::MS_PRIVATE, None::<&str>).unwrap();
        let mut links = network::netlink::route::Handle::open().unwrap();
        let loopback = links.link("lo").unwrap().unwrap();
        links.set_up(loopback.index).unwrap();
        rustls::crypto::ring::default_provider().install_default().ok();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        Site { dir: tempfile::tempdir().unwrap(), runtime }
    }

    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self) -> PathBuf {
        self.path("data")
    }

    /// A file system of this size in the data folder's place.
    pub fn small_disk(&self, bytes: u64) {
        fs::create_dir_all(self.data()).unwrap();
        let options = format!("size={bytes}");
        mount(Some("tmpfs"), &self.data(), Some("tmpfs"), MsFlags::empty(), Some(options.as_str())).unwrap();
    }

    pub fn block_on<F: Future>(&self, future: F) -> F::Output {
        self.runtime.block_on(future)
    }

    fn command(&self, words: &[&str]) -> Command {
        let mut command = Command::new(BINARY);
        command.args(words).stdin(Stdio::null()).env_remove("COXSWAIN_TOKEN");
        command
    }

    fn server_words<'a>(data: &'a str, more: &[&'a str]) -> Vec<&'a str> {
        let mut words = vec!["server", "--data-dir", data, "--node-name", "n1", "--log-level", "warn"];
        words.extend(more);
        words
    }

    /// Runs a command to its end. Returns exit code, standard output and standard error.
    pub fn run(&self, words: &[&str]) -> (i32, String, String) {
        let output = self.command(words).output().unwrap();
        let text = |bytes| String::from_utf8(bytes).unwrap();
        (output.status.code().expect("not killed"), text(output.stdout), text(output.stderr))
    }

    /// Starts a command that goes on until it is killed.
    pub fn spawn(&self, words: &[&str]) -> Child {
        self.command(words).spawn().unwrap()
    }

    /// The one line with which a server refuses to start.
    pub fn refused(&self, more: &[&str]) -> String {
        self.refused_in(&self.data(), more)
    }

    /// As [`Site::refused`], on another data folder.
    pub fn refused_in(&self, data: &Path, more: &[&str]) -> String {
        let data = data.display().to_string();
        let (code, _, errors) = self.run(&Self::server_words(&data, more));
        assert_eq!((code, errors.lines().count()), (1, 1), "{errors}");
        errors.trim_end().to_owned()
    }

    /// A server that has come up.
    pub fn start(&self, more: &[&str]) -> Server {
        self.start_in(&self.data(), more)
    }

    /// As [`Site::start`], on another data folder.
    pub fn start_in(&self, data: &Path, more: &[&str]) -> Server {
        let data = data.to_owned();
        let log = data.with_extension("log");
        let errors = fs::OpenOptions::new().create(true).append(true).mode(0o600).open(&log).unwrap();
        let mut child = self
            .command(&Self::server_words(&data.display().to_string(), more))
            .stdout(Stdio::piped())
            .stderr(errors)
            .spawn()
            .unwrap();
        let mut lines = BufReader::new(child.stdout.take().unwrap());
        let mut text = String::new();
        while !text.contains("Try:") {
            if lines.read_line(&mut text).unwrap() == 0 {
                panic!("did not start:\n{text}{}", fs::read_to_string(log).unwrap());
            }
        }
        Server { child, _lines: lines, data, log }
    }

    /// A server without a node.
    pub fn start_api(&self) -> Server {
        self.start(&["--disable-agent"])
    }

    /// As the administrator.
    pub fn connect(&self) -> Client {
        self.block_on(Client::connect(&self.data()))
    }
}

impl Drop for Site {
    /// The folder can go only when nothing is mounted in it.
    fn drop(&mut self) {
        let mounts = fs::read_to_string("/proc/thread-self/mounts").unwrap_or_default();
        let points = mounts.lines().rev().filter_map(|line| line.split(' ').nth(1)).map(Path::new);
        for point in points.filter(|point| point.starts_with(self.dir.path())) {
            let _ = umount2(point, MntFlags::MNT_DETACH);
        }
    }
}

pub struct Server {
    child: Child,
    /// Kept open: the server writes here.
    _lines: BufReader<ChildStdout>,
    pub data: PathBuf,
    log: PathBuf,
}

impl Server {
    pub fn pid(&self) -> Pid {
        Pid::from_raw(i32::try_from(self.child.id()).unwrap())
    }

    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap()
    }

    /// Memory in use, in KiB.
    pub fn resident_kib(&self) -> u64 {
        let status = fs::read_to_string(format!("/proc/{}/status", self.pid())).unwrap();
        let line = status.lines().find(|line| line.starts_with("VmRSS:")).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    pub fn kill(mut self) {
        kill(self.pid(), Signal::SIGKILL).unwrap();
        self.child.wait().unwrap();
    }

    /// SIGTERM; returns how it ended and how long that took.
    pub fn stop(mut self) -> (ExitStatus, Duration) {
        let started = Instant::now();
        kill(self.pid(), Signal::SIGTERM).unwrap();
        let status = self.child.wait().unwrap();
        (status, started.elapsed())
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
        if std::thread::panicking() {
            eprintln!("the server said:\n{}", fs::read_to_string(&self.log).unwrap_or_default());
        }
    }
}

/// TLS to the API server, with the certificate and key in `pair` (PEM), or none.
pub async fn tls(data: &Path, pair: Option<(&str, &str)>, protocol: &[u8]) -> std::io::Result<TlsStream<TcpStream>> {
    tls_at(PORT, tls_config(data, pair, protocol)).await
}

fn tls_config(data: &Path, pair: Option<(&str, &str)>, protocol: &[u8]) -> rustls::ClientConfig {
    let mut roots = rustls::RootCertStore::empty();
    roots.add(CertificateDer::from_pem_file(data.join("tls/server-ca.crt")).unwrap()).unwrap();
    let builder = rustls::ClientConfig::builder().with_root_certificates(roots);
    let mut config = match pair {
        Some((certificate, key)) => {
            let chain = vec![CertificateDer::from_pem_slice(certificate.as_bytes()).unwrap()];
            builder.with_client_auth_cert(chain, PrivateKeyDer::from_pem_slice(key.as_bytes()).unwrap()).unwrap()
        }
        None => builder.with_no_client_auth(),
    };
    config.alpn_protocols = vec![protocol.to_vec()];
    config
}

async fn tls_at(port: u16, config: rustls::ClientConfig) -> std::io::Result<TlsStream<TcpStream>> {
    let socket = TcpStream::connect(("127.0.0.1", port)).await?;
    let name = ServerName::try_from("localhost").unwrap();
    TlsConnector::from(Arc::new(config)).connect(name, socket).await
}

/// One HTTP/2 connection.
#[derive(Clone)]
pub struct Client {
    sender: SendRequest<Full<Bytes>>,
}

impl Client {
    pub async fn connect(data: &Path) -> Self {
        let read = |name: &str| fs::read_to_string(data.join("tls").join(name)).unwrap();
        Self::connect_as(data, Some((&read("admin.crt"), &read("admin.key")))).await.unwrap()
    }

    /// As the administrator, to a server on another port.
    pub async fn connect_at(data: &Path, port: u16) -> Self {
        let read = |name: &str| fs::read_to_string(data.join("tls").join(name)).unwrap();
        let config = tls_config(data, Some((&read("admin.crt"), &read("admin.key"))), b"h2");
        Self::over(tls_at(port, config).await.unwrap()).await.unwrap()
    }

    pub async fn connect_as(data: &Path, pair: Option<(&str, &str)>) -> std::io::Result<Self> {
        Self::over(tls(data, pair, b"h2").await?).await
    }

    async fn over(stream: TlsStream<TcpStream>) -> std::io::Result<Self> {
        let handshake = hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await;
        let (sender, connection) = handshake.map_err(std::io::Error::other)?;
        tokio::spawn(connection);
        Ok(Client { sender })
    }

    /// The response's head; its body is still to come.
    pub async fn open(
        &self,
        method: &str,
        path: &str,
        body: Option<&Value>,
    ) -> hyper::Result<http::Response<Incoming>> {
        let body = body.map(|body| Bytes::from(body.to_string())).unwrap_or_default();
        let request = http::Request::builder()
            .method(method)
            .uri(format!("https://localhost:{PORT}{path}"))
            .header("content-type", "application/json")
            .body(Full::new(body))
            .unwrap();
        let mut sender = self.sender.clone();
        sender.ready().await?;
        sender.send_request(request).await
    }

    pub async fn call(&self, method: &str, path: &str, body: Option<&Value>) -> hyper::Result<(u16, Value)> {
        let response = self.open(method, path, body).await?;
        let status = response.status().as_u16();
        let body = response.into_body().collect().await?.to_bytes();
        let value = serde_json::from_slice(&body).unwrap_or_else(|_| json!(String::from_utf8_lossy(&body)));
        Ok((status, value))
    }

    pub async fn get(&self, path: &str) -> Value {
        let (status, value) = self.call("GET", path, None).await.unwrap();
        assert_eq!(status, 200, "{path}: {value}");
        value
    }

    pub async fn post(&self, path: &str, body: &Value) -> (u16, Value) {
        self.call("POST", path, Some(body)).await.unwrap()
    }
}

pub const CONFIG_MAPS: &str = "/api/v1/namespaces/default/configmaps";

pub fn config_map(name: &str, bytes: usize) -> Value {
    json!({"apiVersion": "v1", "kind": "ConfigMap", "metadata": {"name": name}, "data": {"d": "x".repeat(bytes)}})
}

/// The names of the objects of a list.
pub fn names(list: &Value) -> Vec<String> {
    let items = list["items"].as_array().unwrap().iter();
    items.map(|item| item["metadata"]["name"].as_str().unwrap().to_owned()).collect()
}

/// Waits until `done` answers something.
pub fn until<T>(what: &str, done: impl FnMut() -> Option<T>) -> T {
    until_or(what, done, String::new)
}

/// As [`until`]; if it never comes, `tell` says how things stand.
pub fn until_or<T>(what: &str, mut done: impl FnMut() -> Option<T>, tell: impl FnOnce() -> String) -> T {
    let deadline = Instant::now() + PATIENCE;
    loop {
        if let Some(answer) = done() {
            return answer;
        }
        assert!(Instant::now() < deadline, "{what}: not within {PATIENCE:?}\n{}", tell());
        std::thread::sleep(Duration::from_millis(20));
    }
}
