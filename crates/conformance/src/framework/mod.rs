//! What tests are written with: a cluster, a namespace of their own, dynamic objects, and waits that watch.

mod api;
mod exec;
pub mod kinds;
mod pods;
mod value;
mod wait;

use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use anyhow::{Context as _, Result};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};

pub use api::{Api, Patch, expect_failure, failure, labelled};
pub use kinds::Kind;
pub use pods::*;
pub use value::*;
pub use wait::{Watch, retry};

/// Most things happen within seconds; a wait that reaches this has failed.
pub const SOON: Duration = Duration::from_secs(60);
/// For pods to start or stop on a busy machine.
pub const POD: Duration = Duration::from_secs(120);

/// The cluster under test.
pub struct Cluster {
    pub client: Client,
    /// Distinguishes runs, since names of cluster-wide objects must not collide.
    run: String,
    count: AtomicU64,
    keep: bool,
}

impl Cluster {
    /// Connects with the current context of a kubeconfig, and fails where nobody answers.
    pub async fn connect(kubeconfig: &Path, keep: bool) -> Result<Self> {
        let file =
            Kubeconfig::read_from(kubeconfig).with_context(|| format!("cannot read {}", kubeconfig.display()))?;
        let mut config = Config::from_custom_kubeconfig(file, &KubeConfigOptions::default()).await?;
        // Watches may be silent for long; every wait has a limit of its own.
        config.read_timeout = None;
        // Refusals are what tests want to see, not to be tried again until they are none.
        config.default_retry = false;
        let client = Client::try_from(config)?;
        let version: Value = client.request(http::Request::get("/version").body(Vec::new())?).await?;
        println!("# server {}", text(&version, "/gitVersion"));
        let run = format!("{:05x}", rand::random_range(0..0x10_0000));
        Ok(Cluster { client, run, count: AtomicU64::new(0), keep })
    }
}

/// One test's surroundings: the cluster and a namespace of its own.
pub struct Cx {
    pub cluster: Arc<Cluster>,
    pub client: Client,
    pub ns: String,
    cleanup: std::sync::Mutex<Vec<(Api, String)>>,
    step: std::sync::Mutex<String>,
    /// Seconds that the test asked for; 0 for as many as tests have.
    seconds: AtomicU64,
}

impl Cx {
    /// Makes the namespace and waits for what pods in it need.
    pub async fn new(cluster: Arc<Cluster>) -> Result<Self> {
        let number = cluster.count.fetch_add(1, Ordering::Relaxed);
        let ns = format!("conformance-{}-{number}", cluster.run);
        let client = cluster.client.clone();
        let cx = Cx {
            cluster,
            client,
            ns,
            cleanup: Default::default(),
            step: Default::default(),
            seconds: AtomicU64::new(0),
        };
        cx.make_namespace(&cx.ns, json!({"conformance-run": cx.cluster.run})).await?;
        Ok(cx)
    }

    /// Makes a namespace with labels, and waits for its service account.
    async fn make_namespace(&self, name: &str, labels: Value) -> Result<()> {
        let object = json!({"metadata": {"name": name, "labels": labels}});
        self.cluster_wide(&kinds::NAMESPACE).create(&object).await?;
        let accounts = Api::new(&self.client, &kinds::SERVICE_ACCOUNT, Some(name));
        accounts.wait_one("default", SOON, "default service account", |_| Ok(())).await?;
        Ok(())
    }

    /// Another namespace, deleted with the test's own.
    pub async fn another_namespace(&self, labels: Value) -> Result<String> {
        let name = self.unique("other");
        self.delete_later(&self.cluster_wide(&kinds::NAMESPACE), &name);
        self.make_namespace(&name, labels).await?;
        Ok(name)
    }

    /// Objects of a kind in the test's namespace, or of the whole cluster where the kind has no namespaces.
    pub fn api(&self, kind: &Kind) -> Api {
        Api::new(&self.client, kind, kind.namespaced.then_some(self.ns.as_str()))
    }

    /// Objects of a kind in all namespaces.
    pub fn cluster_wide(&self, kind: &Kind) -> Api {
        Api::new(&self.client, kind, None)
    }

    pub fn api_in(&self, kind: &Kind, namespace: &str) -> Api {
        Api::new(&self.client, kind, Some(namespace))
    }

    /// A name that nobody else in the cluster uses, valid as a DNS label.
    pub fn unique(&self, prefix: &str) -> String {
        let number = self.cluster.count.fetch_add(1, Ordering::Relaxed);
        format!("{prefix}-{}-{number}", self.cluster.run)
    }

    /// Has an object outside the test's namespace deleted at its end.
    pub fn delete_later(&self, api: &Api, name: &str) {
        self.cleanup.lock().expect("nobody panics while holding it").push((api.clone(), name.to_owned()));
    }

    /// Creates an object outside the test's namespace that goes with the test.
    pub async fn create_for_test(&self, kind: &Kind, object: &Value) -> Result<Value> {
        let api = self.api(kind);
        let made = api.create(object).await?;
        self.delete_later(&api, name(&made));
        Ok(made)
    }

    /// Gives the test more time than tests have: for what takes upstream long as well.
    pub fn may_take(&self, limit: Duration) {
        self.seconds.store(limit.as_secs(), Ordering::Relaxed);
    }

    /// The time that the test asked for.
    pub fn asked_for(&self) -> Duration {
        Duration::from_secs(self.seconds.load(Ordering::Relaxed))
    }

    /// Says what the test is at, for the message of one that runs out of time.
    pub fn step(&self, what: impl Into<String>) {
        *self.step.lock().expect("nobody panics while holding it") = what.into();
    }

    pub fn last_step(&self) -> String {
        self.step.lock().expect("nobody panics while holding it").clone()
    }

    /// Deletes what the test made, latest first, without waiting. What is gone already is no matter.
    pub async fn clean_up(&self) {
        if self.cluster.keep {
            return;
        }
        let mut made = std::mem::take(&mut *self.cleanup.lock().expect("nobody panics while holding it"));
        made.reverse();
        made.push((self.cluster_wide(&kinds::NAMESPACE), self.ns.clone()));
        for (api, name) in made {
            let _ = tokio::time::timeout(Duration::from_secs(20), api.delete(&name)).await;
        }
    }
}

/// Objects by name, or by `namespace/name` where a list spans namespaces.
pub type Objects = BTreeMap<String, Value>;
