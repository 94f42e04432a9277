//! What all servers of a cluster must have in common, and cannot make each for itself: the two authorities and the key that signs
//! service account tokens. On a shared data store they lie in it, beside the objects, encrypted with a key derived from the token; so a
//! further server needs the endpoint and the token, and nothing else.

use std::collections::BTreeMap;
use std::path::Path;

use anyhow::{Context as _, Result, bail};
use ring::aead::{AES_256_GCM, Aad, LessSafeKey, NONCE_LEN, Nonce, UnboundKey};
use ring::pbkdf2;
use store::etcd::{Config as Etcd, Keys};

use crate::{files, pki};

/// Outside of the objects' keys.
const KEY: &str = "/coxswain/bootstrap";
/// Says how the rest is to be read.
const FORMAT: &[u8] = b"cxw1";
const SALT_LEN: usize = 16;
/// Tokens that people make up are short: each guess is to cost a tenth of a second or so.
const ROUNDS: u32 = 200_000;

/// File name in the certificates' folder → PEM.
type Secrets = BTreeMap<String, String>;

/// Brings the certificates' folder `tls` to what the cluster in the data store has; a cluster that has nothing yet gets what the folder
/// has, or what is made now.
pub async fn share(config: &Etcd, tls: &Path, token: &str) -> Result<()> {
    let keys = Keys::new(config)?;
    let mut offered = None;
    loop {
        if fetch(config, tls, token).await? {
            return Ok(());
        }
        let secrets = match offered.take() {
            Some(secrets) => secrets,
            None => own_or_new(tls)?,
        };
        let written = keys.put_if(KEY, seal(&secrets, token)?.into(), 0).await;
        // Whether it was this writing or another server's is seen by reading it.
        if matches!(&written, Err(error) if !matches!(error, store::Error::Uncertain { .. })) {
            written.context("cannot store the cluster's bootstrap data")?;
        }
        offered = Some(secrets);
    }
}

/// Brings the folder `tls` to what the cluster in the data store has; returns whether there is one.
pub async fn fetch(config: &Etcd, tls: &Path, token: &str) -> Result<bool> {
    let reach = || format!("cannot read the cluster's bootstrap data from {}", config.endpoints.join(","));
    match Keys::new(config)?.get(KEY).await.with_context(reach)? {
        Some((sealed, _)) => install(tls, &open(&sealed, token)?).map(|()| true),
        None => Ok(false),
    }
}

/// What the folder has, completed; new ones if it has nothing. New ones are not put into the folder, since another server may be
/// quicker.
fn own_or_new(tls: &Path) -> Result<Secrets> {
    if pki::SHARED.iter().any(|file| tls.join(file).exists()) {
        pki::make_shared(tls)?;
        return read(tls);
    }
    let parent = tls.parent().context("the certificates' folder lies in the data folder")?;
    files::make_dir(parent)?;
    let temporary = parent.join("tls.new");
    let made = pki::make_shared(&temporary).and_then(|()| read(&temporary));
    std::fs::remove_dir_all(&temporary).with_context(|| format!("cannot remove {}", temporary.display()))?;
    made
}

fn read(dir: &Path) -> Result<Secrets> {
    let file = |name: &&str| {
        let path = dir.join(name);
        let text = files::read_optional(&path)?.with_context(|| format!("{} is missing", path.display()))?;
        Ok(((*name).to_owned(), text))
    };
    pki::SHARED.iter().map(file).collect()
}

fn install(tls: &Path, secrets: &Secrets) -> Result<()> {
    files::private_dir(tls)?;
    for name in pki::SHARED {
        let text = secrets.get(name).with_context(|| format!("the data store's bootstrap data lack {name}"))?;
        let path = tls.join(name);
        match files::read_optional(&path)? {
            Some(found) if found == *text => {}
            Some(_) => bail!(
                "{} is not that of the cluster in the data store: this data folder belongs to another cluster",
                path.display()
            ),
            None => files::write_private(&path, text.as_bytes())?,
        }
    }
    Ok(())
}

/// `FORMAT`, salt, nonce, then the secrets as JSON, encrypted and authenticated together with the name of the key.
fn seal(secrets: &Secrets, token: &str) -> Result<Vec<u8>> {
    let salt: [u8; SALT_LEN] = rand::random();
    let nonce: [u8; NONCE_LEN] = rand::random();
    let mut text = serde_json::to_vec(secrets)?;
    let key = derive(token, &salt)?;
    key.seal_in_place_append_tag(Nonce::assume_unique_for_key(nonce), Aad::from(KEY), &mut text)
        .map_err(|_| anyhow::anyhow!("cannot encrypt the bootstrap data"))?;
    Ok([FORMAT, &salt, &nonce, &text].concat())
}

fn open(sealed: &[u8], token: &str) -> Result<Secrets> {
    let unknown = || format!("{KEY} in the data store is of a form that this version does not know");
    let rest = sealed.strip_prefix(FORMAT).with_context(unknown)?;
    let (salt, rest) = rest.split_at_checked(SALT_LEN).with_context(unknown)?;
    let (nonce, text) = rest.split_at_checked(NONCE_LEN).with_context(unknown)?;
    let nonce = Nonce::try_assume_unique_for_key(nonce).map_err(|_| anyhow::anyhow!(unknown()))?;
    let mut text = text.to_vec();
    let opened = derive(token, salt)?.open_in_place(nonce, Aad::from(KEY), &mut text).map_err(|_| {
        anyhow::anyhow!(
            "the data store belongs to a cluster with another token: start with the --token of its first server \
             (in the file `token` of that server's data folder)"
        )
    })?;
    Ok(serde_json::from_slice(opened)?)
}

fn derive(token: &str, salt: &[u8]) -> Result<LessSafeKey> {
    let rounds = std::num::NonZeroU32::new(ROUNDS).context("at least one round")?;
    let mut key = [0; 32];
    pbkdf2::derive(pbkdf2::PBKDF2_HMAC_SHA256, rounds, salt, token.as_bytes(), &mut key);
    let key = UnboundKey::new(&AES_256_GCM, &key).map_err(|_| anyhow::anyhow!("cannot make the encryption key"))?;
    Ok(LessSafeKey::new(key))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_token_opens_it() {
        let secrets = Secrets::from([("a".to_owned(), "PEM".to_owned())]);
        let sealed = seal(&secrets, "right").unwrap();
        assert_eq!(open(&sealed, "right").unwrap(), secrets);
        assert!(!sealed.windows(3).any(|bytes| bytes == b"PEM"));
        assert_ne!(sealed, seal(&secrets, "right").unwrap(), "nothing is told by two that are the same");
        assert!(open(&sealed, "wrong").unwrap_err().to_string().contains("another token"));
        let mut changed = sealed.clone();
        *changed.last_mut().unwrap() ^= 1;
        assert!(open(&changed, "right").is_err());
        assert!(open(&sealed[..10], "right").unwrap_err().to_string().contains("does not know"));
    }

    #[test]
    fn a_folder_of_another_cluster_is_left_alone() {
        let dir = tempfile::tempdir().unwrap();
        let (mine, yours) = (dir.path().join("mine/tls"), dir.path().join("yours/tls"));
        let made = own_or_new(&mine).unwrap();
        assert!(!mine.exists() && !mine.with_file_name("tls.new").exists());
        install(&mine, &made).unwrap();
        assert_eq!(own_or_new(&mine).unwrap(), made, "what is there is kept");
        install(&mine, &made).unwrap();
        let other = own_or_new(&yours).unwrap();
        let error = install(&mine, &other).unwrap_err().to_string();
        assert!(error.contains("another cluster"), "{error}");
        assert_eq!(read(&mine).unwrap(), made);
    }
}
