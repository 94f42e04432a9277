//! Compact JSON Web Signatures: three parts, and who signed them. Whose claims these are is the callers' question.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use serde::Deserialize;
use serde::de::DeserializeOwned;

use super::keys::VerifyingKey;

#[derive(Debug, Deserialize)]
struct Header {
    alg: String,
    #[serde(default)]
    kid: String,
}

/// A token that was taken apart; nothing of it is believed yet.
pub struct Jws<'a> {
    header: Header,
    /// What is signed.
    message: &'a str,
    payload: Vec<u8>,
    signature: Vec<u8>,
}

impl<'a> Jws<'a> {
    /// None if this is no compact JWS.
    pub fn parse(token: &'a str) -> Option<Self> {
        let (message, signature) = token.rsplit_once('.')?;
        let (header, payload) = message.split_once('.')?;
        let decode = |part: &str| URL_SAFE_NO_PAD.decode(part).ok();
        Some(Jws {
            header: serde_json::from_slice(&decode(header)?).ok()?,
            message,
            payload: decode(payload)?,
            signature: decode(signature)?,
        })
    }

    pub fn algorithm(&self) -> &str {
        &self.header.alg
    }

    /// The name of the key, empty if the token names none.
    pub fn key_id(&self) -> &str {
        &self.header.kid
    }

    pub fn is_signed_by(&self, key: &VerifyingKey) -> bool {
        key.verify(&self.header.alg, self.message.as_bytes(), &self.signature)
    }

    /// The payload, believed or not.
    pub fn claims<T: DeserializeOwned>(&self) -> Result<T, serde_json::Error> {
        serde_json::from_slice(&self.payload)
    }
}

/// The issuer that an unverified token names: tells whose token it is before any key is tried. None if it is no JWT.
pub fn claimed_issuer(token: &str) -> Option<String> {
    #[derive(Deserialize)]
    struct Issuer {
        #[serde(default)]
        iss: String,
    }
    let mut parts = token.split('.');
    let (_, payload, _) = (parts.next()?, parts.next()?, parts.next()?);
    if parts.next().is_some() || token.trim_start().starts_with('{') {
        return None;
    }
    serde_json::from_slice::<Issuer>(&URL_SAFE_NO_PAD.decode(payload).ok()?).ok().map(|issuer| issuer.iss)
}
