//! From a client certificate to a user: common name → name, organisations → groups.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::ops::RangeInclusive;
use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};
use x509_parser::oid_registry::asn1_rs::oid;
use x509_parser::prelude::{FromDer as _, X509Certificate, X509Name};

use crate::request::UserInfo;

#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum CertificateError {
    #[error("the client certificate cannot be read")]
    Malformed,
    #[error("the client certificate is not valid at this time")]
    Expired,
}

/// What a certificate says that was verified against the client CA when its connection was made.
pub struct Identity {
    /// None without a common name.
    pub user: Option<Arc<UserInfo>>,
    /// Seconds since the epoch.
    pub valid: RangeInclusive<i64>,
}

pub fn identity_of(certificate: &CertificateDer<'_>) -> Result<Identity, CertificateError> {
    let (_, parsed) = X509Certificate::from_der(certificate).map_err(|_| CertificateError::Malformed)?;
    let validity = parsed.validity();
    let valid = validity.not_before.timestamp()..=validity.not_after.timestamp();
    let subject = parsed.subject();
    let name = subject.iter_common_name().last().and_then(|cn| cn.as_str().ok()).unwrap_or_default();
    if name.is_empty() {
        return Ok(Identity { user: None, valid });
    }
    let groups = subject.iter_organization().filter_map(|o| o.as_str().ok()).map(str::to_owned).collect();
    let mut id = "X509SHA256=".to_owned();
    for byte in Sha256::digest(certificate) {
        let _ = write!(id, "{byte:02x}");
    }
    let extra = BTreeMap::from([("authentication.kubernetes.io/credential-id".to_owned(), vec![id])]);
    let user = UserInfo { name: name.to_owned(), uid: uid(subject), groups, extra };
    Ok(Identity { user: Some(Arc::new(user)), valid })
}

/// The UID that a certificate may carry in an attribute of Kubernetes' own.
fn uid(subject: &X509Name<'_>) -> String {
    let attribute = subject.iter_by_oid(&oid!(1.3.6.1.4.1.57683.2)).next();
    attribute.and_then(|uid| uid.as_str().ok()).unwrap_or_default().to_owned()
}
