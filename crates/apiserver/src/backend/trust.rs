//! Whom a backend's TLS must be vouched for by.

use std::sync::{Arc, OnceLock};

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::client::{ResolvesClientCert, WebPkiServerVerifier};
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, ServerName, UnixTime};
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme};

/// Who vouches for a server.
#[derive(Clone, Copy)]
pub enum Trust<'a> {
    /// Certificates in PEM: authorities, or the server's own.
    Bundle(&'a [u8]),
    /// The authorities that the host's administrator trusts.
    Host,
    /// Nobody (`insecureSkipTLSVerify`).
    Anyone,
}

/// Where distributions keep the authorities that their administrators trust.
const HOST_BUNDLES: [&str; 4] = [
    "/etc/ssl/certs/ca-certificates.crt",
    "/etc/pki/tls/certs/ca-bundle.crt",
    "/etc/ssl/ca-bundle.pem",
    "/etc/ssl/cert.pem",
];

fn host_bundle() -> &'static [u8] {
    static BUNDLE: OnceLock<Vec<u8>> = OnceLock::new();
    BUNDLE.get_or_init(|| HOST_BUNDLES.iter().find_map(|path| std::fs::read(path).ok()).unwrap_or_default())
}

/// The TLS configuration of a client that trusts so, and shows what `identity` has.
pub fn client_config(trust: Trust<'_>, identity: Option<Arc<dyn ResolvesClientCert>>) -> Result<ClientConfig, String> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let mut config = match trust {
        Trust::Anyone => serving::unverified(provider),
        Trust::Bundle(pem) => verified(pem, provider)?,
        Trust::Host => verified(host_bundle(), provider)?,
    };
    if let Some(identity) = identity {
        config.client_auth_cert_resolver = identity;
    }
    Ok(config)
}

fn verified(pem: &[u8], provider: Arc<rustls::crypto::CryptoProvider>) -> Result<ClientConfig, String> {
    let named: Vec<CertificateDer<'static>> = CertificateDer::pem_slice_iter(pem).filter_map(Result::ok).collect();
    let mut roots = RootCertStore::empty();
    // What cannot be an authority may still be the server's own certificate.
    roots.add_parsable_certificates(named.iter().cloned());
    let chain = if roots.is_empty() {
        None
    } else {
        let verifier = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider.clone());
        Some(verifier.build().map_err(|error| error.to_string())?)
    };
    let verifier = Arc::new(Verifier { chain, named, algorithms: provider.signature_verification_algorithms });
    let builder = ClientConfig::builder_with_provider(provider).with_safe_default_protocol_versions();
    let builder = builder.map_err(|error| error.to_string())?;
    Ok(builder.dangerous().with_custom_certificate_verifier(verifier).with_no_client_auth())
}

/// Verifies against authorities, and takes a server's certificate that is in the bundle itself, as Go does: self-signed ones are
/// common among webhooks. Name and validity count in both cases.
#[derive(Debug)]
struct Verifier {
    chain: Option<Arc<WebPkiServerVerifier>>,
    named: Vec<CertificateDer<'static>>,
    algorithms: rustls::crypto::WebPkiSupportedAlgorithms,
}

impl Verifier {
    fn is_named(&self, certificate: &CertificateDer<'_>, name: &ServerName<'_>, now: UnixTime) -> bool {
        let valid = || {
            let (_, parsed) = x509_parser::parse_x509_certificate(certificate).ok()?;
            let now = x509_parser::time::ASN1Time::from_timestamp(i64::try_from(now.as_secs()).ok()?).ok()?;
            let parsed_entity = rustls::server::ParsedCertificate::try_from(certificate).ok()?;
            rustls::client::verify_server_name(&parsed_entity, name).ok()?;
            Some(parsed.validity().is_valid_at(now))
        };
        self.named.iter().any(|known| known == certificate) && valid() == Some(true)
    }
}

impl ServerCertVerifier for Verifier {
    fn verify_server_cert(
        &self,
        certificate: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        name: &ServerName<'_>,
        ocsp: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let unknown = rustls::Error::InvalidCertificate(rustls::CertificateError::UnknownIssuer);
        let outcome = match &self.chain {
            Some(chain) => chain.verify_server_cert(certificate, intermediates, name, ocsp, now),
            None => Err(unknown),
        };
        outcome.or_else(|error| match self.is_named(certificate, name, now) {
            true => Ok(ServerCertVerified::assertion()),
            false => Err(error),
        })
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls12_signature(message, certificate, signature, &self.algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        rustls::crypto::verify_tls13_signature(message, certificate, signature, &self.algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.algorithms.supported_schemes()
    }
}
