//! The cluster's own authorities and certificates, kept under `<data-dir>/tls`, files 0600.
//!
//! Two authorities: one signs servers, one signs clients, so that a serving certificate can never log in. Certificates last a
//! year and are made anew at start when less than a third of that is left.

use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose,
};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};

use crate::files;

const DAY: Duration = Duration::from_secs(24 * 3600);
const AUTHORITY_LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
const LEAF_LIFE: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks differ: a certificate made now is good a little earlier.
const BACKDATE: Duration = Duration::from_secs(300);

/// A certificate (chain) and its key, PEM.
#[derive(Clone)]
pub struct KeyPairPem {
    pub certificate: String,
    pub key: String,
}

impl KeyPairPem {
    pub fn chain(&self) -> Result<Vec<CertificateDer<'static>>> {
        CertificateDer::pem_slice_iter(self.certificate.as_bytes()).collect::<Result<_, _>>().context("bad certificate")
    }

    pub fn private_key(&self) -> Result<PrivateKeyDer<'static>> {
        PrivateKeyDer::from_pem_slice(self.key.as_bytes()).context("bad private key")
    }
}

/// A signing authority.
pub struct Authority {
    pub certificate: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn der(&self) -> Result<CertificateDer<'static>> {
        CertificateDer::from_pem_slice(self.certificate.as_bytes()).context("bad authority certificate")
    }
}

/// All certificates that a server starts with.
pub struct Pki {
    pub server_ca: Authority,
    pub client_ca: Authority,
    /// The API server's serving certificate.
    pub api: KeyPairPem,
    /// What the API server shows to kubelets.
    pub api_to_kubelet: KeyPairPem,
    /// The administrator, `system:masters`.
    pub admin: KeyPairPem,
    /// The kubelet's serving certificate.
    pub kubelet: KeyPairPem,
    /// PKCS #8 of the key that signs service account tokens.
    pub service_account_key: Vec<u8>,
}

/// Whom a certificate names, and what for.
struct Subject<'a> {
    file: &'a str,
    common_name: &'a str,
    organisation: Option<&'a str>,
    names: Vec<String>,
    server: bool,
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
        files::private_dir(dir)?;
        let server_ca = authority(dir, "server-ca", "coxswain-server-ca")?;
        let client_ca = authority(dir, "client-ca", "coxswain-client-ca")?;
        let api = leaf(
            dir,
            &server_ca,
            &Subject {
                file: "kube-apiserver",
                common_name: "kube-apiserver",
                organisation: None,
                names: api_names(names),
                server: true,
            },
        )?;
        let mut kubelet_names = vec![names.node_name.clone(), "localhost".to_owned(), "127.0.0.1".to_owned()];
        kubelet_names.extend(names.node_ips.iter().map(ToString::to_string));
        let node_user = format!("system:node:{}", names.node_name);
        let kubelet = leaf(
            dir,
            &server_ca,
            &Subject {
                file: "kubelet",
                common_name: &node_user,
                organisation: Some("system:nodes"),
                names: kubelet_names,
                server: true,
            },
        )?;
        let client = |file, common_name, organisation| Subject {
            file,
            common_name,
            organisation,
            names: Vec::new(),
            server: false,
        };
        let kubelet_client =
            client("kube-apiserver-kubelet-client", "kube-apiserver-kubelet-client", Some("system:masters"));
        let api_to_kubelet = leaf(dir, &client_ca, &kubelet_client)?;
        let admin = leaf(dir, &client_ca, &client("admin", "kubernetes-admin", Some("system:masters")))?;
        let service_account_key = service_account_key(dir)?;
        Ok(Pki { server_ca, client_ca, api, api_to_kubelet, admin, kubelet, service_account_key })
    }
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
    all.sort();
    all.dedup();
    all
}

fn paths(dir: &Path, name: &str) -> (PathBuf, PathBuf) {
    (dir.join(format!("{name}.crt")), dir.join(format!("{name}.key")))
}

fn authority(dir: &Path, file: &str, common_name: &str) -> Result<Authority> {
    let (certificate_path, key_path) = paths(dir, file);
    let found = (files::read_optional(&certificate_path)?, files::read_optional(&key_path)?);
    let (certificate, key) = match found {
        (Some(certificate), Some(key)) => {
            (certificate, KeyPair::from_pem(&key).with_context(|| key_path.display().to_string())?)
        }
        _ => {
            let key = KeyPair::generate()?;
            let mut params = params(common_name, None, AUTHORITY_LIFE);
            params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
            params.key_usages =
                vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
            let certificate = params.self_signed(&key)?.pem();
            files::write_private(&key_path, key.serialize_pem().as_bytes())?;
            files::write_private(&certificate_path, certificate.as_bytes())?;
            (certificate, key)
        }
    };
    let issuer = Issuer::from_ca_cert_pem(&certificate, key).with_context(|| certificate_path.display().to_string())?;
    Ok(Authority { certificate, issuer })
}

fn params(common_name: &str, organisation: Option<&str>, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, common_name);
    if let Some(organisation) = organisation {
        params.distinguished_name.push(DnType::OrganizationName, organisation);
    }
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE).into();
    params.not_after = (now + life).into();
    params
}

fn leaf(dir: &Path, authority: &Authority, subject: &Subject<'_>) -> Result<KeyPairPem> {
    let (certificate_path, key_path) = paths(dir, subject.file);
    if let (Some(certificate), Some(key)) = (files::read_optional(&certificate_path)?, files::read_optional(&key_path)?)
        && still_good(&certificate, authority, subject)
    {
        return Ok(KeyPairPem { certificate, key });
    }
    let key = KeyPair::generate()?;
    let mut params = params(subject.common_name, subject.organisation, LEAF_LIFE);
    params.subject_alt_names = CertificateParams::new(subject.names.clone())?.subject_alt_names;
    params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
    let purpose =
        if subject.server { ExtendedKeyUsagePurpose::ServerAuth } else { ExtendedKeyUsagePurpose::ClientAuth };
    params.extended_key_usages = vec![purpose];
    params.use_authority_key_identifier_extension = true;
    let pair = KeyPairPem { certificate: params.signed_by(&key, &authority.issuer)?.pem(), key: key.serialize_pem() };
    files::write_private(&key_path, pair.key.as_bytes())?;
    files::write_private(&certificate_path, pair.certificate.as_bytes())?;
    Ok(pair)
}

/// Whether a certificate found on disk has a third of its life left, is the authority's, and names all that it must.
fn still_good(pem: &str, authority: &Authority, subject: &Subject<'_>) -> bool {
    let check = || -> Option<bool> {
        let der = CertificateDer::from_pem_slice(pem.as_bytes()).ok()?;
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).ok()?;
        let ca = authority.der().ok()?;
        let (_, ca) = x509_parser::parse_x509_certificate(&ca).ok()?;
        let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).ok()?.as_secs() as i64;
        let left = certificate.validity().not_after.timestamp() - now;
        let fresh = left > (LEAF_LIFE / 3 + DAY).as_secs() as i64;
        let signed = certificate.verify_signature(Some(ca.public_key())).is_ok();
        let wanted = CertificateParams::new(subject.names.clone()).ok()?.subject_alt_names.len();
        let named = certificate.subject_alternative_name().ok()?.map_or(0, |san| san.value.general_names.len());
        let has = |name: &str| sans(&certificate).iter().any(|san| san == name);
        Some(fresh && signed && named >= wanted && subject.names.iter().all(|name| has(name)))
    };
    check().unwrap_or(false)
}

fn sans(certificate: &x509_parser::certificate::X509Certificate<'_>) -> Vec<String> {
    use x509_parser::extensions::GeneralName;
    let Ok(Some(names)) = certificate.subject_alternative_name() else { return Vec::new() };
    let text = |name: &GeneralName<'_>| match name {
        GeneralName::DNSName(name) => Some((*name).to_owned()),
        GeneralName::IPAddress(bytes) => match <[u8; 4]>::try_from(*bytes) {
            Ok(four) => Some(IpAddr::from(four).to_string()),
            Err(_) => <[u8; 16]>::try_from(*bytes).ok().map(|six| IpAddr::from(six).to_string()),
        },
        _ => None,
    };
    names.value.general_names.iter().filter_map(text).collect()
}

fn service_account_key(dir: &Path) -> Result<Vec<u8>> {
    let path = dir.join("service-account.key");
    if let Some(pem) = files::read_optional(&path)? {
        let key = KeyPair::from_pem(&pem).with_context(|| path.display().to_string())?;
        return Ok(key.serialize_der());
    }
    let key = KeyPair::generate()?;
    files::write_private(&path, key.serialize_pem().as_bytes())?;
    Ok(key.serialize_der())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn names(extra: &[&str]) -> Names {
        Names {
            node_name: "n".to_owned(),
            node_ips: vec![IpAddr::from([10, 0, 0, 7])],
            service_ip: IpAddr::from([10, 43, 0, 1]),
            cluster_domain: "cluster.local".to_owned(),
            extra: extra.iter().map(|s| (*s).to_owned()).collect(),
        }
    }

    #[test]
    fn kept_while_good_and_renewed_for_a_new_name() {
        let dir = tempfile::tempdir().unwrap();
        let first = Pki::open(dir.path(), &names(&[])).unwrap();
        let second = Pki::open(dir.path(), &names(&[])).unwrap();
        assert_eq!(first.api.certificate, second.api.certificate);
        assert_eq!(first.service_account_key, second.service_account_key);
        let third = Pki::open(dir.path(), &names(&["api.example"])).unwrap();
        assert_ne!(first.api.certificate, third.api.certificate);
        assert_eq!(first.server_ca.certificate, third.server_ca.certificate);
        assert_eq!(first.admin.certificate, third.admin.certificate);
    }

    #[test]
    fn keys_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        Pki::open(dir.path(), &names(&[])).unwrap();
        for file in std::fs::read_dir(dir.path()).unwrap() {
            let mode = file.unwrap().metadata().unwrap().permissions().mode();
            assert_eq!(mode & 0o777, 0o600);
        }
    }
}
