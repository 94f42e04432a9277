//! What a server and the agents that join it have to agree on: the token, and the facts of the cluster.
//!
//! A token is `K10<SHA-256 of the server's authority, hex>::<secret>`, as k3s writes it: the digest tells the agent whom to believe, the
//! secret tells the server. A token without digest is the secret alone; its bearer believes whoever answers first.

use std::path::Path;

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};
use sha2::{Digest as _, Sha256};

use crate::config::Cluster;
use crate::files;

const FACTS_NAMESPACE: &str = "kube-system";
const FACTS_NAME: &str = "coxswain-cluster";
const FORMAT: &str = "K10";

/// The secret of this server's tokens: given, or made at the first start and kept.
pub fn secret(data_dir: &Path, given: Option<&str>) -> Result<String> {
    let path = data_dir.join("token");
    let secret = match (given, files::read_optional(&path)?) {
        (Some(token), _) => Token::parse(token)?.secret,
        (None, Some(kept)) => kept.trim().to_owned(),
        (None, None) => {
            let bytes: [u8; 24] = rand::random();
            let made: String = bytes.iter().map(|b| format!("{b:02x}")).collect();
            // Before anything is encrypted with it.
            files::write_private(&path, made.as_bytes())?;
            made
        }
    };
    Ok(secret)
}

/// Keeps the secret, now that it has proved right, and writes the whole token, as agents want it, beside it.
pub fn write_token(data_dir: &Path, secret: &str, authority_pem: &str) -> Result<()> {
    files::write_changed(&data_dir.join("token"), secret.as_bytes())?;
    let token = format!("{FORMAT}{}::{secret}\n", digest(authority_pem));
    files::write_changed(&data_dir.join("node-token"), token.as_bytes())
}

/// A token as an agent is given it.
#[derive(Clone, PartialEq, Eq)]
pub struct Token {
    digest: Option<String>,
    pub secret: String,
}

impl Token {
    pub fn parse(text: &str) -> Result<Self> {
        let (digest, secret) = match text.trim().strip_prefix(FORMAT).and_then(|rest| rest.split_once("::")) {
            Some((digest, secret)) => (Some(digest.to_owned()), secret),
            None => (None, text.trim()),
        };
        let visible = |text: &str| text.bytes().all(|b| b.is_ascii_graphic());
        if secret.is_empty() || !visible(secret) {
            bail!("the token must be of visible characters without spaces");
        }
        Ok(Token { digest, secret: secret.to_owned() })
    }

    /// Whether the authority that the server showed is the one that the token means. None if the token does not say.
    pub fn believes(&self, authority_pem: &str) -> Option<bool> {
        self.digest.as_ref().map(|expected| *expected == digest(authority_pem))
    }
}

fn digest(pem: &str) -> String {
    Sha256::digest(pem.trim()).iter().map(|b| format!("{b:02x}")).collect()
}

/// What agents need to know of the cluster, as an object that nodes may read.
pub fn facts(cluster: &Cluster, client_authority_pem: &str) -> Value {
    json!({
        "apiVersion": "v1", "kind": "ConfigMap",
        "metadata": {"name": FACTS_NAME, "namespace": FACTS_NAMESPACE},
        "data": {
            "cluster.json": serde_json::to_string(cluster).unwrap_or_default(),
            "client-ca.crt": client_authority_pem,
        },
    })
}

/// Reads [`facts`]: the cluster, and PEM of the authority that signs clients.
pub async fn read_facts(client: &kube::Client) -> Result<(Cluster, String)> {
    use k8s_openapi::api::core::v1::ConfigMap;
    let api: kube::Api<ConfigMap> = kube::Api::namespaced(client.clone(), FACTS_NAMESPACE);
    let mut data = api.get(FACTS_NAME).await?.data.unwrap_or_default();
    let mut take = |key: &str| data.remove(key).with_context(|| format!("ConfigMap {FACTS_NAME} lacks {key}"));
    let cluster = serde_json::from_str(&take("cluster.json")?).context("cluster.json")?;
    Ok((cluster, take("client-ca.crt")?))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn tokens_name_the_authority() {
        let dir = tempfile::tempdir().unwrap();
        let made = secret(dir.path(), None).unwrap();
        assert_eq!(secret(dir.path(), None).unwrap(), made, "kept");
        write_token(dir.path(), &made, "PEM\n").unwrap();
        let whole = std::fs::read_to_string(dir.path().join("node-token")).unwrap();
        let token = Token::parse(&whole).unwrap();
        assert_eq!(
            (token.secret.as_str(), token.believes("PEM"), token.believes("other")),
            (&*made, Some(true), Some(false))
        );
        assert_eq!(Token::parse("plain").unwrap().believes("PEM"), None);
        assert_eq!(secret(dir.path(), Some(&whole)).unwrap(), made, "a server takes its own whole token too");
        assert_eq!(secret(dir.path(), Some("new")).unwrap(), "new");
        for bad in ["", " ", "two words", "K10abc::"] {
            assert!(Token::parse(bad).is_err(), "{bad}");
        }
    }
}
