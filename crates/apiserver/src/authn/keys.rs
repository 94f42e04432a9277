//! Keys of JSON Web Tokens: verification of what issuers sign, and the cluster's own key, which signs service account tokens.
//!
//! `ring` computes; here is which algorithm goes with which key, and how keys are named. Knows nothing of claims.

use base64::Engine as _;
use base64::engine::general_purpose::URL_SAFE_NO_PAD;
use ring::rand::SystemRandom;
use ring::signature::{
    self, EcdsaKeyPair, EcdsaSigningAlgorithm, EcdsaVerificationAlgorithm, KeyPair as _, RsaKeyPair, RsaParameters,
    RsaPublicKeyComponents, UnparsedPublicKey,
};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use super::der;

#[derive(Debug, thiserror::Error)]
pub enum KeyError {
    #[error("cannot make a key: the system gave no random numbers")]
    Random,
    #[error("not a private key that can sign: {0}")]
    Rejected(String),
    #[error("not a public key on the curves P-256 or P-384, nor of RSA")]
    NotPublic,
    #[error("data does not contain any valid RSA or ECDSA public keys")]
    NoKey,
}

/// The private half of the cluster's key.
pub struct SigningKey {
    pair: Pair,
    random: SystemRandom,
    public: VerifyingKey,
}

enum Pair {
    Ec(Box<EcdsaKeyPair>),
    Rsa(Box<RsaKeyPair>),
}

impl SigningKey {
    /// A new key on P-256 as PKCS#8 DER, to be stored by the caller.
    pub fn generate() -> Result<Vec<u8>, KeyError> {
        let document = EcdsaKeyPair::generate_pkcs8(&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &SystemRandom::new());
        document.map(|document| document.as_ref().to_vec()).map_err(|_| KeyError::Random)
    }

    /// `pkcs8` is DER of a key of RSA, or on P-256 or P-384.
    pub fn from_pkcs8(pkcs8: &[u8]) -> Result<Self, KeyError> {
        const CURVES: [&EcdsaSigningAlgorithm; 2] =
            [&signature::ECDSA_P256_SHA256_FIXED_SIGNING, &signature::ECDSA_P384_SHA384_FIXED_SIGNING];
        let random = SystemRandom::new();
        for curve in CURVES {
            if let Ok(pair) = EcdsaKeyPair::from_pkcs8(curve, pkcs8, &random) {
                let public = VerifyingKey::from_point(pair.public_key().as_ref())?;
                return Ok(SigningKey { pair: Pair::Ec(Box::new(pair)), random, public });
            }
        }
        let pair = RsaKeyPair::from_pkcs8(pkcs8).map_err(|why| KeyError::Rejected(why.to_string()))?;
        Self::from_rsa(pair)
    }

    /// `der` is that of an `RSA PRIVATE KEY`.
    pub(super) fn from_rsa_der(der: &[u8]) -> Result<Self, KeyError> {
        Self::from_rsa(RsaKeyPair::from_der(der).map_err(|why| KeyError::Rejected(why.to_string()))?)
    }

    fn from_rsa(pair: RsaKeyPair) -> Result<Self, KeyError> {
        let parts = ring::rsa::PublicKeyComponents::<Vec<u8>>::from(pair.public());
        let public = VerifyingKey::from_rsa(&parts.n, &parts.e);
        Ok(SigningKey { pair: Pair::Rsa(Box::new(pair)), random: SystemRandom::new(), public })
    }

    pub fn public(&self) -> &VerifyingKey {
        &self.public
    }

    pub(super) fn sign(&self, message: &[u8]) -> Result<Vec<u8>, KeyError> {
        match &self.pair {
            Pair::Ec(pair) => pair.sign(&self.random, message).map(|s| s.as_ref().to_vec()),
            Pair::Rsa(pair) => {
                let mut out = vec![0; pair.public().modulus_len()];
                pair.sign(&signature::RSA_PKCS1_SHA256, &self.random, message, &mut out).map(|()| out)
            }
        }
        .map_err(|_| KeyError::Random)
    }
}

/// A public key.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VerifyingKey {
    material: Material,
    id: String,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Material {
    /// `04`, then both coordinates.
    P256(Box<[u8]>),
    P384(Box<[u8]>),
    /// Big-endian, without leading zeros.
    Rsa {
        modulus: Box<[u8]>,
        exponent: Box<[u8]>,
    },
}

impl VerifyingKey {
    /// An uncompressed point on P-256 or P-384, told apart by length.
    pub fn from_point(point: &[u8]) -> Result<Self, KeyError> {
        let material = match (point.len(), point.first()) {
            (65, Some(4)) => Material::P256(point.into()),
            (97, Some(4)) => Material::P384(point.into()),
            _ => return Err(KeyError::NotPublic),
        };
        Ok(Self::named_by_hash(material))
    }

    pub fn from_rsa(modulus: &[u8], exponent: &[u8]) -> Self {
        let trim = |number: &[u8]| number.iter().copied().skip_while(|byte| *byte == 0).collect();
        Self::named_by_hash(Material::Rsa { modulus: trim(modulus), exponent: trim(exponent) })
    }

    fn named_by_hash(material: Material) -> Self {
        let id = URL_SAFE_NO_PAD.encode(Sha256::digest(material.spki()));
        VerifyingKey { material, id }
    }

    /// A member of a JSON Web Key Set; none if it is no key that signs by a method that is known here.
    pub fn from_jwk(jwk: &Value) -> Option<Self> {
        let text = |key: &str| jwk.get(key).and_then(Value::as_str).unwrap_or_default();
        let bytes = |key: &str| URL_SAFE_NO_PAD.decode(text(key).trim_end_matches('=')).ok().filter(|b| !b.is_empty());
        if !matches!(text("use"), "" | "sig") {
            return None;
        }
        let mut key = match text("kty") {
            "RSA" => VerifyingKey::from_rsa(&bytes("n")?, &bytes("e")?),
            "EC" => {
                let mut point = vec![4];
                point.extend(bytes("x")?);
                point.extend(bytes("y")?);
                VerifyingKey::from_point(&point).ok()?
            }
            _ => return None,
        };
        key.id = text("kid").to_owned();
        Some(key)
    }

    /// The `kid`: what its issuer calls it, or the hash of the public key, as upstream makes it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The algorithm that the cluster signs with if it has the other half.
    pub fn algorithm(&self) -> &'static str {
        match self.material {
            Material::P256(_) => "ES256",
            Material::P384(_) => "ES384",
            Material::Rsa { .. } => "RS256",
        }
    }

    /// Whether `signature` is this key's by `algorithm`, JOSE's name. False if that is no algorithm for such a key.
    pub fn verify(&self, algorithm: &str, message: &[u8], signature: &[u8]) -> bool {
        let curve = |point: &[u8], method: &'static EcdsaVerificationAlgorithm| {
            UnparsedPublicKey::new(method, point).verify(message, signature).is_ok()
        };
        match (&self.material, algorithm) {
            (Material::P256(point), "ES256") => curve(point, &signature::ECDSA_P256_SHA256_FIXED),
            (Material::P384(point), "ES384") => curve(point, &signature::ECDSA_P384_SHA384_FIXED),
            (Material::Rsa { modulus, exponent }, _) => rsa_method(algorithm).is_some_and(|method| {
                RsaPublicKeyComponents { n: modulus, e: exponent }.verify(method, message, signature).is_ok()
            }),
            _ => false,
        }
    }

    /// As a member of a JSON Web Key Set.
    pub fn jwk(&self) -> Value {
        let encode = |bytes: &[u8]| URL_SAFE_NO_PAD.encode(bytes);
        let (id, algorithm) = (&self.id, self.algorithm());
        match &self.material {
            Material::P256(point) | Material::P384(point) => {
                let (x, y) = point[1..].split_at((point.len() - 1) / 2);
                let curve = if x.len() == 32 { "P-256" } else { "P-384" };
                json!({"use": "sig", "kty": "EC", "kid": id, "crv": curve, "alg": algorithm, "x": encode(x), "y": encode(y)})
            }
            Material::Rsa { modulus, exponent } => {
                json!({"use": "sig", "kty": "RSA", "kid": id, "alg": algorithm, "n": encode(modulus), "e": encode(exponent)})
            }
        }
    }
}

impl Material {
    /// DER of the SubjectPublicKeyInfo, which upstream hashes into the key's name.
    fn spki(&self) -> Vec<u8> {
        match self {
            Material::P256(point) => der::ec_spki(&der::P256, point),
            Material::P384(point) => der::ec_spki(&der::P384, point),
            Material::Rsa { modulus, exponent } => der::rsa_spki(modulus, exponent),
        }
    }
}

fn rsa_method(algorithm: &str) -> Option<&'static RsaParameters> {
    Some(match algorithm {
        "RS256" => &signature::RSA_PKCS1_2048_8192_SHA256,
        "RS384" => &signature::RSA_PKCS1_2048_8192_SHA384,
        "RS512" => &signature::RSA_PKCS1_2048_8192_SHA512,
        "PS256" => &signature::RSA_PSS_2048_8192_SHA256,
        "PS384" => &signature::RSA_PSS_2048_8192_SHA384,
        "PS512" => &signature::RSA_PSS_2048_8192_SHA512,
        _ => return None,
    })
}
