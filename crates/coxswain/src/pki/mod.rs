//! The cluster's own authorities and certificates, kept under `<data-dir>/tls`, files 0600.
//!
//! Two authorities: one signs servers, one signs clients, so that a serving certificate can never log in. Certificates last a
//! year and are made anew when less than a third of that is left, at start and while the server runs.

mod authority;
mod expiry;
mod leaf;
mod rotation;
mod signer;
#[cfg(test)]
mod tests;

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rcgen::KeyPair;

pub use authority::{Authority, distinguished_name};
pub use expiry::ExpiryLater;
use leaf::Subject;
pub use leaf::{KeyPairPem, Leaf};
pub use rotation::{Rotating, keep_renewed, wait_until};
pub use signer::ClusterSigner;

use crate::files;

const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);

/// All certificates that a server uses.
pub struct Pki {
    pub server_ca: Arc<Authority>,
    pub client_ca: Arc<Authority>,
    /// The API server's serving certificate.
    pub api: Arc<Rotating>,
    /// What the API server shows to kubelets.
    pub api_to_kubelet: Arc<Rotating>,
    /// Signs for who may tell aggregated API servers of users; nobody else is to be believed in that.
    pub front_proxy_ca: Arc<Authority>,
    /// What the API server shows to aggregated API servers.
    pub front_proxy: Arc<Rotating>,
    /// The administrator, `system:masters`.
    pub admin: Arc<Rotating>,
    /// The kubelet's serving certificate.
    pub kubelet: Arc<Rotating>,
    /// Names and addresses of the API server, which nobody else may be certified for.
    pub api_names: Vec<String>,
    /// PKCS #8 of the key that signs service account tokens.
    pub service_account_key: Vec<u8>,
}

/// Names and addresses that the serving certificates must carry.
pub struct Names {
    pub node_name: String,
    pub node_ips: Vec<IpAddr>,
    pub service_ip: IpAddr,
    pub cluster_domain: String,
    pub extra: Vec<String>,
}

impl Pki {
    /// Reads what there is and makes what is missing, about to expire, or no longer names this host rightly.
    pub fn open(dir: &Path, names: &Names) -> Result<Self> {
        Self::with_leaf_life(dir, names, LEAF_LIFE)
    }

    fn with_leaf_life(dir: &Path, names: &Names, life: Duration) -> Result<Self> {
        files::private_dir(dir)?;
        let server_ca = Arc::new(server_authority(dir)?);
        let client_ca = Arc::new(client_authority(dir)?);
        let front_proxy_ca = Arc::new(front_proxy_authority(dir)?);
        let rotating = |authority: &Arc<Authority>, subject: Subject| {
            Rotating::open(dir, authority.clone(), subject, life).map(Arc::new)
        };
        Ok(Pki {
            api: rotating(&server_ca, Subject::server("kube-apiserver", "kube-apiserver", None, api_names(names)))?,
            kubelet: rotating(
                &server_ca,
                Subject::server(
                    "kubelet",
                    &format!("system:node:{}", names.node_name),
                    Some("system:nodes"),
                    kubelet_names(names),
                ),
            )?,
            api_to_kubelet: rotating(
                &client_ca,
                Subject::client("kube-apiserver-kubelet-client", "kube-apiserver-kubelet-client", "system:masters"),
            )?,
            front_proxy: rotating(
                &front_proxy_ca,
                Subject::client("front-proxy-client", "system:auth-proxy", "system:auth-proxies"),
            )?,
            admin: rotating(&client_ca, Subject::client("admin", "kubernetes-admin", "system:masters"))?,
            api_names: api_names(names),
            service_account_key: service_account_key(dir)?,
            server_ca,
            client_ca,
            front_proxy_ca,
        })
    }

    fn certificates(&self) -> [&Arc<Rotating>; 5] {
        [&self.api, &self.kubelet, &self.api_to_kubelet, &self.front_proxy, &self.admin]
    }

    /// When the first certificate must be made anew.
    pub fn renewal_due(&self) -> SystemTime {
        let due = self.certificates().map(|certificate| certificate.renewal_due());
        due.into_iter().min().unwrap_or_else(SystemTime::now)
    }

    /// Makes anew, and puts into use, every certificate that is due. Returns their names.
    pub fn renew(&self, now: SystemTime) -> Result<Vec<&str>> {
        let due = self.certificates().into_iter().filter(|certificate| certificate.renewal_due() <= now);
        due.map(|certificate| certificate.renew().map(|()| certificate.name())).collect()
    }
}

/// The files that every server of a cluster has the same of.
pub const SHARED: [&str; 7] = [
    "server-ca.crt",
    "server-ca.key",
    "client-ca.crt",
    "client-ca.key",
    "front-proxy-ca.crt",
    "front-proxy-ca.key",
    "service-account.key",
];

/// Makes those of [`SHARED`] that `dir` lacks.
pub fn make_shared(dir: &Path) -> Result<()> {
    files::private_dir(dir)?;
    server_authority(dir)?;
    client_authority(dir)?;
    front_proxy_authority(dir)?;
    service_account_key(dir)?;
    Ok(())
}

fn server_authority(dir: &Path) -> Result<Authority> {
    Authority::open(dir, "server-ca", "coxswain-server-ca")
}

fn client_authority(dir: &Path) -> Result<Authority> {
    Authority::open(dir, "client-ca", "coxswain-client-ca")
}

fn front_proxy_authority(dir: &Path) -> Result<Authority> {
    Authority::open(dir, "front-proxy-ca", "coxswain-front-proxy-ca")
}

fn api_names(names: &Names) -> Vec<String> {
    let mut all: Vec<String> = ["localhost", "127.0.0.1", "kubernetes", "kubernetes.default", "kubernetes.default.svc"]
        .map(str::to_owned)
        .into();
    all.push(format!("kubernetes.default.svc.{}", names.cluster_domain));
    all.push(names.service_ip.to_string());
    all.push(names.node_name.clone());
    all.extend(names.node_ips.iter().map(ToString::to_string));
    all.extend(names.extra.iter().cloned());
    all
}

fn kubelet_names(names: &Names) -> Vec<String> {
    let mut all = vec![names.node_name.clone(), "localhost".to_owned(), "127.0.0.1".to_owned()];
    all.extend(names.node_ips.iter().map(ToString::to_string));
    all
}

/// Certificate and key of that name.
pub fn paths(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")))
}

fn service_account_key(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join("service-account.key");
    if let Some(pem) = files::read_optional(&path)? {
        let key = KeyPair::from_pem(&pem).with_context(|| format!("{} is damaged", path.display()))?;
        return Ok(key.serialize_der());
    }
    let key = KeyPair::generate()?;
    files::write_private(&path, key.serialize_pem().as_bytes())?;
    Ok(key.serialize_der())
}
