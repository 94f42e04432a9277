//! The issuer of service account tokens: its names, its audiences and its keys.

use apimachinery::Value;
use serde::Serialize;
use serde_json::json;

use super::jwt::{self, TokenError};
use super::keys::{KeyError, SigningKey, VerifyingKey};

/// Pods that never read their token's file again get a year (`ExpirationExtensionSeconds`).
pub(super) const YEAR_SECONDS: i64 = 365 * 24 * 3600;

pub struct TokenSigner {
    /// The first one issues; tokens of the others are good.
    issuers: Vec<String>,
    audiences: Vec<String>,
    key: SigningKey,
    /// Keys of former days, or of other servers, whose tokens are good.
    others: Vec<VerifyingKey>,
    jwks_uri: Option<String>,
    max_seconds: Option<i64>,
    extends: bool,
}

impl TokenSigner {
    /// `issuer` is a URL, `https://kubernetes.default.svc.cluster.local` unless configured. It is also the audience of tokens that
    /// are asked for without one.
    pub fn new(issuer: impl Into<String>, key: SigningKey) -> Self {
        let issuer = issuer.into();
        TokenSigner {
            audiences: vec![issuer.clone()],
            issuers: vec![issuer],
            key,
            others: Vec::new(),
            jwks_uri: None,
            max_seconds: None,
            extends: true,
        }
    }

    /// The audiences that mean the API server, and that new tokens have unless others are asked for.
    #[must_use]
    pub fn with_audiences(mut self, audiences: Vec<String>) -> Self {
        self.audiences = audiences;
        self
    }

    /// Issuers of former days.
    #[must_use]
    pub fn with_former_issuers(mut self, issuers: impl IntoIterator<Item = String>) -> Self {
        self.issuers.extend(issuers);
        self
    }

    #[must_use]
    pub fn with_former_keys(mut self, keys: Vec<VerifyingKey>) -> Self {
        self.others = keys.into_iter().filter(|key| key != self.key.public()).collect();
        self
    }

    /// Where others find the keys, if not below the issuer's URL (`--service-account-jwks-uri`).
    #[must_use]
    pub fn with_jwks_uri(mut self, uri: String) -> Self {
        self.jwks_uri = Some(uri);
        self
    }

    /// The longest life of a token, in seconds (`--service-account-max-token-expiration`); longer wishes are cut short.
    #[must_use]
    pub fn with_max_seconds(mut self, seconds: i64) -> Self {
        self.max_seconds = Some(seconds);
        self
    }

    /// Whether tokens of old-style mounts live for a year (`--service-account-extend-token-expiration`).
    #[must_use]
    pub fn with_extension(mut self, extends: bool) -> Self {
        self.extends = extends;
        self
    }

    pub fn issuer(&self) -> &str {
        &self.issuers[0]
    }

    pub(super) fn is_issuer(&self, name: &str) -> bool {
        self.issuers.iter().any(|issuer| issuer == name)
    }

    pub fn audiences(&self) -> &[String] {
        &self.audiences
    }

    pub(super) fn max_seconds(&self) -> Option<i64> {
        self.max_seconds
    }

    /// How long an extended token lives, if there are any.
    pub(super) fn extended_seconds(&self) -> Option<i64> {
        self.extends.then(|| self.max_seconds.unwrap_or(YEAR_SECONDS).clamp(1, YEAR_SECONDS))
    }

    pub(super) fn sign(&self, claims: &impl Serialize) -> Result<String, KeyError> {
        jwt::sign(&self.key, claims)
    }

    /// The claims of a token that one of the keys signed. Issuer, times and audiences are the caller's to check.
    pub(super) fn verify<T: serde::de::DeserializeOwned>(&self, token: &str) -> Result<T, TokenError> {
        jwt::verify(token, self.keys())
    }

    /// A token of old, as the token controller puts them into Secrets: it lives as long as its Secret.
    pub fn legacy_token(&self, account: (&str, &str, &str), secret: &str) -> Result<String, KeyError> {
        self.sign(&super::legacy::Claims::of(account, secret))
    }

    pub(super) fn keys(&self) -> impl Iterator<Item = &VerifyingKey> {
        std::iter::once(self.key.public()).chain(&self.others)
    }

    pub(super) fn jwks(&self) -> Value {
        json!({"keys": self.keys().map(VerifyingKey::jwk).collect::<Vec<_>>()})
    }

    pub(super) fn openid_configuration(&self) -> Value {
        let issuer = self.issuer();
        let mut algorithms: Vec<&str> = self.keys().map(VerifyingKey::algorithm).collect();
        algorithms.sort_unstable();
        algorithms.dedup();
        let own = || format!("{}/openid/v1/jwks", issuer.trim_end_matches('/'));
        json!({
            "issuer": issuer,
            "jwks_uri": self.jwks_uri.clone().unwrap_or_else(own),
            "response_types_supported": ["id_token"],
            "subject_types_supported": ["public"],
            "id_token_signing_alg_values_supported": algorithms,
        })
    }
}
