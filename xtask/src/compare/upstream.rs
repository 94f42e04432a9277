//! Upstream's control plane: etcd, API server, controller manager and scheduler as a single server of it would run, without limits on
//! the requests of its own components, and without the leases that several replicas would elect a leader by.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde_json::json;

use super::side::{Part, Side};
use super::{POD_NETWORK, PORT, SERVICE_NETWORK};
use crate::conformance::cache::Cache;
use crate::e2e::host::NODE_IP;
use crate::e2e::host::run;

/// What is left of it where only the API counts.
pub const BESIDE_THE_API: [&str; 2] = ["kube-scheduler", "kube-controller-manager"];

/// Makes certificates: an authority, the server, an administrator, the key that signs service accounts' tokens, and what aggregated
/// servers know the server by, under an authority of its own.
const CERTIFICATES: &str = "
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=compare \
  -addext keyUsage=critical,keyCertSign
issue() {
  authority=${4:-ca}
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout \"$1.key\" -out \"$1.csr\" -subj \"$2\"
  printf '%s\\n' \"$3\" >\"$1.ext\"
  openssl x509 -req -in \"$1.csr\" -CA \"$authority.crt\" -CAkey \"$authority.key\" -CAcreateserial -out \"$1.crt\" -days 30 -extfile \"$1.ext\"
}
issue server /CN=kube-apiserver \"subjectAltName=IP:127.0.0.1,IP:$1,IP:10.43.0.1,DNS:localhost,DNS:kubernetes.default.svc\"
issue admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout front.key -out front.crt -days 30 -subj /CN=front \
  -addext keyUsage=critical,keyCertSign
issue aggregator /CN=aggregator extendedKeyUsage=clientAuth front
openssl genrsa -out accounts.key 2048
openssl rsa -in accounts.key -pubout -out accounts.pub
";

/// Who is to reach the API.
#[derive(Clone, Copy, PartialEq, Eq)]
pub enum Reach {
    /// What runs in the same network: it publishes no address.
    Loopback,
    /// Nodes and pods, under [`NODE_IP`] and its service; and it reaches what they serve, webhooks and aggregated servers.
    Nodes,
}

impl Reach {
    pub fn address(self) -> &'static str {
        match self {
            Reach::Loopback => "127.0.0.1",
            Reach::Nodes => NODE_IP,
        }
    }
}

/// Prepares it in an empty folder, and `more` that starts after it; nothing runs yet.
pub fn side(cache: &Cache, work: &Path, reach: Reach, more: Vec<Part>) -> Result<Side> {
    assemble(cache, work, reach, &[], more)
}

/// Its API server and etcd alone, in an empty folder; nothing runs yet, and nobody writes but those who ask.
pub fn api_alone(cache: &Cache, work: &Path) -> Result<Side> {
    assemble(cache, work, Reach::Loopback, &BESIDE_THE_API, Vec::new())
}

fn assemble(cache: &Cache, work: &Path, reach: Reach, without: &[&str], more: Vec<Part>) -> Result<Side> {
    for program in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        if !cache.program(program).is_file() {
            bail!("upstream's {program} is not built yet: run `cargo xtask conformance build` first");
        }
    }
    let words = ["-euc", CERTIFICATES, "sh", NODE_IP];
    let output = Command::new("sh").args(words).current_dir(work).output().context("openssl")?;
    if !output.status.success() {
        bail!("certificates: {}", String::from_utf8_lossy(&output.stderr));
    }
    let kubeconfig = work.join("kubeconfig.yaml");
    fs::write(&kubeconfig, admin(work, reach))?;
    // etcd logs a warning for a data folder that others may read.
    run(Command::new("install").args(["-d", "-m", "700"]).arg(work.join("etcd")))?;
    let mut all = parts(cache, work, reach, &kubeconfig);
    all.retain(|part| !without.contains(&part.name));
    all.extend(more);
    Side::new("upstream", work, kubeconfig, &all)
}

fn admin(work: &Path, reach: Reach) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "upstream", "preferences": {},
        "clusters": [{"name": "upstream", "cluster": {
            "server": format!("https://{}:{PORT}", reach.address()), "certificate-authority": work.join("ca.crt"),
        }}],
        "users": [{"name": "admin", "user": {
            "client-certificate": work.join("admin.crt"), "client-key": work.join("admin.key"),
        }}],
        "contexts": [{"name": "upstream", "context": {"cluster": "upstream", "user": "admin"}}],
    });
    config.to_string()
}

type Flags = Vec<(&'static str, String)>;

fn parts(cache: &Cache, work: &Path, reach: Reach, kubeconfig: &Path) -> Vec<Part> {
    let at = |file: &str| work.join(file).display().to_string();
    let kubeconfig = kubeconfig.display().to_string();
    let text = str::to_owned;
    let etcd = vec![
        ("data-dir", at("etcd")),
        ("listen-client-urls", text("http://127.0.0.1:2379")),
        ("advertise-client-urls", text("http://127.0.0.1:2379")),
        ("listen-peer-urls", text("http://127.0.0.1:2380")),
        ("quota-backend-bytes", text("8589934592")),
    ];
    let mut controllers = vec![
        ("kubeconfig", kubeconfig.clone()),
        ("service-account-private-key-file", at("accounts.key")),
        ("root-ca-file", at("ca.crt")),
        ("leader-elect", text("false")),
        ("allocate-node-cidrs", text("true")),
        ("cluster-cidr", text(POD_NETWORK)),
        ("service-cluster-ip-range", text(SERVICE_NETWORK)),
        ("bind-address", text("127.0.0.1")),
        ("cert-dir", at("certificates")),
    ];
    if reach == Reach::Nodes {
        let signer = [("cluster-signing-cert-file", at("ca.crt")), ("cluster-signing-key-file", at("ca.key"))];
        controllers.extend(signer.into_iter().chain([token_volumes()]));
    }
    let scheduler = vec![
        ("kubeconfig", kubeconfig),
        ("leader-elect", text("false")),
        ("bind-address", text("127.0.0.1")),
        ("cert-dir", at("certificates")),
    ];
    let part = |name: &'static str, program: PathBuf, flags: Flags| {
        let args = flags.iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
        Part { name, program, args }
    };
    let with_rates = |flags: Flags| [flags, unlimited()].concat();
    vec![
        part("etcd", PathBuf::from("etcd"), etcd),
        part("kube-apiserver", cache.program("kube-apiserver"), api(work, reach)),
        part("kube-controller-manager", cache.program("kube-controller-manager"), with_rates(controllers)),
        part("kube-scheduler", cache.program("kube-scheduler"), with_rates(scheduler)),
    ]
}

/// The defaults are 20 and 50 requests a second: what is compared would be waiting.
fn unlimited() -> Flags {
    vec![("kube-api-qps", "5000".to_owned()), ("kube-api-burst", "10000".to_owned())]
}

/// Pods get their tokens by request, as since v1.21, and not from Secrets: the adapted suite does not wait for those.
fn token_volumes() -> (&'static str, String) {
    ("feature-gates", "BoundServiceAccountTokenVolume=true".to_owned())
}

fn api(work: &Path, reach: Reach) -> Flags {
    let at = |file: &str| work.join(file).display().to_string();
    let text = str::to_owned;
    let mut flags = vec![
        ("etcd-servers", text("http://127.0.0.1:2379")),
        ("secure-port", PORT.to_string()),
        ("advertise-address", text(reach.address())),
        ("tls-cert-file", at("server.crt")),
        ("tls-private-key-file", at("server.key")),
        ("client-ca-file", at("ca.crt")),
        ("service-account-issuer", text("https://kubernetes.default.svc")),
        ("service-account-key-file", at("accounts.pub")),
        ("service-account-signing-key-file", at("accounts.key")),
        ("service-cluster-ip-range", text(SERVICE_NETWORK)),
        ("authorization-mode", text("Node,RBAC")),
        ("enable-admission-plugins", text("NodeRestriction")),
        ("allow-privileged", text("true")),
        ("cert-dir", at("certificates")),
    ];
    if reach == Reach::Loopback {
        // There is no address to publish but loopback.
        flags.extend([("bind-address", text("127.0.0.1")), ("endpoint-reconciler-type", text("none"))]);
        return flags;
    }
    flags.extend([
        ("kubelet-client-certificate", at("admin.crt")),
        ("kubelet-client-key", at("admin.key")),
        ("kubelet-preferred-address-types", text("InternalIP")),
        ("enable-aggregator-routing", text("true")),
        ("requestheader-client-ca-file", at("front.crt")),
        ("requestheader-allowed-names", text("aggregator")),
        ("requestheader-username-headers", text("X-Remote-User")),
        ("requestheader-group-headers", text("X-Remote-Group")),
        ("requestheader-extra-headers-prefix", text("X-Remote-Extra-")),
        ("proxy-client-cert-file", at("aggregator.crt")),
        ("proxy-client-key-file", at("aggregator.key")),
        token_volumes(),
    ]);
    flags
}
