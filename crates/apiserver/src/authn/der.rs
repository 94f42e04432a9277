//! The little of DER that keys need: writing SubjectPublicKeyInfo, and keys out of PEM files.

use rustls::pki_types::pem::{PemObject as _, SectionKind};
use x509_parser::prelude::FromDer as _;
use x509_parser::public_key::PublicKey;
use x509_parser::x509::SubjectPublicKeyInfo;

use super::keys::{KeyError, SigningKey, VerifyingKey};

/// Object identifiers with their tags: `id-ecPublicKey`, the curves, `rsaEncryption`.
const EC_PUBLIC_KEY: [u8; 9] = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
pub const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
pub const P384: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
const RSA: [u8; 11] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01];
const NULL: [u8; 2] = [0x05, 0x00];

const INTEGER: u8 = 0x02;
const BIT_STRING: u8 = 0x03;
const OCTET_STRING: u8 = 0x04;
const SEQUENCE: u8 = 0x30;

/// Tag, length, and the parts one after the other.
fn tlv(tag: u8, parts: &[&[u8]]) -> Vec<u8> {
    let length: usize = parts.iter().map(|part| part.len()).sum();
    let mut out = vec![tag];
    match u8::try_from(length) {
        Ok(short) if short < 0x80 => out.push(short),
        _ => {
            let bytes = length.to_be_bytes();
            let bytes = &bytes[bytes.iter().take_while(|byte| **byte == 0).count()..];
            out.push(0x80 | bytes.len() as u8);
            out.extend_from_slice(bytes);
        }
    }
    parts.iter().for_each(|part| out.extend_from_slice(part));
    out
}

/// A number that is not negative, whatever its first bit.
fn integer(number: &[u8]) -> Vec<u8> {
    let zero: &[u8] = if number.first().is_none_or(|byte| byte & 0x80 != 0) { &[0] } else { &[] };
    tlv(INTEGER, &[zero, number])
}

pub fn ec_spki(curve: &[u8], point: &[u8]) -> Vec<u8> {
    tlv(SEQUENCE, &[&tlv(SEQUENCE, &[&EC_PUBLIC_KEY, curve]), &tlv(BIT_STRING, &[&[0], point])])
}

pub fn rsa_spki(modulus: &[u8], exponent: &[u8]) -> Vec<u8> {
    let key = tlv(SEQUENCE, &[&integer(modulus), &integer(exponent)]);
    tlv(SEQUENCE, &[&tlv(SEQUENCE, &[&RSA, &NULL]), &tlv(BIT_STRING, &[&[0], &key])])
}

/// An `EC PRIVATE KEY` as PKCS#8, for each curve that it may be on: only the right one is taken.
fn ec_as_pkcs8(sec1: &[u8]) -> [Vec<u8>; 2] {
    [&P256[..], &P384[..]].map(|curve| {
        let algorithm = tlv(SEQUENCE, &[&EC_PUBLIC_KEY, curve]);
        tlv(SEQUENCE, &[&[INTEGER, 1, 0], &algorithm, &tlv(OCTET_STRING, &[sec1])])
    })
}

impl SigningKey {
    /// The first private key of a PEM file: `PRIVATE KEY`, `RSA PRIVATE KEY` or `EC PRIVATE KEY`.
    pub fn from_pem(pem: &[u8]) -> Result<Self, KeyError> {
        let sections = <(SectionKind, Vec<u8>)>::pem_slice_iter(pem).filter_map(Result::ok);
        let mut keys = sections.filter_map(|(kind, der)| private_key(kind, &der));
        keys.next().unwrap_or_else(|| Err(KeyError::Rejected("there is no private key in the file".to_owned())))
    }
}

fn private_key(kind: SectionKind, der: &[u8]) -> Option<Result<SigningKey, KeyError>> {
    match kind {
        SectionKind::PrivateKey => Some(SigningKey::from_pkcs8(der)),
        SectionKind::RsaPrivateKey => Some(SigningKey::from_rsa_der(der)),
        SectionKind::EcPrivateKey => {
            let mut tries = ec_as_pkcs8(der).into_iter().map(|pkcs8| SigningKey::from_pkcs8(&pkcs8));
            let first = tries.next()?;
            Some(if first.is_ok() { first } else { tries.next()? })
        }
        _ => None,
    }
}

impl VerifyingKey {
    /// All keys of a PEM file: public keys, the public halves of private ones, and those of certificates, as upstream's
    /// `keyutil.ParsePublicKeysPEM`.
    pub fn all_from_pem(pem: &[u8]) -> Result<Vec<Self>, KeyError> {
        let mut keys = Vec::new();
        for (kind, der) in <(SectionKind, Vec<u8>)>::pem_slice_iter(pem).filter_map(Result::ok) {
            match kind {
                SectionKind::PublicKey => keys.push(public_key(&der)?),
                SectionKind::Certificate => {
                    let parsed = x509_parser::parse_x509_certificate(&der).map_err(|_| KeyError::NotPublic)?.1;
                    keys.push(public_key(parsed.public_key().raw)?);
                }
                kind => keys.extend(private_key(kind, &der).transpose()?.map(|key| key.public().clone())),
            }
        }
        if keys.is_empty() { Err(KeyError::NoKey) } else { Ok(keys) }
    }
}

fn public_key(spki: &[u8]) -> Result<VerifyingKey, KeyError> {
    let (_, parsed) = SubjectPublicKeyInfo::from_der(spki).map_err(|_| KeyError::NotPublic)?;
    match parsed.parsed() {
        Ok(PublicKey::RSA(key)) => Ok(VerifyingKey::from_rsa(key.modulus, key.exponent)),
        Ok(PublicKey::EC(point)) => VerifyingKey::from_point(point.data()),
        _ => Err(KeyError::NotPublic),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use base64::Engine as _;
    use base64::engine::general_purpose::STANDARD;
    use ring::signature::{EcdsaKeyPair, KeyPair as _};

    fn pem(label: &str, der: &[u8]) -> Vec<u8> {
        format!("-----BEGIN {label}-----\n{}\n-----END {label}-----\n", STANDARD.encode(der)).into_bytes()
    }

    #[test]
    fn keys_are_read_from_every_form_and_keep_their_name() {
        let pkcs8 = SigningKey::generate().unwrap();
        let key = SigningKey::from_pkcs8(&pkcs8).unwrap();
        let pair = EcdsaKeyPair::from_pkcs8(
            &ring::signature::ECDSA_P256_SHA256_FIXED_SIGNING,
            &pkcs8,
            &ring::rand::SystemRandom::new(),
        )
        .unwrap();
        let spki = ec_spki(&P256, pair.public_key().as_ref());
        // What PKCS#8 wraps is the older form.
        let sec1 = &pkcs8[pkcs8.windows(2).position(|w| w == [OCTET_STRING, 0x6d]).unwrap() + 2..];
        for (label, der) in [("PRIVATE KEY", &pkcs8[..]), ("PUBLIC KEY", &spki[..]), ("EC PRIVATE KEY", sec1)] {
            let keys = VerifyingKey::all_from_pem(&pem(label, der)).unwrap();
            assert_eq!(keys, [key.public().clone()], "{label}");
        }
        assert!(matches!(VerifyingKey::all_from_pem(b"nothing"), Err(KeyError::NoKey)));
        assert_eq!(SigningKey::from_pem(&pem("EC PRIVATE KEY", sec1)).unwrap().public(), key.public());
        assert!(SigningKey::from_pem(&pem("PUBLIC KEY", &spki)).is_err());
    }

    #[test]
    fn long_contents_have_long_lengths() {
        assert_eq!(tlv(SEQUENCE, &[&[7; 3]])[..2], [SEQUENCE, 3]);
        assert_eq!(tlv(SEQUENCE, &[&[7; 200]])[..3], [SEQUENCE, 0x81, 200]);
        assert_eq!(tlv(SEQUENCE, &[&[7; 300]])[..4], [SEQUENCE, 0x82, 1, 44]);
        assert_eq!(integer(&[0x80]), [INTEGER, 2, 0, 0x80]);
        assert_eq!(integer(&[]), [INTEGER, 1, 0]);
    }
}
