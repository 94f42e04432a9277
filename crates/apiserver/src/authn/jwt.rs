//! Service account tokens as text: compact JWS, claims as upstream's.
//!
//! Checks signature, issuer and times. Whether what a token speaks of still exists is `service_account`'s question.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::{Deserialize, Serialize};
use serde_json::json;

use super::keys::{ALGORITHM, KeyError, SigningKey, VerifyingKey};

/// Clocks may differ by this much (`jwt.DefaultLeeway`).
pub const LEEWAY_SECONDS: i64 = 60;

/// Why a token is refused. Callers are told no more than 401; the reason goes to the log and into token reviews.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TokenError {
    #[error("token is malformed")]
    Malformed,
    #[error("token is signed with an unknown key or algorithm")]
    UnknownKey,
    #[error("token has an invalid signature")]
    Signature,
    #[error("token was issued by another issuer")]
    Issuer,
    #[error("service account token has expired")]
    Expired,
    #[error("service account token is not valid yet")]
    NotYet,
    #[error("token audiences {found:?} is invalid for the target audiences {wanted:?}")]
    Audience { found: Vec<String>, wanted: Vec<String> },
    #[error("{kind} {name:?} that the token is bound to {problem}")]
    Bound { kind: &'static str, name: String, problem: &'static str },
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Claims {
    pub aud: Vec<String>,
    /// Times are seconds since the epoch.
    pub exp: i64,
    pub iat: i64,
    pub iss: String,
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

pub fn sign(key: &SigningKey, claims: &Claims) -> Result<String, KeyError> {
    let header = json!({"alg": ALGORITHM, "kid": key.public().id()});
    let claims = serde_json::to_vec(claims).expect("claims are plain data");
    let message = format!("{}.{}", URL_SAFE_NO_PAD.encode(header.to_string()), URL_SAFE_NO_PAD.encode(claims));
    let signature = key.sign(message.as_bytes())?;
    Ok(format!("{message}.{}", URL_SAFE_NO_PAD.encode(signature)))
}

/// The issuer that an unverified token names: tells whose token it is before any key is tried.
pub fn claimed_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        iss: String,
    }
    let payload = token.split('.').nth(1)?;
    serde_json::from_slice::<Issuer>(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok().map(|issuer| issuer.iss)
}

/// The claims of a token signed by one of `keys`. Times are not checked here.
pub fn verify<'a>(token: &str, keys: impl IntoIterator<Item = &'a VerifyingKey>) -> Result<Claims, TokenError> {
    #[derive(Deserialize)]
    struct Header {
        alg: String,
        #[serde(default)]
        kid: String,
    }
    let (message, signature) = token.rsplit_once('.').ok_or(TokenError::Malformed)?;
    let (header, payload) = message.split_once('.').ok_or(TokenError::Malformed)?;
    let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).map_err(|_| TokenError::Malformed);
    let header: Header = serde_json::from_slice(&decode(header)?).map_err(|_| TokenError::Malformed)?;
    if header.alg != ALGORITHM {
        return Err(TokenError::UnknownKey);
    }
    let key = keys.into_iter().find(|key| key.id() == header.kid).ok_or(TokenError::UnknownKey)?;
    if !key.verify(message.as_bytes(), &decode(signature)?) {
        return Err(TokenError::Signature);
    }
    serde_json::from_slice(&decode(payload)?).map_err(|_| TokenError::Malformed)
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

    /// The audiences that both the token and the asker name.
    pub fn common_audiences(&self, wanted: &[String]) -> Result<Vec<String>, TokenError> {
        let common: Vec<String> = self.aud.iter().filter(|a| wanted.contains(a)).cloned().collect();
        if common.is_empty() {
            return Err(TokenError::Audience { found: self.aud.clone(), wanted: wanted.to_vec() });
        }
        Ok(common)
    }
}

#[cfg(test)]
mod tests {
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
        assert_eq!(verify(&token, [key.public()]), Ok(claims()));
        assert_eq!(claimed_issuer(&token).as_deref(), Some("https://issuer"));
        let parts: Vec<&str> = token.split('.').collect();
        let mut raised = claims();
        raised.sub = "system:serviceaccount:kube-system:admin".into();
        let raised = URL_SAFE_NO_PAD.encode(serde_json::to_vec(&raised).unwrap());
        let none = URL_SAFE_NO_PAD.encode(format!("{{\"alg\":\"none\",\"kid\":\"{}\"}}", key.public().id()));
        for (touched, expected) in [
            (format!("{}.{}.{}", parts[0], raised, parts[2]), TokenError::Signature),
            (format!("{}.{}.", parts[0], parts[1]), TokenError::Signature),
            (format!("{none}.{}.", parts[1]), TokenError::UnknownKey),
            (format!("{}.{}", parts[0], parts[1]), TokenError::Malformed),
            (format!("{token}.x"), TokenError::Malformed),
            ("".to_owned(), TokenError::Malformed),
            ("a.b.c".to_owned(), TokenError::Malformed),
        ] {
            assert_eq!(verify(&touched, [key.public()]), Err(expected), "{touched}");
        }
        assert_eq!(verify(&token, [super::tests::key().public()]), Err(TokenError::UnknownKey));
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
            proptest::prop_assert!(verify(&text, []).is_err());
        }
    }
}
