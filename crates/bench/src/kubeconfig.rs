//! What a kubeconfig's current context says of a server and its client.

use std::path::Path;

use anyhow::{Context as _, Result};
use base64::Engine as _;
use base64::engine::general_purpose::STANDARD;
use rustls::pki_types::pem::PemObject as _;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use serde::Deserialize;

/// Where a server is and how to be somebody there.
pub struct Access {
    pub server: http::Uri,
    pub authorities: Vec<CertificateDer<'static>>,
    pub certificate: Option<(Vec<CertificateDer<'static>>, PrivateKeyDer<'static>)>,
    pub token: Option<String>,
}

#[derive(Deserialize)]
#[serde(rename_all = "kebab-case")]
struct Config {
    current_context: String,
    clusters: Vec<Named>,
    users: Vec<Named>,
    contexts: Vec<Named>,
}

#[derive(Deserialize)]
struct Named {
    name: String,
    #[serde(default)]
    cluster: Option<Cluster>,
    #[serde(default)]
    user: Option<User>,
    #[serde(default)]
    context: Option<Context>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct Cluster {
    server: String,
    certificate_authority: Option<String>,
    certificate_authority_data: Option<String>,
}

#[derive(Deserialize, Default)]
#[serde(rename_all = "kebab-case", default)]
struct User {
    client_certificate: Option<String>,
    client_certificate_data: Option<String>,
    client_key: Option<String>,
    client_key_data: Option<String>,
    token: Option<String>,
}

#[derive(Deserialize)]
struct Context {
    cluster: String,
    user: String,
}

/// Reads `file`. Programs and other plugins that fetch credentials are not run.
pub fn read(file: &Path) -> Result<Access> {
    let text = std::fs::read_to_string(file).with_context(|| format!("cannot read {}", file.display()))?;
    parse(&text, file.parent().unwrap_or(Path::new("."))).with_context(|| file.display().to_string())
}

fn parse(text: &str, folder: &Path) -> Result<Access> {
    let config: Config = serde_saphyr::from_str(text)?;
    let context = find(config.contexts, &config.current_context).and_then(|n| n.context).context("no such context")?;
    let cluster = find(config.clusters, &context.cluster).and_then(|n| n.cluster).context("no such cluster")?;
    let user = find(config.users, &context.user).and_then(|n| n.user).context("no such user")?;
    let ca = pem(folder, cluster.certificate_authority_data, cluster.certificate_authority)?;
    let certificate = pem(folder, user.client_certificate_data, user.client_certificate)?;
    let key = pem(folder, user.client_key_data, user.client_key)?;
    let certificate = match (certificate, key) {
        (Some(chain), Some(key)) => Some((certificates(&chain)?, PrivateKeyDer::from_pem_slice(&key)?)),
        _ => None,
    };
    let authorities = certificates(&ca.context("the cluster names no certificate authority")?)?;
    Ok(Access { server: cluster.server.parse()?, authorities, certificate, token: user.token })
}

fn find(all: Vec<Named>, name: &str) -> Option<Named> {
    all.into_iter().find(|n| n.name == name)
}

/// Data in the file itself wins over a file that it names, as in client-go.
fn pem(folder: &Path, data: Option<String>, file: Option<String>) -> Result<Option<Vec<u8>>> {
    match (data, file) {
        (Some(data), _) => Ok(Some(STANDARD.decode(data.trim())?)),
        (None, Some(file)) => {
            let path = folder.join(file);
            Ok(Some(std::fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?))
        }
        (None, None) => Ok(None),
    }
}

fn certificates(pem: &[u8]) -> Result<Vec<CertificateDer<'static>>> {
    Ok(CertificateDer::pem_slice_iter(pem).collect::<Result<_, _>>()?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_current_context_is_followed_and_files_are_beside_it() {
        let folder = tempfile::tempdir().unwrap();
        std::fs::write(folder.path().join("ca.pem"), "").unwrap();
        let text = "current-context: b\n\
            clusters: [{name: x, cluster: {server: 'https://127.0.0.1:1'}}, \
            {name: y, cluster: {server: 'https://127.0.0.1:2', certificate-authority: ca.pem}}]\n\
            users: [{name: u, user: {token: t}}]\n\
            contexts: [{name: a, context: {cluster: x, user: u}}, {name: b, context: {cluster: y, user: u}}]\n";
        let access = parse(text, folder.path()).unwrap();
        assert_eq!((access.server.port_u16(), access.token.as_deref()), (Some(2), Some("t")));
        assert!(parse(&text.replace("context: b", "context: a"), folder.path()).is_err(), "no authority");
    }
}
