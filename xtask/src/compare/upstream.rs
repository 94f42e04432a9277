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
use crate::e2e::host::run;

/// What is left of it where only the API counts.
pub const BESIDE_THE_API: [&str; 2] = ["kube-scheduler", "kube-controller-manager"];

/// Makes certificates: an authority, the server, an administrator, and the key that signs service accounts' tokens.
const CERTIFICATES: &str = "
openssl req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout ca.key -out ca.crt -days 30 -subj /CN=compare \
  -addext keyUsage=critical,keyCertSign
issue() {
  openssl req -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -keyout \"$1.key\" -out \"$1.csr\" -subj \"$2\"
  printf '%s\\n' \"$3\" >\"$1.ext\"
  openssl x509 -req -in \"$1.csr\" -CA ca.crt -CAkey ca.key -CAcreateserial -out \"$1.crt\" -days 30 -extfile \"$1.ext\"
}
issue server /CN=kube-apiserver subjectAltName=IP:127.0.0.1,IP:10.43.0.1,DNS:localhost,DNS:kubernetes.default.svc
issue admin /O=system:masters/CN=admin extendedKeyUsage=clientAuth
openssl genrsa -out accounts.key 2048
openssl rsa -in accounts.key -pubout -out accounts.pub
";

/// Prepares it in an empty folder, and `more` that starts after it; nothing runs yet.
pub fn side(cache: &Cache, work: &Path, more: Vec<Part>) -> Result<Side> {
    for program in ["kube-apiserver", "kube-controller-manager", "kube-scheduler"] {
        if !cache.program(program).is_file() {
            bail!("upstream's {program} is not built yet: run `cargo xtask conformance build` first");
        }
    }
    let output = Command::new("sh").args(["-euc", CERTIFICATES]).current_dir(work).output().context("openssl")?;
    if !output.status.success() {
        bail!("certificates: {}", String::from_utf8_lossy(&output.stderr));
    }
    let kubeconfig = work.join("kubeconfig.yaml");
    fs::write(&kubeconfig, admin(work))?;
    // etcd logs a warning for a data folder that others may read.
    run(Command::new("install").args(["-d", "-m", "700"]).arg(work.join("etcd")))?;
    let mut all = parts(cache, work, &kubeconfig);
    all.extend(more);
    Side::new("upstream", work, kubeconfig, &all)
}

fn admin(work: &Path) -> String {
    let config = json!({
        "apiVersion": "v1", "kind": "Config", "current-context": "upstream", "preferences": {},
        "clusters": [{"name": "upstream", "cluster": {
            "server": format!("https://127.0.0.1:{PORT}"), "certificate-authority": work.join("ca.crt"),
        }}],
        "users": [{"name": "admin", "user": {
            "client-certificate": work.join("admin.crt"), "client-key": work.join("admin.key"),
        }}],
        "contexts": [{"name": "upstream", "context": {"cluster": "upstream", "user": "admin"}}],
    });
    config.to_string()
}

fn parts(cache: &Cache, work: &Path, kubeconfig: &Path) -> Vec<Part> {
    let at = |file: &str| work.join(file).display().to_string();
    let kubeconfig = kubeconfig.display().to_string();
    let words = |words: &[(&str, String)]| words.iter().map(|(flag, value)| format!("--{flag}={value}")).collect();
    let text = str::to_owned;
    let unlimited = [("kube-api-qps", text("5000")), ("kube-api-burst", text("10000"))];
    let etcd = [
        ("data-dir", at("etcd")),
        ("listen-client-urls", text("http://127.0.0.1:2379")),
        ("advertise-client-urls", text("http://127.0.0.1:2379")),
        ("listen-peer-urls", text("http://127.0.0.1:2380")),
        ("quota-backend-bytes", text("8589934592")),
    ];
    let api = [
        ("etcd-servers", text("http://127.0.0.1:2379")),
        ("bind-address", text("127.0.0.1")),
        ("secure-port", PORT.to_string()),
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
        // There is no address to publish but loopback.
        ("endpoint-reconciler-type", text("none")),
        ("advertise-address", text("127.0.0.1")),
        ("cert-dir", at("certificates")),
    ];
    let controllers = [
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
    let scheduler = [
        ("kubeconfig", kubeconfig),
        ("leader-elect", text("false")),
        ("bind-address", text("127.0.0.1")),
        ("cert-dir", at("certificates")),
    ];
    let part = |name: &'static str, program: PathBuf, args| Part { name, program, args };
    let with_rates = |words: &[(&'static str, String)]| [words, &unlimited].concat();
    vec![
        part("etcd", PathBuf::from("etcd"), words(&etcd)),
        part("kube-apiserver", cache.program("kube-apiserver"), words(&api)),
        part("kube-controller-manager", cache.program("kube-controller-manager"), words(&with_rates(&controllers))),
        part("kube-scheduler", cache.program("kube-scheduler"), words(&with_rates(&scheduler))),
    ]
}
