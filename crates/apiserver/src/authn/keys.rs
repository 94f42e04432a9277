//! The cluster's key for service account tokens: ECDSA on P-256 with SHA-256 (`ES256`).

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    ECDSA_P256_SHA256_FIXED, ECDSA_P256_SHA256_FIXED_SIGNING, EcdsaKeyPair, KeyPair as _, UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

pub const ALGORITHM: &str = "ES256";

/// DER of a SubjectPublicKeyInfo for P-256, up to the point.
const SPKI_HEAD: [u8; 26] = [
    0x30, 0x59, 0x30, 0x13, 0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01, 0x06, 0x08, 0x2a, 0x86, 0x48, 0xce,
    0x3d, 0x03, 0x01, 0x07, 0x03, 0x42, 0x00,
];

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot make a key: the system gave no random numbers")]
    Random,
    #[error("not a PKCS#8 private key on the curve P-256: {0}")]
    Rejected(String),
    #[error("not an uncompressed point on the curve P-256")]
    NotAPoint,
}

/// The private half.
pub struct SigningKey {
    pair: EcdsaKeyPair,
    random: SystemRandom,
    public: VerifyingKey,
}

impl SigningKey {
    /// A new key as PKCS#8 DER, to be stored by the caller.
    pub fn generate() -> Result<Vec<u8>, KeyError> {
        let document = EcdsaKeyPair::generate_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        document.map(|document| document.as_ref().to_vec()).map_err(|_| KeyError::Random)
    }

    /// `pkcs8` is DER.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyError> {
        let random = SystemRandom::new();
        let pair = EcdsaKeyPair::from_pkcs8(&ECDSA_P256_SHA256_FIXED_SIGNING, pkcs8, &random)
            .map_err(|why| KeyError::Rejected(why.to_string()))?;
        let public = VerifyingKey::from_point(pair.public_key().as_ref())?;
        Ok(SigningKey { pair, random, public })
    }

    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        self.pair.sign(&self.random, message).map(|s| s.as_ref().to_vec()).map_err(|_| KeyError::Random)
    }
}

/// The public half.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    /// `04`, then both coordinates.
    point: [u8; 65],
    id: String,
}

impl VerifyingKey {
    pub fn from_point(point: &[u8]) -> Result<Self, KeyError> {
        let point: [u8; 65] = point.try_into().map_err(|_| KeyError::NotAPoint)?;
        if point[0] != 4 {
            return Err(KeyError::NotAPoint);
        }
        let digest = Sha256::new().chain_update(SPKI_HEAD).chain_update(point).finalize();
        Ok(VerifyingKey { point, id: URL_SAFE_NO_PAD.encode(digest) })
    }

    /// The `kid`: hash of the public key, as upstream makes it.
    pub fn id(&self) -> &str {
        &self.id
    }

    pub(super) fn verify(&self, message: &[u8], signature: &[u8]) -> bool {
        UnparsedPublicKey::new(&ECDSA_P256_SHA256_FIXED, &self.point).verify(message, signature).is_ok()
    }

    /// As a member of a JSON Web Key Set.
    pub fn jwk(&self) -> Value {
        let (x, y) = self.point[1..].split_at(32);
        let encode = |bytes| URL_SAFE_NO_PAD.encode(bytes);
        json!({"use": "sig", "kty": "EC", "kid": self.id, "crv": "P-256", "alg": ALGORITHM, "x": encode(x), "y": encode(y)})
    }
}
