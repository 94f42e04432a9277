//! Signs what certificate signing requests ask for: the subject, the key and the alternative names as they were sent, by the authority
//! that the signer's name stands for. What may be signed was decided before.
//!
//! Encoded by hand, since a subject may have several organisations (a user's groups) in an order that counts.

use std::sync::Arc;
use std::time::{Duration, SystemTime};

use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use controllers::csr::{CertificateSigner, SigningRequest};
use rcgen::SigningKey as _;
use x509_parser::certification_request::X509CertificationRequest;
use x509_parser::extensions::ParsedExtension;
use x509_parser::prelude::FromDer as _;

use super::{Authority, Pki};

const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);
/// Clocks differ: a certificate made now is good a little earlier.
const BACKDATE: Duration = Duration::from_secs(300);
const SUBJECT_ALTERNATIVE_NAME: &[u8] = &[0x55, 0x1d, 0x11];
const KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x0f];
const EXTENDED_KEY_USAGE: &[u8] = &[0x55, 0x1d, 0x25];
const BASIC_CONSTRAINTS: &[u8] = &[0x55, 0x1d, 0x13];
const AUTHORITY_KEY_IDENTIFIER: &[u8] = &[0x55, 0x1d, 0x23];
/// ecdsa-with-SHA256, as our authorities' keys are.
const ECDSA_SHA256: &[u8] = &[0x2a, 0x86, 0x48, 0xce, 0x3d, 0x04, 0x03, 0x02];

/// The cluster's authorities as the controllers see them.
pub struct ClusterSigner {
    servers: Arc<Authority>,
    clients: Arc<Authority>,
    reserved: Vec<String>,
}

impl ClusterSigner {
    pub fn new(pki: &Pki) -> Self {
        ClusterSigner {
            servers: pki.server_ca.clone(),
            clients: pki.client_ca.clone(),
            reserved: pki.api_names.clone(),
        }
    }
}

impl CertificateSigner for ClusterSigner {
    fn sign(&self, request: &SigningRequest<'_>) -> Result<String, String> {
        let authority = match request.signer_name {
            "kubernetes.io/kube-apiserver-client" | "kubernetes.io/kube-apiserver-client-kubelet" => &self.clients,
            "kubernetes.io/kubelet-serving" => &self.servers,
            other => return Err(format!("nobody signs for {other} here")),
        };
        let (_, parsed) = X509CertificationRequest::from_der(request.der).map_err(|error| error.to_string())?;
        parsed.verify_signature().map_err(|error| error.to_string())?;
        sign(authority, &parsed, request, SystemTime::now(), rand::random())
    }

    fn reserved_names(&self) -> Vec<String> {
        self.reserved.clone()
    }
}

fn sign(
    authority: &Authority,
    parsed: &X509CertificationRequest<'_>,
    request: &SigningRequest<'_>,
    now: SystemTime,
    serial: [u8; 16],
) -> Result<String, String> {
    let (_, issuer) = x509_parser::parse_x509_certificate(authority.der()).map_err(|error| error.to_string())?;
    let info = &parsed.certification_request_info;
    // No certificate outlives the authority that signed it.
    let authority_end = u64::try_from(issuer.validity().not_after.timestamp()).unwrap_or(0);
    let end = seconds(now + request.life.unwrap_or(LONGEST).min(LONGEST)).min(authority_end);
    let algorithm = tlv(0x30, &[tlv(0x06, &[ECDSA_SHA256.to_vec()])]);
    let body = tlv(
        0x30,
        &[
            tlv(0xa0, &[tlv(0x02, &[vec![2]])]),
            tlv(0x02, &[positive(&serial)]),
            algorithm.clone(),
            issuer.subject().as_raw().to_vec(),
            tlv(0x30, &[time(seconds(now - BACKDATE))?, time(end)?]),
            info.subject.as_raw().to_vec(),
            info.subject_pki.raw.to_vec(),
            tlv(0xa3, &[tlv(0x30, &extensions(&issuer, parsed, request.usages)?)]),
        ],
    );
    let signature = authority.signing_key().sign(&body).map_err(|error| error.to_string())?;
    let certificate = tlv(0x30, &[body, algorithm, tlv(0x03, &[vec![0], signature])]);
    Ok(pem(&certificate))
}

fn extensions(
    issuer: &x509_parser::certificate::X509Certificate<'_>,
    parsed: &X509CertificationRequest<'_>,
    usages: &[String],
) -> Result<Vec<Vec<u8>>, String> {
    let mut all = vec![extension(BASIC_CONSTRAINTS, true, tlv(0x30, &[]))];
    let bits = usages.iter().filter_map(|usage| key_usage(usage)).fold(0u16, |bits, bit| bits | 1 << (15 - bit));
    if bits != 0 {
        let bytes = bits.to_be_bytes();
        let used = if bytes[1] == 0 { &bytes[..1] } else { &bytes[..] };
        let unused = used.last().map_or(0, |last| last.trailing_zeros().min(7)) as u8;
        all.push(extension(KEY_USAGE, true, tlv(0x03, &[vec![unused], used.to_vec()])));
    }
    let purposes: Vec<Vec<u8>> =
        usages.iter().filter_map(|usage| purpose(usage)).map(|id| tlv(0x06, &[id.to_vec()])).collect();
    if !purposes.is_empty() {
        all.push(extension(EXTENDED_KEY_USAGE, false, tlv(0x30, &purposes)));
    }
    for found in issuer.extensions() {
        if let ParsedExtension::SubjectKeyIdentifier(id) = found.parsed_extension() {
            all.push(extension(AUTHORITY_KEY_IDENTIFIER, false, tlv(0x30, &[tlv(0x80, &[id.0.to_vec()])])));
        }
    }
    all.extend(alternative_names(parsed)?);
    Ok(all)
}

/// The names that the request asks for, as they were sent.
fn alternative_names(parsed: &X509CertificationRequest<'_>) -> Result<Option<Vec<u8>>, String> {
    let requested =
        parsed.certification_request_info.iter_attributes().find_map(|attribute| match attribute.parsed_attribute() {
            x509_parser::cri_attributes::ParsedCriAttribute::ExtensionRequest(request) => Some(request),
            _ => None,
        });
    let Some(requested) = requested else { return Ok(None) };
    let names = requested.extensions.iter().find(|extension| extension.oid.as_bytes() == SUBJECT_ALTERNATIVE_NAME);
    Ok(names.map(|names| extension(SUBJECT_ALTERNATIVE_NAME, names.critical, names.value.to_vec())))
}

fn extension(id: &[u8], critical: bool, value: Vec<u8>) -> Vec<u8> {
    let critical = if critical { tlv(0x01, &[vec![0xff]]) } else { Vec::new() };
    tlv(0x30, &[tlv(0x06, &[id.to_vec()]), critical, tlv(0x04, &[value])])
}

/// The bit of RFC 5280's KeyUsage, from the left.
fn key_usage(usage: &str) -> Option<u16> {
    const NAMES: [&str; 9] = [
        "digital signature",
        "content commitment",
        "key encipherment",
        "data encipherment",
        "key agreement",
        "cert sign",
        "crl sign",
        "encipher only",
        "decipher only",
    ];
    let usage = if usage == "signing" { "digital signature" } else { usage };
    NAMES.iter().position(|name| *name == usage).and_then(|bit| u16::try_from(bit).ok())
}

/// The object identifier of an extended key usage.
fn purpose(usage: &str) -> Option<&'static [u8]> {
    Some(match usage {
        "any" => &[0x55, 0x1d, 0x25, 0x00],
        "server auth" => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x01],
        "client auth" => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x02],
        "code signing" => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x03],
        "email protection" | "s/mime" => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x04],
        "ipsec end system" => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x05],
        "ipsec tunnel" => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x06],
        "ipsec user" => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x07],
        "timestamping" => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x08],
        "ocsp signing" => &[0x2b, 0x06, 0x01, 0x05, 0x05, 0x07, 0x03, 0x09],
        _ => return None,
    })
}

/// DER: tag, length, contents.
fn tlv(tag: u8, contents: &[Vec<u8>]) -> Vec<u8> {
    let len: usize = contents.iter().map(Vec::len).sum();
    let mut out = vec![tag];
    if len < 0x80 {
        out.push(len as u8);
    } else {
        let bytes = len.to_be_bytes();
        let significant = &bytes[bytes.iter().take_while(|b| **b == 0).count()..];
        out.push(0x80 | significant.len() as u8);
        out.extend(significant);
    }
    contents.iter().for_each(|part| out.extend(part));
    out
}

/// The shortest form of a number that is not negative and not zero.
fn positive(bytes: &[u8]) -> Vec<u8> {
    let mut bytes = bytes.to_vec();
    // The top bit is the sign; the next one keeps the number from being zero.
    bytes[0] = bytes[0] & 0x7f | 0x40;
    bytes
}

fn seconds(time: SystemTime) -> u64 {
    time.duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default().as_secs()
}

/// RFC 5280: two digits of the year up to 2049, four from then on.
fn time(seconds: u64) -> Result<Vec<u8>, String> {
    let at =
        i64::try_from(seconds).ok().and_then(|s| jiff::Timestamp::from_second(s).ok()).ok_or("time out of range")?;
    let at = at.to_zoned(jiff::tz::TimeZone::UTC);
    let rest = format!("{:02}{:02}{:02}{:02}{:02}Z", at.month(), at.day(), at.hour(), at.minute(), at.second());
    Ok(if at.year() < 2050 {
        tlv(0x17, &[format!("{:02}{rest}", at.year() % 100).into_bytes()])
    } else {
        tlv(0x18, &[format!("{:04}{rest}", at.year()).into_bytes()])
    })
}

fn pem(der: &[u8]) -> String {
    let text = STANDARD.encode(der);
    let mut out = String::from("-----BEGIN CERTIFICATE-----\n");
    let mut rest = text.as_str();
    while !rest.is_empty() {
        let (line, tail) = rest.split_at(rest.len().min(64));
        out.push_str(line);
        out.push('\n');
        rest = tail;
    }
    out.push_str("-----END CERTIFICATE-----\n");
    out
}

#[cfg(test)]
mod tests {
    use super::*;
    use rcgen::{CertificateParams, DistinguishedName, DnType, KeyPair};
    use x509_parser::prelude::*;

    fn signed(request: &str, usages: &[&str], life: Option<Duration>) -> (Vec<u8>, tempfile::TempDir) {
        let dir = tempfile::tempdir().unwrap();
        let authority = Arc::new(Authority::open(dir.path(), "ca", "test-ca").unwrap());
        let signer = ClusterSigner { servers: authority.clone(), clients: authority.clone(), reserved: Vec::new() };
        let (_, block) = parse_x509_pem(request.as_bytes()).unwrap();
        let usages: Vec<String> = usages.iter().map(|usage| (*usage).to_owned()).collect();
        let signer_name = "kubernetes.io/kube-apiserver-client";
        let text = signer.sign(&SigningRequest { signer_name, der: &block.contents, usages: &usages, life }).unwrap();
        let (_, certificate) = parse_x509_pem(text.as_bytes()).unwrap();
        let (_, ca) = parse_x509_certificate(authority.der()).unwrap();
        let (_, parsed) = parse_x509_certificate(&certificate.contents).unwrap();
        parsed.verify_signature(Some(ca.public_key())).unwrap();
        assert_eq!(parsed.issuer(), ca.subject());
        (certificate.contents, dir)
    }

    #[test]
    fn certificates_say_what_was_asked_for() {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(vec!["node.example".to_owned(), "10.0.0.7".to_owned()]).unwrap();
        params.distinguished_name = DistinguishedName::new();
        params.distinguished_name.push(DnType::OrganizationName, "dev");
        params.distinguished_name.push(DnType::CommonName, "jane");
        let request = params.serialize_request(&key).unwrap().pem().unwrap();
        let day = Duration::from_secs(86_400);
        let (der, _dir) = signed(&request, &["digital signature", "key encipherment", "client auth"], Some(day));
        let (rest, certificate) = parse_x509_certificate(&der).unwrap();
        assert!(rest.is_empty());
        assert_eq!(certificate.subject().to_string(), "O=dev, CN=jane");
        let lasts = certificate.validity().not_after.timestamp() - certificate.validity().not_before.timestamp();
        assert_eq!(lasts, 86_400 + 300);
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.digital_signature() && usage.key_encipherment() && !usage.key_cert_sign());
        let extended = certificate.extended_key_usage().unwrap().unwrap().value;
        assert!(extended.client_auth && !extended.server_auth);
        assert!(!certificate.basic_constraints().unwrap().unwrap().value.ca);
        let names = certificate.subject_alternative_name().unwrap().unwrap().value;
        assert_eq!(names.general_names.len(), 2);
        assert_eq!(certificate.public_key().raw, {
            let (_, block) = parse_x509_pem(request.as_bytes()).unwrap();
            let (_, parsed) = X509CertificationRequest::from_der(&block.contents).unwrap();
            parsed.certification_request_info.subject_pki.raw.to_vec()
        });
    }

    #[test]
    fn every_bit_of_key_usage_lands_where_it_belongs() {
        let key = KeyPair::generate().unwrap();
        let request = CertificateParams::new(vec![]).unwrap().serialize_request(&key).unwrap().pem().unwrap();
        let (der, _dir) = signed(&request, &["crl sign", "decipher only", "signing"], None);
        let (_, certificate) = parse_x509_certificate(&der).unwrap();
        let usage = certificate.key_usage().unwrap().unwrap().value;
        assert!(usage.crl_sign() && usage.decipher_only() && usage.digital_signature() && !usage.encipher_only());
        assert!(certificate.subject_alternative_name().unwrap().is_none());
    }
}
