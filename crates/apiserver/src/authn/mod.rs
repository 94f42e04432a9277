//! Authentication: who sends a request? Client certificates, service account tokens, fixed tokens, or nobody in particular.
//!
//! Callers in the same process come with their identity and never get here. Knows nothing of permissions, except that acting
//! as somebody else (`impersonation`) needs them.

mod bearer;
mod bootstrap_token;
mod der;
mod impersonation;
mod jws;
mod jwt;
mod keys;
mod legacy;
mod notes;
pub mod reviews;
mod service_account;
mod signer;
pub mod token_file;
mod x509;

use std::collections::HashMap;
use std::sync::{Arc, OnceLock};

use apimachinery::Value;
use apimachinery::status::{Result, StatusError};
use parking_lot::Mutex;
use rustls::pki_types::CertificateDer;
use sha2::{Digest as _, Sha256};

pub use bearer::bearer_token;
pub use impersonation::impersonate;
pub use keys::{KeyError, SigningKey, VerifyingKey};
pub use signer::TokenSigner;

use crate::request::UserInfo;
use crate::server::ApiServer;
use crate::view::View;
use jwt::{Claims, TokenError};

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

/// Of a token whose signature was checked.
enum Verified {
    Bound(Box<Claims>),
    Legacy(legacy::Claims),
}

/// Whose a token is, and for which of the audiences that were asked for it is good.
pub(crate) struct Checked {
    pub user: UserInfo,
    pub audiences: Vec<String>,
}

pub struct Authenticator {
    view: View,
    signer: Arc<TokenSigner>,
    fixed: HashMap<Fingerprint, UserInfo>,
    verified: Mutex<HashMap<Fingerprint, Arc<Verified>>>,
    tracker: Arc<legacy::Tracker>,
    bootstrap_tokens: bool,
}

impl Authenticator {
    /// `fixed` are bearer tokens that stand for a user for as long as the server runs.
    pub fn new(view: View, signer: Arc<TokenSigner>, fixed: impl IntoIterator<Item = (String, UserInfo)>) -> Self {
        let fixed = fixed.into_iter().map(|(token, user)| (fingerprint(&token), user)).collect();
        let (verified, tracker) = (Mutex::default(), Arc::default());
        Authenticator { view, signer, fixed, verified, tracker, bootstrap_tokens: false }
    }

    /// Takes Secrets of type `bootstrap.kubernetes.io/token` as credentials (`--enable-bootstrap-token-auth`).
    #[must_use]
    pub fn with_bootstrap_tokens(mut self, enabled: bool) -> Self {
        self.bootstrap_tokens = enabled;
        self
    }

    /// The user, with `system:authenticated` among the groups; `system:anonymous` without credentials; 401 if those are bad.
    pub fn authenticate(&self, credentials: &Credentials<'_>) -> Result<Arc<UserInfo>> {
        let mut refused = None;
        if let Some(peer) = credentials.peer {
            match peer.user(credentials.now) {
                Ok(Some(user)) => return Ok(user),
                Ok(None) => {}
                Err(error) => refused = Some(error.to_string()),
            }
        }
        if let Some(token) = credentials.bearer {
            match self.check_token(token, None, credentials.now) {
                Ok(checked) => return Ok(Arc::new(authenticated(checked.user))),
                Err(error) => refused = Some(error),
            }
        }
        if let Some(error) = refused {
            tracing::debug!(%error, "credentials refused");
            return Err(StatusError::unauthorized());
        }
        Ok(Arc::new(UserInfo::new(ANONYMOUS, &[UNAUTHENTICATED])))
    }

    pub fn signer(&self) -> &TokenSigner {
        &self.signer
    }

    /// The user of a bearer token; `audiences` are whom it must be good for, if not for the API server. The error is upstream's
    /// words, as token reviews have them.
    pub(crate) fn check_token(&self, token: &str, audiences: Option<&[String]>, now: i64) -> Result<Checked, String> {
        let wanted = audiences.unwrap_or(self.signer.audiences());
        let fingerprint = fingerprint(token);
        if let Some(user) = self.fixed.get(&fingerprint)
            && let Some(checked) = self.for_the_server(user.clone(), wanted)
        {
            return Ok(checked);
        }
        let mut reasons = vec!["invalid bearer token".to_owned()];
        match self.service_account(token, fingerprint, wanted, now) {
            Ok(Some(checked)) => return Ok(checked),
            Ok(None) => {}
            Err(error) => reasons.push(error.to_string()),
        }
        if self.bootstrap_tokens
            && let Some(user) = bootstrap_token::user_of(&self.view, token, now)
            && let Some(checked) = self.for_the_server(user, wanted)
        {
            return Ok(checked);
        }
        reasons.dedup();
        Err(match reasons.as_slice() {
            [one] => one.clone(),
            several => format!("[{}]", several.join(", ")),
        })
    }

    /// What credentials come to that know no audience: they are good for the API server.
    fn for_the_server(&self, user: UserInfo, wanted: &[String]) -> Option<Checked> {
        let audiences: Vec<String> = wanted.iter().filter(|a| self.signer.audiences().contains(a)).cloned().collect();
        (!audiences.is_empty()).then_some(Checked { user, audiences })
    }

    /// None if the token is of no issuer of ours.
    fn service_account(
        &self,
        token: &str,
        fingerprint: Fingerprint,
        wanted: &[String],
        now: i64,
    ) -> Result<Option<Checked>, TokenError> {
        let known = self.verified.lock().get(&fingerprint).cloned();
        let verified = match known {
            Some(verified) => verified,
            None => match self.verify(token)? {
                Some(verified) => self.remember(fingerprint, verified),
                None => return Ok(None),
            },
        };
        let own = self.signer.audiences();
        let found = match &*verified {
            Verified::Bound(claims) if !claims.aud.is_empty() => claims.aud.as_slice(),
            _ => own,
        };
        let audiences: Vec<String> = found.iter().filter(|a| wanted.contains(a)).cloned().collect();
        if audiences.is_empty() {
            return Err(TokenError::Audience { found: found.to_vec(), wanted: wanted.to_vec() });
        }
        let user = match &*verified {
            Verified::Bound(claims) => {
                claims.check_times(now)?;
                service_account::user_of(claims, &self.view, now)?
            }
            Verified::Legacy(claims) => claims.user(token, &self.view, &self.tracker, now)?,
        };
        Ok(Some(Checked { user, audiences }))
    }

    fn verify(&self, token: &str) -> Result<Option<Verified>, TokenError> {
        let Some(issuer) = jws::claimed_issuer(token) else { return Ok(None) };
        if issuer == legacy::ISSUER {
            return self.signer.verify(token).map(|claims| Some(Verified::Legacy(claims)));
        }
        if !self.signer.is_issuer(&issuer) {
            return Ok(None);
        }
        self.signer.verify(token).map(|claims| Some(Verified::Bound(Box::new(claims))))
    }

    fn remember(&self, fingerprint: Fingerprint, verified: Verified) -> Arc<Verified> {
        let verified = Arc::new(verified);
        let mut all = self.verified.lock();
        if all.len() >= VERIFIED_MAX {
            all.clear();
        }
        all.insert(fingerprint, verified.clone());
        verified
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

/// By this tokens are compared and remembered: how long a comparison takes tells nothing of them.
fn fingerprint(token: impl AsRef<[u8]>) -> Fingerprint {
    Sha256::digest(token).into()
}

/// Starts what the server's credentials need: marks Secrets with the day on which their tokens were used.
pub(crate) fn start(server: &ApiServer) {
    let tracker = server.authenticator.tracker.clone();
    server.background.spawn(legacy::keep_marked(server.clone(), tracker));
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
