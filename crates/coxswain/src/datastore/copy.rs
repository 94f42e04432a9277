//! `coxswain datastore copy`: moves a cluster between a data folder and an etcd, either way, while no server runs.
//!
//! Objects are versioned by the revision of the store. Into a data folder they come with the revisions that they had, and the store
//! goes on from there. An etcd counts for itself: its revision is first raised above the old store's, one small write for each, so that no
//! version that a client remembers is ever given to something else, and every version that is told from then on is newer than those.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use bytes::Bytes;
use clap::Args;
use store::etcd::{Config as Etcd, Keys, RawEntry};
use store::{Options, Range, Revision, Store};

use super::{CredentialArgs, PREFIX, bootstrap, embedded_dir};
use crate::{files, join};

/// Written as often as the revision has to be raised.
const RAISED: &str = "/coxswain/revision";

#[derive(Args, Debug)]
pub struct CopyArgs {
    /// The cluster's present store: a data folder, or endpoints of an etcd
    #[arg(long, value_name = "FOLDER|ENDPOINTS")]
    from: String,
    /// Where it is to go: a data folder, or endpoints of an etcd, without a cluster in it
    #[arg(long, value_name = "FOLDER|ENDPOINTS")]
    to: String,
    #[command(flatten)]
    credentials: CredentialArgs,
    /// The cluster's token [default: that in the data folder]
    #[arg(long, env = "COXSWAIN_TOKEN", hide_env_values = true)]
    token: Option<String>,
}

enum Side {
    Folder(PathBuf),
    Etcd(Etcd),
}

/// All that a store holds, in the order of keys.
struct Content {
    entries: Vec<RawEntry>,
    revision: Revision,
}

pub fn run(args: CopyArgs) -> ExitCode {
    rustls::crypto::ring::default_provider().install_default().ok();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.context("cannot start the async runtime").and_then(|runtime| runtime.block_on(copy(args)));
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => crate::fail(&error),
    }
}

async fn copy(args: CopyArgs) -> Result<()> {
    let started = Instant::now();
    let side = |flag: &str, text: &str| match text.contains("://") {
        true => args.credentials.clone().into_etcd(flag, text).map(Side::Etcd),
        false => Ok(Side::Folder(std::path::absolute(text).with_context(|| flag.to_owned())?)),
    };
    let (from, to) = (side("--from", &args.from)?, side("--to", &args.to)?);
    let token = args.token.as_deref();
    let (count, revision) = match (from, to) {
        (Side::Folder(from), Side::Etcd(to)) => folder_to_etcd(&from, &to, token).await?,
        (Side::Etcd(from), Side::Folder(to)) => etcd_to_folder(&from, &to, token).await?,
        _ => bail!("one of --from and --to is a data folder, the other an etcd; a folder can be copied with cp"),
    };
    println!("{count} keys copied, revision {revision}, {:.1}s", started.elapsed().as_secs_f64());
    Ok(())
}

async fn folder_to_etcd(from: &Path, to: &Etcd, token: Option<&str>) -> Result<(usize, Revision)> {
    let db = embedded_dir(from);
    if !db.is_dir() {
        bail!("--from {}: there is no data store in it", from.display());
    }
    let _lock = files::lock(from)?;
    let keys = Keys::new(to)?;
    if !keys.is_empty(PREFIX).await? {
        bail!("--to {}: there are keys below {PREFIX} already", to.endpoints.join(","));
    }
    let content = read_folder(&db)?;
    let secret = join::secret(from, token)?;
    bootstrap::share(to, &from.join("tls"), &secret).await?;
    keys.raise_revision(RAISED, content.revision).await.context("cannot raise etcd's revision")?;
    let count = content.entries.len();
    keys.put_all(content.entries.into_iter().map(|entry| (entry.key, entry.value, entry.ttl)))
        .await
        .with_context(|| format!("the copy is not complete: remove the keys below {PREFIX} and do it again"))?;
    Ok((count, keys.revision().await?))
}

fn read_folder(db: &Path) -> Result<Content> {
    let store = Store::<Bytes>::open(db, Options::default()).context("cannot open the state store")?;
    let now = SystemTime::now();
    let listing = store.range(&Range::prefix(PREFIX))?;
    let entries = listing.entries.iter().map(|entry| RawEntry {
        key: entry.key.to_string(),
        value: entry.value.clone(),
        create_revision: entry.create_revision,
        mod_revision: entry.mod_revision,
        version: entry.version,
        // What is due goes as soon as it can.
        ttl: entry.expires().map(|at| at.duration_since(now).unwrap_or_default().max(Duration::from_secs(1))),
    });
    Ok(Content { entries: entries.collect(), revision: store.revision() })
}

async fn etcd_to_folder(from: &Etcd, to: &Path, token: Option<&str>) -> Result<(usize, Revision)> {
    files::make_dir(to)?;
    let _lock = files::lock(to)?;
    let keys = Keys::new(from)?;
    let (entries, revision) = keys.all(PREFIX).await?;
    if entries.is_empty() {
        bail!("--from {}: there is no key below {PREFIX}", from.endpoints.join(","));
    }
    let secret = match (token, files::read_optional(&to.join("token"))?) {
        (Some(token), _) => join::Token::parse(token)?.secret,
        (None, Some(kept)) => kept.trim().to_owned(),
        (None, None) => bail!("--token is needed: the cluster's authorities are encrypted with it"),
    };
    let db = embedded_dir(to);
    files::private_dir(&db)?;
    // First what may be refused, last what makes it a store.
    if !bootstrap::fetch(from, &to.join("tls"), &secret).await? {
        bail!("--from {}: there are objects, but no cluster of ours that they belong to", from.endpoints.join(","));
    }
    files::write_changed(&to.join("token"), secret.as_bytes())?;
    let count = entries.len();
    store::import(&db, entries, revision)?;
    Ok((count, revision))
}
