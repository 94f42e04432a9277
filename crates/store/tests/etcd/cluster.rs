//! A real etcd on loopback: members with TLS and client certificates, killed and started at will, and a wire that can be cut.

use std::io::{Read as _, Write as _};
use std::net::TcpListener;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use rcgen::{BasicConstraints, CertificateParams, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair};
use store::etcd::Config;
use tempfile::TempDir;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};

pub struct Cluster {
    pub dir: TempDir,
    pub members: Vec<Member>,
    arguments: Vec<String>,
}

pub struct Member {
    name: String,
    pub port: u16,
    peer_port: u16,
    metrics_port: u16,
    process: Option<Child>,
}

/// In memory where there is room for members' logs: what is tested survives processes, not machines, and a disk that others keep busy
/// makes members lose elections.
fn folder() -> TempDir {
    const ROOM: u64 = 2 << 30;
    let memory = Path::new("/dev/shm");
    let free = rustix::fs::statvfs(memory).map_or(0, |space| space.f_bavail * space.f_frsize);
    let made = if free > ROOM { tempfile::tempdir_in(memory) } else { tempfile::tempdir() };
    made.unwrap()
}

/// A port that nobody listens on and that nobody gets by chance: below the range that the kernel takes connections' ports from, and never
/// the same twice in a process. Members get theirs before they listen, so a port asked of the kernel could be given away again meanwhile.
fn free_port() -> u16 {
    const FIRST: u32 = 12_000;
    const COUNT: u32 = 20_000;
    static NEXT: AtomicU32 = AtomicU32::new(0);
    // Tests of other processes begin elsewhere.
    let start = std::process::id().wrapping_mul(97);
    loop {
        let number = start.wrapping_add(NEXT.fetch_add(1, Ordering::Relaxed)) % COUNT;
        let port = u16::try_from(FIRST + number).unwrap();
        if TcpListener::bind(("127.0.0.1", port)).is_ok() {
            return port;
        }
    }
}

impl Cluster {
    /// Starts so many members with these further arguments and waits until they answer.
    pub fn start(members: usize, arguments: &[&str]) -> Cluster {
        let dir = folder();
        write_certificates(dir.path());
        let member = |number| Member {
            name: format!("m{number}"),
            port: free_port(),
            peer_port: free_port(),
            metrics_port: free_port(),
            process: None,
        };
        let members = (0..members).map(member).collect();
        let mut cluster = Cluster { dir, members, arguments: arguments.iter().map(|a| a.to_string()).collect() };
        for number in 0..cluster.members.len() {
            cluster.launch(number);
        }
        for number in 0..cluster.members.len() {
            cluster.wait_healthy(number);
        }
        cluster
    }

    fn path(&self, name: &str) -> PathBuf {
        self.dir.path().join(name)
    }

    pub fn data(&self, number: usize) -> PathBuf {
        self.path(&self.members[number].name)
    }

    /// Starts a member on the data that it has.
    pub fn launch(&mut self, number: usize) {
        let all: Vec<_> = self.members.iter().map(|m| format!("{}=http://127.0.0.1:{}", m.name, m.peer_port)).collect();
        let member = &self.members[number];
        let client = format!("https://127.0.0.1:{}", member.port);
        let peer = format!("http://127.0.0.1:{}", member.peer_port);
        let log = std::fs::File::options().create(true).append(true).open(self.path(&format!("{}.log", member.name)));
        let log = log.unwrap();
        let mut command = Command::new("etcd");
        command
            .args(["--name", &member.name, "--initial-cluster", &all.join(","), "--initial-cluster-state", "new"])
            .args(["--listen-client-urls", &client, "--advertise-client-urls", &client])
            .args(["--listen-peer-urls", &peer, "--initial-advertise-peer-urls", &peer])
            .args(["--listen-metrics-urls", &format!("http://127.0.0.1:{}", member.metrics_port)])
            .args(["--heartbeat-interval", "50", "--election-timeout", "500", "--logger", "zap"])
            .arg("--client-cert-auth")
            .arg("--data-dir")
            .arg(self.data(number))
            .arg("--cert-file")
            .arg(self.path("server.crt"))
            .arg("--key-file")
            .arg(self.path("server.key"))
            .arg("--trusted-ca-file")
            .arg(self.path("ca.crt"))
            .args(&self.arguments)
            .stdin(Stdio::null())
            .stdout(log.try_clone().unwrap())
            .stderr(log);
        let process = command.spawn().expect("these tests need etcd: apt-get install etcd-server");
        self.members[number].process = Some(process);
    }

    /// kill -9.
    pub fn kill(&mut self, number: usize) {
        let mut process = self.members[number].process.take().expect("it runs");
        process.kill().unwrap();
        process.wait().unwrap();
    }

    pub fn wait_healthy(&self, number: usize) {
        let until = Instant::now() + Duration::from_secs(60);
        while !self.http(number, "/health").contains("\"health\":\"true\"") {
            let log = std::fs::read_to_string(self.path(&format!("{}.log", self.members[number].name)));
            assert!(Instant::now() < until, "etcd does not start: {}", log.unwrap());
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// A plain GET of what a member tells of itself; empty if it does not answer.
    fn http(&self, number: usize, path: &str) -> String {
        let address = ("127.0.0.1", self.members[number].metrics_port);
        let Ok(mut stream) = std::net::TcpStream::connect(address) else { return String::new() };
        let mut text = Vec::new();
        let _ = write!(stream, "GET {path} HTTP/1.0\r\n\r\n").and_then(|()| stream.read_to_end(&mut text).map(|_| ()));
        String::from_utf8_lossy(&text).into_owned()
    }

    /// A number of `/metrics`.
    pub fn metric(&self, number: usize, name: &str) -> f64 {
        let text = self.http(number, "/metrics");
        let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' ')).unwrap_or("0");
        line.parse().unwrap()
    }

    pub fn leader(&self) -> usize {
        let until = Instant::now() + Duration::from_secs(10);
        loop {
            let leads = |number: &usize| self.metric(*number, "etcd_server_is_leader") == 1.0;
            if let Some(leader) = (0..self.members.len()).find(leads) {
                return leader;
            }
            assert!(Instant::now() < until, "no leader");
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Straight to all members.
    pub fn config(&self) -> Config {
        self.config_by(&self.members.iter().map(|member| member.port).collect::<Vec<_>>())
    }

    /// By way of these ports. Nobody compacts.
    pub fn config_by(&self, ports: &[u16]) -> Config {
        Config {
            endpoints: ports.iter().map(|port| format!("https://127.0.0.1:{port}")).collect(),
            ca_file: Some(self.path("ca.crt")),
            cert_file: Some(self.path("client.crt")),
            key_file: Some(self.path("client.key")),
            compaction_interval: None,
            ..Config::default()
        }
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        for process in self.members.iter_mut().filter_map(|member| member.process.as_mut()) {
            let _ = process.kill();
            let _ = process.wait();
        }
    }
}

fn write_certificates(dir: &Path) {
    let key = KeyPair::generate().unwrap();
    let mut params = CertificateParams::default();
    params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let ca = params.self_signed(&key).unwrap();
    std::fs::write(dir.join("ca.crt"), ca.pem()).unwrap();
    let issuer = Issuer::new(params, key);
    for (name, usage) in
        [("server", ExtendedKeyUsagePurpose::ServerAuth), ("client", ExtendedKeyUsagePurpose::ClientAuth)]
    {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["127.0.0.1".to_owned(), "localhost".to_owned()]).unwrap();
        // The server shows its certificate to itself as a client, too.
        params.extended_key_usages = vec![usage, ExtendedKeyUsagePurpose::ClientAuth];
        let certificate = params.signed_by(&key, &issuer).unwrap();
        std::fs::write(dir.join(format!("{name}.crt")), certificate.pem()).unwrap();
        std::fs::write(dir.join(format!("{name}.key")), key.serialize_pem()).unwrap();
    }
}

/// A wire to one member that can be cut, and can swallow answers.
#[derive(Clone)]
pub struct Wire {
    pub port: u16,
    state: Arc<WireState>,
}

struct WireState {
    /// Bumped to break all connections.
    generation: tokio::sync::watch::Sender<u64>,
    /// 0: through; 1: no new connections; 2: what is asked arrives, answers do not.
    mode: AtomicUsize,
    connections: AtomicU64,
}

impl Wire {
    pub async fn to(target: u16) -> Wire {
        let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let state = Arc::new(WireState {
            generation: tokio::sync::watch::Sender::new(0),
            mode: AtomicUsize::new(0),
            connections: AtomicU64::new(0),
        });
        let wire = Wire { port, state: state.clone() };
        tokio::spawn(async move {
            loop {
                let Ok((near, _)) = listener.accept().await else { return };
                if state.mode.load(Ordering::SeqCst) == 1 {
                    continue;
                }
                state.connections.fetch_add(1, Ordering::SeqCst);
                let (state, mut broken) = (state.clone(), state.generation.subscribe());
                tokio::spawn(async move {
                    let Ok(far) = tokio::net::TcpStream::connect(("127.0.0.1", target)).await else { return };
                    tokio::select! {
                        _ = broken.changed() => {}
                        () = carry(&state, near, far) => {}
                    }
                });
            }
        });
        wire
    }

    /// Breaks all connections and lets none be made.
    pub fn cut(&self) {
        self.state.mode.store(1, Ordering::SeqCst);
        self.state.generation.send_modify(|generation| *generation += 1);
    }

    pub fn mend(&self) {
        self.state.mode.store(0, Ordering::SeqCst);
    }

    /// From now on questions arrive, and their answers do not.
    pub fn swallow_answers(&self) {
        self.state.mode.store(2, Ordering::SeqCst);
    }

    pub fn break_connections(&self) {
        self.state.generation.send_modify(|generation| *generation += 1);
    }
}

async fn carry(state: &WireState, near: tokio::net::TcpStream, far: tokio::net::TcpStream) {
    let (mut near_in, mut near_out) = near.into_split();
    let (mut far_in, mut far_out) = far.into_split();
    let there = async { _ = tokio::io::copy(&mut near_in, &mut far_out).await };
    let back = async {
        let mut buffer = vec![0; 64 * 1024];
        loop {
            let Ok(count @ 1..) = far_in.read(&mut buffer).await else { return };
            if state.mode.load(Ordering::SeqCst) == 2 {
                continue;
            }
            if near_out.write_all(&buffer[..count]).await.is_err() {
                return;
            }
        }
    };
    tokio::select! { () = there => {}, () = back => {} }
}
