//! Where the cluster's state is kept: in this server's data folder, in memory, or in an etcd that several servers share.

mod bootstrap;
mod copy;

use std::path::PathBuf;

use anyhow::{Context as _, Result, bail};
use apiserver::object::ObjectStore;
use clap::Args;
use store::etcd::{Config as Etcd, Keys};

pub use bootstrap::share;
pub use copy::{CopyArgs, run as copy};

/// Upstream's keys: everything that is an object.
pub const PREFIX: &str = "/registry/";

/// k3s's flags.
#[derive(Args, Clone, Debug)]
pub struct DatastoreArgs {
    /// Where state is stored: `embedded`, `memory` for a throw-away cluster, or the endpoints of an etcd cluster,
    /// `https://a:2379,https://b:2379`
    #[arg(long, default_value = "embedded", value_name = "ENDPOINTS")]
    datastore_endpoint: String,
    #[command(flatten)]
    credentials: CredentialArgs,
}

#[derive(Args, Clone, Debug)]
pub struct CredentialArgs {
    /// Authorities (PEM) that sign the certificates of etcd [default: those that the system trusts]
    #[arg(long, value_name = "FILE")]
    datastore_cafile: Option<PathBuf>,
    /// Client certificate (PEM) for etcd
    #[arg(long, value_name = "FILE", requires = "datastore_keyfile")]
    datastore_certfile: Option<PathBuf>,
    /// Key of the client certificate (PEM)
    #[arg(long, value_name = "FILE", requires = "datastore_certfile")]
    datastore_keyfile: Option<PathBuf>,
}

#[derive(Clone, Debug)]
pub enum Datastore {
    Embedded,
    Memory,
    Etcd(Etcd),
}

impl DatastoreArgs {
    pub fn into_datastore(self) -> Result<Datastore> {
        match self.datastore_endpoint.as_str() {
            "embedded" => Ok(Datastore::Embedded),
            "memory" => Ok(Datastore::Memory),
            text => Ok(Datastore::Etcd(self.credentials.into_etcd("--datastore-endpoint", text)?)),
        }
    }
}

impl CredentialArgs {
    /// The etcd cluster that a flag names.
    fn into_etcd(self, flag: &str, endpoints: &str) -> Result<Etcd> {
        let config = Etcd {
            endpoints: endpoints.split(',').map(|endpoint| endpoint.trim().to_owned()).collect(),
            ca_file: self.datastore_cafile,
            cert_file: self.datastore_certfile,
            key_file: self.datastore_keyfile,
            prefix: PREFIX.to_owned(),
            ..Etcd::default()
        };
        if let Some(bad) = config.endpoints.iter().find(|endpoint| !endpoint.contains("://")) {
            bail!("{flag} {bad}: neither `embedded`, `memory` nor an endpoint such as https://10.0.0.1:2379");
        }
        // Looks at the endpoints' form and at the files, and connects later.
        Keys::new(&config).with_context(|| flag.to_owned())?;
        Ok(config)
    }
}

impl Datastore {
    /// Whether other servers may use it at the same time.
    pub fn is_shared(&self) -> bool {
        matches!(self, Datastore::Etcd(_))
    }

    /// Opens it; the embedded one lies in `data_dir`.
    pub async fn open(&self, data_dir: &std::path::Path) -> Result<ObjectStore> {
        let options = store::Options::default();
        match self {
            Datastore::Memory => Ok(ObjectStore::in_memory(options)),
            Datastore::Embedded => {
                let dir = embedded_dir(data_dir);
                crate::files::private_dir(&dir)?;
                ObjectStore::open(&dir, options).context("cannot open the state store")
            }
            Datastore::Etcd(config) => {
                let opened = ObjectStore::open_etcd(config.clone(), options).await;
                opened.with_context(|| format!("cannot open the state store on {}", config.endpoints.join(",")))
            }
        }
    }
}

pub fn embedded_dir(data_dir: &std::path::Path) -> PathBuf {
    data_dir.join("db")
}
