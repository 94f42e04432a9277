//! The issuer of service account tokens: its name, its audiences and its keys.

use apimachinery::Value;
use serde_json::json;

use super::jwt::{self, Claims, TokenError};
use super::keys::{ALGORITHM, KeyError, SigningKey, VerifyingKey};

pub struct TokenSigner {
    issuer: String,
    audiences: Vec<String>,
    key: SigningKey,
    /// Keys of former days whose tokens are still good.
    former: Vec<VerifyingKey>,
}

impl TokenSigner {
    /// `issuer` is a URL, `https://kubernetes.default.svc.cluster.local` unless configured. It is also the audience of tokens that
    /// are asked for without one.
    pub fn new(issuer: impl Into<String>, key: SigningKey) -> Self {
        let issuer = issuer.into();
        TokenSigner { audiences: vec![issuer.clone()], issuer, key, former: Vec::new() }
    }

    /// The audiences that mean the API server, and that new tokens have unless others are asked for.
    #[must_use]
    pub fn with_audiences(mut self, audiences: Vec<String>) -> Self {
        self.audiences = audiences;
        self
    }

    #[must_use]
    pub fn with_former_keys(mut self, keys: Vec<VerifyingKey>) -> Self {
        self.former = keys;
        self
    }

    pub fn issuer(&self) -> &str {
        &self.issuer
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub(super) fn sign(&self, claims: &Claims) -> Result<String, KeyError> {
        jwt::sign(&self.key, claims)
    }

    /// The claims of a token of this issuer. Times and audiences are the caller's to check.
    pub(super) fn verify(&self, token: &str) -> Result<Claims, TokenError> {
        if jwt::claimed_issuer(token).ok_or(TokenError::Malformed)? != self.issuer {
            return Err(TokenError::Issuer);
        }
        jwt::verify(token, self.keys())
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &VerifyingKey> {
        std::iter::once(self.key.public()).chain(&self.former)
    }

    pub(super) fn jwks(&self) -> Value {
        json!({"keys": self.keys().map(VerifyingKey::jwk).collect::<Vec<_>>()})
    }

    pub(super) fn openid_configuration(&self) -> Value {
        json!({
            "issuer": self.issuer,
            "jwks_uri": format!("{}/openid/v1/jwks", self.issuer.trim_end_matches('/')),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": [ALGORITHM],
        })
    }
}
