//! Service account tokens as text: compact JWS, claims as upstream's.
//!
//! Checks signature and times. Whether what a token speaks of still exists is `service_account`'s question.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::de::DeserializeOwned;
use serde::{Deserialize, Deserializer, Serialize};
use serde_json::json;

use super::jws::Jws;
use super::keys::{KeyError, SigningKey, VerifyingKey};

/// Clocks may differ by this much (`jwt.DefaultLeeway`).
pub const LEEWAY_SECONDS: i64 = 60;

/// Why a token is refused, in upstream's words. Callers are told no more than 401; the reason goes to the log and into token
/// reviews.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("service account token claims could not be validated due to unexpected private claim")]
    Malformed,
    #[error("invalid signature, no keys found")]
    UnknownKey,
    #[error("go-jose/go-jose: error in cryptographic primitive")]
    Signature,
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYet,
    #[error("token audiences {found:?} is invalid for the target audiences {wanted:?}")]
    Audience { found: Vec<String>, wanted: Vec<String> },
    /// What the token is bound to is gone, is another one, or is not as the token says.
    #[error("{0}")]
    Refused(String),
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    /// None means the API server's own.
    #[serde(default, deserialize_with = "one_or_many", skip_serializing_if = "Vec::is_empty")]
    pub aud: Vec<String>,
    /// Times are seconds since the epoch.
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
    #[serde(default)]
    pub jti: String,
    #[serde(rename = "kubernetes.io")]
    pub kubernetes: Kubernetes,
    pub nbf: i64,
    pub sub: String,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Kubernetes {
    pub namespace: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub pod: Option<Bound>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub secret: Option<Bound>,
    pub serviceaccount: Bound,
    /// Kubelets asked for an hour and were given more; use after this time is worth a warning.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub warnafter: Option<i64>,
}

/// One object, by name and UID.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Bound {
    pub name: String,
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub uid: String,
}

/// A list that may also be written as its only item.
pub(super) fn one_or_many<'de, D: Deserializer<'de>>(de: D) -> Result<Vec<String>, D::Error> {
    #[derive(Deserialize)]
    #[serde(untagged)]
    enum Form {
        One(String),
        Many(Vec<String>),
    }
    Ok(match Option::<Form>::deserialize(de)? {
        None => Vec::new(),
        Some(Form::One(item)) => vec![item],
        Some(Form::Many(items)) => items,
    })
}

pub fn sign(key: &SigningKey, claims: &impl Serialize) -> Result<String, KeyError> {
    let header = json!({"alg": key.public().algorithm(), "kid": key.public().id()});
    let claims = serde_json::to_vec(claims).map_err(|why| KeyError::Rejected(why.to_string()))?;
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let signature = key.sign(message.as_bytes())?;
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// The claims of a token signed by one of `keys`: by the one that it names, or by any if it names none. Times are not checked here.
pub fn verify<'a, T: DeserializeOwned>(
    token: &str,
    keys: impl IntoIterator<Item = &'a VerifyingKey>,
) -> Result<T, TokenError> {
    let jws = Jws::parse(token).ok_or(TokenError::Malformed)?;
    let id = jws.key_id();
    let mut fitting = keys.into_iter().filter(|key| id.is_empty() || key.id() == id).peekable();
    if fitting.peek().is_none() {
        return Err(TokenError::UnknownKey);
    }
    // By the key's own algorithm only, whatever the token says.
    if !fitting.any(|key| jws.algorithm() == key.algorithm() && jws.is_signed_by(key)) {
        return Err(TokenError::Signature);
    }
    jws.claims().map_err(|_| TokenError::Malformed)
}

impl Claims {
    /// Whether the token may be used at `now`, seconds since the epoch.
    pub fn check_times(&self, now: i64) -> Result<(), TokenError> {
        if now.saturating_sub(LEEWAY_SECONDS) > self.exp {
            return Err(TokenError::Expired);
        }
        let soon = now.saturating_add(LEEWAY_SECONDS);
        if soon < self.nbf || soon < self.iat {
            return Err(TokenError::NotYet);
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::super::jws::claimed_issuer;
    use super::*;

    fn claims() -> Claims {
        let bound = Bound { name: "bot".into(), uid: "u1".into() };
        let kubernetes = Kubernetes {
            namespace: "ns".into(),
            node: None,
            pod: None,
            secret: None,
            serviceaccount: bound,
            warnafter: None,
        };
        let (iss, sub) = ("https://issuer".into(), "system:serviceaccount:ns:bot".into());
        Claims { aud: vec!["api".into()], exp: 2000, iat: 1000, iss, jti: "id".into(), kubernetes, nbf: 1000, sub }
    }

    fn key() -> SigningKey {
        SigningKey::from_pkcs8(&SigningKey::generate().unwrap()).unwrap()
    }

    #[test]
    fn a_signed_token_verifies_and_a_touched_one_does_not() {
        let key = key();
        let token = sign(&key, &claims()).unwrap();
        let verify = |token: &str, key: &SigningKey| super::verify::<Claims>(token, [key.public()]);
        assert_eq!(verify(&token, &key), Ok(claims()));
        assert_eq!(claimed_issuer(&token).as_deref(), Some("https://issuer"));
        let parts: Vec<&str> = token.split('.').collect();
        let mut raised = claims();
        raised.sub = "system:serviceaccount:kube-system:admin".into();
        let raised = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&raised).unwrap());
        let none = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"none\",\"kid\":\"{}\"}}", key.public().id()));
        for (touched, expected) in [
            (format!("{}.{}.{}", parts[0], raised, parts[2]), TokenError::Signature),
            (format!("{}.{}.", parts[0], parts[1]), TokenError::Signature),
            (format!("{none}.{}.", parts[1]), TokenError::Signature),
            (format!("{}.{}", parts[0], parts[1]), TokenError::Malformed),
            (format!("{token}.x"), TokenError::Malformed),
            ("".to_owned(), TokenError::Malformed),
            ("a.b.c".to_owned(), TokenError::Malformed),
        ] {
            assert_eq!(verify(&touched, &key), Err(expected), "{touched}");
        }
        assert_eq!(verify(&token, &super::tests::key()), Err(TokenError::UnknownKey));
    }

    #[test]
    fn times_have_a_minute_of_leeway() {
        let claims = claims();
        for (now, expected) in [
            (939, Err(TokenError::NotYet)),
            (940, Ok(())),
            (2060, Ok(())),
            (2061, Err(TokenError::Expired)),
            (i64::MAX, Err(TokenError::Expired)),
            (i64::MIN, Err(TokenError::NotYet)),
        ] {
            assert_eq!(claims.check_times(now), expected, "{now}");
        }
    }

    proptest::proptest! {
        #[test]
        fn no_text_makes_verification_panic(text in ".{0,200}") {
            proptest::prop_assert!(verify::<Claims>(&text, []).is_err());
        }
    }
}
