//! Authentication: who sends a request? Client certificates, service account tokens, fixed tokens, or nobody in particular.
//!
//! Callers in the same process come with their identity and never get here. Knows nothing of permissions, except that acting
//! as somebody else (`impersonation`) needs them.

mod impersonation;
mod jwt;
mod keys;
pub mod reviews;
mod service_account;
mod signer;
mod x509;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use apimachinery::status::{Result, StatusError};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

pub use impersonation::impersonate;
pub use jwt::TokenError;
pub use keys::{KeyError, SigningKey, VerifyingKey};
pub use signer::TokenSigner;

use crate::request::UserInfo;
use crate::view::View;
use jwt::Claims;

pub const ANONYMOUS: &str = "system:anonymous";
pub const AUTHENTICATED: &str = "system:authenticated";
pub const UNAUTHENTICATED: &str = "system:unauthenticated";

/// Tokens whose signature need not be computed again; more than this many are forgotten at once.
const VERIFIED_MAX: usize = 4096;

/// What a request on the network brings along.
pub struct Credentials<'a> {
    pub peer: Option<&'a Peer>,
    pub bearer: Option<&'a str>,
    /// Seconds since the epoch.
    pub now: i64,
}

/// The certificate of a client's connection, already verified against the client CA. It is read once, at the first request.
pub struct Peer {
    certificate: CertificateDer<'static>,
    identity: OnceLock<std::result::Result<x509::Identity, x509::CertificateError>>,
}

impl Peer {
    /// `chain` starts with the client's own certificate.
    pub fn new(chain: &[CertificateDer<'static>]) -> Option<Self> {
        chain.first().map(|certificate| Peer { certificate: certificate.clone(), identity: OnceLock::new() })
    }

    /// The user while the certificate is valid, which a connection may outlive; none without a common name.
    fn user(&self, now: i64) -> std::result::Result<Option<Arc<UserInfo>>, x509::CertificateError> {
        let identity = self.identity.get_or_init(|| {
            let mut identity = x509::identity_of(&self.certificate)?;
            identity.user = identity.user.map(|user| Arc::new(authenticated(Arc::unwrap_or_clone(user))));
            Ok(identity)
        });
        match identity {
            Ok(identity) if identity.valid.contains(&now) => Ok(identity.user.clone()),
            Ok(_) => Err(x509::CertificateError::Expired),
            Err(error) => Err(error.clone()),
        }
    }
}

type Fingerprint = [u8; 32];

pub struct Authenticator {
    view: View,
    signer: Arc<TokenSigner>,
    fixed: HashMap<Fingerprint, UserInfo>,
    verified: Mutex<HashMap<Fingerprint, Arc<Claims>>>,
}

impl Authenticator {
    /// `fixed` are bearer tokens that stand for a user for as long as the server runs.
    pub fn new(view: View, signer: Arc<TokenSigner>, fixed: impl IntoIterator<Item = (String, UserInfo)>) -> Self {
        let fixed = fixed.into_iter().map(|(token, user)| (fingerprint(&token), user)).collect();
        Authenticator { view, signer, fixed, verified: Mutex::default() }
    }

    /// The user, with `system:authenticated` among the groups; `system:anonymous` without credentials; 401 if those are bad.
    pub fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Arc<UserInfo>> {
        if let Some(peer) = credentials.peer {
            match peer.user(credentials.now) {
                Ok(Some(user)) => return Ok(user),
                Ok(None) => {}
                Err(error) => {
                    tracing::debug!(%error, "client certificate refused");
                    return Err(StatusError::unauthorized());
                }
            }
        }
        let Some(token) = credentials.bearer else {
            return Ok(Arc::new(UserInfo::new(ANONYMOUS, &[UNAUTHENTICATED])));
        };
        match self.check_token(token, self.signer.audiences(), credentials.now) {
            Ok((user, _)) => Ok(Arc::new(authenticated(user))),
            Err(error) => {
                tracing::debug!(%error, "bearer token refused");
                Err(StatusError::unauthorized())
            }
        }
    }

    pub fn signer(&self) -> &TokenSigner {
        &self.signer
    }

    /// The user of a bearer token, and for which of `audiences` it is good.
    fn check_token(&self, token: &str, audiences: &[String], now: i64) -> Result<(UserInfo, Vec<String>), TokenError> {
        let fingerprint = fingerprint(token);
        if let Some(user) = self.fixed.get(&fingerprint) {
            return Ok((user.clone(), audiences.to_vec()));
        }
        let known = self.verified.lock().get(&fingerprint).cloned();
        let claims = match known {
            Some(claims) => claims,
            None => {
                let claims = Arc::new(self.signer.verify(token)?);
                let mut verified = self.verified.lock();
                if verified.len() >= VERIFIED_MAX {
                    verified.clear();
                }
                verified.insert(fingerprint, claims.clone());
                claims
            }
        };
        claims.check_times(now)?;
        let audiences = claims.common_audiences(audiences)?;
        Ok((service_account::user_of(&claims, &self.view, now)?, audiences))
    }

    /// `/openid/v1/jwks`
    pub fn jwks(&self) -> Value {
        self.signer.jwks()
    }

    /// `/.well-known/openid-configuration`
    pub fn openid_configuration(&self) -> Value {
        self.signer.openid_configuration()
    }
}

fn fingerprint(token: &str) -> Fingerprint {
    Sha256::digest(token).into()
}

/// Adds `system:authenticated` (upstream's `AuthenticatedGroupAdder`).
pub fn authenticated(mut user: UserInfo) -> UserInfo {
    if !user.in_group(AUTHENTICATED) && !user.in_group(UNAUTHENTICATED) {
        user.groups.push(AUTHENTICATED.to_owned());
    }
    user
}

#[cfg(test)]
mod tests;
