//! A signing authority.

use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result, bail};
use rcgen::{BasicConstraints, CertificateParams, DistinguishedName, DnType, IsCa, Issuer, KeyPair, KeyUsagePurpose};
use rustls::RootCertStore;
use rustls::pki_types::CertificateDer;
use rustls::pki_types::pem::PemObject as _;

use super::paths;
use crate::files;

const LIFE: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// Clocks differ: a certificate made now is good a little earlier.
const BACKDATE: Duration = Duration::from_secs(300);

pub struct Authority {
    pub certificate: String,
    der: CertificateDer<'static>,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    /// Reads `<file>.crt` and `<file>.key`, or makes them at a cluster's first start.
    pub fn open(dir: &Path, file: &str, common_name: &str) -> Result<Self> {
        let (certificate_path, key_path) = paths(dir, file);
        let damaged = |path: &Path| format!("{} is damaged", path.display());
        let found = (files::read_optional(&certificate_path)?, files::read_optional(&key_path)?);
        let (certificate, key) = match found {
            (Some(certificate), Some(key)) => {
                (certificate, KeyPair::from_pem(&key).with_context(|| damaged(&key_path))?)
            }
            // Made anew, it would turn away everybody who trusts the old one.
            (Some(_), None) => bail!("{} is missing: restore it from a backup", key_path.display()),
            // The key is written first: the first start was cut short. A key that is there stays: others may trust it.
            (None, found) => {
                let key = match found {
                    Some(pem) => KeyPair::from_pem(&pem).with_context(|| damaged(&key_path))?,
                    None => KeyPair::generate()?,
                };
                let certificate = self_signed(common_name, &key)?;
                files::write_private(&key_path, key.serialize_pem().as_bytes())?;
                files::write_private(&certificate_path, certificate.as_bytes())?;
                (certificate, key)
            }
        };
        let der = CertificateDer::from_pem_slice(certificate.as_bytes()).with_context(|| damaged(&certificate_path))?;
        let issuer = Issuer::from_ca_cert_pem(&certificate, key).with_context(|| damaged(&certificate_path))?;
        Ok(Authority { certificate, der, issuer })
    }

    /// Who signs, and with what; for certificates that somebody else asked for.
    pub fn signing_key(&self) -> &KeyPair {
        self.issuer.key()
    }

    pub fn der(&self) -> &CertificateDer<'static> {
        &self.der
    }

    /// Trust in this authority alone.
    pub fn roots(&self) -> Result<Arc<RootCertStore>> {
        let mut roots = RootCertStore::empty();
        roots.add(self.der.clone()).context("authority certificate")?;
        Ok(Arc::new(roots))
    }

    /// The PEM of a certificate for `key`.
    pub fn sign(&self, params: &CertificateParams, key: &KeyPair) -> Result<String> {
        Ok(params.signed_by(key, &self.issuer)?.pem())
    }
}

fn self_signed(common_name: &str, key: &KeyPair) -> Result<String> {
    let mut params = params(common_name, None, LIFE);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    Ok(params.self_signed(key)?.pem())
}

pub fn distinguished_name(common_name: &str, organisation: Option<&str>) -> DistinguishedName {
    let mut name = DistinguishedName::new();
    name.push(DnType::CommonName, common_name);
    if let Some(organisation) = organisation {
        name.push(DnType::OrganizationName, organisation);
    }
    name
}

/// What authorities and the certificates that they sign have in common.
pub fn params(common_name: &str, organisation: Option<&str>, life: Duration) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = distinguished_name(common_name, organisation);
    let now = SystemTime::now();
    params.not_before = (now - BACKDATE.min(life)).into();
    params.not_after = (now + life).into();
    params
}
