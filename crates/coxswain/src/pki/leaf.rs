//! One certificate with its key: made, kept on disk, judged.

use std::net::IpAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use anyhow::{Context as _, Result};
use rcgen::{CertificateParams, ExtendedKeyUsagePurpose, KeyPair, KeyUsagePurpose};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::sign::CertifiedKey;
use x509_parser::certificate::X509Certificate;

use super::authority::{Authority, params};
use super::paths;
use crate::files;

/// A certificate and its key, PEM.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct KeyPairPem {
    pub certificate: String,
    pub key: String,
}

/// Whom a certificate names, and what for.
pub struct Subject {
    pub file: &'static str,
    common_name: String,
    organisation: Option<&'static str>,
    names: Vec<String>,
    purpose: ExtendedKeyUsagePurpose,
}

impl Subject {
    pub fn server(
        file: &'static str,
        common_name: &str,
        organisation: Option<&'static str>,
        mut names: Vec<String>,
    ) -> Self {
        names.sort();
        names.dedup();
        let purpose = ExtendedKeyUsagePurpose::ServerAuth;
        Subject { file, common_name: common_name.to_owned(), organisation, names, purpose }
    }

    pub fn client(file: &'static str, common_name: &str, organisation: &'static str) -> Self {
        let purpose = ExtendedKeyUsagePurpose::ClientAuth;
        let organisation = Some(organisation);
        Subject { file, common_name: common_name.to_owned(), organisation, names: Vec::new(), purpose }
    }
}

/// A certificate ready for use.
pub struct Leaf {
    pub pem: KeyPairPem,
    pub certified: Arc<CertifiedKey>,
    /// When a third of its life is left.
    pub renewal_due: SystemTime,
}

impl Leaf {
    /// What lies on disk, if it is still good.
    pub fn read(dir: &Path, authority: &Authority, subject: &Subject) -> Result<Option<Self>> {
        let leaf = Leaf::from_files(dir, subject.file)?;
        Ok(leaf.filter(|leaf| leaf.renewal_due > SystemTime::now() && leaf.fits(authority, subject)))
    }

    /// The pair of that name in `dir`, good or not; none if it is missing or damaged.
    pub fn from_files(dir: &Path, file: &str) -> Result<Option<Self>> {
        let (certificate_path, key_path) = paths(dir, file);
        let (certificate, key) = (files::read_optional(&certificate_path)?, files::read_optional(&key_path)?);
        let (Some(certificate), Some(key)) = (certificate, key) else { return Ok(None) };
        Ok(Leaf::parse(KeyPairPem { certificate, key }).ok())
    }

    /// Writes a pair down and makes it ready for use.
    pub fn write(dir: &Path, file: &str, pem: KeyPairPem) -> Result<Self> {
        let (certificate_path, key_path) = paths(dir, file);
        files::write_private(&key_path, pem.key.as_bytes())?;
        files::write_private(&certificate_path, pem.certificate.as_bytes())?;
        Leaf::parse(pem)
    }

    /// Makes one and writes it down.
    pub fn make(dir: &Path, authority: &Authority, subject: &Subject, life: Duration) -> Result<Self> {
        let key = KeyPair::generate()?;
        let mut params = params(&subject.common_name, subject.organisation, life);
        params.subject_alt_names = CertificateParams::new(subject.names.clone())?.subject_alt_names;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![subject.purpose.clone()];
        params.use_authority_key_identifier_extension = true;
        let pem = KeyPairPem { certificate: authority.sign(&params, &key)?, key: key.serialize_pem() };
        Leaf::write(dir, subject.file, pem)
    }

    /// Fails too if the key is not the certificate's: a crash between the two writes leaves such a pair.
    fn parse(pem: KeyPairPem) -> Result<Self> {
        let der = CertificateDer::from_pem_slice(pem.certificate.as_bytes()).context("bad certificate")?;
        let key = PrivateKeyDer::from_pem_slice(pem.key.as_bytes()).context("bad private key")?;
        let renewal_due = {
            let (_, certificate) = x509_parser::parse_x509_certificate(&der)?;
            renewal_due(&certificate)
        };
        let provider = rustls::crypto::ring::default_provider();
        let certified = Arc::new(CertifiedKey::from_der(vec![der], key, &provider)?);
        Ok(Leaf { pem, certified, renewal_due })
    }

    /// Whether it is the authority's and names all that it must.
    fn fits(&self, authority: &Authority, subject: &Subject) -> bool {
        let check = || -> Option<bool> {
            let (_, certificate) = x509_parser::parse_x509_certificate(self.certified.end_entity_cert().ok()?).ok()?;
            let (_, ca) = x509_parser::parse_x509_certificate(authority.der()).ok()?;
            Some(certificate.verify_signature(Some(ca.public_key())).is_ok())
        };
        check().unwrap_or(false) && self.names_all(&subject.common_name, &subject.names)
    }

    /// Whether it is in that name, and carries all the alternative names.
    pub fn names_all(&self, common_name: &str, names: &[String]) -> bool {
        let check = || -> Option<bool> {
            let (_, certificate) = x509_parser::parse_x509_certificate(self.certified.end_entity_cert().ok()?).ok()?;
            let found = certificate.subject().iter_common_name().next()?.as_str().ok()?;
            let carried = alternative_names(&certificate);
            Some(found == common_name && names.iter().all(|name| carried.contains(name)))
        };
        check().unwrap_or(false)
    }
}

fn renewal_due(certificate: &X509Certificate<'_>) -> SystemTime {
    let seconds = |time: x509_parser::time::ASN1Time| u64::try_from(time.timestamp()).unwrap_or(0);
    let (from, to) = (seconds(certificate.validity().not_before), seconds(certificate.validity().not_after));
    SystemTime::UNIX_EPOCH + Duration::from_secs(to - to.saturating_sub(from) / 3)
}

fn alternative_names(certificate: &X509Certificate<'_>) -> Vec<String> {
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
